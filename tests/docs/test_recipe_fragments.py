"""Every fragment of a recipe that a page shows has settings that exist, under the names that they have."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pipelines.recipe.renamed import old_names
from pipelines.recipe.schema import Recipe
from tests.docs.commands import PAGES, ROOT

BLOCK = re.compile(r"^```ya?ml\n(.*?)^```|((?:^ {4}[^\n]*\n|^[ \t]*\n)+)", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(\w+: [\[{].*?[\]}])`", re.DOTALL)
WHOLE = {"base": "some/base", "data": {"demonstrations": ["rows.jsonl"]}}


def fragments(text: str) -> Iterator[dict[str, Any]]:
    """YAML of a page, in blocks or inline, whose keys are all groups of a recipe."""
    blocks = [textwrap.dedent(a or b) for a, b in BLOCK.findall(text)] + INLINE.findall(text)
    for block in blocks:
        try:
            found = yaml.safe_load(block)
        except yaml.YAMLError:
            continue
        if isinstance(found, dict) and found and set(found) <= set(Recipe.model_fields):
            yield found


def wrong_names(fragment: dict[str, Any]) -> list[str]:
    """Settings that are not there, and those that are called otherwise."""
    out = [".".join(map(str, path)) for path, _ in old_names(fragment)]
    try:
        Recipe.model_validate({**WHOLE, **fragment})
    except ValidationError as error:
        wrong = [e for e in error.errors() if e["type"] in ("extra_forbidden", "literal_error")]
        out += [".".join(map(str, e["loc"])) for e in wrong]
    return out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_settings_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [name for fragment in fragments(text) for name in wrong_names(fragment)] == []


def test_fragments_are_found_and_wrong_names_noticed() -> None:
    block = "    reward:\n      gate: {emptied: 0.5}\n      lost: 1\n"
    page = f"Text\n\n{block}\nand `ppo: {{kl_coef: 0.1}}`\n```yaml\nsft: {{epochs: 2}}\n```\n"
    found = list(fragments(page))
    assert found == [
        {"reward": {"gate": {"emptied": 0.5}, "lost": 1}},
        {"sft": {"epochs": 2}},
        {"ppo": {"kl_coef": 0.1}},
    ]
    assert "reward.gate.emptied" in wrong_names(found[0]) and "reward.lost" in wrong_names(found[0])
    assert wrong_names(found[1]) == wrong_names(found[2]) == []
    pages = [f for page in PAGES for f in fragments(page.read_text(encoding="utf-8"))]
    assert len(pages) > 12
