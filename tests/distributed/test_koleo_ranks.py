"""`dino.koleo_loss_distributed` in two processes, whose gradients are averaged as those of a training step are."""

import loss_ranks
import pytest
import torch
from processes import run_ranks

from dinov2.loss import koleo_loss


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """For false and true: the mean loss of two processes, and the gradient of the mean with respect to all points."""
    folder = tmp_path_factory.mktemp("koleo")
    codes, outputs = run_ranks(loss_ranks.main, 2, [str(folder)], folder)
    assert codes == [0, 0], "\n".join(outputs)
    ranks = [torch.load(folder / f"koleo{rank}.pt", weights_only=True) for rank in range(2)]
    return {
        distributed: (
            sum(rank[distributed][0] for rank in ranks) / 2,
            torch.cat([rank[distributed][1] for rank in ranks]) / 2,
        )
        for distributed in (False, True)
    }


def expected(parts):
    """The same of the mean over parts of the points, each by itself."""
    points = loss_ranks.embeddings().requires_grad_()
    loss = sum(koleo_loss(part, distributed=False) for part in points.chunk(parts)) / parts
    loss.backward()
    return loss.detach(), points.grad


@pytest.mark.parametrize(("distributed", "parts"), [(False, 2), (True, 1)])
def test_neighbours_are_sought_among_ones_own_or_among_all(found, distributed, parts):
    torch.testing.assert_close(found[distributed], expected(parts), rtol=1e-12, atol=1e-14)


def test_the_two_forms_differ(found):
    assert not torch.isclose(found[False][0], found[True][0], rtol=1e-3)
