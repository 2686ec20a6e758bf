"""`python -m eval.hest download`: fetches tasks of the public benchmark from the Hugging Face hub.

The hub's own client does the work, so that its environment counts: HF_TOKEN (or `hf auth login`), HF_ENDPOINT for a
mirror, HF_HUB_OFFLINE, HF_HOME. Files that are there already are not fetched again.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from eval.errors import EvalError, first_few, nearest
from eval.genes import PANEL_FILE, read_panel
from eval.splits import read_folds

REPOSITORY = "MahmoodLab/hest-bench"
TASKS = ("CCRCC", "COAD", "HCC", "IDC", "LUNG", "LYMPH_IDC", "PAAD", "PRAD", "READ", "SKCM")
EXAMPLES = """examples:
  HF_TOKEN=hf_... python -m eval.hest download --tasks COAD READ --out hest-bench
  HF_ENDPOINT=https://mirror.example.org python -m eval.hest download --out hest-bench   # all tasks, by a mirror

The data set is gated: accept its conditions once, at https://huggingface.co/datasets/MahmoodLab/hest-bench
Exit codes: 0 all tasks are there, 2 something given is wrong, or a task could not be fetched whole, 130 interrupted.
"""


def download(
    tasks: Sequence[str],
    out: Path,
    *,
    repository: str = REPOSITORY,
    revision: str | None = None,
    endpoint: str | None = None,
) -> list[Path]:
    """Fetch tasks into `out` and return their folders.

    Args:
        tasks: names of folders of the repository.
        out: bench root.
        repository: a data set of the hub in the benchmark's layout.
        revision: branch, tag or commit; the main branch by default.
        endpoint: address of the hub or a mirror; HF_ENDPOINT by default.

    Raises:
        EvalError: no network, no token, conditions not accepted, an unknown repository, revision or task, an address
            without http, a folder that cannot be written, or a task without all files that its folds name.
    """
    from huggingface_hub import constants, errors, snapshot_download

    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    if not endpoint.startswith(("http://", "https://")):
        raise EvalError(f"endpoint {endpoint!r}: it must start with https:// (--endpoint or HF_ENDPOINT).")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvalError(f"--out {out}: the folder cannot be made ({error}). Choose another one.") from error
    page = f"{endpoint}/datasets/{repository}"
    try:
        snapshot_download(
            repository,
            repo_type="dataset",
            revision=revision,
            local_dir=out,
            endpoint=endpoint,
            allow_patterns=[f"{task}/*" for task in tasks],
        )
    except errors.GatedRepoError as error:
        raise EvalError(
            f"{page}: access is refused. Log in there, accept the conditions of the data set, and give a token of that "
            "account: HF_TOKEN=hf_... or `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise EvalError(f"{page}: no revision {revision!r}. Leave --revision out for the newest.") from error
    except errors.RepositoryNotFoundError as error:
        raise EvalError(
            f"{page}: no such data set, or it needs a token (HF_TOKEN=hf_... or `hf auth login`). Check --repository."
        ) from error
    except errors.HFValidationError as error:
        raise EvalError(f"--repository {repository!r}: it must be ORGANISATION/NAME ({_first_line(error)}).") from error
    except Exception as error:  # the hub and its transport raise unrelated types
        if isinstance(error, OSError) and error.filename:
            raise EvalError(f"{out}: cannot be written ({error}). Make room there, or choose another --out.") from error
        offline = " HF_HUB_OFFLINE is set: unset it, or" if constants.HF_HUB_OFFLINE else " Check the network, set"
        raise EvalError(
            f"{page}: could not be reached ({type(error).__name__}: {_first_line(error)}).{offline} "
            f"HF_ENDPOINT for a mirror, or copy the folders of the tasks to {out} from another machine."
        ) from error
    folders = [out / task for task in tasks]
    if missing := [f.name for f in folders if not (f / "splits").is_dir()]:
        raise EvalError(
            f"{page}: no task {first_few(missing)} came from there. {nearest(missing[0], TASKS)} Names are as on that "
            f"page; a warning above says if the hub could not be reached and {out} was left as it is."
        )
    for folder in folders:  # without network the client is content with whatever is there
        try:
            read_folds(folder)
            read_panel(folder / PANEL_FILE)
        except EvalError as error:
            raise EvalError(f"{folder}: not a whole task ({error}) Download it again, with network.") from error
    return folders


def main(argv: Sequence[str]) -> None:
    """`python -m eval.hest download ...`."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.hest download",
        description="Fetch tasks of the public HEST benchmark from the Hugging Face hub.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK", help=f"default: {' '.join(TASKS)}")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="bench root, for --bench-root")
    parser.add_argument("--repository", default=REPOSITORY, help=f"default: {REPOSITORY}")
    parser.add_argument("--revision", help="branch, tag or commit (default: the newest)")
    parser.add_argument("--endpoint", metavar="URL", help="hub or mirror (default: HF_ENDPOINT, else huggingface.co)")
    args = parser.parse_args(argv)
    folders = download(args.tasks, args.out, repository=args.repository, revision=args.revision, endpoint=args.endpoint)
    print("\n".join(f"written: {folder}" for folder in folders))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:160]
