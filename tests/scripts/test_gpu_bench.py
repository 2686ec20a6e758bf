"""The GPU run on a CPU, with other programs in its parts' place: what it gathers, in which order, in what time."""

import json
import os
import signal
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from bench_programs import quick

FOUND = {"machine": {"gpu": "some"}, "rows": [{"name": "ours"}], "ratios": {"x over y": 2.0}, "notes": ["a note"]}
WRITES = f"import json, sys\nopen(sys.argv[sys.argv.index('--json') + 1], 'w').write(json.dumps({FOUND!r}))\n"
STALLS = (
    "import os, pathlib, subprocess, sys, time\n"
    "child = subprocess.Popen(['sleep', '600'])\n"
    "pathlib.Path(__file__).with_suffix('.pid').write_text(str(child.pid))\n"
    "print('began', flush=True)\n"
)


def over(pid: int) -> bool:
    """Whether a process has ended, perhaps not yet collected by its parent."""
    for _ in range(500):
        stat = Path(f"/proc/{pid}/stat")
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def programs(bench, tmp_path, monkeypatch):
    """A folder in the place of scripts/bench for the parts einfft and ssd, on a machine that is said to have a GPU."""
    folder = tmp_path / "bench"
    folder.mkdir()
    monkeypatch.setattr(bench.gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(bench.gpu, "HERE", folder)
    for name in ("BUILD_SECONDS", "FIRST_TEST_SECONDS", "VENDOR_TEST_SECONDS"):
        monkeypatch.setattr(bench.gpu, name, 600.0)
    part = bench.gpu_parts.Part
    for name, value in {"einfft": part((), 600), "ssd": part((), 600)}.items():
        monkeypatch.setitem(bench.gpu.PARTS, name, value)
    return folder


def gpu_run(bench, out: Path, *options: str) -> tuple[int, dict]:
    """Return the exit code and what was written."""
    try:
        code = bench.common.run(bench.gpu.program, ["--json", str(out), *options])
    except SystemExit as stopped:
        code = stopped.code
    return code, json.loads(out.read_text())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_gpu_programs_say_so(bench, capsys, tmp_path):
    path = tmp_path / "gpu.json"
    assert bench.common.run(bench.gpu.program, ["--json", str(path)]) == 2
    assert capsys.readouterr().err.count("error: PyTorch finds no CUDA device here") == 1
    assert bench.common.run(bench.ssd.program, ["--quick", "--device", "cuda"]) == 2
    assert "error: --device cuda: PyTorch finds no CUDA device here" in capsys.readouterr().err
    assert not path.exists()


def test_gpu_gathers_what_its_parts_write(bench, programs, tmp_path, monkeypatch):
    """One part that succeeds, and one that runs out of time."""
    check = "import sys\nassert sys.argv[1:5] == ['--device', 'cuda', '--dtype', 'bf16']\n"
    (programs / "einfft.py").write_text(check + WRITES)
    (programs / "ssd.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setitem(bench.gpu.PARTS, "ssd", bench.gpu_parts.Part((), 0.5))
    code, written = gpu_run(bench, tmp_path / "docs" / "gpu.json", "--no-tests", "--parts", "ssd", "einfft")
    assert code == 1
    assert written["machine"] == {"gpu": "some"}
    assert written["rows"] == [{"part": "einfft", "name": "ours"}]
    assert written["ratios"] == {"einfft, x over y": 2.0}
    assert "einfft: a note" in written["notes"]
    assert any("ssd: exit code None: out of time after" in note for note in written["notes"])
    assert written["seconds"] >= 0.5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "an outer limit"])
def test_what_is_measured_survives_an_interrupt(bench, programs, tmp_path, number):
    """A part sends the signal after its first shape; it and what it has started are ended, and nothing is lost."""
    (programs / "ssd.py").write_text(WRITES)
    (programs / "einfft.py").write_text(f"{STALLS}{WRITES}os.kill(os.getppid(), {int(number)})\ntime.sleep(600)\n")
    before = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        code, written = gpu_run(bench, tmp_path / "gpu.json", "--no-tests", "--parts", "ssd", "einfft", "backbones")
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert signal.getsignal(signal.SIGTERM) is before
    assert code == 130
    assert [row["part"] for row in written["rows"]] == ["ssd", "einfft"]
    assert written["notes"][-1] == "interrupted: the rest was not measured"
    assert over(int((programs / "einfft.pid").read_text()))


def test_every_part_is_saved_before_the_next_begins(bench, programs, tmp_path):
    out = tmp_path / "gpu.json"
    (programs / "ssd.py").write_text(WRITES)
    (programs / "einfft.py").write_text(
        f"import json\nassert json.load(open({str(out)!r}))['rows'] == [{{'part': 'ssd', 'name': 'ours'}}]\n"
    )
    assert gpu_run(bench, out, "--no-tests", "--parts", "einfft", "ssd")[0] == 0


def test_the_builder_is_ended_with_the_run(bench, programs, tmp_path):
    (programs / "build_peers.py").write_text(f"{STALLS}os.kill(os.getppid(), 15)\ntime.sleep(600)\n")
    assert gpu_run(bench, tmp_path / "gpu.json", "--no-tests", "--build-peers")[0] == 130
    assert over(int((programs / "build_peers.pid").read_text()))


def test_the_vendors_tests_come_after_the_builder(bench, programs, tmp_path, monkeypatch):
    """The other tests run beside it, without what it makes; skipped tests are counted with their reasons."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # pytest starts sooner
    root = tmp_path / "root"
    for folder in ("models", "ops"):
        (root / "tests" / folder).mkdir(parents=True)
    (root / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    (root / "tests" / "models" / "test_a.py").write_text(
        "import importlib, os, pathlib, pytest\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_others():\n"
        f"    pathlib.Path({str(tmp_path / 'go')!r}).touch()\n"
        "    with pytest.raises(ImportError):\n"
        "        importlib.import_module('built_kernels')\n"
        "@pytest.mark.parametrize('i', [1, 2])\n"
        "def test_others_skipped(i):\n"
        "    pytest.skip('no second GPU')\n"
        "def test_the_vendors_kernel():\n"
        "    importlib.import_module('built_kernels')\n"
    )
    (programs / "build_peers.py").write_text(
        "import pathlib, sys, time\n"
        f"while not pathlib.Path({str(tmp_path / 'go')!r}).exists():\n"
        "    time.sleep(0.02)\n"
        "(pathlib.Path(sys.argv[1]) / 'built_kernels.py').touch()\n"
    )
    (programs / "ssd.py").write_text("import built_kernels\n")
    monkeypatch.setattr(bench.gpu, "ROOT", root)
    code, written = gpu_run(bench, tmp_path / "gpu.json", "--build-peers", "--parts", "ssd")
    assert code == 0, written
    first, vendor = written["tests"].values()
    assert "1 passed, 2 skipped" in first["summary"]
    assert first["skipped"] == {"no second GPU": 2}
    assert "1 passed" in vendor["summary"]
    assert vendor["skipped"] == {}


@pytest.mark.parametrize("name", ["selective_scan", "ssd", "einfft", "conv_silu", "backbones", "train_step", "data"])
def test_the_parts_of_the_gpu_run_give_options_that_their_programs_take(bench, monkeypatch, name):
    measured: list[object] = []
    monkeypatch.setattr(bench.backbones, "measure_backbones", lambda names, groups, *rest: measured.append(groups))
    options = [*bench.gpu_parts.PARTS[name].options, *(["--batch", "2"] if name == "data" else [])]
    program = getattr(bench, name).program
    assert bench.common.run(program, ["--quick", "--threads", "1", "--no-memory", "--limit", "-1", *options]) == 0
    if name == "backbones":
        images = bench.backbone_calls.Images
        assert measured == [[images(128, 256), images(512, 112)]]  # 64 tiles of 2 global and 8 local crops


def test_the_parts_of_evaluation_give_options_that_their_programs_take(bench, tmp_path):
    """The later options make them small; HEST begins nothing after its limit."""
    small = ["--encoder", "random:vit12_tiny", "--patches", "4", "--batch", "2", "--repeats", "1", "--workers", "1"]
    small += ["--size", "1500"]
    rows = quick(bench.embed, tmp_path, *bench.gpu_parts.PARTS["embed"].options, *small)["rows"]
    assert "end to end" in {row["what"] for row in rows}
    quick(bench.hest, tmp_path, "--limit", "-1", *bench.gpu_parts.PARTS["hest"].options)


def test_the_budget_of_the_gpu_run(bench):
    """Tests, kernels and backbones in under eight minutes; the whole in two commands of under ten each."""
    parts = bench.gpu_parts
    assert set(parts.GROUPS["all"]) == {"selective_scan", "ssd", "einfft", "conv_silu", "backbones"} | {
        "train_step", "data", "embed", "hest",
    }  # fmt: skip
    seconds = {group: sum(parts.PARTS[name].seconds for name in names) for group, names in parts.GROUPS.items()}
    before = max(parts.FIRST_TEST_SECONDS, parts.BUILD_SECONDS) + parts.VENDOR_TEST_SECONDS
    assert before + seconds["kernels"] < 480
    assert seconds["uses"] < 600
    assert parts.chosen_parts(["kernels", "uses"]) == list(parts.PARTS) == parts.chosen_parts(["all", "ssd"])
    assert parts.chosen_parts(["data", "ssd"]) == ["ssd", "data"]


def test_tiles_are_asked_for_where_the_input_pipeline_is(bench, programs, tmp_path, capsys):
    assert bench.common.run(bench.gpu.program, ["--parts", "data", "--json", str(tmp_path / "gpu.json")]) == 2
    assert "--parts data needs --tiles FOLDER" in capsys.readouterr().err


def test_peers_are_unpacked_from_their_source_distributions(bench, tmp_path):
    sdists, folder = tmp_path / "sdists", tmp_path / "out"
    sdists.mkdir()
    (tmp_path / "file.cu").write_text("kernel")
    (tmp_path / "__init__.py").write_text("import everything")
    for name in ("mamba_ssm-9.9", "causal_conv1d-1.2.3"):
        with tarfile.open(sdists / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "file.cu", f"{name}/csrc/file.cu")
            archive.add(tmp_path / "__init__.py", f"{name}/{name.partition('-')[0]}/__init__.py")
    trees = bench.build_peers.unpack(sdists, folder)
    assert (trees["mamba_ssm"] / "csrc" / "file.cu").read_text() == "kernel"
    assert trees["causal_conv1d"].name == "causal_conv1d-1.2.3"
    bench.build_peers.copy_packages(trees, tmp_path / "peers")
    assert (tmp_path / "peers" / "causal_conv1d" / "__init__.py").read_text() == "import everything"
    assert (tmp_path / "peers" / "mamba_ssm" / "__init__.py").read_text() == ""
    (sdists / "mamba_ssm-9.9.tar.gz").unlink()
    with pytest.raises(ValueError, match=r"holds no mamba_ssm-\*\.tar\.gz; get them with"):
        bench.build_peers.unpack(sdists, folder)


def test_a_command_that_ends_by_itself_leaves_nobody_behind(bench, tmp_path):
    program = tmp_path / "leaves.py"
    program.write_text(f"{STALLS}sys.exit(3)\n")
    with bench.limited.Limited([sys.executable, str(program)], 60, os.environ, tmp_path) as command:
        result = command.finish()
    assert (result.code, result.last_line) == (3, "began")
    assert over(int((tmp_path / "leaves.pid").read_text()))
