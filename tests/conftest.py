"""What all tests share: one thread, since several on shared cores are slower than one, and a run of a second or two."""

import numpy as np
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


def write_slide(path, image, factors=(1,), mpp=0.5, tile=64):
    """A lossless tiled TIFF pyramid of `image` (H, W, 3), which OpenSlide reads; no resolution where mpp is None."""
    import tifffile

    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        for factor in factors:
            height, width = (side // factor * factor for side in image.shape[:2])
            blocks = image[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
            writer.write(
                blocks.mean(axis=(1, 3)).round().astype(np.uint8),
                tile=(tile, tile),
                photometric="rgb",
                compression="deflate",
                subfiletype=int(factor > 1),
                metadata=None,
                **resolution,
            )
    return path


def draw_tissue(size, rectangles, holes=()):
    """A white image (H, W, 3) of `size` (W, H) with pink textured rectangles (x0, y0, x1, y1) and white holes."""
    image = np.full((size[1], size[0], 3), 245, np.uint8)
    noise = np.random.default_rng(0).integers(-25, 26, image.shape)
    for x0, y0, x1, y1 in rectangles:
        image[y0:y1, x0:x1] = np.clip(np.array([200, 100, 160]) + noise[y0:y1, x0:x1], 0, 255)
    for x0, y0, x1, y1 in holes:
        image[y0:y1, x0:x1] = 245
    return image


@pytest.fixture(name="write_slide")
def write_slide_fixture():
    """`write_slide(path, image, factors, mpp, tile)`."""
    return write_slide


@pytest.fixture(name="draw_tissue")
def draw_tissue_fixture():
    """`draw_tissue(size, rectangles, holes)`."""
    return draw_tissue


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
