"""The pages behind a server on loopback: started in a thread, ended with the command."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from data.common.errors import UserError
from data.common.loopback import HOST
from pipelines.ui.guard import Guard, new_token
from pipelines.ui.state import State

MISSING = "trivet ui needs NiceGUI: pip install 'trivet[ui]'"
PATIENCE = 60  # seconds for the framework to be ready
RECONNECT = 60.0
"""Seconds for which a page that has lost its connection is kept: a busy machine may take long to make the first."""


def check_installed() -> None:
    """Refuse where the extra is missing.

    Raises:
        UserError: how to get it.
    """
    try:
        import nicegui  # noqa: F401
    except ImportError as error:
        raise UserError(MISSING) from error


@contextlib.contextmanager
def serving(state: State, port: int = 0) -> Iterator[str]:
    """Serve the pages in a thread; yields the address with its token. Port 0 takes a free one.

    Raises:
        UserError: the extra is missing, or the port is taken.
    """
    check_installed()
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        listening.close()
        raise UserError(f"--port {port}: cannot be used ({error.strerror}); choose another or 0") from error
    import uvicorn

    there, token = listening.getsockname()[1], new_token()
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # pages that are closed are no news
    config = uvicorn.Config(
        Guard(_pages(state), there, token), log_level="critical", timeout_graceful_shutdown=1, lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    end = time.monotonic() + PATIENCE
    while not server.started and thread.is_alive() and time.monotonic() < end:
        time.sleep(0.02)
    if not server.started:
        server.should_exit = True
        raise UserError("trivet ui: the pages did not start; try `pip install --upgrade 'trivet[ui]'`")
    try:
        yield f"http://{HOST}:{there}/?token={token}"
    finally:
        server.should_exit = True
        thread.join(10)


def _pages(state: State) -> Any:
    """The framework's application with the pages in it."""
    from fastapi import FastAPI
    from nicegui import ui

    from pipelines.ui import page_chat, page_recipe, page_run, page_runs, page_start

    for page in (page_start, page_recipe, page_runs, page_run, page_chat):
        page.add(state)
    app = FastAPI(openapi_url=None)
    ui.run_with(app, title="trivet", dark=None, show_welcome_message=False, reconnect_timeout=RECONNECT)
    return app
