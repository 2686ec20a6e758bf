import hashlib
import json
import os

import pytest

from eval import file_hashes
from eval.file_hashes import FileHashes
from eval.hest_run import Work, run


def write(path, text, seconds=1_700_000_000):
    path.write_text(text)
    os.utime(path, (seconds, seconds))


@pytest.fixture
def read(monkeypatch):
    """Names of the files that were read."""
    found, original = [], file_hashes.file_hash

    def watched(path):
        found.append(path.name)
        return original(path)

    monkeypatch.setattr(file_hashes, "file_hash", watched)
    return found


def test_a_file_is_read_once(tmp_path, read):
    file, cache = tmp_path / "a.h5", tmp_path / "cache"
    write(file, "one")
    expected = hashlib.sha256(b"one").hexdigest()
    hashes = FileHashes(cache)
    assert [hashes(file), hashes(file)] == [expected] * 2
    assert not cache.exists()  # before it is saved
    hashes.save()
    assert FileHashes(cache)(file) == expected
    assert read == ["a.h5"]


def test_a_changed_file_is_read_again(tmp_path, read):
    file = tmp_path / "a.h5"
    write(file, "one")
    hashes = FileHashes(tmp_path)
    hashes(file)
    hashes.save()
    write(file, "two", 1_700_000_001)  # of the same size
    assert FileHashes(tmp_path)(file) == hashlib.sha256(b"two").hexdigest()
    write(file, "three")  # of the same time
    assert FileHashes(tmp_path)(file) == hashlib.sha256(b"three").hexdigest()
    assert len(read) == 3


def test_a_file_written_just_now_is_not_kept(tmp_path, read):
    (tmp_path / "a.h5").write_text("one")
    hashes = FileHashes(tmp_path)
    hashes(tmp_path / "a.h5")
    hashes(tmp_path / "a.h5")
    hashes.save()
    assert len(read) == 2
    assert not (tmp_path / "hashes.json").exists()


def test_two_runs_keep_each_others_hashes(tmp_path, read):
    for name in "ab":
        write(tmp_path / name, name)
    first, second = FileHashes(tmp_path), FileHashes(tmp_path)
    first(tmp_path / "a")
    second(tmp_path / "b")
    first.save()
    second.save()
    third = FileHashes(tmp_path)
    third(tmp_path / "a")
    third(tmp_path / "b")
    assert read == ["a", "b"]


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": [1, "x", "y"]}', '{"a": [1, 2]}'])
def test_a_damaged_file_is_written_anew(tmp_path, text):
    write(tmp_path / "a", "a")
    (tmp_path / "hashes.json").write_text(text)
    hashes = FileHashes(tmp_path)
    assert hashes(tmp_path / "a") == hashlib.sha256(b"a").hexdigest()
    hashes.save()
    assert list(json.loads((tmp_path / "hashes.json").read_text())) == [str((tmp_path / "a").resolve())]


def test_a_folder_that_cannot_be_written(tmp_path, caplog):
    write(tmp_path / "a", "a")
    (tmp_path / "cache").write_text("no folder")
    hashes = FileHashes(tmp_path / "cache")
    assert hashes(tmp_path / "a") == hashlib.sha256(b"a").hexdigest()
    hashes.save()
    assert "hashes of files cannot be kept" in caplog.text


def test_a_second_run_hashes_no_file_of_the_task(bench, tmp_path, read):
    for path in (bench / "TOY").rglob("*.h5*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    work = Work(progress=False, cache=tmp_path / "cache")
    (first,) = run(["color-stats"], bench, ["TOY"], tmp_path / "a", work=work)
    assert sorted(read) == ["A.h5", "A.h5ad", "B.h5", "B.h5ad", "C.h5", "C.h5ad"]
    (second,) = run(["color-stats"], bench, ["TOY"], tmp_path / "b", work=work)
    assert len(read) == 6
    assert (first["data_hash"], first["content_hash"]) == (second["data_hash"], second["content_hash"])
