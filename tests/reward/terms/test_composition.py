"""Rules, remote scorers, clipping and running means by hand; the example server; every part logged apart."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from data.common import regex_timeout as patterns
from data.common.errors import StageError, UserError
from data.common.http_client import RemoteError
from data.records import Message, Prompt
from evaluation.prompting import Asking
from evaluation.settings import PromptedConfig
from reward.model import Samples
from reward.settings import RemoteConfig, RewardPart
from reward.terms.composition import RewardTransform, Running, WeightedSum, compose
from reward.terms.remote import RemoteReward, classes_in, plain, scores_in
from reward.terms.rules import LengthReward, RegexReward
from reward.terms.server import serving

PROMPT = Prompt(messages=(Message(role="user", content="be kind"),), group="g")


def samples_of(*texts: str, finished: list[bool] | None = None) -> Samples:
    return Samples(
        prompts=[PROMPT] * len(texts),
        queries=[[1]] * len(texts),
        responses=[[7] * len(t.split()) + [2] for t in texts],
        texts=list(texts),
        finished=finished or [True] * len(texts),
    )


def test_a_regular_expression_is_found_or_counted():
    found = samples_of("please do , please", "do", "")
    assert RegexReward(r"\bplease\b")(found).tolist() == [1.0, 0.0, 0.0]
    assert RegexReward(r"\bplease\b", count=True)(found).tolist() == [2.0, 0.0, 0.0]


def test_a_pattern_that_backtracks_for_ever_ends_in_a_word(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.1)
    with pytest.raises(StageError, match=r"took more than 0\.1 seconds in a text of 101 characters.*\(a\+\)\+"):
        RegexReward("(a|aa)+$")(samples_of("a", "a" * 100 + "!"))
    asked = Asking(PromptedConfig(answer="((?:a|aa)+)$", until=()))
    assert asked.final("so aaa", True).text == "aaa"
    with pytest.raises(StageError, match=r"evaluation\.prompted, answer"):
        asked.final("a" * 100 + "!", True)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [(r"a{2,3}", "aaaa a"), (r"x\{e\}", "x{e}"), (r"(?i)[^\W\d_]+", "Über 3"), (r"(?<=a)b|^c", "ab\nc"), ("", "ab"),
     (r"(\w)\1", "hello book"), (r"\bdas\b.*?$", "was das\nist"), (r"(?P<n>a)|b", "bab"), (r"[]a]+", "]a]")],
)  # fmt: skip
def test_patterns_mean_what_they_mean_to_python(pattern, text):
    found = [m.span() for m in patterns.occurrences(pattern, text, "here")]
    assert found == [m.span() for m in re.finditer(pattern, text)]


def test_length_costs_one_a_unit_outside_the_bounds():
    found = samples_of("a b c", "", "a", finished=[True, True, False])
    assert LengthReward(1, 2)(found).tolist() == [-1.0, -1.0, 0.0]
    assert LengthReward(min_length=4, unit="characters")(found).tolist() == [0.0, -4.0, -3.0]
    assert LengthReward(max_length=1, unit="tokens")(found).tolist() == [
        -2.0,
        0.0,
        -1.0,
    ]  # a stop token only if it ended


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"source": "regex"}, "needs a `pattern`"),
        ({"source": "regex", "pattern": "("}, "no regular expression"),
        ({"source": "regex", "pattern": "x{e}"}, r"write \\{e for the characters {e"),
        ({"source": "length"}, "min_length"),
        ({"source": "length", "min_length": 3, "max_length": 2}, "exchange them"),
        ({"source": "model", "pattern": "x"}, "'pattern' belongs to source: regex"),
        ({"source": "f.py:f", "remote": {"batch": 3}}, "belongs to an address"),
        ({"source": "http://h/", "remote": {"token_env": "not a name"}}, "pattern"),
    ],
)
def test_a_part_that_makes_no_sense_is_refused(part, said):
    with pytest.raises(ValidationError, match=said):
        RewardPart(**part)


def test_running_means_are_those_of_all_scores_so_far():
    rng, running, seen = np.random.default_rng(0), Running(), []
    for size in (1, 4, 7, 1):
        batch = rng.normal(3.0, 2.0, size)
        seen += batch.tolist()
        found = running(torch.tensor(batch, dtype=torch.float64))
        score_std = np.std(seen) if len(seen) > 1 else 1.0
        np.testing.assert_allclose(found.numpy(), (batch - np.mean(seen)) / score_std, rtol=1e-12, atol=1e-12)
    assert Running()(torch.tensor([2.0, 2.0])).tolist() == [0.0, 0.0]


def test_two_processes_share_their_running_means():
    """Each process's sums are added up by ``reduce``: here the other one is simulated."""
    mine, other = [1.0, 5.0], [3.0, 11.0, 4.0]
    everything, mean = np.array(mine + other), np.mean(mine + other)
    theirs = iter([torch.tensor([3.0, sum(other)]), torch.tensor(sum((x - mean) ** 2 for x in other))])
    found = Running(lambda own: own + next(theirs).double())(torch.tensor(mine, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), (np.array(mine) - mean) / everything.std(), rtol=1e-12)


def test_parts_are_normalised_then_clipped_then_weighed_and_each_is_kept_apart():
    parts: list = [("a", 2.0, lambda s: torch.tensor([0.0, 10.0])), ("b", -1.0, lambda s: torch.tensor([1.0, 2.0]))]
    reward = WeightedSum(parts, {"a": RewardTransform(Running(), clip=0.5)})
    total, logged = reward(samples_of("x", "y"))
    assert total.tolist() == [2.0 * -0.5 - 1.0, 2.0 * 0.5 - 2.0]
    assert {k: v.tolist() for k, v in logged.items()} == {
        "a": [0.0, 10.0], "b": [1.0, 2.0], "a/transformed": [-0.5, 0.5],
    }  # fmt: skip


def test_a_part_that_fails_leaves_running_means_as_they_were():
    def fails(_):
        raise RemoteError("dead")

    reward = WeightedSum([("a", 1.0, lambda s: torch.ones(1)), ("b", 1.0, fails)], {"a": RewardTransform(Running())})
    with pytest.raises(RemoteError):
        reward(samples_of("x"))
    assert reward.state["a"].tolist() == [0.0, 0.0, 0.0]


def test_names_tell_parts_apart(tmp_path):
    twice = [RewardPart(source="regex", pattern="a"), RewardPart(source="regex", pattern="b")]
    with pytest.raises(UserError, match="'regex' is listed twice"):
        compose(twice, None, tmp_path)
    twice[1] = RewardPart(source="regex", pattern="b", name="second", clip=0.5, weight=3)
    total, logged = compose(twice, None, tmp_path)(samples_of("b"))
    assert total.tolist() == [1.5] and set(logged) == {"regex", "second", "second/transformed"}


# -- remote ----------------------------------------------------------------------------------------------------------


def lengths(rows) -> list[float]:
    return [float(len(r["completion"])) + 100 * (not r["finished"]) for r in rows]


@pytest.mark.parametrize(("protocol", "path"), [("trivet", ""), ("classify", "classify")])
def test_the_example_server_gives_the_scores_of_its_scorer_in_order(protocol, path):
    texts = ["x" * n for n in (3, 1, 4, 1, 5, 9, 2)]
    with serving(lengths) as address:
        ask = RemoteReward(address + path, RemoteConfig(batch=2, concurrency=3, protocol=protocol))
        found = ask(samples_of(*texts))
    assert found.tolist() == [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0] and found.dtype == torch.float32


def test_the_example_server_says_what_it_was_told_wrongly():
    def asked(path, body, **headers):
        headers = {"Content-Type": "application/json"} | headers
        request = urllib.request.Request(address + path, json.dumps(body).encode(), headers)
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request)
        return error.value.code, error.value.read().decode()

    with serving(lengths) as address:
        assert asked("", {"rows": [{"prompt": "x"}]}) == (400, '{"error": "row 0 is no object with a `completion`"}')
        assert asked("other", {})[0] == 404
        assert asked("", {"rows": []}, Host="evil.example")[0] == 403
        assert asked("", {"rows": [{"completion": "x", "finished": 1}]})[0] == 400
        for message in ({"role": "wizard", "content": "x"}, {"role": "user", "content": 3}, {"role": "user"}, "x"):
            code, said = asked("", {"rows": [{"completion": "x", "messages": [message]}]})
            assert code == 400 and "row 0: a message is no object with a role (user, assistant, system, tool)" in said
        request = urllib.request.Request(address, b'{"rows": [', {"Content-Type": "application/json"}, method="POST")
        with pytest.raises(urllib.error.HTTPError, match="400") as error:
            urllib.request.urlopen(request)
        assert json.loads(error.value.read())["error"].startswith("the request: damaged (not JSON")
        with pytest.raises(urllib.error.HTTPError, match="404") as error:
            urllib.request.urlopen(urllib.request.Request(address, method="PUT"))
        assert "there is POST /" in json.loads(error.value.read())["error"]


def test_a_scorer_that_fails_is_the_servers_failure_and_may_pass():
    """500, which a client asks again about; 400 is for requests that will never do."""
    answers = iter([UserError("no luck"), KeyError("x"), [2.0]])

    def scorer(rows):
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    with serving(scorer) as address:
        ask = RemoteReward(address, RemoteConfig(retries=2, backoff=0.0))
        assert ask(samples_of("a")).tolist() == [2.0]


def test_a_token_that_is_not_there_is_refused_before_training(monkeypatch, tmp_path):
    monkeypatch.delenv("JUDGE", raising=False)
    part = RewardPart(source="https://scores.example/", remote=RemoteConfig(token_env="JUDGE"))
    with pytest.raises(UserError, match="JUDGE is not set"):
        compose([part], None, tmp_path)


@pytest.mark.parametrize(
    "answer",
    [*({"scores": x} for x in ([1.0], [1.0, float("nan")], [1.0, "2"], [1.0, True])), [1.0, 2.0], {}],
)
def test_scores_that_cannot_be_used(answer):
    with pytest.raises(Exception, match=r"scores|finite"):
        scores_in(answer, 2)


def test_a_classifiers_rows_are_put_in_order_and_one_class_is_taken():
    answer = {"data": [{"index": 1, "probs": [0.1, 0.9]}, {"index": 0, "probs": [0.6, 0.4]}]}
    assert classes_in(answer, 2, 1) == [0.4, 0.9]
    assert classes_in({"data": [{"data": [2.5]}]}, 1, 0) == [2.5]
    for bad in ({"data": [{"probs": [1.0]}]}, {"data": 3}, {"data": [{"index": "a", "probs": [1, 2]}]}):
        with pytest.raises(Exception, match=r"data|probs|index"):
            classes_in(bad, 1, 1)
    assert plain({"messages": [{"role": "user", "content": "hi"}], "completion": "ho"}) == "hi\n\nho"


@pytest.mark.parametrize("value", [1e39, -1e39, 1e25, float("nan")], ids=str)
def test_a_score_that_fp32_cannot_compute_with_is_refused_by_name(value):
    """1e39 is infinite in fp32, and the square of 1e25 as well: every step would be skipped."""
    made = WeightedSum([("mine", 1.0, lambda samples: torch.tensor([0.0, value]))])
    with pytest.raises(UserError, match=r"reward 'mine': the score of response 1 is .*Scale it down"):
        made.scores(samples_of("a", "b"))


def test_large_scores_pass_where_a_weight_or_a_clip_makes_them_small():
    large = torch.tensor([0.0, 1e25])
    weighted = WeightedSum([("mine", 1e-24, lambda samples: large)])
    assert weighted(samples_of("a", "b"))[0].tolist() == pytest.approx([0.0, 10.0])
    clipped = WeightedSum([("mine", 1.0, lambda samples: large)], {"mine": RewardTransform(clip=3.0)})
    assert clipped(samples_of("a", "b"))[0].tolist() == [0.0, 3.0]
    infinite = WeightedSum([("mine", 1.0, lambda samples: large * 1e30)], {"mine": RewardTransform(clip=3.0)})
    with pytest.raises(UserError, match="reward 'mine'"):
        infinite.scores(samples_of("a", "b"))
