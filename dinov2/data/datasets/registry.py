"""Data sets by name. A string `Kind:key=value:key=value`, as in DINOv2, names the kind and its arguments.

Other packages add kinds by an entry point of the group `dinov2.datasets`, in their pyproject.toml:

    [project.entry-points."dinov2.datasets"]
    Lmdb = "my_tiles.lmdb:LmdbTiles"

`Lmdb:...` then calls `LmdbTiles`, which is imported when it is first asked for.
"""

import inspect
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from dinov2.data.datasets.base import TileDataset
from dinov2.data.errors import DatasetError
from dinov2.utils.suggest import did_you_mean

Factory = TypeVar("Factory", bound=Callable[..., TileDataset])

ENTRY_POINTS = "dinov2.datasets"
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
    """Names of the kinds that are registered or that installed packages add, sorted."""
    return sorted({*_FACTORIES, *_installed()})


def make_dataset(spec: str) -> TileDataset:
    """Open the data set that a string describes.

    Args:
        spec: e.g. `Folder:root=/data/tiles`, see `parse_spec`.

    Raises:
        DatasetError: see `parse_spec`, or whatever the data set itself objects to.
    """
    kind, arguments = parse_spec(spec)
    return _FACTORIES[kind](**arguments)


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Kind and arguments of a data set's string.

    Args:
        spec: e.g. `Folder:root=/data/tiles`. A piece without `=` belongs to the value before it, so values may
            contain colons; the first piece may leave out its key, which then is the first of the kind:
            `Mix:mixture.yaml`.

    Raises:
        DatasetError: unknown kind or key, a missing or repeated key, an empty value where the key's default is not
            empty, or a package's kind that cannot be imported.
    """
    kind, *pieces = spec.split(":")
    if kind not in _FACTORIES and (entry := _installed().get(kind)):
        _load(entry)
    if kind not in _FACTORIES:
        raise DatasetError(
            f"{spec!r} names no known kind of data set: {kind!r}{did_you_mean(kind, list_datasets())}. "
            "Write KIND:key=value, e.g. Folder:root=/data/tiles"
        )
    parameters = inspect.signature(_FACTORIES[kind]).parameters
    arguments = _parse(spec, pieces, next(iter(parameters), ""))
    for key in arguments:
        if key not in parameters:
            raise DatasetError(f"{spec!r}: {kind} has no key {key!r}{did_you_mean(key, list(parameters))}")
    for key, value in arguments.items():
        if not value.strip() and parameters[key].default != "":
            raise DatasetError(f"{spec!r}: the value of {key!r} is empty. Write {kind}:{key}=...")
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in arguments]
    if missing:
        example = ":".join([kind, *(f"{name}=..." for name in missing)])
        raise DatasetError(f"{spec!r}: {kind} needs {', '.join(missing)}. Write {example}")
    return kind, arguments


def _installed() -> dict[str, EntryPoint]:
    """The kinds of installed packages by name; nothing is imported."""
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def _load(entry: EntryPoint) -> None:
    """Import a package's kind and register it, unless its module has done so."""
    where = f"{entry.value} ({entry.dist.name if entry.dist else 'unknown package'})"
    try:
        factory = entry.load()
    except Exception as error:  # whatever another package's import raises
        raise DatasetError(
            f"the data set {entry.name!r} of {where} cannot be imported: {type(error).__name__}: {error}. Repair or "
            "uninstall the package"
        ) from error
    if not callable(factory):
        raise DatasetError(f"the data set {entry.name!r} of {where} is {factory!r}, no class or function")
    _FACTORIES.setdefault(entry.name, factory)


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
