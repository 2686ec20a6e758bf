"""What a patching job is asked to do, and where it writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.patching.presets import Preset

JOB = "patches"
# Part of every key: raise it when the arithmetic of segmentation or of the grid changes.
VERSION = 1


@dataclass(frozen=True)
class PatchOptions:
    """What is asked for, the same for all slides.

    Attributes:
        out: output folder.
        patch_size: side of the patches that come out, px.
        overlap: of neighbours, px.
        level: level whose own pixels the patches are; None with `target_mpp`.
        target_mpp: micrometres per px of the patches; None with `level`.
        pixels: formats in which pixels are written, of `PIXEL_FORMATS`.
        drop_blank: leave out white and black patches, which reads all of them.
        overview: write a picture of every slide.
        cache_dir: local folder to which slides are copied before they are read.
    """

    out: Path
    patch_size: int = 256
    overlap: int = 0
    level: int | None = 0
    target_mpp: float | None = None
    pixels: tuple[str, ...] = ()
    drop_blank: bool = False
    overview: bool = True
    cache_dir: Path | None = None

    def outputs(self, name: str) -> dict[str, Path]:
        """Return the files (and folder) of a slide, those that these options do not write included."""
        return {
            "coords": self.out / "patches" / f"{name}.h5",
            "geojson": self.out / "contours_geojson" / f"{name}.geojson",
            "overview": self.out / "masks" / f"{name}.jpg",
            "tar": self.out / "shards" / f"{name}.tar",
            "jpeg": self.out / "tiles" / name,
        }

    def settings(self) -> dict[str, Any]:
        """Return what decides a slide's patches, besides preset, pixel size and slide."""
        names = ("patch_size", "overlap", "level", "target_mpp", "drop_blank")
        return {**{name: getattr(self, name) for name in names}, "version": VERSION}


@dataclass(frozen=True)
class SlideTask:
    """One slide: where it is, and how it is segmented.

    Attributes:
        name: without suffix.
        path: the file.
        preset: parameters of the segmentation.
        mpp: micrometres per level-0 px, where the user gave those of this slide: its metadata do not count.
        default_mpp: the same where its metadata are not usable.
    """

    name: str
    path: Path
    preset: Preset
    mpp: float | None = None
    default_mpp: float | None = None
