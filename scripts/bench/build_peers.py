"""Compile the CUDA kernels of mamba-ssm and causal-conv1d from their source distributions, for one GPU architecture.

Their own setup builds for every architecture and wants the packages' whole list of dependencies; here only the two
extension modules are compiled. Afterwards, with FOLDER in PYTHONPATH, `selective_scan_cuda`, `causal_conv1d_cuda`, and
what of mamba-ssm and causal-conv1d calls them, import. Nothing is installed.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from dinov2.utils.errors import UserError

EXAMPLES = """\
examples:
  python scripts/bench/build_peers.py peers
  python scripts/bench/build_peers.py peers --sdists downloads --arch 8.0

Exit codes: 0 built, 2 something is missing, such as a source distribution, nvcc or ninja, or the compiler failed.
"""
EXTENSIONS = {  # module -> its package and the folder of its sources
    "selective_scan_cuda": ("mamba_ssm", "csrc/selective_scan"),
    "causal_conv1d_cuda": ("causal_conv1d", "csrc"),
}
PIP_NAMES = ("mamba-ssm", "causal-conv1d")
NVCC_FLAGS = [
    "-O3",
    "--use_fast_math",
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    *(f"-U__CUDA_NO_{what}__" for what in ("HALF_OPERATORS", "HALF_CONVERSIONS")),
    *(f"-U__CUDA_NO_BFLOAT16_{what}__" for what in ("CONVERSIONS", "OPERATORS")),
    "-U__CUDA_NO_BFLOAT162_OPERATORS__",
]


def unpack(sdists: Path, folder: Path) -> dict[str, Path]:
    """Unpack the newest source distribution of each package into `folder`; return the trees by package name.

    Raises:
        UserError: one is missing.
    """
    trees = {}
    for package, _ in EXTENSIONS.values():
        archives = sorted(sdists.glob(f"{package}-*.tar.gz"), key=lambda path: path.stat().st_mtime)
        if not archives:
            command = shlex.join(download_command(sdists))
            raise UserError(f"{sdists} holds no {package}-*.tar.gz; get them with `{command}`")
        with tarfile.open(archives[-1]) as archive:
            archive.extractall(folder, filter="data")
        trees[package] = folder / archives[-1].name.removesuffix(".tar.gz")
    return trees


def download_command(folder: Path) -> list[str]:
    """Return the command that downloads the source distributions."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    return [*pip, "--dest", str(folder), *PIP_NAMES]


def download(folder: Path) -> None:
    """Download the source distributions from the package index.

    Raises:
        UserError: pip failed (its last words are in the message).
    """
    skip = {"MAMBA_SKIP_CUDA_BUILD": "TRUE", "CAUSAL_CONV1D_SKIP_CUDA_BUILD": "TRUE"}  # only the metadata is needed
    command = download_command(folder)
    result = subprocess.run(command, env=os.environ | skip, capture_output=True, text=True, check=False)
    if result.returncode:
        raise UserError(f"pip download of {', '.join(PIP_NAMES)} failed: {result.stderr.strip()[-300:]}; see --sdists")


def copy_packages(trees: dict[str, Path], folder: Path) -> None:
    """Put the Python files of both packages, which call the extension modules, into `folder`."""
    for package, tree in trees.items():
        shutil.copytree(tree / package, folder / package, dirs_exist_ok=True)
    # The original imports language models and what they need.
    (folder / "mamba_ssm" / "__init__.py").write_text("")


def build(trees: dict[str, Path], folder: Path) -> None:
    """Compile the extension modules into `folder`, and put the packages' Python files beside them."""
    from torch.utils.cpp_extension import load

    copy_packages(trees, folder)
    for name, (tree, sources) in EXTENSIONS.items():
        source = trees[tree] / sources
        files = sorted(str(path) for path in [*source.glob("*.cpp"), *source.glob("*.cu")])
        work = folder / "build" / name
        work.mkdir(parents=True, exist_ok=True)
        load(name, files, extra_cflags=["-O3"], extra_cuda_cflags=NVCC_FLAGS, build_directory=str(work), verbose=True)
        shutil.copy(work / f"{name}.so", folder)


def main() -> int:
    """Build and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the modules go")
    parser.add_argument("--sdists", type=Path, help="folder with mamba_ssm-*.tar.gz and causal_conv1d-*.tar.gz")
    parser.add_argument("--arch", default="9.0", help="compute capability; default: 9.0 (Hopper)")
    args = parser.parse_args()
    os.environ["TORCH_CUDA_ARCH_LIST"] = args.arch
    os.environ.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))
    try:
        args.folder.mkdir(parents=True, exist_ok=True)
        if args.sdists is None:
            download(args.folder)
        trees = unpack(args.sdists or args.folder, args.folder / "sources")
        build(trees, args.folder)
    except (UserError, OSError, RuntimeError) as error:  # no nvcc, or the compiler failed
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
