"""Images and masks that a backbone cannot take: refused with what they are, the rule and the fix."""

import pytest
import torch

from dinov2.layers.patch_embed import ImageError
from dinov2.models import build_backbone

SIX = ("vit12", "vit24", "vim_einfft", "hydra_einfft", "hydra_hybrid", "mvhybrid")
WAYS = {
    "forward": lambda model, x: model(x),
    "forward_features": lambda model, x: model.forward_features(x),
    "forward_features_list": lambda model, x: model.forward_features_list([x], [None]),
    "get_intermediate_layers": lambda model, x: model.get_intermediate_layers(x),
}


def build(name):
    torch.manual_seed(0)
    return build_backbone(name, embed_dim=32, num_heads=2, depth=2, img_size=32, patch_size=8).eval()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("height", "width", "nearest"),
    [(4, 32, "8 x 32"), (32, 7, "32 x 8"), (0, 32, "8 x 32"), (30, 32, "32 x 32"), (32, 33, "32 x 32")],
)
@pytest.mark.parametrize("name", SIX)
def test_an_image_that_patches_do_not_fill_is_refused(name, height, width, nearest, way):
    with pytest.raises(ValueError, match=f"image of {height} x {width} px") as error:
        WAYS[way](build(name), torch.zeros(1, 3, height, width))
    assert "positive multiple of the patch size 8" in str(error.value)
    assert f"nearest valid size is {nearest}" in str(error.value)


BAD = {
    "one image": (torch.zeros(3, 32, 32), r"images have shape \(3, 32, 32\); expected \(batch, 3, .* unsqueeze\(0\)"),
    "five axes": (torch.zeros(1, 2, 3, 32, 32), r"images have shape \(1, 2, 3, 32, 32\); expected \(batch, 3, "),
    "grey": (torch.zeros(2, 1, 32, 32), r"images have shape \(2, 1, 32, 32\); expected \(batch, 3, "),
    "channels last": (torch.zeros(2, 32, 32, 3), r"images have shape \(2, 32, 32, 3\).* permute\(0, 3, 1, 2\)"),
    "bytes": (
        torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
        r"images \(2, 3, 32, 32\) have dtype torch.uint8",
    ),
    "no image": (torch.zeros(0, 3, 32, 32), r"images have shape \(0, 3, 32, 32\); expected at least one image"),
    "elsewhere": (
        torch.zeros(2, 3, 32, 32, device="meta"),
        r"images \(2, 3, 32, 32\) are on meta but the",
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", SIX)
def test_what_is_no_batch_of_images_is_refused(name, kind, way):
    images, message = BAD[kind]
    with pytest.raises(ImageError, match=message):
        WAYS[way](build(name), images)


@pytest.mark.parametrize("name", SIX)
def test_images_in_any_memory_layout(name):
    model = build(name)
    x = torch.randn(2, 3, 32, 24, generator=torch.Generator().manual_seed(1))
    views = {
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "strided": x.repeat_interleave(2, dim=3)[..., ::2],
    }
    for layout, view in views.items():
        assert not view.is_contiguous()
        torch.testing.assert_close(model(view), model(x), rtol=1e-4, atol=1e-4, msg=layout)


@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize("shape", [(2, 15), (1, 16), (2, 4, 4), (32,)], ids=str)
def test_masks_that_do_not_fit_are_refused(name, shape):
    with pytest.raises(ValueError, match="masks have shape") as error:
        build(name).forward_features(torch.zeros(2, 3, 32, 32), torch.zeros(shape, dtype=torch.bool))
    assert str(shape) in str(error.value)
    assert "expected (2, 16)" in str(error.value)


@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.zeros(2, 16), r"masks \(2, 16\) have dtype torch.float32; expected torch.bool"),
        (torch.zeros(2, 16, dtype=torch.int64), r"masks \(2, 16\) have dtype torch.int64; expected torch.bool"),
        (torch.zeros(2, 16, dtype=torch.bool, device="meta"), r"masks \(2, 16\) are on meta but the images are on cpu"),
    ],
    ids=["float", "integer", "elsewhere"],
)
def test_masks_of_another_dtype_or_device_are_refused(name, masks, message):
    with pytest.raises(ImageError, match=message):
        build(name).forward_features(torch.zeros(2, 3, 32, 32), masks)
