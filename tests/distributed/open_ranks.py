"""A program for several ranks: open `tiles` below a folder of one's own, and say what came of it, as JSON."""

import json
import os
from pathlib import Path

from dinov2.data import index_cache
from dinov2.data.datasets import file_listing
from dinov2.distributed.launch import find_launch
from dinov2.distributed.process_group import process_group
from dinov2.train.open_data import open_together


def main(cache: str, *specs: str) -> int:
    """Open each of the specs in turn; `{rank}` in it stands for the rank."""
    os.environ["DINOV2_CACHE_DIR"] = cache
    index_cache.MIN_KEPT = 2
    launch, listed, make = find_launch(os.environ), [], file_listing._list

    def record(*arguments):
        listed.append(Path(arguments[1]).name)
        return make(*arguments)

    file_listing._list = record
    with process_group(launch, "cpu", 1.0):
        for spec in specs:
            listed.clear()
            try:
                outcome = len(open_together(spec.replace("{rank}", str(launch.rank)), 0.01))
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
            print(json.dumps({"outcome": outcome, "listed": list(listed)}))
    return 0
