"""What the GPU run consists of: groups of tests and benchmark programs, each with its share of the time in seconds.

The kernels and backbones, with the tests before them, fit one command of eight minutes; the rest fits a second one of
ten.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Part:
    """A benchmark program with its options and its time in seconds."""

    options: tuple[str, ...]
    seconds: float


CROPS = ("--batch", "128", "512", "--lengths", "257", "50")  # 64 images: 2 global and 8 local crops
KERNELS = {
    "selective_scan": Part(CROPS, 80),
    "ssd": Part(CROPS, 55),
    "einfft": Part(CROPS, 25),
    "conv_silu": Part(CROPS, 20),
    "backbones": Part(("--crops", "128x256", "512x112"), 95),
}
USES = {
    "train_step": Part(("--batch", "64"), 120),
    "data": Part(("--batch", "64", "--threads", "1"), 90),
    "embed": Part(
        ("--encoder=random:mvhybrid", "--patches=4096", "--batch=256", "--repeats=3", "--memory-slides=0"), 90
    ),
    "hest": Part(("--spots", "8000", "--samples", "8", "--genes", "50", "--patches", "512", "--repeats", "3"), 120),
}
PARTS = KERNELS | USES
GROUPS = {"kernels": tuple(KERNELS), "uses": tuple(USES), "all": tuple(PARTS)}
BUILD_SECONDS = 165.0  # while the first tests run
FIRST_TEST_SECONDS, VENDOR_TEST_SECONDS = 150.0, 35.0


def chosen_parts(names: list[str]) -> list[str]:
    """Return the names of the parts, in their order, for names of parts and of `GROUPS`."""
    wanted = {part for name in names for part in GROUPS.get(name, (name,))}
    return [name for name in PARTS if name in wanted]


def first_tests(root: Path) -> dict[str, list[str]]:
    """Return pytest's selection of each group of tests that does not need the peers' kernels."""
    triton = sorted(str(path.relative_to(root)) for path in root.glob("tests/ops/test_triton_*.py"))
    groups = {"tests marked gpu": ["-m", "gpu and not slow", "-k", "not vendor", "tests"]}
    return groups | ({"Triton tests": ["-m", "not gpu", *triton]} if triton else {})


def vendor_tests() -> dict[str, list[str]]:
    """Return pytest's selection of the tests of the peers' kernels, which are skipped where those are missing."""
    return {"tests of the vendors' kernels": ["-m", "gpu and not slow", "-k", "vendor", "tests"]}
