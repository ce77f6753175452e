"""Out of memory while sampling, scoring, measuring and pretraining: smaller batches, the same results, a word of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from data.common.errors import StageError
from data.records import Prompt
from data.splits import Corpus
from evaluation.held_out import Evaluator, System
from evaluation.settings import EvaluationConfig
from models.backbone.oom_retry import OOMRetry
from reward.model import RewardModel
from stages import pretrain, rankings
from stages.safe_points.checkpoints import Checkpoints
from stages.settings import PretrainConfig, RankingsConfig
from tests.conftest import ADAPTER, make_base, randomise
from tests.support.faults import small_memory
from tests.support.ppo import make_context, make_prompt
from tests.support.training import pretrain_context

PROMPTS: list[Prompt] = [make_prompt(f"w{i} w{i + 1}") for i in range(7)]


def small_base(rows: int | None):
    base = make_base()
    base.fast = False  # the fast path has no modules that a hook could be put on
    if rows is not None:
        small_memory(base, rows, in_backward=False)
    return base


def test_a_limit_is_kept_finished_rows_are_not_done_again_and_the_reason_is_told():
    told: list[str] = []
    halving, done = OOMRetry("evaluation.batch", told.append), []

    def work(rows) -> None:
        if len(rows) > 2 and rows[0] >= 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        done.extend(rows)

    halving.each(range(9), 3, work)
    assert done == list(range(9)) and halving.limit == 1 and len(told) == 1
    assert told[0].startswith("out of memory with evaluation.batch=3: continuing with 1")
    with pytest.raises(StageError, match=r"even with evaluation\.batch=1"):
        halving.each([5], 4, lambda rows: torch.empty(2**44, dtype=torch.uint8))


def test_processes_meet_where_the_smallest_piece_does_not_fit():
    met: list[str] = []

    def together(work):
        try:
            return work()
        except StageError as error:
            met.append(str(error))
            raise StageError("process 1: too large") from error

    halving = OOMRetry("ppo.micro_batch", lambda text: None, together)
    assert halving.run(lambda size: size, 4) == 4 and met == []
    with pytest.raises(StageError, match="process 1"):
        halving.run(lambda size: torch.empty(2**44, dtype=torch.uint8), 4)
    assert len(met) == 1


@pytest.mark.parametrize("rows", [None, 3])
def test_evaluation_goes_on_with_less_and_finds_the_same(tmp_path, rows):
    """With room for three rows six become three: answers, rewards, KL and perplexity of batches of three."""
    told: list[str] = []
    found = []
    for batch, room in ((6, rows), (3, None)):
        base = small_base(room)
        for seed, name in enumerate(("reference", "policy")):
            base.add_role(name, ADAPTER)
            randomise(base, name, seed)
        base.add_role("reward", ADAPTER, head=True)
        randomise(base, "reward", 5)
        context = make_context(base, tmp_path, Corpus())
        reward = RewardModel(base=base, role="reward", renderer=context.renderer, batch=batch)
        reward.memory.warn = told.append
        evaluator = Evaluator(
            base=base, renderer=context.renderer, config=EvaluationConfig(batch=batch), prompts=PROMPTS,
            max_new_tokens=5, seed=0, reward=reward, memory=OOMRetry("evaluation.batch", told.append),
        )  # fmt: skip
        system = System(name="ppo", base=base, role="policy", renderer=context.renderer)
        answers = evaluator.run(system, "sampled")
        found.append((answers, evaluator.perplexity(system, [("w3 w4",)] * 7)))
    (small, small_perplexity), (three, perplexity) = found
    assert small.responses == three.responses and small.token_ids == three.token_ids
    assert small.kl == pytest.approx(three.kl, abs=1e-5) and small.kl_exact == pytest.approx(three.kl_exact, abs=1e-5)
    assert small.reward == pytest.approx(three.reward, abs=1e-5) and small_perplexity == pytest.approx(perplexity)
    assert [t.split(":")[0] for t in told] == (
        [] if rows is None else [f"out of memory with {n}=6" for n in ("evaluation.batch", "responses scored at once")]
    )


def test_rankings_are_sampled_in_smaller_batches_and_the_limit_is_saved(tmp_path):
    body = "return [len(c) for c in completions]"
    (tmp_path / "mark.py").write_text(f"def length(prompts, completions, **_):\n    {body}\n")
    config = RankingsConfig(annotator="mark.py:length", answers=2, batch=6, max_new_tokens=4)
    told: list[str] = []
    made = []
    for room in (3, None):
        context = make_context(small_base(room), tmp_path, Corpus())
        context = replace(context, recipe_folder=tmp_path, warn=told.append)
        done = {"train": rankings.Sampled()}
        rankings.sample(context, config, PROMPTS, "train", done)
        made.append(rankings.rank(context, config, PROMPTS, "train", done["train"]))
        assert done["train"].limit == room
    assert made[0] == made[1] and len(made[0]) == 7
    assert len(told) == 1 and "rankings.batch=6: continuing with 3" in told[0]


def test_pretraining_goes_on_with_less_and_changes_no_gradient(tmp_path, monkeypatch):
    """Four documents of eight fit in two halves; the limit is part of the checkpoint."""
    real, found, told = pretrain.new_model, {}, []
    shape = {"layers": 1, "width": 16, "feed_forward": 16, "heads": 2, "context": 16}
    config = PretrainConfig(tokenizer="words", vocabulary=20, steps=2, batch=8, model=shape)
    states = []
    monkeypatch.setattr(Checkpoints, "safe_point", lambda self, step, save, *_, **__: states.append(save()))
    for name, room in (("small memory", 5), ("all", None)):
        models = []

        def new_model(*args, room=room, models=models):
            models.append(real(*args))
            if room is not None:
                small_memory(type("Base", (), {"lm": models[0]}), room, in_backward=True)
            return models[0]

        monkeypatch.setattr(pretrain, "new_model", new_model)
        (tmp_path / name).mkdir()
        context = pretrain_context(
            tmp_path / name,
            train=[f"w{i} w{i + 1} w{i + 2}" for i in range(9)],
            held_out=[f"w{i} w{i + 2}" for i in range(7)],
            warn=told.append,
        )
        result = pretrain.run(context, config)
        limits = [s.own_numbers["limit"] for s in states]
        found[name] = (list(models[0].parameters()), result.metrics["held_out_nll"], limits)
        states.clear()
    assert len(told) == 1 and "documents at once=8: continuing with 4" in told[0]
    assert found["small memory"][2] == [4, 4] and found["all"][2] == [None, None]
    for a, b in zip(found["small memory"][0], found["all"][0], strict=True):
        assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert found["small memory"][1] == pytest.approx(found["all"][1], abs=1e-3)
