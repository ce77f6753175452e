"""Ready classifiers as terms of the reward: the scores that plain Transformers gives, decoders and encoders alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, BertTokenizer

from data.common.errors import UserError
from data.records import Message, Prompt
from reward.model import Samples, TextsRead
from reward.settings import RewardPart
from reward.terms.classifier import classifier_folder
from reward.terms.composition import compose
from tests.conftest import WORDS, tiny_lm, word_tokenizer

ROWS = [("w1 w2", "w3"), ("w1", "w4 w5 w6 w7"), ("w2 w3 w4", "w8 w9"), ("w3", "w8 w1")]
CHAT = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def encoder(folder: Path) -> tuple[Any, Any]:
    """A BERT that tells prompt and response apart, and its WordPiece tokenizer."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"))
    config = AutoConfig.for_model("bert", vocab_size=len(tokenizer), max_position_embeddings=32, num_labels=1, **SMALL)
    return saved(folder, config, tokenizer)


def roberta(folder: Path) -> tuple[Any, Any]:
    """One whose positions begin behind its padding id."""
    config = AutoConfig.for_model(
        "roberta", vocab_size=len(WORDS), max_position_embeddings=20, num_labels=1, pad_token_id=1, **SMALL
    )
    return saved(folder, config, word_tokenizer(pad_is_eos=True))


def decoder(folder: Path, labels: int = 1) -> tuple[Any, Any]:
    config = AutoConfig.for_model(
        "llama", vocab_size=len(WORDS), max_position_embeddings=32, num_labels=labels, **SMALL
    )
    tokenizer = word_tokenizer(pad_is_eos=True)
    tokenizer.chat_template = CHAT
    return saved(folder, config, tokenizer)


def saved(folder: Path, config: Any, tokenizer: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for weight in model.parameters():  # the tables of a fresh model are too small to matter
        torch.nn.init.normal_(weight, std=0.4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def samples(rows=ROWS) -> Samples:
    prompts = [Prompt(messages=(Message(role="user", content=q),), group=q) for q, _ in rows]
    ids: list[list[int]] = [[] for _ in rows]
    return Samples(prompts=prompts, queries=ids, responses=ids, texts=[a for _, a in rows], finished=[True] * len(rows))


@pytest.mark.parametrize("kind", [encoder, roberta])
def test_an_encoder_scores_pairs_of_texts_as_plain_transformers_does(tmp_path, kind):
    model, tokenizer = kind(tmp_path / "rm")
    total, _ = compose([RewardPart(source="rm", weight=2.0)], None, tmp_path)(samples())
    for (prompt, answer), score in zip(ROWS, total.tolist(), strict=True):
        with torch.no_grad():
            theirs = model(**tokenizer(prompt, answer, return_tensors="pt")).logits.item()
        assert 2 * theirs == pytest.approx(score, abs=1e-5)


def test_a_decoder_scores_its_chat_template_as_plain_transformers_does(tmp_path):
    model, tokenizer = decoder(tmp_path / "rm", labels=3)
    model.config.id2label = {0: "bad", 1: "good", 2: "odd"}
    model.config.save_pretrained(tmp_path / "rm")
    total, _ = compose([RewardPart(source="rm", label="good")], None, tmp_path)(samples())
    for (prompt, answer), score in zip(ROWS, total.tolist(), strict=True):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), return_tensors="pt")["input_ids"]
        ids = torch.cat([ids[0], torch.tensor([tokenizer.eos_token_id])])[None]  # a finished response has its end
        with torch.no_grad():
            odds = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double().softmax(-1)[1].logit()
        assert odds.item() == pytest.approx(score, abs=1e-5)


def test_rows_beyond_the_positions_are_named(tmp_path):
    roberta(tmp_path / "rm")
    reward = compose([RewardPart(source="rm")], None, tmp_path)
    room = 20 - 2  # positions begin at 2
    reward(samples([("w1", " ".join(["w2"] * (room - 1)))]))
    with pytest.raises(UserError, match=f"have {room + 1} tokens, the model takes {room}"):
        reward(samples([("w1", " ".join(["w2"] * room))]))


def test_rows_that_an_exported_model_s_limit_cuts_are_counted_and_told(tmp_path):
    """And so are words that its tokenizer has no token for; a part that only reads ids counts nothing."""
    decoder(tmp_path / "rm")
    text = CHAT + "{% if add_generation_prompt %}assistant {% endif %}"
    (tmp_path / "rm/chat_template.jinja").write_text(text)
    scoring = {"max_tokens": 12, "stop_ids": [WORDS.index("<eos>")], "add_to_classifier": 0.0}
    (tmp_path / "rm/scoring.json").write_text(json.dumps(scoring))
    parts = [RewardPart(source="rm"), RewardPart(source="length", max_length=3)]
    reward = compose(parts, None, tmp_path)
    assert reward.texts == TextsRead() and reward.unread() == []
    rows = [("w1", "w2 w3"), ("w1", "w2 " * 20), ("w1 " * 20, "w2"), ("w1", "Wort")]
    reward(samples(rows))
    assert reward.texts is not None and (reward.texts.rows, reward.texts.cut, reward.texts.unknown) == (4, 2, 1)
    assert reward.unread() == ["rm: of 2 of 4 responses only a part is scored (reward.max_tokens)"]
    assert compose(parts[1:], None, tmp_path).texts is None


def test_what_is_no_classifier_is_refused(tmp_path):
    tiny_lm().save_pretrained(tmp_path / "lm")
    word_tokenizer().save_pretrained(tmp_path / "lm")
    with pytest.raises(UserError, match=r"lm: is no sequence classifier.*--input reward=PATH"):
        classifier_folder("./lm", tmp_path)
    with pytest.raises(UserError, match="there is no such folder"):
        classifier_folder("./nothing", tmp_path)


def test_a_label_is_a_classifiers_alone():
    with pytest.raises(ValueError, match=r"'label' belongs to a classifier .its folder or hub id., not to 'length'"):
        RewardPart(source="length", max_length=3, label="good")
    assert RewardPart(source="org/name").kind == "classifier"
    assert RewardPart(source="file.py:f").kind == "function"
