"""Compiling C kernels at first use: the cache, and what is said where it cannot be done."""

import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch

from dinov2.ops import native, selective_scan
from dinov2.ops.conv_silu import native as conv
from dinov2.ops.dispatch import BackendError, usable_backends
from dinov2.ops.einfft import backends as einfft
from dinov2.ops.selective_scan import native as scan
from dinov2.ops.selective_scan.native import SOURCE

SUM = "double sum(const double *x, int n) { double s = 0; for (int i = 0; i < n; i++) s += x[i]; return s; }\n"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DINOV2_CACHE_DIR", str(tmp_path / "cache"))
    for function in (native.load, native.why_not):
        function.cache_clear()
    yield tmp_path / "cache"
    for function in (native.load, native.why_not):
        function.cache_clear()


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "sum.c"
    file.write_text(SUM)
    return file


has_compiler = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
needs_compiler = pytest.mark.skipif(not has_compiler, reason="no C compiler on the PATH")


@needs_compiler
@pytest.mark.parametrize("source", [scan.SOURCE, conv.SOURCE, einfft.SOURCE], ids=lambda path: path.name)
def test_all_kernels_compile(source):
    assert native.why_not(source) is None


@needs_compiler
def test_it_is_compiled_once_and_kept(cache, source, caplog):
    with caplog.at_level(logging.INFO, logger="dinov2"):
        native.load(source)
        (built,) = cache.iterdir()
        first = built.stat().st_mtime_ns
        native.load.cache_clear()
        native.load(source)
    assert built.stat().st_mtime_ns == first
    assert len(caplog.records) == 1
    assert cache.stat().st_mode & 0o077 == 0  # nobody else can put a library there

    source.write_text(SUM + "/* another version */\n")
    native.load.cache_clear()
    native.load(source)
    assert len(list(cache.iterdir())) == 2


@needs_compiler
def test_threads_are_pytorchs(cache):
    library = native.load(SOURCE)
    needed = subprocess.run(["readelf", "-d", library._name], capture_output=True, text=True, check=True).stdout
    assert "gomp" not in needed


def test_what_the_compiler_says_reaches_the_user(cache, tmp_path):
    broken = tmp_path / "broken.c"
    broken.write_text("int f(void) { return undeclared; }\n")
    reason = native.why_not(broken)
    assert reason is not None
    assert "broken.c" in reason
    assert "undeclared" in reason or "no C compiler" in reason
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize(
    ("cc", "path", "message"),
    [
        ("nonexistent-cc", os.environ.get("PATH", ""), "CC='nonexistent-cc' is not a program"),
        ('gcc "', os.environ.get("PATH", ""), "is not a command: No closing quotation"),
        ("false", os.environ.get("PATH", ""), "ended with code 1"),
        ("", "", "no C compiler"),
    ],
)
def test_without_a_compiler_the_scan_runs_in_plain_pytorch(cache, monkeypatch, cc, path, message):
    monkeypatch.setenv("CC", cc)
    monkeypatch.setenv("PATH", path)
    x, parameters = torch.ones(1, 2, 3), torch.ones(1, 1, 3)
    assert usable_backends("selective_scan")[0] == "cpu"
    assert selective_scan(x, x, -torch.ones(2, 1), parameters, parameters).isfinite().all()
    with pytest.raises(BackendError, match=message):
        selective_scan(x, x, -torch.ones(2, 1), parameters, parameters, backend="native")


def test_without_a_home_it_says_what_to_set(cache, monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DINOV2_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(native.Path, "home", nobody)
    assert "set DINOV2_CACHE_DIR" in native.why_not(SOURCE)


@needs_compiler
def test_a_damaged_library_is_made_anew(cache, source):
    code = f"from pathlib import Path; from dinov2.ops import native; native.load(Path({str(source)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)  # elsewhere: a process loads a name only once
    (built,) = cache.iterdir()
    built.write_bytes(b"")
    native.load(source)
    assert [path.name for path in cache.iterdir()] == [built.name]
    assert built.stat().st_size > 0


@needs_compiler
def test_one_thread_is_worth_a_warning(cache, source, monkeypatch, caplog):
    monkeypatch.setattr(native, "FLAG_SETS", (("-fno-such-flag", "-fopenmp"), ("-O3",)))
    with caplog.at_level(logging.WARNING, logger="dinov2"):
        native.load(source)
    assert "sum.c runs on one thread" in caplog.text
    assert "-fno-such-flag" in caplog.text


@needs_compiler
def test_two_processes_may_compile_at_once(cache):
    code = "from dinov2.ops.dispatch import usable_backends; print(usable_backends('selective_scan')[0])"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in processes] == ["native", "native"]
    assert [entry.suffix for entry in cache.iterdir()] == [".so"]
