"""Reading inside a running forward in which dtypes modules hold their parameters and compute."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ONLY_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default)


@dataclass
class Seen:
    """What one module did while it ran."""

    parameters: dict[str, torch.dtype] = field(default_factory=dict)
    computed: set[tuple[str, torch.dtype]] = field(default_factory=set)  # operator and dtype of a floating argument
    calls: int = 0


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.running: list[Seen] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.running and not func.is_view and func not in ONLY_MOVES:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
                    self.running[-1].computed.add((str(func), leaf.dtype))
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(modules: dict[str, nn.Module]) -> Iterator[dict[str, Seen]]:
    """Yield what each module does in forwards meanwhile; work of a watched submodule counts as the submodule's."""
    seen = {name: Seen() for name in modules}
    recorder = _Recorder()

    def before(name):
        def hook(module, args):
            seen[name].calls += 1
            # Under FSDP2 these are the gathered parameters: this hook was registered after its own.
            seen[name].parameters |= {key: parameter.dtype for key, parameter in module.named_parameters()}
            recorder.running.append(seen[name])

        return hook

    def after(module, args, output):
        recorder.running.pop()

    handles = [module.register_forward_pre_hook(before(name)) for name, module in modules.items()]
    handles += [module.register_forward_hook(after, prepend=True) for module in modules.values()]
    try:
        with recorder:
            yield seen
    finally:
        for handle in handles:
            handle.remove()
