"""Dividing the global batch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov2.train.batch_plan import BatchPlan
from dinov2.utils.errors import ConfigError
from dinov2.utils.schema import TrainSection


@given(st.integers(1, 4096), st.integers(1, 128), st.integers(1, 32))
def test_parts_multiply_to_the_whole_or_the_error_names_a_size_that_works(total, micro, world):
    train = TrainSection(global_batch_size=total, batch_size_per_gpu=micro)
    try:
        plan = BatchPlan.from_config(train, world)
    except ConfigError as error:
        near = int(str(error).rsplit(" ", 1)[1])
        key = "global_batch_size" if "global_batch_size" in str(error) else "batch_size_per_gpu"
        fixed = TrainSection(**{"global_batch_size": total, "batch_size_per_gpu": micro, key: near})
        if key == "global_batch_size":
            assert near % world == 0
        else:
            BatchPlan.from_config(fixed, world)
    else:
        assert plan.global_batch == plan.micro_batch * plan.accumulate * world == total
        assert plan.micro_batch <= micro


def test_paper_and_default():
    assert BatchPlan.from_config(TrainSection(global_batch_size=1536), 24) == BatchPlan(1536, 64, 1, 24)
    assert BatchPlan.from_config(TrainSection(global_batch_size=1536), 1) == BatchPlan(1536, 64, 24, 1)
    assert BatchPlan.from_config(TrainSection(batch_size_per_gpu=8), 2) == BatchPlan(16, 8, 1, 2)


def test_indivisible():
    with pytest.raises(ConfigError, match=r"100: not divisible by 3 processes; the nearest is 99"):
        BatchPlan.from_config(TrainSection(global_batch_size=100), 3)
