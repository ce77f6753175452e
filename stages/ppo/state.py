"""What a PPO run needs to resume exactly: weights, optimizers, counters, and the cycle that is under way.

Noise has nothing to save: every generator is derived from the seed and the update's number.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
        rollout = ppo.cycle.rollout
        own = {name: getattr(rollout, name) for name in (*FIELDS, *DERIVED)}
        own |= {f"parts/{name}": v for name, v in rollout.score_parts.items()}
        own |= {} if rollout.prefix_states is None else {"lower": rollout.prefix_states}
        numbers = {
            "responses": [list(r) for r in rollout.responses],
            "parts": list(rollout.score_parts),
            "numbers": ppo.cycle.numbers,
            "records": [asdict(r) for r in ppo.cycle.records],
        }
    return State(
        tensors=training_tensors(ppo.policy_parameters | ppo.value_parameters, [ppo.optimizer])
        | {f"running/{name}": v for name, v in ppo.reward.state.items()},
        numbers={
            "update": ppo.update_index,
            "skips": ppo.nonfinite.as_dict(),
            "kl_coef": ppo.controller.coef,
            "sampler_agrees": ppo.old.agree,
            "limits": {retry.name: retry.limit for retry in (ppo.micro.retry, ppo.sampling_retry)},
        },
        own=own,
        own_numbers=numbers,
    )


def restore(ppo: PPO, state: State) -> None:
    """Put a fresh PPO where the saved one was."""
    restore_training(ppo.policy_parameters | ppo.value_parameters, [ppo.optimizer], state.tensors)
    ppo.update_index = state.numbers["update"]
    ppo.controller.coef = state.numbers["kl_coef"]
    ppo.nonfinite.restore(state.numbers["skips"])
    ppo.old.agree = state.numbers["sampler_agrees"]
    limits = state.numbers["limits"]
    for retry in (ppo.micro.retry, ppo.sampling_retry):  # a limit on rows says nothing of tokens, if those count here
        retry.limit = limits.get(retry.name)
    running = {k.removeprefix("running/"): v for k, v in state.tensors.items() if k.startswith("running/")}
    ppo.reward.restore(running)
    if state.own_numbers:
        own = state.own_numbers
        records = [StepRecord(**r) for r in own["records"]]
        ppo.cycle = Cycle(rollout=_rollout(ppo, state), numbers=own["numbers"], records=records)


def _rollout(ppo: PPO, state: State) -> Rollout:
    device, responses = ppo.base.device, state.own_numbers["responses"]
    own = {name: tensor.to(device) for name, tensor in state.own.items()}
    rows, chosen = ppo.stream.share(ppo.update_index, ppo.config.rollouts, ppo.context.processes)
    lengths = torch.tensor([len(ids) for ids in responses], device=device)
    return Rollout(
        row_ids=torch.tensor(list(rows)),
        prompts=[ppo.stream.prompts[i] for i in chosen],
        queries=[ppo.stream.queries[i] for i in chosen],
        responses=responses,
        texts=[ppo.context.renderer.text(ids) for ids in responses],
        mask=ppo_math.response_mask(lengths, own["logprobs"].shape[1]),
        prefix_states=own.get("lower"),
        score_parts={name: own[f"parts/{name}"] for name in state.own_numbers["parts"]},
        **{name: own[name] for name in (*FIELDS, *DERIVED)},
    )
