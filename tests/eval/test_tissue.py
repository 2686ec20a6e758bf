import h5py
import numpy as np
import pytest

from eval.errors import EvalError
from eval.hest import main
from eval.hest_data import load_task
from eval.report import write_report
from eval.tissue import SIDE, TILE, check_map_samples, draw_tissue, map_samples, read_tissue, write_tissue


def place(bench, name, coords):
    with h5py.File(bench / "TOY" / "patches" / f"{name}.h5", "r+") as file:
        file["coords"][...] = coords


def grid(n=24, apart=200):
    return np.stack([np.arange(n) % 6, np.arange(n) // 6], axis=1) * apart + 1000


@pytest.fixture
def placed(bench):
    """The toy task with A and B laid out in 6 x 4 spots; C has no places."""
    for name in "AB":
        place(bench, name, grid())
    return bench


def test_every_patch_is_at_its_place(placed):
    path = placed / "TOY" / "patches" / "A.h5"
    drawn = draw_tissue(path)
    assert drawn.image.shape == (4 * TILE, 6 * TILE, 3)
    assert drawn.extent.tolist() == [900, 2100, 1700, 900]  # half a tile beyond the outer centres
    with h5py.File(path) as file:
        colours = file["img"][()].mean(axis=(1, 2))  # (N, 3)
    for i, colour in enumerate(colours):
        y, x = i // 6 * TILE, i % 6 * TILE
        np.testing.assert_allclose(drawn.image[y : y + TILE, x : x + TILE].mean(axis=(0, 1)), colour, atol=1)


def test_what_no_patch_covers_is_white_and_a_picture_stays_small(placed):
    coords = grid()
    coords[23] = (900_000, 500_000)  # a stray spot
    place(placed, "A", coords)
    image = draw_tissue(placed / "TOY" / "patches" / "A.h5").image
    assert max(image.shape) <= SIDE + TILE
    assert (image.reshape(-1, 3) == 255).all(axis=1).mean() > 0.99
    assert (image[-1, -1] < 255).all()


def test_which_samples_are_drawn(placed):
    task = load_task(placed, "TOY")
    assert map_samples(task) == ["A", "B"]
    assert map_samples(task, ["B", "of another task"]) == ["B"]
    check_map_samples([task], ["B", "A"])
    with pytest.raises(EvalError, match=r"--map-samples AA: in no task\. Nearest: A"):
        check_map_samples([task], ["AA"])
    with pytest.raises(EvalError, match=r"--map-samples C: .*C\.h5 has no coordinates"):
        check_map_samples([task], ["C"])


def test_the_report_shows_the_wanted_samples(placed, tmp_path, monkeypatch):
    out = tmp_path / "out"
    base = ["--bench-root", str(placed), "--tasks", "TOY", "--device", "cpu", "--out", str(out)]
    assert main([*base, "--encoder", "color-stats"]) == 0
    (path,) = (out / "maps").glob("TOY-tissue-*.npz")
    assert list(read_tissue(path)) == ["A", "B"]
    assert main([*base, "--encoder", "color-stats", "--map-samples", "B"]) == 0
    assert list(read_tissue(path)) == ["B"]
    drawn = []
    monkeypatch.setattr("eval.report.slide_maps", lambda genes, samples, tissue: drawn.append(list(samples)) or "")
    assert "Measured and predicted" in write_report(out).read_text()
    assert drawn == [["B"]]
    before = path.stat().st_mtime_ns
    write_tissue(out / "maps", load_task(placed, "TOY"), ["B"])
    assert path.stat().st_mtime_ns == before
