"""Schedules: their end points, and the values in between against DINOv2's formula written out in NumPy."""

import numpy as np
import pytest

from dinov2.train.schedules import CosineSchedule, Schedules, scaled_lr
from dinov2.utils.schema import SSLConfig


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (5, 20), (1, 7), (100, 1000)])
def test_cosine_against_numpy(warmup, total):
    schedule = CosineSchedule(base=0.3, final=0.01, total=total, warmup=warmup, start=0.05)
    ramp = np.linspace(0.05, 0.3, warmup)
    steps = np.arange(total - warmup)
    curve = 0.01 + 0.5 * (0.3 - 0.01) * (1 + np.cos(np.pi * steps / len(steps)))
    expected = np.concatenate([ramp, curve, [0.01, 0.01]])
    np.testing.assert_allclose([schedule(i) for i in range(total + 2)], expected, rtol=1e-12)


def test_end_points_of_the_papers_recipe():
    schedules = Schedules.from_config(SSLConfig(), global_batch_size=1536)
    length, total = 493, 200 * 493
    assert schedules.total_steps == total
    assert scaled_lr(0.002, "sqrt_wrt_1024", 1536) == pytest.approx(0.00245, abs=5e-6)
    assert schedules.at(0).lr == 0.0
    assert schedules.at(10 * length - 1).lr == pytest.approx(0.00244949, rel=1e-5)
    assert schedules.at(total).lr == 1e-6
    assert schedules.at(0).weight_decay == pytest.approx(0.04)
    assert schedules.at(total - 1).weight_decay == pytest.approx(0.4, rel=1e-6)
    assert schedules.at(0).momentum == pytest.approx(0.992)
    assert schedules.at(total).momentum == 1.0
    assert schedules.at(0).teacher_temp == pytest.approx(0.04)
    assert schedules.at(30 * length - 1).teacher_temp == pytest.approx(0.06)
    assert schedules.at(total - 1).teacher_temp == 0.06


def test_last_layer_is_frozen_for_its_epochs():
    config = SSLConfig()
    config.optim.freeze_last_layer_epochs = 2
    schedules = Schedules.from_config(config, 64)
    assert schedules.at(2 * 493 - 1).last_layer_lr == 0.0
    assert schedules.at(2 * 493 - 1).lr > 0
    assert schedules.at(2 * 493).last_layer_lr == schedules.at(2 * 493).lr


def test_no_warmup_and_no_scaling():
    config = SSLConfig()
    config.optim.warmup_epochs = config.teacher.warmup_teacher_temp_epochs = 0
    config.optim.scaling_rule = "none"
    values = Schedules.from_config(config, 64).at(0)
    assert values.lr == 0.002
    assert values.teacher_temp == 0.06
