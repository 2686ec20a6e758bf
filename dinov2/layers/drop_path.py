"""Stochastic depth (arXiv 1603.09382)."""

from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop the residual branch of whole samples with probability `p` in training, and rescale the kept ones."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, ...) with some samples zeroed."""
        if self.p == 0.0 or not self.training:
            return x
        keep = x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        """Show the probability when the module is printed."""
        return f"p={self.p}"
