"""Worse responses that are added to training rankings: what they are, where they rank, what a model learns of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from data.records import RankedAnswers
from data.splits import Split
from data.template import Renderer
from pipelines.stages.lengths import NEGATIVES, with_negatives
from reward.card.probes import PROBES
from stages import reward_model
from stages.settings import RewardConfig
from stages.training.calibration import calibration_responses
from stages.training.negatives import negative
from stages.training.ranking_rows import EncodedRanking, encode_rankings, ranking_store
from tests.conftest import make_base
from tests.support.ppo import make_prompt
from tests.support.training import reward_context

KINDS = get_args(get_args(RewardConfig.model_fields["negatives"].annotation)[0])


def ranking(prompt: str, *answers: str, ranks: tuple[int, ...] = (), **more: object) -> RankedAnswers:
    ranks = ranks or tuple(range(len(answers)))
    return RankedAnswers(prompt=make_prompt(prompt), answers=answers, ranks=ranks, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(make_base().tokenizer, template="dialogue")


def encoded(renderer: Renderer, rows: list[RankedAnswers], *kinds: str, **config: object) -> list[EncodedRanking]:
    kept, _ = encode_rankings(renderer, rows, RewardConfig(**config), negatives=kinds)  # type: ignore[arg-type]
    return list(kept)


def test_the_setting_names_the_card_s_damages() -> None:
    assert set(KINDS) == set(PROBES) == set(NEGATIVES)


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("empty response", ("", True)),
        ("cut short", ("w5 w6", True)),
        ("end token missing", ("w5 w6 w7 w8", False)),
        ("sentences repeated", ("w5 w6 w7 w8 w5 w6 w7 w8", True)),
        ("answer to another prompt", ("w9", True)),
    ],
)
def test_the_worst_response_is_damaged(kind: str, expected: tuple[str, bool]) -> None:
    """The second is the worst by its rank; of two that are equally bad the first."""
    rows = [ranking("w1", "w2 w3", "w5 w6 w7 w8", "w4", ranks=(0, 2, 1)), ranking("w2", "w9", "w2")]
    assert negative(rows, 0, [kind]) == expected


def test_a_kind_that_does_not_apply_gives_way_to_the_next() -> None:
    """Nothing can be cut from a letter, an unfinished response cannot lose its end, and one ranking has no other."""
    short = [ranking("w1", "w2 w3", "w")]
    assert negative(short, 0, ["cut short"]) is None
    assert negative(short, 0, ["cut short", "empty response"]) == ("", True)
    open_ended = [ranking("w1", "w2 w3", "w4", finished=(True, False))]
    assert negative(open_ended, 0, ["end token missing"]) is None
    assert negative(short, 0, ["answer to another prompt"]) is None


def test_kinds_are_drawn_by_the_prompt_and_evenly() -> None:
    rows = [ranking(f"prompt {i}", "w2 w3", "w5 w6 w7 w8") for i in range(400)]
    found = [negative(rows, i, ["empty response", "cut short"]) for i in range(400)]
    assert found == [negative(rows[: i + 1], i, ["empty response", "cut short"]) for i in range(400)]
    counts = Counter(made[0] for made in found if made is not None)
    assert set(counts) == {"", "w5 w6"} and 160 < counts[""] < 240  # four standard deviations


def test_a_share_of_the_rankings_gets_one_and_the_prompt_says_which() -> None:
    rows = [ranking(f"prompt {i}", "w2 w3", "w5 w6 w7 w8") for i in range(400)]
    kinds = ["empty response", "cut short"]
    whole = [negative(rows, i, kinds) for i in range(400)]
    found = [negative(rows, i, kinds, share=0.25) for i in range(400)]
    assert 65 < sum(made is not None for made in found) < 135  # four standard deviations
    assert all(made is None or made == one for made, one in zip(found, whole, strict=True)) and None not in whole
    more = [negative(rows, i, kinds, share=0.5) for i in range(400)]
    assert all(few is None or many is not None for few, many in zip(found, more, strict=True))
    counts = Counter(made[0] for made in more if made is not None)
    assert 0.5 < counts[""] / counts["w5 w6"] < 2  # the share does not decide on the kind


def test_the_stage_and_its_estimate_know_the_share(renderer: Renderer) -> None:
    rows = [ranking(f"w{i % 9} w{i // 9}", "w2 w3", "w5 w6 w7 w8") for i in range(81)]
    kept = encoded(renderer, rows, "cut short", negatives_share=0.3)
    assert [row.made for row in kept] == [int(negative(rows, i, ["cut short"], 0.3) is not None) for i in range(81)]
    ranked = [(4.0, [8.0, 6.0])] * 10
    more = with_negatives(ranked, ["cut short", "empty response"], max, 0.3)
    assert [len(a) for _, a in more] == [2, 2, 2, 3, 2, 2, 3, 2, 2, 3] and more[3] == (4.0, [8.0, 6.0, 5.0])


def test_it_ranks_below_all_and_is_told_from_what_was_given(renderer: Renderer) -> None:
    rows = [ranking("w1", "w2 w3", "w5 w6 w7 w8", "w4", ranks=(0, 2, 1), scores=(3.0, 1.0, 2.0))]
    [plain], [more] = encoded(renderer, rows), encoded(renderer, rows, "cut short")
    asked, cut = renderer.prompt_and_answer(rows[0].prompt.messages, "w5 w6", True)
    assert (plain.made, plain.ranks, plain.scores) == (0, [0, 2, 1], [3.0, 1.0, 2.0])
    assert (more.made, more.ranks, more.scores) == (1, [0, 2, 1, 3], [3.0, 1.0, 2.0, 1.0])
    assert (more.queries[-1], more.responses[-1]) == (asked, cut) and more.given == plain.given
    store = ranking_store()
    store.append(more)
    assert store[0] == more


def test_one_that_is_there_already_is_not_added(renderer: Renderer) -> None:
    """An empty response that is ranked, and a whole one whose end the limit cuts anyway."""
    [row] = encoded(renderer, [ranking("w1", "w2 w3", "")], "empty response")
    assert row.made == 0 and row.ranks == [0, 1]
    long = [ranking("w1", "w2 w3", "w5 " * 30)]
    [row] = encoded(renderer, long, "end token missing", max_tokens=12)
    assert row.made == 0 and len(row.ranks) == 2


def test_training_sees_them_and_nothing_that_is_measured_does(tmp_path: Path) -> None:
    """With labels the other way round each damage wins before; told that two are bad, the model sees it, and orders
    the held-out pairs, which are as they were, as it did."""
    config = RewardConfig(epochs=25, learning_rate=1e-2, batch=6, calibration_samples=16)
    kinds = ("end token missing", "cut short")
    found = []
    for folder, negatives in ((tmp_path / "plain", ()), (tmp_path / "made", kinds)):
        folder.mkdir()
        context = reward_context(folder, flip=True)
        found.append(reward_model.run(context, config.model_copy(update={"negatives": negatives})).metrics)
    plain, made = found
    assert "negatives" not in plain and made["negatives"] == made["rankings"] == plain["rankings"]
    same = ("pairs", "counts", "held_out_counts", "pair_accuracy")
    assert [made[k] for k in same] == [plain[k] for k in same] and made["pair_accuracy"] == 0.0
    shares = [[m["report_card"]["probes"][kind] for kind in kinds] for m in found]
    assert shares == [[0.0, 0.0], [1.0, 1.0]]


def test_what_becomes_zero_is_the_mean_of_responses_that_were_given(tmp_path: Path) -> None:
    context = reward_context(tmp_path)
    config = RewardConfig(calibration_samples=5, negatives=("empty response",))
    train, _, _ = reward_model.encode_all(context, context.corpus.rankings.train, config)
    assert all(row.made == 1 for row in train)
    context = replace(context, corpus=replace(context.corpus, prompts=Split(train=[], held_out=[])))
    _, responses, source = calibration_responses(context, train, config)
    assert source == "training responses" and len(responses) == sum(len(row.ranks) - 1 for row in train[:5])
