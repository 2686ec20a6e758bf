"""Choosing a backend for an operator by device, dtype and size; what was chosen is logged and kept for run.json."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from dinov2.utils.errors import UserError
from dinov2.utils.suggest import did_you_mean

logger = logging.getLogger("dinov2")


@dataclass(frozen=True)
class Backend:
    """One implementation of an operator: `refusal(device type, dtype, *sizes)` says why it should not run, or is None.

    `dtype` is that of the inputs; `sizes` are the numbers that matter to the operator: the states of a scan, and for
    state-space duality the channels of a head; the tokens of EinFFT; the width of a convolution and its channels.
    """

    name: str
    refusal: Callable[..., str | None]


class BackendError(UserError):
    """A backend that does not exist, or that cannot run where it was asked to."""


_operators: dict[str, tuple[Backend, ...]] = {}
_forced: dict[str, tuple[str, str]] = {}  # operator -> backend, by whom
_chosen: dict[str, dict[str, str]] = {}  # operator -> backend -> why, in order of first use
_overruled: set[tuple[str, str, str]] = set()  # operator, what was asked for, why it does not run: warned of


def register_backends(operator: str, backends: tuple[Backend, ...]) -> None:
    """Declare the backends of `operator` in the order in which `auto` tries them."""
    _operators[operator] = backends


def usable_backends(
    operator: str, device: str = "cpu", dtype: torch.dtype = torch.float32, size: int = 16, *more: int
) -> list[str]:
    """Return the backends of `operator` that can run such inputs, the one that `auto` takes first."""
    return [backend.name for backend in _operators[operator] if backend.refusal(device, dtype, size, *more) is None]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # while a graph is traced: decided once
def choose_backend(operator: str, requested: str, device: str, dtype: torch.dtype, *sizes: int) -> str:
    """Return the name of the backend of `operator` to run with inputs of this device type and dtype and these sizes.

    `requested` is `auto` or a name. What is forced (`force_backends`, in training the YAML section `kernels`) replaces
    `auto`, and so does `DINOV2_<OPERATOR>_BACKEND` in the environment where nothing is forced.

    Raises:
        BackendError: the name is unknown, or that backend cannot run there (the reason).
    """
    requested, source = _wanted(operator, requested)
    refusals: list[str] = []
    for backend in _operators[operator]:
        if requested not in ("auto", backend.name):
            continue
        refusal = backend.refusal(device, dtype, *sizes)
        if refusal is None:
            _report(operator, backend.name, source if requested != "auto" else "; ".join([f"on {device}", *refusals]))
            return backend.name
        refusals.append(f"not {backend.name}: {refusal}")
    raise BackendError(
        f"{operator}: backend {requested!r} ({source}) cannot run: {'; '.join(refusals)}; "
        f"choose auto or one of {', '.join(usable_backends(operator, device, dtype, *sizes))}"
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def keep_backend(operator: str, requested: str, backend: str, why: str) -> str:
    """Report that `operator` runs on `backend`, because of `why`, where there is no choice; return its name.

    Where another one was requested, or forced as for `choose_backend`, a warning says so, once.

    Raises:
        BackendError: the name is unknown.
    """
    requested, source = _wanted(operator, requested)
    if requested not in ("auto", backend) and (operator, requested, why) not in _overruled:
        _overruled.add((operator, requested, why))
        logger.warning("%s: backend %s instead of %s (%s): %s", operator, backend, requested, source, why)
    _report(operator, backend, why)
    return backend


def force_backends(choices: Mapping[str, str], source: str = "forced by the configuration") -> None:
    """Use these backends (operator -> name or `auto`) from now on wherever a caller leaves the choice open.

    `source` is what the log and errors say of it.

    Raises:
        BackendError: an operator or a backend is unknown.
    """
    for operator, name in choices.items():
        if operator not in _operators:
            raise BackendError(f"no operator {operator!r}{did_you_mean(operator, list(_operators), listed=8)}")
        known = ["auto", *(backend.name for backend in _operators[operator])]
        if name not in known:
            raise BackendError(f"{operator}: unknown backend {name!r}{did_you_mean(name, known, listed=8)}")
    _forced.update({operator: (name, source) for operator, name in choices.items()})


@contextmanager
def forced(**choices: str) -> Iterator[None]:
    """Use these backends inside a `with` block: `with forced(selective_scan="reference"): ...`."""
    before = dict(_forced)
    force_backends(choices, "forced for a part of the program")
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def chosen_backends() -> dict[str, dict[str, str]]:
    """Return what each operator has used in this process, and why at first: {operator: {backend: reason}}."""
    return {operator: dict(choices) for operator, choices in _chosen.items()}


def _wanted(operator: str, requested: str) -> tuple[str, str]:
    """Return the backend that is asked for, or `auto`, and by whom."""
    source = "asked for by the caller"
    if requested == "auto":
        variable = f"DINOV2_{operator.upper()}_BACKEND"
        requested, source = _forced.get(operator, ("auto", ""))
        if requested == "auto":
            requested, source = os.environ.get(variable) or "auto", f"forced by {variable}"
    if requested == "auto":
        return requested, source
    known = ["auto", *(backend.name for backend in _operators[operator])]
    if requested not in known:
        raise BackendError(f"{operator}: unknown backend {requested!r} ({source}){did_you_mean(requested, known)}")
    return requested, source


def _report(operator: str, backend: str, why: str) -> None:
    choices = _chosen.setdefault(operator, {})
    if backend not in choices:
        choices[backend] = why
        logger.info("%s: backend %s (%s)", operator, backend, why)
