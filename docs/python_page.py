"""The page of promised Python names, from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from docs.page_parts import NOTE, cell

ABOUT_PYTHON = """\
These names are promises: a change of one is noted in the [changelog](../../CHANGELOG.md). Everything else may
change.

The folders `data`, `models`, `reward`, `stages`, `evaluation` and `pipelines` are trivet's packages. In a folder that
has one of these itself, or a file such as `models.py`, Python would import that one instead; `from pipelines import
Pipeline` then ends in one message that names it. The command `trivet` is not disturbed.
"""


def signature_of(name: str, function: Callable[..., Any]) -> str:
    """A call as it is written in the source, one parameter a line where it is long."""
    shown, star = [], False
    for p in inspect.signature(function).parameters.values():
        if p.name in ("self", "cls"):
            continue
        if p.kind is p.KEYWORD_ONLY and not star:
            shown.append("*")
            star = True
        hint = "" if p.annotation is p.empty else f": {plain(p.annotation)}"
        value = "" if p.default is p.empty else f" = {p.default.__name__ if callable(p.default) else repr(p.default)}"
        shown.append(f"{'*' if p.kind is p.VAR_POSITIONAL else ''}{p.name}{hint}{value}")
    back = inspect.signature(function).return_annotation
    result = "" if back is inspect.Signature.empty else f" -> {plain(back)}"
    line = f"{name}({', '.join(shown)}){result}"
    return line if len(line) <= 110 else "\n".join([f"{name}(", *(f"    {one}," for one in shown), f"){result}"])


def plain(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def entry(name: str, function: Any) -> list[str]:
    """One function or method with its docstring."""
    if isinstance(function, property):
        head, doc = name, function.__doc__
    else:
        head, doc = signature_of(name, function), function.__doc__
    return ["", "```python", head, "```", "", "```text", inspect.cleandoc(doc or ""), "```"]


def methods_of(cls: type) -> list[tuple[str, Any]]:
    """Public methods with a docstring, in the order of the source."""
    found = []
    for name, member in vars(cls).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        function = getattr(function, "__wrapped__", function)
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            found.append((name, function))
    return found


def python_page() -> str:
    """``python.md``: the promised names with their signatures and docstrings."""
    from models import BASE_MODELS, SharedBase
    from pipelines import Pipeline
    from reward.losses import ranking_loss, ranking_losses
    from stages import ppo_math

    out = ["# The Python interface", "", NOTE]
    out += [*ABOUT_PYTHON.splitlines(), ""]
    out += ["## `pipelines.Pipeline`", "", "```python", "from pipelines import Pipeline", "",
            'Pipeline.from_recipe("mine.yaml", overrides=["seed=1"]).run()', "```"]  # fmt: skip
    out += ["", "```text", inspect.cleandoc(Pipeline.__doc__ or ""), "```"]
    chosen = ("from_recipe", "plan", "run")
    for name, function in methods_of(Pipeline):
        if name in chosen:
            out += entry(f"Pipeline.{name}", function)
    out += [
        "",
        "## `models.BASE_MODELS`",
        "",
        "A dict from names to the base models that they stand for.",
        "",
    ]
    out += ["| name | source | family | licence | note |", "| --- | --- | --- | --- | --- |"]
    out += [f"| `{s.name}` | `{s.source}` | {s.family} | {s.licence} | {cell(s.note)} |" for s in BASE_MODELS.values()]
    out += ["", "## `models.SharedBase`", "", "```text", inspect.cleandoc(SharedBase.__doc__ or ""), "```"]
    for name, function in methods_of(SharedBase):
        out += entry(f"SharedBase.{name}", function)
    out += ["", "## `stages.ppo_math`", "", "```text", inspect.cleandoc(ppo_math.__doc__ or ""), "```"]
    for name, function in vars(ppo_math).items():
        if inspect.isfunction(function) and function.__module__ == ppo_math.__name__ and not name.startswith("_"):
            out += entry(f"ppo_math.{name}", function)
    out += ["", "## `reward.losses`"]
    for function in (ranking_loss, ranking_losses):
        out += entry(function.__name__, function)
    return re.sub(r"[ \t]+\n", "\n", "\n".join(out)) + "\n"
