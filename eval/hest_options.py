"""The command line of `python -m eval.hest run`, and YAML files that stand for a part of it."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.encoders import POOLINGS
from eval.errors import EvalError, nearest
from eval.extended import GENES_FROM, SPLIT_CHOICES, Extended
from eval.panels import CRITERIA, PanelRule
from eval.settings import HEADS, PROTOCOLS, SOLVERS, FitSettings

EXAMPLES = """
encoders:
  --checkpoint PATH               run or checkpoint folder, teacher.safetensors, DINOv2's teacher_checkpoint.pth
                                  or a released dinov2_*_pretrain.pth
  --encoder random:mvhybrid       an architecture with fresh weights (also random:CHECKPOINT_PATH)
  --encoder timm:NAME             pretrained, also timm:hf-hub:ORG/NAME; without network timm:NAME,pretrained=false
                                  or timm:NAME,checkpoint=FILE
  --encoder precomputed:FOLDER    embeddings made elsewhere, FOLDER/<sample>.h5 (embeddings, barcode) or .npy
  --encoder torchscript:FILE      ours needs no options; else torchscript:FILE,size=224,mean=R/G/B,std=R/G/B
  --encoder MODULE:FUNCTION       what a Python function returns: an encoder, or a pair (model, transform)
  --encoder color-stats           12 colour statistics: the baseline that an encoder must beat

examples:
  # the published benchmark
  python -m eval.hest --checkpoint runs/mvhybrid/teacher.safetensors --encoder color-stats \\
      --bench-root hest-bench --tasks IDC PRAD --out results/mvhybrid
  # random and leave-one-study-out splits with the 200 most variable genes, as configs/eval/hest_extended_hvg.yaml
  python -m eval.hest --config configs/eval/hest_extended_hvg.yaml --checkpoint runs/a runs/b \\
      --bench-root hest-extended --tasks CRC --out results/hvg --device cuda --batch-size 256

other commands: python -m eval.hest manifest|prepare|download|report|submit --help

OUT may hold earlier results: with the same settings rows are merged, otherwise it is an error unless --force is given.
Exit codes: 0 done, 2 something given is wrong, 130 interrupted.
"""
EXTENDED_ONLY = (
    "split", "folds", "fold_seed", "manifest", "genes", "n_genes", "hvg_pool", "genes_from", "genes_file",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `run`."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.hest [run]",
        description="Evaluate encoders on spatial gene expression: embed, fit a head fold by fold, report.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to evaluate")
    what.add_argument("--config", type=Path, metavar="YAML", help="options in a file; the command line replaces them")
    what.add_argument(
        "--checkpoint", nargs="+", action="extend", default=[], metavar="PATH", help="pretrained, see below"
    )
    what.add_argument("--encoder", nargs="+", action="extend", default=[], metavar="SPEC", help="others, see below")
    what.add_argument("--bench-root", type=Path, required=True, help="folder of the tasks")
    what.add_argument("--tasks", nargs="+", required=True, help="names of folders in the bench root")
    what.add_argument("--out", type=Path, required=True, help="results folder")
    _add_protocol(parser.add_argument_group("protocol"))
    _add_head(parser.add_argument_group("embedding and head"))
    work = parser.add_argument_group("execution")
    work.add_argument("--batch-size", type=int, default=64, help="patches a forward pass (default 64)")
    work.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    work.add_argument("--cache", type=Path, help="folder of cached embeddings (default: OUT/embeddings)")
    work.add_argument("--map-genes", nargs="+", default=[], metavar="GENE", help="genes drawn on slides in the report")
    work.add_argument(
        "--map-samples", nargs="+", default=[], metavar="SAMPLE", help="slides drawn (default: two largest)"
    )
    work.add_argument("--no-report", action="store_true", help="do not write OUT/report.html")
    work.add_argument("--force", action="store_true", help="start OUT afresh, whatever results it holds")
    return parser


def _add_protocol(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--protocol", choices=PROTOCOLS, default="hest-benchmark", help="default: hest-benchmark")
    group.add_argument("--strict", action="store_true", help="refuse what leaks test data into training")
    group.add_argument("--split", choices=SPLIT_CHOICES, default="both", help="hest-extended only; default: both")
    group.add_argument("--folds", type=int, default=10, help="folds of the random split (default 10)")
    group.add_argument("--fold-seed", type=int, default=0, help="draws the random split (default 0)")
    group.add_argument("--manifest", type=Path, metavar="CSV", help="default: <task>/samples.csv")
    group.add_argument(
        "--genes", choices=CRITERIA, default="hvg", help="hvg: highly variable; hmhvg: of high mean among them"
    )
    group.add_argument("--n-genes", type=int, default=200, help="size of the panel (default 200)")
    group.add_argument("--hvg-pool", type=int, default=2000, help="HVGs that hmhvg chooses from (default 2,000)")
    group.add_argument(
        "--genes-from",
        choices=GENES_FROM,
        default="all",
        help="all (default): one panel over all samples, held-out ones included; train: one a fold, without them",
    )
    group.add_argument(
        "--genes-file", type=Path, metavar="JSON", help="a fixed panel, {'genes': [...]}; nothing is chosen then"
    )


def _add_head(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--pooling", choices=POOLINGS, default="cls+mean", help="default: cls+mean, concatenated")
    group.add_argument("--head", choices=HEADS, default="ridge", help="default: ridge, as published")
    pca = group.add_mutually_exclusive_group()
    pca.add_argument("--pca", type=int, default=256, help="most principal components (default 256)")
    pca.add_argument("--no-pca", action="store_true", help="all directions of the standardised embeddings")
    group.add_argument("--alpha", type=float, help="ridge penalty (default: 100 / (features x genes), as published)")
    group.add_argument("--intercept", action="store_true", help="add the training mean to a ridge's predictions")
    group.add_argument("--components", type=int, default=10, help="of the head pls (default 10)")
    group.add_argument("--neighbors", type=int, default=20, help="of the head knn (default 20)")
    group.add_argument(
        "--solver",
        choices=SOLVERS,
        default="exact",
        help="of the ridge; lsqr stops early, as hest-bench's call does, and is comparable with its published numbers",
    )
    group.add_argument("--seed", type=int, default=0, help="draws the weights of random encoders")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line over the options of its --config file: what it gives replaces what the file says.

    Raises:
        EvalError: the file is missing, or has a key or a value that the command line would not take, or an option of
            hest-extended is given for the other protocol.
    """
    parser = build_parser()
    given = _given(argv)
    options = [] if given.get("config") is None else _as_arguments(parser, given["config"], skip=set(given))
    args = parser.parse_args([*options, *argv])
    if args.protocol != "hest-extended":
        for name in EXTENDED_ONLY:
            if getattr(args, name) != parser.get_default(name):
                raise EvalError(
                    f"--{name.replace('_', '-')} {getattr(args, name)}: it belongs to --protocol hest-extended; the "
                    "benchmark's tasks bring their folds and genes. Add that option, or leave this one out."
                )
    return args


def fit_settings(args: argparse.Namespace) -> FitSettings:
    """The head that the arguments describe."""
    pca = None if args.no_pca else args.pca
    return FitSettings(
        args.protocol, args.head, pca, args.alpha, args.solver, args.intercept, args.components, args.neighbors
    )


def extended_settings(args: argparse.Namespace) -> Extended:
    """Splits and panel that the arguments describe; EvalError for a panel that cannot be."""
    rule = PanelRule(args.genes, args.n_genes, args.hvg_pool)
    return Extended(args.split, args.folds, args.fold_seed, rule, args.genes_from, args.genes_file, args.manifest)


def _given(argv: Sequence[str]) -> dict[str, Any]:
    """What the command line itself says, without defaults; --pca and --no-pca say the same thing."""
    parser = build_parser()
    for action in parser._actions:
        action.required, action.default = False, argparse.SUPPRESS
    given = vars(parser.parse_args(argv))
    return given | {name: None for name in ("pca", "no_pca") if {"pca", "no_pca"} & given.keys()}


def _as_arguments(parser: argparse.ArgumentParser, path: Path, skip: set[str]) -> list[str]:
    if not path.is_file():
        raise EvalError(f"--config {path}: no such file.")
    try:
        options = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EvalError(f"--config {path}: not a YAML file ({error}).") from error
    if not isinstance(options, Mapping):
        raise EvalError(f"--config {path}: it must hold options as `name: value`, named as on the command line.")
    actions: dict[str, Any] = {
        a.dest: a for a in parser._actions if a.option_strings and a.dest not in ("help", "config")
    }
    arguments: list[str] = []
    for key, value in options.items():
        name = str(key).replace("-", "_")
        if name not in actions:
            raise EvalError(f"--config {path}: unknown option {key!r}. {nearest(name, actions)}")
        if name in skip or value is None:
            continue
        flag = actions[name].option_strings[0]
        if actions[name].nargs == 0:
            if not isinstance(value, bool):
                raise EvalError(f"--config {path}: {key}: {value!r}; it must be true or false.")
            arguments += [flag] if value else []
        else:
            arguments += [flag, *map(str, value if isinstance(value, list) else [value])]
    return arguments
