"""A server of ``trivet ui`` and a headless Chromium that clicks through its pages. Not a test file."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
WAIT = 300_000
"""Milliseconds that a page may take for what a command does, on a machine that is busy besides."""


START = 120
"""Seconds that the server may take until it prints its address."""


@dataclass
class Served:
    """A server of ``trivet ui``: its address, its process, and the files that take what it says."""

    address: str
    process: subprocess.Popen[bytes]
    out: Path
    errors: Path

    def end(self) -> None:
        """Press Ctrl-C and wait.

        Raises:
            AssertionError: it does not end, with the stacks of its threads.
        """
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server did not end:\n{_stacks(self.process, self.errors)}") from None


@contextlib.contextmanager
def ui_server(folder: Path) -> Iterator[Served]:
    """``trivet ui`` in a folder, until the test ends."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, "-P", "-m", "pipelines", "ui", "--port", "0"]
    with tempfile.TemporaryDirectory() as place:
        out, errors = Path(place, "out"), Path(place, "errors")
        with out.open("wb") as said, errors.open("wb") as complaints:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=complaints)
        try:
            served = Served(_address(process, out, errors), process, out, errors)
            yield served
            if process.poll() is None:
                served.end()
        finally:
            process.kill()
            process.wait()
            for group in re.findall(r"kill -INT -(\d+)", out.read_text()):  # runs outlive it: a test that failed
                os.killpg(int(group), signal.SIGKILL)


def _address(process: subprocess.Popen[bytes], out: Path, errors: Path) -> str:
    """What the server prints once it can be asked; other lines, as an environment may cause, are passed over.

    Raises:
        AssertionError: it prints none, with what it said instead and the stacks of its threads.
    """
    end = time.monotonic() + START
    while not (found := re.search(r"http://\S+(?=.*\n)", out.read_text())):
        if process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"no address:\n{out.read_text()}{_stacks(process, errors)}")
        time.sleep(0.05)
    return found[0]


def _stacks(process: subprocess.Popen[bytes], errors: Path) -> str:
    """End a process that hangs; what it wrote to standard error, where its threads stand last."""
    process.send_signal(signal.SIGABRT)
    process.wait()
    return errors.read_text(errors="replace")


@dataclass
class Visit:
    """An open page, and what went wrong in it."""

    page: Any
    root: str
    complaints: list[str] = field(default_factory=list)

    def go(self, path: str) -> None:
        self.page.goto(self.root + path)

    def fill(self, label: str, text: str, end: str = "Enter") -> None:
        """Type into a field and leave it."""
        where = self.page.get_by_label(label, exact=True)
        where.fill(text)
        where.press(end)

    def click(self, name: str) -> None:
        """Press a button."""
        self.page.get_by_role("button", name=name, exact=True).click()

    def wait(self, selector: str, hidden: bool = False) -> Any:
        """Wait until something is shown, or no longer."""
        self.page.wait_for_selector(selector, timeout=WAIT, state="hidden" if hidden else "visible")
        return self.page.locator(selector)

    def set(self, setting: str, value: str) -> None:
        """Change a setting in the form, as a user finds it: by a search."""
        self.page.get_by_label("search", exact=True).fill(setting.replace(".", " ").replace("_", " "))
        there = self.page.locator(f".set-{setting.replace('.', '-')}")
        there.wait_for(timeout=WAIT)
        typed = there.locator("input:not([readonly])")
        if there.get_attribute("role") == "combobox" or there.locator("[role=combobox]").count():
            there.click()
            self.page.get_by_role("option", name=value, exact=True).click()
        else:
            typed.fill(value)
            typed.press("Enter")

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


@contextlib.contextmanager
def visit(address: str, width: int = 1280, scheme: Any = "light") -> Iterator[Visit]:
    """The page behind an address; what a browser complains of, or asks of other machines, is noted."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
        page.set_default_timeout(WAIT)
        found = Visit(page=page, root=address.split("?")[0])

        def said(message: Any) -> None:
            if message.type in ("error", "warning"):
                found.complaints.append(message.text)

        def asked(request: Any) -> None:
            if not request.url.startswith((found.root, "data:", "blob:")):
                found.complaints.append(f"asks {request.url}")

        page.on("console", said)
        page.on("request", asked)
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        page.goto(address)
        yield found
        browser.close()
