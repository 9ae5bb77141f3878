"""``python -m calibration``: calibrate a pipeline, or explain a plan's cells."""

import sys

from calibration.cli import main

sys.exit(main())
