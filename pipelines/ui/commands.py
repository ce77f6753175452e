"""What the pages do, as command lines: each action is a list of arguments to ``trivet``, which a child process runs.

Pure functions, and one that waits for a short command. So the pages can do nothing that a terminal cannot, and show
the line that does the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipelines

COMMAND = (sys.executable, "-P", "-m", "pipelines")
"""``trivet``, by the interpreter that runs this; -P: folders such as ./data are not taken for packages."""
ROOT = Path(pipelines.__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a command: its exit code, and what it wrote to its two outputs."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """What to show of a command that failed: its messages as they are."""
        return self.err.strip() or self.out.strip() or f"exit code {self.code}"

    def json(self) -> dict[str, Any]:
        """The object that a command with --json prints."""
        found = json.loads(self.out)
        return found if isinstance(found, dict) else {}


def shown(arguments: Sequence[str]) -> str:
    """The line that does the same in a terminal."""
    return shlex.join(["trivet", *arguments])


def environment() -> dict[str, str]:
    """The variables of a child process: in a checkout that is not installed, the packages are found as here."""
    found = dict(os.environ)
    if ROOT.name not in ("site-packages", "dist-packages"):
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), found.get("PYTHONPATH", "")]))
    return found


async def outcome_of(arguments: Sequence[str]) -> Outcome:
    """Run a command to its end, without a terminal."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
        start_new_session=True,  # Ctrl-C in the terminal of the server is not for it
    )
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        raise
    text = (out.decode(errors="replace"), err.decode(errors="replace"))
    return Outcome(code=process.returncode or 0, out=text[0], err=text[1])


# -- the actions ------------------------------------------------------------------------------------------------------


def path_of(text: str) -> str:
    """A path that no command takes for an option."""
    text = text.strip()
    return f"./{text}" if text.startswith("-") else text


def check(files: Sequence[str], as_json: bool = False) -> list[str]:
    """Ask the doctor about files, or about a recipe."""
    return ["data", "check", *map(path_of, files), *(["--json"] if as_json else [])]


def draft(
    files: Mapping[str, str], base: str, machine: str, out: str, held_out: str = "", replace: bool = False
) -> list[str]:
    """Write a first recipe.

    Args:
        files: path -> the part of the data that it is, '' where that follows from its rows.
        base: a name, folder, hub id or scratch.
        machine: as ``--for`` takes it.
        out: the recipe.
        held_out: a share or a file; '' leaves it to the number of rows.
        replace: whether a recipe that is there is replaced (and kept as the previous one).
    """
    words = ["init", *(path_of(file) for file, part in files.items() if not part)]
    for file, part in files.items():
        words += [f"--{part}", path_of(file)] if part else []
    words += ["--base", base.strip()] + (["--for", machine] if machine != "here" else [])
    words += ["--out", path_of(out)] + (["--held-out", held_out.strip()] if held_out.strip() else [])
    return [*words, *(["--force"] if replace else [])]


def plan(recipe: str, folder: str, as_json: bool = False) -> list[str]:
    """Check a recipe and say what a run would do."""
    return ["plan", path_of(recipe), *run_dir(folder), *(["--json"] if as_json else [])]


def run(recipe: str, folder: str) -> list[str]:
    """Run a recipe into a folder, or resume there."""
    return ["run", path_of(recipe), *run_dir(folder)]


def run_dir(folder: str) -> list[str]:
    """The option that names the run folder; none leaves it to the recipe's name."""
    return ["--run-dir", path_of(folder)] if folder.strip() else []


def compare(folders: Sequence[str], out: str) -> list[str]:
    """Several runs on one page."""
    return ["report", *map(path_of, folders), "--out", path_of(out)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """A conversation as ``trivet chat`` takes it; '' and None leave a setting to its default."""

    target: str
    stage: str = ""
    compare_with: str = ""
    system: str = ""
    temperature: float | None = None
    tokens: int | None = None
    seed: int | None = None
    preferences: str = ""

    def arguments(self) -> list[str]:
        """The command line that does the same."""
        options = {
            "--stage": self.stage,
            "--compare-with": self.compare_with,
            "--system": self.system,
            "--temperature": self.temperature,
            "--tokens": self.tokens,
            "--preferences": self.preferences,
            "--seed": self.seed,
        }
        given = {name: value for name, value in options.items() if value not in ("", None)}
        words = [
            word
            for name, value in given.items()
            for word in (name, f"{value:g}" if name == "--temperature" else str(value))
        ]
        return ["chat", path_of(self.target), *words]
