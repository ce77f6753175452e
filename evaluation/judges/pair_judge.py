"""Chat models as judges, behind any OpenAI-compatible endpoint: which of two responses is better, asked in both orders.

A judge may prefer what stands first (Zheng et al. 2023), so each pair is asked both ways round; where the two verdicts
disagree it is a tie, and how often they do is reported. Every verdict is kept on disk as it comes, so that a second
evaluation, or one that was cut off, asks nothing twice. Knows nothing of systems or models of ours.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data.common.http_client import Server, Unusable
from data.common.redaction import printable
from evaluation.settings import JudgeConfig

Verdict = Literal["A", "B", "C", ""]  # C is a tie, '' a reply without a verdict
UNPARSED = 0.2  # beyond this share of replies without a verdict a judge says too little
_VERDICT = re.compile(r"\[\[([ABC])\]\]")


@dataclass(frozen=True, slots=True)
class Reply:
    """What the judge said of one order, and what it cost."""

    verdict: Verdict
    prompt_tokens: int
    completion_tokens: int


@dataclass(slots=True)
class Tally:
    """Counts over every pair that a judge was shown."""

    pairs: int = 0
    same: int = 0  # equal responses: ties without a question
    flips: int = 0  # the verdict went with the order
    unparsed: int = 0  # replies without a verdict
    questions: int = 0
    asked: int = 0  # those that were not on disk
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Numbers that are the same whether verdicts came from disk or not."""
        judged = self.pairs - self.same
        return {
            "pairs": self.pairs,
            "flip_rate": self.flips / judged if judged else 0.0,
            "unparsed": self.unparsed / self.questions if self.questions else 0.0,
            "questions": self.questions,
            "tokens": {"prompt": self.prompt_tokens, "completion": self.completion_tokens},
        }


@dataclass(kw_only=True)
class PairJudge:
    """A chat model asked which of two responses is better.

    Args:
        config: endpoint, model and instruction.
        folder: where verdicts are kept; None keeps none.
        say: where it says how much it asked.
        clock, sleep: for tests.
        progress: is told of so many more questions, two a row, that are answered or need none.
    """

    config: JudgeConfig
    folder: Path | None = None
    say: Callable[[str], None] = lambda text: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    tally: Tally = field(default_factory=Tally)
    progress: Callable[[int], None] = lambda questions: None

    def __post_init__(self) -> None:
        c = self.config
        self.server = Server(
            url=c.url.rstrip("/") + "/chat/completions",
            timeout=c.timeout,
            retries=c.retries,
            concurrency=c.concurrency,
            token_env=c.token_env,
            sleep=self.sleep,
        )
        self.server.check()
        self._lock, self._next, self._known = threading.Lock(), 0.0, self._read()

    def outcomes(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        """1 where the first response is better in both orders, 0 where the second is, else 1/2; one a row.

        Raises:
            RemoteError: no usable reply after all retries; what was answered before is kept.
        """
        rows = [(p, a, b) for p, a, b in zip(prompts, first, second, strict=True)]
        unlike = [row for row in dict.fromkeys(rows) if row[1].strip() != row[2].strip()]
        asked = [question for p, a, b in unlike for question in ((p, a, b), (p, b, a))]
        self.progress(2 * len(rows) - len(asked))
        replies = dict(zip(asked, self.server.post_all(asked, self._ask, self.progress), strict=True))
        found = {row: self._combined(replies[row], replies[row[0], row[2], row[1]]) for row in unlike}
        self.tally.pairs += len(rows)
        self.tally.same += len(rows) - sum(row in found for row in rows)
        return [found.get(row, 0.5) for row in rows]

    def report(self) -> tuple[dict[str, Any], list[str]]:
        """Endpoint, model and counts of the rows since the last report, and a warning of replies without a verdict."""
        tally, self.tally = self.tally, Tally()
        name = self.config.name
        self.say(f"judge {name}: {tally.asked} of {tally.questions} questions asked, the others were known")
        about = {"model": self.config.model, "url": printable(self.config.url)} | tally.as_dict()
        if about["unparsed"] <= UNPARSED:
            return about, []
        share = f"{about['unparsed']:.0%} of its replies (is max_tokens too small?)"
        return about, [f"The judge '{name}' gave no verdict in {share}"]

    def _combined(self, straight: Reply, swapped: Reply) -> float:
        """Of the first response; the second reply saw it as B."""
        for reply in (straight, swapped):
            self.tally.questions += 1
            self.tally.prompt_tokens += reply.prompt_tokens
            self.tally.completion_tokens += reply.completion_tokens
            self.tally.unparsed += reply.verdict == ""
        verdicts = (straight.verdict, swapped.verdict)
        self.tally.flips += verdicts in (("A", "A"), ("B", "B"))
        return {("A", "B"): 1.0, ("B", "A"): 0.0}.get(verdicts, 0.5)

    # -- one question -----------------------------------------------------------------------------------------------

    def body(self, prompt: str, a: str, b: str) -> dict[str, Any]:
        """The request: instruction, then the two responses between marks."""
        c = self.config
        shown = f"[Conversation]\n{prompt}\n\n[Answer A]\n{a}\n[End of A]\n\n[Answer B]\n{b}\n[End of B]"
        messages = [{"role": "system", "content": c.instruction}, {"role": "user", "content": shown}]
        return {"model": c.model, "messages": messages, "temperature": c.temperature, "max_tokens": c.max_tokens}

    def _ask(self, question: tuple[str, str, str]) -> Reply:
        body = self.body(*question)
        key = hashlib.sha256(json.dumps([self.config.url, body], sort_keys=True).encode()).hexdigest()
        if (known := self._known.get(key)) is not None:
            return known
        self._pace()
        reply = self.server.post(body, _read)
        self._keep(key, reply)
        return reply

    def _pace(self) -> None:
        """At most so many requests a minute, evenly."""
        if self.config.requests_per_minute is None:
            return
        with self._lock:
            now = self.clock()
            wait, self._next = max(0.0, self._next - now), max(now, self._next) + 60 / self.config.requests_per_minute
        if wait:
            self.sleep(wait)

    # -- on disk ----------------------------------------------------------------------------------------------------

    @property
    def _path(self) -> Path | None:
        name = re.sub(r"[^\w.-]", "_", self.config.name)
        return None if self.folder is None else self.folder / f"{name}.jsonl"

    def _read(self) -> dict[str, Reply]:
        known: dict[str, Reply] = {}
        if self._path is None or not self._path.is_file():
            return known
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                known[row["key"]] = Reply(row["verdict"], int(row["prompt_tokens"]), int(row["completion_tokens"]))
            except (ValueError, KeyError, TypeError):  # a line that was being written when the process ended
                continue
        return known

    def _keep(self, key: str, reply: Reply) -> None:
        row = {
            "key": key,
            "verdict": reply.verdict,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
        }
        with self._lock:
            self._known[key] = reply
            self.tally.asked += 1
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


def chat_judge(config: JudgeConfig, folder: Path | None, say: Callable[[str], None]) -> PairJudge:
    """The judge of kind ``chat`` in ``evaluation.judge_table.JUDGES``."""
    return PairJudge(config=config, folder=folder, say=say)


def _read(answer: Any) -> Reply:
    """The verdict of a completion: its last [[A]], [[B]] or [[C]].

    Raises:
        Unusable: not the shape of a chat completion.
    """
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise Unusable(f"no chat completion: {printable(json.dumps(answer))[:160]}") from None
    if not isinstance(text, str):
        raise Unusable(f"the completion's content is {type(text).__name__}, not text")
    usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
    found = _VERDICT.findall(text)
    return Reply(found[-1] if found else "", _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"))


def _count(usage: dict[str, Any], key: str) -> int:
    value = usage.get(key)
    return value if isinstance(value, int) and value >= 0 else 0
