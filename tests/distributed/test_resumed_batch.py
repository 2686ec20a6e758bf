"""The global batch that a run began with stays, whoever goes on with it, named in the configuration or not."""

import json

import pytest
from processes import run_ranks

from dinov2.run.submit import main as submit
from dinov2.train.run_folder import write_config
from dinov2.train.train import main
from dinov2.utils.config import load_config, to_yaml


@pytest.fixture
def recipe(small, tmp_path):
    """A configuration that leaves the global batch to the processes, four images for each."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(small()))
    return path


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_its_batch_on_another_number_of_processes(before, after, recipe, tmp_path):
    run = tmp_path / "run"
    for processes, steps in ((before, 2), (after, 4)):
        command = ["--config-file", str(recipe), "--output-dir", str(run), f"train.max_steps={steps}"]
        codes, outputs = run_ranks(main, processes, [command], tmp_path)
        assert codes == [0] * processes, "\n".join(outputs)
        assert load_config(run / "config.yaml").train.global_batch_size == 4 * before
        assert f"batch {4 * before} ({processes} x" in outputs[0]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4
    assert json.loads((run / "run.json").read_text())["global_batch_size"] == 4 * before


def test_submitting_knows_the_batch_of_the_run(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    write_config(run, load_config(recipe, ["train.global_batch_size=8"]))
    command = ["--cluster", "debug", "--ngpus", "0", "--config-file", str(recipe), "--output-dir", str(run)]
    assert submit([*command, "--tasks-per-node", "3"]) == 2
    message = "train.global_batch_size = 8: not divisible by 3 processes; the nearest is 9"
    assert message in capsys.readouterr().err
    assert submit([*command, "train.max_steps=1"]) == 0
    assert load_config(run / "config.yaml").train.global_batch_size == 8
