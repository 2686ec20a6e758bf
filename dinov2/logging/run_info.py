"""`run.json`: what ran, where, and with what."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import dinov2
from dinov2.ops.dispatch import chosen_backends
from dinov2.utils.files import write_text

PACKAGES = ("torch", "torchvision", "timm", "numpy", "safetensors", "xformers", "mamba-ssm", "causal-conv1d")


def write_run_info(path: Path, device: torch.device, **extra: Any) -> None:
    """Write command, git revision, versions, host, device and the chosen kernels, with `extra` beside them."""
    info = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(sys.orig_argv),
        "git": git_revision(),
        "versions": package_versions(),
        "host": platform.node(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({os.cpu_count()} cores)",
        "threads": torch.get_num_threads(),
        "kernels": chosen_backends(),
        **extra,
    }
    write_text(path, json.dumps(info, indent=2))


def package_versions() -> dict[str, str]:
    """Return the versions of Python, this package and those of its dependencies that are installed."""
    found = {"python": platform.python_version(), "dinov2": dinov2.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """Return the commit of the source tree, with `+` when it has changes, or None outside a checkout."""
    root = Path(dinov2.__file__).resolve().parent

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return result.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
