"""``trivet ui``: the pages on this machine, until Ctrl-C; runs that were started from them go on."""

from __future__ import annotations

import webbrowser

import typer

from data.common.redaction import printable
from pipelines.cli.exit_codes import until_stopped
from pipelines.ui.server import serving
from pipelines.ui.state import State

PORT = 8780


def serve(port: int = PORT, browser: bool = False) -> None:
    """Serve until Ctrl-C, then say which runs go on.

    Raises:
        UserError: the extra is missing, or the port is taken.
    """
    state = State()
    with serving(state, port) as address:

        def say() -> None:
            typer.echo(f"open {address} in this machine's browser; Ctrl-C ends the pages, and runs keep running")
            if browser:
                webbrowser.open(address)

        until_stopped(say)
    for line in state.children.farewell():
        typer.echo(printable(line))
