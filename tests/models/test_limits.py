"""Ids and positions that a base does not have are told at load and by every stage, by the same checks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.common.errors import UserError
from data.records import Demonstration, RankedAnswers
from data.splits import Corpus, Split
from data.template import Renderer
from models.hub.limits import (
    Limits,
    check_rows,
    check_stops,
    check_vocabulary,
    limits_of_folder,
    limits_of_model,
    stop_ids_in,
)
from models.hub.spec import BaseModelSpec
from models.roles.export import save_role
from models.roles.shared_base import SharedBase
from reward.files import load_reward
from stages import rankings, reward_model, sft
from stages.ppo import stage as ppo_stage
from stages.settings import PPOConfig, RankingsConfig, RewardConfig, SFTConfig
from tests.conftest import ADAPTER, FAMILIES, WORDS, make_base, tiny_lm, word_tokenizer
from tests.support.ppo import make_context, make_prompt

TABLES = {"gpt2", "opt"}


@pytest.mark.parametrize("family", FAMILIES)
def test_model_and_folder_say_the_same(family: str, tmp_path: Path) -> None:
    lm = tiny_lm(family)
    lm.save_pretrained(tmp_path)
    found = limits_of_model(lm, "x")
    assert found == limits_of_folder(tmp_path, "x")
    assert found == Limits(name="x", embeddings=len(WORDS), positions=64, table=family in TABLES)


@pytest.mark.parametrize("family", sorted(TABLES))
def test_a_table_of_positions_is_what_breaks_beyond_it(family: str) -> None:
    """The reason of the refusal: the model itself fails there; a rotary one goes on."""
    ids = torch.ones(1, 65, dtype=torch.long)
    with pytest.raises((IndexError, RuntimeError)), torch.no_grad():
        tiny_lm(family)(input_ids=ids)
    with torch.no_grad():
        assert tiny_lm("llama")(input_ids=ids).logits.shape[1] == 65


def saved(folder: Path, words: list[str] | None = None, added: list[str] | None = None) -> Path:
    lm, tokenizer = tiny_lm(), word_tokenizer(words=words)
    if added:
        tokenizer.add_tokens(added)
    lm.save_pretrained(folder), tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path):
    return SharedBase.load(BaseModelSpec(name="x", source=str(folder)), dtype=torch.float32, device=torch.device("cpu"))


def test_a_tokenizer_larger_than_the_embeddings_is_refused_at_load(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has 2 tokens without an embedding \(the first is 'more', id 40; .*has 40"):
        load(saved(tmp_path / "a", words=[*WORDS, "more", "most"]))
    base = load(saved(tmp_path / "b", added=["<picture>"]))  # as text models have of their relatives with pictures
    check_vocabulary(base.limits, base.tokenizer)
    with pytest.raises(UserError, match=r"data\.prompts: holds token id 40, and base x has 40 embeddings"):
        check_rows(base.limits, [base.tokenizer("w1 <picture>").input_ids], "data.prompts", "", print)


def test_a_stop_outside_the_embeddings_is_refused() -> None:
    limits = make_base().limits
    check_stops(limits, (0, 39))
    with pytest.raises(UserError, match=r"stop: id 40 is outside the 40 embeddings.*generation config"):
        check_stops(limits, (2, 40))


def test_rows_are_counted_and_the_longest_is_named() -> None:
    told: list[str] = []
    rows, places = [[1] * n for n in (10, 65, 3, 80)], ["a:1", "a:2", "a:3", "a:4"]
    for table in (False, True):
        limits = Limits(name="x", embeddings=40, positions=64, table=table)
        check_rows(limits, [[1] * 64], "data.prompts", "cure", told.append)
        if table:
            with pytest.raises(UserError, match=r"data.prompts \(a:4\): 2 of 4 rows .*64 positions.*80 tokens\); cure"):
                check_rows(limits, rows, "data.prompts", "cure", told.append, where=places)
            with pytest.raises(UserError, match=r"65 tokens, 5 of them new"):
                check_rows(limits, [[1] * 60], "data.prompts", "cure", told.append, room=5)
        else:
            check_rows(limits, rows, "data.prompts", "cure", told.append, where=places)
    assert len(told) == 1 and "a:4" in told[0] and "80 tokens" in told[0]


LONG = " ".join(["w1"] * 70)
DEMONSTRATIONS = Split(train=(Demonstration(prompt=make_prompt("w2"), answer=LONG),) * 2)
RANKED = RankedAnswers(prompt=make_prompt("w2"), answers=(LONG, LONG + " w2"), ranks=(0, 1))
STAGES = {
    "sft": lambda c: sft.run(c, SFTConfig(batch=2)),
    "reward": lambda c: reward_model.run(c, RewardConfig(batch=1, calibration_samples=1)),
    "rankings": lambda c: rankings.run(
        c, RankingsConfig(annotator="data.demo.task:gold", prompts=2, answers=2, max_new_tokens=70)
    ),
    "ppo": lambda c: ppo_stage.counted_prompts(c, PPOConfig(max_new_tokens=70)),
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_refuses_what_a_table_does_not_hold(stage: str, tmp_path: Path) -> None:
    corpus = Corpus(
        demonstrations=DEMONSTRATIONS,
        rankings=Split(train=(RANKED,)),
        prompts=Split(train=(make_prompt("w1"), make_prompt("w2"))),
    )
    context = make_context(make_base("gpt2"), tmp_path, corpus)
    if stage != "sft":
        context.base.add_role("sft", context.adapter)
    with pytest.raises(UserError, match="64 positions"):
        STAGES[stage](context)


def test_sft_on_a_rotary_base_goes_on_with_a_warning(tmp_path: Path) -> None:
    told: list[str] = []
    context = make_context(make_base(), tmp_path, Corpus(demonstrations=DEMONSTRATIONS))
    sft.run(replace(context, warn=told.append), SFTConfig(batch=2))
    assert len(told) == 1 and "2 of 2 rows are longer than the 64 positions" in told[0]
    assert "lower sft.max_tokens" in told[0]


def test_what_a_reward_model_on_a_table_of_positions_scores_is_cut_to_them(tmp_path: Path) -> None:
    """Responses of a policy on another base may be longer than any ranking that it was trained on."""
    base = make_base("gpt2", n_positions=16)
    base.add_role("reward", ADAPTER, head=True)
    save_role(base, "reward", tmp_path, {"score_mean": 0.0, "score_std": 1.0})
    renderer, prompt = Renderer(base.tokenizer, template="dialogue"), [make_prompt("w1").messages]
    found = {}
    for limit in (16, 512):
        base.drop_roles()
        model = load_reward(base, tmp_path, renderer, max_tokens=limit)
        found[limit] = model.score_texts(prompt, ["w2 w3 " * 20], [True])
        assert model.max_tokens == 16
    assert torch.equal(found[16], found[512])
    rotary = make_base()
    rotary.add_role("reward", ADAPTER, head=True)
    save_role(rotary, "reward", tmp_path / "rotary", {"score_mean": 0.0, "score_std": 1.0})
    rotary.drop_roles()
    assert load_reward(rotary, tmp_path / "rotary", renderer, max_tokens=512).max_tokens == 512


@pytest.mark.parametrize(("value", "ids"), [(None, ()), (2, (2,)), ([2, 3], (2, 3)), ([], ())])
def test_stops_of_a_generation_config_are_numbers(value: object, ids: tuple[int, ...]) -> None:
    assert stop_ids_in(value, "x") == ids


@pytest.mark.parametrize("value", ["</s>", True, [2, False], ["2"], [2.0], {"id": 2}])
def test_other_stops_of_a_generation_config_are_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"^x: eos_token_id: .* is no token id and no list of them"):
        stop_ids_in(value, "x")


def test_weights_that_are_no_numbers_are_named_as_such(tmp_path: Path) -> None:
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"base x: its logits are not finite .* overflow in float32"):
        SharedBase(lm, word_tokenizer(), name="x")
