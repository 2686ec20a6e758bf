from dataclasses import replace

import numpy as np
import pytest

from eval.fold_scores import SplitData
from eval.folds import PartFold, Split, random_split
from eval.gram import moments
from eval.hest_data import load_task
from eval.inner_groups import inner_groups
from eval.manifest import Origin
from eval.protocol import evaluate
from eval.settings import FitSettings
from eval.spots import part_moments

TUNED = FitSettings(head="ridge-tuned", pca=None)


@pytest.fixture
def task(bench):
    return load_task(bench, "TOY")


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(24, 3)).astype(np.float32) for name in "ABC"}


def groups(task, features, split, fold):
    (parts,) = part_moments(features, task, [split])
    return inner_groups(SplitData(features, task, split, "cpu"), fold, parts)


def given(task, train, test=""):
    (split,) = task.splits
    train, test = (tuple(split.parts.index(name) for name in side) for side in (train, test))
    return replace(split, folds=(PartFold("0", train, test),))


def origins(*facts):
    return {name: Origin(patient, study) for name, (patient, study) in zip("ABC", facts, strict=True)}


@pytest.mark.parametrize(
    ("facts", "train", "level", "samples"),
    [
        ([("1", "x"), ("1", "x"), ("2", "y")], "ABC", "study", ["AB", "C"]),
        ([("1", "x"), ("1", "x"), ("2", "x")], "ABC", "patient", ["AB", "C"]),
        ([("1", None), ("1", None), ("2", None)], "AC", "patient", ["A", "C"]),
        ([("1", "x"), ("1", "y"), (None, None)], "ABC", "sample", ["A", "B", "C"]),
        ([("1", None), ("1", None), ("2", None)], "AB", "sample", ["A", "B"]),
    ],
)
def test_the_coarsest_level_with_two_groups(task, features, facts, train, level, samples):
    task = replace(task, origins=origins(*facts))
    split = given(task, train)
    found = groups(task, features, split, split.folds[0])
    assert found.level == level
    for part, names in zip(found.parts, samples, strict=True):
        batch = [(features[n], task.expression[n]) for n in names]
        expected = moments(batch, part.shift.numpy(), 4)
        assert part.n == expected.n == 24 * len(names)
        np.testing.assert_allclose(part.xy, expected.xy, atol=1e-9)
        np.testing.assert_allclose(part.xx, expected.xx, atol=1e-9)


def test_a_study_of_several_patients_is_read_again_for_its_groups(task, features):
    task = replace(task, origins=origins(("1", "x"), ("2", "x"), ("3", "y")))
    labels = {name: np.full(24, int(name == "C")) for name in "ABC"}
    split = Split("loso", ("x", "y"), labels, (PartFold("y", (0,), (1,)),))
    found = groups(task, features, split, split.folds[0])
    assert found.level == "patient"
    for part, name in zip(found.parts, "AB", strict=True):
        expected = moments([(features[name], task.expression[name])], part.shift.numpy(), 4)
        assert part.n == 24
        np.testing.assert_allclose(part.xy, expected.xy, atol=1e-9)


def test_one_sample_is_cut_into_blocks_of_neighbouring_rows(task, features):
    split = given(task, "B")
    found = groups(task, features, split, split.folds[0])
    assert (found.level, [part.n for part in found.parts]) == ("block", [5, 5, 5, 5, 4])
    first = moments([(features["B"][:5], task.expression["B"][:5])], found.parts[0].shift.numpy(), 4)
    np.testing.assert_allclose(found.parts[0].xy, first.xy, atol=1e-9)


def test_samples_of_a_spot_are_no_groups(task, features):
    labels = {"A": np.r_[0, np.ones(23, int)], "B": np.zeros(24, int), "C": np.ones(24, int)}
    split = Split("given", ("in", "out"), labels, (PartFold("0", (0,), (1,)),))
    found = groups(task, features, split, split.folds[0])
    assert (found.level, sum(part.n for part in found.parts)) == ("block", 25)


def test_a_random_fold_leaves_random_parts_out(task, features):
    split = random_split(dict.fromkeys("ABC", 24), 4)
    found = groups(task, features, split, split.folds[0])
    assert (found.level, [part.n for part in found.parts]) == ("part", [18, 18, 18])
    split = random_split(dict.fromkeys("ABC", 24), 2)  # one part is left for training
    assert groups(task, features, split, split.folds[0]).level == "patient"


@pytest.mark.parametrize(("train", "level", "count"), [("A", "block", 5), ("AC", "patient", 2)])
def test_a_training_set_of_one_sample_can_be_tuned_on(task, features, train, level, count):
    (evaluation,) = evaluate(features, replace(task, splits=(given(task, train, "B"),)), TUNED)
    (fold,) = evaluation.record["folds"]
    assert fold["inner_groups"] == {"level": level, "count": count}
    assert fold["alpha"] > 0
