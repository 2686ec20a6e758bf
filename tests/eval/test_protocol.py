import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eval.embed import embed_task
from eval.encoders import ColorStats
from eval.errors import EvalError
from eval.hest_data import load_task
from eval.protocol import evaluate as evaluate_splits
from eval.settings import FitSettings


def evaluate(features, task, settings):
    (evaluation,) = evaluate_splits(features, task, settings)
    return evaluation.record


@pytest.fixture
def task(bench):
    return load_task(bench, "TOY")


@pytest.fixture
def features(task, tmp_path):
    return embed_task(ColorStats(), task, tmp_path / "cache", progress=False).features


def test_scores_of_a_fold_by_hand(task, features):
    result = evaluate(features, task, FitSettings())
    fold = result["folds"][1]
    assert (fold["held_out"], fold["n_train"], fold["n_test"]) == (["B"], 48, 24)
    assert (fold["pca_components"], fold["alpha"]) == (12, pytest.approx(100 / (12 * 4)))

    X = np.concatenate([features["A"], features["C"]])
    Y = np.concatenate([task.expression["A"], task.expression["C"]])
    pipe = make_pipeline(StandardScaler(), PCA(12, svd_solver="full"), Ridge(100 / (12 * 4), fit_intercept=False))
    predicted, measured = pipe.fit(X, Y).predict(features["B"]), task.expression["B"]
    r = [pearsonr(predicted[:, i], measured[:, i]).statistic for i in range(4)]
    assert fold["pcc"] == pytest.approx(np.mean(r))
    assert fold["pcc10"] == pytest.approx(np.mean(r))
    assert fold["mae"] == pytest.approx(np.abs(predicted - measured).mean())
    assert fold["mse_centred"] == pytest.approx(((predicted + Y.mean(0) - measured) ** 2).mean())
    assert result["pcc"]["std"] == pytest.approx(np.std([f["pcc"] for f in result["folds"]]))
    assert [g["gene"] for g in result["genes"]] == list(task.genes)
    assert result["genes"][0]["pcc"]["mean"] == pytest.approx(
        np.mean([f["gene_pcc"]["GREEN"] for f in result["folds"]])
    )


def test_planted_signal_is_found_and_noise_is_not(task, features):
    genes = {g["gene"]: g["pcc"]["mean"] for g in evaluate(features, task, FitSettings())["genes"]}
    assert min(genes["GREEN"], genes["RED"]) > 0.7
    assert abs(genes["NOISE"]) < 0.4


def test_centred_errors_are_the_smaller_ones(task, features):
    result = evaluate(features, task, FitSettings())
    assert result["mae_centred"]["mean"] < result["mae"]["mean"] / 2


def test_folds_that_do_not_hold_out_a_patient_are_marked(task, features):
    result = evaluate(features, task, FitSettings())
    assert [f["patient_in_training"] for f in result["folds"]] == [True, True, False]
    notes = result["notes"]
    assert any("1 of 3 folds hold out a patient (fold 2)" in note for note in notes)
    assert any("the gene panel comes from a file (var_50genes.json)" in note for note in notes)


def test_constant_gene_is_excluded_by_name(task, features):
    task.expression["B"][:, 3] = 1.0
    result = evaluate(features, task, FitSettings())
    fold = result["folds"][1]
    assert fold["excluded_genes"] == {"NOISE": "constant in the held-out spots"}
    assert fold["n_excluded_genes"] == 1
    assert fold["pcc"] == pytest.approx(np.mean(list(fold["gene_pcc"].values())))
    assert result["genes"][3]["n_folds"] == 2
    assert any("fold 1: 1 gene(s) excluded" in note for note in result["notes"])
    for name in "AC":
        task.expression[name][:, 3] = 1.0
    assert evaluate(features, task, FitSettings())["genes"][3] == {
        "gene": "NOISE",
        "pcc": None,
        "n_folds": 0,
        "mean": 1.0,
        "variance": 0.0,
    }


def test_constant_embeddings_are_an_error(task, features):
    same = {name: np.ones_like(values) for name, values in features.items()}
    with pytest.raises(EvalError, match="fold 0: no gene has a correlation"):
        evaluate(same, task, FitSettings())


def test_fewer_spots_than_components_is_reported(task):
    rng = np.random.default_rng(0)
    wide = {name: rng.normal(size=(24, 100)).astype(np.float32) for name in "ABC"}
    result = evaluate(wide, task, FitSettings())
    assert [f["pca_components"] for f in result["folds"]] == [48, 48, 48]
    assert any("48 PCA components instead of 100" in note for note in result["notes"])
    assert not any("PCA" in note for note in evaluate(wide, task, FitSettings(pca=30))["notes"])


def test_settings_change_the_head(task, features):
    assert evaluate(features, task, FitSettings(pca=None))["folds"][0]["pca_components"] is None
    assert evaluate(features, task, FitSettings(pca=5, alpha=2.0))["folds"][0]["pca_components"] == 5
    assert evaluate(features, task, FitSettings(alpha=2.0))["folds"][0]["alpha"] == 2.0


def test_embeddings_of_another_task(task, features):
    with pytest.raises(EvalError, match="sample B has 24 patches but 23 embeddings"):
        evaluate({**features, "B": features["B"][:-1]}, task, FitSettings())
    with pytest.raises(EvalError, match="sample C has 24 patches but no embeddings"):
        evaluate({"A": features["A"], "B": features["B"]}, task, FitSettings())
