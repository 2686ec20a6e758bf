"""HEST evaluation against the published computation: fit and predict all folds, memory, and the rate of embedding.

The published way fits scikit-learn's StandardScaler, PCA (256 components) and Ridge (LSQR) anew for every fold; ours
takes all folds from Gram matrices, and its time includes every score, per sample too. Both run in the same process, and
their mean PCC must agree within 0.005: by the exact solver on the synthetic task, by `--solver lsqr` on a real one
(--bench-root). LSQR stops early, which regularises where features are strongly correlated; how far the exact solution
is from it on the real task is printed.
"""

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from common import Options, WrongResultError, make_parser, parse, run
from numpy.typing import NDArray
from peak_memory import MIB, extra_bytes_cpu
from report import Report
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eval.embed import embed_file, embed_task
from eval.encoders import POOLINGS, make_encoder
from eval.folds import Split, loso_split, random_split
from eval.hest_data import Task, load_task
from eval.manifest import Origin
from eval.protocol import evaluate
from eval.settings import FitSettings, Solver
from eval.splits import Sample
from eval.spots import Features, Spots
from eval.torch_encoder import TorchEncoder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from synthetic_hest_extended import Design, gene_names, sections

EXAMPLES = """\
  python scripts/bench/hest.py --json hest.json
  python scripts/bench/hest.py --bench-root hest-bench --task HER2ST --encoder random:vit12   # HER2ST too
  python scripts/bench/hest.py --quick
"""
TOLERANCE = 0.005  # of the mean PCC
DEFAULT = FitSettings()
SMALL = {"spots": 1500, "samples": 8, "features": 48, "genes": 20, "patches": 8}


def program(argv: Sequence[str] | None) -> None:
    """Measure, print and write."""
    parser = make_parser(__doc__ or "", EXAMPLES)
    for name, value in (("spots", 150_000), ("samples", 54), ("features", 384), ("genes", 200)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"of the synthetic task; default: {value:,}")
    parser.add_argument("--bench-root", type=Path, help="a folder of tasks, to measure one of them too")
    parser.add_argument("--task", default="HER2ST", help="its name; default: HER2ST")
    parser.add_argument("--encoder", default="random:vit12", help="embeds it; default: random:vit12")
    parser.add_argument("--pooling", default="cls", choices=POOLINGS, help="of the encoder; default: cls, its width")
    parser.add_argument("--cache", type=Path, help="keep its embeddings there")
    parser.add_argument("--patches", type=int, default=256, help="to embed for the rate; 0: leave it out; default: 256")
    args, options = parse(parser, argv, SMALL)
    report = Report(options)
    design = Design(samples=args.samples, spots=args.spots, features=args.features, genes=args.genes)
    if args.bench_root is not None:
        task = load_task(args.bench_root, args.task)
        with tempfile.TemporaryDirectory() as folder:
            encoder = make_encoder(args.encoder, pooling=args.pooling, device=str(options.device))
            features = embed_task(encoder, task, args.cache or Path(folder)).features
        measure(report, options, args.task, features, task, agrees="lsqr")
        report.save()
    if not options.late:
        features, task = synthetic(design)
        row = measure(report, options, "synthetic", features, task, agrees="exact")
        del features, task
        gc.collect()
        if options.memory and options.device.type == "cpu":
            sizes = {k: getattr(design, k) for k in ("samples", "spots", "features", "genes")}
            row["peak_MiB"] = round(extra_bytes_cpu("hest", sizes, options.threads) / MIB)
        report.save()
    if args.patches and not options.late:
        embedding_rate(report, options, args.patches)
    report.save()
    report.show()


def synthetic(design: Design) -> tuple[Features, Task]:
    """Features and task of the synthetic HEST-Extended with both splits, in memory."""
    features, expression, origins = {}, {}, {}
    for s in sections(design):
        features[s.name] = s.features
        expression[s.name] = np.log1p(s.counts.astype(np.float64))
        origins[s.name] = Origin(s.patient, s.study)
    sizes = {name: len(y) for name, y in expression.items()}
    studies = {name: o.study or "" for name, o in origins.items()}
    splits = (random_split(sizes, 10), loso_split(sizes, studies))
    samples = tuple(Sample(name, Path(name), Path(name)) for name in features)
    content = {name: name for name in features}
    return features, Task("synthetic", tuple(gene_names(design.genes)), samples, origins, expression, content, splits)


def measure(
    report: Report, options: Options, name: str, features: Features, task: Task, agrees: Solver
) -> dict[str, Any]:
    """Time all folds of all splits both ways, and ours by the exact solver and `agrees`; return the row of the exact.

    Raises:
        WrongResultError: a split's mean PCC by the solver `agrees` is more than `TOLERANCE` from the published way's.
    """
    published_seconds, published = _timed(lambda: [published_pcc(features, task, split) for split in task.splits])
    folds = sum(len(split.folds) for split in task.splits)
    spots, genes = sum(map(len, task.expression.values())), len(task.genes)
    shape = {"task": name, "spots": spots, "features": next(iter(features.values())).shape[1], "genes": genes}
    shape |= {"folds": folds}
    rows = []
    for solver in dict.fromkeys((DEFAULT.solver, agrees)):
        way = "ours" if solver == DEFAULT.solver else f"ours, --solver {solver}"
        seconds, found = _ours(options, features, task, replace(DEFAULT, solver=solver))
        rows.append({**shape, "way": way, "seconds": seconds, "pcc": float(np.mean(found))})
        what = name if solver == DEFAULT.solver else f"{name}, --solver {solver}"
        report.ratios[f"{what}: fit and predict {folds} folds"] = published_seconds / seconds
        for split, a, b in zip(task.splits, found, published, strict=True):
            said = f"{what}, {split.name}: mean PCC {a:.4f}, but {b:.4f} the published way"
            if solver == agrees and abs(a - b) > TOLERANCE:
                raise WrongResultError(f"{said}: more than {TOLERANCE} apart")
            if solver != agrees:
                report.note(f"{said}, whose solver stops early ({a - b:+.4f})")
    report.rows += rows
    report.rows.append({**shape, "way": "published", "seconds": published_seconds, "pcc": float(np.mean(published))})
    return rows[0]


def _ours(options: Options, features: Features, task: Task, settings: FitSettings) -> tuple[float, list[float]]:
    """Seconds of the fastest call, and the mean PCC of each split."""
    call = partial(evaluate, features, task, settings, device=str(options.device))
    timed = [_timed(call) for _ in range(options.repeats)]
    return min(seconds for seconds, _ in timed), [evaluation.record["pcc"]["mean"] for evaluation in timed[-1][1]]


def published_pcc(features: Features, task: Task, split: Split) -> float:
    """Mean over folds and genes of the correlation, computed as the public benchmark does."""
    spots = Spots(features, task.expression, split.labels)
    scores = []
    for fold in split.folds:
        (X, Y), (X_test, Y_test) = spots.gather(fold.train), spots.gather(fold.test)
        pipe = make_pipeline(StandardScaler(), PCA(min(256, *X.shape), random_state=1))
        Z, Z_test = pipe.fit_transform(X).astype(np.float32), pipe.transform(X_test).astype(np.float32)
        alpha = 100 / (Z.shape[1] * Y.shape[1])
        ridge = Ridge(solver="lsqr", alpha=alpha, random_state=1, fit_intercept=False, max_iter=1000)
        scores.append(_mean_correlation(ridge.fit(Z, Y).predict(Z_test), Y_test))
    return float(np.mean(scores))


def embedding_rate(report: Report, options: Options, patches: int, batch: int = 32) -> None:
    """Patches a second from a patches file, against the bare forward pass on tensors that are there already."""
    encoder = make_encoder("random:vit12", device=str(options.device))
    assert isinstance(encoder, TorchEncoder)
    # Some noise on a smooth ground, which gzip brings to about two thirds, as it does photographs of tissue.
    ground = np.linspace(0, 220, 224, dtype=np.uint8)[:, None, None]
    images = np.random.default_rng(0).integers(0, 32, size=(patches, 224, 224, 3), dtype=np.uint8) + ground
    ready = encoder.transform(torch.from_numpy(images[:batch]).to(options.device))

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(0, patches, batch):
                encoder.tokens(encoder.model, ready[: min(batch, patches)]).cpu()

    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Callable[[], object]] = {"bare forward pass": bare}
        for way, compression in (("plain file", None), ("gzip file", "gzip")):
            path = Path(folder) / f"{way}.h5"
            with h5py.File(path, "w") as file:
                file.create_dataset("img", data=images, chunks=(1, 224, 224, 3), compression=compression)
            calls[way] = partial(embed_file, encoder, path, batch_size=batch)
        for call in calls.values():  # warm up
            call()
        times: dict[str, list[float]] = {way: [] for way in calls}
        for _ in range(options.repeats):
            for way, call in calls.items():
                times[way].append(_timed(call)[0])
    done = patches if patches <= batch else batch * -(-patches // batch)
    bare_rate = done / min(times.pop("bare forward pass"))
    report.rows.append({"task": "embedding, vit12", "way": "bare forward pass", "patches_per_s": bare_rate})
    for way, seconds in times.items():
        rate = patches / min(seconds)
        report.rows.append({"task": "embedding, vit12", "way": way, "patches_per_s": rate})
        report.ratios[f"embedding from a {way} over the bare forward pass"] = rate / bare_rate


def memory_case(case: dict[str, int]) -> tuple[Callable[[], object], Callable[[], object]]:
    """For peak_memory: a small evaluation, and the synthetic task of this size, its data included."""

    def call(design: Design) -> None:
        features, task = synthetic(design)
        evaluate(features, task, FitSettings())

    return lambda: call(Design(samples=8, spots=400, features=16, genes=8)), lambda: call(Design(**case))


def _mean_correlation(predicted: NDArray[np.floating], measured: NDArray[np.floating]) -> float:
    a, b = predicted - predicted.mean(axis=0), measured - measured.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.nanmean((a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))))


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


if __name__ == "__main__":
    sys.exit(run(program))
