"""A chat model as a term of the reward: asked once, retried, counted, and through card and gate into PPO."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data.common.errors import GateStopped, UserError
from data.common.http_client import RemoteError
from data.records import Message, Prompt
from pipelines.loading.load import load_recipe
from pipelines.run.pipeline import Pipeline
from reward.model import Samples
from reward.settings import RatingConfig, RemoteConfig
from reward.terms.judge import CUT, JudgeReward
from tests.conftest import tiny_lm, word_tokenizer
from tests.support.servers import rating

GOOD, BAD = "w5 w6", "w7 w8 w9"
QUICK = RemoteConfig(backoff=0.0, retries=2, concurrency=2)


def samples(*texts: str, finished: bool = True) -> Samples:
    asked = Prompt(messages=(Message(role="user", content="say"),), group="g")
    rows = [[1]] * len(texts)
    done = [finished] * len(texts)
    return Samples(prompts=[asked] * len(texts), queries=rows, responses=rows, texts=list(texts), finished=done)


def by_words(question: str) -> str:
    """A rating of 1 and 3 more for each w5 or w6 of the response, at the end of a reply that names another number."""
    said = question.split("[Response]\n")[1].split("\n[End")[0]
    return f"I thought of [[2]] first.\nRating: [[{min(10, 1 + 3 * len(re.findall('w[56]', said)))}]]"


def test_each_question_is_asked_once_and_kept(tmp_path: Path) -> None:
    """Three responses of which two are the same: two questions; in another process none."""
    with rating(by_words) as (url, asked):
        judge = JudgeReward(url, RatingConfig(model="j"), QUICK, tmp_path)
        assert judge(samples(GOOD, BAD, GOOD)).tolist() == [7.0, 1.0, 7.0]
        assert judge(samples(BAD)).tolist() == [1.0] and len(asked) == 2
        body = next(one for one in asked if GOOD in one["messages"][1]["content"])
        assert body["model"] == "j" and body["temperature"] == 0.0 and body["max_tokens"] == 512
        shown = f"[Conversation]\nuser: say\n\n[Response]\n{GOOD}\n[End of the response]"
        assert body["messages"][1]["content"] == shown and "[[10]]" in body["messages"][0]["content"]
        assert judge.summary() == (
            "judge j: 2 of 4 ratings asked for, the others were known; 14 tokens read and 4 written"
        )
        with next(tmp_path.glob("*.jsonl")).open("a") as file:
            file.write('{"question": "x", "rat')  # a process that was killed while it wrote
        again = JudgeReward(url, RatingConfig(model="j"), QUICK, tmp_path)
        assert again(samples(BAD, GOOD)).tolist() == [1.0, 7.0] and len(asked) == 2
        other = JudgeReward(url, RatingConfig(model="other"), QUICK, tmp_path)
        assert other(samples(BAD)).tolist() == [1.0] and len(asked) == 3
        cut = again(samples(BAD, finished=False))
        assert cut.tolist() == [1.0] and CUT in asked[-1]["messages"][1]["content"] and len(asked) == 4


def test_failures_and_replies_without_a_rating_are_asked_again(tmp_path: Path) -> None:
    replies: list[Any] = [503, "I cannot say.", "[[4.5]]"]
    with rating(lambda question: replies.pop(0)) as (url, asked):
        judge = JudgeReward(url, RatingConfig(model="j"), QUICK, tmp_path)
        assert judge(samples("w1")).tolist() == [4.5] and len(asked) == 3


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("never", r"no rating such as \[\[10\]\].*max_tokens.*never"),
        ("[[11]]", "its rating 11 is not between 1 and 10"),
    ],
)
def test_a_judge_that_never_rates_ends_the_stage_and_what_it_rated_is_kept(
    tmp_path: Path, said: str, words: str
) -> None:
    with rating(lambda question: "[[3]]" if "w1" in question else said) as (url, asked):
        judge = JudgeReward(url, RatingConfig(model="j"), RemoteConfig(backoff=0.0, retries=2, concurrency=1), tmp_path)
        with pytest.raises(RemoteError, match=words):
            judge(samples("w1", "w2"))
        assert len(asked) == 4
        again = JudgeReward(url, RatingConfig(model="j"), QUICK, tmp_path)
        assert again(samples("w1")).tolist() == [3.0] and len(asked) == 4


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"source": "model", "judge": {"model": "j"}}, r"'judge' belongs to the address of an API"),
        (
            {"source": "http://x/v1", "judge": {"model": "j", "lowest": 5, "highest": 5}},
            "lowest 5 is not below highest 5",
        ),
        ({"source": "http://x/v1", "judge": {"model": "j"}, "remote": {"batch": 2}}, r"remote\.batch is for scorers"),
        ({"source": "http://x/v1", "judge": {"modl": "j"}}, "Did you mean 'model'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(part: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_recipe({"base": "qwen2.5-0.5b", "data": {"prompts": "p.jsonl"}, "ppo": {"reward": [part]}})


def make(folder: Path, url: str, **changes: Any) -> Pipeline:
    tiny_lm().save_pretrained(folder / "base")
    word_tokenizer().save_pretrained(folder / "base")
    prompts = [f"w{a} w{b} w{c}" for a in range(1, 5) for b in range(1, 5) for c in range(1, 5)]
    shown = [{"prompt": prompt, "completion": (GOOD, BAD)[n % 2]} for n, prompt in enumerate(prompts)]
    ranked = [{"prompt": prompt, "chosen": GOOD, "rejected": BAD} for prompt in prompts]
    for name, rows in (("d", shown), ("r", ranked)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    recipe = {
        "base": str(folder / "base"),
        "template": "dialogue",
        "stages": ["sft", "ppo"],
        "data": {
            "demonstrations": str(folder / "d.jsonl"),
            "rankings": str(folder / "r.jsonl"),
            "prompts": str(folder / "d.jsonl"),
            "held_out": 0.5,
        },
        "adapter": {"rank": 4, "alpha": 8},
        "sft": {"batch": 8, "learning_rate": 1e-2},
        "ppo": {
            "reward": [{"source": url, "judge": {"model": "j"}, "remote": {"backoff": 0.0}}],
            "value": {"init": "sft"},
            "updates": 2,
            "rollouts": 8,
            "max_new_tokens": 6,
        },
        "runtime": {"device": "cpu", "threads": 1},
    }
    return Pipeline.from_recipe(recipe | changes, run_dir=folder / "run")


def test_a_judge_rewards_a_run_through_card_and_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    with rating(by_words) as (url, asked):
        run = make(tmp_path, url)
        run.run()
        card = json.loads((tmp_path / "run/ppo/report_card.json").read_text())
        assert card["accuracy"]["share"] == 1.0 and card["probes"]["empty response"]["share"] == 1.0
        steps = [json.loads(line) for line in (tmp_path / "run/ppo/metrics.jsonl").read_text().splitlines()]
        names = [key for key in steps[0] if key.startswith("reward/")]
        assert len(steps) == 2 and names and all(1 <= step[name] <= 10 for step in steps for name in names)
        told = capsys.readouterr()
        assert (told.out + told.err).count("judge j: ") == 2  # of the card and of PPO
        count = len(asked)
        run.run(fresh=True)  # the same bytes are sampled: every rating is known
        assert len(asked) == count
        assert list((tmp_path / "cache/ratings").glob("*.jsonl"))


def test_a_judge_that_prefers_the_worse_stops_at_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))

    def wrongly(question: str) -> str:
        return "[[1]]" if "w5" in question.split("[Response]")[1] else "[[9]]"

    with rating(wrongly) as (url, _), pytest.raises(GateStopped):
        make(tmp_path, url).run()
    assert not (tmp_path / "run/ppo/manifest.json").exists()
