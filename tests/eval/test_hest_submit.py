import json
import shlex

import pytest

from eval.compare import main as compare_main
from eval.errors import EvalError
from eval.hest import main
from eval.hest_submit import folder_name, make_tasks


def arguments(bench, out, *more):
    return ["--bench-root", str(bench), "--tasks", "TOY", "--device", "cpu", "--no-report", "--out", str(out), *more]


def test_one_job_an_encoder_with_a_shared_cache(bench, tmp_path):
    tasks = make_tasks(arguments(bench, tmp_path / "o", "--encoder", "color-stats", "random:vit12_tiny", "--pca", "5"))
    assert [t.arguments[-6:] for t in tasks] == [
        ("--encoder", e, "--out", str(tmp_path / "o" / folder), "--cache", str(tmp_path / "o" / "embeddings"))
        for e, folder in (("color-stats", "color-stats"), ("random:vit12_tiny", "random_vit12_tiny"))
    ]
    assert all("--pca" in t.arguments and t.arguments.count("--out") == 1 for t in tasks)


def test_jobs_run_here(bench, tmp_path, capsys):
    job = ["submit", "--cluster", "debug", "--ngpus", "0", "--"]
    run = arguments(bench, tmp_path / "o", "--encoder", "color-stats", "timm:resnet10t,pretrained=false")
    assert main([*job, *run]) == 0
    printed = capsys.readouterr().out
    assert printed.count("finished: python -m eval.hest") == 2
    for folder in ("color-stats", "timm_resnet10t_pretrained=false"):
        assert len(json.loads((tmp_path / "o" / folder / "results.json").read_text())["results"]) == 1
    assert len(list((tmp_path / "o" / "embeddings").glob("*.h5"))) == 6
    compare, join = (line.partition("python -m ")[2] for line in printed.splitlines()[-2:])
    assert compare_main(shlex.split(compare.removeprefix("eval.compare "))) == 0
    assert main(shlex.split(join.removeprefix("eval.hest "))) == 0
    together = json.loads((tmp_path / "o" / "joint" / "results.json").read_text())
    assert {row["encoder"] for row in together["results"]} == {"color-stats", "timm:resnet10t,pretrained=false"}


def test_bad_input_shows_before_a_job_starts(bench, tmp_path, capsys):
    assert main(["submit", "--cluster", "debug"]) == 2
    assert "after --" in capsys.readouterr().err
    with pytest.raises(EvalError, match="no encoder given"):
        make_tasks(arguments(bench, tmp_path))
    with pytest.raises(EvalError, match="write into one folder"):
        make_tasks(arguments(bench, tmp_path, "--encoder", "random:a", "random/a"))
    config = tmp_path / "c.yaml"
    config.write_text("encoder: color-stats\n")
    with pytest.raises(EvalError, match="it names encoders"):
        make_tasks(arguments(bench, tmp_path, "--config", str(config), "--encoder", "random:vit12"))


def test_folder_names():
    assert folder_name("runs/mvhybrid/teacher.safetensors") == "runs_mvhybrid"
    assert folder_name("timm:vit_small,pretrained=false") == "timm_vit_small_pretrained=false"


def test_job_options_are_written_out():
    with pytest.raises(SystemExit) as stopped:
        main(["submit", "--part", "gpu", "--", "--encoder", "color-stats"])
    assert stopped.value.code == 2
