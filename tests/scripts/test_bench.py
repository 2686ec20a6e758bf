"""The benchmark programs: each runs with tiny shapes and writes what was promised; wrong results are not timed."""

import io
import itertools
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from bench_programs import quick

CPU = torch.device("cpu")


def test_selective_scan(bench, tmp_path, capsys):
    content = quick(bench.selective_scan, tmp_path)
    names = {row["name"] for row in content["rows"]}
    assert {"ours (cpu)", "ours (reference)", "reference loop", "MambaVisionMixer (whole layer)"} <= names
    assert {row["mode"] for row in content["rows"]} == {"forward", "forward+backward"}
    assert all(0 < row["min_ms"] <= row["median_ms"] for row in content["rows"])
    first = content["rows"][0]["name"]
    of = {row["name"]: row["min_ms"] for row in content["rows"] if row["mode"] == "forward" and row["length"] == 5}
    ratio = content["ratios"][f"forward, 2 x 5 tokens: {first} over reference loop"]
    assert ratio > 0
    assert "forward+backward: time per token at 5 over that at 9" in content["ratios"]
    out = capsys.readouterr().out
    assert content["machine"]["cpu"] in out
    assert f"{of['reference loop']:.4g}" in out


def test_a_missing_peer_is_named_with_its_remedy(bench, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mambapy", None)  # importing it raises ImportError
    monkeypatch.setitem(sys.modules, "mambapy.pscan", None)
    content = quick(bench.selective_scan, tmp_path)
    assert "mambapy" not in {row["name"] for row in content["rows"]}
    assert any("pip install mambapy" in note for note in content["notes"])


def test_an_installed_mambapy_is_discretised_as_its_block_does(bench, monkeypatch):
    """A stand-in for its `pscan`, which returns all states h_t = a_t h_{t-1} + x_t of (B, L, D, N) tensors."""

    def pscan(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        states = [x[:, 0]]
        for t in range(1, x.shape[1]):
            states.append(a[:, t] * states[-1] + x[:, t])
        return torch.stack(states, dim=1)

    monkeypatch.setitem(sys.modules, "mambapy", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "mambapy.pscan", SimpleNamespace(pscan=pscan))
    work = bench.selective_scan.make({"batch": 2, "length": 5, "dim": 3, "states": 2}, CPU, torch.float32)
    contender = bench.operators.Contender("mambapy", bench.scan_peers.mambapy_scan(), True)
    bench.check.check(contender, bench.scan_peers.exact_scan, work, torch.float32)


@pytest.mark.parametrize("length", [1, 5, 64, 100])
def test_the_real_mambapy_gives_our_scan(bench, length):
    """Its `pscan` pads to powers of two; both against float64, forward and all gradients."""
    pytest.importorskip("mambapy.pscan", reason="mambapy is not installed: pip install '.[bench]'")
    work = bench.selective_scan.make({"batch": 2, "length": length, "dim": 3, "states": 4}, CPU, torch.float32)
    for function in (bench.scan_peers.mambapy_scan(), partial(bench.selective_scan._ours, backend="auto")):
        contender = bench.operators.Contender("scan", function, True)
        bench.check.check(contender, bench.scan_peers.exact_scan, work, torch.float32)


def test_ssd(bench, tmp_path):
    content = quick(bench.ssd, tmp_path)
    assert {"plain loop", "block matrices", "Hydra (whole layer)"} <= {row["name"] for row in content["rows"]}
    assert any("over block matrices" in name for name in content["ratios"])


@pytest.mark.parametrize("length", [64, 150])
def test_the_peers_of_ssd_agree_beyond_one_chunk(bench, length):
    shape = {"batch": 1, "length": length, "dim": 8, "states": 3, "headdim": 4}
    work = bench.ssd.make(shape, CPU, torch.float32)
    for function in (bench.ssd_peers.literal_loop, bench.ssd_peers.block_matrix):
        contender = bench.operators.Contender("peer", function, True)
        bench.check.check(contender, bench.ssd_peers.exact_ssd, work, torch.float32)


def test_einfft(bench, tmp_path):
    content = quick(bench.einfft, tmp_path)
    assert {"ours (products)", "ours (reference)", "literal fft2"} <= {row["name"] for row in content["rows"]}
    assert len(content["ratios"]) == 2


@pytest.mark.parametrize(
    ("length", "dim", "backends"),
    [(4097, 16, {"ours (reference)"}), (257, 1536, {"ours (products)", "ours (reference)"})],
)
def test_einfft_takes_the_backends_that_run_for_so_many_tokens(bench, length, dim, backends):
    shape = {"batch": 1, "length": length, "dim": dim}
    found = {c.name for c in bench.einfft.contenders(shape, CPU, torch.float32, lambda _: None) if not c.peer}
    assert found - {"ours (native)"} == backends
    assert bench.einfft.ours(shape, CPU, torch.float32) in found
    assert length == 257 or "ours (native)" not in found


def test_einfft_at_a_length_beyond_that_of_the_products(bench, tmp_path):
    rows = quick(bench.einfft, tmp_path, "--lengths", "1101", "--dim", "16")["rows"]
    assert {row["name"] for row in rows} == {"ours (reference)", "literal fft2"}


def test_conv_silu(bench, tmp_path):
    names = {row["name"] for row in quick(bench.conv_silu, tmp_path)["rows"]}
    assert {"ours (plain)", "torch conv1d"} <= names


def test_backbones(bench, tmp_path):
    content = quick(bench.backbones, tmp_path, "--names", "vit12_tiny", "mvhybrid_tiny", "--crops", "2x32", "3x16")
    assert [row["name"] for row in content["rows"]] == ["vit12_tiny", "mvhybrid_tiny"] * 2
    for row in content["rows"]:
        assert row["images"] == "2x32 3x16"
        assert row["images_per_s"] == pytest.approx(5 / (row["min_ms"] / 1e3))
    forward, both = content["rows"][0], content["rows"][2]
    length, dim = 5, 192
    blocks = [12 * (12 * n * dim * dim + 2 * n * n * dim) + (n - 1) * dim * 768 for n in (length, 2)]
    assert forward["gflop_per_s"] * forward["min_ms"] * 1e6 == pytest.approx(2 * (2 * blocks[0] + 3 * blocks[1]))
    assert both["gflop_per_s"] * both["min_ms"] == pytest.approx(3 * forward["gflop_per_s"] * forward["min_ms"])


def test_timm_is_the_same_network_as_ours(bench):
    pytest.importorskip("timm")
    groups = [bench.backbone_calls.Images(1, 32)]
    theirs = bench.backbone_calls.make_backbone("timm ViT-S/16, 12", groups, CPU)
    ours = bench.backbone_calls.make_backbone("vit12", groups, CPU)
    assert bench.backbone_calls.multiply_adds(theirs, groups) == bench.backbone_calls.multiply_adds(ours, groups)
    cls, patches = theirs(torch.zeros(1, 3, 32, 32))
    assert [tuple(cls.shape), tuple(patches.shape)] == [(1, 384), (1, 4, 384)]


def test_a_wrong_output_is_an_error_and_not_timed(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench.selective_scan, "literal_loop", lambda u, *rest: u)
    path = tmp_path / "out.json"
    assert bench.common.run(bench.selective_scan.program, ["--quick", "--threads", "1", "--json", str(path)]) == 1
    assert "error: reference loop: output is off by" in capsys.readouterr().err
    assert not path.exists()


def test_a_wrong_gradient_is_found(bench):
    work = bench.conv_silu.make({"batch": 2, "length": 4, "dim": 3, "width": 4}, CPU, torch.float32)
    right = bench.conv_silu.torch_conv
    wrong = bench.operators.Contender("wrong", lambda x, w, b: right(x, w, b.detach() + 0 * b), True)
    with pytest.raises(bench.common.WrongResultError, match="wrong: gradient of input 2 is off by 1"):
        bench.check.check(wrong, right, work, torch.float32)


def test_channels_outside_changes_the_layout_alone(bench):
    work = bench.selective_scan.make({"batch": 2, "length": 5, "dim": 3, "states": 2}, CPU, torch.float32)
    relaid = work.channels_outside()
    for before, after in zip((*work.inputs, work.grad), (*relaid.inputs, relaid.grad), strict=True):
        assert torch.equal(before, after)
    assert relaid.inputs[0].mT.is_contiguous()
    assert relaid.grad.mT.is_contiguous()


def test_samples_are_taken_in_turn_and_a_slow_call_sits_out(bench, monkeypatch):
    """By a clock that advances by 1/16 s with the one call and by 1/1024 s with the other."""
    now, order = 0.0, []

    def call(name: str, seconds: float) -> None:
        nonlocal now
        now += seconds
        order.append(name)

    monkeypatch.setattr(bench.timing, "time", SimpleNamespace(perf_counter=lambda: now))
    calls = {"slow": lambda: call("slow", 1 / 16), "quick": lambda: call("quick", 1 / 1024)}
    timings = bench.timing.interleave(calls, CPU, 3, seconds=0.1)
    assert timings["slow"].samples == (1 / 16, 1 / 16)  # the third would follow on more than 0.1 s
    assert timings["slow"].columns == {"min_ms": 62.5, "median_ms": 62.5, "samples": 2}
    assert timings["quick"].samples == (1 / 1024,) * 3
    runs = [(name, len(list(run))) for name, run in itertools.groupby(order)]
    # A warm-up of two calls each; then rounds of samples that take 0.02 s at least: one slow call, 21 quick ones.
    assert runs == [("slow", 2), ("quick", 2), ("slow", 1), ("quick", 21), ("slow", 1), ("quick", 2 * 21)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("program", "steps"),
    [
        ("selective_scan", ["checking 2 x 5 tokens", "2 x 5 tokens, forward+backward", "reference loop"]),
        ("backbones", ["building and checking", "forward+backward", "vit12_tiny"]),
    ],
)
def test_progress_is_shown_on_a_terminal_and_not_elsewhere(bench, tmp_path, capsys, monkeypatch, program, steps):
    quick(getattr(bench, program), tmp_path)
    quiet = capsys.readouterr()
    assert quiet.err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    quick(getattr(bench, program), tmp_path)
    for step in steps:
        assert step in terminal.getvalue()
    assert len(capsys.readouterr().out.splitlines()) == len(quiet.out.splitlines())


def test_nothing_new_is_begun_after_the_limit(bench, tmp_path):
    content = quick(bench.conv_silu, tmp_path, "--limit", "-1")
    assert content["rows"] == []
    assert "out of time" in content["notes"][0]


def test_peak_memory_of_a_known_allocation(bench, tmp_path, monkeypatch):
    (tmp_path / "allocates.py").write_text(
        "import torch\n"
        "def memory_case(case):\n"
        "    def call():\n"
        "        kept = torch.ones(case['mib'], 2**18)\n"  # so many MiB
        "        (kept + 1).sum()\n"
        "    return lambda: torch.ones(2, 2) + 1, call\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    extra = bench.peak_memory.extra_bytes_cpu("allocates", {"mib": 40}, threads=1)
    assert extra / 2**20 == pytest.approx(80, abs=4)


def test_peak_memory_of_an_operator_and_of_a_failure(bench):
    warm_up, call = bench.einfft.memory_case(
        {"batch": 2, "length": 5, "dim": 16, "contender": "ours (products)", "mode": "forward+backward", "bf16": False}
    )
    assert len(warm_up()) == len(call()) == 5
    assert call()[0].shape == (2, 5, 16)
    with pytest.raises(RuntimeError, match="No module named 'nowhere'"):
        bench.peak_memory.extra_bytes_cpu("nowhere", {}, threads=1)


def test_the_table_is_aligned(bench):
    rows = [{"name": "a", "value": 1.23456}, {"name": "longer", "value": 12345.6, "extra": None}]
    assert bench.report.format_table(rows) == [
        "name    value  extra",
        "a       1.235      -",
        "longer  12346      -",
    ]


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        ("einfft", ["--threads", "0"], "--threads 0: it must be positive"),
        ("einfft", ["--batch", "1", "2", "3"], "--batch gives 3 numbers for 1 lengths"),
        ("einfft", ["--dim", "30"], "--dim 30: it must be a multiple of the 4 blocks"),
        ("ssd", ["--headdim", "0"], "--headdim 0: it must be positive"),
        ("ssd", ["--dim", "100", "--headdim", "64"], "--dim 100: the heads divide twice the width"),
        ("conv_silu", ["--width", "-1"], "--width -1: it must be positive"),
        ("backbones", ["--names", "vit13"], "unknown backbone 'vit13'"),
        *(("backbones", ["--crops", text], "COUNTxSIZE") for text in ("many", "0x32", "2x32x5", "2x-32")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_user_errors_are_one_line(bench, capsys, program, options, message):
    assert bench.common.run(getattr(bench, program).program, ["--quick", "--threads", "1", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["selective_scan", "ssd", "einfft", "conv_silu", "backbones"])
def test_each_program_runs_on_cuda(bench, tmp_path, name):
    content = quick(getattr(bench, name), tmp_path, "--device", "cuda", "--dtype", "bf16")
    assert content["machine"]["gpu"] == torch.cuda.get_device_name()
