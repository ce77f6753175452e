"""PTX: the pretraining loss mixed into PPO (Ouyang et al. 2022, "InstructGPT", equation 2).

Every optimizer step adds ``ptx_coef`` times the mean -log p of tokens of documents, or of demonstrations' responses, to
the policy's loss, so that it forgets less of what it knew. Rows are taken from an endless stream of permutations that
knows nothing but its position, so that there is no state to save.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from data.common.errors import UserError
from data.common.patience import each
from data.template import Encoded
from models.backbone.oom_retry import OOMRetry
from models.backbone.seeds import generator
from models.backbone.trained_shards import owners
from models.hub.limits import check_rows
from models.roles.role_view import RoleView
from stages.settings import PPOConfig, SFTConfig
from stages.sft import collate, encode_demonstrations
from stages.stage import StageContext
from stages.training.chunks import chunks, encode
from stages.training.gradient_sums import OrderedSums

Row = tuple[Sequence[int], Sequence[int]]
"""Ids, and labels that are negative where nothing is learnt."""


class PTX:
    """The gradient of the pretraining loss, step by step.

    Args:
        context: of the stage.
        config: PPO's settings.
        rows: what is trained on.
        parameters: the policy's.
    """

    def __init__(
        self, context: StageContext, config: PPOConfig, rows: Sequence[Row], parameters: Sequence[nn.Parameter]
    ) -> None:
        if owners(parameters):
            raise UserError("ppo.ptx_coef: is not for a policy in parts: set runtime.sharding to 'none'")
        self.context, self.rows, self.parameters = context, rows, list(parameters)
        self.coef, self.size = config.ptx_coef, config.micro_batch
        self.batch = config.ptx_batch or config.rollouts // config.minibatches
        self.gradients = OrderedSums(self.parameters, context.processes)
        self.retry = OOMRetry("rows of ppo.ptx_data at once", context.warn_alone, context.processes.together)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def add(self, step: int) -> float:
        """Add the gradient of step number ``step`` to the policy's; the loss, in nats a token, without its weight."""
        processes, rows = self.context.processes, [self.rows[i] for i in self.chosen(step)]
        tokens = max(1, sum(learnt(row) for row in rows))
        before = [p.grad for p in self.parameters]
        wanted = max(1, min(self.size, -(-len(rows) // processes.world_size)))
        cut = [rows[i : i + wanted] for i in range(0, len(rows), wanted)]
        mine = processes.dealt(cut)

        def attempt(size: int) -> Tensor:
            self.gradients.begin(len(cut))
            found = [torch.zeros((), dtype=torch.float64)]
            for part in mine:
                for start in range(0, len(part), size):
                    loss = self.nll(part[start : start + size]) / tokens
                    (self.coef * loss).backward()
                    found.append(loss.detach().cpu().double())
                self.gradients.add()
            return torch.stack(found).sum()

        self.clear()
        total = processes.sum(self.retry.run(attempt, wanted, undo=self.clear))
        self.gradients.finish()
        for p, own in zip(self.parameters, before, strict=True):
            p.grad = own if p.grad is None else p.grad if own is None else own + p.grad
        return float(total)

    def nll(self, rows: Sequence[Row]) -> Tensor:
        """Summed -log p of the rows' tokens under the policy, in nats."""
        context = self.context
        part = [{"input_ids": list(ids), "labels": list(labels)} for ids, labels in rows]
        ids, mask, labels = (t.to(context.base.device) for t in collate(part, context.pad_id).values())
        chosen = labels[:, 1:] >= 0
        where = nn.functional.pad(chosen, (0, 1)).flatten().nonzero().squeeze(1)
        with context.base.role("policy") as entered:
            policy: RoleView = replace(entered, prefix_cache=None, known=None)  # they know the rollout's rows
            logprobs, _ = policy.logprobs(policy.states(ids, mask, where), labels[:, 1:][chosen])
        return -logprobs.sum()

    def clear(self) -> None:
        """Leave no gradient."""
        for p in self.parameters:
            p.grad = None

    def chosen(self, step: int) -> list[int]:
        """Numbers of a step's rows: each row once before any comes again."""
        return [self._number(step * self.batch + i) for i in range(self.batch)]

    def _number(self, position: int) -> int:
        epoch, at = divmod(position, len(self.rows))
        if self._order[0] != epoch:
            g = generator(self.context.seed, "ppo/ptx", epoch)
            self._order = (epoch, torch.randperm(len(self.rows), generator=g))
        return int(self._order[1][at])


def learnt(row: Row) -> int:
    """Tokens of a row that are learnt; a row's first token is predicted by nothing."""
    return sum(label >= 0 for label in row[1][1:])


def ptx_rows(context: StageContext, config: PPOConfig) -> list[Row]:
    """The rows of ``ppo.ptx_data``: documents in chunks, or demonstrations with the responses' tokens as labels.

    Raises:
        UserError: there are none, or they do not fit the base.
    """
    corpus, length = context.corpus, config.ptx_max_tokens
    if config.ptx_data == "documents":
        texts = (d.text for d in each(corpus.documents.train, "cutting into chunks", "documents"))
        cut = [chunk for ids in encode(context.renderer.tokenizer, texts) for chunk in chunks(ids, length)]
        rows: list[Row] = [(ids, ids) for ids in cut if len(ids) > 1]
    else:
        settings: Any = SFTConfig(max_tokens=length)
        found: Sequence[Encoded] = encode_demonstrations(
            context.renderer, corpus.demonstrations.train, settings, "demonstrations of ppo.ptx_data"
        )[0]
        rows = [(row.ids, row.labels) for row in found]
    if not rows:
        raise UserError(f"ppo.ptx_data: there are no {config.ptx_data} to train on: give data.{config.ptx_data}")
    cure = "lower ppo.ptx_max_tokens"
    check_rows(context.base.limits, (ids for ids, _ in rows), f"data.{config.ptx_data}", cure, context.warn)
    return rows
