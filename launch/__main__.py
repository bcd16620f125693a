"""``python -m launch JOB``: the same as ``segclr-beam JOB``."""

import sys

from launch.cli import main

sys.exit(main())
