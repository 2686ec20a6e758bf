"""Scores within each held-out sample: the units of bootstrap intervals and paired tests.

The correlation of a sample is taken over its own spots and averaged over genes, so that differences between samples in
the level of expression play no part.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from eval.hest_data import Task
from eval.metrics import Sums, correlations


def sample_scores(task: Task, held_out: Mapping[str, Sums]) -> list[dict[str, Any]]:
    """One record a held-out sample: sample, patient, study, n_spots, pcc (null where none is defined), mse (centred).

    Genes that only some of a sample's spots are scored on, as when each fold has a panel of its own, are left out.
    """
    records = []
    for name, s in held_out.items():
        scores = correlations(s)
        pcc = scores.pcc[(s.n == s.n.max()) & ~np.isnan(scores.pcc)]
        origin = task.origin(name)
        records.append(
            {
                "sample": name,
                "patient": origin.patient,
                "study": origin.study,
                "n_spots": int(s.n.max()),
                "pcc": float(pcc.mean()) if len(pcc) else None,
                "mse": float(s.sq_error.sum() / s.n.sum()),
            }
        )
    return records
