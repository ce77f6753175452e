"""The generated reference is that of the code, and the recipe's schema accepts what the recipe accepts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from docs.cli_page import commands, parts_of
from docs.generate import pages
from pipelines.cli.exit_codes import spread_values
from pipelines.cli.main import app
from pipelines.loading.load import load_recipe
from pipelines.recipe.schema import Recipe, resolved_yaml
from tests.docs.commands import ROOT
from tests.support.recipes import RECIPE

PAGES = pages()
SCHEMA = json.loads(PAGES["recipe.schema.json"])
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("name", sorted(PAGES))
def test_the_page_is_current(name: str) -> None:
    assert (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") == PAGES[name], "run `make reference`"


def leaves(value: Any, path: str = "") -> set[str]:
    """Dotted keys of all values of a resolved recipe that are no groups."""
    if isinstance(value, dict) and value:
        return {key for name, one in value.items() for key in leaves(one, f"{path}.{name}" if path else name)}
    return {path}


def test_every_setting_of_a_resolved_recipe_is_on_the_page() -> None:
    resolved = yaml.safe_load(resolved_yaml(load_recipe(RECIPE)))
    documented = set(re.findall(r"(?m)^\| `([^`]+)` \|", PAGES["recipe.md"]))
    assert leaves(resolved) - documented == set()
    assert len(leaves(resolved)) > 120 and len(documented) > 180
    assert {"ppo.reward[].remote.timeout", "evaluation.prompted.NAME.shots", "evaluation.judges[].url"} <= documented


def test_a_row_has_type_default_range_and_meaning() -> None:
    row = next(r for r in PAGES["recipe.md"].splitlines() if r.startswith("| `ppo.lam` "))
    assert row == "| `ppo.lam` | number | `0.95` | ≥ 0, ≤ 1 | GAE lambda |"


def test_every_setting_says_what_it_is() -> None:
    rows = [r.split(" | ") for r in PAGES["recipe.md"].splitlines() if r.startswith("| `")]
    assert [r[0] for r in rows if len(r) != 5 or not r[4].strip(" |")] == []


# -- the schema ------------------------------------------------------------------------------------------------------

TYPES: dict[str, Any] = {"string": str, "array": list, "object": dict, "boolean": bool, "null": type(None)}
READ = {
    *("$ref", "anyOf", "type", "enum", "const", "properties", "required", "additionalProperties", "items", "pattern"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "title", "description", "default"),
    *("$schema", "definitions"),
}


def is_type(value: Any, name: str) -> bool:
    if name in ("integer", "number"):
        kinds = int if name == "integer" else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is valid; of JSON Schema what our schema uses, and nothing else is overlooked."""
    assert set(schema) <= READ, set(schema) - READ
    if "$ref" in schema and not fits(value, SCHEMA["definitions"][schema["$ref"].removeprefix("#/definitions/")]):
        return False
    if "anyOf" in schema and not any(fits(value, one) for one in schema["anyOf"]):
        return False
    if ("type" in schema and not is_type(value, schema["type"])) or value not in schema.get("enum", [value]):
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if isinstance(value, dict):
        known, other = schema.get("properties", {}), schema.get("additionalProperties", True)
        if not set(schema.get("required", [])) <= set(value) or (other is False and set(value) - set(known)):
            return False
        return all(fits(v, known.get(k, {} if other is True else other)) for k, v in value.items())
    if isinstance(value, list):
        return all(fits(one, schema.get("items", {})) for one in value)
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0) and re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (
            schema.get("minimum", value) <= value <= schema.get("maximum", value)
            and value > schema.get("exclusiveMinimum", value - 1)
            and value < schema.get("exclusiveMaximum", value + 1)
        )
    return True


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.name)
def test_the_schema_accepts_every_example_and_what_it_resolves_to(example: Path) -> None:
    assert fits(yaml.safe_load(example.read_text(encoding="utf-8")), SCHEMA)
    assert fits(yaml.safe_load(resolved_yaml(load_recipe(example))), SCHEMA)


LEAST: dict[str, Any] = {"base": "b", "data": {"demonstrations": "d.jsonl", "rankings": "r.jsonl"}}


@pytest.mark.parametrize(
    "more",
    [
        {"ppo": {"reward": "model"}},
        {"ppo": {"reward": ["model", {"source": "regex", "pattern": "x"}]}},
        {"reward": {"gate": False}},
        {"reward": {"gate": "off"}},
        {"data": {"demonstrations": ["a", "b"], "held_out": "file.jsonl"}},
        {"evaluation": {"best_of_by": {"kind": "k.py:f", "two": ["model", {"source": "length", "max_length": 4}]}}},
        {"adapter": {"layers": [0, 1], "targets": ["q_proj"]}},
    ],
    ids=str,
)
def test_the_schema_knows_the_short_forms_that_the_recipe_knows(more: dict[str, Any]) -> None:
    assert fits(LEAST | more, SCHEMA)
    load_recipe(LEAST | more, may_idle=True)


@pytest.mark.parametrize(
    "more",
    [
        {"pppo": {}},
        {"ppo": {"kl_ceof": 0.1}},
        {"ppo": {"kl": "sometimes"}},
        {"ppo": {"lam": 1.5}},
        {"ppo": {"clip": 0}},
        {"sft": {"batch": "many"}},
        {"data": 3},
        {"base_dir": "x"},
        {"reward": {"gate": True}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_recipe_refuses(more: dict[str, Any]) -> None:
    assert not fits(LEAST | more, SCHEMA)
    with pytest.raises(Exception):  # noqa: B017 - whatever the recipe says of it
        load_recipe(LEAST | more)


def test_a_recipe_needs_base_and_data() -> None:
    assert not fits({"base": "b"}, SCHEMA) and not fits({"data": {}}, SCHEMA)
    assert set(SCHEMA["properties"]) == {k for k, f in Recipe.model_fields.items() if not f.exclude}


# -- the command line and Python -------------------------------------------------------------------------------------

COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_examples_of_help_are_calls_of_their_command(words: tuple[str, ...]) -> None:
    _, examples = parts_of(COMMANDS[words].help)
    assert examples
    for example in examples:
        program, *arguments = re.split(r"\s+#", example)[0].split()
        assert program == "trivet" and tuple(arguments[: len(words)]) == words
        COMMANDS[words].make_context(" ".join(words), spread_values(arguments[len(words) :]))


def test_the_promised_names_are_on_the_python_page() -> None:
    page = PAGES["python.md"]
    for name in (
        *("Pipeline.from_recipe(", "Pipeline.run(", "SharedBase.load(", "SharedBase.add_role(", "SharedBase.role("),
        *("SharedBase.trainable_names(", "SharedBase.base_fingerprint(", "ppo_math.masked_mean(", "ppo_math.whiten("),
        *("ppo_math.kl_penalty(", "ppo_math.token_rewards(", "ppo_math.gae(", "ppo_math.policy_loss("),
        *("ppo_math.value_loss(", "ranking_loss(", "`qwen2.5-0.5b`"),
    ):
        assert name in page, name
    assert " at 0x" not in page
