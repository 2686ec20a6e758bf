"""A backbone as a graph that runs without this package: TorchScript and ONNX.

The graph maps normalised images (B, 3, S, S) of one size to embeddings; B is free. Position embeddings are resized to
that size beforehand, and the scans are written in elementary operators, so that nothing of this package is needed.
"""

import copy
import importlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dinov2.models.isotropic import IsotropicBackbone
from dinov2.models.pos_embed import interpolate_pos_embed
from dinov2.ops.dispatch import forced
from dinov2.utils.errors import UserError

Pooling = Literal["cls", "mean", "cls+mean"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

OPSET = 18  # the lowest that PyTorch's exporter writes without converting
_ONE_FILE = 1 << 30  # bytes of weights; a message of protobuf ends at 2 GiB
# The backends that are made of PyTorch's own operators, in the fewest nodes.
ELEMENTARY = {
    "attention": "sdpa",
    "conv_silu": "plain",
    "einfft": "products",
    "linear": "plain",
    "selective_scan": "doubling",
    "ssd": "quadratic",
}


class ExportError(UserError):
    """A backbone cannot be exported, or what was written does not give its embeddings."""


class Embedder(nn.Module):
    """A backbone with the pooling of its outputs: images (B, 3, H, W) to (B, D), or (B, 2 D) for `cls+mean`."""

    def __init__(self, backbone: IsotropicBackbone, pooling: Pooling) -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, pooling

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (B, 3, H, W): the CLS token, the mean of the patch tokens, or both concatenated."""
        out = self.backbone.forward_features(images)
        cls, mean = out["x_norm_clstoken"], out["x_norm_patchtokens"].mean(1)  # each (B, D)
        return {"cls": cls, "mean": mean}[self.pooling] if self.pooling != "cls+mean" else torch.cat([cls, mean], 1)


def fixed_size(embedder: Embedder, size: int) -> Embedder:
    """Return a frozen copy for images of `size` x `size` px, made of what a graph can hold.

    Its position embedding has their grid already.

    Raises:
        ExportError: `size` is not a positive multiple of the patch size.
    """
    fixed = copy.deepcopy(embedder).eval().requires_grad_(False)
    backbone = fixed.backbone
    try:
        rows, columns = backbone.patch_embed.grid(size, size)
    except ValueError as error:
        raise ExportError(f"--size {size}: {error}") from error
    if backbone.pos_embed is not None:
        spec = backbone.spec
        resized = interpolate_pos_embed(
            backbone.pos_embed, rows, columns, spec.interpolate_antialias, spec.interpolate_offset
        )
        backbone.pos_embed = nn.Parameter(resized, requires_grad=False)
    return fixed


def write_torchscript(embedder: Embedder, size: int, path: Path, properties: Mapping[str, str]) -> None:
    """Trace an embedder for images of `size` px; `properties` become extra files of the archive."""
    model, example = fixed_size(embedder, size), torch.zeros(2, 3, size, size)
    with _elementary_operators():
        model(example)  # makes the transform matrices, which would else be made anew in the graph
        traced = torch.jit.trace(model, example, check_trace=False)
        torch.jit.save(traced, str(path), _extra_files=dict(properties))


def run_torchscript(path: Path, images: Tensor) -> Tensor:
    """Return the output of a TorchScript file for images (B, 3, S, S)."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated in favour of torch.export, which needs this package
        return torch.jit.load(str(path), map_location="cpu")(images)


def write_onnx(embedder: Embedder, size: int, path: Path, properties: Mapping[str, str]) -> None:
    """Export an embedder for images of `size` px, input `images`, output `embedding`; `properties` become metadata.

    Weights beyond 1 GiB go to a second file beside `path`, named like it with `.data` appended.

    Raises:
        ExportError: the packages of the extra `export` are not installed.
    """
    onnx = _needed("onnx")
    _needed("onnxscript")
    model, example = fixed_size(embedder, size), torch.zeros(2, 3, size, size)
    large = sum(p.numel() * p.element_size() for p in model.parameters()) > _ONE_FILE
    with _elementary_operators():
        model(example)
        # Exported in two steps: in one, an axis that cannot be free would silently become fixed.
        batch = torch.export.Dim("batch", min=1, max=1 << 16)
        program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},), strict=False)
        torch.onnx.export(
            program,
            (),
            str(path),
            input_names=["images"],
            output_names=["embedding"],
            opset_version=OPSET,
            dynamo=True,
            external_data=large,
            verbose=False,
        )
    written = onnx.load(str(path), load_external_data=False)
    onnx.helper.set_model_props(written, dict(properties))
    onnx.save(written, str(path))


def run_onnx(path: Path, images: Tensor) -> Tensor:
    """Return the output of an ONNX file for images (B, 3, S, S), by onnxruntime on the CPU.

    Raises:
        ExportError: onnxruntime is not installed.
    """
    runtime = _needed("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@contextmanager
def _elementary_operators() -> Iterator[None]:
    """Run the backbone's operators in a form that a graph can hold, without gradients."""
    with forced(**ELEMENTARY), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of every check of a shape, which tracing settles once
        yield


def _needed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(
            f"ONNX needs {name}, which is not installed: pip install 'dinov2-pathology[export]'"
        ) from error
