"""The licence of a base is what its entry or its card says; where neither does, it is not known."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.hub.catalogue import BASE_MODELS
from models.hub.licences import licence_of
from models.hub.spec import BaseModelSpec


@pytest.mark.parametrize(
    ("name", "hub_id", "named"),
    [
        ("qwen2.5-0.5b", "apache-2.0", None),
        ("gpt2", "mit", None),
        ("llama-3.2-1b", "llama3.2", None),
        ("llama-3.1-8b", "llama3.1", None),
        ("gemma-3-270m", "gemma", None),
        ("opt-125m", "other", "opt-175b-license-no-commercial-use"),
    ],
)
def test_the_catalogue_s_licence_has_the_hub_s_identifier(name: str, hub_id: str, named: str | None) -> None:
    found = licence_of(BASE_MODELS[name])
    assert found is not None and (found.hub_id, found.name) == (hub_id, named)
    assert found.text == BASE_MODELS[name].licence


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: cc-by-4.0\n---\n# A model\n", ("cc-by-4.0", "cc-by-4.0")),
        ("---\nlicense: other\nlicense_name: house-rules\n---\n", ("house-rules", "other")),
        ("---\ntags: [a]\n---\nlicense: mit\n", None),
        ("# Under the MIT licence\n", None),
        ("---\nlicense: [\n---\n", None),
        (None, None),
    ],
)
def test_a_folder_s_licence_is_that_of_its_card(tmp_path: Path, card: str | None, expected) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    found = licence_of(BaseModelSpec(name="mine", source=str(tmp_path)))
    assert (found and (found.text, found.hub_id)) == expected
