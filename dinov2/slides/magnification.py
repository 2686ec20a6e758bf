"""How large a pixel is: from the slide's metadata, or as the user says; never a guess.

Magnification is used as TRIDENT defines it: 10 / (micrometres per px), so that 0.5 um/px is 20x and 0.25 um/px is 40x.
"""

from collections.abc import Mapping

from dinov2.slides.errors import SlideError
from dinov2.slides.reader import SlideReader

MAGNIFICATION_TIMES_MPP = 10.0
# No scanner's level 0 lies outside of this; values beyond come from resolution tags for screens and printers.
PLAUSIBLE_MPP = (0.05, 5.0)
# Objective and pixel size tell the same up to camera adapters; a factor of 2 is another magnification.
_AGREEMENT = 1.5
_SAME = 1.02  # two pixel sizes as near as this are one


def magnification(mpp: float) -> float:
    """Return the magnification at a pixel size in micrometres."""
    return MAGNIFICATION_TIMES_MPP / mpp


def level0_mpp(slide: SlideReader, given: float | None = None) -> float:
    """Return the size of a level-0 px in micrometres.

    Args:
        slide: an open slide.
        given: what the user says of this slide, which settles it.

    Raises:
        SlideError: nothing was given, and the metadata are silent or contradict themselves; or `given` is implausible.
    """
    return _metadata_mpp(slide) if given is None else _plausible(slide, given)


def filled_mpp(slide: SlideReader, default: float) -> tuple[float, bool]:
    """Return the size of a level-0 px in micrometres, and whether it is `default` for want of usable metadata.

    Args:
        slide: an open slide.
        default: what the user says of all slides whose metadata are silent or contradict themselves.

    Raises:
        SlideError: the metadata are usable and say something else, or `default` is implausible.
    """
    _plausible(slide, default)
    try:
        found = _metadata_mpp(slide)
    except SlideError:
        return default, True
    if not same_mpp(found, default):
        raise SlideError(
            f"{slide.path}: --mpp {default:g} was given for slides without a usable pixel size, but the metadata of "
            f"this one say {found:g} um per px. Leave --mpp out for it, or, if its metadata are wrong, use --mpp-csv."
        )
    return found, False


def same_mpp(a: float, b: float) -> bool:
    """Whether two pixel sizes agree to 2%."""
    return max(a, b) / min(a, b) <= _SAME


def _plausible(slide: SlideReader, given: float) -> float:
    if not PLAUSIBLE_MPP[0] <= given <= PLAUSIBLE_MPP[1]:
        raise SlideError(
            f"{slide.path}: {given} um per px was given; level 0 of a slide has {PLAUSIBLE_MPP[0]} to "
            f"{PLAUSIBLE_MPP[1]} um per px. Give micrometres, not a magnification (20x is 0.5)."
        )
    return given


def _metadata_mpp(slide: SlideReader) -> float:
    found = {key: _number(slide.properties, f"openslide.{key}") for key in ("mpp-x", "mpp-y", "objective-power")}
    x, y, power = found["mpp-x"], found["mpp-y"], found["objective-power"]
    advice = "Give it: --mpp 0.5, or a CSV with the columns slide_id and mpp (--mpp-csv)."
    if x is None or y is None or not all(PLAUSIBLE_MPP[0] <= v <= PLAUSIBLE_MPP[1] for v in (x, y)):
        raise SlideError(
            f"{slide.path}: micrometres per px unknown (metadata: {_describe(found)}). {advice}"
            + (f" An objective of {power:g}x often means {MAGNIFICATION_TIMES_MPP / power:g}." if power else "")
        )
    if not same_mpp(x, y):
        raise SlideError(f"{slide.path}: pixels are not square (metadata: {_describe(found)}). {advice}")
    mpp = (x + y) / 2
    if power and not 1 / _AGREEMENT < mpp * power / MAGNIFICATION_TIMES_MPP < _AGREEMENT:
        raise SlideError(
            f"{slide.path}: the metadata contradict themselves ({_describe(found)}): {mpp:g} um per px is "
            f"{magnification(mpp):.3g}x. {advice}"
        )
    return mpp


def _number(properties: Mapping[str, str], key: str) -> float | None:
    try:
        value = float(properties[key])
    except (KeyError, ValueError):
        return None
    return value if value > 0 else None


def _describe(found: Mapping[str, float | None]) -> str:
    return ", ".join(f"{key} {'missing' if value is None else f'{value:g}'}" for key, value in found.items())
