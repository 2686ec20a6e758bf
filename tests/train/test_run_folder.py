"""Which configurations and data may go on in a run's folder."""

from itertools import islice

import pytest

from dinov2.data.datasets import make_dataset
from dinov2.data.errors import DatasetError
from dinov2.train.run_folder import check_run_folder, check_same_data, write_config, write_dataset
from dinov2.train.trainer import Trainer
from dinov2.utils.errors import RunFolderError


def test_where_crops_are_made_may_change_and_what_they_are_may_not(small, tmp_path):
    run = tmp_path / "run"
    write_config(run, small(data={"augment": "worker"}))
    check_run_folder(run, small(data={"augment": "device"}))
    with pytest.raises(RunFolderError, match=r"crops\.rotate90_p: 0\.0 there, 0\.75 here"):
        check_run_folder(run, small(crops={"rotate90_p": 0.75}))
    write_config(tmp_path / "named", small(crops={"normalize": "imagenet"}))
    check_run_folder(tmp_path / "named", small(crops={"normalize": "imagenet"}))


def test_a_run_goes_on_with_the_tiles_it_began_with(small, tiles, tmp_path):
    run = tmp_path / "run"
    assert Trainer(small(train={"max_steps": 2}), run).run() == 0
    Trainer(small(train={"max_steps": 3}), run)
    (tiles / "99.png").write_bytes((tiles / "00.png").read_bytes())
    with pytest.raises(RunFolderError, match=r"has changed since the run in .*\n  tiles: 12 there, 13 here\n") as error:
        Trainer(small(train={"max_steps": 3}), run)
    assert "--force" in str(error.value)
    assert Trainer(small(train={"max_steps": 3}), run, force=True).run() == 0
    Trainer(small(train={"max_steps": 4}), run)  # what was forced counts from now on
    (tiles / "99.png").rename(tiles / "98.png")
    with pytest.raises(RunFolderError, match=r"began:\n  fingerprint: "):
        Trainer(small(train={"max_steps": 4}), run)
    (run / "dataset.json").unlink()  # a run of before there was such a file
    Trainer(small(train={"max_steps": 4}), run)


def test_weights_of_a_mixture_are_part_of_the_data(tiles, tmp_path):
    def mixture(weight):
        (tmp_path / "mix.yaml").write_text(f"datasets: [{{spec: 'Folder:root={tiles}', weight: {weight}}}]")
        return make_dataset(f"Mix:{tmp_path}/mix.yaml")

    write_dataset(tmp_path, mixture(2))
    check_same_data(tmp_path, mixture(2))
    with pytest.raises(RunFolderError, match=r"shares: \[\[2\.0, 12\]\] there, \[\[3\.0, 12\]\] here"):
        check_same_data(tmp_path, mixture(3))
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"dataset\.json cannot be read"):
        check_same_data(tmp_path, mixture(2))


def test_any_error_of_the_data_saves_the_state_first(small, tmp_path, monkeypatch):
    trainer = Trainer(small(), tmp_path / "run")
    whole = trainer._batches

    def failing(start):
        yield from islice(whole(start), 3)
        raise DatasetError("the store has gone")

    monkeypatch.setattr(trainer, "_batches", failing)
    with pytest.raises(DatasetError, match="the store has gone"):
        trainer.run()
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()
