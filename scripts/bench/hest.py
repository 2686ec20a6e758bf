"""HEST evaluation against the published computation: fit and predict all folds, memory, and the rate of embedding.

The published way fits scikit-learn's StandardScaler, PCA (256 components) and Ridge (LSQR) anew for every fold; ours
takes all folds from Gram matrices, and its time includes every score, per sample too. Both run in the same process, and
their mean PCC must agree within 0.005. HER2ST is measured where a bench root with it is given.
"""

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
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
from eval.settings import FitSettings
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
    parser.add_argument("--patches", type=int, default=64, help="to embed for the rate; 0: leave it out; default: 64")
    args, options = parse(parser, argv, SMALL)
    report = Report(options)
    design = Design(samples=args.samples, spots=args.spots, features=args.features, genes=args.genes)
    if args.bench_root is not None:
        task = load_task(args.bench_root, args.task)
        with tempfile.TemporaryDirectory() as folder:
            encoder = make_encoder(args.encoder, pooling=args.pooling, device=str(options.device))
            features = embed_task(encoder, task, args.cache or Path(folder)).features
        measure(report, options, args.task, features, task)
        report.save()
    if not options.late:
        features, task = synthetic(design)
        row = measure(report, options, "synthetic", features, task)
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


def measure(report: Report, options: Options, name: str, features: Features, task: Task) -> dict[str, Any]:
    """Time all folds of all splits both ways and check that the mean PCCs agree; return the row of ours.

    Raises:
        WrongResultError: a split's mean PCC differs by more than `TOLERANCE`.
    """
    device = str(options.device)
    ours = [_timed(lambda: evaluate(features, task, FitSettings(), device=device)) for _ in range(options.repeats)]
    seconds = min(s for s, _ in ours)
    found = [evaluation.record["pcc"]["mean"] for evaluation in ours[-1][1]]
    published_seconds, published = _timed(lambda: [published_pcc(features, task, split) for split in task.splits])
    folds = sum(len(split.folds) for split in task.splits)
    spots, genes = sum(map(len, task.expression.values())), len(task.genes)
    shape = {"task": name, "spots": spots, "features": next(iter(features.values())).shape[1], "genes": genes}
    row = {**shape, "folds": folds, "way": "ours", "seconds": seconds, "pcc": float(np.mean(found))}
    report.rows.append(row)
    report.rows.append({**row, "way": "published", "seconds": published_seconds, "pcc": float(np.mean(published))})
    report.ratios[f"{name}: fit and predict {folds} folds"] = published_seconds / seconds
    for split, a, b in zip(task.splits, found, published, strict=True):
        if abs(a - b) > TOLERANCE:
            report.note(f"{name}, {split.name}: mean PCC {a:.4f}, published {b:.4f}: more than {TOLERANCE} apart")
            if name == "synthetic":
                raise WrongResultError(f"{name}, {split.name}: mean PCC {a:.4f}, but {b:.4f} the published way")
    return row


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
    images = np.random.default_rng(0).integers(0, 256, size=(patches, 224, 224, 3), dtype=np.uint8)
    ready = encoder.transform(torch.from_numpy(images[:batch]).to(options.device))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "patches.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("img", data=images, chunks=(1, 224, 224, 3))

        def bare() -> None:
            with torch.inference_mode():
                for _ in range(0, patches, batch):
                    encoder.tokens(encoder.model, ready[: min(batch, patches)]).cpu()

        whole: Callable[[], object] = lambda: embed_file(encoder, path, batch_size=batch)  # noqa: E731
        times: dict[str, list[float]] = {"embed": [], "forward": []}
        for call in (whole, bare):  # warm up
            call()
        for _ in range(options.repeats):
            times["embed"].append(_timed(whole)[0])
            times["forward"].append(_timed(bare)[0])
    done = patches if patches <= batch else batch * -(-patches // batch)
    rates = {"embed": patches / min(times["embed"]), "forward": done / min(times["forward"])}
    for way, rate in rates.items():
        report.rows.append({"task": "embedding, vit12", "way": way, "patches_per_s": rate})
    report.ratios["embedding over the bare forward pass"] = rates["embed"] / rates["forward"]


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
