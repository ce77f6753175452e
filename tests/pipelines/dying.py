"""Run by torchrun in test_dead_process: ``trivet run`` of two processes, the second of which is killed in SFT."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from pipelines.cli import main as cli
from stages.training.training_run import TrainingRun


def main() -> int:
    if os.environ["RANK"] == "1":

        def killed(*_: object, **__: object) -> None:
            Path(os.environ["DIED_AT"]).write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

        TrainingRun.judge_step = killed  # type: ignore[assignment,method-assign]
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
