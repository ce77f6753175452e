"""A function run as a command is: its exit code, errors told on standard error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipelines.cli.exit_codes import exit_code


def exit_code_of(command: Callable[[], Any]) -> int:
    with exit_code() as ended:
        command()
    return ended.code
