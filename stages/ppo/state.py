"""What a PPO run needs to resume exactly: weights, optimizers, counters, and the cycle that is under way.

Noise has nothing to save: every generator is derived from the seed and the update's number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.backbone.oom_retry import OOMRetry
from stages import ppo_math
from stages.ppo.rollout import Cycle, Rollout, StepRecord
from stages.safe_points.checkpoints import State
from stages.safe_points.training_state import restore_training, training_tensors

if TYPE_CHECKING:
    from stages.ppo.update import PPO

FIELDS = ("finished", "logprobs", "ref_logprobs", "entropy", "values", "raw_scores", "scores")
DERIVED = ("rewards", "advantages", "returns")


def snapshot(ppo: PPO) -> State:
    """The state between two minibatches, between rollout and update, or between two updates."""
    own: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    if ppo.cycle is not None:
        rollout, mine = ppo.cycle.rollout, slice(ppo.mine.start, ppo.mine.stop)
        own = {name: getattr(rollout, name)[mine] for name in (*FIELDS, *DERIVED)}
        own |= {f"parts/{name}": v[mine] for name, v in rollout.score_parts.items()}
        if rollout.prefix_states is not None and ppo.mine:
            own["lower"] = torch.cat(rollout.prefix_states.split(rollout.row_lengths)[mine])
        numbers = {
            "responses": [list(r) for r in rollout.responses[mine]],
            "parts": list(rollout.score_parts),
            "numbers": ppo.cycle.numbers,
            "records": [asdict(r) for r in ppo.cycle.records],
        }
    return State(
        tensors=training_tensors(ppo.policy_parameters | ppo.value_parameters, [ppo.optimizer])
        | {f"running/{name}": v for name, v in ppo.reward.state.items()}
        | {name: v for budget in ppo.budgets for name, v in budget.state().items()},
        numbers={
            "update": ppo.update_index,
            "skips": ppo.nonfinite.as_dict(),
            "kl_coef": ppo.controller.coef,
            "sampler_agrees": ppo.old.agree,
        },
        own=own,
        own_numbers={
            "limits": {retry.name: retry.limit for retry in retries(ppo)},
            "cycle": numbers,
        },
    )


def retries(ppo: PPO) -> list[OOMRetry]:
    """Whatever knows how much fits into memory."""
    return [ppo.micro.retry, ppo.sampling_retry, *([] if ppo.ptx is None else [ppo.ptx.retry])]


def restore(ppo: PPO, state: State) -> None:
    """Put a fresh PPO where the saved one was."""
    restore_training(ppo.policy_parameters | ppo.value_parameters, [ppo.optimizer], state.tensors)
    for budget in ppo.budgets:
        budget.restore(state.tensors)
    ppo.update_index = state.numbers["update"]
    ppo.controller.coef = state.numbers["kl_coef"]
    ppo.nonfinite.restore(state.numbers["skips"])
    ppo.old.agree = state.numbers["sampler_agrees"]
    limits = state.own_numbers["limits"]
    for retry in retries(ppo):  # a limit on rows says nothing of tokens, if those count here
        retry.limit = limits.get(retry.name)
    running = {k.removeprefix("running/"): v for k, v in state.tensors.items() if k.startswith("running/")}
    ppo.reward.restore(running)
    if state.own_numbers["cycle"]:
        tensors, cycle = whole_cycle(state)
        records = [StepRecord(**r) for r in cycle["records"]]
        ppo.cycle = Cycle(rollout=_rollout(ppo, tensors, cycle), numbers=cycle["numbers"], records=records)


def whole_cycle(state: State) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and numbers of all rows of the cycle, of which each process that saved it has a share."""
    parts = state.parts or [(state.own, state.own_numbers)]  # without parts: not from a file
    saved, cycles = [tensors for tensors, _ in parts], [numbers["cycle"] for _, numbers in parts]
    responses = [ids for cycle in cycles for ids in cycle["responses"]]
    widest, width = max(t["logprobs"].shape[1] for t in saved), max([1, *map(len, responses)])
    whole = {
        name: of_width(torch.cat([of_width(t[name], widest) for t in saved]), width)
        for name in saved[0].keys() - {"lower"}
    }
    kept = [t.get("lower") for t, cycle in zip(saved, cycles, strict=True) if cycle["responses"]]
    if all(lower is not None for lower in kept):
        whole["lower"] = torch.cat([lower for lower in kept if lower is not None])
    return whole, dict(cycles[0]) | {"responses": responses}


def of_width(rows: Tensor, width: int) -> Tensor:
    """Tensors of responses (B, R) cut or filled with zeros on the right, (B, width); those of rows (B,) as they are."""
    if rows.ndim == 1:
        return rows
    return torch.nn.functional.pad(rows[:, :width], (0, max(0, width - rows.shape[1])))


def _rollout(ppo: PPO, saved: Mapping[str, Tensor], cycle: Mapping[str, Any]) -> Rollout:
    device, responses = ppo.base.device, cycle["responses"]
    tensors = {name: tensor.to(device) for name, tensor in saved.items()}
    chosen = ppo.stream.chosen(ppo.update_index, ppo.config.rollouts)
    lengths = torch.tensor([len(ids) for ids in responses], device=device)
    return Rollout(
        prompts=[ppo.stream.prompts[i] for i in chosen],
        queries=[ppo.stream.queries[i] for i in chosen],
        responses=responses,
        texts=[ppo.context.renderer.text(ids) for ids in responses],
        mask=ppo_math.response_mask(lengths, tensors["logprobs"].shape[1]),
        prefix_states=tensors.get("lower"),
        score_parts={name: tensors[f"parts/{name}"] for name in cycle["parts"]},
        **{name: tensors[name] for name in (*FIELDS, *DERIVED)},
    )
