"""What the others are to know of a process comes from its progress, silent or not."""

from __future__ import annotations

import pytest

from models.backbone.whereabouts import WHEREABOUTS
from pipelines.execution.progress import Progress


def test_progress_says_where_the_process_is() -> None:
    """A stage's own steps count; those of a part of it, and of no stage, do not."""
    progress = Progress(active=False)
    with progress.stage("sft", 9) as bar:
        bar.advance(4)
        bar.phase("examining", 100)(50)
        assert (WHEREABOUTS.stage, WHEREABOUTS.step, len(WHEREABOUTS.seconds)) == ("sft", 4, 1)
    assert (WHEREABOUTS.stage, WHEREABOUTS.step) == ("", 0)
    with pytest.raises(ValueError), progress.stage("ppo", 9) as bar:
        bar.advance(2)
        raise ValueError
    assert (WHEREABOUTS.stage, WHEREABOUTS.step) == ("ppo", 2)  # for what is said of the failure
    WHEREABOUTS.enter("")
