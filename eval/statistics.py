"""Is a difference between encoders real? Intervals and paired tests over patients, or over slides.

Genes of one slide are not independent, nor are spots, nor slides of one patient: the unit is the patient where all are
known, else the sample. Intervals are percentile bootstraps of the mean over units (Efron 1979); paired tests flip the
signs of the units' differences (Fisher's randomisation test, exact for few units); Holm (1979) corrects for several.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from eval.errors import EvalError, first_few

Unit = Literal["auto", "patient", "sample"]
Metric = Literal["pcc", "mse"]
RESAMPLES = 9999
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over units and its bootstrap interval; the ends are None for a single unit."""

    mean: float
    low: float | None
    high: float | None


def unit_scores(samples: Sequence[Mapping[str, Any]], metric: Metric = "pcc", unit: Unit = "auto") -> dict[str, float]:
    """Unit -> mean score over its samples; samples without a score are left out.

    Args:
        samples: the records of a result's `samples`.
        metric: `pcc`, or `mse` of the prediction with the training mean in it.
        unit: `auto` takes patients where every sample has one.

    Raises:
        EvalError: patients are asked for but not all known, or no sample has a score.
    """
    groups = _scored_units(samples, metric, common_unit([samples], metric, unit))
    return {name: float(np.mean([s[metric] for s in own])) for name, own in sorted(groups.items())}


def paired_scores(
    results: Mapping[str, Sequence[Mapping[str, Any]]], metric: Metric, unit: Literal["patient", "sample"]
) -> dict[str, dict[str, float]]:
    """Encoder -> unit -> mean score, on the same units and samples for all encoders.

    Args:
        results: encoder -> the records of its result's `samples`, of one task and split.
        metric: as for `unit_scores`.
        unit: the common one of all results.

    Raises:
        EvalError: no sample has a score, or encoders are scored on different units or samples.
    """
    scores, expected, first = {}, None, ""
    for encoder, samples in results.items():
        groups = _scored_units(samples, metric, unit)
        found = {(name, s["sample"]) for name, own in groups.items() for s in own}
        if expected is None:
            expected, first = found, encoder
        elif differing := sorted(found ^ expected):
            named = first_few([s if unit == "sample" else f"{s} ({unit} {name})" for name, s in differing])
            raise EvalError(
                f"{encoder} and {first} have a {metric} on different samples: only one of them on {named}. Differences "
                "are taken within a unit, so that all must have the same: evaluate them with one manifest (or use "
                "--unit sample), leave one out, or use --metric mse, which a constant prediction has too."
            )
        scores[encoder] = unit_scores(samples, metric, unit)
    return scores


def common_unit(
    results: Sequence[Sequence[Mapping[str, Any]]], metric: Metric, unit: Unit
) -> Literal["patient", "sample"]:
    """The unit of all results together: `auto` is the patient where every scored sample has one, else the sample.

    Raises:
        EvalError: patients are asked for but not all known.
    """
    unknown = [s["sample"] for samples in results for s in samples if s[metric] is not None and not s["patient"]]
    if unit == "patient" and unknown:
        raise EvalError(
            f"unit patient: sample {unknown[0]} has no patient in the manifest. Add it, or use --unit sample."
        )
    return "sample" if unit == "sample" or unknown else "patient"


def _scored_units(
    samples: Sequence[Mapping[str, Any]], metric: Metric, unit: Literal["patient", "sample"]
) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for s in samples:
        if s[metric] is not None:
            groups.setdefault(s[unit], []).append(s)
    if not groups:
        raise EvalError(f"no sample has a {metric}; nothing can be compared.")
    return groups


def interval(values: Sequence[float] | NDArray[np.float64], seed: int = 0) -> Interval:
    """Mean over units with a 95% percentile bootstrap interval."""
    data = np.asarray(values, dtype=np.float64)
    mean = float(data.mean())
    if len(data) < 2:
        return Interval(mean, None, None)
    if np.ptp(data) == 0:
        return Interval(mean, mean, mean)
    found = scipy.stats.bootstrap(
        (data,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=seed
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def paired_p(differences: Sequence[float] | NDArray[np.float64], seed: int = 0) -> float:
    """Two-sided p-value of the sign-flip test that the mean difference over units is 0; exact up to 13 units."""
    data = np.asarray(differences, dtype=np.float64)
    if not data.any():
        return 1.0
    found = scipy.stats.permutation_test(
        (data,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, vectorized=True, rng=seed
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = float(highest)
    return adjusted
