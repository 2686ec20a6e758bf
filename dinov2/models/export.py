"""`python -m dinov2.models.export`: a trained backbone in the files that timm, TRIDENT and others load.

Everything is written beside the output folder first, run again and compared with the backbone; only files that give its
embeddings appear in the folder.
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from dinov2.models.export_formats import FORMATS, Export, files_of_others, pool_argument, timm_architecture
from dinov2.models.export_graph import POOLINGS, ExportError, Pooling, fixed_size
from dinov2.models.model_card import CardFacts, model_card
from dinov2.models.weights import load_backbone
from dinov2.utils.errors import UserError
from dinov2.utils.files import replacing, write_text

TOLERANCE = 1e-3
CARD_FILE = "README.md"
EXAMPLES = """\
examples:
  python -m dinov2.models.export runs/mvhybrid --format timm        # into runs/mvhybrid/export/timm
  python -m dinov2.models.export runs/mvhybrid/teacher.safetensors --format onnx --size 224 --out exports/onnx
  python -m dinov2.models.export dinov2_vits14_pretrain.pth --format torchscript --pooling cls+mean --out exports/vits14

formats:
  safetensors  weights and config.json, for this package and Hugging Face
  timm         the same weights with timm's config.json: timm.create_model("local-dir:OUT", pretrained=True)
  torchscript  a graph that needs PyTorch only, for images of one size
  onnx         a graph for onnxruntime, for images of one size (needs the extra [export])

Exit codes: 0 exported, 2 something given is wrong, or what was written gives other embeddings (nothing is kept).
"""


def export_backbone(
    source: str | Path, file_format: str, out: str | Path, size: int | None = None, pooling: Pooling = "cls"
) -> float:
    """Write a backbone and its model card to a folder, and return the largest difference to its embeddings.

    Args:
        source: whatever `load_backbone` takes: a run or checkpoint folder, or a file of weights.
        file_format: one of safetensors, timm, torchscript, onnx.
        out: folder, made where it does not exist; what an earlier export in this format left in it is replaced.
        size: side of the images in px, a multiple of the patch size; by default the checkpoint's.
        pooling: output of the graphs: `cls` (B, D), `mean` of the patch tokens (B, D), or `cls+mean` (B, 2 D).

    Raises:
        CheckpointError: `source` is not a checkpoint.
        ExportError: unknown format, impossible size, a missing package, a folder with the files of another format, or
            files that give other embeddings.
    """
    if file_format not in FORMATS:
        raise ExportError(f"--format {file_format}: choose one of {', '.join(FORMATS)}")
    loaded = load_backbone(source)
    export = Export(loaded, loaded.input_size if size is None else size, pooling)
    fixed_size(export.embedder(), export.size)  # says what is wrong with a size before anything is written
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ExportError(f"--out {str(out)!r} is a file; give a folder")
    if others := files_of_others(file_format, out):
        raise ExportError(
            f"--out {str(out)!r} holds {', '.join(others)} of another format, which would lie beside other weights; "
            "remove them, or give another folder"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"--out {str(out)!r} cannot be made: {error}; give a folder that can be written") from error
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as name:
        folder = Path(name)
        FORMATS[file_format].write(export, folder)
        difference = largest_difference(export, file_format, folder)
        architecture, arguments = timm_architecture(loaded.model.spec)
        arguments = arguments | pool_argument(pooling)
        facts = CardFacts(file_format, export.size, pooling, architecture, arguments, difference)
        write_text(folder / CARD_FILE, model_card(loaded, facts))
        written = sorted(folder.iterdir())
        for file in written:
            with replacing(out / file.name) as temporary:
                os.replace(file, temporary)
        for left in set(FORMATS[file_format].files) - {file.name for file in written}:
            (out / left).unlink(missing_ok=True)
    return difference


def largest_difference(export: Export, file_format: str, folder: Path) -> float:
    """Return how far the embeddings of the written files are from the backbone's, on one and on three random images.

    Raises:
        ExportError: the difference is above 1e-3, not a number, or the shapes differ.
    """
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch in (1, 3):
        images = torch.randn(batch, 3, export.size, export.size, generator=generator)
        with torch.no_grad():
            expected = export.embedder()(images)  # (B, D)
            found = FORMATS[file_format].run(export, folder, images)
        if found.shape != expected.shape:
            raise ExportError(f"{file_format}: embeddings {tuple(found.shape)}, expected {tuple(expected.shape)}")
        difference = float((found - expected).abs().max())
        if not difference <= TOLERANCE:  # also true of NaN
            raise ExportError(
                f"{file_format}: the written files give embeddings that differ by {difference:.1e} from the "
                f"backbone's, more than {TOLERANCE:.0e}; nothing was exported"
            )
        largest = max(largest, difference)
    return largest


def main(argv: Sequence[str] | None = None) -> int:
    """Export as the command line says and return the exit code: 0, or 2 after an error of the user's."""
    parser = argparse.ArgumentParser(
        prog="python -m dinov2.models.export",
        description="Write a backbone, with a model card, in a format that other programs load, and check it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="RUN_OR_FILE", help="run or checkpoint folder, teacher.safetensors, or .pth")
    parser.add_argument("--format", choices=list(FORMATS), required=True, help="what to write, see below")
    parser.add_argument("--out", metavar="DIR", help="folder to write into (default: export/FORMAT beside the weights)")
    parser.add_argument("--size", type=int, metavar="PX", help="side of the images (default: the checkpoint's)")
    parser.add_argument(
        "--pooling",
        choices=POOLINGS,
        default="cls",
        help="the embedding: CLS token, mean of the patch tokens, or both",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    source = Path(args.source)
    out = args.out or (source if source.is_dir() else source.parent) / "export" / args.format
    try:
        difference = export_backbone(source, args.format, out, args.size, args.pooling)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {args.format}, embeddings within {difference:.1e} of the backbone's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
