"""The command ``trivet ui``: without the extra, a port that is taken, who is let in, and its end."""

from __future__ import annotations

import re
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.cli.main import main
from tests.support.browser import ui_server


def test_without_the_extra_one_sentence_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nicegui", None)
    assert main(["ui"]) == 2
    assert capsys.readouterr().err == "trivet: trivet ui needs NiceGUI: pip install 'trivet[ui]'\n"


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nicegui")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 2
    assert f"--port {port}: cannot be used" in capsys.readouterr().err


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    pytest.importorskip("nicegui")
    folder = tmp_path_factory.mktemp("ui")
    with ui_server(folder) as served:
        yield served.address, folder


def status(address: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_only_who_has_the_address_is_let_in(server) -> None:
    address, folder = server
    root = address.split("?")[0]
    jar = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with jar.open(address, timeout=60) as page:
        assert page.status == 200 and page.url == root and "trivet" in page.read().decode()
    with jar.open(root + "runs", timeout=60) as page:
        assert page.status == 200
    for path in (
        "",
        "runs",
        "report?folder=runs",
        "docs",
        "openapi.json",
        "_nicegui_ws/socket.io/?EIO=4&transport=polling",
    ):
        assert status(root + path)[0] == 403, path
    assert status(address, Host="evil.example")[0] == 403
    assert status(address, Origin="http://evil.example")[0] == 403
    assert [*folder.iterdir()] == []  # nothing is written for being there


@pytest.mark.slow
def test_a_report_cannot_use_the_pages(server, run: Path) -> None:
    """Whatever stands in a report: it is served in a sandbox, and only what is a run or was written is served."""
    address, _ = server
    root = address.split("?")[0]
    jar = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    jar.open(address, timeout=60).close()
    with jar.open(f"{root}report?folder={run}", timeout=60) as page:
        assert page.headers["Content-Security-Policy"].startswith("sandbox allow-scripts") and b"chart" in page.read()
    for path in ("report?folder=/etc", "comparison?page=/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            jar.open(root + path, timeout=60)


@pytest.mark.slow
def test_ctrl_c_ends_it_without_a_complaint(tmp_path: Path) -> None:
    pytest.importorskip("nicegui")
    with ui_server(tmp_path) as served:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", served.address)
        before = served.out.read_text(), served.errors.read_text()
        served.end()
        assert served.process.returncode == 0
        assert (served.out.read_text(), served.errors.read_text()) == before
