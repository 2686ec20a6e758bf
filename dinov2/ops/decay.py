"""The decay of a state over one step, exp(delta A), which never becomes 0.

Every backend of ours keeps the exponent at or above -85. exp(-85) is 1.2e-37: far below what float32 adds to a state,
but a normal number. Without the bound a long step would give exactly 0 (in float32 from -104 on), and the system would
not have the real negative spectrum that it is built on.
"""

from torch import Tensor

LOWEST = -85.0


def log_decay(delta: Tensor, A: Tensor) -> Tensor:
    """Return delta * A, at least `LOWEST`; the two broadcast."""
    return (delta * A).clamp(min=LOWEST)
