"""A disk that fills during a save: training goes on, the error is loud, and the old checkpoint stays."""

import logging

import pytest
from full_disk import small_disk

from dinov2.train.trainer import Trainer


class FillingTrainer(Trainer):
    """Fills the disk before its third step, and frees it before its seventh."""

    disk = None

    def _batches(self, start):
        for step, batch in enumerate(super()._batches(start), start):
            if step == 2:
                self.checkpointer.wait()
                self.disk.fill()
            if step == 6:
                self.names_while_full = {path.name for path in self.checkpointer.folder.iterdir()}
                self.disk.free()
            yield batch


@pytest.mark.parametrize("full", ["checkpoints", "run"])
def test_training_goes_on_with_a_full_disk(full, small, tmp_path, caplog):
    """Saves after 2, 4, 6 and 8 steps, of which the second finds no room; the third may, as it ends in the background.

    On the disk lie the checkpoints only, or the whole run folder with its metrics.
    """
    run = tmp_path / "run"
    with small_disk(tmp_path / "disk", 8) as disk, caplog.at_level(logging.ERROR):
        folder = disk.folder / "folder"
        trainer = FillingTrainer(small(train={"checkpoint_period_iterations": 2}), folder if full == "run" else run)
        if full == "checkpoints":
            folder.mkdir()
            run.mkdir()
            (run / "checkpoints").symlink_to(folder)
        trainer.disk = disk
        assert trainer.run() == 0
        assert "2" in trainer.names_while_full
        assert "4" not in trainer.names_while_full
        errors = [record.getMessage() for record in caplog.records if "CHECKPOINT 4 COULD" in record.getMessage()]
        assert len(errors) == 1
        assert "No space left on device" in errors[0]
        again = Trainer(small(), folder if full == "run" else run)
        assert again.checkpointer.iterations()[-1] == 8
