"""Braces and wildcards."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov2.data.datasets.patterns import expand_braces, matching_files
from dinov2.data.errors import DatasetError


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a{8..11}", ["a8", "a9", "a10", "a11"]),
        ("a{008..010}.tar", ["a008.tar", "a009.tar", "a010.tar"]),
        ("{x,yy}/{0..1}", ["x/0", "x/1", "yy/0", "yy/1"]),
        ("{x,}z", ["xz", "z"]),
        ("{single}", ["{single}"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@given(first=st.integers(0, 500), count=st.integers(1, 50), width=st.integers(3, 6))
def test_ranges_count_with_zeros(first: int, count: int, width: int) -> None:
    pattern = f"t{{{first:0{width}d}..{first + count - 1:0{width}d}}}"
    assert expand_braces(pattern) == [f"t{number:0{width}d}" for number in range(first, first + count)]


@pytest.mark.parametrize("pattern", ["{5..3}", "{0..9999999}", "{0..9999}{0..9999}"])
def test_impossible_ranges(pattern: str) -> None:
    with pytest.raises(DatasetError, match="1,000,000"):
        expand_braces(pattern)


def test_files(tmp_path: Path) -> None:
    for name in ("a1.tar", "a2.tar", "b[1].tar"):
        (tmp_path / name).write_bytes(b"")
    assert matching_files("Tar", f"{tmp_path}/*{{1,2}}.tar") == [f"{tmp_path}/a1.tar", f"{tmp_path}/a2.tar"]
    assert matching_files("Tar", f"{tmp_path}/b[1].tar") == [f"{tmp_path}/b[1].tar"]
    with pytest.raises(DatasetError, match=r"no such file: .*a3\.tar, .*a4\.tar, .*a5\.tar and 1 more"):
        matching_files("Tar", f"{tmp_path}/a{{1..6}}.tar")
    with pytest.raises(DatasetError, match="no such file"):
        matching_files("Tar", f"{tmp_path}/c*.tar")
