"""The form of a recipe, from the JSON schema of its classes: groups of settings with their kind, limits and meaning.

Pure functions. A setting that is added to a class stands in the form without a line here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from data.common.errors import UserError
from pipelines.init.text import value as as_yaml
from pipelines.loading.load import recipe_class
from pipelines.recipe.schema import Recipe
from pipelines.recipe.yaml_source import read_value

TOP = "run"
"""The group of settings that stand at the top of a recipe."""
NOT_HERE = ("base_dir",)
"""What only Python sets."""
KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
NUMBERS = ("whole number", "number")
LIMITS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting of a recipe.

    Attributes:
        path: its keys, such as ``("ppo", "kl_coef")``.
        description: what it means.
        kinds: what it takes, in words; empty where it is one of ``choices`` alone.
        choices: the values that it takes, as YAML; empty where any of its kinds will do.
        limits: of its numbers, in words.
        default: as YAML; None where it has none.
    """

    path: tuple[str, ...]
    description: str
    kinds: tuple[str, ...]
    choices: tuple[str, ...]
    limits: tuple[str, ...]
    default: str | None

    @property
    def dotted(self) -> str:
        """Its name as ``--set`` takes it."""
        return ".".join(self.path)

    @property
    def group(self) -> str:
        """The group that it stands in."""
        return self.path[0] if len(self.path) > 1 else TOP

    def hint(self) -> str:
        """What it takes and means, in a line."""
        takes = " or ".join(self.choices or self.kinds)
        takes += f" ({', '.join(self.limits)})" if self.limits else ""
        default = "" if self.default is None else f"; default {self.default}"
        return f"{self.description} [{takes}{default}]" if self.description else f"{takes}{default}"

    def value(self, text: str) -> Any:
        """The value that a text in the form stands for: YAML, as behind ``--set``, except where it takes only text.

        Raises:
            UserError: not readable as YAML.
        """
        if self.kinds == ("text",) and not self.choices:
            return text
        try:
            return read_value(text)
        except yaml.YAMLError:
            raise UserError(f"{self.dotted}: {text!r} is no YAML value") from None

    def text(self, recipe: Recipe) -> str:
        """What the form shows for a recipe: the value as YAML, text as it is; '' in a group that is not there."""
        here: Any = recipe
        for key in self.path:
            here = here.get(key) if isinstance(here, Mapping) else getattr(here, key, None)
            if here is None and key != self.path[-1]:
                return ""
        found = _plain(here)
        return found if isinstance(found, str) and not self.choices else as_yaml(found)


def settings() -> dict[str, list[Setting]]:
    """Every setting of a recipe, by group, in the order of the classes."""
    groups: dict[str, list[Setting]] = {}
    for setting in _every():
        groups.setdefault(setting.group, []).append(setting)
    return groups


def named(asked: str) -> list[Setting]:
    """Settings whose name or meaning has every word of a search, those that are named so first."""
    wanted = asked.lower().split()
    found = [s for s in _every() if all(word in f"{s.dotted} {s.description}".lower() for word in wanted)]
    return sorted(found, key=lambda s: not all(word in s.dotted for word in wanted)) if wanted else []


@cache
def _every() -> tuple[Setting, ...]:
    schema = recipe_class().model_json_schema()
    return tuple(_settings(schema, schema.get("$defs", {}), ()))


def _settings(shape: Mapping[str, Any], known: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Setting]:
    for key, found in shape.get("properties", {}).items():
        here = (*path, key)
        if key in NOT_HERE:
            continue
        branches = [_resolved(one, known) for one in found.get("anyOf") or found.get("allOf") or [found]]
        groups = [one for one in branches if "properties" in one]
        others = [one for one in branches if one not in groups and one.get("type") != "null"]
        if groups and not others:
            yield from _settings(groups[0], known, here)
        else:
            yield _setting(here, {**found, **_resolved(found, known)}, branches)


def _resolved(shape: Mapping[str, Any], known: Mapping[str, Any]) -> Mapping[str, Any]:
    return known[shape["$ref"].rpartition("/")[2]] if "$ref" in shape else shape


def _setting(path: tuple[str, ...], shape: Mapping[str, Any], branches: Sequence[Mapping[str, Any]]) -> Setting:
    choices: list[Any] = []
    kinds: list[str] = []
    limits: list[str] = []
    for one in branches:
        if "enum" in one or "const" in one:
            choices += one.get("enum", [one.get("const")])
        elif one.get("type") == "boolean":
            choices += [True, False]
        else:
            kinds.append(_kind(one))
            limits += [text.format(_short(one[name])) for name, text in LIMITS.items() if name in one]
    if [k for k in kinds if k != "null"]:
        kinds += [as_yaml(choice) for choice in choices]
        choices = []
    elif kinds:
        choices.append(None)
        kinds = []
    return Setting(
        path=path,
        description=str(shape.get("description", "")),
        kinds=tuple(dict.fromkeys(kinds)),
        choices=tuple(map(as_yaml, choices)),
        limits=tuple(dict.fromkeys(limits)),
        default=as_yaml(shape["default"]) if "default" in shape else None,
    )


def _kind(shape: Mapping[str, Any]) -> str:
    kind = shape.get("type")
    if kind == "array":
        return "list"
    return KINDS.get(str(kind), "group (YAML)" if "properties" in shape or kind == "object" else "YAML")


def _short(number: float) -> str:
    return f"{number:g}"


def _plain(found: Any) -> Any:
    """A value of a recipe as YAML has it."""
    if hasattr(found, "model_dump"):
        return found.model_dump(mode="json", exclude_unset=True)
    if isinstance(found, Mapping):
        return {str(k): _plain(v) for k, v in found.items()}
    if isinstance(found, tuple | list):
        return [_plain(v) for v in found]
    return found if found is None or isinstance(found, bool | int | float | str) else str(found)
