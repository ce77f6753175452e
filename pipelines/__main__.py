"""``python -m pipelines``, from a checkout, equals ``trivet``."""

from __future__ import annotations

import sys

from pipelines.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
