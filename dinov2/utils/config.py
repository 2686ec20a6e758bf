"""Reading a training configuration: YAML, then `key=value` overrides, checked against the schema all at once."""

import dataclasses
import math
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dinov2.utils.config_rules import combination_problems
from dinov2.utils.errors import ConfigError
from dinov2.utils.legacy_config import translate_legacy
from dinov2.utils.schema import SSLConfig
from dinov2.utils.suggest import did_you_mean

__all__ = [
    "ConfigError",
    "config_from_dict",
    "config_to_dict",
    "differing_keys",
    "load_config",
    "override",
    "read_yaml",
    "to_yaml",
]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> SSLConfig:
    """Read a YAML file, apply `section.key=value` overrides, and check everything.

    Keys that are not given keep the schema's defaults, which `configs/ssl_default_config.yaml` lists.

    Raises:
        ConfigError: the file cannot be read, or one or more keys are unknown, of the wrong type or impossible together;
            the message lists every one of them.
    """
    return override(read_yaml(Path(path)), overrides)


def override(values: dict[str, Any], overrides: Sequence[str]) -> SSLConfig:
    """Apply `section.key=value` overrides to nested values, and check everything; raises ConfigError."""
    bad = [item for item in overrides if "=" not in item or item.startswith("-")]
    if bad:
        raise ConfigError(f"overrides must be written section.key=value; got {', '.join(map(repr, bad))}")
    try:
        given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"overrides {', '.join(map(repr, overrides))} cannot be read: {error}") from error
    return config_from_dict(_merge(values, given))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the nested values of a YAML file, unchecked.

    Raises:
        ConfigError: no such file, not YAML, or no mapping.
    """
    if not path.is_file():
        raise ConfigError(f"configuration file {str(path)!r} does not exist{_nearest_file(path)}")
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"configuration file {str(path)!r} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"configuration file {str(path)!r} must hold sections of keys, such as 'train:'")
    return values


def config_from_dict(values: dict[str, Any]) -> SSLConfig:
    """Check nested values against the schema and the rules of combination.

    Raises:
        ConfigError: listing every offending key, its value, and what would be valid.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"a configuration must be sections of keys, not {values!r}")
    problems: list[str] = []
    unread: set[str] = set()
    config = _parse(SSLConfig, translate_legacy(values), "", problems, unread)
    # What could not be read has its default now: rules that involve it would mislead.
    problems += [line for line in combination_problems(config) if not any(key in line for key in unread)]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError("\n  ".join([f"the configuration has {count}:", *problems]))
    return config


def config_to_dict(config: SSLConfig) -> dict[str, Any]:
    """Return the nested values of a configuration, as plain YAML and JSON types."""
    return _plain(dataclasses.asdict(config))


def to_yaml(config: SSLConfig) -> str:
    """Return the configuration as YAML that `load_config` reads back to the same values."""
    return OmegaConf.to_yaml(OmegaConf.create(config_to_dict(config)))


def differing_keys(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return `dotted key -> (our value, their value)` for all keys in which two nested dictionaries differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differing_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            found[f"{prefix}{key}"] = (a, b)
    return found


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _parse(kind: type, values: Any, prefix: str, problems: list[str], unread: set[str]) -> Any:
    """Build the dataclass `kind` from a mapping, adding what is wrong to `problems`, and its key to `unread`."""
    if values is None:
        values = {}
    if isinstance(values, str) and hasattr(kind, "named"):
        named = kind.named()
        if values in named:
            return named[values]
        problems.append(f"{prefix[:-1]} = {values!r}: no known name{did_you_mean(values, list(named))}")
        return kind()
    if not isinstance(values, dict):
        problems.append(f"{prefix[:-1]} = {values!r}: expected a section of keys")
        unread.add(prefix)
        return kind()
    hints = get_type_hints(kind)
    parsed: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if key not in hints:
            near = did_you_mean(str(key), list(hints), listed=0)
            shown = f" = {value!r}" if not isinstance(value, dict) else ""
            problems.append(f"{dotted}{shown}: unknown key{near}{_elsewhere(str(key), prefix)}")
        elif dataclasses.is_dataclass(hints[key]):
            parsed[key] = _parse(hints[key], value, f"{dotted}.", problems, unread)
        else:
            ok, result = _coerce(hints[key], value)
            if ok:
                parsed[key] = result
            else:
                unread.add(dotted)
                expected = _describe(hints[key])
                near = ""
                if isinstance(value, str) and (choices := _choices(hints[key])):
                    near = did_you_mean(value, choices, listed=0)
                problems.append(f"{dotted} = {value!r}: expected {expected}{near}")
    return kind(**parsed)


def _elsewhere(key: str, prefix: str) -> str:
    """Name the sections that do have `key`."""
    owners = [f"{s}.{key}" for s, t in get_type_hints(SSLConfig).items() if key in get_type_hints(t)]
    return f" (there is {' and '.join(owners)})" if owners and f"{prefix}{key}" not in owners else ""


def _coerce(hint: Any, value: Any) -> tuple[bool, Any]:
    """Return (True, the value in the type of `hint`) or (False, None); an int passes for a float."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return type(None) in get_args(hint), None
        return next((r for a in get_args(hint) if a is not type(None) and (r := _coerce(a, value))[0]), (False, None))
    if origin is Literal:
        return value in get_args(hint), value
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(get_args(hint)):
            return False, None
        results = [_coerce(a, v) for a, v in zip(get_args(hint), value, strict=True)]
        return all(ok for ok, _ in results), tuple(v for _, v in results)
    if origin is list:
        if not isinstance(value, list | tuple):
            return False, None
        results = [_coerce(get_args(hint)[0], v) for v in value]
        return all(ok for ok, _ in results), [v for _, v in results]
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return math.isfinite(value), float(value)
    if hint is int and isinstance(value, bool):
        return False, None
    return isinstance(value, hint), value


def _choices(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    return [c for a in get_args(hint) for c in _choices(a)] if get_origin(hint) in (Union, types.UnionType) else []


def _describe(hint: Any) -> str:
    """Say in words what values a type hint allows."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _describe(a) for a in get_args(hint))
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if origin is tuple:
        return f"a list of {len(get_args(hint))} numbers"
    if origin is list:
        return "a list of texts"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a text"}[hint]


def _nearest_file(path: Path) -> str:
    folder = path.parent
    names = sorted(p.name for p in folder.glob("*.yaml")) if folder.is_dir() else []
    return did_you_mean(path.name, names) if names else ""
