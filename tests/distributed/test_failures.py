"""One rank's misfortune, met by all ranks alike: nothing hangs, nothing is lost, everybody knows whose it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import SMALL, write_tiles

from dinov2.train.train import main
from dinov2.utils.config import config_from_dict, to_yaml

PROGRAM = Path(__file__).with_name("fail_ranks.py")


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def outcomes(request, tmp_path_factory):
    """What both ranks saw of each scenario, and where."""
    folder = tmp_path_factory.mktemp(request.param)
    write_tiles(folder / "tiles")
    head = {"loss_weight": 1e-3}  # whose gradients are small enough for float16
    values = {key: dict(section) for key, section in SMALL.items()}
    values["dino"] |= head | {"koleo_loss_weight": 0.0}
    values["ibot"] |= head
    values["train"] |= {"dataset_path": f"Folder:root={folder / 'tiles'}", "output_dir": str(folder), "max_steps": 6}
    values["train"] |= {"global_batch_size": 4, "keep_last_checkpoints": 9}
    values["parallel"] = {"strategy": request.param}
    path = folder / "config.yaml"
    path.write_text(to_yaml(config_from_dict(values)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(PROGRAM), str(path)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            seen.setdefault(row["name"], {})[row["rank"]] = row
    return folder, seen, done.stderr


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_nan_on_one_rank_is_skipped_by_all(outcomes):
    folder, seen, log = outcomes
    assert all(row["code"] == 0 and row["finite"] for row in seen["skipped"].values())
    assert "step 2: student_cls_norm = nan on rank 1, teacher_cls_norm = nan on rank 1, " in log
    assert ", dino_global_crops_loss = nan on all ranks, " in log  # by Sinkhorn-Knopp
    assert [row["total_loss"] is None for row in metrics(folder / "skipped")] == [
        False,
        False,
        True,
        False,
        False,
        False,
    ]


def test_too_many_are_kept_by_all_and_blamed_on_one(outcomes, capsys):
    folder, seen, _ = outcomes
    for row in seen["diverged"].values():
        assert (row["error"], row["finite"]) == ("DivergenceError", True)
        assert "step 3: student_cls_norm = nan on rank 1" in row["text"]
        assert f"--replay {folder / 'diverged' / 'diverged' / '3' / 'rank1.pt'}" in row["text"]
    kept = folder / "diverged" / "diverged" / "3"
    assert {path.name for path in kept.iterdir()} == {"rank0.pt", "rank1.pt", "state"}
    assert main(["--replay", str(kept / "rank1.pt")]) == 1
    assert "of rank 1 of 2" in capsys.readouterr().out
    assert main(["--replay", str(kept / "rank0.pt")]) == 0


def test_data_that_fail_on_one_rank_stop_all_with_the_state_saved(outcomes):
    folder, seen, _ = outcomes
    assert seen["hungry"][1]["text"] == "all tiles of rank 1 are gone"
    assert "rank 1 has no more usable data: its log says why" in seen["hungry"][0]["text"]
    assert {"2", "3"} <= {path.name for path in (folder / "hungry" / "checkpoints").iterdir()}


def test_a_disk_full_on_one_rank_fails_that_save_for_all(outcomes):
    folder, seen, log = outcomes
    assert all(row["code"] == 0 for row in seen["full"].values())
    assert "CHECKPOINT 4 COULD NOT BE WRITTEN" in log
    assert "No space left on device" in log
    names = {path.name for path in (folder / "full" / "checkpoints").iterdir()}
    assert names == {"2", "6", "latest"}


def test_damage_that_one_rank_finds_sends_all_to_the_checkpoint_before(outcomes):
    folder, seen, log = outcomes
    assert all(row["code"] == 0 for row in seen["damaged"].values())
    assert "6 is damaged (__1_0.distcp has" in log
    assert "using that of step 4" in log
    assert (folder / "damaged" / "checkpoints" / "6.damaged").is_dir()


def test_float16_steps_are_taken(outcomes):
    folder, seen, _ = outcomes
    assert all(row["code"] == 0 and row["finite"] for row in seen["half"].values())
    rows = metrics(folder / "half")
    assert all(row["total_loss"] > 0 and row["loss_scale"] >= 1 for row in rows)
    assert rows[-1]["grad_norm_backbone"] > 0


def test_a_locked_folder_refuses_all(outcomes):
    _, seen, _ = outcomes
    assert [row["error"] for row in seen["locked"].values()] == ["RunFolderError"] * 2
