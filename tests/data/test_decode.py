"""Files of every kind become the pixels that Pillow gives, or name themselves."""

import io
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2.data.datasets import Folder
from dinov2.data.datasets.decode import MAX_PIXELS, decode_bytes, decode_file
from dinov2.data.errors import BadTileError

TILE = Path(__file__).parents[3] / "shared" / "data" / "kather100"


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _pillow(data: bytes) -> torch.Tensor:
    """The reference: (3, H, W)."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 1), (64, 48), (47, 65)])
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 90}),
        ("JPEG", "RGB", {"quality": 60, "subsampling": 0, "progressive": True}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("PNG", "LA", {}),
        ("PNG", "1", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "CMYK", {}),
        ("WEBP", "RGB", {"lossless": True}),
    ],
)
def test_pixels_are_pillow_s(
    random_tile: Callable[..., Image.Image], kind: str, mode: str, options: dict[str, object], size: tuple[int, int]
) -> None:
    width, height = size
    data = _encode(random_tile(np.random.default_rng(0), height, width).convert(mode), kind, **options)
    tile = decode_bytes(data, "x")
    assert tile.dtype == torch.uint8
    assert tile.shape == (3, height, width)
    assert tile.is_contiguous()
    assert torch.equal(tile, _pillow(data))
    tile[:] = 0  # and they are ours to change


def test_alpha_is_dropped_and_not_composited() -> None:
    image = Image.new("RGBA", (4, 4), (9, 8, 7, 0))
    assert decode_bytes(_encode(image, "PNG"), "x")[:, 0, 0].tolist() == [9, 8, 7]


def test_palette_with_transparency(recwarn: pytest.WarningsRecorder) -> None:
    image = Image.new("RGB", (4, 4), (9, 8, 7)).convert("P")
    data = _encode(image, "PNG", transparency=b"\x00" * 256)
    assert torch.equal(decode_bytes(data, "x"), torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))
    assert not list(recwarn)


def _png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    """An RGB file; Pillow writes none with 16 bits a channel, and opens it as an 8-bit RGB image."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_more_than_8_bits_are_refused() -> None:
    grey = _encode(Image.fromarray(np.full((4, 4), 4000, dtype=np.uint16)), "PNG")
    real = _encode(Image.fromarray(np.zeros((4, 4), dtype=np.float32)), "TIFF")
    deep = _png(2, 2, 16, 2 * (b"\0" + bytes(range(12))))
    for data in (deep, grey, real):
        with pytest.raises(BadTileError, match="more than 8 bits a channel; convert it to 8-bit RGB"):
            decode_bytes(data, "x")


def test_huge_images_are_refused_before_they_are_decoded() -> None:
    png = _png(50_000, 50_000, 8, b"")
    jpeg = bytearray(_encode(Image.new("RGB", (8, 8)), "JPEG"))
    place = jpeg.index(b"\xff\xc0")
    jpeg[place + 5 : place + 9] = struct.pack(">HH", 50_000, 50_000)
    for data, words in ((png, "2500000000 pixels"), (bytes(jpeg), "50000 x 50000 px: more than 67,108,864 pixels")):
        with pytest.raises(BadTileError, match=words):
            decode_bytes(data, "x")


def test_long_images_within_the_limit_are_tiles() -> None:
    assert MAX_PIXELS > 50_000 * 8
    for kind in ("JPEG", "PNG"):
        assert decode_bytes(_encode(Image.new("RGB", (50_000, 8)), kind), "x").shape == (3, 8, 50_000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_truncated_files_are_refused(random_tile: Callable[..., Image.Image], kind: str, share: float) -> None:
    data = _encode(random_tile(np.random.default_rng(0)), kind)
    with pytest.raises(BadTileError) as caught:
        decode_bytes(data[: int(share * len(data))], "a/tile")
    assert caught.value.path == "a/tile"
    assert caught.value.reason
    assert " at 0x" not in caught.value.reason
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_what_is_no_image_names_itself(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"not an image")
    dataset = Folder(str(tmp_path))
    with pytest.raises(BadTileError, match=r"empty\.jpg: an empty file"):
        dataset.decode(0)
    with pytest.raises(BadTileError, match=r"text\.png: UnidentifiedImageError"):
        dataset.decode(1)
    with pytest.raises(BadTileError, match="FileNotFoundError"):
        decode_file(str(tmp_path / "gone.png"))


@pytest.mark.shared
@pytest.mark.skipif(not TILE.is_dir(), reason="needs the shared data beside the checkout")
def test_real_tiles_are_pillow_s() -> None:
    for path in sorted(TILE.glob("*/*.png"))[::10]:
        image = Image.open(path).convert("RGB")
        for data in (path.read_bytes(), _encode(image, "JPEG", quality=85)):
            assert torch.equal(decode_bytes(data, str(path)), _pillow(data))
