"""`python -m dinov2.train`."""

import sys

from dinov2.train.train import main

sys.exit(main())
