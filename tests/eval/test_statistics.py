import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.errors import EvalError
from eval.statistics import holm, interval, paired_p, unit_scores


def record(sample, patient, pcc):
    return {"sample": sample, "patient": patient, "pcc": pcc, "mse": 1.0}


def test_units_are_patients_where_all_are_known():
    samples = [record("a", "1", 0.2), record("b", "1", 0.4), record("c", "2", 0.5), record("d", "2", None)]
    assert unit_scores(samples) == {"1": pytest.approx(0.3), "2": 0.5}
    assert unit_scores(samples, unit="sample") == {"a": 0.2, "b": 0.4, "c": 0.5}
    samples[0]["patient"] = None
    assert set(unit_scores(samples)) == {"a", "b", "c"}
    with pytest.raises(EvalError, match="sample a has no patient"):
        unit_scores(samples, unit="patient")
    with pytest.raises(EvalError, match="nothing can be compared"):
        unit_scores([record("a", "1", None)])


def test_exact_sign_flips_by_hand():
    d = np.array([0.3, 0.1, -0.05, 0.2])
    flips = [abs(np.mean(d * s)) for s in itertools.product((1, -1), repeat=4)]
    assert paired_p(d) == pytest.approx(np.mean(np.array(flips) >= abs(d.mean()) - 1e-12))
    assert paired_p([0.4, 0.5, 0.3]) == pytest.approx(2 / 8)
    assert paired_p([0.0, 0.0]) == 1.0


def test_p_values_are_uniform_under_no_difference():
    rng = np.random.default_rng(0)
    p = [paired_p(rng.normal(size=8)) for _ in range(200)]
    assert np.mean(np.array(p) <= 0.2) == pytest.approx(0.2, abs=0.08)


def test_interval_covers_the_mean_and_narrows():
    rng = np.random.default_rng(1)
    few, many = (interval(rng.normal(0.4, 0.1, size=n)) for n in (10, 1000))
    for found in (few, many):
        assert found.low < found.mean < found.high
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(1000), rel=0.15)
    assert few.high - few.low > many.high - many.low
    assert interval([0.3]).low is None
    assert interval([0.3, 0.3]).high == pytest.approx(0.3)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_procedure_rejects(p, level):
    rejected = set()
    for step, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] > level / (len(p) - step):
            break
        rejected.add(i)
    adjusted = holm(p)
    near = {i for i, a in enumerate(adjusted) if abs(a - level) < 1e-9}  # a tie in rounding may go either way
    assert {i for i, a in enumerate(adjusted) if a <= level} - near == rejected - near
