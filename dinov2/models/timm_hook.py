"""Telling timm of the backbones as soon as somebody imports it, without importing it for those who do not.

`import timm` takes longer than all of this package. A finder at the front of `sys.meta_path` steps aside for
every other module; for timm it lets the others find it and registers the backbones once timm has been executed.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def install() -> None:
    """Register the backbones with timm: now if it is imported, else when it will be. Further calls do nothing."""
    if "timm" in sys.modules:
        _register()
    elif not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())


def _register() -> None:
    from dinov2.models.timm_models import register

    register()


class _TimmFinder:
    """Finds timm by the other finders, and has its loader register the backbones at the end."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of timm with a loader that also registers, and None for any other module."""
        if fullname != "timm":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(fullname, path, target))), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
