"""CLAM's parameters: the three published presets, and CSVs with mistakes."""

import csv

import pytest

from eval.errors import EvalError
from eval.patching.presets import PRESETS, Preset, load_preset


@pytest.mark.parametrize(
    ("name", "published"),
    [("biopsy", (15, 11, 2, 1, 1, 2)), ("resection", (15, 11, 4, 100, 16, 8)), ("tcga", (8, 7, 4, 16, 4, 8))],
)
def test_published_values(name, published) -> None:
    preset = load_preset(name)
    found = (preset.sthresh, preset.mthresh, preset.close, preset.a_t, preset.a_h, preset.max_n_holes)
    assert found == published
    assert (preset.seg_level, preset.vis_level, preset.use_otsu) == (-1, -1, False)
    assert (preset.white_thresh, preset.black_thresh) == (5, 50)
    assert (preset.use_padding, preset.contour_fn) == (True, "four_pt")
    assert preset.keep_ids == preset.exclude_ids == ()


def edited(tmp_path, drop=(), **cells):
    with open(PRESETS / "biopsy.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    row = {k: v for k, v in row.items() if k not in drop} | cells
    path = tmp_path / "mine.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    return str(path)


def test_a_csv_of_ones_own(tmp_path) -> None:
    path = edited(tmp_path, sthresh="20.0", use_otsu="True", keep_ids="0,3", a_t="0.5")
    preset = load_preset(path)
    assert (preset.sthresh, preset.use_otsu, preset.keep_ids, preset.a_t) == (20, True, (0, 3), 0.5)


def test_a_missing_column_is_named(tmp_path) -> None:
    with pytest.raises(EvalError, match=r"columns missing: a_h, contour_fn"):
        load_preset(edited(tmp_path, drop=("a_h", "contour_fn")))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"mthresh": "10"}, "mthresh 10: the median filter's side must be odd"),
        ({"sthresh": "300"}, "sthresh 300: saturation lies in 0..255"),
        ({"sthresh": "many"}, "sthresh = 'many'"),
        ({"close": "2.5"}, "close = '2.5': it must be a whole number"),
        ({"a_t": "-1"}, "a_t -1.0: it must be 0 or more"),
        ({"use_otsu": "maybe"}, "use_otsu = 'maybe': it must be TRUE or FALSE"),
        ({"contour_fn": "four_point"}, "did you mean 'four_pt'"),
        ({"sthreshold": "3"}, "no parameter is named 'sthreshold'; did you mean 'sthresh'"),
    ],
)
def test_bad_cells(tmp_path, cells, message) -> None:
    with pytest.raises(EvalError, match=message) as error:
        load_preset(edited(tmp_path, **cells))
    assert "mine.csv" in str(error.value)


def test_unknown_presets(tmp_path) -> None:
    with pytest.raises(EvalError, match="did you mean 'biopsy'"):
        load_preset("biopsi")
    (tmp_path / "empty.csv").write_text((PRESETS / "tcga.csv").read_text().splitlines()[0] + "\n")
    with pytest.raises(EvalError, match="no row of values"):
        load_preset(str(tmp_path / "empty.csv"))


def test_cells_are_read_back() -> None:
    preset = Preset(sthresh=9, use_otsu=True, keep_ids=(1, 2), a_t=2.5)
    assert Preset().updated({k: str(v) for k, v in preset.cells().items()}, "here") == preset
