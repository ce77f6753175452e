"""What pydantic and the recipe's own checks find wrong -> one message naming file, line, key and the fix."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from data.common.errors import UserError, nearest
from pipelines.recipe.yaml_source import Path, Source

Problem = tuple[Path, str]

WORDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a group of settings (key: value)",
    "model_attributes_type": "a group of settings (key: value)",
}
LIMITS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes that an annotation allows, also inside unions and tuples."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        return [m for part in typing.get_args(annotation) for m in models_in(part)]
    return []


def known_keys(models: Iterable[type[BaseModel]]) -> dict[str, Any]:
    """Key -> annotation, over all of ``models``; what only Python sets is left out."""
    return {k: f.annotation for m in models for k, f in m.model_fields.items() if not f.exclude}


ELSEWHERE: dict[Path, str] = {
    ("pretrain",): " Pretraining from scratch is base: {pretrain: {...}}, and of a base that is there continued: {...}."
}
"""What to write instead of settings that are called otherwise in other projects."""


def unknown_keys(data: Any, models: Sequence[type[BaseModel]], path: Path = ()) -> list[Problem]:
    """Every key that no settings class has, with the nearest one that is there."""
    if isinstance(data, list):
        return [p for i, item in enumerate(data) for p in unknown_keys(item, models, (*path, i))]
    if not isinstance(data, dict) or not models:
        return []
    known, out = known_keys(models), []
    for key, value in data.items():
        if key not in known:
            where = f" in {_dotted(path)}" if path else ""
            hint = ELSEWHERE.get((*path, key)) or nearest(str(key), known) or f" Known{where}: {', '.join(known)}."
            out.append(((*path, key), f"no such setting.{hint}"))
        elif typing.get_origin(known[key]) is dict and isinstance(value, dict):  # names that the user chooses
            inner = models_in(known[key])
            out += [p for name, one in value.items() for p in unknown_keys(one, inner, (*path, key, name))]
        else:
            out += unknown_keys(value, models_in(known[key]), (*path, key))
    return out


def recipe_error(source: Source, problems: Sequence[Problem]) -> UserError:
    """One error for all problems, in the order in which they were found."""
    lines = [
        f"{source.place(path)}: {_dotted(path)}: {text}" if path else f"{source.place(())}: {text}"
        for path, text in problems
    ]
    if len(lines) == 1:
        return UserError(lines[0])
    return UserError(f"{len(lines)} things to fix in {source.name}:\n" + "\n".join(f"  {line}" for line in lines))


def problems_of(error: ValidationError, source: Source) -> list[Problem]:
    """Pydantic's errors in plain words; those of a union's other branches are joined or dropped."""
    found: dict[Path, list[dict[str, Any]]] = {}
    for one in error.errors(include_url=False):
        found.setdefault(_path(one, source), []).append(dict(one))
    deepest = [p for p in found if not any(len(q) > len(p) and q[: len(p)] == p for q in found)]
    # a group that is wrong as a whole is reported with its keys, a union's branch that does not fit is not
    whole = [p for p in found if p not in deepest and any(e["type"] == "value_error" for e in found[p])]
    return [(p, _words(found[p])) for p in found if p in deepest or p in whole]


def _path(one: dict[str, Any] | Any, source: Source) -> Path:
    """The error's location without the names of union branches."""
    path: Path = ()
    steps = list(one["loc"])
    for n, step in enumerate(steps):
        last = n == len(steps) - 1
        if last and one["type"] == "missing":
            return (*path, step)
        try:
            source.value((*path, step))
        except LookupError:
            continue
        path = (*path, step)
    return path


def _words(errors: list[dict[str, Any]]) -> str:
    kinds, texts = [], []
    for one in errors:
        kind, context = one["type"], one.get("ctx", {})
        if kind in WORDS:
            kinds.append(WORDS[kind])
        elif kind in LIMITS:
            kinds.append(LIMITS[kind].format(**context))
        elif kind == "literal_error":
            kinds.append("one of " + context["expected"].replace(" or ", ", "))
        elif kind == "missing":
            texts.append("is needed but not given")
        else:
            texts.append(str(one["msg"]).removeprefix("Value error, "))
    if kinds:
        value = errors[0]["input"]
        hint = ""
        if isinstance(value, str) and (expected := [e for e in errors if e["type"] == "literal_error"]):
            hint = nearest(value, expected[0]["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", "))
        texts.insert(0, f"must be {' or '.join(dict.fromkeys(kinds))}, not {_given(value)}.{hint}".removesuffix("."))
        if kinds == ["text"] and isinstance(value, bool):
            texts.append("YAML reads yes, no, on and off as true and false, so put the word in quotes")
        elif kinds == ["text"] and isinstance(value, int | float):
            texts.append("put it in quotes")
    return "; ".join(dict.fromkeys(texts))


def _given(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a group of settings" if isinstance(value, dict) else "a list"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def coerced(raw: Any, valid: Any, path: Path = ()) -> list[Problem]:
    """Values that pydantic turned into another type: a number in quotes, a number for true or false."""
    if isinstance(raw, dict) and isinstance(valid, BaseModel):
        return [
            p
            for k, v in raw.items()
            if k in type(valid).model_fields
            for p in coerced(v, getattr(valid, k), (*path, k))
        ]
    if isinstance(raw, list) and isinstance(valid, tuple | list):
        return [p for i, (r, v) in enumerate(zip(raw, valid, strict=False)) for p in coerced(r, v, (*path, i))]
    number = isinstance(valid, int | float) and not isinstance(valid, bool)
    if isinstance(raw, str) and number:
        return [(path, f"must be a number, not the text {raw!r}: write it without quotes")]
    if isinstance(valid, bool) and not isinstance(raw, bool):
        return [(path, f"must be true or false, not {raw!r}")]
    if isinstance(raw, bool) and number:
        return [(path, f"must be a number, not {str(raw).lower()}")]
    return []


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))
