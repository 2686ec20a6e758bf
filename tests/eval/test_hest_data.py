import re
from importlib.metadata import version

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse

from eval.errors import EvalError
from eval.expression import read_counts
from eval.hest_data import load_task, read_barcodes


def rewrite_h5(path, **changes):
    with h5py.File(path, "r+") as file:
        for key, value in changes.items():
            if key in file:
                del file[key]
            if value is not None:
                file[key] = value


def rewrite_h5ad(path, change):
    adata = change(anndata.read_h5ad(path))
    adata.write_h5ad(path)


def test_aligns_expression_to_patches_by_barcode(bench):
    task = load_task(bench, "TOY")
    adata = anndata.read_h5ad(bench / "TOY" / "adata" / "B.h5ad")
    barcodes = read_barcodes(bench / "TOY" / "patches" / "B.h5")
    assert list(adata.obs_names[:24]) != barcodes
    for i, barcode in enumerate(barcodes):
        np.testing.assert_allclose(task.expression["B"][i], np.log1p(adata[barcode, list(task.genes)].X.ravel()))


def test_sparse_counts_and_plural_key_read_the_same(bench):
    dense = load_task(bench, "TOY")
    path = bench / "TOY" / "adata" / "A.h5ad"

    def sparse(adata):
        adata.X = scipy.sparse.csr_matrix(adata.X)
        return adata

    rewrite_h5ad(path, sparse)
    with h5py.File(bench / "TOY" / "patches" / "A.h5", "r+") as file:
        file.move("barcode", "barcodes")
    np.testing.assert_array_equal(load_task(bench, "TOY").expression["A"], dense.expression["A"])


def test_data_hash_follows_content(bench):
    def data_hash():
        task = load_task(bench, "TOY")
        return task.data_hash(task.splits[0])

    before = data_hash()
    assert data_hash() == before
    path = bench / "TOY" / "patches" / "A.h5"
    with h5py.File(path, "r+") as file:
        file["img"][0, 0, 0, 0] ^= 1
    assert data_hash() != before


def test_missing_root_and_task_name_the_nearest(bench):
    with pytest.raises(EvalError, match=r"no such folder\. Nearest: bench"):
        load_task(bench.parent / "bemch", "TOY")
    with pytest.raises(EvalError, match=r"task 'TOYS'.*Nearest: TOY"):
        load_task(bench, "TOYS")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img": None}, "no dataset 'img'; found barcode, coords"),
        ({"img": np.zeros((24, 8, 8, 3), np.float32)}, "float32 of shape.*must be uint8 RGB"),
        ({"img": np.zeros((24, 8, 8, 4), np.uint8)}, "must be uint8 RGB"),
        ({"img": np.zeros((0, 8, 8, 3), np.uint8)}, "must be uint8 RGB"),
        ({"img": np.zeros((23, 8, 8, 3), np.uint8)}, "23 patches but 24 barcodes"),
        ({"barcode": None}, "no dataset 'barcode'"),
        ({"barcode": np.array([b"A-0"] * 24)}, r"duplicate barcode\(s\): A-0"),
        ({"coords": np.zeros((23, 2))}, r"'coords' is float64 of shape \(23, 2\); it must .* \(24, 2\)"),
        ({"coords": np.zeros(48)}, "'coords' is float64 of shape"),
        ({"coords": np.zeros((24, 1), np.int32)}, "'coords' is int32 of shape"),
        ({"coords": np.zeros((24, 2), "S3")}, r"'coords' is \|S3 of"),
    ],
)
def test_bad_patches(bench, changes, message):
    rewrite_h5(bench / "TOY" / "patches" / "A.h5", **changes)
    with pytest.raises(EvalError, match=message):
        load_task(bench, "TOY")


def test_coordinates_may_be_missing(bench):
    rewrite_h5(bench / "TOY" / "patches" / "A.h5", coords=None)
    assert len(load_task(bench, "TOY").expression["A"]) == 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[a.obs_names != "A-3"].copy(), "1 of 24 barcodes absent: A-3"),
        (lambda a: a[:, a.var_names != "RED"].copy(), "1 of 4 genes absent: RED"),
        (lambda a: anndata.concat([a, a[["A-3"]]]), r"1 duplicate barcode\(s\): A-3"),
        (lambda a: anndata.AnnData(np.log1p(a.X), a.obs, a.var), "already logged"),
        (lambda a: anndata.AnnData(np.where(a.X == 3, np.nan, a.X), a.obs, a.var), "not finite"),
        (lambda a: anndata.AnnData(a.X - 50, a.obs, a.var), "negative"),
    ],
)
def test_bad_expression(bench, change, message):
    rewrite_h5ad(bench / "TOY" / "adata" / "A.h5ad", change)
    with pytest.raises(EvalError, match=message):
        load_task(bench, "TOY")


@pytest.mark.parametrize("name", ["patches/A.h5", "adata/A.h5ad"])
def test_truncated_files(bench, name):
    path = bench / "TOY" / name
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(EvalError, match=r"not a readable|not an h5ad file that anndata .* can read"):
        load_task(bench, "TOY")


def test_barcodes_and_genes_come_in_the_order_asked(bench):
    path = bench / "TOY" / "adata" / "A.h5ad"
    forward = read_counts(path, ["A-0", "A-1"]).panel(("RED", "MIX"))
    np.testing.assert_array_equal(read_counts(path, ["A-1", "A-0"]).panel(("MIX", "RED")), forward[::-1, ::-1])


def test_one_name_for_two_files(bench):
    path = bench / "TOY" / "splits" / "train_1.csv"
    path.write_text(
        path.read_text().replace("patches/A.h5", "patches/C.h5").replace("C,patches/C.h5", "C,patches/A.h5")
    )
    with pytest.raises(EvalError, match="different files in different folds"):
        load_task(bench, "TOY")


def test_an_h5ad_file_of_a_newer_layout_is_named(bench):
    path = bench / "TOY" / "adata" / "A.h5ad"
    with h5py.File(path, "r+") as file:
        file["X"].attrs["encoding-version"] = "99.0.0"
    with pytest.raises(EvalError, match=rf"A\.h5ad: not an h5ad file that anndata {re.escape(version('anndata'))} can"):
        load_task(bench, "TOY")


@pytest.mark.filterwarnings("ignore:.*was written with")
def test_an_h5ad_file_of_an_old_layout_is_read(bench):
    """Before anndata 0.7 tables were compound datasets with the names in `index`, and nothing had an encoding."""
    expected = load_task(bench, "TOY").expression["A"]
    path = bench / "TOY" / "adata" / "A.h5ad"
    adata = anndata.read_h5ad(path)
    with h5py.File(path, "w") as file:
        file["X"] = adata.X
        for key, names in (("obs", adata.obs_names), ("var", adata.var_names)):
            file[key] = np.array([(name.encode(),) for name in names], dtype=[("index", "S16")])
    np.testing.assert_array_equal(load_task(bench, "TOY").expression["A"], expected)
