"""Gene panels chosen from the data: highly variable genes, and those of highest mean among them.

The rules are those of HEST-1k's own selection: a candidate is seen in 10% of the spots of every sample and is no
control probe; over all spots together the counts are log1p-transformed and the `n` genes of highest normalised
dispersion are taken, in alphabetical order (HVG). HMHVG, after the MVHybrid paper: the `n` of highest mean count among
the `pool` most variable. Normalised dispersion is Satija et al. 2015 (Nature Biotechnology 33:495) as in scanpy's
flavour `seurat`: log of variance over mean of the counts, standardised within 20 bins of log1p mean.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from eval.errors import EvalError
from eval.gene_stats import GeneSums, pooled

Criterion = Literal["hvg", "hmhvg"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
CONTROL_WORDS = ("BLANK", "Control")
BINS = 20


@dataclass(frozen=True)
class PanelRule:
    """How to choose a panel: criterion, size, size of HMHVG's pool, and the share of spots a gene must be seen in."""

    criterion: Criterion = "hvg"
    size: int = 200
    pool: int = 2000
    seen_in: float = 0.1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise EvalError(f"panel of {self.size} genes: the size must be 1 or more.")
        if self.criterion == "hmhvg" and self.pool < self.size:
            raise EvalError(f"hvg pool {self.pool}: it must be at least the panel's {self.size} genes.")
        if not 0 <= self.seen_in <= 1:
            raise EvalError(f"seen in {self.seen_in}: the share of spots must lie within 0 and 1.")


@dataclass(frozen=True)
class Panel:
    """A chosen panel, and what it was chosen from.

    Attributes:
        genes: its names.
        candidates: how many genes could have been chosen.
        unlisted: how many more would have been candidates, had every sample's file listed them.
        pool: of how many most variable genes hmhvg took those of highest mean, ties included; None for hvg.
    """

    genes: tuple[str, ...]
    candidates: int
    unlisted: int = 0
    pool: int | None = None

    def facts(self) -> dict[str, int | None]:
        """JSON-able: what the panel was chosen from."""
        return {"candidates": self.candidates, "unlisted": self.unlisted, "pool_used": self.pool}


def choose_panel(samples: dict[str, GeneSums], rule: PanelRule, listed: NDArray[np.str_] | None = None) -> Panel:
    """Choose the panel over the samples.

    Args:
        samples: sums of the spots that the choice may see.
        rule: how to choose.
        listed: genes that can be read from every sample of the task, these samples' own by default.

    Raises:
        EvalError: fewer candidates than the panel has genes; the message names the samples that see the fewest.
    """
    found = candidates(list(samples.values()), rule.seen_in)
    genes = found if listed is None else np.intersect1d(found, listed)
    if len(genes) < rule.size:
        seen = {name: int(_seen(s, rule.seen_in).sum()) for name, s in samples.items()}
        few = ", ".join(f"{name} ({seen[name]})" for name in sorted(seen, key=lambda k: seen[k])[:5])
        elsewhere = "" if len(genes) == len(found) else " and listed in the files of all others"
        raise EvalError(
            f"panel: {len(genes)} genes are seen in {rule.seen_in:.0%} of the spots of each of {len(seen)} samples"
            f"{elsewhere}, but {rule.size} are wanted. Samples that see the fewest: {few}. Drop those from the "
            "manifest (targeted panels have few genes), or ask for fewer genes."
        )
    unlisted = len(found) - len(genes)
    n, total, squares = pooled(list(samples.values()), genes)
    if rule.criterion == "hvg":
        chosen = genes[highly_variable(n, total, squares, rule.size)][: rule.size]
        return Panel(tuple(chosen.tolist()), len(genes), unlisted)
    pool = np.flatnonzero(highly_variable(n, total, squares, rule.pool))
    order = pool[np.argsort(-total[pool], kind="stable")][: rule.size]
    return Panel(tuple(genes[order].tolist()), len(genes), unlisted, len(pool))


def candidates(samples: Sequence[GeneSums], seen_in: float) -> NDArray[np.str_]:
    """Genes seen often enough in every sample, control probes and names that a file has twice left out; sorted."""
    # A name that occurs twice stays ambiguous when only one of the two is seen often enough.
    common = set.intersection(*(_once(s) & set(s.genes[_seen(s, seen_in)].tolist()) for s in samples))
    return np.array(sorted(g for g in common if not any(word in g for word in CONTROL_WORDS)), dtype=str)


def listed_once(samples: Sequence[GeneSums]) -> NDArray[np.str_]:
    """Names that the file of every sample lists, and only once, whatever their counts; sorted."""
    return np.array(sorted(set.intersection(*map(_once, samples))), dtype=str)


def _once(s: GeneSums) -> set[str]:
    # Sets of Python's: NumPy sorts strings for the same, which takes seconds for 50 samples of 20,000 genes.
    return {gene for gene, times in Counter(s.genes.tolist()).items() if times == 1}


def _seen(s: GeneSums, seen_in: float) -> NDArray[np.bool_]:
    return np.asarray(s.seen >= np.ceil(seen_in * s.n))


def highly_variable(n: int, total: NDArray[np.float64], squares: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """Mark the `count` genes of highest normalised dispersion (all tied with the last of them too): (G,) bool.

    Args:
        n: spots.
        total, squares: sums of counts and of their squares over the spots, (G,).
        count: how many; all where there are fewer.
    """
    mean = total / n
    variance = (squares / n - mean**2) * (n / max(n - 1, 1))
    mean = np.where(mean == 0, 1e-12, mean)
    dispersion = variance / mean
    table = pd.DataFrame({"mean": np.log1p(mean), "dispersion": np.log(np.where(dispersion > 0, dispersion, np.nan))})
    bins = table.groupby(pd.cut(table["mean"], BINS), observed=True)["dispersion"]
    average, deviation = bins.transform("mean"), bins.transform("std")
    # A bin of one gene has no deviation; its gene gets a normalised dispersion of 1.
    normalised = ((table["dispersion"] - average) / deviation).where(deviation.notna(), 1.0)
    scores = normalised.where(table["dispersion"].notna(), np.nan).to_numpy()
    ranked = np.sort(scores[~np.isnan(scores)])[::-1]
    if not len(ranked):
        return np.zeros(len(scores), dtype=bool)
    return np.nan_to_num(scores, nan=-np.inf) >= ranked[min(count, len(ranked)) - 1]
