"""Mixtures: shares, epochs of the parts, and files that say nothing useful."""

from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov2.data import samplers
from dinov2.data.datasets import Folder, Mix, Mixture, TileDataset, make_dataset
from dinov2.data.datasets.base import part_of
from dinov2.data.errors import DatasetError
from dinov2.data.samplers import MIX_BLOCK, MixedStream, ShuffledStream, apportion, make_stream
from dinov2.data.samples import SampleStream
from dinov2.utils.schema import CropsSection

WriteMix = Callable[[str], Path]


@pytest.fixture
def folders(tmp_path: Path, write_tiles: Callable[..., list[Path]]) -> Path:
    """Folders a (3 tiles), b (5) and c (2) below one."""
    for number, (name, count) in enumerate((("a", 3), ("b", 5), ("c", 2))):
        write_tiles(tmp_path / name, count, seed=number)
    return tmp_path


@pytest.fixture
def write_mix(folders: Path) -> WriteMix:
    """`write_mix(text)`: a configuration in which ROOT is the folder of the folders."""

    def write(text: str) -> Path:
        path = folders / "mix.yaml"
        path.write_text(text.replace("ROOT", str(folders)))
        return path

    return write


def test_tiles_are_those_of_the_parts_in_order(write_mix: WriteMix, folders: Path) -> None:
    path = write_mix("datasets: [{spec: 'Folder:root=ROOT/b', weight: 1}, {spec: 'Folder:root=ROOT/a', weight: 3.5}]")
    mix = make_dataset(f"Mix:{path}")
    assert isinstance(mix, TileDataset)
    assert isinstance(mix, Mixture)
    assert mix.weights == [1.0, 3.5]
    parts = [Folder(str(folders / "b")), Folder(str(folders / "a"))]
    tiles = [(part, i) for part in parts for i in range(len(part))]
    assert [mix.path(i) for i in range(len(mix))] == [part.path(i) for part, i in tiles]
    assert all(torch.equal(mix.decode(i), part.decode(j)) for i, (part, j) in enumerate(tiles))
    with pytest.raises(IndexError):
        mix.decode(8)


def test_without_weights_all_tiles_are_alike(write_mix: WriteMix) -> None:
    mix = Mix(str(write_mix("datasets: [{spec: 'Folder:root=ROOT/a'}, {spec: 'Folder:root=ROOT/b'}]")))
    assert mix.weights == [3.0, 5.0]
    counts = Counter(make_stream(mix, 0).indices_at(np.arange(MIX_BLOCK)).tolist())
    assert max(counts.values()) - min(counts.values()) <= 1


def test_mixtures_of_mixtures(write_mix: WriteMix, folders: Path) -> None:
    inner = write_mix("datasets: [{spec: 'Folder:root=ROOT/a', weight: 9}, {spec: 'Folder:root=ROOT/b', weight: 1}]")
    inner.rename(folders / "inner.yaml")
    outer = write_mix("datasets: [{spec: 'Mix:ROOT/inner.yaml', weight: 1}, {spec: 'Folder:root=ROOT/c', weight: 1}]")
    stream = make_stream(Mix(str(outer)), 4)
    counts = np.bincount(stream.indices_at(np.arange(MIX_BLOCK)), minlength=10)
    for tiles, share in ((slice(0, 3), 0.45), (slice(3, 8), 0.05), (slice(8, 10), 0.5)):
        assert counts[tiles].sum() / MIX_BLOCK == pytest.approx(share, abs=0.001)


@settings(deadline=None, max_examples=10)
@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    weights=st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=5),
    seed=st.integers(0, 2**63),
    start=st.integers(0, 5 * MIX_BLOCK),
)
def test_parts_are_gone_through_in_their_own_epochs(
    sizes: list[int], weights: list[float], seed: int, start: int
) -> None:
    streams = [ShuffledStream(size, seed + number) for number, size in enumerate(sizes)]
    mixed = MixedStream(streams, sizes, weights[: len(sizes)], seed)
    block = start // MIX_BLOCK
    tiles = mixed.indices_at(np.arange(block * MIX_BLOCK, (block + 1) * MIX_BLOCK))
    begin = 0
    for size, count, stream in zip(sizes, mixed.counts, streams, strict=True):
        mine = np.sort(tiles[(tiles >= begin) & (tiles < begin + size)] - begin)
        assert (mine == np.sort(stream.indices_at(np.arange(block * count, (block + 1) * count)))).all()
        begin += size
    for position in range(start, start + 5):
        assert mixed.index_at(position) == mixed.indices_at([position])[0]


def test_shares_are_even_within_a_block() -> None:
    mixed = MixedStream([ShuffledStream(10**6, 0), ShuffledStream(10**6, 1)], [10**6] * 2, [3, 1], 5)
    assert mixed.counts == [49152, 16384]
    first = (mixed.indices_at(np.arange(MIX_BLOCK)) < 10**6).reshape(64, 1024).sum(1)  # expected 768, sd 13.8
    assert 700 < first.min() <= first.max() < 836


@given(
    weights=st.lists(st.floats(1e-300, 1e308), min_size=1, max_size=40),
    total=st.integers(40, 10**6),
)
def test_apportionment(weights: list[float], total: int) -> None:
    counts = apportion(weights, total)
    assert sum(counts) == total
    assert min(counts) >= 1
    exact = np.array([weight / max(weights) for weight in weights])
    exact *= total / exact.sum()
    assert np.abs(counts - exact).max() <= len(weights)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: []", "is an empty mixture; write datasets:"),
        ("", "must hold the key 'datasets'"),
        ("- a", "must hold the key 'datasets'"),
        ("datasets: [{spec: x}]\nseed: 1", "and nothing else"),
        ("datasets: [x", "cannot be read"),
        ("datasets: ['Folder:root=ROOT/a']", "is no data set; write"),
        ("datasets: [{spec: 'Folder:root=ROOT/a', wieght: 1}]", "no key 'wieght'; did you mean 'weight'"),
        ("datasets: [{spec: 'Folder:root=ROOT/a', weight: 0}]", "is 0; it must be a positive number"),
        ("datasets: [{spec: 'Folder:root=ROOT/a', weight: -1}]", "is -1"),
        ("datasets: [{spec: 'Folder:root=ROOT/a', weight: .nan}]", "is nan"),
        ("datasets: [{spec: 'Folder:root=ROOT/a', weight: .inf}]", "is inf"),
        ("datasets: [{spec: 'Folder:root=ROOT/a', weight: yes}]", "is True"),
        ("datasets: [{spec: 'Folder:root=ROOT/a', weight: many}]", "is 'many'"),
        ("datasets: [{spec: 'Folder:root=ROOT/a', weight: 1}, {spec: 'Folder:root=ROOT/b'}]", "1 weights for 2 data"),
        ("datasets: [{spec: 'Folder:root=ROOT/a'}, {spec: 'Folder:root=ROOT/a'}]", "twice; give it once"),
        (
            "datasets: [{spec: 'Folder:root=ROOT/a'}, {spec: 'Folder:ROOT/b/../a/:refresh=always'}]",
            "also as .* twice; give",
        ),
        ("datasets: [{spec: 'Folder:root=ROOT/a'}, {spec: 'Folder:ROOT/link'}]", "also as .* twice; give it once"),
        ("datasets: [{spec: 'Foldr:root=ROOT/a'}]", "did you mean 'Folder'"),
        ("datasets: [{spec: 'Folder:root=ROOT/none'}]", "none does not exist"),
        ("datasets: [{spec: 'Mix:ROOT/mix.yaml'}]", "contains itself"),
    ],
)
def test_useless_mixtures(write_mix: WriteMix, folders: Path, text: str, message: str) -> None:
    (folders / "link").symlink_to(folders / "a")
    with pytest.raises(DatasetError, match=message):
        Mix(str(write_mix(text)))


def test_a_folder_within_another_is_said(write_mix: WriteMix, caplog: pytest.LogCaptureFixture) -> None:
    Mix(str(write_mix("datasets: [{spec: 'Folder:ROOT/a'}, {spec: 'Folder:ROOT/b'}]")))
    assert not caplog.records
    Mix(str(write_mix("datasets: [{spec: 'Folder:ROOT/a'}, {spec: 'Folder:root=ROOT'}]")))
    (record,) = caplog.records
    assert "/a' and 'Folder:root=" in record.getMessage()
    assert "one lies within the other; its tiles belong to both" in record.getMessage()


def test_replacements_are_of_the_same_part(write_mix: WriteMix, folders: Path, small_crops: CropsSection) -> None:
    inner = write_mix("datasets: [{spec: 'Folder:root=ROOT/a', weight: 9}, {spec: 'Folder:root=ROOT/c', weight: 1}]")
    inner.rename(folders / "inner.yaml")
    outer = Mix(
        str(write_mix("datasets: [{spec: 'Folder:ROOT/b', weight: 1}, {spec: 'Mix:ROOT/inner.yaml', weight: 1}]"))
    )
    assert [part_of(outer, index) for index in (0, 4, 5, 7, 8, 9)] == [range(5)] * 2 + [range(5, 8)] * 2 + [
        range(8, 10)
    ] * 2
    for name in ("a/tile_001.png", "c/tile_000.png"):
        (folders / name).write_bytes(b"")
    stream = SampleStream(outer, small_crops, 0)
    replaced = [sample for sample in map(stream.__getitem__, range(200)) if sample.bad]
    assert len({sample.bad[0][0] for sample in replaced}) == 2
    assert all(Path(sample.path).parent == Path(sample.bad[0][0]).parent for sample in replaced)


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    weights=st.lists(st.floats(1e-2, 1e2), min_size=4, max_size=4),
    phases=st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 20)), min_size=1, max_size=5),
)
def test_nothing_is_lost_or_repeated_when_ranks_change(
    sizes: list[int], weights: list[float], phases: list[tuple[int, int]]
) -> None:
    """Of a mixture, with blocks of 48 samples: each part's epochs hold its tiles once, whatever the ranks."""
    seen: list[int] = []
    step = 0
    with patch.object(samplers, "MIX_BLOCK", 48):
        for world_size, steps in phases:
            streams = [ShuffledStream(size, number) for number, size in enumerate(sizes)]
            mixed = MixedStream(streams, sizes, weights[: len(sizes)], 1)
            ranks = [samplers.RankBatchSampler(12, rank, world_size, step) for rank in range(world_size)]
            for parts in islice(zip(*ranks, strict=True), steps):
                seen += [mixed.index_at(position) for part in parts for position in part]
            step += steps
    blocks = len(seen) // 48
    begin = 0
    for size, count in zip(sizes, mixed.counts, strict=True):
        drawn = np.array([tile - begin for tile in seen[: 48 * blocks] if begin <= tile < begin + size], dtype=int)
        assert len(drawn) == blocks * count
        times = np.bincount(drawn, minlength=size)
        assert times.max() - times.min() <= 1
        begin += size


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"Mix:.*nothing\.yaml cannot be read"):
        make_dataset(f"Mix:{tmp_path}/nothing.yaml")


@pytest.mark.parametrize(
    ("streams", "weights", "message"),
    [(0, [], "cannot be mixed"), (2, [1.0], "cannot be mixed"), (2, [1.0, 0.0], "must be positive")],
)
def test_impossible_mixed_streams(streams: int, weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixedStream([ShuffledStream(2, 0)] * streams, [2] * streams, weights, 0)
