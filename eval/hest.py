"""Spatial-transcriptomics evaluation: `python -m eval.hest [run|manifest|prepare|download|report|submit] ...`."""

import importlib
import logging
import shlex
import sys
from collections.abc import Sequence

from dinov2.utils.errors import UserError
from eval.errors import EvalError, nearest
from eval.hest_options import extended_settings, fit_settings, parse
from eval.hest_run import Work, run
from eval.tables import terminal

# Each module has a `main(argv)`; they are imported when asked for.
COMMANDS = {
    "manifest": "eval.hest_manifest",
    "prepare": "eval.hest_prepare",
    "download": "eval.hest_download",
    "report": "eval.report",
    "submit": "eval.hest_submit",
}


def run_command(argv: Sequence[str]) -> None:
    """`python -m eval.hest [run]`."""
    args = parse(argv)
    specs = [f"checkpoint:{path}" for path in args.checkpoint] + args.encoder
    if not specs:
        raise EvalError("no encoder given. Use --checkpoint PATH or --encoder SPEC (see --help).")
    rows = run(
        specs,
        args.bench_root,
        args.tasks,
        args.out,
        fit=fit_settings(args),
        extended=extended_settings(args),
        pooling=args.pooling,
        seed=args.seed,
        work=Work(
            args.batch_size,
            args.device,
            args.cache,
            args.force,
            args.strict,
            tuple(args.map_genes),
            tuple(args.map_samples),
            command=shlex.join(["python", "-m", "eval.hest", *argv]),
        ),
    )
    print(terminal(rows))
    written = [args.out / name for name in ("results.json", "results.csv", "genes.csv", "results.md", "results.tex")]
    if not args.no_report:
        from eval.report import write_report

        written.append(write_report(args.out))
    print(f"\nwritten: {', '.join(map(str, written))}")


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to a subcommand (`run` when none is named).

    Returns:
        0 on success; with a line on stderr 2 for bad input, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        if arguments and arguments[0] in COMMANDS:
            importlib.import_module(COMMANDS[arguments[0]]).main(arguments[1:])
        elif arguments and not arguments[0].startswith("-") and arguments[0] != "run":
            choices = ("run", *COMMANDS)
            raise EvalError(f"unknown command {arguments[0]!r}. {nearest(arguments[0], choices)}")
        else:
            run_command(arguments[1:] if arguments[:1] == ["run"] else arguments)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\ninterrupted: what is written stays; the same command (without --force) goes on there.", file=sys.stderr
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
