"""What a result was trained on is kept with it and handed on, and held-out records are found in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.common.errors import UserError
from data.records import Demonstration, Document, Message, Prompt, group_of
from models.backbone.artifacts import publish
from stages import lineage


def prompt(text: str, *before: str) -> Prompt:
    messages = (*(Message(role="system", content=t) for t in before), Message(role="user", content=text))
    return Prompt(messages=messages, group=group_of(messages))


def result(folder: Path, name: str, texts: list[str], **inputs: Path) -> Path:
    partial = folder / f".{name}.partial"
    partial.mkdir()
    noted = lineage.note(partial, [prompt(t) for t in texts], inputs)
    publish(partial, folder / name, {"stage": name, "key": name, "lineage": noted})
    return folder / name


def test_what_came_before_is_handed_on(tmp_path: Path) -> None:
    sft = result(tmp_path, "sft", ["one", "two", "Two ", "two"])
    reward = result(tmp_path, "reward", ["three"], sft=sft)
    assert json.loads((reward / "manifest.json").read_text())["lineage"] == {"prompts": 3, "unknown": []}
    asked = [prompt("three"), prompt("four"), prompt("ONE"), prompt("two", "be brief"), prompt("on")]
    assert lineage.seen(sft, asked) == [2, 3] and lineage.seen(reward, asked) == [0, 2, 3]
    assert lineage.is_known(reward)


def test_a_result_of_unknown_origin_stays_unknown_in_what_is_made_of_it(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    reward = result(tmp_path, "reward", ["three"], sft=tmp_path / "plain")
    ppo = result(tmp_path, "ppo", ["five"], sft=tmp_path / "plain", reward=reward)
    assert json.loads((ppo / "manifest.json").read_text())["lineage"] == {"prompts": 2, "unknown": ["reward", "sft"]}
    assert not any(map(lineage.is_known, (tmp_path / "plain", reward, ppo)))
    assert lineage.seen(tmp_path / "plain", [prompt("three")]) == [] and lineage.seen(ppo, [prompt("three")]) == [0]


def test_records_without_a_prompt_are_known_by_their_text(tmp_path: Path) -> None:
    loose = Demonstration(prompt=Prompt(messages=(), group="g"), answer="A text.")
    lineage.note(tmp_path, [loose], {})
    assert lineage.seen(tmp_path, [Document(text="a  TEXT.", group="h"), Document(text="a text", group="h")]) == [0]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / lineage.FILE).write_bytes(b"12345")
    with pytest.raises(UserError, match=r"training_prompts.u64: damaged, 5 bytes"):
        lineage.seen(tmp_path, [prompt("one")])
