"""A chat model that rates one response at a time, behind an OpenAI-compatible endpoint, as a term of the reward.

Ratings are kept on disk as they come, by everything that they depend on, so that a resumed stage, a card made again or
another run asks nothing twice. Single-answer grading as in Zheng et al. 2023 (arXiv 2306.05685).
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.common.http_client import Server, Unusable
from data.common.redaction import printable
from data.storage.folders import RATINGS, cache_root
from reward.model import Samples
from reward.settings import RatingConfig, RemoteConfig

RATING = re.compile(r"\[\[\s*(-?\d+(?:\.\d+)?)\s*\]\]")
CUT = "\n[The response was cut off here]"


@dataclass(slots=True)
class Counts:
    """What a judge was asked since the term was made, in whole questions and tokens."""

    questions: int = 0
    asked: int = 0  # those that were not on disk
    prompt_tokens: int = 0
    completion_tokens: int = 0


class JudgeReward:
    """Ratings of responses by a chat model, one question each, several at once.

    Args:
        url: of the API, such as ``http://localhost:8000/v1``; ``/chat/completions`` is added.
        rating: model, instruction and scale.
        how: time-outs, retries, concurrency and token.
        folder: where ratings are kept; None: in the cache (``$TRIVET_CACHE``).

    Raises:
        UserError: (at once) an address or token that cannot be used.
        RemoteError: (when called) no rating after all retries; those that came before are kept.
    """

    def __init__(self, url: str, rating: RatingConfig, how: RemoteConfig, folder: Path | None = None) -> None:
        self.rating, self.counts = rating, Counts()
        self.server = Server.of(url.rstrip("/") + "/chat/completions", how)
        described = json.dumps([self.server.url, rating.model_dump(mode="json")], sort_keys=True)
        name = hashlib.sha256(described.encode()).hexdigest()[:24]
        self.file = (folder or cache_root(RATINGS)) / f"{name}.jsonl"
        self._lock, self._known = threading.Lock(), self._read()

    def __call__(self, samples: Samples) -> Tensor:
        rows = zip(samples.prompts, samples.texts, samples.finished, strict=True)
        questions = [
            self.question("\n\n".join(f"{m.role}: {m.content}" for m in prompt.messages), text, bool(finished))
            for prompt, text, finished in rows
        ]
        self.counts.questions += len(questions)
        new = [one for one in dict.fromkeys(questions) if _hash(one) not in self._known]
        self.server.post_all(new, self._ask)
        return torch.tensor([self._known[_hash(one)] for one in questions], dtype=torch.float32)

    @staticmethod
    def question(conversation: str, response: str, finished: bool) -> str:
        """What the judge is shown of a response."""
        shown = response if finished else response + CUT
        return f"[Conversation]\n{conversation}\n\n[Response]\n{shown}\n[End of the response]"

    def summary(self) -> str:
        """What was asked, in a sentence."""
        c = self.counts
        return (
            f"judge {self.rating.model}: {c.asked:,} of {c.questions:,} ratings asked for, the others were known; "
            f"{c.prompt_tokens:,} tokens read and {c.completion_tokens:,} written"
        )

    def _ask(self, question: str) -> None:
        r = self.rating
        messages = [{"role": "system", "content": r.instruction}, {"role": "user", "content": question}]
        body = {"model": r.model, "messages": messages, "temperature": r.temperature, "max_tokens": r.max_tokens}
        value, usage = self.server.post(body, self._rating)
        row = json.dumps({"question": _hash(question), "rating": value})
        with self._lock:
            self._known[_hash(question)] = value
            self.counts.asked += 1
            self.counts.prompt_tokens += usage[0]
            self.counts.completion_tokens += usage[1]
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(row + "\n")

    def _rating(self, answer: Any) -> tuple[float, tuple[int, int]]:
        """The last number in double brackets of a reply, and its tokens.

        Raises:
            Unusable: there is none, it is off the scale, or this is no chat completion.
        """
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise Unusable(f"no chat completion: {printable(json.dumps(answer))[:160]}") from None
        found = RATING.findall(text) if isinstance(text, str) else []
        low, high = self.rating.lowest, self.rating.highest
        if not found:
            raise Unusable(
                f"no rating such as [[{high:g}]] in its reply (is max_tokens too small?): {str(text)[-80:]!r}"
            )
        value = float(found[-1])
        if not low <= value <= high:
            raise Unusable(f"its rating {value:g} is not between {low:g} and {high:g}")
        usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
        counted = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        tokens = [n if isinstance(n, int) and n >= 0 else 0 for n in counted]
        return value, (tokens[0], tokens[1])

    def _read(self) -> dict[str, float]:
        """Ratings by the hash of the question."""
        known: dict[str, float] = {}
        if not self.file.is_file():
            return known
        for line in self.file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                value = float(row["rating"])
            except (ValueError, KeyError, TypeError):  # a line that was being written when the process ended
                continue
            if self.rating.lowest <= value <= self.rating.highest:
                known[str(row["question"])] = value
        return known


def _hash(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()


def summaries(sources: Sequence[Any]) -> list[str]:
    """What the judges among the terms of a reward were asked."""
    return [source.summary() for source in sources if isinstance(source, JudgeReward)]
