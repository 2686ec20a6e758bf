import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from synthetic_hest_extended import Design, write_task

from eval import report_figures
from eval.errors import EvalError
from eval.extended import Extended
from eval.hest import main
from eval.hest_run import Work, run
from eval.maps import has_places, read_map
from eval.panels import PanelRule
from eval.report import write_report
from eval.results import read_results, write_results
from eval.settings import FitSettings
from eval.tissue import Tissue

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    write_task(root, Design(samples=4, studies=2, spots=240, features=8, genes=14, factors=4))
    shutil.copytree(root / "SYNTH" / "embeddings", root / "a <b> & c")
    run(
        [f"precomputed:{root}/a <b> & c", "color-stats"],
        root,
        ["SYNTH"],
        root / "out",
        fit=FitSettings("hest-extended"),
        extended=Extended(folds=3, rule=PanelRule(size=10)),
        work=Work(progress=False, map_genes=("GENE0002",), command="a & b"),
    )
    write_report(root / "out")
    return root / "out"


def test_page_is_self_contained_and_escaped(results):
    page = (results / "report.html").read_text()
    assert re.findall(r"(?:src|href)=['\"](?!data:)", page) == []
    assert "<script" not in page
    assert "a &lt;b&gt; &amp; c" in page
    assert "a <b> &" not in page
    assert page.count("data:image/svg+xml;base64,") == 3
    assert page.count("data:image/png;base64,") == 1
    for heading in (
        "Leaderboard",
        "unseen studies",
        "PCC of every gene",
        "gene's expression",
        "Measured and predicted",
    ):
        assert heading in page


def test_numbers_are_those_of_the_results(results):
    page = (results / "report.html").read_text()
    for row in read_results(results)["results"]:
        assert f"{row['pcc']['mean']:.3f} ± {row['pcc']['std']:.3f}" in page
    drop = read_results(results)["drops"][0]["pcc"]
    assert f"{100 * drop:+.1f}%" in page
    assert "All 10 genes" in page


def test_maps_hold_the_chosen_gene(results):
    row = read_results(results)["results"][0]
    genes, samples = read_map(results / "maps" / row["map"])
    assert genes == ["GENE0002"]
    assert set(samples) == {"S000", "S001", "S002", "S003"}
    for arrays in samples.values():
        assert arrays["measured"].shape == arrays["predicted"].shape == (len(arrays["coords"]), 1)
        assert np.isfinite(arrays["predicted"]).all()


def test_one_colour_scale_a_pair_and_no_sample_without_places(monkeypatch):
    scales = []
    monkeypatch.setattr(
        report_figures, "_map", lambda axes, coords, values, scale: scales.append((scale.vmin, scale.vmax))
    )
    arrays = {"coords": np.eye(2), "measured": np.array([[0.0], [4.0]]), "predicted": np.array([[-1.0], [np.nan]])}
    tissue = {"s": Tissue(np.zeros((2, 2, 3), np.uint8), np.array([0.0, 2.0, 2.0, 0.0]))}
    assert report_figures.slide_maps(["G"], {"s": arrays}, tissue).startswith("data:image/png")
    assert scales == [(-1.0, 4.0)] * 2
    assert has_places(np.eye(2))
    assert not has_places(np.zeros((3, 2)))


def test_report_command(results, tmp_path, capsys):
    (results / "report.html").unlink()
    assert main(["report", str(results)]) == 0
    assert (results / "report.html").is_file()
    write_results(tmp_path, [], {}, {})
    with pytest.raises(EvalError, match="no rows"):
        write_report(tmp_path)
    assert main(["report", str(tmp_path / "absent")]) == 2
    assert "no such results file" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to look at the page with")
def test_a_browser_shows_every_picture(results, tmp_path):
    page = (results / "report.html").read_text()
    wide = "[...document.images].filter(i => i.naturalWidth > 99).length"
    count = f"<script>onload = () => {{document.title = {wide}}}</script>"
    (tmp_path / "page.html").write_text(page.replace("</body>", f"{count}</body>"))
    chromium = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    picture = tmp_path / "page.png"
    view = [f"--screenshot={picture}", "--window-size=1200,2600", f"file://{results}/report.html"]
    subprocess.run([*chromium, *view], check=True, capture_output=True, timeout=120)
    shown = np.asarray(Image.open(picture).convert("L"), dtype=float)
    thirds = np.array_split(shown, 3)
    assert all(part.std() > 5 for part in thirds)  # something is drawn from top to bottom
    dump = [*chromium, "--dump-dom", f"file://{tmp_path}/page.html"]
    dom = subprocess.run(dump, check=True, capture_output=True, text=True, timeout=120).stdout
    assert "<title>4</title>" in dom
