"""Which channels of loaded scans lie beyond the bounds within which this package computes them."""

import math

import torch.nn.functional as F

from dinov2.layers.hydra import HydraScan
from dinov2.layers.scan import RATES, SMALLEST_STEP, SelectiveScan
from dinov2.models.isotropic import IsotropicBackbone


def channels_out_of_bounds(model: IsotropicBackbone) -> tuple[int, int]:
    """Return how many channels (in Hydra heads) of a backbone's scans are not computed as their parameters say, of all.

    Their rate of decay exp(A_log) is outside `RATES` in some state, or their step where the projection of the input is
    zero, softplus(dt_bias), is below `SMALLEST_STEP`: the scan takes the nearest bound in its place.
    """
    low, high = map(math.log, RATES)
    outside = total = 0
    for scan in model.modules():
        if not isinstance(scan, SelectiveScan | HydraScan):
            continue
        logs, bias = scan.A_log.detach().float(), scan.dt_bias.detach().float()
        beyond = ((logs < low) | (logs > high)).reshape(len(logs), -1).any(1)  # (D,)
        outside += int((beyond | (F.softplus(bias) < SMALLEST_STEP)).sum())
        total += len(logs)
    return outside, total


def bounds_warning(model: IsotropicBackbone) -> str | None:
    """Return what to tell of weights that another program has trained, or None where they are computed as they are."""
    outside, total = channels_out_of_bounds(model)
    if not outside:
        return None
    return (
        f"{outside} of the {total} channels of its scans decay at rates outside [{RATES[0]:g}, {RATES[1]:g}] or by "
        f"steps below {SMALLEST_STEP:g}; they are computed at the nearest bound, so that embeddings may differ from "
        "those of the program that trained them"
    )
