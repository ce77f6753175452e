"""Many public chat templates (those that TRL carries): the answer's text is supervised, or the row is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import trl

from data.common.errors import UserError, located
from data.records import Message
from data.template import Renderer
from stages.pretrain import train_tokenizer
from stages.settings import PretrainConfig

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = sorted(p.name for p in FOLDER.glob("*.jinja"))
TURNS = tuple(
    Message(role=role, content=content)  # type: ignore[arg-type]
    for role, content in (("user", "alpha beta"), ("assistant", "gamma delta"), ("user", "epsilon zeta"))
)
ANSWERS = ("eta theta", "<think> iota </think> kappa", "  lambda\n\nmu ", "nu {{ xi }} <b>omicron</b>")


@pytest.fixture(scope="module")
def tokenizer():
    text = " ".join([*(m.content for m in TURNS), *ANSWERS])
    return train_tokenizer([text] * 3, PretrainConfig(tokenizer="bpe", vocabulary=400))


def bare(text: str) -> str:
    return "".join(text.split())


def supervised(tokenizer, row) -> str:
    return bare(tokenizer.decode([i for i, label in zip(row.ids, row.labels, strict=True) if label >= 0]))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_answer_is_supervised_or_the_row_refused(name: str, tokenizer) -> None:
    try:
        made = Renderer(tokenizer, template=str(FOLDER / name))
    except UserError as error:
        assert name in str(error)  # it wants content that is no text, or other roles
        return
    for answer in ANSWERS:
        try:
            with located("rows.jsonl:7"):
                row = made.conversation(TURNS, answer, supervise="last")
        except UserError as error:
            assert str(error).startswith("rows.jsonl:7: template") and name in str(error)
            continue
        assert bare(answer) in supervised(tokenizer, row), answer
        ids = row.ids
        assert ids[: len(made.prompt_ids(TURNS))] == made.prompt_ids(TURNS)
        prompt = bare(tokenizer.decode(made.prompt_ids(TURNS)))
        assert all(bare(m.content) in prompt for m in TURNS)


def test_most_templates_render_a_plain_conversation(tokenizer) -> None:
    """Refusing everything would pass the test above."""
    rendered = 0
    for name in TEMPLATES:
        try:
            Renderer(tokenizer, template=str(FOLDER / name)).conversation(TURNS, ANSWERS[0], supervise="last")
            rendered += 1
        except UserError:
            continue
    assert rendered >= 0.6 * len(TEMPLATES)


LOOP = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
ASKS = "{% if add_generation_prompt %}assistant: {% endif %}"
SYSTEM = (Message(role="system", content="be kind"),)


@pytest.mark.parametrize(
    ("source", "turns", "lost"),
    [
        (LOOP.replace("%}{{ m.role", "if m.role != 'system' %}{{ m.role", 1), SYSTEM, "system's message 'be kind'"),
        ("{% set messages = messages[1:] %}" + LOOP, SYSTEM, "system's message 'be kind'"),
        # the first message's words are in a later one, which does not stand for it
        (LOOP.replace("messages %}", "messages[1:] %}", 1), (), "assistant's message 'gamma'"),
        (LOOP.replace("messages %}", "messages|reverse %}", 1), (), "message"),
    ],
)
def test_a_message_that_is_left_out_is_refused(source: str, turns: tuple[Message, ...], lost: str, tokenizer) -> None:
    spoken = [(r, c) for r, c in (("user", "alpha"), ("assistant", "gamma"), ("user", "alpha beta"))]
    said = [*turns, *(Message(role=r, content=c) for r, c in spoken)]  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"leaves out the .*{lost}"):
        Renderer(tokenizer, template=source + ASKS).prompt_ids(said)
    Renderer(tokenizer, template=LOOP + ASKS).prompt_ids(said)


def test_a_row_is_the_same_on_any_day(tokenizer) -> None:
    dated = Renderer(tokenizer, template="{{ strftime_now('%d %b %Y %H') }}\n" + LOOP + ASKS)
    assert tokenizer.decode(dated.prompt_ids(TURNS)).startswith("26 Jul 2024 00\n")
    assert ["always 26 July 2024" in doubt for doubt in dated.doubts()] == [True]


@pytest.mark.parametrize(
    ("source", "opening"),
    [
        (LOOP, "assistant:"),
        (LOOP + ASKS, ""),
        (
            LOOP.replace("{{ m.content", "{{ '<think></think>' if m.role == 'assistant' else '' }}{{ m.content") + ASKS,
            "",
        ),
        ("text", ""),
        ("dialogue", ""),
    ],
)
def test_what_stands_before_a_response_and_is_not_asked_for_is_told(source: str, opening: str, tokenizer) -> None:
    made = Renderer(tokenizer, template=source)
    assert made.opening == opening
    assert [f"writes {opening!r} before a response" in doubt for doubt in made.doubts()] == [True] * bool(opening)
