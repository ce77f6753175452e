"""A recipe while it is changed: what is wrong with it is said as the command line says it, and files are not lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.common.errors import UserError
from models.backbone.artifacts import previous_folder
from pipelines.ui.recipe_form import settings
from pipelines.ui.recipe_state import Edited

EVERY = {one.dotted: one for group in settings().values() for one in group}
TEXT = """\
name: mine
base: {pretrain: {steps: 5}}   # a base of its own
data: {documents: "demo-task?rows=20", demonstrations: "demo-task?rows=20", held_out: 0.2}
template: dialogue
stages: [pretrain, sft]
sft: {epochs: 2}
"""


@pytest.fixture
def edited(tmp_path: Path) -> Edited:
    (tmp_path / "mine.yaml").write_text(TEXT)
    return Edited.of(tmp_path / "mine.yaml")


def test_a_change_is_checked_as_a_recipe(edited: Edited) -> None:
    assert edited.problem == "" and edited.shown(EVERY["sft.epochs"]) == "2" and not edited.changed
    edited.set(EVERY["sft.epochs"], "-1")
    assert edited.changed and "mine.yaml:6: sft.epochs: must be more than 0" in edited.problem
    edited.set(EVERY["sft.epochs"], "3")
    assert edited.problem == "" and edited.shown(EVERY["sft.epochs"]) == "3" and "# a base of its own" in edited.text
    edited.reset(EVERY["sft.epochs"])
    assert "sft:" not in edited.text and not edited.written(("sft", "epochs"))
    edited.rewrite("name: [")
    assert "not readable as YAML" in edited.problem and not edited.written(("name",))


def test_what_follows_from_the_data_is_auto_until_it_is_written(edited: Edited) -> None:
    """The class's own value would be shown for one that the data decide."""
    assert edited.shown(EVERY["sft.batch"]) == "auto"
    edited.set(EVERY["sft.batch"], "4")
    assert edited.shown(EVERY["sft.batch"]) == "4"


def test_saving_keeps_the_one_before_and_refuses_what_others_have_changed(edited: Edited) -> None:
    edited.set(EVERY["seed"], "7")
    said: list[str] = []
    edited.save(said.append)
    assert edited.file.read_text() == edited.text and not edited.changed
    assert previous_folder(edited.file).read_text() == TEXT and "kept as" in said[0]
    edited.file.write_text(TEXT)
    edited.set(EVERY["seed"], "8")
    with pytest.raises(UserError, match="changed by somebody else"):
        edited.save(said.append)
    assert edited.file.read_text() == TEXT


def test_a_file_that_is_no_recipe_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read"):
        Edited.of(tmp_path / "none.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8 text"):
        Edited.of(tmp_path / "binary")
