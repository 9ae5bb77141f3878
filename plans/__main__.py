"""python -m plans: look at plan files, make, check, compare and seal them."""

import sys

from plans.cli import main

sys.exit(main())
