"""The page of the command line, from the commands' own help."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import typer.main

from docs.page_parts import NOTE, cell
from pipelines.cli.main import app

EXIT_CODES = """\
| exit code | meaning |
| --- | --- |
| 0 | done |
| 2 | the input is wrong; the message says how to fix it |
| 3 | a stage failed, or the reward model did not pass the gate |
| 130, 143 | stopped by a signal; the same command resumes |
"""


def commands(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Words and command of every command, those of subcommands as well."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name), command


def parts_of(help_text: str) -> tuple[list[str], list[str]]:
    """Paragraphs of a command's help, and its examples."""
    prose, _, examples = inspect.cleandoc(help_text).partition("\b\n")
    return [" ".join(p.split()) for p in prose.split("\n\n") if p.strip()], examples.splitlines()


def command_section(words: tuple[str, ...], command: Any) -> list[str]:
    """One command: usage, help, examples, arguments and options."""
    arguments = [p for p in command.params if not p.opts[0].startswith("-")]
    options = [p for p in command.params if p.opts[0].startswith("-")]
    usage = " ".join(["trivet", *words, *(p.metavar for p in arguments), *(["[OPTIONS]"] if options else [])])
    paragraphs, examples = parts_of(command.help)
    out = ["", f"## `trivet {' '.join(words)}`", "", "```text", usage, "```"]
    for paragraph in paragraphs:
        out += ["", *textwrap.wrap(paragraph, 118, break_long_words=False, break_on_hyphens=False)]
    out += ["", "```sh", *examples, "```"] if examples else []
    if command.params:
        out += ["", "| argument or option | default | what it is |", "| --- | --- | --- |"]
    for p in [*arguments, *options]:
        name = p.metavar if p in arguments else " ".join(filter(None, [", ".join(p.opts), p.metavar]))
        default = "required" if p.required else "" if p.default in (None, False) else f"`{p.default}`"
        out.append(f"| `{cell(name)}` | {default} | {cell(p.help or '')} |")
    return out


def cli_page() -> str:
    """``cli.md``: every command with its arguments, options and examples."""
    group = typer.main.get_command(app)
    out = ["# The command line", "", NOTE]
    out += [
        "`python -m pipelines`, from a checkout, equals `trivet`. `--set`, `--input` and `--only` take several values.",
        "",
    ]
    out += EXIT_CODES.splitlines()
    for words, command in commands(group):
        out += command_section(words, command)
    return "\n".join(out) + "\n"
