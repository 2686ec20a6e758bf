"""Reads raw counts of one sample from its h5ad file, aligned to the barcodes of its patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import anndata
import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from eval.errors import EvalError, first_few


@dataclass(frozen=True)
class Counts:
    """Raw counts of the spots that have a patch, in the order of the patches, for all genes of the file."""

    source: Path
    genes: NDArray[np.str_]  # (G,)
    matrix: scipy.sparse.csr_matrix  # (N, G)

    def panel(self, genes: Sequence[str]) -> NDArray[np.float64]:
        """Counts of these genes, (N, len(genes)); EvalError for a gene that the file lacks or has twice."""
        columns = positions(self.genes, genes, self.source, "gene")
        return np.asarray(self.matrix[:, columns].toarray(), dtype=np.float64)


def read_counts(path: Path, barcodes: Sequence[str]) -> Counts:
    """Read X for the N `barcodes`, in exactly that order.

    Raises:
        EvalError: unreadable file, an empty X, or a barcode that the file lacks or has twice.
    """
    try:
        adata = anndata.read_h5ad(path)
    except Exception as error:  # anndata wraps errors of many libraries in types of its own
        raise EvalError(
            f"{path}: not an h5ad file that anndata {version('anndata')} can read ({error}). Download it again, or "
            "write it with a version of anndata near this one."
        ) from error
    if adata.X is None:
        raise EvalError(f"{path}: X is empty; the raw counts must be in X.")
    rows = positions(adata.obs_names.astype(str).to_numpy(), barcodes, path, "barcode")
    matrix = scipy.sparse.csr_matrix(adata.X)[rows]
    return Counts(path, adata.var_names.astype(str).to_numpy(), matrix)


def check_raw(counts: Counts) -> None:
    """Refuse what is not raw counts.

    Raises:
        EvalError: a value is not finite, negative, or not a whole number (as when the file is normalised or logged).
    """
    values = counts.matrix.data
    rules = (
        (~np.isfinite(values), "not finite", "repair the file"),
        (values < 0, "negative", "store raw counts in X, not scaled or centred values"),
        (
            values != np.round(values),
            "not whole numbers",
            "X looks normalised or already logged: store raw counts there, log1p is applied here",
        ),
    )
    for bad, what, fix in rules:
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            row = int(np.searchsorted(counts.matrix.indptr, first, side="right")) - 1
            raise EvalError(
                f"{counts.source}: {int(bad.sum())} expression values are {what}, e.g. {values[first]:g} for "
                f"{counts.genes[counts.matrix.indices[first]]} (spot {row}); raw counts are 0, 1, 2, ... Fix: {fix}."
            )


def positions(have: NDArray[np.str_], want: Sequence[str], path: Path, what: str) -> list[int]:
    """Indices in `have` of all of `want`; EvalError for one that is absent or ambiguous."""
    position: dict[str, int] = {}
    repeated = set()
    for i, value in enumerate(have):
        if value in position:
            repeated.add(value)
        position[value] = i
    if absent := [w for w in want if w not in position]:
        rule = {
            "barcode": "Every patch needs its spot: remove those patches, or use the h5ad they were made from.",
            "gene": "Every gene of the panel must be measured in every sample: change the panel or drop the sample.",
        }[what]
        raise EvalError(f"{path}: {len(absent)} of {len(want)} {what}s absent: {first_few(absent)}. {rule}")
    if ambiguous := [w for w in want if w in repeated]:
        raise EvalError(
            f"{path}: {len(ambiguous)} duplicate {what}(s): {first_few(ambiguous)}. Names must be unique; remove or "
            "rename the others."
        )
    return [position[w] for w in want]
