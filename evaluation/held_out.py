"""Answers of several systems to the same held-out prompts, with the same draws and limits, scored by the same path.

It knows the shared base's roles but not how they were trained; statistics are in ``results``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.errors import UserError
from data.functions import UserFunction
from data.records import Prompt
from data.template import Renderer
from evaluation.results import SystemAnswers
from evaluation.settings import EvaluationConfig
from models.fast_engine import FastEngine
from models.generation import Generated, generate, uniforms_for
from models.logprobs import make_rows
from models.seeds import generator
from models.shared_base import SharedBase
from reward.model import RewardModel, Samples
from stages.rollout import micro_batches, policy_pass

ROLES = {"base": "base", "sft": "reference", "ppo": "policy"}


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Everything that stays the same from system to system."""

    base: SharedBase
    renderer: Renderer
    config: EvaluationConfig
    prompts: Sequence[Prompt]  # one entry a sample: prompts are repeated for several samples each
    max_new_tokens: int
    seed: int
    reward: RewardModel | None = None
    gold: UserFunction | None = None
    advance: Callable[[str], None] = lambda _: None

    def run(self, system: str, decoding: str) -> SystemAnswers:
        """Sample (or decode greedily) and score one system.

        Args:
            system: ``base``, ``sft``, ``ppo``, any role of the base, or ``best_of_N``.
            decoding: ``sampled`` or ``greedy``.
        """
        if system.startswith("best_of_"):
            kl: list[float] | None
            made, kl = self._best_of(int(system.removeprefix("best_of_")))
        else:
            role = ROLES.get(system, system)
            made = self._generate(role, "greedy" if decoding == "greedy" else "0")
            kl = self._kl(role, made) if decoding == "sampled" and "reference" in self.base.roles else None
        samples = self._samples(made)
        self.advance(f"{system} {decoding}")
        return SystemAnswers(
            name=system,
            decoding="greedy" if decoding == "greedy" else "sampled",
            prompts=[p.text for p in self.prompts],
            categories=[p.category for p in self.prompts],
            groups=["\n".join(f"{m.role}: {m.content}" for m in p.messages) for p in self.prompts],
            responses=list(samples.texts),
            token_ids=made.ids,
            finished=made.finished,
            reward=self.reward.score(samples).tolist() if self.reward else None,
            gold=self._gold(samples.texts, made.finished),
            kl=kl,
        )

    def _gold(self, texts: Sequence[str], finished: Sequence[bool]) -> list[float] | None:
        if self.gold is None:
            return None
        return self.gold.call(
            [p.text for p in self.prompts],
            list(texts),
            finished=list(finished),
            messages=[[m.as_dict() for m in p.messages] for p in self.prompts],
            categories=[p.category for p in self.prompts],
        )

    def judge(self, texts: Sequence[str]) -> list[float]:
        """Scores of arbitrary answers to the prompts, by gold or else the reward model: for the baselines."""
        finished = [True] * len(texts)
        gold = self._gold(texts, finished)
        if gold is not None:
            return gold
        assert self.reward is not None
        return self.reward.score_texts([p.messages for p in self.prompts], texts, finished).tolist()

    @property
    def queries(self) -> list[list[int]]:
        return [self.renderer.prompt_ids(p.messages) for p in self.prompts]

    def _generate(self, role: str, stream: str) -> Generated:
        draws: Tensor | None = None
        if stream != "greedy":
            g = generator(self.seed, f"evaluation/{stream}")
            draws = uniforms_for(len(self.prompts), self.max_new_tokens, g)
        with self.base.role(role) as view:
            return generate(
                FastEngine(),
                view,
                self.queries,
                uniforms=draws,
                batch=self.config.batch,
                max_new_tokens=self.max_new_tokens,
                temperature=self.config.temperature,
                stop_ids=self.renderer.stop_ids,
                pad_id=self.renderer.pad_id,
            )

    def _best_of(self, n: int) -> tuple[Generated, list[float]]:
        """Best of n SFT samples by the reward model, the first sample being the one that ``sft`` gives.

        Its KL to the reference is at most log n - (n - 1) / n (Stiennon et al. 2020; Beirami et al. 2024).
        """
        if self.reward is None:
            raise UserError("evaluation.systems: best_of_N needs a reward model; leave it out of the systems")
        tries = [self._generate("reference", str(i)) for i in range(n)]
        scores = torch.stack([self.reward.score(self._samples(made)) for made in tries])
        best = scores.argmax(0).tolist()
        chosen = Generated(
            ids=[tries[t].ids[i] for i, t in enumerate(best)],
            finished=[tries[t].finished[i] for i, t in enumerate(best)],
        )
        return chosen, [math.log(n) - (n - 1) / n] * len(best)

    def _samples(self, made: Generated) -> Samples:
        return Samples(
            prompts=self.prompts,
            queries=self.queries,
            responses=made.ids,
            texts=[self.renderer.text(ids) for ids in made.ids],
            finished=made.finished,
        )

    @torch.no_grad()
    def _kl(self, role: str, made: Generated) -> list[float]:
        """Log-ratio to the reference summed over each response, in nats: an unbiased estimate of the sequence KL."""
        out = [0.0] * len(made.ids)
        queries = self.queries
        for index in micro_batches([len(r) for r in made.ids], self.config.batch):
            rows = make_rows(
                [queries[i] for i in index], [made.ids[i] for i in index], self.renderer.pad_id, self.base.device
            )
            with self.base.role(role) as view:
                mine, _ = policy_pass(view, rows, self.config.temperature)
            with self.base.role("reference") as view:
                theirs, _ = policy_pass(view, rows, self.config.temperature)
            for i, part in zip(index, (mine - theirs).split(rows.response_lengths.tolist()), strict=True):
                out[i] = part.sum().item()
        return out
