"""Gene panels chosen from the data: highly variable genes, and those of highest mean among them.

The rules are those of HEST-1k's own selection: a candidate is seen in 10% of the spots of every sample and is no
control probe; over all spots together the counts are log1p-transformed and the `n` genes of highest normalised
dispersion are taken, in alphabetical order (HVG). HMHVG, after the MVHybrid paper: the `n` of highest mean count among
the `pool` most variable. Normalised dispersion is Satija et al. 2015 (Nature Biotechnology 33:495) as in scanpy's
flavour `seurat`: log of variance over mean of the counts, standardised within 20 bins of log1p mean.
"""

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


def choose_panel(samples: dict[str, GeneSums], rule: PanelRule) -> tuple[str, ...]:
    """Choose the panel over the samples.

    Raises:
        EvalError: fewer candidates than the panel has genes; the message names the samples that see the fewest.
    """
    genes = candidates(list(samples.values()), rule.seen_in)
    if len(genes) < rule.size:
        seen = {name: int(_seen(s, rule.seen_in).sum()) for name, s in samples.items()}
        few = ", ".join(f"{name} ({seen[name]})" for name in sorted(seen, key=lambda k: seen[k])[:5])
        raise EvalError(
            f"panel: {len(genes)} genes are seen in {rule.seen_in:.0%} of the spots of each of {len(seen)} samples, "
            f"but {rule.size} are wanted. Samples that see the fewest: {few}. Drop those from the manifest (targeted "
            "panels have few genes), or ask for fewer genes."
        )
    n, total, squares = pooled(list(samples.values()), genes)
    if rule.criterion == "hvg":
        return tuple(genes[highly_variable(n, total, squares, rule.size)][: rule.size].tolist())
    pool = np.flatnonzero(highly_variable(n, total, squares, rule.pool))
    order = pool[np.argsort(-total[pool], kind="stable")][: rule.size]
    return tuple(genes[order].tolist())


def candidates(samples: Sequence[GeneSums], seen_in: float) -> NDArray[np.str_]:
    """Genes seen often enough in every sample, control probes and names that a file has twice left out; sorted."""
    common: NDArray[np.str_] | None = None
    for s in samples:
        # A name that occurs twice stays ambiguous when only one of the two is seen often enough.
        unique, times = np.unique(s.genes, return_counts=True)
        names = np.intersect1d(s.genes[_seen(s, seen_in)], unique[times == 1])
        common = names if common is None else np.intersect1d(common, names)
    assert common is not None
    return np.array([g for g in common if not any(word in g for word in CONTROL_WORDS)], dtype=str)


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
