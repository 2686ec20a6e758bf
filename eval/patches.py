"""Whole slides to patches: `python -m eval.patches`, see `eval.patching`."""

import sys

from eval.patching.cli import main

if __name__ == "__main__":
    sys.exit(main())
