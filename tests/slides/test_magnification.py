"""The size of a pixel: taken from metadata that agree, or as given, or an error that says what was found."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov2.slides import SlideError
from dinov2.slides.magnification import filled_mpp, level0_mpp, magnification


def slide(x=None, y=None, power=None):
    found = {"mpp-x": x, "mpp-y": y, "objective-power": power}
    properties = {f"openslide.{key}": str(value) for key, value in found.items() if value is not None}
    return SimpleNamespace(path=Path("a.svs"), properties=properties)


@given(st.floats(0.1, 2.0))
def test_metadata_that_agree(mpp) -> None:
    assert level0_mpp(slide(mpp, mpp)) == pytest.approx(mpp)
    assert level0_mpp(slide(mpp, mpp * 1.01, 10 / mpp)) == pytest.approx(mpp * 1.005)
    assert magnification(mpp) == pytest.approx(10 / mpp)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (slide(), "mpp-x missing, mpp-y missing, objective-power missing.*--mpp 0.5"),
        (slide(power=40), "unknown.*objective of 40x often means 0.25"),
        (slide(0.25, None), "mpp-x 0.25, mpp-y missing"),
        (slide("unknown", "unknown"), "mpp-x missing"),
        (slide(352.8, 352.8), "mpp-x 352.8"),
        (slide(0, 0), "unknown"),
        (slide(0.25, 0.5), "not square"),
        (slide(0.25, 0.25, 20), "contradict themselves.*0.25 um per px is 40x"),
        (slide(0.5, 0.5, 40), "contradict themselves"),
    ],
)
def test_unknown_and_contradictory(found, message) -> None:
    with pytest.raises(SlideError, match=message):
        level0_mpp(found)
    assert level0_mpp(found, 0.31) == 0.31
    assert filled_mpp(found, 0.31) == (0.31, True)


def test_a_pixel_size_for_slides_without_one() -> None:
    assert filled_mpp(slide(0.5, 0.5), 0.509) == (0.5, False)
    with pytest.raises(SlideError, match=r"a\.svs: --mpp 0.25 was given .* say 0.5 um per px.*--mpp-csv"):
        filled_mpp(slide(0.5, 0.5), 0.25)
    for found in (slide(0.5, 0.5), slide()):
        with pytest.raises(SlideError, match="not a magnification"):
            filled_mpp(found, 20)


@pytest.mark.parametrize("given_mpp", [20, 40, 0, -1, float("nan"), float("inf")])
def test_a_magnification_given_as_a_pixel_size(given_mpp) -> None:
    with pytest.raises(SlideError, match="not a magnification"):
        level0_mpp(slide(0.5, 0.5), given_mpp)
