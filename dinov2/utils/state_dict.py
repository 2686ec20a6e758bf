"""Saying in which parameters two state dictionaries differ."""

from collections.abc import Mapping

from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
LISTED = 8


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Return the shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def state_differences(own: Shapes, found: Shapes, owner: str = "the model") -> str:
    """Return the names that `found` lacks, has too many, or has in another shape than `own`; empty if they agree."""
    wrong = [f"missing {name}" for name in own if name not in found]
    wrong += [f"unexpected {name}" for name in found if name not in own]
    wrong += [
        f"{name} has shape {found[name]} where {owner} has {shape}"
        for name, shape in own.items()
        if name in found and found[name] != shape
    ]
    more = f" and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
    return "; ".join(wrong[:LISTED]) + more
