"""Damaged files of every kind go through the loader: it neither crashes nor hangs, and leaves no worker behind."""

import faulthandler
import io
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from dinov2.data.datasets import TileDataset, make_dataset
from dinov2.data.errors import BadTileError, DatasetError, TooManyBadTilesError
from dinov2.data.loaders import make_loader
from dinov2.slides import Coordinates, open_slide, write_coordinates
from dinov2.slides.coordinates import geometry_at_level
from dinov2.utils.schema import CropsSection, IbotSection

IMAGES = 40  # damaged image files a round; one in five is good
# End of the name -> format and mode; the 16-bit image is a bad tile as it is.
KINDS = {
    ".jpg": ("JPEG", "RGB"),
    ".png": ("PNG", "RGB"),
    ".tif": ("TIFF", "RGB"),
    ".webp": ("WEBP", "RGB"),
    "-cmyk.jpg": ("JPEG", "CMYK"),
    "-cmyk.tif": ("TIFF", "CMYK"),
    "-palette.png": ("PNG", "P"),
    "-deep.png": ("PNG", "I;16"),
}
HANG_SECONDS = 180  # that a test may take beyond its own time


def _mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut, overwrite, repeat or remove a part, or change some bytes, more often near the start, where headers are."""
    damaged = bytearray(content)
    place = int(rng.integers(len(content) if rng.random() < 0.5 else min(len(content), 600)))
    length = int(rng.integers(1, 60))
    how = rng.integers(5)
    if how == 0:
        return content[:place]
    if how == 1:
        damaged[place : place + length] = rng.bytes(length)
    elif how == 2:
        damaged[place:place] = damaged[place : place + length]
    elif how == 3:
        del damaged[place : place + length]
    else:
        for where in rng.integers(len(content), size=5):
            damaged[where] = rng.integers(256)
    return bytes(damaged)


@pytest.fixture
def watchdog() -> Iterator[Callable[[float], None]]:
    """`watchdog(seconds)`: print where every thread is and end the process if the test takes much longer than that."""
    yield lambda seconds: faulthandler.dump_traceback_later(seconds + HANG_SECONDS, exit=True)
    faulthandler.cancel_dump_traceback_later()


def _encode(tile: Image.Image, kind: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(np.asarray(tile.convert("L")).astype(np.uint16) * 256) if mode == "I;16" else tile
    image.convert(mode).save(buffer, kind)
    return buffer.getvalue()


def _write_images(folder: Path, files: dict[str, bytes], rng: np.random.Generator) -> None:
    folder.mkdir()
    for number in range(IMAGES):
        suffix = list(files)[number % len(files)]
        content = files[suffix]
        (folder / f"{number:03d}{suffix}").write_bytes(content if number % 5 == 0 else _mutate(content, rng))


def _write_tar(path: Path, files: dict[str, bytes], rng: np.random.Generator) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, (suffix, content) in enumerate(files.items()):
            info = tarfile.TarInfo(f"slide/{number}{suffix}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    path.write_bytes(_mutate(buffer.getvalue(), rng))


def _write_h5(path: Path, tile: Image.Image, rng: np.random.Generator) -> None:
    with h5py.File(path, "w", libver=rng.choice(["earliest", "latest"])) as file:
        options = {"chunks": (1, 48, 48, 3), "compression": "gzip"} if rng.random() < 0.5 else {}
        file.create_dataset("img", data=np.repeat(np.asarray(tile)[None], 4, 0), **options)
    path.write_bytes(_mutate(path.read_bytes(), rng))


def _decode_some(dataset: TileDataset) -> None:
    reasons = []
    for index in {*range(min(len(dataset), 6)), len(dataset) - 1}:
        try:
            tile = dataset.decode(index)
        except BadTileError as error:
            reasons.append(error.reason)
        else:
            assert tile.dtype == torch.uint8
            assert tile.shape[0] == 3
    assert all(reasons)


def _fuzz(
    folder: Path, tile: Image.Image, write_slide: Callable[..., Path], crops: CropsSection, seconds: float
) -> int:
    """Rounds of: a folder of damaged images, containers and slides through a loader of two workers."""
    files = {suffix: _encode(tile, *kind) for suffix, kind in KINDS.items()}
    whole = {path.name: path.read_bytes() for path in _slides_parts(folder / "slides", write_slide)}
    rounds, end = 0, time.monotonic() + seconds
    while rounds < 2 or time.monotonic() < end:  # one with each form of the augmentation
        rng = np.random.default_rng(rounds)
        here = folder / str(rounds)
        _write_images(here, files, rng)
        parts = [f"Folder:root={here}"]
        for number in range(10):
            _write_tar(here / f"{number}.tar", files, rng)
            _write_h5(here / f"{number}.h5", tile, rng)
            for spec in (f"Tar:shards={here}/{number}.tar", f"H5:root={here}/{number}.h5"):
                try:
                    _decode_some(make_dataset(spec))
                except DatasetError:
                    continue
                parts.append(spec)
        slides = here / "slides"
        slides.mkdir()
        victim = list(whole)[int(rng.integers(len(whole)))]
        for name, content in whole.items():
            (slides / name).write_bytes(_mutate(content, rng) if name == victim else content)
        spec = f"Slides:manifest={slides}/slides.csv:coords={slides}"
        try:
            _decode_some(make_dataset(spec))
        except DatasetError:
            (slides / victim).write_bytes(whole[victim])
        parts.append(spec)
        (here / "mix.yaml").write_text("datasets:\n" + "".join(f"- spec: '{part}'\n  weight: 1\n" for part in parts))
        loader = make_loader(
            make_dataset(f"Mix:{here}/mix.yaml"),
            crops,
            IbotSection(),
            patch_size=8,
            global_batch_size=8,
            seed=rounds,
            num_workers=2,
            max_bad_fraction=1.0,
            augment="device" if rounds % 2 else "worker",
        )
        for batch in islice(loader, 8):
            assert batch.global_crops.isfinite().all()
        assert loader.monitor.paths
        rounds += 1
    return rounds


def _slides_parts(folder: Path, write_slide: Callable[..., Path]) -> list[Path]:
    """A manifest of two slides, of OpenSlide and of Pillow, and their coordinates; the files that can be damaged."""
    image = np.random.default_rng(0).integers(0, 256, (100, 120, 3)).astype(np.uint8)
    slides = [write_slide(folder / "a.tif", image), folder / "b.png"]
    Image.fromarray(image).save(slides[1])
    for path in slides:
        with open_slide(path) as slide:
            made = Coordinates(path.stem, (120, 100), np.array([[0, 0], [40, 9]]), geometry_at_level(slide, 0, 32, 0.5))
            write_coordinates(folder / f"{path.stem}.h5", made, slide)
    (folder / "slides.csv").write_text("slide,note\na.tif,one\nb.png,two\n")
    return [folder / name for name in ("slides.csv", "a.h5", "b.h5", "a.tif", "b.png")]


@pytest.mark.parametrize("rounds", [150, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_damaged_slides(tmp_path: Path, write_slide: Callable[..., Path], rounds: int) -> None:
    spec = f"Slides:manifest={tmp_path}/slides.csv:coords={tmp_path}"
    parts = {path: path.read_bytes() for path in _slides_parts(tmp_path, write_slide)}
    assert len(make_dataset(spec)) == 4
    refused = []
    for number in range(rounds):
        path = list(parts)[number % len(parts)]
        path.write_bytes(_mutate(parts[path], np.random.default_rng(number)))
        try:
            _decode_some(make_dataset(spec))
        except DatasetError as error:
            refused.append(str(error))
        path.write_bytes(parts[path])
    assert all(refused)
    assert 0 < len(refused) < rounds


def test_damaged_mixtures(tmp_path: Path, tiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = b"datasets:\n- {spec: 'Folder:root=tiles', weight: 2}\n- {spec: 'Folder:root=.', weight: 1}\n"
    odd = [b"2001-99-99", b"[" * 3000, b"1" * 400, b"1" * 5000, b".inf", b"0x", b"*a", b"&a [*a]", b"!!binary x"]
    contents = [whole.replace(b"2", value) for value in odd]
    contents += [whole.replace(b"tiles", value) for value in (b"\xff", b"x" * 5000)]
    contents += [whole.replace(b"'Folder:root=tiles'", value) for value in (b'"Folder:root=\\0"', b'"Mix:\\ud800"')]
    contents += [_mutate(whole, np.random.default_rng(number)) for number in range(300)]
    refused = []
    for content in contents:
        (tmp_path / "mix.yaml").write_bytes(content)
        try:
            _decode_some(make_dataset("Mix:mix.yaml"))
        except DatasetError as error:
            refused.append(str(error))
    assert all(refused)
    assert 0 < len(refused) < len(contents)


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.parametrize("seconds", [3.0, pytest.param(60.0, marks=pytest.mark.slow)])
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.filterwarnings("ignore")
def test_damaged_files(
    tmp_path: Path,
    random_tile: Callable[..., Image.Image],
    write_slide: Callable[..., Path],
    small_crops: CropsSection,
    watchdog: Callable[[float], None],
    seconds: float,
) -> None:
    watchdog(seconds)
    before = _children()
    tile = random_tile(np.random.default_rng(0), 48, 48)
    assert _fuzz(tmp_path, tile, write_slide, small_crops, seconds) >= 1
    end = time.monotonic() + 10
    while _children() - before and time.monotonic() < end:
        time.sleep(0.05)
    assert _children() <= before


def test_nothing_but_damaged_files_stops_the_run(
    tmp_path: Path, random_tile: Callable[..., Image.Image], small_crops: CropsSection
) -> None:
    content = _encode(random_tile(np.random.default_rng(0)), "PNG")
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(content[: 60 + number])
    loader = make_loader(
        make_dataset(f"Folder:root={tmp_path}"),
        small_crops,
        IbotSection(),
        patch_size=8,
        global_batch_size=4,
        seed=0,
        num_workers=2,
    )
    with pytest.raises(TooManyBadTilesError):
        next(iter(loader))
