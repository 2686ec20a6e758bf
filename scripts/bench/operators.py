"""What an operator to measure is: its inputs, those who compute it, and its definition."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dinov2.ops.dispatch import usable_backends

Function = Callable[..., Tensor]
Note = Callable[[str], None]
Shape = dict[str, int]


@dataclass(frozen=True)
class Workload:
    """Inputs (leaves), which of them have the batch as first axis, and the gradient arriving at the output."""

    inputs: tuple[Tensor, ...]
    batched: tuple[bool, ...]
    grad: Tensor

    @property
    def bytes(self) -> int:
        """The bytes of inputs and output."""
        return sum(t.numel() * t.element_size() for t in (*self.inputs, self.grad))

    def channels_outside(self) -> "Workload":
        """Return the same values with the two last axes of three-dimensional tensors swapped in memory."""

        def relaid(tensor: Tensor) -> Tensor:
            tensor = tensor.detach()
            return tensor.mT.contiguous().mT if tensor.ndim == 3 else tensor

        inputs = tuple(relaid(tensor).requires_grad_() for tensor in self.inputs)
        return Workload(inputs, self.batched, relaid(self.grad))


@dataclass(frozen=True)
class Contender:
    """An implementation of the operator.

    Attributes:
        name: what the table calls it.
        function: takes the inputs of the workload.
        peer: it is not ours.
        channels_outside: it is given (B, L, D) tensors that lie in memory as (B, D, L), as its own models have them.
    """

    name: str
    function: Function
    peer: bool
    channels_outside: bool = False

    def bind(self, work: "Workload", mode: str) -> Callable[[], object]:
        """Return the call that is measured: `forward`, or `forward+backward` to the gradients of all inputs."""
        work = work.channels_outside() if self.channels_outside else work

        def forward() -> object:
            with torch.no_grad():
                return self.function(*work.inputs)

        def forward_backward() -> object:
            return torch.autograd.grad(self.function(*work.inputs), work.inputs, work.grad)

        return forward if mode == "forward" else forward_backward


@dataclass(frozen=True)
class Operator:
    """An operator to measure; a shape holds `batch`, `length`, `dim` and what else the operator needs.

    Attributes:
        module: the module that holds the operator, for processes that measure memory.
        make: (shape, device, dtype) -> Workload, the same values at every call.
        contenders: (shape, device, dtype, note) -> those that run there; what is missing is told to `note`.
        ours: (shape, device, dtype) -> the contender (by name) that counts in the ratios.
        exact: the operator from its definition, meant for float64.
        layer: (shape) -> a layer (B, L, dim) -> (B, L, dim) of the backbones around this operator, or None.
    """

    module: str
    make: Callable[[Shape, torch.device, torch.dtype], Workload]
    contenders: Callable[[Shape, torch.device, torch.dtype, Note], list[Contender]]
    ours: Callable[[Shape, torch.device, torch.dtype], str]
    exact: Function
    layer: Callable[[Shape], nn.Module] | None = None


def our_contenders(
    operator: str, function: Function, device: torch.device, dtype: torch.dtype, *sizes: int
) -> list[Contender]:
    """Return one contender for each backend of `operator` that runs there, `function(inputs..., backend=NAME)`.

    `sizes` are those on which the operator's backends depend beside device and dtype, as it gives them to
    `choose_backend`.
    """
    names = usable_backends(operator, device.type, dtype, *sizes)
    return [Contender(f"ours ({name})", functools.partial(function, backend=name), False) for name in names]


def our_default(operator: str, device: torch.device, dtype: torch.dtype, *sizes: int) -> str:
    """Return the name of the contender whose backend `auto` takes there."""
    return f"ours ({usable_backends(operator, device.type, dtype, *sizes)[0]})"


def operator_memory_case(operator: Operator, case: dict[str, Any]) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return the warm-up (on two tokens of one sample) and the call that a memory process measures."""
    name, mode = case.pop("contender"), case.pop("mode")
    cpu, dtype = torch.device("cpu"), torch.bfloat16 if case.pop("bf16") else torch.float32
    contenders = operator.contenders(case, cpu, dtype, lambda _: None)
    contender = next(c for c in contenders if c.name == name)
    work = operator.make(case, cpu, dtype)
    small = operator.make({**case, "batch": 1, "length": 2}, cpu, dtype)
    return contender.bind(small, mode), contender.bind(work, mode)


def leaves(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the tensors as leaves that require a gradient."""
    return tuple(tensor.detach().requires_grad_() for tensor in tensors)
