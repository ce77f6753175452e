"""What opening the process group brings along, and what reading a recipe does not."""

from __future__ import annotations

import logging
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


def test_a_kernel_that_nothing_here_calls_is_not_missed_aloud():
    """On a CPU with AVX512-BF16 bitsandbytes, which PEFT imports, would warn of it in every command."""
    import models  # noqa: F401

    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)


BROKEN = """
import sys
from pipelines.cli.main import main
assert main(["plan", sys.argv[1]]) == main(["run", sys.argv[1]]) == 2
assert not {"torch", "transformers", "peft"} & set(sys.modules)
"""


def test_a_broken_recipe_is_refused_before_heavy_libraries_are_imported(tmp_path):
    (tmp_path / "r.yaml").write_text("bas: gpt2\n")
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, str(tmp_path / "r.yaml")], cwd=ROOT, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
