"""Files that appear whole or not at all."""

import pytest

from dinov2.utils.files import replacing, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_success_leaves_the_file_only_and_makes_folders(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "one")
    write_text(tmp_path / "a" / "b.txt", "two")
    assert names(tmp_path / "a") == ["b.txt"]
    assert (tmp_path / "a" / "b.txt").read_text() == "two"


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "f.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("written", [True, False])
def test_failure_leaves_nothing_behind(tmp_path, error, written):
    path = tmp_path / "f.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:  # noqa: PT012
        if written:
            temporary.write_text("half")
        raise error
    assert names(tmp_path) == ["f.txt"]
    assert path.read_text() == "old"


def test_a_writer_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "f.txt"):
        pass
    assert names(tmp_path) == []


def test_a_private_temporary_file_ends_with_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_text("")
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("")
        temporary.chmod(0o600)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode
