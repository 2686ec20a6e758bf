import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from eval.errors import EvalError
from eval.folds import loso_split, random_split

COUNTS = st.dictionaries(st.sampled_from("ABCDEFGH"), st.integers(1, 30), min_size=2)


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(2, 10), st.integers(0, 100))
def test_random_folds_test_every_spot_once(counts, folds, seed):
    n = sum(counts.values())
    if n < folds:
        with pytest.raises(EvalError, match="a spot for each"):
            random_split(counts, folds, seed)
        return
    split = random_split(counts, folds, seed)
    part = np.concatenate([split.labels[name] for name in counts])
    assert sorted(i for f in split.folds for i in f.test) == list(range(folds))
    assert np.ptp(np.bincount(part, minlength=folds)) <= 1
    for i, (fold, (train, test)) in enumerate(
        zip(split.folds, KFold(folds, shuffle=True, random_state=seed).split(part), strict=True)
    ):
        assert np.flatnonzero(np.isin(part, fold.test)).tolist() == test.tolist()
        assert np.flatnonzero(np.isin(part, fold.train)).tolist() == train.tolist()
        assert fold.name == str(i)


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.data())
def test_no_study_is_on_both_sides(counts, data):
    studies = {name: data.draw(st.sampled_from(["x", "y", "z"])) for name in counts}
    if len(set(studies.values())) < 2:
        with pytest.raises(EvalError, match="needs two or more"):
            loso_split(counts, studies)
        return
    split = loso_split(counts, studies)
    tested = []
    for fold in split.folds:
        train, test = split.samples(fold.train), split.samples(fold.test)
        assert {studies[n] for n in test} == {fold.name}
        assert fold.name not in {studies[n] for n in train}
        assert sorted(train + test) == sorted(counts)
        tested += test
    assert sorted(tested) == sorted(counts)


def test_a_sample_without_study():
    with pytest.raises(EvalError, match="no study for sample B"):
        loso_split({"A": 3, "B": 4}, {"A": "x", "B": ""})


def test_another_seed_draws_other_folds():
    a, b = (random_split({"A": 50}, 5, seed).labels["A"] for seed in (0, 1))
    assert (a != b).any()
