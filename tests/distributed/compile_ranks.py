"""Runs in float64 with compiled blocks: `main(backend, config, ...)` prints what torch.compile made of each."""

import functools
import json
import os
import sys

import torch
import train_ranks
from torch import nn
from torch._dynamo.utils import counters


def main(backend: str, *config_files: str) -> int:
    """Train as each configuration says; end with an error where a block would no longer be compiled."""
    nn.Module.compile = functools.partialmethod(nn.Module.compile, backend=backend)
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for config_file in config_files:
        torch.compiler.reset()
        counters.clear()
        if code := train_ranks.main(config_file):
            return code
        found = {kind: dict(counters[kind]) for kind in ("frames", "graph_break")}
        os.write(sys.stdout.fileno(), (json.dumps(found) + "\n").encode())
    return 0
