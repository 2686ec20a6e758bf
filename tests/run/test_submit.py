"""Submitting: the command line, what sbatch is given, tasks on this machine, and how a task begins and ends."""

import os
import signal
import sys
from pathlib import Path

import cloudpickle
import pytest
import torch
import torch.distributed as dist

from dinov2.distributed.launch import find_launch
from dinov2.distributed.process_group import process_group
from dinov2.run.executor import Resources, start_jobs
from dinov2.run.options import build_parser, minutes
from dinov2.run.submit import main, make_tasks
from dinov2.run.task import TaskFailedError, conclude, local_ranks, release_signals
from dinov2.train.run_folder import write_config
from dinov2.utils.config import load_config
from dinov2.utils.errors import UserError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # jobs cannot import the tests


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """An sbatch that keeps the file it is given; with `REFUSE` set, it refuses."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun").write_text("#!/bin/sh\n")
    refuse = "if [ -n \"$REFUSE\" ]; then echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1; fi\n"
    (programs / "sbatch").write_text(f'#!/bin/sh\n{refuse}cp "$1" {tmp_path}/submitted; echo Submitted batch job 41\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    return tmp_path / "submitted"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("2-00", 2880), ("1-06:30", 1830), ("12:30:00", 750), ("0:02:00", 2), ("5:00", 5), ("0-00:01:30", 1)],
)
def test_time_limits(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["now", "0", "soon", "1:2:3:4", "0:30", "-5"])
def test_bad_time_limits(text):
    with pytest.raises(ValueError, match=text):
        minutes(text)


def test_what_sbatch_is_given(sbatch, recipe, tmp_path, capsys):
    options = "--nodes 3 --ngpus 8 --partition gpu --time 2-00 --mem 64G --cpus-per-task 12 --qos high --account lab "
    options += "--constraint h100 --comment paper --exclude n7"
    run = tmp_path / "run"
    files = ["--config-file", str(recipe), "--output-dir", str(run)]
    assert main([*options.split(), *files, "train.max_steps=1"]) == 0
    lines = sbatch.read_text().splitlines()
    expected = "nodes=3 ntasks-per-node=8 gpus-per-node=8 partition=gpu time=2880 mem=64G cpus-per-task=12 qos=high "
    expected += (
        "account=lab constraint=h100 comment=paper exclude=n7 signal=USR2@120 open-mode=append job-name=pretrain"
    )
    assert {f"#SBATCH --{option}" for option in expected.split()} | {"#SBATCH --requeue"} <= set(lines)
    (command,) = (line for line in lines if line.startswith("srun"))
    assert "--kill-on-bad-exit=1" in command
    assert "--cpus-per-task=12" in command
    told = capsys.readouterr().out
    for text in ("job 41", f"{run}/submitit/41/41_0_log.out", "squeue --jobs 41", "scancel 41"):
        assert text in told


def test_an_array_of_configurations(sbatch, recipe, tmp_path, capsys):
    other = tmp_path / "other.yaml"
    other.write_text(recipe.read_text())
    files = ["--output-dir", str(tmp_path / "runs"), "--array-of-configs", str(recipe), str(other), "train.max_steps=1"]
    assert main([*files, "--ngpus", "0"]) == 0
    script = sbatch.read_text()
    assert "#SBATCH --array=0-1%2" in script
    assert "gpus" not in script
    assert capsys.readouterr().out.count("submitted job 41_") == 2
    tasks = make_tasks(build_parser().parse_intermixed_args([*files, "--force"]), 1)
    assert [Path(task.arguments[3]).name for task in tasks] == ["recipe", "other"]
    assert all(task.arguments[4:] == ("--force", "train.max_steps=1") for task in tasks)


def test_errors_before_anything_is_submitted(sbatch, recipe, tmp_path, capsys, monkeypatch):
    run = ["--output-dir", str(tmp_path / "run")]
    assert main(["--config-file", str(recipe), *run, "train.max_stesp=1"]) == 2
    assert "did you mean 'max_steps'" in capsys.readouterr().err
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "recipe.yaml").write_text("")
    assert main(["--array-of-configs", str(recipe), str(tmp_path / "b" / "recipe.yaml"), *run]) == 2
    assert "same name" in capsys.readouterr().err
    assert main(["--cluster", "local", "--nodes", "2", "--config-file", str(recipe), *run]) == 2
    assert "--nodes 2" in capsys.readouterr().err
    monkeypatch.setenv("REFUSE", "1")
    assert main(["--config-file", str(recipe), *run]) == 2
    assert "invalid partition specified: gpu" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["--config-file", str(recipe), *run]) == 2
    assert "--cluster local" in capsys.readouterr().err
    assert not sbatch.exists()


def test_what_would_fail_when_the_job_begins_fails_now(sbatch, recipe, tmp_path, capsys):
    run = tmp_path / "run"
    command = ["--config-file", str(recipe), "--output-dir", str(run), "--ngpus", "8", "--nodes", "3"]
    assert main([*command, "train.global_batch_size=100"]) == 2
    message = "train.global_batch_size = 100: not divisible by 24 processes; the nearest is 96"
    assert message in capsys.readouterr().err
    assert main([*command, "parallel.strategy=none"]) == 2
    assert "parallel.strategy = none: 24 processes were started" in capsys.readouterr().err
    assert main([*command, "--time", "1:00:00", "train.stop_before_minutes=60"]) == 2
    assert "train.stop_before_minutes = 60: must be less than the job's time limit, 60" in capsys.readouterr().err
    assert not run.exists()
    config = load_config(str(recipe), ["train.global_batch_size=96", "optim.base_lr=0.1"])
    write_config(run, config)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "optim.base_lr: 0.1 there, 0.002 here" in error
    assert "--force to go on with the new values" in error
    assert not sbatch.exists()
    assert main([*command, "--force"]) == 0
    assert sbatch.exists()
    assert "base_lr: 0.1" in (run / "config.yaml").read_text()


def test_a_job_on_this_machine(recipe, tmp_path, capfd):
    run = tmp_path / "run"
    local = ["--cluster", "local", "--ngpus", "0", "--config-file", str(recipe), "--output-dir", str(run)]
    assert main(local) == 0
    assert (run / "teacher.safetensors").is_file()
    assert "finished" in capfd.readouterr().out
    assert main([*local, "--force", "train.dataset_path=Folder:root=/nowhere"]) == 1
    assert "exit code 2" in capfd.readouterr().err
    assert "/nowhere" in "".join(path.read_text() for path in (run / "submitit").glob("*/*_log.err"))


def test_a_job_in_this_process(recipe, tmp_path, capsys):
    debug = ["--cluster", "debug", "--ngpus", "0", "--config-file", str(recipe), "--output-dir", str(tmp_path / "run")]
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)]
    assert main(debug) == 0
    assert (tmp_path / "run" / "teacher.safetensors").is_file()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)] == before


def add_over_ranks() -> tuple[int, list[str]]:
    """Return the sum over ranks and the names of the signal handlers that submitit left."""
    release_signals()
    os.environ.update(local_ranks(os.environ))
    launch = find_launch(os.environ)
    with process_group(launch, "cpu", 1) as device:
        total = torch.tensor(launch.rank + 1, device=device)
        dist.all_reduce(total)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)]
    return int(total), [str(handler) for handler in handlers if handler != signal.SIG_DFL]


def test_tasks_on_this_machine_find_each_other_without_submitits_handlers(tmp_path):
    (job,) = start_jobs([add_over_ranks], "local", tmp_path, Resources(gpus=0, tasks_per_node=2, minutes=1))
    assert job.results() == [(3, []), (3, [])]


def test_no_slurm_here(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"srun.*--cluster local"):
        start_jobs([add_over_ranks], "slurm", tmp_path, Resources())


def test_how_a_task_ends():
    local = {"SUBMITIT_EXECUTOR": "local"}
    assert conclude(0, local) == 0
    for code in (1, 2):
        with pytest.raises(TaskFailedError, match=f"exit code {code}"):
            conclude(code, {})
    for code, environ, expected in [(140, {}, 140), (143, {}, 143), (140, local, 144), (124, local, 144)]:
        with pytest.raises(SystemExit) as ended:
            conclude(code, environ)
        assert ended.value.code == expected
    for code in (130, 143):  # whoever ended this process here meant it
        with pytest.raises(SystemExit) as ended:
            conclude(code, local)
        assert ended.value.code == code
