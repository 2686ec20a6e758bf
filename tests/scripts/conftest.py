"""The modules of scripts/bench, for the tests of its programs."""

import importlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from bench_programs import BENCH, MODULES


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The modules of scripts/bench, which is no package, imported as `python scripts/bench/NAME.py` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:  # their names are common words
        sys.modules.pop(name, None)
