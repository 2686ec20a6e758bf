"""Channel statistics against numpy's on all pixels, and the command line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from dinov2.data.errors import DatasetError
from dinov2.data.stats import channel_statistics, main
from dinov2.utils.config import config_from_dict


def test_equals_numpy_over_all_pixels_of_tiles_of_any_size() -> None:
    rng = np.random.default_rng(0)
    tiles = [rng.integers(0, 200, (3, *size), dtype=np.uint8) for size in ((4, 5), (1, 1), (30, 2))]
    pixels = np.concatenate([tile.reshape(3, -1) for tile in tiles], axis=1) / 255
    found = channel_statistics(map(torch.from_numpy, tiles))
    np.testing.assert_allclose(found.mean, pixels.mean(1), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(1), rtol=1e-12)


@pytest.mark.parametrize("tiles", [[], [torch.full((3, 4, 4), 7, dtype=torch.uint8)]])
def test_nothing_to_measure_is_an_error(tiles: list[Tensor]) -> None:
    with pytest.raises(DatasetError):
        channel_statistics(tiles)


def test_the_command_prints_a_configuration(tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"Folder:root={tiles}"]) == 0
    normalize = config_from_dict(yaml.safe_load(capsys.readouterr().out)).crops.normalize
    pixels = np.concatenate([np.asarray(Image.open(path)).reshape(-1, 3) for path in tiles.iterdir()]) / 255
    np.testing.assert_allclose(normalize.mean, pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(normalize.std, pixels.std(0), atol=1e-6)


def test_the_command_names_what_it_leaves_out(
    tiles: Path, capsys: pytest.CaptureFixture[str], truncate: Callable[[Path], None]
) -> None:
    truncate(tiles / "tile_003.png")
    assert main([f"Folder:root={tiles}"]) == 0
    out, err = capsys.readouterr()
    assert "# Folder" in out
    assert "19 of 20 tiles" in out
    assert "tile_003.png" in err
    for number in range(10, 17):
        truncate(tiles / f"tile_{number:03d}.png")
    assert main([f"Folder:root={tiles}", "--max-bad-fraction", "0.1"]) == 2
    assert "3 of the first " in (err := capsys.readouterr().err)
    assert "of 20, 2 are tolerated:\n" in err
    assert main([f"Folder:root={tiles}", "--max-bad-fraction", "0.4"]) == 0
    assert "8 left out" in (err := capsys.readouterr().err)
    assert err.count(".png: ") == 5
    assert "and 3 more" in err
    assert main([f"Folder:root={tiles}", "--max-tiles", "5", "--max-bad-fraction", "1"]) == 0
    assert main([f"Folder:root={tiles}", "--max-bad-fraction", "nan"]) == 2
    assert main([f"Folder:root={tiles}", "--max-tiles", "0"]) == 2
    assert main([f"Folder:root={tiles / 'none'}"]) == 2
