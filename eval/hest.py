"""Spatial-transcriptomics evaluation on tasks in the public hest-bench layout: `python -m eval.hest [run] ...`.

Checks the tasks, embeds their patches with each encoder (cached), fits the linear head fold by fold, and writes
OUT/results.json, OUT/results.csv and a table.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dinov2.utils.errors import UserError
from eval.embed import embed_task
from eval.encoders import POOLINGS, Encoder, Pooling, encoder_key, make_encoder
from eval.errors import EvalError
from eval.hest_data import Task, load_task
from eval.protocol import FitSettings, evaluate
from eval.results import Row, check_mergeable, merge, open_results, table, write_results

EXAMPLES = """
encoders:
  --checkpoint PATH               run or checkpoint folder, teacher.safetensors, DINOv2's teacher_checkpoint.pth
                                  or a released dinov2_*_pretrain.pth
  --encoder random:mvhybrid       an architecture with fresh weights (also random:CHECKPOINT_PATH)
  --encoder timm:NAME             pretrained; timm:NAME,pretrained=false or timm:NAME,checkpoint=FILE without network
  --encoder color-stats           12 colour statistics: the baseline that an encoder must beat

examples:
  python -m eval.hest --checkpoint runs/mvhybrid/teacher.safetensors --encoder color-stats \\
      --bench-root hest-bench --tasks IDC PRAD --out results/mvhybrid
  python -m eval.hest --checkpoint runs/a runs/b --encoder random:runs/a timm:vit_small_patch16_224,pretrained=false \\
      --bench-root hest-bench --tasks HER2ST --out results/compare --device cuda --batch-size 256

OUT may hold earlier results: with the same settings rows are merged, otherwise it is an error unless --force is given.
"""


def run(
    specs: Sequence[str],
    bench_root: Path,
    tasks: Sequence[str],
    out: Path,
    *,
    fit: FitSettings | None = None,
    pooling: Pooling = "cls+mean",
    batch_size: int = 64,
    device: str = "auto",
    cache: Path | None = None,
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
    command: str | None = None,
) -> list[Row]:
    """Evaluate encoders on tasks and write the result files after each of them.

    Args:
        specs: encoders, see `eval.encoders.make_encoder`.
        bench_root: folder of the tasks.
        tasks: names of folders in `bench_root`.
        out: results folder; rows already there are kept if their settings are equal (see `eval.results`).
        fit: components and penalty of the head; the published ones by default.
        pooling: CLS token, mean of patch tokens, or both concatenated.
        batch_size: patches a forward pass.
        device: `auto`, `cpu`, `cuda` or another torch device.
        cache: folder of embeddings, `out/embeddings` by default; share one between runs to embed only once.
        seed: draws the weights of random encoders.
        force: start `out` afresh, whatever results it holds (cached embeddings stay).
        progress: show progress bars.
        command: recorded in the results.

    Returns:
        All rows of the results file, old and new.

    Raises:
        EvalError: any input that cannot be used; CheckpointError for a checkpoint.
    """
    if batch_size < 1:
        raise EvalError(f"batch size {batch_size}: it must be 1 or more.")
    started = time.perf_counter()
    fit = fit or FitSettings()
    settings = {**fit.as_dict(), "pooling": pooling, "seed": seed}
    rows = open_results(out, settings, force=force)
    loaded = [load_task(bench_root, name) for name in dict.fromkeys(tasks)]
    for task in loaded:
        check_mergeable(rows, out, task.name, task.data_hash)
    device = _device(device) if any(spec != "color-stats" for spec in specs) else "cpu"
    wanted = list(dict.fromkeys(specs))
    for spec in wanted[1:]:  # a mistake in the last one should not show after the first has embedded everything
        make_encoder(spec, pooling=pooling, device="cpu", seed=seed)
    for spec in wanted:
        encoder = make_encoder(spec, pooling=pooling, device=device, seed=seed)
        for task in loaded:
            row = evaluate_encoder(encoder, task, cache or out / "embeddings", fit, batch_size, progress)
            rows = merge(rows, row)
            facts = {"command": command, "device": device, "seconds": round(time.perf_counter() - started, 2)}
            write_results(out, rows, settings, facts)
    return rows


def evaluate_encoder(
    encoder: Encoder, task: Task, cache: Path, fit: FitSettings, batch_size: int = 64, progress: bool = True
) -> Row:
    """Embed (or take from the cache) and fit: one row of the results."""
    t0 = time.perf_counter()
    embeddings = embed_task(encoder, task, cache, batch_size=batch_size, progress=progress)
    t1 = time.perf_counter()
    scores = evaluate(embeddings.features, task, fit)
    settings = dict(encoder.settings)
    row: dict[str, Any] = {
        "encoder": encoder.name,
        "task": task.name,
        "protocol": fit.protocol,
        "pooling": settings["pooling"],
        "weights_hash": settings["weights_hash"],
        "encoder_key": encoder_key(encoder),
        "encoder_settings": settings,
        "data_hash": task.data_hash,
    }
    timing = {"embed": round(t1 - t0, 3), "fit": round(time.perf_counter() - t1, 3)}
    return {**row, **scores, "patches_embedded": embeddings.embedded, "seconds": timing}


def run_command(argv: Sequence[str]) -> None:
    """`python -m eval.hest [run]`."""
    args = _parser().parse_args(argv)
    specs = [f"checkpoint:{path}" for path in args.checkpoint] + args.encoder
    if not specs:
        raise EvalError("no encoder given. Use --checkpoint PATH or --encoder SPEC (see --help).")
    rows = run(
        specs,
        args.bench_root,
        args.tasks,
        args.out,
        fit=FitSettings(args.protocol, None if args.no_pca else args.pca, args.alpha, args.solver),
        pooling=args.pooling,
        batch_size=args.batch_size,
        device=args.device,
        cache=args.cache,
        seed=args.seed,
        force=args.force,
        command=shlex.join(["python", "-m", "eval.hest", *argv]),
    )
    print(table(rows))
    print(f"\nwritten: {args.out / 'results.json'}, {args.out / 'results.csv'}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"run": run_command}


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to a subcommand (`run` when none is named); 0 on success, 2 with a line on stderr for bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = COMMANDS[arguments.pop(0)] if arguments and arguments[0] in COMMANDS else run_command
    try:
        command(arguments)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _device(name: str) -> str:
    import torch

    if name not in ("auto", "cpu") and not name.startswith("cuda"):
        raise EvalError(f"device {name!r}: it must be auto, cpu, cuda or cuda:N.")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise EvalError(f"device {name}: torch {torch.__version__} sees no CUDA device here. Use --device cpu or auto.")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval.hest [run]",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to evaluate")
    what.add_argument(
        "--checkpoint", nargs="+", action="extend", default=[], metavar="PATH", help="pretrained, see below"
    )
    what.add_argument("--encoder", nargs="+", action="extend", default=[], metavar="SPEC", help="others, see below")
    what.add_argument("--bench-root", type=Path, required=True, help="folder of the tasks")
    what.add_argument("--tasks", nargs="+", required=True, help="names of folders in the bench root")
    what.add_argument("--out", type=Path, required=True, help="results folder")
    how = parser.add_argument_group("protocol")
    how.add_argument("--protocol", choices=["hest-benchmark"], default="hest-benchmark")
    how.add_argument("--pooling", choices=POOLINGS, default="cls+mean", help="default: cls+mean, concatenated")
    pca = how.add_mutually_exclusive_group()
    pca.add_argument("--pca", type=int, default=256, help="most principal components (default 256)")
    pca.add_argument("--no-pca", action="store_true", help="ridge on the standardised embeddings")
    how.add_argument("--alpha", type=float, help="ridge penalty (default: 100 / (features x genes), as published)")
    how.add_argument(
        "--solver",
        choices=["exact", "lsqr"],
        default="exact",
        help="of the ridge; lsqr stops early, as hest-bench's call does, and is comparable with its published numbers",
    )
    how.add_argument("--seed", type=int, default=0, help="draws the weights of random encoders")
    work = parser.add_argument_group("execution")
    work.add_argument("--batch-size", type=int, default=64)
    work.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    work.add_argument("--cache", type=Path, help="folder of cached embeddings (default: OUT/embeddings)")
    work.add_argument("--force", action="store_true", help="start OUT afresh, whatever results it holds")
    return parser


if __name__ == "__main__":
    sys.exit(main())
