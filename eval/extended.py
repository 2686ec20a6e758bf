"""The protocol `hest-extended`: samples of a manifest, split at random or by study, and a panel chosen from counts.

The layout is the benchmark's without `splits/`: `<task>/patches/<sample>.h5`, `<task>/adata/<sample>.h5ad`, and a
manifest, `<task>/samples.csv` unless another is given (which may name a part of the samples). The panel is chosen once
over all samples, so that both splits score the same genes, or for each fold from its training spots alone, or read from
a file. Source: the MVHybrid paper (arXiv 2508.00383) and HEST-1k (arXiv 2406.16192).
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from eval.errors import EvalError, first_few, nearest
from eval.expression import Counts, check_raw, read_counts
from eval.folds import PartFold, Split, loso_split, random_split
from eval.gene_stats import GeneSums, gene_sums
from eval.genes import read_panel
from eval.hest_data import Task, file_hash, read_barcodes, task_root
from eval.manifest import MANIFEST_FILE, Origin, read_manifest
from eval.panels import PanelRule, choose_panel
from eval.splits import Sample

SplitChoice = Literal["random", "loso", "both"]
GenesFrom = Literal["all", "train"]
SPLIT_CHOICES: tuple[SplitChoice, ...] = get_args(SplitChoice)
GENES_FROM: tuple[GenesFrom, ...] = get_args(GenesFrom)


@dataclass(frozen=True)
class Extended:
    """What the protocol chooses: the splits, their number and seed, and the panel (by rule, or from `genes_file`)."""

    split: SplitChoice = "both"
    folds: int = 10
    fold_seed: int = 0
    rule: PanelRule = field(default_factory=PanelRule)
    genes_from: GenesFrom = "all"
    genes_file: Path | None = None
    manifest: Path | None = None

    def as_dict(self) -> dict[str, object]:
        """JSON-able; the split is not part of it, as rows of both may share a results folder."""
        if self.genes_file is not None:
            panel: dict[str, object] = {"genes_file": file_hash(self.genes_file)}
        else:
            panel = {**asdict(self.rule), "genes_from": self.genes_from}
        return {"folds": self.folds, "fold_seed": self.fold_seed, "panel": panel}


def load_extended(bench_root: Path, name: str, settings: Extended, *, progress: bool = True) -> Task:
    """Load and check the samples, draw the splits, choose the panel and read its expression.

    Counts are read twice where the panel is chosen from them (first for the sums, then for the panel), one sample at a
    time, so that memory holds one sample's counts.

    Raises:
        EvalError: manifest, patches or counts that cannot be used, a panel or a split that they do not allow.
    """
    root = task_root(bench_root, name)
    origins = read_manifest(settings.manifest or root / MANIFEST_FILE)
    samples = _samples(root, origins)
    barcodes = {s.name: read_barcodes(s.patches) for s in samples}
    sizes = {name: len(b) for name, b in barcodes.items()}
    splits = _splits(sizes, origins, settings)
    reads = len(samples) * (1 if settings.genes_file else 2)
    with tqdm(total=reads, unit="sample", desc=f"{name}: counts", disable=not progress) as bar:
        if settings.genes_file is not None:
            genes = read_panel(settings.genes_file)
        else:
            sums = {}
            for s in samples:
                sums[s.name] = _sums(_read(s, barcodes[s.name]), splits, per_part=settings.genes_from == "train")
                bar.update()
            splits, genes = _panels(sums, splits, settings)
        expression = {}
        for s in samples:
            expression[s.name] = np.log1p(_read(s, barcodes[s.name]).panel(genes))
            bar.update()
    return Task(
        name=name,
        genes=genes,
        samples=samples,
        origins=origins,
        expression=expression,
        content={s.name: file_hash(s.patches) for s in samples},
        splits=splits,
        panel={
            "source": "file" if settings.genes_file else settings.genes_from,
            "size": len(genes),
            **settings.as_dict(),
        },
        counts={s.name: file_hash(s.expression) for s in samples},
    )


def _samples(root: Path, origins: dict[str, Origin]) -> tuple[Sample, ...]:
    samples = tuple(Sample(n, root / "patches" / f"{n}.h5", root / "adata" / f"{n}.h5ad") for n in origins)
    missing = [str(p) for s in samples for p in (s.patches, s.expression) if not p.is_file()]
    if missing:
        found = [p.stem for p in (root / "patches").glob("*.h5")]
        raise EvalError(
            f"{root}: the manifest names {len(missing)} file(s) that do not exist: {first_few(missing)}. Prepare those "
            f"samples (python -m eval.hest prepare) or remove them from the manifest. {nearest(samples[0].name, found)}"
        )
    return samples


def _splits(sizes: dict[str, int], origins: dict[str, Origin], settings: Extended) -> tuple[Split, ...]:
    splits = []
    if settings.split in ("random", "both"):
        splits.append(random_split(sizes, settings.folds, settings.fold_seed))
    if settings.split in ("loso", "both"):
        splits.append(loso_split(sizes, {name: o.study or "" for name, o in origins.items()}))
    return tuple(splits)


def _read(sample: Sample, barcodes: list[str]) -> Counts:
    counts = read_counts(sample.expression, barcodes)
    check_raw(counts)
    return counts


PartSums = dict[tuple[str, int], GeneSums]  # (split, part) -> sums of one sample's spots in it; ("", 0) for all


def _sums(counts: Counts, splits: tuple[Split, ...], *, per_part: bool) -> PartSums:
    sample = counts.source.stem
    if not per_part:
        return {("", 0): gene_sums(counts.genes, counts.matrix)}
    found: PartSums = {}
    for split in splits:
        labels: NDArray[np.intp] = split.labels[sample]
        for part in np.unique(labels):
            found[split.name, int(part)] = gene_sums(counts.genes, counts.matrix, np.flatnonzero(labels == part))
    return found


def _panels(
    sums: dict[str, PartSums], splits: tuple[Split, ...], s: Extended
) -> tuple[tuple[Split, ...], tuple[str, ...]]:
    """The splits with each fold's columns, and the union of all panels that these index."""
    if s.genes_from == "all":
        return splits, choose_panel({name: parts["", 0] for name, parts in sums.items()}, s.rule)
    chosen: dict[tuple[str, str], tuple[str, ...]] = {}
    for split in splits:
        for fold in split.folds:
            chosen[split.name, fold.name] = choose_panel(_training_sums(sums, split, fold), s.rule)
    genes = tuple(sorted({g for panel in chosen.values() for g in panel}))
    column = {g: i for i, g in enumerate(genes)}

    def with_columns(split: Split) -> Split:
        folds = [replace(f, columns=tuple(column[g] for g in chosen[split.name, f.name])) for f in split.folds]
        return replace(split, folds=tuple(folds))

    return tuple(with_columns(split) for split in splits), genes


def _training_sums(sums: dict[str, PartSums], split: Split, fold: PartFold) -> dict[str, GeneSums]:
    training = {}
    for sample, parts in sums.items():
        inside = [parts[split.name, p] for p in fold.train if (split.name, p) in parts]
        if inside:
            training[sample] = GeneSums(
                inside[0].genes,
                sum(i.n for i in inside),
                *(np.sum([getattr(i, k) for i in inside], axis=0) for k in ("seen", "total", "squares")),
            )
    return training
