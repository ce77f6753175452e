"""One rendering for every stage: prefix, BOS, stop token, labels, truncation (conformance R3, R8, R12-R14, F1-F9)."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from data.common.errors import UserError
from data.formats import parse
from data.template import IGNORE, Renderer
from tests.support.rendering import CHATML, byte_tokenizer, chat, chat_tokenizer, word_tokenizer

SHARED = Path(__file__).parents[2].parent / "shared"


def words(tokenizer, ids) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(list(ids)))


def test_dialogue_in_ordinary_words():
    tokenizer = word_tokenizer()
    render = Renderer(tokenizer)
    assert words(tokenizer, render.prompt_ids(chat("a b"))) == "user : a b assistant :"
    assert words(tokenizer, render.answer_ids(chat("a b"), "the cat sat .")) == "the cat sat . <eos>"
    assert words(tokenizer, render.answer_ids(chat("a b"), "the cat", finished=False)) == "the cat"
    assert render.text(render.answer_ids(chat("a b"), "the cat sat .")) == "the cat sat ."
    assert (render.pad_id, render.stop_ids) == (0, (2,))


def test_dialogue_text_of_three_turns_is_literal():
    render = Renderer(byte_tokenizer())
    turns = chat("hi", "yes", "and?", system="be kind")
    text = render.tokenizer.decode(render.prompt_ids(turns))
    assert text == "system : be kind\nuser : hi\nassistant : yes<|end|>\nuser : and?\nassistant :"


@pytest.mark.parametrize("template", ["dialogue", "text", "{% for m in messages %}{{ m.content }} {% endfor %}"])
def test_one_bos_iff_the_tokenizer_adds_it(template):
    for adds in (False, True):
        tokenizer = word_tokenizer(adds_bos=adds)
        render = Renderer(tokenizer, template=template)
        prompt, answer = render.prompt_and_answer(chat("a b"), "c d")
        row = render.conversation(chat("a b"), "c d").ids
        assert row == prompt + answer and row[: len(prompt)] == render.prompt_ids(chat("a b"))
        assert row.count(1) == int(adds) and (row[0] == 1) == adds


def test_bos_that_both_template_and_tokenizer_write_is_there_once():
    tokenizer = word_tokenizer(adds_bos=True)
    render = Renderer(tokenizer, template="{{ bos_token }}{% for m in messages %}{{ ' ' + m.content }}{% endfor %}")
    assert render.conversation(chat("a"), "b").ids == [1, *tokenizer("a b", add_special_tokens=False).input_ids, 2]


def test_chat_template_ends_turns_with_its_own_token():
    tokenizer = chat_tokenizer()
    render = Renderer(tokenizer, extra_stop_ids=[5])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert render.stop_ids == (end, tokenizer.eos_token_id, 5)
    answer = render.answer_ids(chat("hi"), "yes")
    assert tokenizer.decode(answer) == "yes<|im_end|>"  # and no line break behind it
    assert tokenizer.decode(render.answer_ids(chat("hi"), "yes", finished=False)) == "yes"
    assert render.answer_ids(chat("hi"), "") == [end]
    assert str(tokenizer.decode(render.prompt_ids(chat("hi")))).endswith("<|im_start|>assistant\n")


def test_labels_are_the_answers_and_their_stop_tokens():
    tokenizer = chat_tokenizer()
    render = Renderer(tokenizer)
    turns = chat("hi", "one", "more", system="s")
    for supervise, expected in (("all", "one<|im_end|>two<|im_end|>"), ("last", "two<|im_end|>")):
        row = render.conversation(turns, "two", supervise=supervise)  # type: ignore[arg-type]
        assert all(label in (IGNORE, i) for label, i in zip(row.labels, row.ids, strict=True))
        assert tokenizer.decode([x for x in row.labels if x != IGNORE]) == expected
        assert row.ids == render.prompt_ids(turns) + render.answer_ids(turns, "two")
    cut = render.conversation(turns, "two", finished=False, supervise="last")
    assert tokenizer.decode([x for x in cut.labels if x != IGNORE]) == "two"


def test_dialogue_labels_earlier_answers_with_their_stop():
    tokenizer = word_tokenizer(pad="<eos>")
    row = Renderer(tokenizer).conversation(chat("a", "b c", "d"), "e f")
    assert words(tokenizer, row.ids) == "user : a assistant : b c <eos> user : d assistant : e f <eos>"
    assert [x for x in row.labels if x != IGNORE] == tokenizer(
        "b c <eos> e f <eos>", add_special_tokens=False
    ).input_ids


def test_stop_token_is_supervised_when_it_is_the_padding_token_too():
    tokenizer = word_tokenizer(pad="<eos>")
    render = Renderer(tokenizer)
    assert render.pad_id == 2 == render.stop_ids[0]
    assert render.conversation(chat("a"), "b").labels[-1] == 2


def test_template_that_rewrites_history_is_refused_only_where_it_matters():
    template = CHATML.replace("m.content", "(m.content if loop.last or m.role != 'assistant' else 'gone')")
    render = Renderer(chat_tokenizer(template))
    with pytest.raises(UserError, match="turn 2 cannot be found"):
        render.conversation(chat("hi", "one", "more"), "two")
    row = render.conversation(chat("hi", "one", "more"), "two", supervise="last")
    assert render.text([x for x in row.labels if x != IGNORE]) == "two"


def test_template_with_a_thinking_block_before_the_last_answer():
    think = "(('<think>\n\n</think>\n\n' if loop.last and m.role == 'assistant' else '') + m.content)"
    tokenizer = chat_tokenizer(CHATML.replace("m.content", think))
    row = Renderer(tokenizer).conversation(chat("hi", "k", "more"), "k")
    assert tokenizer.decode([x for x in row.labels if x != IGNORE]) == "k<|im_end|><think>\n\n</think>\n\nk<|im_end|>"


def test_prompt_that_is_no_text_prefix_is_refused():
    broken = "{% for m in messages %}{{ m.content }}|{% endfor %}{% if add_generation_prompt %}bot:{% endif %}"
    with pytest.raises(UserError, match=r"jinja string.*not a prefix"):
        Renderer(byte_tokenizer(), template=broken).answer_ids(chat("a"), "b")


def test_merge_across_the_border_keeps_the_prompts_ids():
    tokenizer = byte_tokenizer(merges=[("h", "e")])
    render = Renderer(tokenizer, template="text")
    assert len(tokenizer("she").input_ids) == 2  # the joint tokens do not begin with the prompt's
    prompt, answer = render.prompt_and_answer(chat("sh"), "ello")
    assert prompt == tokenizer("sh").input_ids == render.prompt_ids(chat("sh"))
    assert tokenizer.decode(prompt + answer) == "shello<|end|>"
    assert render.conversation(chat("sh"), "ello").labels == [IGNORE, IGNORE, *answer]


def test_answer_ends_at_a_stop_token_in_its_own_text():
    tokenizer = word_tokenizer()
    render = Renderer(tokenizer, stop=["."])
    assert words(tokenizer, render.answer_ids(chat("a"), "the cat . sat .")) == "the cat ."
    assert words(tokenizer, render.answer_ids(chat("a"), "the cat . sat", finished=False)) == "the cat"
    assert render.answer_ids(chat("a . b"), "c")[-1] == render.stop_ids[0]  # a stop token in the prompt ends nothing


def test_stop_names_ids_and_mistakes():
    tokenizer = byte_tokenizer(extra=["<|im_end|>"])
    newline = tokenizer("\n").input_ids[0]
    assert Renderer(tokenizer, stop=["<|im_end|>", "\n", 7]).stop_ids == (257, newline, 7)
    with pytest.raises(UserError, match=r"no token '<\|im_ned\|>'.*<\|im_end\|>"):
        Renderer(tokenizer, stop=["<|im_ned|>"])
    with pytest.raises(UserError, match="id 999 is not in the vocabulary"):
        Renderer(tokenizer, stop=[999])
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="name the token that ends"):
        Renderer(tokenizer)
    assert Renderer(tokenizer, extra_stop_ids=9).stop_ids == (9,)


def test_template_names_and_mistakes(tmp_path):
    tokenizer = word_tokenizer()
    with pytest.raises(UserError, match="no chat template"):
        Renderer(tokenizer, template="chat")
    with pytest.raises(UserError, match="Did you mean 'dialogue'"):
        Renderer(tokenizer, template="dialog")
    path = tmp_path / "own.jinja"
    path.write_text("{% for m in messages %}{{ m.content }} {% endfor %}the")
    with pytest.raises(UserError, match=r"there is no file.*own\.jinja"):
        Renderer(tokenizer, template=str(tmp_path / "onw.jinja"))
    assert words(tokenizer, Renderer(tokenizer, template=str(path)).prompt_ids(chat("a"))) == "a the"
    with pytest.raises(UserError, match="cannot render a conversation of user, assistant: no"):
        Renderer(tokenizer, template="{% if messages|length > 1 %}{{ raise_exception('no') }}{% endif %}")


def test_answers_without_a_prompt():
    for adds_bos in (False, True):
        render = Renderer(word_tokenizer(adds_bos=adds_bos), template="text")
        assert render.prompt_and_answer([], "the cat") == ([1], [*render.tokenizer("the cat").input_ids[adds_bos:], 2])
    no_bos = Renderer(byte_tokenizer(), template="text")
    assert no_bos.prompt_ids([]) == [no_bos.stop_ids[0]]
    assert no_bos.conversation([], "x").labels == [IGNORE, *no_bos.answer_ids([], "x")]


def test_text_template_joins_without_change():
    render = Renderer(byte_tokenizer(), template="text")
    prompt, answer = render.prompt_and_answer(chat("Once upon a time."), " She ran.\n")
    assert render.tokenizer.decode(prompt + answer) == "Once upon a time. She ran.\n<|end|>"
    assert render.text(answer) == " She ran.\n"


def test_truncation_keeps_bos_tail_and_stop():
    tokenizer = word_tokenizer(adds_bos=True)
    render = Renderer(tokenizer)
    prompt, answer = render.prompt_and_answer(chat("a b c d e f " * 5), "the cat sat .", max_tokens=16)
    assert words(tokenizer, answer) == "the cat sat . <eos>" and len(prompt + answer) == 16
    assert prompt[0] == 1 and words(tokenizer, prompt).endswith("e f assistant :") and prompt.count(1) == 1
    long = render.conversation(chat("a b c d e f"), "the cat " * 20, max_tokens=16)
    assert len(long.ids) == 16 and long.cut and 2 not in long.ids and long.labels[7:] == [IGNORE, *long.ids[8:]]
    assert words(tokenizer, long.ids[:8]) == "<bos> b c d e f assistant :"
    assert not render.conversation(chat("a"), "b", max_tokens=16).cut
    with pytest.raises(UserError, match="max_tokens 3 is too small"):
        render.prompt_and_answer(chat("a b"), "c", max_tokens=3)


def test_truncation_shifts_labels_of_earlier_turns_along():
    tokenizer = word_tokenizer()
    turns = chat("a " * 10, "b c", "d")
    whole = Renderer(tokenizer).conversation(turns, "e")
    cut = Renderer(tokenizer).conversation(turns, "e", max_tokens=12)
    assert cut.ids == whole.ids[-12:] and cut.labels == whole.labels[-12:]


def test_fingerprint_follows_what_decides_the_ids():
    same = Renderer(word_tokenizer()).fingerprint()
    used = word_tokenizer()
    used("a b", padding="max_length", max_length=9, truncation=True)
    assert Renderer(used).fingerprint() == same
    others = [Renderer(word_tokenizer(), template="text"), Renderer(word_tokenizer(), stop=["."])]
    others += [Renderer(word_tokenizer(adds_bos=True)), Renderer(word_tokenizer(extra=["<x>"]))]
    prints = [o.fingerprint() for o in others]
    assert len({same, *prints}) == 5


def test_padding_token_is_never_added():
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    before = len(tokenizer)
    assert Renderer(tokenizer).pad_id == tokenizer.unk_token_id and len(tokenizer) == before
    tokenizer.unk_token = None
    assert Renderer(tokenizer).pad_id == tokenizer.eos_token_id


@pytest.mark.real_data
@pytest.mark.parametrize("model", ["stories260K", "TinyStories-656K"])
def test_stories_with_their_own_tokenizers(model):
    from transformers import AutoTokenizer

    rows = SHARED / "data/ready/sft/tinystories_continue.train.jsonl.gz"
    if not (SHARED / "models" / model).is_dir() or not rows.is_file():
        pytest.skip(f"no {model} or tinystories_continue beside the checkout")
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / model)
    with gzip.open(rows, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in itertools.islice(lines, 60)]
    for template in ("text", "dialogue"):
        render = Renderer(tokenizer, template=template)
        stop = render.stop_ids[0]
        for record in records:
            prompt, answer = render.prompt_and_answer(chat(record["prompt"]), record["completion"])
            assert prompt[0] == 1 and (prompt + answer).count(1) == 1
            assert answer[-1] == stop and answer.count(stop) == 1
            known = "".join(c for c in record["completion"] if c.isascii())
            if known == record["completion"]:
                assert render.text(answer) == (known if template == "text" else known.strip())


# ---- which tokens of earlier turns are supervised --------------------------------------------------------------------

PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TIGHT = PLAIN.replace(": ", ":")


def blank_tokenizer(words: Sequence[str], **kwargs: bool) -> PreTrainedTokenizerFast:
    """A SentencePiece-like BPE of whole ``words``, with ``▁`` for a blank; characters without a token are dropped."""
    letters = sorted({c for word in words for c in word})
    merges = {(w[:n], w[n]): None for w in words for n in range(1, len(w))}
    vocab = {t: i for i, t in enumerate(dict.fromkeys([*letters, *(a + b for a, b in merges), "</s>"]))}
    inner = Tokenizer(models.BPE(vocab, list(merges), **kwargs))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="</s>")


def spans(tokenizer, row) -> list[str]:
    """The texts of the supervised stretches."""
    runs = itertools.groupby(zip(row.ids, row.labels, strict=True), key=lambda pair: pair[1] != IGNORE)
    return [tokenizer.decode([i for i, _ in run]) for supervised, run in runs if supervised]


ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:?.\n▁"


@pytest.mark.parametrize(
    "tokenizer",
    [
        blank_tokenizer([*ALPHABET, "▁He", "▁the"]),
        byte_tokenizer(merges=[("Ġ", "H"), ("ĠH", "e"), ("Ġ", "t")]),
    ],
    ids=["sentencepiece", "bytes"],
)
def test_a_token_of_a_blank_and_first_letters_is_supervised(tokenizer):
    turns = chat("the one", "Hello there", "more", "yes", "so")
    row = Renderer(tokenizer, template=PLAIN).conversation(turns, "end")
    assert spans(tokenizer, row)[:2] == [" Hello there", "yes"]


@pytest.mark.parametrize("drops", ["日本語のテキスト", "a 日 b", ""])
def test_labels_are_right_where_the_tokenizer_drops_characters(drops):
    tokenizer = blank_tokenizer([*ALPHABET, "▁He", ":▁"])
    offsets = tokenizer("日本 Yes", return_offsets_mapping=True).offset_mapping
    assert offsets[-1][1] < len("日本 Yes")  # the fault of the tokenizer that is dealt with
    turns = chat(drops, "Yes I do", "and? I like big cats a lot", "Hello 日 there", "so")
    row = Renderer(tokenizer, template=PLAIN).conversation(turns, "end")
    assert [s.strip() for s in spans(tokenizer, row)] == ["Yes I do", "Hello  there", "end</s>"]


def test_an_earlier_turn_without_a_border_between_tokens_is_refused():
    tokenizer = byte_tokenizer(merges=[(":", "H")])
    render = Renderer(tokenizer, template=TIGHT)
    turns = chat("hi", "Hello", "more")
    with pytest.raises(
        UserError, match=r"jinja string.*leaves out some of the response of turn 2: of 'Hello' it super"
    ):
        render.conversation(turns, "Hello")
    assert spans(tokenizer, render.conversation(turns, "Hello", supervise="last")) == ["Hello<|end|>"]


# ---- white space and text around a response --------------------------------------------------------------------------

CODE = "def f(x):\n    return x"


@pytest.mark.parametrize("change", ["replace('\n', ' ')", "replace(' ', '')", "replace('    ', ' ')"])
def test_a_template_that_changes_white_space_inside_a_response_is_refused(change):
    render = Renderer(chat_tokenizer(CHATML.replace("m.content", f"m.content|{change}")))
    with pytest.raises(UserError, match=r"changes white space inside the response: it writes '.*' in another way"):
        render.conversation(chat("hi"), CODE)


@pytest.mark.parametrize("written", ["m.content|trim", "m.content", "m.content|replace('<think>', '<think>\n')"])
def test_white_space_at_the_ends_and_around_markup_is_the_templates(written):
    render = Renderer(chat_tokenizer(CHATML.replace("m.content", f"({written})")))
    for answer in (CODE, f"\n {CODE} ", f"<think>why</think>{CODE}"):
        assert CODE in spans(render.tokenizer, render.conversation(chat("hi"), answer))[0]


def test_text_that_a_template_writes_behind_a_response_is_told():
    closing = CHATML.replace("+ '<|im_end|>", "+ (' (end)' if m.role == 'assistant' else '') + '<|im_end|>")
    assert "writes '(end)' behind a response" in "".join(
        Renderer(chat_tokenizer(closing), stop=["<|im_end|>"]).doubts()
    )
    for told in (CHATML, PLAIN, "dialogue", "text"):
        assert not list(Renderer(chat_tokenizer(), template=told).doubts())


# ---- tools -----------------------------------------------------------------------------------------------------------

TOOLS = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALLED = {
    "tools": [{"name": "look", "parameters": {}}],
    "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": {"x": 1}}}]},
        {"role": "tool", "content": "42"},
        {"role": "assistant", "content": "yes"},
    ],
}


def test_tools_calls_and_results_are_written_by_a_template_that_knows_them():
    render = Renderer(chat_tokenizer(TOOLS))
    row = parse(CALLED)[1][0]
    text = render.tokenizer.decode(render.prompt_ids(row.messages))
    call = '<|im_start|>assistant\n<call>{"name": "look", "arguments": {"x": 1}}</call><|im_end|>\n'
    assert text.startswith('<|im_start|>tools\n[{"type": "function", "function": {"name": "look"')
    assert call in text and text.endswith("<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n")
    assert render.prompt_ids([m.as_dict() for m in row.messages]) == render.prompt_ids(row.messages)


def test_a_call_is_supervised_and_a_turn_marked_as_untrained_is_not():
    render = Renderer(chat_tokenizer(TOOLS))

    def supervised(row) -> str:
        encoded = render.conversation(row.messages, row.answers[0])
        return str(render.tokenizer.decode([x for x in encoded.labels if x != IGNORE]))

    called = '<call>{"name": "look", "arguments": {"x": 1}}</call><|im_end|>'
    assert supervised(parse(CALLED)[1][0]) == called + "yes<|im_end|>"
    untrained = {**CALLED, "messages": [dict(m) for m in CALLED["messages"]]}
    untrained["messages"][1]["loss"] = False
    assert supervised(parse(untrained)[1][0]) == "yes<|im_end|>"


@pytest.mark.parametrize("lost", ["the tool 'look' that is on offer", "the call of the tool 'look'"])
def test_a_template_that_leaves_out_tools_or_calls_is_refused(lost):
    row = {k: v for k, v in CALLED.items() if k != "tools" or "offer" in lost}
    messages = parse(row)[1][0].messages
    for template in ("dialogue", CHATML):
        with pytest.raises(UserError, match=f"leaves out {lost}"):
            Renderer(chat_tokenizer(), template=template).prompt_ids(messages)
