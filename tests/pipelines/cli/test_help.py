"""Help that can be read in 80 columns and shows how each command is called."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import typer.main

from pipelines.cli.main import app, main


def commands(group: object, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Words and click command of every command, those of subcommands as well."""
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name), command


COMMANDS = [words for words, _ in commands(typer.main.get_command(app))]


def help_of(words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    assert main([*words, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [(), ("data",)], ids=["trivet", "trivet data"])
def test_no_line_about_a_command_is_cut(words, capsys, monkeypatch) -> None:
    text = help_of(words, capsys, monkeypatch)
    listed = text.split("Commands:\n")[1].splitlines()
    assert len(listed) >= 1 and all(line.endswith(".") and not line.endswith("...") for line in listed)
    assert {line.split()[0] for line in listed} >= {w[len(words)] for w in COMMANDS if w[: len(words)] == words}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_fits_and_has_an_example_of_its_command(words, capsys, monkeypatch) -> None:
    text = help_of(words, capsys, monkeypatch)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert any(
        line.strip().startswith(f"trivet {' '.join(words)} ") or line.strip() == f"trivet {' '.join(words)}"
        for line in text.splitlines()
    )


def test_the_first_help_fits(capsys, monkeypatch) -> None:
    assert [line for line in help_of((), capsys, monkeypatch).splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_argument_and_option_is_explained(words) -> None:
    command = dict(commands(typer.main.get_command(app)))[words]
    assert [p.name for p in command.params if not getattr(p, "help", "") and not getattr(p, "hidden", False)] == []  # type: ignore[attr-defined]
