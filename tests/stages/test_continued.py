"""Continued pretraining: rows of new tokens, rates, losses before and after, and what a training leaves of the base."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.common.errors import UserError
from models.hub.spec import BaseModelSpec
from stages import continued
from stages.continued import Losses, compared, judged, start_rows, steps_of
from stages.settings import ContinuedConfig
from tests.conftest import tiny_lm, word_tokenizer
from tests.support.training import pretrain_context

TEXTS = [" ".join(f"w{(i + 2 * j) % 30}" for j in range(3 + i % 12)) for i in range(50)]
CONFIG = ContinuedConfig(steps=25, batch=8, context=8, learning_rate=3e-3, warmup=0.1)


def given(folder: Path, family: str = "llama", **changes: Any) -> BaseModelSpec:
    tiny_lm(family, 0, **{"initializer_range": 0.1} | changes).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return BaseModelSpec(name="tiny", source=str(folder))


def ran(
    folder: Path, spec: BaseModelSpec, config: ContinuedConfig = CONFIG, texts: list[str] = TEXTS, **changes: Any
) -> dict[str, Any]:
    out = folder / "out"
    out.mkdir()
    context = pretrain_context(out, texts[:25], texts[25:], **changes)
    return dict(continued.run(context, config, spec, torch.float32).metrics)


def naive_loss(folder: Path, texts: list[str], length: int) -> tuple[float, int, int]:
    """Nats, predicted tokens and bytes, by Transformers' own logits and a loop over tokens in float64."""
    lm = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    nats, count = 0.0, 0
    for text in texts:
        ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        for start in range(0, len(ids) - 1, length - 1):
            row = ids[start : start + length]
            with torch.no_grad():
                logprobs = lm(torch.tensor([row])).logits[0].log_softmax(-1)
            for i, token in enumerate(row[1:]):
                nats, count = nats - float(logprobs[i, token]), count + 1
    return nats, count, sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_the_losses_are_those_of_the_base_before_and_of_the_one_that_is_written(tmp_path: Path, family: str) -> None:
    spec = given(tmp_path / "given", family)
    found = ran(tmp_path, spec)
    for suffix, folder in (("_before", tmp_path / "given"), ("", tmp_path / "out" / "model")):
        nats, count, size = naive_loss(folder, TEXTS[25:], 8)
        assert found[f"held_out_nll{suffix}"] == pytest.approx(nats / count, rel=1e-5)
        assert found[f"held_out_nll_per_byte{suffix}"] == pytest.approx(nats / size, rel=1e-5)
    assert found["held_out_nll"] < found["held_out_nll_before"] - 0.3
    low, high = found["held_out_change_ci95"]
    assert low < found["held_out_change"] < high < 0


def test_every_weight_is_trained_and_the_settings_of_the_base_stay(tmp_path: Path) -> None:
    spec = given(tmp_path / "given", "gpt2")
    ran(tmp_path, spec)
    before, after = (load_file(f / "model.safetensors") for f in (tmp_path / "given", tmp_path / "out" / "model"))
    used = {name for name, p in before.items() if not torch.equal(p, after[name])}
    assert used == set(before) and all(p.dtype == torch.float32 for p in after.values())
    configs = [json.loads((f / "config.json").read_text()) for f in (tmp_path / "given", tmp_path / "out" / "model")]
    assert configs[0]["attn_pdrop"] == configs[1]["attn_pdrop"] == 0.5  # and no dropout while it trained: see above


def test_a_bf16_base_is_trained_with_fp32_weights(tmp_path: Path) -> None:
    """Steps smaller than bf16's last place are kept."""
    given(tmp_path / "given")
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "given", dtype=torch.bfloat16)
    lm.save_pretrained(tmp_path / "given")
    out = tmp_path / "out"
    out.mkdir()
    context = pretrain_context(out, TEXTS[:25], TEXTS[25:])
    config = CONFIG.model_copy(update={"steps": 2, "learning_rate": 1e-6})
    continued.run(context, config, BaseModelSpec(name="b", source=str(tmp_path / "given")), torch.bfloat16)
    before, after = (load_file(f / "model.safetensors") for f in (tmp_path / "given", out / "model"))
    for name, p in before.items():
        assert after[name].dtype == torch.float32 and not torch.equal(after[name], p.float())
    assert all(torch.equal(after[name].bfloat16(), p) for name, p in before.items() if "norm" in name)


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_row_is_the_mean_of_those_of_its_parts(tied: bool) -> None:
    lm = tiny_lm(tie_word_embeddings=tied)
    tables = [m.weight.detach().clone() for m in (lm.get_input_embeddings(), lm.get_output_embeddings())]
    old = {f"t{i}": i for i in range(40)}
    new = old | {"ab": 40, "abc": 41}
    start_rows(lm, old, new, {"ab": ("t3", "t4"), "abc": ("t3", "t4", "t9")})
    for before, module in zip(tables, (lm.get_input_embeddings(), lm.get_output_embeddings()), strict=True):
        now = module.weight.detach()
        assert now.shape[0] == 42 and torch.equal(now[:40], before)
        assert_close(now[40], (before[3] + before[4]) / 2)
        assert_close(now[41], (before[3] + before[4] + before[9]) / 3)
    assert (lm.get_input_embeddings().weight is lm.get_output_embeddings().weight) == tied
    assert lm.config.vocab_size == 42


def test_rows_that_a_base_has_to_spare_are_taken() -> None:
    """Many vocabularies are padded to a round number."""
    lm = tiny_lm()
    start_rows(lm, {"a": 0, "b": 1}, {"a": 0, "b": 1, "ab": 2}, {"ab": ("a", "b")})
    table = lm.get_input_embeddings().weight.detach()
    assert table.shape[0] == 40
    assert_close(table[2], (table[0] + table[1]) / 2)


def test_further_tokens_are_learnt_and_trained(tmp_path: Path) -> None:
    """Words that the tokenizer did not know were one unknown token; the loss a byte is what can be compared."""
    texts = [text.replace("w1 ", "new1 ").replace("w2 ", "new2 ") for text in TEXTS]
    said: list[str] = []
    spec = given(tmp_path / "given")
    config = CONFIG.model_copy(update={"added_vocabulary": 9})
    found = ran(tmp_path, spec, config, texts, warn=said.append)
    made = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert found["added_tokens"] == 2 and found["vocabulary"] == len(made) == 42
    assert {"new1", "new2"} <= set(made.get_vocab())
    assert said == ["continued.added_vocabulary: the documents gave 2 tokens and no more: no pair of tokens is left"]
    nats, count, size = naive_loss(tmp_path / "out" / "model", texts[25:], 8)
    assert found["held_out_nll"] == pytest.approx(nats / count, rel=1e-5)
    assert found["held_out_nll_per_byte"] == pytest.approx(nats / size, rel=1e-5)


def test_the_rate_rises_and_falls() -> None:
    """Ten steps of which two rise: 1/2, 2/2, then half a cosine from 1 to 0.1 over eight."""
    how = steps_of(tiny_lm(), ContinuedConfig(steps=10, warmup=0.2))
    expected = [0.5, 1.0] + [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert [how.factor(step) for step in range(10)] == pytest.approx(expected)


def test_norms_and_biases_do_not_decay() -> None:
    lm = tiny_lm("gpt2")
    how = steps_of(lm, ContinuedConfig(weight_decay=0.1))
    decays = {id(p): g["weight_decay"] for g in how.optimizers[0].param_groups for p in g["params"]}
    assert {n: decays[id(p)] for n, p in lm.named_parameters()} == {
        n: 0.1 if p.ndim >= 2 else 0.0 for n, p in lm.named_parameters()
    }


def test_losses_are_compared_by_hand() -> None:
    """12 nats of 6 tokens and 24 bytes became 6 nats of 4 tokens: 2 and 1.5 a token, 0.5 and 0.25 a byte."""
    found = compared(Losses((8.0, 4.0), (4, 2), (16, 8)), Losses((4.0, 2.0), (3, 1), (16, 8)))
    assert found == {
        "held_out_nll_before": 2.0, "held_out_nll": 1.5, "held_out_nll_per_byte_before": 0.5,
        "held_out_nll_per_byte": 0.25, "held_out_change": -0.25,
    }  # fmt: skip
    assert compared(Losses(), Losses()) == {"held_out_nll_before": None, "held_out_nll": None}


def test_what_came_of_it_is_said() -> None:
    """Of 20 documents 0.5 nats a byte became 0.25; a loss that rose names smaller steps."""
    config = ContinuedConfig(steps=30, learning_rate=1e-4)
    before, after = Losses((8.0,) * 20, (4,) * 20, (16,) * 20), Losses((4.0,) * 20, (3,) * 20, (16,) * 20)
    found = judged(before, after, config)
    assert (found["before"]["loss"], found["change"], found["unit"]) == (0.5, -0.25, "nats a byte")
    assert found["text"].startswith("held-out loss 0.5 nats a byte before, 0.25 after 30 steps (a difference of")
    assert found["learnt"] is True
    found = judged(after, before, config)
    assert not found["learnt"] and "nothing was learnt; try continued.learning_rate=2.0e-05" in found["text"]
    found = judged(before, before, config)
    assert not found["learnt"] and "continued.learning_rate=5.0e-04, or more continued.steps" in found["text"]
    few = [Losses(one.nats[:3], one.tokens[:3], one.bytes[:3]) for one in (before, after)]
    found = judged(few[0], few[1], config)
    assert found["learnt"] is None and "3 held-out documents are too few to tell" in found["text"]
    assert judged(Losses(), Losses(), config) == {}


@pytest.mark.parametrize(("rate", "learnt"), [(3e-3, True), (3.0, False)])
def test_it_is_said_in_the_terminal_and_kept_where_nothing_was_learnt(
    tmp_path: Path, rate: float, learnt: bool
) -> None:
    said: list[str] = []
    config = ContinuedConfig(steps=10, batch=8, context=8, learning_rate=rate)
    found = ran(tmp_path, given(tmp_path / "given"), config, say=said.append, warn=said.append)
    assert said[-1].startswith("continued pretraining: held-out loss ") and " nats a byte before, " in said[-1]
    assert ("nothing was learnt" in said[-1]) != learnt
    assert [w["text"] for w in found.get("warnings", [])] == ([] if learnt else [said[-1]])
    assert found["held_out_curves"]["base"]["learnt"] is learnt


def test_without_documents_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.documents: continued needs training documents"):
        ran(tmp_path, given(tmp_path / "given"), texts=[])


def test_chunks_beyond_a_table_of_positions_are_refused(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"context": 99})
    texts = [" ".join(["w1"] * 90)] * 30
    with pytest.raises(UserError, match=r"continued\.context: chunks of 99 tokens .* 64 positions of base tiny: lower"):
        ran(tmp_path, given(tmp_path / "given", "gpt2"), config, texts)
