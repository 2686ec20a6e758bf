"""Tiles that cannot be decoded: counted in the metrics, and named once in the run folder, restarts included."""

import json

from dinov2.train.bad_tile_log import BAD_TILES_FILE, BadTileLog
from dinov2.train.trainer import Trainer


def test_a_run_names_a_bad_tile_once(small, tmp_path, tiles):
    (tiles / "03.png").write_bytes(b"")
    for steps in (4, 8):  # an epoch is three steps
        assert Trainer(small(train={"max_steps": steps}), tmp_path / "run").run() == 0
    (row,) = (json.loads(line) for line in (tmp_path / "run" / BAD_TILES_FILE).read_text().splitlines())
    assert (row["path"], row["reason"]) == (str(tiles / "03.png"), "an empty file")
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    met = [line["iteration"] for line in metrics if line["bad_tiles"]]
    assert met[0] == row["iteration"]
    assert len(met) >= 2
    assert sum(line["bad_tiles"] for line in metrics[:3]) == 1


def test_lines_that_a_kill_cut_off_do_no_harm(tmp_path):
    BadTileLog(tmp_path).add(3, [("/a.png", "cut off"), ("/b\udcff.png", "empty"), ("/a.png", "cut off")])
    path = tmp_path / BAD_TILES_FILE
    assert [json.loads(line)["path"] for line in path.read_text().splitlines()] == ["/a.png", "/b\udcff.png"]
    path.write_text(path.read_text()[:-9])
    again = BadTileLog(tmp_path)
    again.add(4, [("/a.png", "cut off"), ("/c.png", "empty")])
    assert [json.loads(line)["path"] for line in path.read_text().splitlines()] == ["/a.png", "/c.png"]


def test_a_full_disk_does_not_stop_a_run(tmp_path, caplog):
    log = BadTileLog(tmp_path)
    (tmp_path / BAD_TILES_FILE).mkdir()
    log.add(1, [("/a.png", "cut off")])
    assert "cannot be written" in caplog.text
