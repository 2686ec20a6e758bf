"""Scores within each sample, from held-out predictions: the units of bootstrap intervals and paired tests.

The correlation of a sample is taken over its own spots and averaged over genes, so that differences between samples in
the level of expression play no part.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.hest_data import Task
from eval.metrics import correlations


def sample_scores(task: Task, predictions: Mapping[str, NDArray[np.float32]]) -> list[dict[str, Any]]:
    """One record a held-out sample: sample, patient, study, n_spots, pcc (null where none is defined), mse.

    Args:
        task: names and expression.
        predictions: sample -> (N, G), NaN where no fold holds the spot out or scores the gene.
    """
    records = []
    for name, predicted in predictions.items():
        rows = ~np.isnan(predicted).all(axis=1)
        # A panel chosen for each fold leaves NaN where a spot's fold does not score a gene.
        columns = ~np.isnan(predicted[rows]).any(axis=0)
        if not rows.any() or not columns.any():
            continue
        measured = task.expression[name][rows][:, columns]
        held_out = predicted[rows][:, columns].astype(np.float64)
        scores = correlations(measured, held_out)
        defined = not np.isnan(scores.pcc).all()
        origin = task.origin(name)
        records.append(
            {
                "sample": name,
                "patient": origin.patient,
                "study": origin.study,
                "n_spots": int(rows.sum()),
                "pcc": scores.mean() if defined else None,
                "mse": float(((measured - held_out) ** 2).mean()),
            }
        )
    return records
