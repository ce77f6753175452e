"""Arguments of a chat template: rendered as Transformers renders them, refused where they have no effect, and kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trl

from data.chat_template import ChatTemplate, TemplateChoice
from data.common.errors import UserError
from data.records import Message
from data.template import Renderer
from stages.pretrain import train_tokenizer
from stages.settings import PretrainConfig

FOLDER = Path(trl.__file__).parent / "chat_templates"
THINKS = (
    "{%- for m in messages -%}<|{{ m.role }}|>{{ m.content }}{{ stop_token if m.role == 'assistant' }}\n{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>"
    "{%- if enable_thinking is defined and enable_thinking is false -%}<think></think>{%- endif -%}{%- endif -%}"
)
COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
THINKING = sorted(p.name for p in FOLDER.glob("*.jinja") if "enable_thinking" in COMMENT.sub("", p.read_text()))
ASKED = (Message(role="user", content="alpha beta"),)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["alpha beta gamma user assistant think"] * 3, PretrainConfig(vocabulary=400))


def chosen(source: str, **args: object) -> TemplateChoice:
    return TemplateChoice(source, args)


def test_an_argument_is_rendered_as_by_transformers(tokenizer):
    for value, end in ((False, "<|assistant|><think></think>"), (True, "<|assistant|>")):
        made = ChatTemplate(tokenizer, chosen(THINKS, enable_thinking=value))
        theirs = tokenizer.apply_chat_template(
            [{"role": "user", "content": "alpha beta"}],
            chat_template=THINKS,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=value,
        )
        assert made.text(ASKED, generate=True) == theirs
        assert theirs.endswith(end)


def test_whoever_opens_the_template_later_may_still_choose(tokenizer):
    source = ChatTemplate(tokenizer, chosen(THINKS, enable_thinking=False)).source
    asked = {"conversation": [{"role": "user", "content": "alpha"}], "tokenize": False, "add_generation_prompt": True}
    assert tokenizer.apply_chat_template(**asked, chat_template=source).endswith("<think></think>")
    assert tokenizer.apply_chat_template(**asked, chat_template=source, enable_thinking=True).endswith("<|assistant|>")


@pytest.mark.parametrize(
    "value", [None, True, 0, -1.5, "a 'quoted' \"text\" \\ \n é 😀 %} {{ x }}", [1, ["b"]], {"a": {"b": [None, False]}}]
)
def test_every_value_of_json_arrives_as_it_is(tokenizer, value):
    source = "{{ given | tojson }}{%- for m in messages -%}{{ m.content }}{%- endfor -%}"
    made = ChatTemplate(tokenizer, chosen(source, given=value))
    theirs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "alpha beta"}], chat_template=source, tokenize=False, given=value
    )
    assert made.text(ASKED, generate=False) == theirs


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (THINKS, "enable_thinkin", r"no such name, so that it would have no effect.*enable_thinking"),
        ("dialogue", "enable_thinking", r"template 'dialogue' asks for no such name.*nothing besides the conversation"),
        (THINKS, "messages", "every conversation brings that itself"),
        (THINKS, "stop_token", "every conversation brings that itself"),
        (THINKS, "m", "no such name"),
        ("{%- set own = 1 -%}{{ own }}{{ messages[0].content }}", "own", "no such name"),
    ],
)
def test_an_argument_without_effect_is_refused(tokenizer, source, name, message):
    with pytest.raises(UserError, match=message) as caught:
        ChatTemplate(tokenizer, chosen(source, **{name: True}))
    assert str(caught.value).startswith(f"template_args.{name}: ")


def test_a_default_that_the_template_sets_itself_gives_way(tokenizer):
    source = (
        "{%- if not mood is defined -%}{%- set mood = 'calm' -%}{%- endif -%}"
        "{{ mood }}{%- for m in messages -%}{{ m.content }}{%- endfor -%}"
    )
    assert ChatTemplate(tokenizer, source).text(ASKED, generate=False).startswith("calm")
    assert ChatTemplate(tokenizer, chosen(source, mood="glad")).text(ASKED, generate=False).startswith("glad")


def test_the_fingerprint_follows_an_argument(tokenizer):
    prints = {
        Renderer(tokenizer, template=chosen(THINKS, **args), stop=(0,)).fingerprint()
        for args in ({}, {"enable_thinking": True}, {"enable_thinking": False})
    }
    assert len(prints) == 3


@pytest.mark.parametrize("name", THINKING)
def test_public_templates_take_the_argument_that_they_ask_for(tokenizer, name):
    source = (FOLDER / name).read_text()
    for value in (True, False):
        theirs = tokenizer.apply_chat_template(
            [{"role": "user", "content": "alpha beta"}],
            chat_template=source,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=value,
        )
        made = ChatTemplate(tokenizer, chosen(str(FOLDER / name), enable_thinking=value))
        assert made.text(ASKED, generate=True) == theirs
