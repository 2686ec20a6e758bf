import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from eval.errors import EvalError
from eval.gene_stats import gene_sums
from eval.panels import PanelRule, candidates, choose_panel, highly_variable

HER2ST = Path(__file__).resolve().parents[3] / "shared" / "data" / "her2st" / "counts"


def summed(counts, genes):
    matrix = scipy.sparse.csr_matrix(np.asarray(counts, dtype=np.float32))
    return gene_sums(np.array(genes, dtype=str), matrix)


def hest_selection(samples, size):
    """HEST-1k's rule with scanpy: common genes seen in 10% of every sample's spots, log1p, highly_variable_genes."""
    scanpy = pytest.importorskip("scanpy", reason="the reference selection is scanpy's")
    common = None
    for counts, genes in samples.values():
        adata = anndata.AnnData(pd.DataFrame(counts, columns=genes).astype(np.float32))
        scanpy.pp.filter_genes(adata, min_cells=int(np.ceil(0.1 * len(counts))))
        common = adata.var_names if common is None else np.intersect1d(common, adata.var_names)
    common = [g for g in common if "BLANK" not in g and "Control" not in g]
    stacked = np.concatenate([pd.DataFrame(c, columns=g)[common] for c, g in samples.values()]).astype(np.float32)
    adata = anndata.AnnData(pd.DataFrame(stacked.copy(), columns=common))
    scanpy.pp.log1p(adata)
    scanpy.pp.highly_variable_genes(adata, n_top_genes=size)
    return adata.var_names[adata.var["highly_variable"]][:size].tolist(), stacked.mean(axis=0), common


def synthetic(seed=0, n=80, g=300):
    rng = np.random.default_rng(seed)
    genes = [*(f"G{i}" for i in range(g)), "BLANK_1", "NegControlProbe"]
    rates = np.concatenate([rng.lognormal(0, 1.2, size=g), [9.0, 9.0]])
    return {s: (rng.poisson(rates * rng.gamma(2, 0.5, size=(n, g + 2))), genes) for s in "AB"}


def check_against_scanpy(samples):
    sums = {name: summed(*sample) for name, sample in samples.items()}
    expected, *_ = hest_selection(samples, 50)
    assert choose_panel(sums, PanelRule("hvg", 50)).genes == tuple(expected)
    pool, mean, common = hest_selection(samples, 120)
    ranked = sorted(pool, key=lambda g: -mean[common.index(g)])[:40]
    assert set(choose_panel(sums, PanelRule("hmhvg", 40, 120)).genes) == set(ranked)


def test_panels_equal_scanpys_on_simulated_counts():
    check_against_scanpy(synthetic())


@pytest.mark.shared
@pytest.mark.skipif(not HER2ST.is_dir(), reason="real data is not beside the checkout")
def test_panels_equal_scanpys_on_real_counts():
    tables = {s: pd.read_csv(HER2ST / f"{s}.tsv.gz", sep="\t", index_col=0) for s in ("B4", "C2", "C3")}
    samples = {s: (t.to_numpy(), t.columns.tolist()) for s, t in tables.items()}
    sums = {name: summed(*sample) for name, sample in samples.items()}
    for size in (200, 2000):
        expected, mean, common = hest_selection(samples, size)
        assert choose_panel(sums, PanelRule("hvg", size)).genes == tuple(expected)
    ranked = sorted(expected, key=lambda g: -mean[common.index(g)])[:200]
    assert set(choose_panel(sums, PanelRule("hmhvg", 200, 2000)).genes) == set(ranked)


def test_a_bin_of_one_gene_counts_as_one():
    total, squares = np.array([10.0, 11.0, 12.0, 5000.0]), np.array([30.0, 80.0, 20.0, 1e6])
    assert highly_variable(40, total, squares, 4).sum() == 4
    assert highly_variable(40, total, squares, 1).sum() == 1


def test_controls_rare_genes_and_repeated_names_are_no_candidates():
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, size=(50, 8))
    counts[4:, [2, 7]] = 0
    genes = ["A", "B", "RARE", "BLANK_7", "TWICE", "TWICE", "HALF", "HALF"]  # of HALF only one is seen
    assert candidates([summed(counts, genes)], 0.1).tolist() == ["A", "B"]
    assert choose_panel({"s": summed(counts, genes)}, PanelRule("hvg", 2)).genes == ("A", "B")


def test_too_few_genes_names_the_poorest_sample():
    samples = synthetic()
    counts, genes = samples["B"]
    few = {"A": summed(*samples["A"]), "B": summed(counts[:, :20], genes[:20])}
    with pytest.raises(EvalError, match=r"200 are wanted\. Samples that see the fewest: B \(\d+\), A"):
        choose_panel(few, PanelRule("hvg", 200))


def test_a_gene_that_another_file_does_not_list_is_no_candidate():
    sums = {name: summed(*sample) for name, sample in synthetic().items()}
    free = choose_panel(sums, PanelRule("hvg", 20))
    listed = np.array(sorted({f"G{i}" for i in range(300)} - {free.genes[0]}))
    panel = choose_panel(sums, PanelRule("hvg", 20), listed)
    assert free.genes[0] not in panel.genes
    assert panel.candidates + panel.unlisted == free.candidates
    assert panel.unlisted == 1
    with pytest.raises(EvalError, match=r"2 samples and listed in the files of all others, but 20 are wanted"):
        choose_panel(sums, PanelRule("hvg", 20), listed[:10])


@pytest.mark.parametrize("values", [{"size": 0}, {"criterion": "hmhvg", "pool": 100}, {"seen_in": 1.5}])
def test_impossible_rules(values):
    with pytest.raises(EvalError):
        PanelRule(**values)


def test_panel_is_json_able():
    assert json.dumps(choose_panel({k: summed(*v) for k, v in synthetic().items()}, PanelRule("hvg", 3)).genes)
