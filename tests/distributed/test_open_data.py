"""The data set is opened by all ranks alike: listed once, and refused by all where one has no or other tiles."""

import json
import os

import open_ranks
from processes import run_ranks
from small_runs import write_tiles


def test_ranks_open_the_data_together(tmp_path):
    write_tiles(tmp_path / "tiles")
    for name in ("only0", "only1"):
        write_tiles(tmp_path / name)
    write_tiles(tmp_path / "mine0")
    write_tiles(tmp_path / "mine1")
    (tmp_path / "mine1" / "03.png").unlink()
    for folder in tmp_path.iterdir():
        os.utime(folder, (1e9, 1e9))
    specs = [f"Folder:{tmp_path}/{name}" for name in ("tiles", "only{rank}x", "mine{rank}")]
    (tmp_path / "only0").rename(tmp_path / "only0x")
    codes, outputs = run_ranks(open_ranks.main, 2, [str(tmp_path / "cache"), *specs], tmp_path)
    assert codes == [0, 0], outputs
    first, second = ([json.loads(line) for line in text.splitlines() if line.startswith("{")] for text in outputs)
    assert [first[0], second[0]] == [{"outcome": 12, "listed": ["tiles"]}, {"outcome": 12, "listed": []}]
    assert first[1]["outcome"].startswith("DatasetError: rank 1 cannot open ")
    assert second[1]["outcome"].endswith("only1x does not exist")
    assert "only1x does not exist" in first[1]["outcome"]
    assert first[2]["outcome"].partition("': ")[2] == second[2]["outcome"].partition("': ")[2]
    assert "rank 1 finds 11 tiles (fingerprint " in first[2]["outcome"]


def test_a_failure_of_rank_0_fails_all_at_once(tmp_path):
    write_tiles(tmp_path / "1")
    codes, outputs = run_ranks(open_ranks.main, 2, [str(tmp_path / "cache"), f"Folder:{tmp_path}/{{rank}}"], tmp_path)
    assert codes == [0, 0], outputs
    first, second = (json.loads(text.splitlines()[-1])["outcome"] for text in outputs)
    assert first.endswith("/0 does not exist")
    assert second.startswith("DatasetError: rank 0 cannot open ")
