"""What opening the process group brings along."""

from __future__ import annotations

import subprocess
import sys

from tests.support.planting import ROOT

CODE = """
import sys
from models.backbone.processes import Processes, quiet_libraries
Processes("cpu")
assert "datasets" not in sys.modules
import datasets
assert datasets.are_progress_bars_disabled()
"""


def test_the_datasets_library_is_silenced_without_being_imported():
    """Its import takes 80 MB, which PPO does not need."""
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr
