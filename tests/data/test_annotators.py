"""Rankings by several people, and answers that nobody judged."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from torch.testing import assert_close

from data.parts import Part, annotated
from data.records import Message, Prompt, RankedAnswers
from data.sources import DataConfig
from data.splits import load_corpus
from data.storage.collected import Collected, Index
from data.storage.views import Changes
from stages import reward_model
from stages.settings import RewardConfig
from stages.training import ranking_trainer
from tests.conftest import make_base
from tests.support.ppo import make_context

PROMPT = Prompt(messages=(Message(role="user", content="w1"),), group="g")


def ranked(answers, ranks, scores=None, prompt=PROMPT):
    return RankedAnswers(prompt=prompt, answers=tuple(answers), ranks=tuple(ranks), scores=scores)


THREE = [ranked("abc", (0, 1, 2), (3.0, 2.0, 1.0)), ranked("cab", (0, 1, 2), (5.0, 4.0, 0.0)), ranked("abd", (0, 1, 2))]


def merged(rankings, how):
    def index():
        return Index(lambda group: False, said=True)

    noted = index()
    collected = Collected("rankings", noted)
    collected.add(rankings)
    collected.end_source()
    part = annotated(Part.of(collected, noted), how, index)
    return list(part.view(np.arange(len(part)), Changes()))


def test_each_for_itself_a_share_of_one_or_their_mean_rank():
    assert merged(THREE, "keep") == THREE
    assert [r.weight for r in merged(THREE, "share")] == [0.5, 0.5, 1.0]
    one, other = merged(THREE, "mean")
    # mean ranks: a (0 + 1) / 2, b (1 + 2) / 2, c (2 + 0) / 2; mean scores likewise
    assert (one.answers, one.ranks, one.scores) == (("a", "b", "c"), (0, 2, 1), (3.5, 1.0, 3.0))
    assert other == THREE[2]
    tied = merged([ranked("ab", (0, 1)), ranked("ba", (0, 1))], "mean")[0]
    assert tied.ranks == (0, 0) and tied.scores is None


def test_people_who_judged_the_same_prompt_are_in_one_split_and_unjudged_answers_are_left_out(tmp_path):
    rows = [
        {"prompt": f"ask {i}", "responses": ["x", "y", "z"], "ranks": order}
        for i in range(40)
        for order in ([0, 1, None], [1, 0, None], [0, 0, 1])
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = DataConfig(rankings=("r.jsonl",), held_out=0.3, annotators="share")
    corpus = load_corpus(config, seed=0, base_dir=tmp_path)
    sides = [{r.prompt.text for r in side} for side in (corpus.rankings.train, corpus.rankings.held_out)]
    assert all(sides) and not sides[0] & sides[1]
    assert sorted({(len(r.answers), r.weight) for r in corpus.rankings.train}) == [(2, 0.5), (3, 1.0)]
    assert corpus.notes["responses without a rank left out"] == 80
    kept = load_corpus(config.model_copy(update={"annotators": "keep"}), seed=0, base_dir=tmp_path)
    assert corpus.fingerprint("rankings") != kept.fingerprint("rankings")


def test_a_weight_scales_a_rankings_part_of_the_loss(tmp_path):
    context = make_context(make_base(), tmp_path)
    context.base.add_role("reward", context.adapter, head=True)
    plain = [ranked(["w2 w3", "w4"], (0, 1)), ranked(["w5", "w6 w7"], (0, 1))]

    def loss(weights):
        rows, _ = reward_model.encode(context, plain, RewardConfig())
        for row, weight in zip(rows, weights, strict=True):
            object.__setattr__(row, "weight", weight)
        trainer = ranking_trainer.RankingTrainer.__new__(ranking_trainer.RankingTrainer)
        trainer.settings, trainer.tokens = RewardConfig(), 0
        trainer.training_run = SimpleNamespace(counted=1.0, note=lambda numbers: None)
        trainer.accelerator = SimpleNamespace(gather=lambda x: x)
        with context.base.role("reward") as view:
            module = ranking_trainer.RewardModule(view, "last")
            return ranking_trainer.RankingTrainer.compute_loss(trainer, module, ranking_trainer.collate(rows, 0, False))

    first, second, both = loss([1.0, 0.0]), loss([0.0, 1.0]), loss([1.0, 0.5])
    assert_close(both, first + 0.5 * second)
    assert second.item() == pytest.approx(2 * (loss([0.0, 0.5])).item())
