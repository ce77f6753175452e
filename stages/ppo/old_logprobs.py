"""Where PPO's old log-probabilities come from: a pass of the training forward, or the sampler, which saves that pass.

Where both ways run trivet's own arithmetic in fp32 they agree to about 1e-6 nats, and ``auto`` takes the sampler's. It
does not trust in that: a few rows of the first rollout are computed both ways before anything is used, and the first
minibatch of every update, whose policy is still the one that sampled, shows for each of its tokens how far both
differ. What was found is part of a checkpoint, so a run that was interrupted decides as one that was not.

While the policy is the reference bit for bit, as it is before the first step, neither is needed: the reference's pass
is the policy's as well, and a KL of 0 is exactly 0. (Rounding in its place would be all that a reward without
differences leaves, and Adam makes whole steps of it.)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from data.common.errors import UserError
from models.backbone.logprobs import scatter
from models.backbone.trained_shards import same_weights
from models.fast.products import repeatable
from models.fast.weights import can_train
from models.roles.role_view import RoleView
from models.roles.shared_base import SharedBase
from models.sampling.generate import Generated
from stages.ppo.rollout import Rollout, policy_pass
from stages.stage import StageContext

How = Literal["auto", "recompute", "sampler"]
Source = Literal["sampler", "policy", "reference"]
COMPARED = 4  # of the first rollout, computed both ways
TOLERANCE = 1e-4  # nats a token


class OldLogprobs:
    """The choice of one run.

    Args:
        how: ``ppo.old_logprobs``.
        temperature: of the sampler.
        context: the stage's.
    """

    def __init__(self, how: How, temperature: float, context: StageContext) -> None:
        self.how, self.temperature, self.context = how, temperature, context
        self.agree: bool | None = None  # part of the state; None: not compared yet
        self._mismatched: Tensor | None = None  # tokens of the present minibatch

    def source(self, base: SharedBase, rollout: Rollout, made: Generated) -> Source:
        """Whose pass gives this rollout's; with ``"sampler"`` they have been put into it.

        Raises:
            UserError: as ``take``.
        """
        if self.how != "sampler" and is_reference(base):
            return "reference"
        with base.role("policy") as policy:
            return "sampler" if self.take(policy, rollout, made) else "policy"

    def take(self, policy: RoleView, rollout: Rollout, made: Generated) -> bool:
        """Put the sampler's log-probabilities and entropies into the rollout; False where they must be computed.

        Raises:
            UserError: the sampler's are asked for, and the engine gives none.
        """
        if made.logprobs is None or made.entropy is None:
            if self.how == "sampler":
                raise UserError("ppo.old_logprobs: this engine gives no log-probabilities; set 'recompute' or 'auto'")
            return False
        if self.how == "recompute" or (self.how == "auto" and not same_arithmetic(policy)):
            return False
        width = rollout.mask.shape[1]
        rollout.logprobs, rollout.entropy = made.logprobs[:, :width].clone(), made.entropy[:, :width].clone()
        if self.how == "auto" and self.agree is None:
            self.agree = True
            self._judge(self._of_some_rows(policy, rollout))
        return self.how == "sampler" or bool(self.agree)

    def _of_some_rows(self, policy: RoleView, rollout: Rollout) -> float:
        """Tokens of the rollout's longest rows on which sampler and training forward differ."""
        longest = sorted((-len(r), row) for row, r in enumerate(rollout.responses))[:COMPARED]
        rows = rollout.rows(sorted(row for _, row in longest), self.context.pad_id)
        new = scatter(policy_pass(policy, rows, self.temperature)[0], rows.response_lengths, rollout.mask.shape[1])
        return mismatched(new, rollout.logprobs[rows.numbers], rollout.mask[rows.numbers]).item()

    def compare(self, new: Tensor, old: Tensor, mask: Tensor) -> None:
        """Count the tokens (B, R) of a micro-batch on which training forward and sampler differ."""
        if self.agree:
            found = mismatched(new.detach(), old, mask).float()
            self._mismatched = found if self._mismatched is None else self._mismatched + found

    def conclude(self) -> None:
        """Judge by what was counted in all micro-batches of all processes; every process calls it alike."""
        if self.agree:
            found = torch.zeros((), device=self.context.base.device) if self._mismatched is None else self._mismatched
            self._judge(self.context.processes.sum(found).item())
        self.forget()

    def forget(self) -> None:
        """Leave nothing of comparisons that were begun."""
        self._mismatched = None

    def _judge(self, tokens: float) -> None:
        """Any token on which both ways differ, and ``auto`` gives the sampler's log-probabilities up for good."""
        if tokens and self.agree:
            self.agree = False
            self.context.warn(
                f"the sampler's log-probabilities differ from those of the training forward by more than {TOLERANCE:g} "
                f"nats on {tokens:.0f} tokens; they are recomputed from now on, as with ppo.old_logprobs: recompute"
            )


def is_reference(base: SharedBase) -> bool:
    """Whether the policy's weights are those of the reference, bit for bit."""
    kinds = [base.adapter_settings(name) for name in ("policy", "reference")]
    own, other = (base.parameters_of(name) for name in ("policy", "reference"))
    return kinds[0] == kinds[1] and len(own) == len(other) and same_weights(own, other)


def same_arithmetic(policy: RoleView) -> bool:
    """Whether sampling and training both read this role's weights by the fast path, with fp32 products."""
    decoder = policy.decoder()
    fp32 = decoder is not None and decoder.norm.dtype == torch.float32 and repeatable(decoder)
    return decoder is not None and fp32 and can_train(decoder)


def mismatched(new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    """How many real tokens (B, R) differ by more than ``TOLERANCE``; NaN counts."""
    return (~((new - old).abs() <= TOLERANCE) & mask).sum()
