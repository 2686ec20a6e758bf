import json
import re
import shutil
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from synthetic_hest_extended import Design, write_task

from eval import spots
from eval.errors import EvalError
from eval.extended import Extended, load_extended
from eval.hest import main
from eval.hest_run import Work, run
from eval.leakage import find_leaks, guard
from eval.panels import PanelRule
from eval.precomputed import Precomputed
from eval.protocol import evaluate
from eval.settings import FitSettings

FIT = FitSettings("hest-extended")
SMALL = Extended(folds=4, rule=PanelRule(size=15))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    write_task(root, Design(samples=6, studies=3, spots=360, features=12, genes=30, factors=6))
    return root


@pytest.fixture
def root(made, tmp_path):
    shutil.copytree(made, tmp_path / "bench")
    return tmp_path / "bench"


def load(root, settings=SMALL):
    return load_extended(root, "SYNTH", settings, progress=False)


def rewrite_manifest(root, change):
    path = root / "SYNTH" / "samples.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)


def rewrite_counts(root, sample, change):
    path = root / "SYNTH" / "adata" / f"{sample}.h5ad"
    change(anndata.read_h5ad(path)).write_h5ad(path)


def test_random_split_looks_good_and_study_split_does_not(made, tmp_path):
    spec = f"precomputed:{made}/SYNTH/embeddings"
    rows = run([spec], made, ["SYNTH"], tmp_path / "out", fit=FIT, extended=SMALL, work=Work(progress=False))
    random, loso = (next(r for r in rows if r["split"] == s) for s in ("random", "loso"))
    assert random["pcc"]["mean"] > 0.6
    assert loso["pcc"]["mean"] < random["pcc"]["mean"] / 2
    assert loso["mse_centred"]["mean"] > 2 * random["mse_centred"]["mean"]
    assert [f["fold"] for f in loso["folds"]] == ["study 1", "study 2", "study 3"]
    assert loso["folds"][1]["held_out"] == ["S001", "S004"]
    assert sum(f["n_test"] for f in random["folds"]) == sum(f["n_test"] for f in loso["folds"]) == 360
    assert {s["study"] for s in loso["samples"]} == {"study 1", "study 2", "study 3"}
    (drop,) = json.loads((tmp_path / "out" / "results.json").read_text())["drops"]
    assert drop["pcc"] == pytest.approx((loso["pcc"]["mean"] - random["pcc"]["mean"]) / random["pcc"]["mean"])
    assert [g["gene"] for g in random["genes"]] == [g["gene"] for g in loso["genes"]]


def test_without_a_study_effect_both_splits_agree(tmp_path):
    design = Design(samples=4, studies=2, spots=600, features=12, genes=30, factors=3, signal=1.0, study_effect=0.0)
    task = load(write_task(tmp_path, design).parent)
    features = Precomputed(f"precomputed:{tmp_path}/SYNTH/embeddings").features(task)
    random, loso = (e.record["pcc"]["mean"] for e in evaluate(features, task, FIT))
    assert loso > 0.8 * random > 0.4


@pytest.mark.parametrize("genes_from", ["all", "train"])
def test_scores_do_not_depend_on_which_splits_are_asked_for(made, genes_from):
    settings = replace(SMALL, genes_from=genes_from)
    both = load(made, settings)
    features = Precomputed(f"precomputed:{made}/SYNTH/embeddings").features(both)
    together = {s.name: (s, e.record) for s, e in zip(both.splits, evaluate(features, both, FIT), strict=True)}
    for name in ("random", "loso"):
        task = load(made, replace(settings, split=name))
        (alone,) = evaluate(features, task, FIT)
        split, record = together[name]
        assert alone.record["pcc"]["mean"] == pytest.approx(record["pcc"]["mean"], abs=1e-9)
        assert [g["gene"] for g in alone.record["genes"]] == [g["gene"] for g in record["genes"]]
        assert all(g["n_folds"] for g in record["genes"])
        assert task.data_hash(task.splits[0]) == both.data_hash(split)


def test_splits_of_their_own_panels_share_a_folder(made, tmp_path):
    spec, fold_wise = f"precomputed:{made}/SYNTH/embeddings", replace(SMALL, genes_from="train")
    for split, count in (("random", 1), ("both", 2), ("loso", 2)):
        settings = replace(fold_wise, split=split)
        rows = run([spec], made, ["SYNTH"], tmp_path, fit=FIT, extended=settings, work=Work(progress=False))
        assert len(rows) == count
        assert {row["panel"]["size"] for row in rows} == {15}


def test_one_group_of_spots_is_held_at_a_time(made, monkeypatch):
    task = load(made)
    features = Precomputed(f"precomputed:{made}/SYNTH/embeddings").features(task)
    groups, most, original = [], [], spots.moments

    def watched(*args):
        most.append(sum(group() is not None for group in groups))
        found = original(*args)
        groups.append(weakref.ref(found))
        return found

    monkeypatch.setattr(spots, "moments", watched)
    parts = spots.part_moments(features, task, task.splits)
    assert len(groups) == 1 + 3 * 4  # none of the spots, then studies x tenths
    assert max(most) <= 2  # that of none, and the one before
    n = sum(map(len, task.expression.values()))
    assert [sum(p.n for p in own) for own in parts] == [n, n]


def test_panels_from_training_spots_alone(made):
    task = load(made, replace(SMALL, genes_from="train"))
    loso = next(s for s in task.splits if s.name == "loso")
    for fold in loso.folds:
        chosen = tuple(task.genes[i] for i in fold.columns)
        names = loso.samples(fold.train)
        manifest = made / "SYNTH" / f"only {fold.name}.csv"
        table = pd.read_csv(made / "SYNTH" / "samples.csv")
        table[table.sample_id.isin(names)].to_csv(manifest, index=False)
        alone = load(made, replace(SMALL, split="random", manifest=manifest))
        assert chosen == alone.genes
        manifest.unlink()
    assert not [leak for leak in find_leaks(task, loso) if leak.kind == "genes"]
    features = Precomputed(f"precomputed:{made}/SYNTH/embeddings").features(task)
    for evaluation in evaluate(features, task, FIT, keep=[0]):
        assert all(len(f["gene_pcc"]) == 15 for f in evaluation.record["folds"])
        assert all(s["pcc"] is None or -1 <= s["pcc"] <= 1 for s in evaluation.record["samples"])


def test_a_fixed_panel(made, tmp_path):
    path = tmp_path / "panel.json"
    fixed = Extended(folds=4, genes_file=path)
    path.write_text(json.dumps({"genes": ["GENE0003", "GENE0001"]}))
    assert load(made, fixed).genes == ("GENE0003", "GENE0001")
    path.write_text(json.dumps({"genes": ["GENE9999"]}))
    with pytest.raises(EvalError, match=r"S000\.h5ad: 1 of 1 genes absent: GENE9999"):
        load(made, fixed)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], r"panel\.json: missing\. A panel is a JSON file of the form"),
        (["--genes", "hmhvg"], "the panel is fixed.*Leave out --genes, "),
        (["--n-genes", "50"], "the panel is fixed"),
        (["--hvg-pool", "500"], "the panel is fixed"),
        (["--genes-from", "train"], "the panel is fixed"),
    ],
)
def test_options_that_a_fixed_panel_has_no_use_for(made, tmp_path, capsys, more, message):
    base = ["--protocol", "hest-extended", "--bench-root", str(made), "--tasks", "SYNTH", "--encoder", "color-stats"]
    base += ["--out", str(tmp_path / "o"), "--genes-file", str(tmp_path / "panel.json")]
    assert main([*base, *more]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "o").exists()


def test_held_out_predictions_are_kept_in_place(made):
    task = load(made, replace(SMALL, split="loso"))
    features = Precomputed(f"precomputed:{made}/SYNTH/embeddings").features(task)
    (evaluation,) = evaluate(features, task, FIT, keep=[3])
    sample = evaluation.record["samples"][0]
    gene = task.genes[3]
    fold = next(f for f in evaluation.record["folds"] if sample["sample"] in f["held_out"])
    names = fold["held_out"]
    predicted = np.concatenate([evaluation.predictions[n][:, 0] for n in names])
    measured = np.concatenate([task.expression[n][:, 3] for n in names])
    assert np.corrcoef(predicted, measured)[0, 1] == pytest.approx(fold["gene_pcc"][gene], abs=1e-5)


def test_strict_refuses_a_panel_that_has_seen_the_test_samples(made):
    with pytest.raises(EvalError, match=r"--strict refuses 2 leak\(s\):(.|\n)*gene panel"):
        guard([load(made)], strict=True)
    warnings = guard([load(made, replace(SMALL, genes_from="train"))], strict=True)
    assert len(warnings) == 1
    assert warnings[0].startswith("SYNTH, random: spots of one slide")


def test_a_patient_of_two_studies_is_found(root):
    def same_patient(table):
        table.loc[table.sample_id.isin(["S000", "S001"]), "patient"] = "P"
        return table

    rewrite_manifest(root, same_patient)
    task = load(root, replace(SMALL, genes_from="train", split="loso"))
    kinds = [leak.kind for leak in find_leaks(task, task.splits[0])]
    assert kinds == ["patient in two studies", "patient in training"]
    features = Precomputed(f"precomputed:{root}/SYNTH/embeddings").features(task)
    (evaluation,) = evaluate(features, task, FIT)
    assert [leak["kind"] for leak in evaluation.record["leaks"]] == kinds
    assert any("patient 'P' is both in training and held out" in note for note in evaluation.record["notes"])
    with pytest.raises(EvalError, match="patient 'P' occurs in two studies"):
        guard([task], strict=True)


def test_a_slide_and_patches_on_both_sides_are_found(root):
    rewrite_manifest(root, lambda t: t.assign(slide=["x", "x", "", "", "", ""]))
    for kind, suffix in (("patches", "h5"), ("adata", "h5ad")):
        folder = root / "SYNTH" / kind
        shutil.copyfile(folder / f"S000.{suffix}", folder / f"S002.{suffix}")
    task = load(root, replace(SMALL, genes_from="train", split="loso"))
    leaks = {leak.kind: leak.text for leak in find_leaks(task, task.splits[0])}
    assert leaks["slide in training"] == "slide 'x' is both in training and held out in folds study 1, study 2"
    assert "S000 = S002" in leaks["patches in training"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(study="one"), "all 6 samples are of one study"),
        (lambda t: t.drop(columns="study"), "no study for sample S000"),
        (lambda t: pd.concat([t, t[:1]]), "S000 listed more than once"),
        (lambda t: t.rename(columns={"sample_id": "id"}), "no column sample_id; found id"),
        (lambda t: t[:0], "no rows"),
        (lambda t: t.replace("S003", "S033"), r"2 file\(s\) that do not exist"),
    ],
)
def test_bad_manifests(root, change, message):
    rewrite_manifest(root, change)
    with pytest.raises(EvalError, match=message):
        load(root)


def test_a_study_of_three_spots_is_scored_and_said(root):
    for kind, keys in (("patches", ("img", "barcode", "coords")), ("embeddings", ("embeddings", "barcode"))):
        with h5py.File(root / "SYNTH" / kind / "S002.h5", "r+") as file:
            for key in keys:
                values = file[key][:3]
                del file[key]
                file[key] = values
    rewrite_manifest(root, lambda t: t[t.sample_id != "S005"])
    task = load(root, replace(SMALL, split="loso"))
    features = Precomputed(f"precomputed:{root}/SYNTH/embeddings").features(task)
    (evaluation,) = evaluate(features, task, FIT)
    assert any("fold study 3: only 3 held-out spots" in note for note in evaluation.record["notes"])


def test_logged_counts_are_refused(root):
    def logged(adata):
        adata.X = adata.X.log1p()
        return adata

    rewrite_counts(root, "S001", logged)
    with pytest.raises(EvalError, match=r"S001\.h5ad: .*already logged"):
        load(root)


def test_a_gene_absent_in_one_study_is_no_candidate(root):
    gene = load(root).genes[0]
    rewrite_counts(root, "S004", lambda a: a[:, a.var_names != gene].copy())
    assert gene not in load(root).genes


def test_a_gene_absent_in_a_held_out_study_is_left_out_of_a_folds_panel(root):
    settings = replace(SMALL, split="loso", genes_from="train")

    def panels():
        task = load(root, settings)
        return {f.name: ([task.genes[i] for i in f.columns], f.panel) for f in task.splits[0].folds}

    before = panels()["study 2"]
    assert before[1] == {"candidates": 30, "unlisted": 0, "pool_used": None}
    rewrite_counts(root, "S004", lambda a: a[:, a.var_names != before[0][0]].copy())
    found = panels()
    assert not any(before[0][0] in genes for genes, _ in found.values())
    assert found["study 2"][1] == {"candidates": 29, "unlisted": 1, "pool_used": None}
    assert found["study 1"][1] == {"candidates": 29, "unlisted": 0, "pool_used": None}
    task = load(root, settings)
    features = Precomputed(f"precomputed:{root}/SYNTH/embeddings").features(task)
    (evaluation,) = evaluate(features, task, FIT)
    assert [f["panel"]["unlisted"] for f in evaluation.record["folds"]] == [0, 1, 0]


def test_a_pool_shorter_than_asked_for_is_said(root):
    rewrite_counts(root, "S004", lambda a: a[:, 6:].copy())
    rule = PanelRule("hmhvg", 10, 25)
    task = load(root, replace(SMALL, rule=rule, split="loso"))
    assert (task.panel["candidates"], task.panel["pool_used"]) == (24, 24)
    assert task.panel["candidates_by_study"] == {"study 1": 30, "study 2": 24, "study 3": 30}
    features = Precomputed(f"precomputed:{root}/SYNTH/embeddings").features(task)
    (evaluation,) = evaluate(features, task, FIT)
    said = "of the 24 most variable ones instead of 25, as only 24 genes are seen often enough in every sample"
    assert [n for n in evaluation.record["notes"] if said in n and "within study 'study 2': 24" in n]
    task = load(root, replace(SMALL, rule=rule, split="loso", genes_from="train"))
    (evaluation,) = evaluate(features, task, FIT)
    (note,) = [note for note in evaluation.record["notes"] if said in note]
    assert note.endswith("(fold study 1, the shortest of 3 such folds)")
    task = load(root, replace(SMALL, rule=replace(rule, pool=24), split="loso"))
    (evaluation,) = evaluate(features, task, FIT)
    assert not any("most variable ones" in note for note in evaluation.record["notes"])


def test_precomputed_embeddings_are_aligned_by_barcode(root):
    task = load(root)
    encoder = Precomputed(f"precomputed:{root}/SYNTH/embeddings")
    before, key = np.array(encoder.features(task)["S001"]), encoder.settings["weights_hash"]
    with h5py.File(root / "SYNTH" / "embeddings" / "S001.h5", "r+") as file:
        for name in ("embeddings", "barcode"):
            file[name][...] = file[name][()][::-1]
    np.testing.assert_array_equal(encoder.features(task)["S001"], before)
    assert Precomputed(encoder.name).settings["weights_hash"] != key


def test_embeddings_of_another_data_set(root, tmp_path):
    task = load(root)
    folder = tmp_path / "other"
    shutil.copytree(root / "SYNTH" / "embeddings", folder)
    encoder = Precomputed(f"precomputed:{folder}")
    shutil.copyfile(folder / "S000.h5", folder / "S001.h5")
    with pytest.raises(EvalError, match="barcodes absent: S001-0"):
        encoder.features(task)
    (folder / "S001.h5").unlink()
    with pytest.raises(EvalError, match=r"no S001\.h5 or S001\.npy"):
        encoder.features(task)
    (folder / "S001.npy").write_text("no array")
    with pytest.raises(EvalError, match=r"S001\.npy: not a readable \.npy file"):
        encoder.features(task)
    np.save(folder / "S001.npy", np.zeros((5, 3), dtype=np.float32))
    with pytest.raises(EvalError, match="they must be"):
        encoder.features(task)
    np.save(folder / "S001.npy", np.full((len(task.expression["S001"]), 12), np.nan, dtype=np.float32))
    with pytest.raises(EvalError, match="sample S001 are NaN"):
        evaluate(encoder.features(task), task, FIT)
    with pytest.raises(EvalError, match="no such folder"):
        Precomputed("precomputed:nowhere")


def test_command_line_and_config(made, tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("protocol: hest-extended\nsplit: loso\nn-genes: 12\nno_report: true\nhead: ridge-tuned\n")
    base = ["--config", str(config), "--bench-root", str(made), "--tasks", "SYNTH"]
    spec = f"precomputed:{made}/SYNTH/embeddings"
    assert main([*base, "--encoder", spec, "--out", str(tmp_path / "a")]) == 0
    (row,) = json.loads((tmp_path / "a" / "results.json").read_text())["results"]
    assert (row["split"], len(row["genes"]), row["protocol"]) == ("loso", 12, "hest-extended")
    assert main([*base, "--encoder", spec, "--out", str(tmp_path / "b"), "--strict"]) == 2
    assert "error: --strict refuses" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    config.write_text("protocol: hest-extended\nn_gene: 12\n")
    assert main([*base, "--encoder", spec, "--out", str(tmp_path / "b")]) == 2
    assert "unknown option 'n_gene'. Nearest: n_genes" in capsys.readouterr().err


def test_one_sample_can_be_split_at_random_only(root):
    rewrite_manifest(root, lambda t: t[:1])
    with pytest.raises(EvalError, match="all 1 samples are of one study"):
        load(root)
    task = load(root, replace(SMALL, split="random"))
    features = Precomputed(f"precomputed:{root}/SYNTH/embeddings").features(task)
    (evaluation,) = evaluate(features, task, FIT)
    assert [s["sample"] for s in evaluation.record["samples"]] == ["S000"]


def test_every_head_finds_the_signal(made):
    task = load(made, replace(SMALL, split="loso"))
    features = Precomputed(f"precomputed:{made}/SYNTH/embeddings").features(task)
    scores = {}
    for head in ("ridge", "ridge-tuned", "pls", "knn"):
        (evaluation,) = evaluate(features, task, FitSettings("hest-extended", head))
        scores[head] = evaluation.record["pcc"]["mean"]
    assert min(scores.values()) > 0.1


def test_a_penalty_can_be_tuned_on_two_studies(root):
    rewrite_manifest(root, lambda t: t[t.study != "study 3"])
    task = load(root, replace(SMALL, split="loso"))
    features = Precomputed(f"precomputed:{root}/SYNTH/embeddings").features(task)
    (evaluation,) = evaluate(features, task, FitSettings("hest-extended", "ridge-tuned"))
    inner = [fold["inner_groups"] for fold in evaluation.record["folds"]]
    assert inner == [{"level": "sample", "count": 2}] * 2  # both samples of a study are of one patient
