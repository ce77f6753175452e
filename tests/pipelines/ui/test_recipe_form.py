"""The form: every setting of the classes, its kinds and limits, and values that survive the way there and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from data.common.errors import UserError
from pipelines.loading.load import load_recipe, recipe_class
from pipelines.recipe.errors import models_in
from pipelines.ui.recipe_form import Setting, named, settings

ROOT = Path(__file__).parents[3]
EVERY = {one.dotted: one for group in settings().values() for one in group}


def leaves(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Settings of the classes; a list of groups, or a group in place of a word, is one setting."""
    for key, field in model.model_fields.items():
        inner = models_in(field.annotation)
        whole = getattr(field.annotation, "__origin__", None) in (tuple, dict) or str(field.annotation).startswith(
            "str |"
        )
        if field.exclude:
            continue
        if inner and not whole:
            yield from leaves(inner[0], f"{path}{key}.")
        else:
            yield f"{path}{key}"


def test_every_setting_is_in_the_form() -> None:
    assert {*leaves(recipe_class())} - {*EVERY} <= {  # numbers or words in whose place a group may stand
        name for name in leaves(recipe_class()) if any(name.startswith(f"{there}.") for there in EVERY)
    }
    assert len(EVERY) > 150 and "base_dir" not in EVERY
    assert all(one.description for one in EVERY.values())
    assert all(bool(one.kinds) != bool(one.choices) for one in EVERY.values())


@pytest.mark.parametrize(
    ("name", "kinds", "choices", "limits", "default"),
    [
        ("ppo.kl_coef", ("number",), (), ("≥ 0",), "0.05"),
        ("ppo.kl", (), ("fixed", "adaptive"), (), "fixed"),
        ("ppo.micro_tokens", ("whole number", "null"), (), ("≥ 8",), "null"),
        ("runtime.gradient_checkpointing", (), ("true", "false", "auto"), (), "auto"),
        ("runtime.quantize", (), ("nf4", "null"), (), "null"),
        ("reward.gate.enabled", (), ("true", "false"), (), "true"),
        ("name", ("text",), (), (), "run"),
        ("data.demonstrations", ("list",), (), (), "[]"),
    ],
)
def test_settings_by_hand(name, kinds, choices, limits, default) -> None:
    one = EVERY[name]
    assert (one.kinds, one.choices, one.limits, one.default) == (kinds, choices, limits, default)


def test_groups_stand_in_the_order_of_the_classes() -> None:
    assert list(settings())[:5] == ["run", "data", "adapter", "continued", "sft"]
    assert settings()["run"][0].dotted == "name" and EVERY["reward.gate.enabled"].group == "reward"


@pytest.mark.parametrize("file", ["tiny", "demo", "hh"])
def test_a_shown_value_is_read_as_itself(file: str) -> None:
    """So that leaving a field changes nothing."""
    recipe = load_recipe(ROOT / "examples" / f"{file}.yaml")
    for one in EVERY.values():
        text = one.text(recipe)
        if text:
            assert one.value(text) == one.value(Setting.text(one, recipe)) and _same(one.value(text), _at(recipe, one))


def _at(recipe: object, one: Setting) -> object:
    here = recipe
    for key in one.path:
        here = getattr(here, key)
    return here


def _same(found: object, own: object) -> bool:
    if isinstance(own, tuple):
        return isinstance(found, list) and len(found) == len(own)
    return isinstance(own, BaseModel | Path | dict) or found == own


def test_a_search_finds_by_name_first() -> None:
    assert named("kl coef")[0].dotted == "ppo.kl_coef"
    assert named("") == [] and named("no such thing at all") == []
    assert "ppo.gamma" in [one.dotted for one in named("discount")]


def test_a_value_that_is_no_yaml_is_refused() -> None:
    with pytest.raises(UserError, match=r"ppo\.kl_coef: '\[' is no YAML value"):
        EVERY["ppo.kl_coef"].value("[")
    assert EVERY["name"].value("[") == "[" and EVERY["ppo.kl_coef"].value("1e-3") == 0.001
