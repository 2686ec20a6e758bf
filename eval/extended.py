"""The protocol `hest-extended`: samples of a manifest, split at random or by study, and a panel chosen from counts.

The layout is the benchmark's without `splits/`: `<task>/patches/<sample>.h5`, `<task>/adata/<sample>.h5ad`, and a
manifest, `<task>/samples.csv` unless another is given (which may name a part of the samples). The panel is chosen once
over all samples, so that both splits score the same genes, or for each fold from its training spots alone, or read from
a file. Source: the MVHybrid paper (arXiv 2508.00383) and HEST-1k (arXiv 2406.16192).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from tqdm import tqdm

from eval.errors import EvalError, first_few, nearest
from eval.expression import Counts, check_raw, read_counts
from eval.file_hashes import file_hash, sample_hashes
from eval.fold_panels import panel_of_all, panels_of_folds, part_sums
from eval.folds import Split, loso_split, random_split
from eval.gene_stats import gene_sums
from eval.genes import chosen_over, read_panel
from eval.hest_data import Task, read_barcodes, task_root
from eval.manifest import MANIFEST_FILE, Origin, read_manifest
from eval.panels import PanelRule
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

    def __post_init__(self) -> None:
        if self.genes_file is not None and (self.rule != PanelRule() or self.genes_from != "all"):
            raise EvalError(
                f"--genes-file {self.genes_file}: the panel is fixed, so that there is nothing to choose. Leave out "
                "--genes, --n-genes, --hvg-pool and --genes-from (or what a --config file says of them), or the file."
            )

    def as_dict(self) -> dict[str, object]:
        """JSON-able; the split is not part of it, as rows of both may share a results folder.

        Raises:
            EvalError: the panel file is missing or of another form.
        """
        if self.genes_file is not None:
            read_panel(self.genes_file)
            panel: dict[str, object] = {"genes_file": file_hash(self.genes_file)}
        else:
            panel = {**asdict(self.rule), "genes_from": self.genes_from}
        return {"folds": self.folds, "fold_seed": self.fold_seed, "panel": panel}


def load_extended(
    bench_root: Path,
    name: str,
    settings: Extended,
    *,
    hashes: Callable[[Path], str] = file_hash,
    progress: bool = True,
) -> Task:
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
    reads = len(samples) * (3 if settings.genes_file else 4)
    with tqdm(total=reads, unit="file", desc=f"{name}: loading", delay=2, disable=not progress) as bar:
        facts: dict[str, Any] = {}
        if settings.genes_file is not None:
            genes = read_panel(settings.genes_file)
            facts["chosen_over"] = chosen_over(settings.genes_file)
        elif settings.genes_from == "all":
            sums = {}
            for s in samples:
                counts = _read(s, barcodes[s.name])
                sums[s.name] = gene_sums(counts.genes, counts.matrix)
                bar.update()
            genes, facts = panel_of_all(sums, origins, settings.rule)
        else:
            by_part = {}
            for s in samples:
                by_part[s.name] = part_sums(_read(s, barcodes[s.name]), splits)
                bar.update()
            splits, genes = panels_of_folds(by_part, splits, settings.rule)
        expression = {}
        for s in samples:
            expression[s.name] = np.log1p(_read(s, barcodes[s.name]).panel(genes))
            bar.update()
        content, counted = sample_hashes(samples, hashes, bar)
    return Task(
        name=name,
        genes=genes,
        samples=samples,
        origins=origins,
        expression=expression,
        content=content,
        splits=splits,
        panel={
            "source": "file" if settings.genes_file else settings.genes_from,
            "size": settings.rule.size if settings.genes_from == "train" else len(genes),
            **facts,
            **settings.as_dict(),
        },
        counts=counted,
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
