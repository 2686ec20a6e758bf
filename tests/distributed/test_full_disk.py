"""The disk that other tests fill."""

import errno
import os

import pytest
from full_disk import MIB, small_disk


def test_a_full_disk_refuses_and_a_freed_one_takes(tmp_path):
    folder = tmp_path / "disk"
    with small_disk(folder, 2) as disk:
        (folder / "before").write_bytes(bytes(MIB))
        disk.fill()
        with pytest.raises(OSError) as caught:  # noqa: PT011  (its number says it)
            (folder / "more").write_bytes(bytes(MIB))
        assert caught.value.errno == errno.ENOSPC
        assert (folder / "before").stat().st_size == MIB
        (folder / "more").unlink()
        disk.free()
        (folder / "more").write_bytes(bytes(MIB // 2))
    assert not os.path.ismount(folder)
    assert list(folder.iterdir()) == []
