"""``python -m calibration``: calibrate a pipeline, explain a plan's cells, or make SmoothCache's plan."""

import sys

from calibration.cli import main

sys.exit(main())
