"""Dividing the global batch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov2.train.batch_plan import BatchPlan
from dinov2.utils.errors import ConfigError
from dinov2.utils.schema import OptimSection, TrainSection


@given(st.integers(1, 4096), st.integers(1, 128), st.integers(1, 32))
def test_parts_multiply_to_the_whole_or_the_error_names_a_size_that_works(total, micro, world):
    train = TrainSection(global_batch_size=total, batch_size_per_gpu=micro)
    try:
        plan = BatchPlan.from_config(train, OptimSection(), world)
    except ConfigError as error:
        near = int(str(error).rsplit(" ", 1)[1])
        key = "global_batch_size" if "global_batch_size" in str(error) else "batch_size_per_gpu"
        fixed = TrainSection(**{"global_batch_size": total, "batch_size_per_gpu": micro, key: near})
        if key == "global_batch_size":
            assert near % world == 0
        else:
            BatchPlan.from_config(fixed, OptimSection(), world)
    else:
        assert plan.global_batch == plan.micro_batch * plan.accumulate * world == total
        assert plan.micro_batch <= micro


def plan(world, accumulate=None, **train):
    return BatchPlan.from_config(TrainSection(**train), OptimSection(accumulate_steps=accumulate), world)


def test_paper_and_default():
    assert plan(24, global_batch_size=1536) == BatchPlan(1536, 64, 1, 24)
    assert plan(1, global_batch_size=1536) == BatchPlan(1536, 64, 24, 1)
    assert plan(2, batch_size_per_gpu=8) == BatchPlan(16, 8, 1, 2)


def test_accumulation_as_asked_for():
    assert plan(2, 3, batch_size_per_gpu=8) == BatchPlan(48, 8, 3, 2)
    assert plan(2, 4, global_batch_size=64) == BatchPlan(64, 8, 4, 2)


@pytest.mark.parametrize(
    ("world", "accumulate", "train", "message"),
    [
        (3, None, {"global_batch_size": 100}, "100: not divisible by 3 processes; the nearest is 99"),
        (2, 5, {"global_batch_size": 64}, r"64: not divisible by 2 processes of 5 micro-batches .*; the nearest is 60"),
        (
            1,
            2,
            {"global_batch_size": 256},
            r"optim\.accumulate_steps = 2: leaves 128 images a micro-batch, more than train\.batch_size_per_gpu = 64",
        ),
    ],
)
def test_indivisible(world, accumulate, train, message):
    with pytest.raises(ConfigError, match=message):
        plan(world, accumulate, **train)
