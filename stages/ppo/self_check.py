"""Checks of a run before the first update: seconds that find what would otherwise spoil it silently.

Nothing here takes noise from anybody's generator, takes a step or leaves a gradient behind. The checks use the very
paths that training uses; where one fails, the message names the likely cause and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.common.errors import UserError
from models.backbone.artifacts import read_artifact
from models.backbone.forward import set_gradient_checkpointing
from models.backbone.logprobs import make_rows
from models.backbone.seeds import generator
from models.roles.role_view import RoleView
from models.sampling.generate import generate, sampling_noise
from reward.model import RewardModel
from stages.ppo.rollout import policy_pass, response_states, value_pass
from stages.ppo.update import PPO

PROMPTS, TOKENS = 4, 8  # the probe's size

REMEDIES = {
    "trainable set": "the optimizer would train something else than policy and value; a role was added or frozen from "
    "outside. Add roles with SharedBase.add_role only",
    "reference": "the policy must start as the SFT adapter that the reference is. Was the policy changed after it was "
    "copied, or the reference loaded from another run?",
    "ratio": "two passes over the same rows differ, so every ratio would be wrong: check for dropout or another source "
    "of chance in the base's own code",
    "batch composition": "a row's log-probabilities depend on its neighbours or on padding: the base's code ignores "
    "attention_mask or position_ids. Use another base, or ppo.rollouts of prompts of one length",
    "generation": "the sampler's tokens are not those that the training forward would choose: the base's key-value "
    "cache does not fit its forward pass. Use another base or an engine of your own",
    "stop tokens": "responses could never end. Name a token of the base's vocabulary with `stop`",
    "reward model": "the loaded reward model does not give the score that its own stage recorded: files from another "
    "run or base. Run the reward stage again",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check: its name, whether it holds, and what was found."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A few rows, and how much numbers may differ on this base."""

    queries: list[list[int]]
    responses: list[list[int]]
    same_path: float  # nats, the same rows by the same path
    other_batch: float  # nats, mean over tokens, in another batch or by the cached path

    @property
    def width(self) -> int:
        """Tokens of the longest response."""
        return max(map(len, self.responses))


def self_check(ppo: PPO, reward: RewardModel | None = None) -> list[Finding]:
    """Every check's finding, good or bad; see ``require`` for the error."""
    batch = _batch(ppo)
    models = [ppo.base.lm, *ppo.base.copies.values()]
    with ppo.base.training("policy", "value"):
        findings = [_trainable(ppo)]
        for lm in models:
            set_gradient_checkpointing(lm, ppo.context.gradient_checkpointing, ppo.context.offload_activations)
        try:
            findings += [_reference(ppo, batch), _ratio(ppo, batch), _batches(ppo, batch), _greedy(ppo, batch)]
        finally:
            for lm in models:
                set_gradient_checkpointing(lm, False)
    return [*findings, _stops(ppo, batch), *_reward(ppo, reward)]


def require(findings: Sequence[Finding]) -> None:
    """Raise UserError naming every check that failed, its cause and its remedy."""
    bad = [f"self-check '{f.name}' failed ({f.detail}): {REMEDIES[f.name]}" for f in findings if not f.ok]
    if bad:
        raise UserError("; ".join(bad) + ". `ppo.self_check: false` skips these checks")


# -- the probe ---------------------------------------------------------------------------------------------------


def _batch(ppo: PPO) -> Batch:
    """The shortest, the longest and two other prompts, with the policy's responses, from noise of this check's own."""
    order = sorted(range(len(ppo.stream.queries)), key=lambda i: len(ppo.stream.queries[i]))
    chosen = dict.fromkeys(order[i * (len(order) - 1) // (PROMPTS - 1)] for i in range(PROMPTS))
    queries = [ppo.stream.queries[i] for i in chosen]
    tokens = min(TOKENS, ppo.config.max_new_tokens)
    noise = sampling_noise(len(queries), tokens, generator(ppo.context.seed, "ppo/self_check"))
    responses = _sample(ppo, queries, noise, tokens, ppo.config.temperature)
    # fixed continuations too, so that rows differ in length even where an engine always responds alike
    responses = [r[: 1 + (i + 1) * tokens // len(queries)] for i, r in enumerate(responses)]
    half = next(ppo.base.lm.parameters()).dtype in (torch.bfloat16, torch.float16)
    return Batch(
        queries=queries,
        responses=responses,
        same_path=1e-3 if half else 1e-5,
        other_batch=0.1 if half else 1e-3,
    )


@torch.no_grad()
def _sample(
    ppo: PPO, queries: list[list[int]], noise: Tensor | None, tokens: int, temperature: float
) -> list[list[int]]:
    with ppo.base.role("policy") as role:
        made = generate(
            ppo.engine,
            role,
            queries,
            noise=noise,
            batch=len(queries),
            params=ppo.context.sampling(tokens, temperature),
        )
    return made.ids


def _logprobs(ppo: PPO, view: RoleView, queries: list[list[int]], responses: list[list[int]]) -> Tensor:
    rows = make_rows(queries, responses, ppo.context.pad_id, ppo.base.device)
    return policy_pass(view, rows, ppo.config.temperature)[0].detach()


def _values(ppo: PPO, queries: list[list[int]], responses: list[list[int]]) -> Tensor:
    rows = make_rows(queries, responses, ppo.context.pad_id, ppo.base.device)
    with ppo.base.role("policy" if ppo.value_on_policy else "value") as view:
        return (ppo.policy_value(view, rows) if ppo.value_on_policy else value_pass(view, rows)).detach()


# -- the checks --------------------------------------------------------------------------------------------------


def _trainable(ppo: PPO) -> Finding:
    """What asks for a gradient, what the optimizer holds and what the roles are made of must be one set."""
    base = ppo.base
    asking = {id(p) for p in base.all_parameters() if p.requires_grad}
    held = [id(p) for group in ppo.optimizer.param_groups for p in group["params"]]
    named = {id(p) for role in ("policy", "value") for p in base.parameters_of(role).values()}
    others = {
        id(p) for role in base.roles if role not in ("policy", "value") for p in base.parameters_of(role).values()
    }
    ok = asking == set(held) == named and len(held) == len(named) and not others & named
    return Finding(name="trainable set", ok=ok, detail=f"{len(asking)} ask for gradients, {len(held)} are optimised")


@torch.no_grad()
def _reference(ppo: PPO, batch: Batch) -> Finding:
    """Before the first update the KL to the reference is 0, token by token."""
    if ppo.update_index > 0:
        return Finding(name="reference", ok=True, detail="not the first update")
    with ppo.base.role("policy") as view:
        policy = _logprobs(ppo, view, batch.queries, batch.responses)
    with ppo.base.role("reference") as view:
        reference = _logprobs(ppo, view, batch.queries, batch.responses)
    gap = (policy - reference).abs().max().item()
    return Finding(name="reference", ok=gap <= batch.same_path, detail=f"log-probabilities differ by {gap:.2g} nats")


def _ratio(ppo: PPO, batch: Batch) -> Finding:
    """The pass of the rollout (no gradient) and the pass of the update (with one) are the same."""
    with ppo.base.role("policy") as view:
        with torch.no_grad():
            old = _logprobs(ppo, view, batch.queries, batch.responses)
        with torch.enable_grad():
            new = _logprobs(ppo, view, batch.queries, batch.responses)
    gap = torch.expm1(new - old).abs().max().item()
    return Finding(name="ratio", ok=gap <= batch.same_path, detail=f"the ratio is off 1 by {gap:.2g}")


@torch.no_grad()
def _batches(ppo: PPO, batch: Batch) -> Finding:
    """Rows alone and together: log-probabilities and values."""
    alone = list(zip(batch.queries, batch.responses, strict=True))
    with ppo.base.role("policy") as view:
        together = _logprobs(ppo, view, batch.queries, batch.responses)
        single = torch.cat([_logprobs(ppo, view, [q], [r]) for q, r in alone])
    values = _values(ppo, batch.queries, batch.responses)
    scale = max(1.0, values.abs().max().item())
    mismatch = (values - torch.cat([_values(ppo, [q], [r]) for q, r in alone])) / scale
    gap = max((together - single).abs().mean().item(), mismatch.abs().mean().item())
    return Finding(
        name="batch composition", ok=gap <= batch.other_batch, detail=f"rows alone and together differ by {gap:.2g}"
    )


@torch.no_grad()
def _greedy(ppo: PPO, batch: Batch) -> Finding:
    """Greedy tokens of the sampler are the training forward's best, or all but equal to it."""
    greedy = _sample(ppo, batch.queries, None, batch.width, 1.0)
    rows = make_rows(batch.queries, greedy, ppo.context.pad_id, ppo.base.device)
    with ppo.base.role("policy") as view:
        logits = view.logits(response_states(view, rows)).float()
    gap = (logits.max(-1).values - logits.gather(1, rows.targets()[:, None]).squeeze(1)).mean().item()
    return Finding(name="generation", ok=gap <= batch.other_batch, detail=f"best and chosen logit differ by {gap:.2g}")


@torch.no_grad()
def _stops(ppo: PPO, batch: Batch) -> Finding:
    """Every stop id has a row in the vocabulary and a finite logit, and one is more than padding."""
    size = ppo.base.lm.get_output_embeddings().weight.shape[0]
    stops, tokenizer = ppo.context.renderer.stop_ids, ppo.base.tokenizer
    outside = [i for i in stops if not 0 <= i < size]
    if outside or not stops:
        return Finding(
            name="stop tokens", ok=False, detail=f"ids {outside} of {list(stops)} are not among {size} tokens"
        )
    if set(stops) == {tokenizer.pad_token_id} and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return Finding(name="stop tokens", ok=False, detail="the only stop token is the padding token")
    rows = make_rows(batch.queries, batch.responses, ppo.context.pad_id, ppo.base.device)
    with ppo.base.role("policy") as view:
        best = view.logits(response_states(view, rows)).float()[:, list(stops)].max().item()
    return Finding(name="stop tokens", ok=best > float("-inf"), detail=f"the largest stop logit is {best:.3g}")


def _reward(ppo: PPO, model: RewardModel | None) -> list[Finding]:
    """The loaded reward model gives the score that its own stage recorded, where one is recorded."""
    folder = ppo.context.inputs.get("reward")
    artifact = read_artifact(folder) if folder is not None else None
    recorded: Mapping[str, Any] | None = (artifact.manifest.get("metrics") or {}).get("probe") if artifact else None
    if model is None or not recorded:
        return []
    score = model.score_ids([recorded["query"]], [recorded["response"]]).item()
    half = next(model.base.lm.parameters()).dtype in (torch.bfloat16, torch.float16)
    gap = abs(score - recorded["score"]) / max(1.0, abs(recorded["score"]))
    return [
        Finding(
            name="reward model",
            ok=gap <= (0.1 if half else 1e-3),
            detail=f"{score:.4f} now, {recorded['score']:.4f} then",
        )
    ]
