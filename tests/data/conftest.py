"""Small folders of real-sized random tiles."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinov2.data import index_cache
from dinov2.utils.schema import CropsSection


def _random_tile(rng: np.random.Generator, height: int = 64, width: int = 64) -> Image.Image:
    """A tile with coarse structure and noise, so that every operation of the augmentation changes it."""
    coarse = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    return Image.fromarray(np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8))


def _write_tiles(folder: Path, count: int, suffix: str = ".png", seed: int = 0) -> list[Path]:
    """Write `count` tiles and return their paths in sorted order."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"tile_{number:03d}{suffix}" for number in range(count)]
    for path in paths:
        _random_tile(rng).save(path)
    return paths


def _truncate(path: Path) -> None:
    """Cut a file in the middle."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.fixture
def random_tile() -> Callable[..., Image.Image]:
    """`random_tile(rng, height, width)`."""
    return _random_tile


@pytest.fixture
def write_tiles() -> Callable[..., list[Path]]:
    """`write_tiles(folder, count, suffix, seed)`."""
    return _write_tiles


@pytest.fixture
def truncate() -> Callable[[Path], None]:
    """`truncate(path)`."""
    return _truncate


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """A folder of 20 PNG tiles of 64 px."""
    _write_tiles(tmp_path / "tiles", 20)
    return tmp_path / "tiles"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept listings; ones of two items or more are kept."""
    monkeypatch.setenv("DINOV2_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "MIN_KEPT", 2)
    return tmp_path / "cache" / "index"


@pytest.fixture
def small_crops() -> CropsSection:
    """Crops small enough for quick loaders: a 4 x 4 grid at patch 8."""
    return CropsSection(global_crops_size=32, local_crops_size=16, local_crops_number=3)
