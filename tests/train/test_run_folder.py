"""Which configurations may go on in a run's folder."""

import pytest

from dinov2.train.run_folder import check_run_folder, write_config
from dinov2.utils.errors import RunFolderError


def test_where_crops_are_made_may_change_and_what_they_are_may_not(small, tmp_path):
    run = tmp_path / "run"
    write_config(run, small(data={"augment": "worker"}))
    check_run_folder(run, small(data={"augment": "device"}))
    with pytest.raises(RunFolderError, match=r"crops\.rotate90_p: 0\.0 there, 0\.75 here"):
        check_run_folder(run, small(crops={"rotate90_p": 0.75}))
    write_config(tmp_path / "named", small(crops={"normalize": "imagenet"}))
    check_run_folder(tmp_path / "named", small(crops={"normalize": "imagenet"}))
