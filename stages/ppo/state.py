"""What a PPO run needs to resume exactly: weights, optimizers, counters, and the cycle that is under way.

Noise has nothing to save: every generator is derived from the seed and the update's number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        },
        own=own,
        own_numbers={
            "limits": {retry.name: retry.limit for retry in (ppo.micro.retry, ppo.sampling_retry)},
            "cycle": numbers,
        },
    )


def restore(ppo: PPO, state: State) -> None:
    """Put a fresh PPO where the saved one was."""
    restore_training(ppo.policy_parameters | ppo.value_parameters, [ppo.optimizer], state.tensors)
    ppo.update_index = state.numbers["update"]
    ppo.controller.coef = state.numbers["kl_coef"]
    ppo.nonfinite.restore(state.numbers["skips"])
    ppo.old.agree = state.numbers["sampler_agrees"]
    limits = state.own_numbers["limits"]
    for retry in (ppo.micro.retry, ppo.sampling_retry):  # a limit on rows says nothing of tokens, if those count here
        retry.limit = limits.get(retry.name)
    running = {k.removeprefix("running/"): v for k, v in state.tensors.items() if k.startswith("running/")}
    ppo.reward.restore(running)
    if state.own_numbers["cycle"]:
        own, cycle = shared_anew(ppo, state)
        records = [StepRecord(**r) for r in cycle["records"]]
        ppo.cycle = Cycle(rollout=_rollout(ppo, own, cycle), numbers=cycle["numbers"], records=records)


def shared_anew(ppo: PPO, state: State) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """This process's part of the cycle: the one that it saved, or its share of all where another number saved them."""
    processes, cycles = ppo.context.processes, [numbers["cycle"] for _, numbers in state.parts]
    if len(cycles) in (0, processes.world_size):  # 0: not from a file
        return state.own, state.own_numbers["cycle"]
    mine = processes.share(ppo.config.rollouts)
    cycle, tensors = joined_cycles(cycles, mine), [tensors for tensors, _ in state.parts]
    widest, width = max(t["logprobs"].shape[1] for t in tensors), max([1, *map(len, cycle["responses"])])
    own = {}
    for name in tensors[0].keys() - {"lower"}:
        whole = torch.cat([of_width(t[name], widest) for t in tensors])
        own[name] = of_width(whole[mine.start : mine.stop], width)
    kept = ["lower" in t for t, c in zip(tensors, cycles, strict=True) if c["responses"]]
    if mine and all(kept):
        responses = [ids for c in cycles for ids in c["responses"]]
        chosen = ppo.stream.chosen(ppo.update_index, len(responses), range(len(responses)))
        lengths = [len(ppo.stream.queries[i]) + len(r) for i, r in zip(chosen, responses, strict=True)]
        lower = torch.cat([t["lower"] for t in tensors if "lower" in t]).split(lengths)
        own["lower"] = torch.cat(lower[mine.start : mine.stop])
    return own, cycle


def joined_cycles(cycles: Sequence[Mapping[str, Any]], mine: range) -> dict[str, Any]:
    """The numbers of all processes' parts of a cycle as one process has them that handles the rows ``mine``."""
    responses = [ids for cycle in cycles for ids in cycle["responses"]]
    records = []
    for step in zip(*(cycle["records"] for cycle in cycles), strict=True):
        handled = [row for record in step for row in record["row_ids"]]
        records.append(dict(step[0]) | {"row_ids": [row for row in handled if row in mine]})
    return dict(cycles[0]) | {"responses": responses[mine.start : mine.stop], "records": records}


def of_width(rows: Tensor, width: int) -> Tensor:
    """Tensors of responses (B, R) cut or filled with zeros on the right, (B, width); those of rows (B,) as they are."""
    if rows.ndim == 1:
        return rows
    return torch.nn.functional.pad(rows[:, :width], (0, max(0, width - rows.shape[1])))


def _rollout(ppo: PPO, saved: Mapping[str, Tensor], cycle: Mapping[str, Any]) -> Rollout:
    device, responses = ppo.base.device, cycle["responses"]
    own = {name: tensor.to(device) for name, tensor in saved.items()}
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
        score_parts={name: own[f"parts/{name}"] for name in cycle["parts"]},
        **{name: own[name] for name in (*FIELDS, *DERIVED)},
    )
