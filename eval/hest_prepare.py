"""`python -m eval.hest prepare`: a HEST-1k folder becomes a task in the benchmark's layout.

Reads `st/<id>.h5ad`, and `patches/<id>.h5` or, where there is none, `wsis/<id>.tif` with `metadata/<id>.json`; writes
`patches/`, `adata/`, `samples.csv`, and for the protocol hest-benchmark `splits/` and `var_50genes.json`. A sample that
is complete is not done again, so that an interrupted run goes on where it stopped; patches that were cut at another
width or scale are cut anew.
"""

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from dinov2.utils.files import replacing, write_text
from eval.errors import EvalError, first_few
from eval.expression import check_raw, read_counts
from eval.gene_stats import gene_sums
from eval.genes import PANEL_FILE
from eval.hest_cut import cut_at, cut_patches, pixel_size
from eval.hest_data import open_h5, read_barcodes
from eval.manifest import MANIFEST_FILE, Origin, read_manifest
from eval.panels import PanelRule, choose_panel

SLIDE_SUFFIXES = (".tif", ".tiff", ".svs", ".ndpi")
EXAMPLES = """examples:
  python -m eval.hest prepare --hest HEST-1k --manifest samples.csv --out hest-extended/CRC
  python -m eval.hest prepare --hest HEST-1k --manifest samples.csv --out hest-extended/CRC --cut --patch-px 256

Then: python -m eval.hest --protocol hest-extended --bench-root hest-extended --tasks CRC ...
Exit codes: 0 written, 2 something given is wrong, 130 interrupted.
"""


def prepare_sample(hest: Path, name: str, task: Path, *, cut: bool, mpp: float, side: int, bar: tqdm) -> str | None:
    """Write patches and expression of a sample; return a sentence on what a user might not expect.

    Raises:
        EvalError: files missing or unreadable, or patches whose barcodes the expression lacks.
    """
    expression, patches = task / "adata" / f"{name}.h5ad", task / "patches" / f"{name}.h5"
    source = hest / "st" / f"{name}.h5ad"
    if not source.is_file():
        found = first_few(sorted(p.stem for p in (hest / "st").glob("*.h5ad")))
        raise EvalError(f"{source}: missing. Download sample {name} of HEST-1k; there are {found or 'none'}.")
    note = None
    given = hest / "patches" / f"{name}.h5"
    take = given.is_file() and not cut
    wanted = [cut_at(given)] if take else [(mpp, side)] if cut else [(mpp, side), None]
    if not patches.is_file() or cut_at(patches) not in wanted:
        if take:
            read_barcodes(given)
            _place(given, patches)
        else:
            slide = _slide(hest, name)
            mpp0 = pixel_size(hest / "metadata" / f"{name}.json")
            _, outside = cut_patches(slide, source, patches, mpp0=mpp0, mpp=mpp, side=side, bar=bar)
            note = f"{name}: {outside} spot(s) outside the slide were left out" if outside else None
    if take and (width := _width(patches)) != side:
        note = f"{name}: the patches of HEST-1k are {width} px wide, not {side}; --patch-px and --mpp need --cut"
    if not expression.is_file():
        _place(source, expression)
    check_raw(read_counts(expression, read_barcodes(patches)))
    return note


def write_folds(task: Path, origins: dict[str, Origin], n_genes: int = 50) -> tuple[int, str | None]:
    """Write one fold a patient (a sample where the patient is unknown) and the panel.

    The panel is chosen over all samples, as the benchmark's are. With fewer than two patients, or fewer genes seen in
    every sample than the panel has, there are no folds: the protocol hest-extended can use the task all the same. Folds
    and panel of an earlier run are replaced whole, or removed where there are none now.

    Returns:
        The number of folds, and a sentence that says why there are none.
    """
    owner = {name: origin.patient or name for name, origin in origins.items()}
    patients = list(dict.fromkeys(owner.values()))
    if len(patients) < 2:
        _remove_folds(task)
        return 0, "no folds for the protocol hest-benchmark: all samples are of one patient"
    sums = {}
    for name in origins:
        counts = read_counts(task / "adata" / f"{name}.h5ad", read_barcodes(task / "patches" / f"{name}.h5"))
        sums[name] = gene_sums(counts.genes, counts.matrix)
    rule = PanelRule("hvg", n_genes)
    try:
        genes = choose_panel(sums, rule).genes
    except EvalError as error:
        _remove_folds(task)
        return 0, f"no folds for the protocol hest-benchmark: {str(error).rstrip('.')}"
    new = task / ".splits.tmp"
    shutil.rmtree(new, ignore_errors=True)  # of a run that was interrupted
    rows = [(name, f"patches/{name}.h5", f"adata/{name}.h5ad") for name in origins]
    table = pd.DataFrame(rows, columns=["sample_id", "patches_path", "expr_path"])
    for i, patient in enumerate(patients):
        test = table["sample_id"].map(owner) == patient
        write_text(new / f"train_{i}.csv", table[~test].to_csv(index=False))
        write_text(new / f"test_{i}.csv", table[test].to_csv(index=False))
    _remove_folds(task)
    write_text(task / PANEL_FILE, json.dumps({"genes": genes, "chosen_over": list(origins)}) + "\n")
    os.replace(new, task / "splits")  # last: half a set of folds would look like a whole one
    return len(patients), None


def main(argv: Sequence[str]) -> None:
    """`python -m eval.hest prepare ...`."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.hest prepare",
        description="Turn samples of a HEST-1k folder (wsis, st, patches, metadata) into a task.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hest", type=Path, required=True, metavar="DIR", help="HEST-1k folder: st, patches or wsis")
    parser.add_argument(
        "--manifest", type=Path, required=True, metavar="CSV", help="see `python -m eval.hest manifest`"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="TASK", help="task folder: BENCH_ROOT/NAME")
    parser.add_argument("--cut", action="store_true", help="cut patches from the slides even where HEST-1k has them")
    parser.add_argument("--mpp", type=float, default=0.5, help="microns a pixel of cut patches (default 0.5)")
    parser.add_argument("--patch-px", type=int, default=224, help="width of cut patches (default 224)")
    parser.add_argument("--n-genes", type=int, default=50, help="panel of the benchmark's folds (default 50)")
    args = parser.parse_args(argv)
    if not (args.hest / "st").is_dir():
        raise EvalError(f"--hest {args.hest}: no folder st there. Give the folder that HEST-1k was downloaded to.")
    if not args.mpp > 0 or args.patch_px < 1:
        raise EvalError(f"--mpp {args.mpp:g} --patch-px {args.patch_px}: both must be above 0.")
    origins = read_manifest(args.manifest)
    with tqdm(origins, unit="sample", desc="samples") as names, tqdm(unit="patch", desc="cutting") as cutting:
        found = [
            prepare_sample(args.hest, n, args.out, cut=args.cut, mpp=args.mpp, side=args.patch_px, bar=cutting)
            for n in names
        ]
    with replacing(args.out / MANIFEST_FILE) as temporary:
        shutil.copyfile(args.manifest, temporary)
    folds, why_none = write_folds(args.out, origins, args.n_genes)
    for note in filter(None, [*found, why_none]):
        print(f"note: {note}.")
    print(f"written: {args.out} ({len(origins)} samples, {folds} folds by patient for the protocol hest-benchmark)")


def _remove_folds(task: Path) -> None:
    old = task / ".splits.old"
    shutil.rmtree(old, ignore_errors=True)
    if (task / "splits").exists():
        os.replace(task / "splits", old)
    shutil.rmtree(old, ignore_errors=True)
    (task / PANEL_FILE).unlink(missing_ok=True)


def _width(patches: Path) -> int:
    with open_h5(patches) as file:
        return int(file["img"].shape[2])


def _slide(hest: Path, name: str) -> Path:
    for suffix in SLIDE_SUFFIXES:
        path = hest / "wsis" / f"{name}{suffix}"
        if path.is_file():
            return path
    raise EvalError(
        f"{hest}: neither patches/{name}.h5 nor wsis/{name}.tif is there. Download one of them for sample {name}."
    )


def _place(source: Path, target: Path) -> None:
    """Put a file in a second place, without a copy where the file system allows."""
    target.parent.mkdir(parents=True, exist_ok=True)
    linked = target.with_name(f".{target.name}.{os.getpid()}.link")
    try:
        os.link(source.resolve(), linked)
        os.replace(linked, target)
    except OSError:  # another file system, or one without hard links
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
