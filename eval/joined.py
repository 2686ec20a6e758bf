"""One results folder from several, such as those of one job an encoder: joint tables and a joint report."""

import shutil
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from dinov2.utils.files import replacing
from eval.compare import load_rows
from eval.errors import EvalError
from eval.results import add_results, read_results
from eval.tables import Row
from eval.tissue import tissue_name

OF_THE_ENCODER = ("pooling", "seed")  # settings that may differ between encoders; a row has its own pooling


def join_results(paths: Sequence[Path], out: Path, command: str | None = None) -> list[Row]:
    """Write the rows and maps of several results folders into one, and return the rows.

    An encoder that several folders have for one task is called FOLDER/ENCODER. What an earlier call has joined in `out`
    is replaced.

    Args:
        paths: results folders, or their results.json files.
        out: the folder to write, made if absent.
        command: recorded in the results.

    Raises:
        EvalError: results of one task on different data, of other settings, or of an encoder that has changed between
            them; or `out` is one of the folders, or holds something else.
    """
    folders = [path if path.is_dir() else path.parent for path in paths]
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise EvalError(f"--out {out}: it is one of the folders to join, and would be replaced. Use another --out.")
    if (out / "results.json").is_file() and "joined" not in read_results(out)["meta"]:
        raise EvalError(f"--out {out}: holds the results of a run, and would be replaced. Use another --out.")
    rows = load_rows(paths)
    found = [read_results(path) for path in paths]
    settings = _settings(paths, [content["meta"]["settings"] for content in found])
    for row in rows:
        del row["folder"], row["settings"]
        row["encoder"] = row.pop("label")
    _check_one(rows, "task", "content_hash", "its samples, patches or counts differ between the folders")
    _check_one(rows, "encoder", "encoder_key", "its weights or settings differ between the folders")
    owners = [folder for folder, content in zip(folders, found, strict=True) for _ in content["results"]]
    for row, folder in zip(rows, owners, strict=True):
        for name in (row["map"], tissue_name(row["task"], row["content_hash"])):
            if name and (folder / "maps" / name).is_file():
                with replacing(out / "maps" / name) as temporary:
                    shutil.copyfile(folder / "maps" / name, temporary)
    facts = {"command": command, "joined": [str(path) for path in paths]}
    return add_results(out, rows, settings, facts, force=True)


def _settings(paths: Sequence[Path], found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings of all; those of the encoder all named where they differ."""
    common = dict(found[0])
    for path, settings in zip(paths, found, strict=True):
        for name in sorted(common.keys() | settings.keys()):
            if name not in OF_THE_ENCODER and settings.get(name) != found[0].get(name):
                raise EvalError(
                    f"{path}: {name} {settings.get(name)!r}, but {found[0].get(name)!r} in {paths[0]}. Joint tables "
                    "have one setting; `python -m eval.compare` compares results of several."
                )
    for name in OF_THE_ENCODER:
        values = {str(settings.get(name)): settings.get(name) for settings in found}
        common[name] = found[0].get(name) if len(values) == 1 else ", ".join(sorted(values))
    return common


def _check_one(rows: Sequence[Row], what: str, which: str, why: str) -> None:
    """EvalError where rows of one `what` have more than one `which`."""
    known: dict[Hashable, Any] = {}
    for row in rows:
        if known.setdefault(row[what], row[which]) != row[which]:
            raise EvalError(f"{what} {row[what]}: {why}. Evaluate it anew, or leave one of the folders out.")
