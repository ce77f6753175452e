"""One setting changed in a recipe's text: by hand-written cases, and as a property over many texts and paths."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data.common.errors import UserError
from pipelines.recipe.yaml_source import read_text
from pipelines.ui.recipe_text import with_value, without

TEXT = """\
# A first recipe
name: mine            # of the run
base: ./my-base

data:
  # for SFT
  demonstrations: a.jsonl
  rankings:
    - b.jsonl   # one
    - c.jsonl
  held_out: 0.1

sft: {epochs: 2}      # short

# ppo:
#   updates: 100
ppo:
  kl_coef: 0.05       # weight
  value: {init: reward}
"""


def changed(before: str, after: str) -> tuple[list[str], list[str]]:
    """Lines that are only in the first and only in the second text."""
    a, b = before.splitlines(), after.splitlines()
    return [x for x in a if x not in b], [x for x in b if x not in a]


@pytest.mark.parametrize(
    ("path", "new", "gone", "come"),
    [
        (("name",), "other", ["name: mine            # of the run"], ["name: other            # of the run"]),
        (("ppo", "kl_coef"), 0.3, ["  kl_coef: 0.05       # weight"], ["  kl_coef: 0.3       # weight"]),
        (("ppo", "updates"), 7, [], ["  updates: 7"]),
        (("sft", "batch"), 4, ["sft: {epochs: 2}      # short"], ["sft: {epochs: 2, batch: 4}      # short"]),
        (("reward", "gate", "enabled"), False, [], ["reward:", "  gate: {enabled: false}"]),
        (("ppo", "value", "head"), "zero", ["  value: {init: reward}"], ["  value: {init: reward, head: zero}"]),
        (("seed",), 3, [], ["seed: 3"]),
    ],
)
def test_one_line_changes_and_comments_stay(path, new, gone, come) -> None:
    assert changed(TEXT, with_value(TEXT, path, new)) == (gone, come)


def test_a_block_becomes_a_line() -> None:
    after = with_value(TEXT, ("data", "rankings"), "d.jsonl")
    assert "  rankings: d.jsonl\n  held_out: 0.1\n" in after and "# for SFT" in after


def test_a_setting_is_taken_out_and_an_empty_group_with_it() -> None:
    assert changed(TEXT, without(TEXT, ("ppo", "kl_coef"))) == (["  kl_coef: 0.05       # weight"], [])
    assert changed(TEXT, without(TEXT, ("data", "rankings")))[0] == [
        "  rankings:",
        "    - b.jsonl   # one",
        "    - c.jsonl",
    ]
    assert changed(TEXT, without(TEXT, ("sft", "epochs"))) == (["sft: {epochs: 2}      # short"], [])
    assert without(TEXT, ("reward", "epochs")) == TEXT and without(TEXT, ("name", "deeper")) == TEXT


def test_what_only_a_person_can_change_is_refused() -> None:
    text = "base: x\nsft: &a {epochs: 1}\nreward: *a\ndata: {prompts: p}\n"
    with pytest.raises(UserError, match=r"reward\.epochs: stands in a form"):
        with_value(text, ("reward", "epochs"), 2)
    with pytest.raises(UserError, match="not readable as YAML"):
        with_value("a: [", ("a",), 1)


KEYS = st.sampled_from(["a", "b", "c"])
SCALARS = st.one_of(
    st.integers(-5, 5),
    st.booleans(),
    st.none(),
    st.sampled_from(["x", "", "on", "1e3", "a: b", "# c", "- d", "ü", "two\nlines"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(KEYS, VALUES, min_size=1, max_size=3)
PATHS = st.lists(KEYS, min_size=1, max_size=3)


@settings(max_examples=300, deadline=None)
@given(MAPPINGS, PATHS, SCALARS, st.sampled_from([None, False]))
def test_any_change_gives_the_data_that_were_wanted(data, path, new, flow) -> None:
    """Of any mapping in any form; nothing here has anchors, so nothing may be refused."""
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=flow, allow_unicode=True) + "# the end\n"
    wanted = read_text(text, "text").data
    here = wanted = copy.deepcopy(wanted)
    for key in path[:-1]:
        if not isinstance(here.get(key), dict):
            here[key] = {}
        here = here[key]
    here[path[-1]] = new
    after = with_value(text, path, new)
    assert read_text(after, "text").data == wanted and "# the end" in after
    if len(data) > 1:  # a recipe of one setting cannot lose it
        after = without(text, path)
        there: Any = read_text(after, "text").data
        for key in path:
            there = there.get(key) if isinstance(there, dict) else None
        assert there is None and "# the end" in after
