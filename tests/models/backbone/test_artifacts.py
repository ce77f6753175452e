"""Artifacts on disk: links that leave the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.common.errors import UserError
from models.backbone.artifacts import Artifact, load_artifact, problems, publish


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    part = tmp_path / ".sft.partial"
    (part / "adapter").mkdir(parents=True)
    (part / "adapter/a.json").write_text("{}")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/a.json").write_text("{}")
    return publish(part, tmp_path / "sft", {"stage": "sft", "key": "k"})


@pytest.mark.parametrize("name", ["metrics.jsonl", "more", "adapter/broken", "circle"])
def test_a_link_to_outside_is_refused_by_name(made: Artifact, tmp_path: Path, name: str) -> None:
    assert problems(made) == []
    target = {
        "metrics.jsonl": tmp_path / "outside/a.json",  # not hashed, and still no way out
        "more": tmp_path / "outside",
        "adapter/broken": tmp_path / "nowhere",
        "circle": made.path / "circle",
    }
    (made.path / name).symlink_to(target[name])
    if name != "circle":
        with pytest.raises(UserError, match=f"{name}: a link to outside"):
            load_artifact(made.path, "sft stage")
    else:
        problems(made)  # says something or nothing, and ends


def test_a_listed_file_that_became_a_link_to_the_same_bytes_outside_is_refused(made: Artifact, tmp_path: Path) -> None:
    (made.path / "adapter/a.json").unlink()
    (made.path / "adapter/a.json").symlink_to(tmp_path / "outside/a.json")
    assert ["a.json" in p and "outside its folder" in p for p in problems(made)] == [True]


def test_links_within_and_a_link_to_the_whole_folder_are_fine(made: Artifact, tmp_path: Path) -> None:
    (made.path / "metrics.jsonl").symlink_to("adapter/a.json")
    assert problems(made) == []
    (tmp_path / "elsewhere").symlink_to(made.path)
    assert load_artifact(tmp_path / "elsewhere", "sft stage").key == "k"


def test_what_is_only_too_much_is_to_be_moved_and_the_stage_stays(made: Artifact) -> None:
    (made.path / "merged").mkdir()
    for name in ("a", "b"):
        (made.path / "merged" / name).write_text("x")
    with pytest.raises(UserError) as error:
        load_artifact(made.path, "sft stage")
    place = made.path / "merged/a"
    assert str(error.value) == f"{place}: not in the manifest; move it elsewhere, or remove it (2 problem(s))"
    (made.path / "adapter/a.json").write_text("[]")  # as well: the stage itself is damaged
    with pytest.raises(UserError, match=r"altered since.* \(3 problem\(s\)\); remove .*sft and run the stage again"):
        load_artifact(made.path, "sft stage")
