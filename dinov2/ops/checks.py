"""The input rules that all operators share."""

from collections.abc import Sequence

from torch import Tensor
from torch.autograd import forward_ad

Rule = tuple[str, Tensor | None, tuple[int, ...]]  # name, argument, the shape it must have


def check_tensors(operator: str, first: tuple[str, Tensor], rules: Sequence[Rule]) -> None:
    """Check arguments against their shapes, for real floating-point dtypes, and against the device of the `first`.

    Derivatives are backward ones, of the first order: a tangent of forward-mode differentiation would be lost silently.

    Raises:
        ValueError: an argument breaks a rule: its name, its shape and the rule.
    """
    name_of_first, tensor_of_first = first
    for name, tensor, shape in rules:
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"{operator}: {name} has shape {tuple(tensor.shape)}; expected {shape} for this {name_of_first}"
            )
    for name, tensor in [first, *((name, tensor) for name, tensor, _ in rules)]:
        if tensor is None:
            continue
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:
            raise ValueError(
                f"{operator}: {name} carries a tangent, but there is no forward-mode derivative; use backward"
            )
        if not tensor.is_floating_point():
            rule = "expected a real floating-point dtype"
            raise ValueError(f"{operator}: {name} {tuple(tensor.shape)} has dtype {tensor.dtype}; {rule}")
        if tensor.device != tensor_of_first.device:
            raise ValueError(
                f"{operator}: {name} {tuple(tensor.shape)} is on {tensor.device} but {name_of_first} is on "
                f"{tensor_of_first.device}"
            )
