"""C kernels for CPUs, compiled with the machine's own compiler at first use and kept in the user's cache.

Nothing needs them: where there is no C compiler the operators run in plain PyTorch. OpenMP's entry points are not
linked but taken from the library that PyTorch has loaded, so that both share one pool of threads.

Environment: `DINOV2_CACHE_DIR` (default `~/.cache/dinov2-pathology`), `CC` (default: `cc`, `gcc` or `clang`).
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger("dinov2")

HEADER = Path(__file__).with_name("vector.h")
FLAG_SETS = (("-O3", "-march=native", "-fopenmp"), ("-O3", "-march=native"), ("-O3",))
TIMEOUT_SECONDS = 120


class NativeError(RuntimeError):
    """A kernel could not be compiled or loaded here."""


@functools.cache
def why_not(source: Path) -> str | None:
    """Return why the kernels of `source` cannot be used on this machine, or None when they are compiled and loaded."""
    try:
        load(source)
    except NativeError as error:
        return str(error)
    return None


@functools.cache
def load(source: Path) -> ctypes.CDLL:
    """Compile the C file `source` unless the cache has it, and load it.

    Raises:
        NativeError: there is no compiler, it fails, or the cache folder cannot be written.
    """
    compiler = _compiler()
    failures: dict[str, None] = {}  # what went wrong, each once, in order
    for flags in FLAG_SETS:
        try:
            library = _load(source, compiler, flags)
        except (NativeError, OSError) as error:
            failures[str(error)] = None
            continue
        if "-fopenmp" not in flags:
            logger.warning("%s runs on one thread: %s", source.name, "; ".join(failures))
        return library
    raise NativeError(f"{shlex.join(compiler)} cannot build {source.name}: {'; '.join(failures)}")


def address(tensor: Tensor | None) -> int | None:
    """Return where a kernel finds the values of a tensor, or a null pointer for None.

    Raises:
        NativeError: the tensor is not what the kernels take: contiguous float32 on a CPU.
    """
    if tensor is None:
        return None
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise NativeError(
            f"a kernel got a {tensor.dtype} tensor of shape {tuple(tensor.shape)} with strides {tensor.stride()} on "
            f"{tensor.device}; it takes contiguous float32 on a CPU"
        )
    return tensor.data_ptr()


def cache_folder() -> Path:
    """Return the folder of compiled kernels."""
    if folder := os.environ.get("DINOV2_CACHE_DIR"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dinov2-pathology"
    except RuntimeError as error:  # a user without a home, as in some containers
        raise NativeError(f"no folder to keep kernels in ({error}); set DINOV2_CACHE_DIR") from error


def _compiler() -> list[str]:
    if asked := os.environ.get("CC", "").strip():
        try:
            command = shlex.split(asked)
        except ValueError as error:
            raise NativeError(f"CC={asked!r} is not a command: {error}") from error
        if shutil.which(command[0]) is None:
            raise NativeError(f"CC={asked!r} is not a program")
        return command
    found = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if found is None:
        raise NativeError("no C compiler (cc, gcc or clang) on the PATH")
    return [found]


def _load(source: Path, compiler: list[str], flags: tuple[str, ...]) -> ctypes.CDLL:
    parts = [source.read_text(), HEADER.read_text(), *compiler, *flags, _processor()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    target = cache_folder() / f"{source.stem}-{key}.so"
    # Every symbol is looked up now: a missing OpenMP is an error here and not an abort at the first call.
    mode = os.RTLD_NOW | os.RTLD_LOCAL
    if target.exists():
        try:
            return ctypes.CDLL(str(target), mode=mode)
        except OSError:  # damaged: made anew
            target.unlink()
    _compile(source, compiler, flags, target)
    return ctypes.CDLL(str(target), mode=mode)


def _compile(source: Path, compiler: list[str], flags: tuple[str, ...], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built, made = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
        _run([*compiler, *flags, "-fPIC", f"-I{HEADER.parent}", "-c", str(source), "-o", str(built)])
        _run([*compiler, "-shared", str(built), "-o", str(made)])  # without -fopenmp: see the module's docstring
        os.replace(made, target)
    logger.info("compiled %s (%s)", target, " ".join(flags))


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise NativeError(f"the compiler took more than {TIMEOUT_SECONDS} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise NativeError(lines[0] if lines else f"the compiler ended with code {done.returncode}")


def _processor() -> str:
    """Return what `-march=native` depends on, so that a cache in a shared home serves machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
