"""The C kernel of a crop's pixel work against the same operations of PyTorch, and its refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dinov2.data import image_ops
from dinov2.data.blur import blur_taps, gaussian_blur
from dinov2.ops import native
from dinov2.ops.crop.native import OPERATIONS, SOURCE, finish_crop

pytestmark = pytest.mark.skipif(native.why_not(SOURCE) is not None, reason="needs a C compiler")

MEAN, STD = torch.tensor([0.7, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
STEPS = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.floats(0, 2)), max_size=6)


def _expected(pixels: Tensor, steps: list[tuple[str, float]], blur: tuple[int, float] | None, solarize: bool) -> Tensor:
    x = (pixels.float() / 255).view(1, 1, 3, -1)
    for name, factor in steps:
        x = image_ops.grayscale(x) if name == "grayscale" else getattr(image_ops, f"adjust_{name}")(x, factor)
    x = x.view(pixels.shape)
    x = gaussian_blur(x, *blur) if blur else x
    x = image_ops.solarize(x) if solarize else x
    return (x - MEAN[:, None, None]) / STD[:, None, None]


def _finish(pixels: Tensor, steps: list[tuple[str, float]], blur: tuple[int, float] | None, solarize: bool) -> Tensor:
    size = pixels.shape[-1]
    taps = blur_taps(torch.tensor([blur[1]]), blur[0])[0] if blur else None
    out = torch.full((3, size, size), float("nan"))
    scratch = torch.full((3 * size * size + size + 41,), float("nan"))
    finish_crop(pixels, steps, taps, solarize, MEAN, STD, out, scratch)
    return out


@settings(deadline=None, max_examples=120)
@given(size=st.integers(1, 70), steps=STEPS, half=st.integers(0, 20), sigma=st.floats(0.1, 3), seed=st.integers(0, 99))
def test_equals_pytorch(size: int, steps: list[tuple[str, float]], half: int, sigma: float, seed: int) -> None:
    pixels = torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    steps = [(name, factor - 1 if name == "hue" else factor) for name, factor in steps]
    blur = (2 * half + 1, sigma) if 0 < half < size else None
    assert torch.allclose(_finish(pixels, steps, blur, False), _expected(pixels, steps, blur, False), atol=2e-4)


def test_hue_of_all_sorts_of_colours() -> None:
    levels = torch.tensor([0, 1, 60, 127, 128, 254, 255], dtype=torch.uint8)
    colours = torch.cartesian_prod(levels, levels, levels).T  # (3, 343): black, white, grey, ties between channels
    pixels = colours.repeat(1, 2)[:, : 19 * 19].reshape(3, 19, 19).contiguous()
    for shift in (-0.5, -0.07, 0.0, 0.1, 0.5):
        out = _finish(pixels, [("hue", shift)], None, False)
        assert torch.allclose(out, _expected(pixels, [("hue", shift)], None, False), atol=1e-5)


def test_solarize_on_all_grey_levels() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(16, 16).expand(3, 16, 16).contiguous()
    assert torch.allclose(_finish(pixels, [], None, True), _expected(pixels, [], None, True), atol=1e-5)


def test_refuses_what_it_would_misread() -> None:
    pixels, out, scratch = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.empty(3, 8, 8), torch.empty(300)
    with pytest.raises(native.NativeError, match="contiguous uint8 crop"):
        finish_crop(pixels.mT, [], None, False, MEAN, STD, out, scratch)
    with pytest.raises(native.NativeError, match="contiguous uint8 crop"):
        finish_crop(pixels.float(), [], None, False, MEAN, STD, out, scratch)
    with pytest.raises(native.NativeError, match="float64"):
        finish_crop(pixels, [], None, False, MEAN.double(), STD, out, scratch)
    with pytest.raises(native.NativeError, match="10 values of scratch memory; 200 are needed"):
        finish_crop(pixels, [], None, False, MEAN, STD, out, torch.empty(10))
