"""Whole slides to patches: `python -m eval.patches`, see `eval.patching`."""

import sys

if __name__ == "__main__":
    try:
        from eval.patching.cli import main
    except ImportError as missing:
        print(f"error: {missing}. Slides need the extra packages: pip install '.[slides]'", file=sys.stderr)
        sys.exit(2)
    sys.exit(main())
