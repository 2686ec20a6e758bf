"""`python -m dinov2.train`."""

import sys

from dinov2.train.interrupt import StopRequest

with StopRequest() as stop:  # before the imports, which take seconds in which a signal would end the process
    from dinov2.train.train import main

    sys.exit(main(stop=stop))
