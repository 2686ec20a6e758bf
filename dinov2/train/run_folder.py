"""The output folder of a run: `config.yaml` first, `dataset.json` with it, and never two runs in one folder."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from dinov2.data.datasets import TileDataset
from dinov2.data.fingerprint import fingerprint, shares
from dinov2.train.run_lock import LOCK_FILE
from dinov2.utils.config import config_from_dict, config_to_dict, differing_keys, read_yaml, to_yaml
from dinov2.utils.errors import ConfigError, RunFolderError
from dinov2.utils.files import write_text
from dinov2.utils.schema import SSLConfig, TrainSection

DATASET_FILE = "dataset.json"
# Keys that do not change what is computed, and may differ when a run goes on.
FREE_KEYS = frozenset(
    {
        "train.output_dir",
        "train.max_steps",
        "train.num_workers",
        "train.num_threads",
        "train.saveckp_freq",
        "train.checkpoint_period_iterations",
        "train.keep_last_checkpoints",
        "train.log_period_iterations",
        "train.stop_before_minutes",
        "train.max_skipped_steps",
        "train.async_checkpoints",
        "evaluation.eval_period_iterations",
        "data.augment",  # the crops are the same but for a rounding to eight bits
        "data.max_bad_fraction",
    }
)
FREE_SECTIONS = ("kernels.", "parallel.")  # how it is computed, not what


def keep_global_batch(folder: Path, train: TrainSection) -> None:
    """Without a `train.global_batch_size`, set it to that of the run in the folder, if there is one.

    Otherwise the same command on fewer processes would go on with a smaller batch. A configuration there that cannot be
    used is left to `check_run_folder`.
    """
    path = folder / "config.yaml"
    if train.global_batch_size is None and path.is_file():
        with suppress(ConfigError):
            train.global_batch_size = config_from_dict(read_yaml(path)).train.global_batch_size


def check_run_folder(folder: Path, config: SSLConfig, force: bool = False) -> None:
    """Check that the folder is new or empty, or holds this very run; nothing is written.

    Raises:
        RunFolderError: it holds files of something else, or a run of another configuration (the differing keys), unless
            `force`.
    """
    path = folder / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"output folder {str(folder)!r} is a file; give a folder with --output-dir")
    if path.is_file():
        differing = differing_keys(_stored_values(path), config_to_dict(config))
        rows = [f"{key}: {a!r} there, {b!r} here" for key, (a, b) in differing.items() if not _is_free(key)]
        if rows and not force:
            raise RunFolderError(
                f"output folder {str(folder)!r} holds a run of another configuration:\n  "
                + "\n  ".join(rows)
                + "\ngive another --output-dir, or --force to go on with the new values"
            )
    elif folder.is_dir() and (names := _foreign_names(folder)) and not force:
        raise RunFolderError(
            f"output folder {str(folder)!r} is not empty and holds no config.yaml ({', '.join(names[:5])}); give a "
            "new or empty --output-dir, or --force to write into it"
        )


def _foreign_names(folder: Path) -> list[str]:
    """Return what lies in a folder before its first run, but for the logs of the job that is to run there."""
    return sorted(item.name for item in folder.iterdir() if item.name not in ("submitit", LOCK_FILE))


def _is_free(key: str) -> bool:
    return key in FREE_KEYS or key.startswith(FREE_SECTIONS)


def write_config(folder: Path, config: SSLConfig) -> None:
    """Write the resolved configuration to `config.yaml`, creating the folder."""
    write_text(folder / "config.yaml", to_yaml(config))


def check_same_data(folder: Path, dataset: TileDataset, force: bool = False) -> None:
    """Check that a run which goes on reads the tiles that it began with: others would repeat some and lose some.

    A folder without `dataset.json`, as of a new run, fits every data set.

    Raises:
        RunFolderError: the tiles, or a mixture's weights, are not those of the file, unless `force`; or it is damaged.
    """
    path = folder / DATASET_FILE
    if force or not path.is_file():
        return
    try:
        there = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RunFolderError(f"{path} cannot be read ({error}); give --force to go on with today's tiles") from error
    here = _describe(dataset)
    if there != here:
        rows = [f"{key}: {there.get(key)!r} there, {here[key]!r} here" for key in here if there.get(key) != here[key]]
        raise RunFolderError(
            f"the data set has changed since the run in {str(folder)!r} began:\n  "
            + "\n  ".join(rows)
            + "\nsamples would be repeated or lost: restore it, give another --output-dir, or --force to go on"
        )


def write_dataset(folder: Path, dataset: TileDataset) -> None:
    """Write what `check_same_data` compares to `dataset.json`."""
    write_text(folder / DATASET_FILE, json.dumps(_describe(dataset), indent=1) + "\n")


def _describe(dataset: TileDataset) -> dict[str, Any]:
    return {"tiles": len(dataset), "shares": shares(dataset), "fingerprint": fingerprint(dataset)}


def _stored_values(path: Path) -> dict[str, Any]:
    """Return a run's configuration with today's defaults for keys that did not exist when it was written."""
    values = read_yaml(path)
    try:
        return config_to_dict(config_from_dict(values))
    except ConfigError:
        return values
