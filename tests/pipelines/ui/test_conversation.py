"""The conversation behind the chat page: the responses of ``trivet chat``, and votes that are read as rankings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.common.errors import UserError
from data.records import Message
from data.sources import DataConfig, load_records
from data.template import Renderer
from models.backbone.seeds import generator
from pipelines.run.chat_models import Room, Speaker
from pipelines.ui.conversation import Conversation
from tests.conftest import ADAPTER, make_base, randomise


@pytest.fixture(scope="module")
def room() -> Room:
    """Two roles of a tiny base; no reward model."""
    base = make_base()
    for i, name in enumerate(("sft", "policy")):
        base.add_role(name, ADAPTER)
        randomise(base, name, i + 1)
    renderer = Renderer(base.tokenizer, template="dialogue")
    both = [Speaker(name=n, base=base, role=r, renderer=renderer) for n, r in (("ppo", "policy"), ("sft", "sft"))]
    return Room(speakers=tuple(both), reward=None, max_new_tokens=8)


def talk(room: Room, folder: Path, **changes: Any) -> Conversation:
    usual: dict[str, Any] = {"room": room, "preferences": folder / "votes.jsonl", "max_new_tokens": 8}
    return Conversation(**(usual | changes))


def said(talk: Conversation, text: str) -> list[str]:
    talk.ask(text)
    return [[*talk.speak(i)][-1] for i in range(len(talk.names))]


def test_responses_are_those_of_the_command_line(room: Room, tmp_path: Path) -> None:
    """The same seed, purpose and count of noise as ``trivet chat``."""
    found = said(talk(room, tmp_path, seed=5), "w1 w2")
    asked = [Message(role="user", content="w1 w2")]
    for i, speaker in enumerate(room.speakers):
        noise = generator(5, "chat", i + 1)
        own = [*speaker.answer(asked, temperature=1.0, max_new_tokens=8, generator=noise)]
        assert found[i] == own[-1][0]
    assert found[0] != found[1]


def test_a_vote_is_a_ranking_and_the_better_response_stays(room: Room, tmp_path: Path) -> None:
    one = talk(room, tmp_path, system="w9")
    found = said(one, "w1 w2")
    assert one.open_vote and not one.preferences.exists()
    one.vote(1)
    assert one.turns[-1] == Message(role="assistant", content=found[1]) and not one.open_vote and one.saved == 1
    later = said(one, "w3")
    one.vote(0)
    name = one.preferences.name
    first, second = load_records((name,), "rankings", DataConfig(), seed=0, base_dir=tmp_path).records
    assert dict(zip(first.answers, first.ranks, strict=True)) == {found[1]: 0, found[0]: 1}
    assert dict(zip(second.answers, second.ranks, strict=True)) == {later[0]: 0, later[1]: 1}
    assert [m.content for m in first.prompt.messages] == ["w9", "w1 w2"]
    assert [m.content for m in second.prompt.messages] == ["w9", "w1 w2", found[1], "w3"]
    with pytest.raises(UserError, match="no two different responses"):
        one.vote(0)


def test_without_a_vote_the_first_response_stays(room: Room, tmp_path: Path) -> None:
    one = talk(room, tmp_path)
    found = said(one, "w1 w2")
    said(one, "w3")
    assert [m.content for m in one.turns] == ["w1 w2", found[0], "w3"]
    one.clear()
    assert one.turns == [] and not one.open_vote


def test_the_same_response_twice_is_no_vote(room: Room, tmp_path: Path) -> None:
    same = Room(speakers=(room.speakers[0], room.speakers[0]), reward=None, max_new_tokens=8)
    one = talk(same, tmp_path, temperature=0.0)
    first, second = said(one, "w1")
    assert first == second and not one.open_vote


def test_a_message_that_is_too_long_changes_nothing(room: Room, tmp_path: Path) -> None:
    one = talk(room, tmp_path)
    found = said(one, "w1 w2")
    with pytest.raises(UserError, match="tokens too long for"):
        one.ask("w1 " * 100)
    assert [m.content for m in one.turns] == ["w1 w2"] and one.open_vote
    one.vote(1)
    assert one.turns[-1].content == found[1]


def test_a_file_that_cannot_be_written_is_said_and_the_vote_can_be_given_again(room: Room, tmp_path: Path) -> None:
    one = talk(room, tmp_path, preferences=tmp_path / "none" / "votes.jsonl")
    said(one, "w1 w2")
    with pytest.raises(UserError, match=r"votes\.jsonl: cannot be written"):
        one.vote(0)
    one.preferences = tmp_path / "votes.jsonl"
    one.vote(0)
    assert one.saved == 1


def test_the_note_has_no_reward_where_there_is_no_model(room: Room, tmp_path: Path) -> None:
    one = talk(room, tmp_path, max_new_tokens=1)
    said(one, "w1 w2")
    assert one.note(0) in ("no reward model", "cut off")
