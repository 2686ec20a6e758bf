"""`python -m eval.hest [run]`: encoders x tasks x splits to one results folder.

Checks the tasks, embeds their patches with each encoder (cached), fits the head fold by fold, and writes results.json,
.csv, .md and .tex, `maps/` with the held-out predictions of a few genes, and report.html.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.embed import embed_task
from eval.encoders import Encoder, Pooling, encoder_key, make_encoder
from eval.errors import EvalError
from eval.extended import Extended, load_extended
from eval.file_hashes import FileHashes
from eval.hest_data import Task, load_task
from eval.leakage import guard
from eval.maps import map_genes, write_map
from eval.precomputed import PREFIX, Precomputed
from eval.protocol import evaluate
from eval.results import add_results, check_mergeable, open_results, versions
from eval.settings import FitSettings
from eval.spots import Features
from eval.tables import Row
from eval.tissue import check_map_samples, map_samples, write_tissue

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """How to do it; nothing here changes a score.

    Attributes:
        batch_size: patches a forward pass.
        device: `auto`, `cpu`, `cuda` or another torch device.
        cache: folder of embeddings, and of the hashes of files, `<out>/embeddings` by default; share one between runs
            to embed and hash only once.
        force: start the results folder afresh, whatever it holds (cached embeddings stay).
        strict: refuse what leaks test data into training.
        map_genes: genes whose predictions are kept for the report; the three most variable by default.
        map_samples: samples that the report draws; those of most spots by default.
        progress: show progress bars.
        command: recorded in the results.
    """

    batch_size: int = 64
    device: str = "auto"
    cache: Path | None = None
    force: bool = False
    strict: bool = False
    map_genes: tuple[str, ...] = ()
    map_samples: tuple[str, ...] = ()
    progress: bool = True
    command: str | None = None


def run(
    specs: Sequence[str],
    bench_root: Path,
    tasks: Sequence[str],
    out: Path,
    *,
    fit: FitSettings | None = None,
    extended: Extended | None = None,
    pooling: Pooling = "cls+mean",
    seed: int = 0,
    work: Work | None = None,
) -> list[Row]:
    """Evaluate encoders on tasks and write the result files after each of them.

    Args:
        specs: encoders, see `eval.encoders.make_encoder`, or `precomputed:FOLDER`.
        bench_root: folder of the tasks.
        tasks: names of folders in `bench_root`.
        out: results folder; rows already there are kept if their settings are equal (see `eval.results`).
        fit: protocol and head; the published benchmark by default.
        extended: splits and panel of the protocol hest-extended, which alone uses them.
        pooling: CLS token, mean of patch tokens, or both concatenated.
        seed: draws the weights of random encoders.
        work: device, batches, cache and the like.

    Returns:
        All rows of the results file, old and new.

    Raises:
        EvalError: any input that cannot be used; CheckpointError for a checkpoint.
    """
    work, fit = work or Work(), fit or FitSettings()
    if work.batch_size < 1:
        raise EvalError(f"batch size {work.batch_size}: it must be 1 or more.")
    started = time.perf_counter()
    extended = (extended or Extended()) if fit.protocol == "hest-extended" else None
    settings = {**fit.as_dict(), "pooling": pooling, "seed": seed, **(extended.as_dict() if extended else {})}
    force = work.force
    rows = open_results(out, settings, force=force)
    device = find_device(work.device)
    wanted = list(dict.fromkeys(specs))
    if len(wanted) > 1:  # a mistake in the last one should not show after the first has embedded everything
        called = [_encoder(spec, pooling, "cpu", seed).name for spec in wanted]
        if twice := sorted({name for name in called if called.count(name) > 1}):
            raise EvalError(f"encoder name {twice[0]!r}: two of {', '.join(wanted)} have it. Give each its own `name`.")
    names = list(dict.fromkeys(tasks))
    hashes = FileHashes(work.cache or out / "embeddings")
    loaded = [
        load_extended(bench_root, n, extended, hashes=hashes, progress=work.progress)
        if extended
        else load_task(bench_root, n, hashes=hashes, progress=work.progress)
        for n in names
    ]
    check_map_samples(loaded, work.map_samples)
    for task in loaded:
        map_genes(task, work.map_genes)
        content = task.content_hash()
        for split in task.splits:
            check_mergeable(rows, out, task.name, split.name, task.data_hash(split), content)
    for warning in guard(loaded, strict=work.strict):
        logger.warning("%s", warning)
    hashes.save()
    for task in loaded:
        write_tissue(out / "maps", task, map_samples(task, work.map_samples))
    for spec in wanted:
        encoder = _encoder(spec, pooling, device, seed)
        for task in loaded:
            new = evaluate_encoder(encoder, task, out, fit, work, device)
            facts = {"command": work.command, "device": device, "seconds": round(time.perf_counter() - started, 2)}
            rows = add_results(out, new, settings, facts, force=force)
            force = False  # what this run has written stays
    return rows


def evaluate_encoder(
    encoder: Encoder | Precomputed, task: Task, out: Path, fit: FitSettings, work: Work, device: str = "cpu"
) -> list[Row]:
    """Embed (or take from the cache) and fit: one row of the results for each split, maps beside them."""
    t0 = time.perf_counter()
    features, settings, key, embedded = _embeddings(encoder, task, work.cache or out / "embeddings", work)
    t1 = time.perf_counter()
    genes = map_genes(task, work.map_genes)
    evaluations = evaluate(features, task, fit, keep=genes, device=device, progress=work.progress)
    # Splits share the pass over the spots, so that the time for fitting is that of all of them.
    seconds = {"embed": round(t1 - t0, 3), "fit": round(time.perf_counter() - t1, 3)}
    rows = []
    for split, done in zip(task.splits, evaluations, strict=True):
        name = write_map(out / "maps", key, task, split.name, done.predictions, genes)
        rows.append(
            {
                "encoder": encoder.name,
                "task": task.name,
                "protocol": fit.protocol,
                "split": split.name,
                "pooling": settings["pooling"],
                "weights_hash": settings["weights_hash"],
                "encoder_key": key,
                "encoder_settings": dict(settings),
                "data_hash": task.data_hash(split),
                "content_hash": task.content_hash(),
                "panel": dict(task.panel),
                **done.record,
                "map": name,
                "patches_embedded": embedded,
                "seconds": seconds,
                "device": device,
                "command": work.command,
                "versions": versions(),
            }
        )
    return rows


def find_device(name: str) -> str:
    """Resolve `auto`; EvalError for a device that is not there."""
    import torch

    if name not in ("auto", "cpu") and not name.startswith("cuda"):
        raise EvalError(f"device {name!r}: it must be auto, cpu, cuda or cuda:N.")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise EvalError(f"device {name}: torch {torch.__version__} sees no CUDA device here. Use --device cpu or auto.")
    if name.startswith("cuda"):
        try:
            index = torch.device(name).index or 0
        except RuntimeError as error:
            raise EvalError(f"device {name!r}: it must be auto, cpu, cuda or cuda:N.") from error
        if index >= torch.cuda.device_count():
            raise EvalError(f"device {name}: torch sees {torch.cuda.device_count()} CUDA device(s), counted from 0.")
    return name


def _encoder(spec: str, pooling: Pooling, device: str, seed: int) -> Encoder | Precomputed:
    if spec.startswith(PREFIX):
        return Precomputed(spec)
    return make_encoder(spec, pooling=pooling, device=device, seed=seed)


def _embeddings(
    encoder: Encoder | Precomputed, task: Task, cache: Path, work: Work
) -> tuple[Features, Mapping[str, Any], str, int]:
    """Features, the encoder's settings, its key, and how many patches were embedded now."""
    if isinstance(encoder, Precomputed):
        return encoder.features(task), encoder.settings, str(encoder.settings["weights_hash"]), 0
    found = embed_task(encoder, task, cache, batch_size=work.batch_size, progress=work.progress)
    return found.features, encoder.settings, encoder_key(encoder), found.embedded
