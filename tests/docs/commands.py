"""Console commands of README and docs, as they are written there."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "docs" / "reference"
"""From the code: tests/docs/test_reference.py parses the commands there."""
TUTORIAL = ROOT / "docs" / "tutorial.md"
"""Run from its first line to its last by tests/docs/test_tutorial.py."""
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
HELP = GENERATED / "cli.md"
"""What `--help` says of every command; tests/docs/test_reference.py compares it with the code."""
PROGRAMS = ("trivet", "torchrun", "accelerate", "make", "python", "python3", "pip", "curl")
INLINE = re.compile(rf"`((?:{'|'.join(PROGRAMS)}) [^`]+)`")

PLACES = {
    "RECIPE": "mine.yaml",
    "FILE...": "prompts.jsonl",
    "RUN": "runs/mine",
    "DIR": "store",
    "COMMAND": "run",
    "~/": "./",
    "sft=...": "sft=adapters/sft",
    "ppo@20": "ppo@2",
}
"""What stands for the reader's own, and what the test puts there."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command and where it stands."""

    page: str
    line: int
    text: str


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """``(line number, line)`` of every fenced or indented line, without its indentation."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith(("    ", "\t")):
            yield number, line.strip()


def commands_of(text: str, page: str = "") -> list[Command]:
    """Commands in blocks, whose trailing comment is left out and which ``;`` divides, and those in running text."""
    found = []
    for number, line in blocks(text):
        code = re.split(r"\s+#", line.removeprefix("$ "))[0]
        parts = [part.strip() for part in code.split(";")] if '"' not in code else [code.strip()]
        found += [Command(page, number, p) for p in parts if p.split(" ")[0] in PROGRAMS]
    for at in INLINE.finditer(text):
        command = " ".join(at[1].split())  # running text is wrapped at any blank
        found.append(Command(page, text[: at.start()].count("\n") + 1, command))
    return found


def all_commands() -> list[Command]:
    """The commands of all pages that have no test of their own, and the examples of every ``--help``."""
    pages = [page for page in PAGES if page.parent != GENERATED and page != TUTORIAL]
    return [c for page in pages for c in commands_of(page.read_text(encoding="utf-8"), page.name)] + help_examples()


def help_examples() -> list[Command]:
    """The commands in the shell blocks of the page that is made from ``--help``."""
    text = HELP.read_text(encoding="utf-8")
    return [c for block in re.findall(r"(?ms)^```sh\n.*?^```", text) for c in commands_of(block, HELP.name)]


def placed(command: str) -> str:
    """The command with the test's own in place of what stands for the reader's."""
    for word, place in PLACES.items():
        command = command.replace(word, place)
    return command


def around(folder: Path) -> dict[str, str]:
    """The environment in which ``trivet`` is this checkout's."""
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    python = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PATH": path, "PYTHONPATH": python, "OMP_NUM_THREADS": "1"}


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command in a shell whose ``trivet`` is this checkout's, in a folder that holds what it names."""
    return subprocess.run(
        placed(command), shell=True, cwd=folder, env=around(folder), capture_output=True, text=True, timeout=580,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@contextmanager
def served(command: str, folder: Path) -> Iterator[str]:
    """The address that a server names at its start; at the end it gets Ctrl-C, and must end well."""
    server = subprocess.Popen(
        shlex.split(placed(command)), cwd=folder, env=around(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None and server.stderr is not None
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in server.stdout)), None)
        assert found is not None, server.stderr.read()
        yield found[0]
        os.killpg(server.pid, signal.SIGINT)
        _, said = server.communicate(timeout=60)
        assert server.returncode in (0, 130) and "Traceback" not in said, said
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.communicate()
