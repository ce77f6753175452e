"""The page of all settings, from their classes, and the JSON schema of a recipe."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, JsonValue
from pydantic.fields import FieldInfo

from docs.page_parts import NOTE, cell
from pipelines.recipe.errors import models_in
from pipelines.recipe.schema import Recipe

LONGEST_DEFAULT = 60
NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Path: "path"}
LIMITS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}", "pattern": "matches `{}`", "min_length": "not empty"}
ABOUT_RECIPE = """\
A key such as `ppo.kl_coef` is written under its group in the recipe, or on the command line as
`--set ppo.kl_coef=0.1`. `[]` stands for each item of a list and `NAME` for a name that you choose. Only `base` and
`data` are required. [How to write a recipe](../how-to/recipe.md) says which settings matter and why they have these
defaults. `trivet plan RECIPE --settings` prints them all with the values that a recipe gives them.

An editor completes and checks the keys by [the JSON schema](recipe.schema.json). With the YAML language server (VS
Code's YAML extension, and others), begin the recipe with a line that names the schema's file or address:

    # yaml-language-server: $schema=docs/reference/recipe.schema.json

The path is relative to the recipe. The schema knows keys, types and limits; what must fit together across settings
is checked by `trivet plan` alone.
"""


def type_of(annotation: Any) -> str:
    """An annotation in plain words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_of(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_of(part) for part in arguments)
    if origin is tuple:
        return f"list of {type_of(arguments[0])}"
    if origin is dict:
        return f"names, each with {type_of(arguments[1])}"
    if annotation is JsonValue:
        return "a value"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "settings"
    return NAMES[annotation]


def default_of(field: FieldInfo) -> str:
    """A field's default as it is written in YAML."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    plain = json.loads(json.dumps(value, default=lambda one: one.model_dump(mode="json", exclude_defaults=True)))
    text = json.dumps(plain, ensure_ascii=False) if not isinstance(plain, str) else plain
    return f"`{cell(text)}`" if len(text) <= LONGEST_DEFAULT else "a longer text: see the schema"


def range_of(field: FieldInfo) -> str:
    """The limits of a field's value."""
    found = [text.format(getattr(one, key)) for one in field.metadata for key, text in LIMITS.items()
             if getattr(one, key, None) is not None]  # fmt: skip
    return ", ".join(found)


def groups(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """``(dotted key, class)`` of every group of settings, the recipe first; ``[]`` and ``NAME`` stand for items."""
    yield path, model
    for key, field in model.model_fields.items():
        if field.exclude:
            continue
        here = f"{path}.{key}" if path else key
        for inner in models_in(field.annotation):
            origins = {typing.get_origin(field.annotation)} | {
                typing.get_origin(part) for part in typing.get_args(field.annotation)
            }
            item = ".NAME" if dict in origins else ""
            many = "[]" if tuple in origins or (dict in origins and "tuple" in str(field.annotation)) else ""
            yield from groups(inner, here + item + many)


def settings_of(path: str, model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """The settings of one group by their dotted keys."""
    return [(f"{path}.{k}" if path else k, f) for k, f in model.model_fields.items() if not f.exclude]


def recipe_page() -> str:
    """``recipe.md``: a table for each group of settings."""
    out = [
        "# All settings of a recipe",
        "",
        NOTE,
        *ABOUT_RECIPE.splitlines(),
    ]
    for path, model in groups(Recipe):
        about = " ".join((inspect.getdoc(model) or "").split()).replace("``", "`")
        out += ["", f"## {f'`{path}`' if path else 'The recipe'}", "", about, ""]
        out += ["| key | type | default | range | what it is |", "| --- | --- | --- | --- | --- |"]
        for key, field in settings_of(path, model):
            what = field.description or (inspect.getdoc(models_in(field.annotation)[0]) or "").splitlines()[0]
            row = (f"`{key}`", type_of(field.annotation), default_of(field), range_of(field), what)
            out.append("| " + " | ".join([row[0], cell(row[1]), row[2], cell(row[3]), cell(row[4])]) + " |")
    return "\n".join(out) + "\n"


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of what may stand in a recipe, short forms included."""
    schema = Recipe.model_json_schema()
    schema["properties"].pop("base_dir")
    schema = {"$schema": "http://json-schema.org/draft-07/schema#"} | schema
    known = json.loads(json.dumps(schema).replace("#/$defs/", "#/definitions/"))
    known["definitions"] = known.pop("$defs")
    places = known["definitions"]
    one_or_many(places["DataConfig"]["properties"], "demonstrations", "rankings", "prompts", "documents")
    part = {"anyOf": [{"type": "string"}, {"$ref": "#/definitions/RewardPart"}]}
    short = {"anyOf": [{"type": "string"}, {"type": "array", "items": part}]}
    reward = places["PPOConfig"]["properties"]["reward"]
    places["PPOConfig"]["properties"]["reward"] = {k: reward[k] for k in ("description", "title")} | short
    places["EvaluationConfig"]["properties"]["best_of_by"]["additionalProperties"] = short
    gate = places["RewardConfig"]["properties"]["gate"]
    places["RewardConfig"]["properties"]["gate"] = {
        "anyOf": [{"$ref": gate["$ref"]}, {"enum": [False, "off"]}],
        "description": "what the report card must show before PPO; off lets everything pass",
    }
    return known


def one_or_many(properties: dict[str, Any], *keys: str) -> None:
    """Let a text stand for a list of one, and null for an empty one."""
    for key in keys:
        listed = {k: properties[key].pop(k) for k in ("type", "items")}
        one = listed.get("items", {}).get("anyOf", [{"type": "string"}])
        properties[key]["anyOf"] = [listed, *one, {"type": "null"}]
