"""A loader process that dies, or has no shared memory: the error says what to do, and the state is saved first."""

import os
import signal
from pathlib import Path

import pytest
from torch import Tensor

from dinov2.data.errors import LoaderError
from dinov2.train.trainer import Trainer


def _children() -> set[int]:
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_the_state_is_saved_when_a_worker_is_killed(small, tmp_path, monkeypatch):
    config = small(train={"num_workers": 1, "checkpoint_period_iterations": 100}, optim={"epochs": 400})
    trainer, before = Trainer(config, tmp_path / "run"), _children()
    step = trainer.step.__call__
    steps = []

    def take(feed, values):
        steps.append(values)
        if len(steps) == 3:
            (worker,) = _children() - before
            os.kill(worker, signal.SIGKILL)
        return step(feed, values)

    monkeypatch.setattr(trainer, "step", _Callable(trainer.step, take))
    with pytest.raises(
        LoaderError, match=r"process is lost: .* in /dev/shm: lower train\.num_workers \(now 1; .*--shm-size"
    ):
        trainer.run()
    (saved,) = trainer.checkpointer.iterations()
    assert saved == len(steps) - 1 >= 2
    trainer = Trainer(small(train={"num_workers": 0, "max_steps": saved + 1}, optim={"epochs": 400}), tmp_path / "run")
    assert trainer.run() == 0


class _Callable:
    """A step whose call is another."""

    def __init__(self, step, call):
        self.__dict__.update(vars(step), call=call)

    def __call__(self, feed, values):
        return self.call(feed, values)


def test_too_little_shared_memory_is_said(small, tmp_path, monkeypatch):
    def refuse(tensor):
        raise RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")

    monkeypatch.setattr(Tensor, "share_memory_", refuse)
    with pytest.raises(LoaderError, match=r"does not fit into shared memory: .*No space left.*--shm-size"):
        Trainer(small(train={"num_workers": 1}), tmp_path / "run").run()
