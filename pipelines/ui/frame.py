"""What the pages have in common: the bar at the top, cards, the line that does the same, and messages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from nicegui import ui

from data.common.redaction import printable
from pipelines.ui.commands import Outcome, outcome_of, shown

PAGES = {"New run": "/", "Runs": "/runs", "Chat": "/chat"}
STYLE = """
:root { --line: #e2e6ec; --muted: #5f6977; --ground: #f6f7f9; --card: #ffffff; --soft: #eef1f5;
  --good: #1f7a4d; --bad: #b3392f; --open: #8a5d00; }
body.body--dark { --line: #2c3542; --muted: #98a3b3; --ground: #12161c; --card: #1a2029; --soft: #222a35;
  --good: #6cc799; --bad: #ef8d83; --open: #e0b354; }
body { background: var(--ground) !important; }
.nicegui-content { padding: 0; }
.bar { background: var(--card) !important; border-bottom: 1px solid var(--line); color: inherit !important; }
.body--light .bar { color: #1b2430 !important; } .body--dark .bar { color: #e4e8ee !important; }
.bar a { color: var(--muted); text-decoration: none; padding: .2rem .1rem; }
.bar a.here { color: inherit; border-bottom: 2px solid var(--q-primary); }
a.nicegui-link:not(.bar a) { color: var(--q-primary); } .body--dark a.nicegui-link:not(.bar a) { color: #79aee3; }
.body--dark .q-btn--outline, .body--dark .q-btn--flat, .body--dark .q-badge--outline {
  --q-primary: #9cc3ea; --q-negative: #ef8d83; }
.form { max-height: 36rem; overflow: auto; flex-wrap: nowrap; }
.sheet { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1rem 1.15rem;
  width: 100%; min-width: 0; gap: .6rem; box-shadow: none; }
.sheet h2, .title { font-size: 1.05rem; font-weight: 600; line-height: 1.3; margin: 0; }
.muted { color: var(--muted); } .small { font-size: .86rem; line-height: 1.4; }
.good { color: var(--good); } .bad { color: var(--bad); } .open { color: var(--open); }
.lines { white-space: pre-wrap; overflow-wrap: anywhere; }
.line { font-family: ui-monospace, monospace; font-size: .8rem; background: var(--soft); border-radius: 6px;
  padding: .3rem .55rem; overflow-wrap: anywhere; white-space: pre-wrap; width: 100%; color: var(--muted); }
.log { font-family: ui-monospace, monospace; font-size: .78rem; line-height: 1.45; background: var(--soft);
  border-radius: 8px; padding: .6rem .75rem; width: 100%; max-height: 24rem; overflow: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.yaml textarea { font-family: ui-monospace, monospace; font-size: .8rem; line-height: 1.45; }
.wide { overflow-x: auto; width: 100%; }
.wide table td, .wide table th { white-space: normal; }
.q-table__card { background: transparent !important; box-shadow: none !important; color: inherit !important; }
.bubble { border-radius: 12px; padding: .55rem .8rem; background: var(--soft); white-space: pre-wrap;
  overflow-wrap: anywhere; min-width: 0; }
.bubble.mine { background: color-mix(in srgb, var(--q-primary) 18%, transparent); }
.chart { width: 100%; height: 210px; }
"""


@contextlib.contextmanager
def page(title: str, here: str = "") -> Iterator[None]:
    """A page: the bar, and a column for its cards."""
    ui.page_title(f"{title} · trivet")
    ui.colors(primary="#3a6ea5", secondary="#667080", accent="#c2612c", positive="#1f7a4d", negative="#b3392f")
    ui.add_css(STYLE)
    with ui.header(elevated=False).classes("bar items-center gap-5 px-4 py-2"):
        ui.label("trivet").classes("font-semibold text-base")
        for name, address in PAGES.items():
            ui.link(name, address).classes("here" if address == here else "")
    with ui.column().classes("w-full max-w-6xl mx-auto px-3 sm:px-4 py-4 gap-4"):
        yield


@contextlib.contextmanager
def sheet(title: str = "") -> Iterator[ui.card]:
    """A card with a title."""
    with ui.card().classes("sheet") as found:
        if title:
            ui.label(title).classes("title")
        yield found


def command_line(arguments: Sequence[str] | str = ()) -> ui.label:
    """The line in a terminal that does the same."""
    found = ui.label().classes("line").tooltip("the same in a terminal")
    show_line(found, arguments)
    return found


def show_line(label: ui.label, arguments: Sequence[str] | str) -> None:
    """Change the line that is shown; an empty one hides it."""
    text = arguments if isinstance(arguments, str) else shown(arguments) if arguments else ""
    label.set_text(f"$ {printable(text)}")
    label.set_visibility(bool(text))


def texts(lines: Iterable[str], classes: str = "small muted") -> None:
    """A label for each line, without control codes."""
    for line in lines:
        ui.label(printable(line)).classes(f"lines {classes}")


def error(text: str) -> None:
    """A message about what went wrong, as the command line has it."""
    with ui.row().classes("items-start no-wrap gap-2 w-full"):
        ui.icon("error_outline").classes("bad text-lg")
        ui.label(printable(text)).classes("bad lines small error-text")


async def answered(button: ui.button, arguments: Sequence[str]) -> Outcome:
    """Run a short command while its button shows that it is at work."""
    button.props(add="loading")
    try:
        return await outcome_of(arguments)
    finally:
        button.props(remove="loading")
