"""Chat judges before a tiny local server: both orders, ties, kept verdicts, bad replies, limits, adversaries."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data.common.errors import UserError
from data.common.http_client import RemoteError
from evaluation.judge_table import JUDGES, Judge
from evaluation.judges.judging import judged_in_pairs
from evaluation.judges.pair_judge import PairJudge
from evaluation.settings import JudgeConfig
from pipelines.loading.load import load_recipe
from tests.support.answers import responses_of
from tests.support.recipes import RECIPE

Reply = Callable[[str, str, str, int], Any]  # conversation, A, B, number of the request -> content, or (status, body)
SHOWN = re.compile(
    r"\[Conversation\]\n(.*)\n\n\[Answer A\]\n(.*)\n\[End of A\]\n\n\[Answer B\]\n(.*)\n\[End of B\]", re.S
)


@contextmanager
def serving(reply: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OpenAI-compatible endpoint; yields its address and the requests that came."""
    requests: list[dict[str, Any]] = []
    lock, busy = threading.Lock(), [0, 0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                busy[0] += 1
                busy[1] = max(busy)
                requests.append(body | {"path": self.path, "key": self.headers.get("Authorization"), "busy": busy})
                number = len(requests)
            found = SHOWN.fullmatch(body["messages"][-1]["content"])
            assert found is not None
            made = reply(found[1], found[2], found[3], number)
            status, content, headers = made if isinstance(made, tuple) else (200, made, {})
            message = {"choices": [{"message": {"role": "assistant", "content": content}}]}
            usage = {"usage": {"prompt_tokens": 100, "completion_tokens": 7}}
            text = content if isinstance(content, bytes) else json.dumps(message | usage).encode()
            with lock:
                busy[0] -= 1
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(text))}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", requests
    finally:
        server.shutdown()
        server.server_close()


def longer(_: str, a: str, b: str, __: int) -> str:
    """A judge of substance: [[A]] in the reason does not count, the last verdict does."""
    return "Not [[A]] at first sight. " + ("[[A]]" if len(a) > len(b) else "[[B]]" if len(b) > len(a) else "[[C]]")


def judge(url: str, folder: Path | None = None, **changes: Any) -> PairJudge:
    waited: list[float] = []
    made = PairJudge(config=JudgeConfig(name="j", url=url, model="m", **changes), folder=folder, sleep=waited.append)
    made.waited = waited  # type: ignore[attr-defined]
    return made


def test_both_orders_are_asked_and_agree(tmp_path: Path):
    with serving(longer) as (url, requests):
        j = judge(url, tmp_path)
        assert j.outcomes(["p", "p", "q"], ["long one", "x", "same "], ["short", "longer", "same"]) == [1.0, 0.0, 0.5]
    assert len(requests) == 4 and {r["path"] for r in requests} == {"/v1/chat/completions"}
    assert {r["model"] for r in requests} == {"m"} and {r["temperature"] for r in requests} == {0.0}
    found = j.tally.as_dict()
    assert found["pairs"] == 3 and found["flip_rate"] == 0 and found["questions"] == 4
    assert found["tokens"] == {"prompt": 400, "completion": 28}


def test_a_judge_that_goes_by_the_order_ties_and_is_counted():
    with serving(lambda *_: "[[A]]") as (url, _):
        j = judge(url)
        assert j.outcomes(["p", "q"], ["a", "b"], ["c", "d"]) == [0.5, 0.5]
        assert j.tally.as_dict()["flip_rate"] == 1.0
    with serving(lambda p, a, b, n: "[[A]]" if a == "best" else "[[C]]") as (url, _):
        assert judge(url).outcomes(["p"], ["best"], ["c"]) == [0.5]  # a tie in one order is no win


def test_verdicts_are_kept_and_not_asked_again(tmp_path: Path):
    with serving(longer) as (url, requests):
        judge(url, tmp_path).outcomes(["p"], ["long"], ["s"])
        with (tmp_path / "j.jsonl").open("a") as file:
            file.write('{"key": "cut off')
        again = judge(url, tmp_path)
        assert again.outcomes(["p", "p2"], ["long", "long"], ["s", "s"]) == [1.0, 1.0]
        assert len(requests) == 4 and again.tally.asked == 2 and again.tally.questions == 4
        assert again.tally.prompt_tokens == 400  # what is known costs as it did
        judge(url, tmp_path, instruction="Another. [[A]] [[B]] [[C]]").outcomes(["p"], ["long"], ["s"])
        assert len(requests) == 6


def test_replies_without_a_verdict_are_ties_and_counted():
    with serving(lambda *_: "I cannot say.") as (url, _):
        j = judge(url)
        assert j.outcomes(["p"], ["a"], ["b"]) == [0.5] and j.tally.as_dict()["unparsed"] == 1.0


@pytest.mark.parametrize(
    "bad",
    [(429, b"slow", {"Retry-After": "3"}), (500, b"oh", {}), (200, b"<html>", {}), (200, b"{}", {}), (200, b"", {})],
)
def test_a_server_that_fails_for_a_while_is_asked_again(bad: Any):
    with serving(lambda p, a, b, n: bad if n <= 2 else longer(p, a, b, n)) as (url, requests):
        j = judge(url, concurrency=1)
        assert j.outcomes(["p"], ["long"], ["s"]) == [1.0] and len(requests) == 4
    assert len(j.waited) == 2 and (bad[0] != 429 or max(j.waited) == 3)  # type: ignore[attr-defined]


def test_a_server_that_stays_wrong_ends_it_and_what_was_said_is_kept(tmp_path: Path):
    def reply(p: str, a: str, b: str, n: int) -> Any:
        return longer(p, a, b, n) if n <= 2 else (503, b"down", {})

    with serving(reply) as (url, _), pytest.raises(RemoteError, match="503"):
        judge(url, tmp_path, concurrency=1, retries=1).outcomes(["p", "q"], ["long", "long"], ["s", "s"])
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 2


def test_a_slow_server_runs_into_the_time_limit():
    gate = threading.Event()
    with serving(lambda *_: gate.wait(5) and "[[A]]") as (url, _):
        with pytest.raises(RemoteError, match=r"within 0\.2 s"):
            judge(url, timeout=0.2, retries=0, concurrency=1).outcomes(["p"], ["a"], ["b"])
        gate.set()


def test_questions_at_one_time_and_a_minute_are_bounded():
    clock = [0.0]
    with serving(longer) as (url, requests):
        j = judge(url, concurrency=2, requests_per_minute=30)
        j.clock = lambda: clock[0]
        j.outcomes([f"p{i}" for i in range(10)], ["long"] * 10, ["s"] * 10)
    assert sorted(j.waited) == pytest.approx([2.0 * i for i in range(1, 20)])  # type: ignore[attr-defined]
    assert requests[0]["busy"][1] <= 2


def test_the_key_comes_from_the_environment_and_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="environment variable JUDGE_KEY is not set"):
        judge("http://localhost:1/v1", token_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "very-private-123")
    refused: tuple[int, bytes, dict[str, str]] = (401, b"bad key very-private-123", {})
    with serving(lambda *_: refused) as (url, requests), pytest.raises(RemoteError) as caught:
        judge(url, tmp_path, token_env="JUDGE_KEY").outcomes(["p"], ["a"], ["b"])
    assert "very-private" not in str(caught.value) and requests[0]["key"] == "Bearer very-private-123"
    with pytest.raises(UserError, match="http"):
        judge("localhost:8000/v1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{name: j, url: 'http://localhost:1/v1'}", "a judge of kind 'chat' needs `model`"),
        ("{name: j}", "a judge of kind 'chat' needs `url` and `model`"),
        ("{name: j, kind: chatt, url: u, model: m}", "kind: must be one of 'chat', not 'chatt'. Did you mean 'chat'"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_with_its_key(settings: str, message: str):
    with pytest.raises(UserError) as caught:
        load_recipe(RECIPE, [f"evaluation.judges=[{settings}]"])
    assert message in str(caught.value) and "evaluation.judges" in str(caught.value)


def test_a_kinds_own_settings_belong_to_it_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(JUDGES, "other", Judge(make=lambda config, folder, say: None))
    JudgeConfig(name="j", kind="other", prompts=3)
    with pytest.raises(ValueError, match="'retries' belongs to kind 'chat', not to 'other': remove it"):
        JudgeConfig(name="j", kind="other", retries=1)


def test_systems_before_a_judge_with_adversaries_beside_them(tmp_path: Path):
    long = [f"a much longer answer of {i}, word upon word upon word" for i in range(60)]
    systems = [responses_of("sft"), responses_of("ppo", responses=long), responses_of("sft", decoding="greedy")]
    with serving(lambda p, a, b, n: longer(p, a, b, n)) as (url, _):
        config = JudgeConfig(name="by-length", url=url, model="m", prompts=40)
        phases: dict[str, list[int]] = {}

        def phase(name: str, total: int) -> Callable[[int], None]:
            phases[name] = [total]
            return phases[name].append

        found = judged_in_pairs([config], systems, "sft", folder=tmp_path, resamples=200, phase=phase)
    assert phases["judge by-length on ppo"][0] == 80 and len(phases) == 5  # two orders of 40 rows; four adversaries
    assert all(total == sum(told) for total, *told in phases.values())
    assert len(phases["judge by-length on ppo"]) > 20  # told while it goes on
    (c,) = found["comparisons"]
    assert (c["a"], c["b"], c["by"], c["n"], c["verdict"]) == ("ppo", "sft", "by-length", 40, "better")
    assert c["wins"] == 40 and c["p_value_holm"] == c["p_value"] and "length_controlled" in c
    about = found["judges"]["by-length"]
    assert about["reliable"] is False and about["adversaries"]["longest_answer"]["verdict"] == "better"
    assert about["adversaries"]["empty_answer"]["win_rate"] == 0 and about["adversaries"]["empty_answer"]["n"] == 32
    told = "The judge 'by-length' is unreliable: it prefers the longest response, whatever the prompt, to sft's."
    assert told in found["warnings"]
    json.dumps(found, allow_nan=False)


def test_a_judge_that_no_adversary_beats_is_reliable():
    systems = [responses_of("sft"), responses_of("ppo")]
    real = {r for s in systems for r in s.responses}
    with serving(lambda p, a, b, n: "[[C]]" if (a in real) == (b in real) else "[[A]]" if a in real else "[[B]]") as (
        url,
        _,
    ):
        found = judged_in_pairs([JudgeConfig(name="j", url=url, model="m")], systems, "sft", folder=None, resamples=200)
    about = found["judges"]["j"]
    worst = [a["verdict"] for n, a in about["adversaries"].items() if n != "longest_answer"]
    assert about["reliable"] is True and worst == ["worse"] * 3 and found["warnings"] == []


@pytest.mark.slow
def test_a_judge_that_fails_stops_both_processes_and_the_next_time_goes_on(tmp_path: Path):
    """The main process asks while the other waits for it: neither hangs, and what was answered is asked once."""
    root, up = Path(__file__).parents[3], threading.Event()

    def reply(p: str, a: str, b: str, n: int) -> Any:
        return (503, b"down", {}) if n > 12 and not up.is_set() else longer(p, a, b, n)

    with serving(reply) as (url, requests):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
        command += [str(root / "tests/support/judged_by_two.py"), str(tmp_path), url]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        subprocess.run(command, check=True, capture_output=True, timeout=120, env=env, cwd=root)
        main, other = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
        assert main["world"] == 2 and main["error"] == "RemoteError" and "503" in main["text"]
        assert other["error"] == "StageError" and other["text"] == f"process 0: {main['text']}"
        assert len((tmp_path / "judgements" / "j.jsonl").read_text().splitlines()) == 12
        before = len(requests)
        assert 13 <= before <= 14  # the one that failed, and perhaps one that had begun by then
        up.set()
        subprocess.run(command, check=True, capture_output=True, timeout=120, env=env, cwd=root)
        assert len(requests) - before == 2 * 20 - 12  # two orders of twenty pairs, less those that were known
    main, other = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    assert main == other and "wins" in main
