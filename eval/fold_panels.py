"""The gene panel of a `hest-extended` task: chosen once over all samples, or for each fold from its training spots.

Either way from sums of counts of each sample, or of a sample's spots in each part of each split, so that counts are
read once for the choice. A fold's panel never sees a held-out count; it sees which genes the files of the held-out
samples list, as no score could be had for the others.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from eval.expression import Counts
from eval.folds import PartFold, Split
from eval.gene_stats import GeneSums, gene_sums
from eval.manifest import Origin
from eval.panels import Panel, PanelRule, candidates, choose_panel, listed_once

PartSums = dict[tuple[str, int], GeneSums]  # (split, part) -> sums of one sample's spots in it


def part_sums(counts: Counts, splits: Iterable[Split]) -> PartSums:
    """Sums of a sample's spots in each part of each split."""
    found: PartSums = {}
    for split in splits:
        labels = split.labels[counts.source.stem]
        for part in np.unique(labels):
            found[split.name, int(part)] = gene_sums(counts.genes, counts.matrix, np.flatnonzero(labels == part))
    return found


def panel_of_all(
    sums: dict[str, GeneSums], origins: Mapping[str, Origin], rule: PanelRule
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The panel over all samples, and what it was chosen from; EvalError where there are too few candidates."""
    panel = choose_panel(sums, rule)
    studies: dict[str, list[GeneSums]] = {}
    for name, s in sums.items():
        studies.setdefault(origins[name].study or "unknown", []).append(s)
    by_study = {study: len(candidates(own, rule.seen_in)) for study, own in sorted(studies.items())}
    return panel.genes, {**panel.facts(), "candidates_by_study": by_study}


def panels_of_folds(
    sums: Mapping[str, PartSums], splits: Iterable[Split], rule: PanelRule
) -> tuple[tuple[Split, ...], tuple[str, ...]]:
    """The splits with each fold's columns, and the union of all panels that these index.

    Raises:
        EvalError: too few candidates in the training spots of a fold.
    """
    listed = listed_once([next(iter(parts.values())) for parts in sums.values()])
    chosen: dict[tuple[str, str], Panel] = {}
    splits = tuple(splits)
    for split in splits:
        for fold in split.folds:
            chosen[split.name, fold.name] = choose_panel(_training_sums(sums, split, fold), rule, listed)
    genes = tuple(sorted({g for panel in chosen.values() for g in panel.genes}))
    column = {g: i for i, g in enumerate(genes)}

    def with_panel(split: Split, fold: PartFold) -> PartFold:
        panel = chosen[split.name, fold.name]
        return replace(fold, columns=tuple(column[g] for g in panel.genes), panel=panel.facts())

    return tuple(replace(s, folds=tuple(with_panel(s, f) for f in s.folds)) for s in splits), genes


def _training_sums(sums: Mapping[str, PartSums], split: Split, fold: PartFold) -> dict[str, GeneSums]:
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
