"""The benchmark of whole training steps: tiny recipes, a stand-in for the peer, and the operations it counts."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"
MODULES = [path.stem for path in sorted(BENCH.glob("*.py"))]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The modules of scripts/bench, imported as `python scripts/bench/NAME.py` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        names = ("common", "train_recipe", "train_step", "peer_steps", "top_kernels")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in MODULES:  # their names are common words
        sys.modules.pop(name, None)


@pytest.fixture
def peer(tmp_path):
    """An interpreter that stands for the peer's: it checks what it is asked for and answers as the peer does."""
    program = tmp_path / "python"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        "case = json.loads(sys.argv[2])\n"
        "assert sys.argv[1].endswith('lightly_peer.py') and case['batch'] == 2 and case['patch'] == 14, case\n"
        "assert case['drop_path'] == 0.1 and case['threads'] == 1 and case['dtype'] == 'fp32', case\n"
        f"open({str(tmp_path / 'steps')!r}, 'w').close()\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        f"    open({str(tmp_path / 'steps')!r}, 'a').write(line)\n"
        "    print('ready', flush=True)\n"
    )
    program.chmod(0o755)
    return program


def run(bench, tmp_path, *options):
    path = tmp_path / "out.json"
    arguments = ["--quick", "--threads", "1", "--json", str(path), *options]
    return bench.common.run(bench.train_step.program, arguments), path


def test_backbones_and_their_ratios(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench.train_step, "STUDIED", ["vit24", "mvhybrid"])
    code, path = run(
        bench, tmp_path, "--no-memory", "--backbones", "vit24", "mvhybrid", "--steps", "2", "--seconds", "60"
    )
    assert code == 0
    content = json.loads(path.read_text())
    rows = {row["name"]: row for row in content["rows"]}
    assert list(rows) == ["vit24", "mvhybrid"]
    for row in rows.values():
        assert row["crops"] == "2x32 1x16 /16"
        assert (row["centering"], row["heads"]) == ("sinkhorn_knopp", 2)
        assert row["samples"] == 2
        assert row["images_per_s"] == pytest.approx(2 * row["steps_per_s"])
        assert row["steps_per_s"] == pytest.approx(1e3 / row["min_ms"])
    ratio = rows["vit24"]["min_ms"] / rows["mvhybrid"]["min_ms"]
    assert content["ratios"] == {"mvhybrid over vit24": pytest.approx(ratio)}
    assert "mvhybrid over vit24" in capsys.readouterr().out


def test_the_peer_takes_as_many_steps(bench, tmp_path, peer):
    code, path = run(bench, tmp_path, "--no-memory", "--backbones", "--lightly", str(peer))
    assert code == 0
    content = json.loads(path.read_text())
    assert [row["name"] for row in content["rows"]] == ["vit_small/14", "lightly-train, ViT-S/14"]
    assert {(row["centering"], row["heads"]) for row in content["rows"]} == {("centering", 1)}
    times = [row["min_ms"] for row in content["rows"]]
    assert content["ratios"] == {"vit_small/14 over lightly-train, ViT-S/14": pytest.approx(times[1] / times[0])}
    assert (tmp_path / "steps").read_text().count("step") >= 3  # warm-ups and samples


def test_a_peer_that_fails_is_reported(bench, tmp_path, capsys):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'No module named lightly_train' >&2\nexit 1\n")
    program.chmod(0o755)
    assert run(bench, tmp_path, "--backbones", "--lightly", str(program))[0] == 2
    assert "the peer ended: No module named lightly_train" in capsys.readouterr().err
    assert run(bench, tmp_path, "--backbones", "--lightly", str(tmp_path / "none"))[0] == 2
    assert "give the Python interpreter of the peer's environment" in capsys.readouterr().err


def test_unknown_backbones_are_an_error_for_the_user(bench, tmp_path, capsys):
    assert run(bench, tmp_path, "--backbones", "vit13")[0] == 2
    assert "vit13" in capsys.readouterr().err


def test_steps_train(bench):
    recipe = bench.train_recipe.Recipe("vit12_tiny", 2, 16, 32, 16, 1, 64)
    step = bench.train_recipe.make_step(recipe, CPU, torch.float32)
    losses = [step() for _ in range(5)]
    assert losses[-1] < losses[0]


def test_checkpointing_changes_no_loss(bench):
    recipe = bench.train_recipe.Recipe("mvhybrid_tiny", 2, 16, 32, 16, 1, 64)
    other = bench.train_recipe.Recipe("mvhybrid_tiny", 2, 16, 32, 16, 1, 64, checkpointing=True)
    steps = [bench.train_recipe.make_step(r, CPU, torch.float32) for r in (recipe, other)]
    assert [steps[0]() for _ in range(2)] == pytest.approx([steps[1]() for _ in range(2)], rel=1e-5)


def test_the_profile_names_what_takes_the_time(bench, tmp_path):
    path = tmp_path / "kernels.txt"
    assert run(bench, tmp_path, "--no-memory", "--profile", str(path))[0] == 0
    lines = path.read_text().splitlines()
    assert lines[0] == "vit12_tiny, 2x32 1x16 /16, batch 2, torch.float32:"
    assert lines[1].split() == ["share", "ms", "calls", "kernel"]
    assert sum(float(line.split()[0]) for line in lines[2:] if line) == pytest.approx(1, abs=1e-2)


def test_the_longest_kernel_comes_first(bench):
    a, b = torch.randn(512, 512), torch.randn(8)
    rows = bench.top_kernels.top_kernels(lambda: (a @ a, [b.neg() for _ in range(3)]), CPU, count=1)
    assert [row["kernel"] for row in rows] == ["aten::mm", f"{rows[1]['kernel'].split()[0]} others"]
    assert rows[0]["calls"] == 1
    assert rows[0]["share"] > 0.5
    assert sum(row["share"] for row in rows) == pytest.approx(1)


@pytest.mark.parametrize("options", [{}, {"centering": "centering", "separate_head": False}])
def test_the_objective_is_that_of_the_recipe(bench, options):
    config = bench.train_recipe.Recipe("vit12_tiny", 2, 16, 32, 16, 1, 64, **options).config()
    expected = (options.get("centering", "sinkhorn_knopp"), options.get("separate_head", True), 64)
    assert (config.train.centering, config.ibot.separate_head, config.ibot.head_n_prototypes) == expected


def test_operations_of_a_vit(bench):
    recipe = bench.train_recipe.Recipe("vit12_tiny", 2, 16, 64, 32, 3, 100)
    dim, masked = 192, len(bench.train_recipe.make_batch(recipe).mask_indices)
    assert masked > 0

    def image(patches):
        n = patches + 1
        return patches * 768 * dim + 12 * (12 * n * dim**2 + 2 * n**2 * dim)

    score = dim * 2048 + 2048**2 + 2048 * 256 + 256 * 100
    teacher = 4 * image(16) + (4 + masked) * score
    student = teacher + 6 * (image(4) + score)
    assert bench.train_recipe.operations(recipe) == pytest.approx(2 * (3 * student + teacher), rel=1e-3)


def test_peak_memory_holds_model_and_optimiser(bench, tmp_path):
    code, path = run(bench, tmp_path)
    assert code == 0
    (row,) = json.loads(path.read_text())["rows"]
    parameters = 4 * sum(p.numel() for p in bench.train_recipe.SSLMetaArch(
        bench.train_recipe.Recipe("vit12_tiny", 2, 16, 32, 16, 1, 64).config()
    ).student.parameters())  # fmt: skip
    assert row["peak_mib"] * 2**20 > 5 * parameters  # student, teacher, gradients and two moments
