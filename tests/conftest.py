"""What all tests share: one thread, since several on shared cores are slower than one, and a run of a second or two."""

import pytest
import torch
from small_runs import SMALL, write_tiles

from dinov2.utils.config import config_from_dict

torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Distribute tests one by one, but give all that use the Slurm cluster to one process of pytest-xdist."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            # The tests of a file there share costly fixtures.
            return {"tests/slurm": "slurm", "tests/distributed": file}.get(file.rpartition("/")[0], nodeid)

    return Scheduler(config, log)


@pytest.fixture
def tiles(tmp_path):
    """A folder of twelve smooth random tiles."""
    return write_tiles(tmp_path / "tiles")


@pytest.fixture
def small(tiles):
    """Return a function from overrides (nested dictionaries) to the small configuration."""

    def make(**sections):
        values = {key: dict(section) for key, section in SMALL.items()}
        values["train"]["dataset_path"] = f"Folder:root={tiles}"
        for key, section in sections.items():
            values[key] = values.get(key, {}) | section
        return config_from_dict(values)

    return make
