"""Data sets by name. A string `Kind:key=value:key=value`, as in DINOv2, names the kind and its arguments."""

import inspect
from collections.abc import Callable
from typing import TypeVar

from dinov2.data.datasets.base import TileDataset
from dinov2.data.errors import DatasetError
from dinov2.utils.suggest import did_you_mean

Factory = TypeVar("Factory", bound=Callable[..., TileDataset])

_FACTORIES: dict[str, Callable[..., TileDataset]] = {}


def register_dataset(name: str) -> Callable[[Factory], Factory]:
    """Decorator that makes a class or function available to `make_dataset` under `name`.

    Its parameters are the keys of the string; they receive strings, and those without a default are required.

    Raises:
        ValueError: the name is taken.
    """

    def register(factory: Factory) -> Factory:
        if name in _FACTORIES:
            raise ValueError(f"a data set named {name!r} is registered already: {_FACTORIES[name]!r}")
        _FACTORIES[name] = factory
        return factory

    return register


def list_datasets() -> list[str]:
    """Names of the registered kinds, sorted."""
    return sorted(_FACTORIES)


def make_dataset(spec: str) -> TileDataset:
    """Open the data set that a string describes.

    Args:
        spec: e.g. `Folder:root=/data/tiles`. A piece without `=` belongs to the value before it, so values may
            contain colons; the first piece may leave out its key, which then is the first of the kind:
            `Mix:mixture.yaml`.

    Raises:
        DatasetError: unknown kind or key, a missing or repeated key, or whatever the data set itself objects to.
    """
    kind, *pieces = spec.split(":")
    if kind not in _FACTORIES:
        raise DatasetError(
            f"{spec!r} names no known kind of data set: {kind!r}{did_you_mean(kind, list_datasets())}. "
            "Write KIND:key=value, e.g. Folder:root=/data/tiles"
        )
    factory = _FACTORIES[kind]
    parameters = inspect.signature(factory).parameters
    arguments = _parse(spec, pieces, next(iter(parameters), ""))
    for key in arguments:
        if key not in parameters:
            raise DatasetError(f"{spec!r}: {kind} has no key {key!r}{did_you_mean(key, list(parameters))}")
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in arguments]
    if missing:
        example = ":".join([kind, *(f"{name}=..." for name in missing)])
        raise DatasetError(f"{spec!r}: {kind} needs {', '.join(missing)}. Write {example}")
    return factory(**arguments)


def _parse(spec: str, pieces: list[str], first_key: str) -> dict[str, str]:
    arguments: dict[str, str] = {}
    key = ""
    for piece in pieces:
        name, equals, value = piece.partition("=")
        if equals:
            key = name.strip()
            if key in arguments:
                raise DatasetError(f"{spec!r} gives {key!r} twice")
            arguments[key] = value
        elif key:
            arguments[key] += ":" + piece
        elif piece and first_key:
            key = first_key
            arguments[key] = piece
        else:
            raise DatasetError(f"{spec!r}: {piece!r} is not key=value")
    return arguments
