"""Per-gene sums of raw counts, from which panels are chosen without holding the counts of all samples in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray


@dataclass(frozen=True)
class GeneSums:
    """Sums over the `n` spots of one sample (or of some of them), for its genes."""

    genes: NDArray[np.str_]  # (G,)
    n: int
    seen: NDArray[np.int64]  # (G,) spots with a count above 0
    total: NDArray[np.float64]  # (G,)
    squares: NDArray[np.float64]  # (G,)


def gene_sums(
    genes: NDArray[np.str_], counts: scipy.sparse.csr_matrix, rows: NDArray[np.intp] | None = None
) -> GeneSums:
    """Sum the chosen rows of raw counts (N, G), or all of them.

    The values go through float32 log1p and back, as in the published selection, whose order this keeps exactly.
    """
    chosen = (counts if rows is None else counts[rows]).astype(np.float32)
    values = np.expm1(np.log1p(chosen.data))
    seen = np.bincount(chosen.indices[chosen.data > 0], minlength=len(genes))

    def by_gene(weights: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.bincount(chosen.indices, weights.astype(np.float64), len(genes)).astype(np.float64)

    return GeneSums(genes, chosen.shape[0], seen, by_gene(values), by_gene(values * values))


def pooled(sums: Sequence[GeneSums], genes: NDArray[np.str_]) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Number of spots, totals (G,) and squares (G,) over all samples for genes that each of them has."""
    n, total, squares = 0, np.zeros(len(genes)), np.zeros(len(genes))
    for s in sums:
        position = {gene: i for i, gene in enumerate(s.genes)}
        columns = [position[gene] for gene in genes]
        n, total, squares = n + s.n, total + s.total[columns], squares + s.squares[columns]
    return n, total, squares
