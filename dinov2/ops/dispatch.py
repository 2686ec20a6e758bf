"""Choosing a backend for an operator: once a process, said in the log, and listed for the run report."""

import logging
import os

logger = logging.getLogger("dinov2")

_chosen: dict[str, str] = {}


def choose_backend(operator: str, requested: str, available: tuple[str, ...], default: str) -> str:
    """Return the backend of `operator` to use.

    `requested` is `auto` or a name; `DINOV2_<OPERATOR>_BACKEND` in the environment replaces `auto`.

    Raises:
        ValueError: the name is none of `available`.
    """
    if requested == "auto":
        requested = os.environ.get(f"DINOV2_{operator.upper()}_BACKEND", "auto")
    backend = default if requested == "auto" else requested
    if backend not in available:
        raise ValueError(f"{operator}: unknown backend {backend!r}; choose one of {', '.join(('auto', *available))}")
    if _chosen.get(operator) != backend:
        _chosen[operator] = backend
        logger.info("%s: backend %s (%s)", operator, backend, "default" if requested == "auto" else "requested")
    return backend


def chosen_backends() -> dict[str, str]:
    """Return the backend that each operator used last, by the operator's name."""
    return dict(_chosen)
