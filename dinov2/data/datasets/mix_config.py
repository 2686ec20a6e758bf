"""The file of a mixture, which says what is drawn from and how often."""

import logging
import os
import sys
from typing import Any

import yaml

from dinov2.data.datasets.registry import parse_spec
from dinov2.data.errors import DatasetError
from dinov2.utils.suggest import did_you_mean

logger = logging.getLogger("dinov2")
EXAMPLE = "datasets: [{spec: 'Folder:root=a', weight: 2}, {spec: 'Tar:shards=b.tar', weight: 1}]"
_HOW = ("refresh", "open", "extra")  # keys that do not say which tiles


def read_mixture(config: str) -> tuple[list[str], list[float]]:
    """Read the strings and the weights (none, or one each) of a mixture's data sets.

    Raises:
        DatasetError: no such file, no valid YAML, an unknown key, no data set, a repeated one, or weights that are not
            positive numbers.
    """
    try:
        with open(os.path.expanduser(config), encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: text, dates, long numbers
        raise DatasetError(f"Mix:{config} cannot be read: {error}") from error
    entries = content.get("datasets") if isinstance(content, dict) and set(content) == {"datasets"} else None
    if not isinstance(entries, list):
        raise DatasetError(f"Mix:{config} must hold the key 'datasets', a list, and nothing else: {EXAMPLE}")
    if not entries:
        raise DatasetError(f"Mix:{config} is an empty mixture; write {EXAMPLE}")
    specs = [_spec(config, entry) for entry in entries]
    _refuse_repeated(config, specs)
    given = [entry["weight"] for entry in entries if "weight" in entry]
    if given and len(given) < len(entries):
        raise DatasetError(
            f"Mix:{config} has {len(given)} weights for {len(entries)} data sets; give each one, or none"
        )
    return specs, [_weight(config, spec, weight) for spec, weight in zip(specs, given, strict=False)]


def _refuse_repeated(config: str, specs: list[str]) -> None:
    """Raise `DatasetError` where two strings mean the same data; warn of a folder that lies within another."""
    before: dict[tuple[str, ...], str] = {}
    for spec in specs:
        kind, arguments = parse_spec(spec)
        places = [_place(arguments[key]) for key in sorted(arguments) if key not in _HOW]
        for (other_kind, *others), other in before.items():
            if kind != other_kind:
                continue
            if places == others:
                named = repr(spec) if spec == other else f"{other!r}, also as {spec!r},"
                raise DatasetError(f"Mix:{config} names {named} twice; give it once, with the weight of both")
            if len(places) == len(others) == 1 and _nested(places[0], others[0]):
                logger.warning(
                    "Mix:%s: of %r and %r one lies within the other; its tiles belong to both", config, other, spec
                )
        before[kind, *places] = spec


def _nested(one: str, other: str) -> bool:
    inner, outer = sorted((f"{one}/", f"{other}/"), key=len, reverse=True)
    return inner.startswith(outer)


def _place(value: str) -> str:
    try:
        return os.path.realpath(os.path.expanduser(value))
    except ValueError:  # no file can have this name, which the data set will say
        return value


def _spec(config: str, entry: Any) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("spec"), str):
        raise DatasetError(f"Mix:{config}: {entry!r} is no data set; write {EXAMPLE}")
    for key in entry:
        if key not in ("spec", "weight"):
            raise DatasetError(
                f"Mix:{config}: a data set has no key {key!r}{did_you_mean(str(key), ['spec', 'weight'])}"
            )
    return entry["spec"]


def _weight(config: str, spec: str, weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= sys.float_info.max:
        raise DatasetError(
            f"Mix:{config}: the weight of {spec!r} is {weight!r}; it must be a positive number (leave a data set out "
            "instead of giving it 0)"
        )
    return float(weight)
