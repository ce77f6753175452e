"""A held-out reward model evaluates PPO's policy every so many updates, and may choose the one to keep.

Each evaluation samples responses to the same training prompts with the same noise, so they differ by the policy alone;
it consumes nothing of the training's random numbers and changes no weight.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.backbone.logprobs import make_rows
from models.backbone.seeds import generator
from models.backbone.trained_shards import own_tensor, whole_tensor
from models.sampling.fast import FastEngine
from models.sampling.generate import Generated, generate, sampling_noise
from reward.model import RewardModel, Samples
from stages.ppo.overoptimisation import HoldoutEvaluation, Onset, best_of, find_onset
from stages.ppo.rollout import micro_batches, policy_pass

if TYPE_CHECKING:
    from stages.ppo.update import PPO
    from stages.safe_points.checkpoints import State

BEST = "watch/best/"


class HoldoutMonitor:
    """Evaluates a policy that PPO is training.

    Args:
        ppo: whose policy is evaluated.
        holdout_model: the held-out reward model.
        proxy: the reward model that PPO optimises, where it is.
    """

    def __init__(self, ppo: PPO, holdout_model: RewardModel, proxy: RewardModel | None) -> None:
        self.ppo, self.holdout_model, self.proxy = ppo, holdout_model, proxy
        self.evaluations: list[HoldoutEvaluation] = []
        self.best: dict[str, Tensor] = {}  # the policy of the best evaluation, where it is to be kept

    @property
    def due(self) -> bool:
        """Whether the policy of now is to be evaluated, and has not been."""
        at, config = self.ppo.update_index, self.ppo.config
        last = self.evaluations[-1].update if self.evaluations else -1
        return at != last and (at % config.holdout_every == 0 or at == config.updates)

    def evaluate(self) -> dict[str, float]:
        """Evaluate; what goes into the metrics."""
        processes = self.ppo.context.processes
        made = self._responses()
        rows = processes.gather(processes.together(lambda: self._rows(made)))
        proxy = [p for p, _, _ in rows] if self.proxy is not None else []
        found = HoldoutEvaluation(
            update=self.ppo.update_index,
            proxy=proxy,
            held_out=[h for _, h, _ in rows],
            kl=sum(k for _, _, k in rows) / len(rows),
        )
        self.evaluations.append(found)
        if self.ppo.config.keep == "best" and best_of(self.evaluations) == len(self.evaluations) - 1:
            self.best = {n: p.detach().clone() for n, p in self.ppo.policy_parameters.items()}
        means = {"holdout/held_out": found.held_out, "holdout/proxy": found.proxy}
        return {"holdout/kl": found.kl} | {n: sum(x) / len(x) for n, x in means.items() if x}

    @property
    def _mine(self) -> range:
        """The prompts, the first of the training ones, whose responses are this process's."""
        count = min(self.ppo.config.holdout_prompts, len(self.ppo.stream.prompts))
        return self.ppo.context.processes.share(count)

    @torch.no_grad()
    def _responses(self) -> Generated:
        """The policy's responses to this process's prompts, by the servers of ``runtime.rollouts`` where there are any.

        Raises:
            StageError: memory does not suffice for one, or servers fail; in all processes.
        """
        ppo, config, context, mine = self.ppo, self.ppo.config, self.ppo.context, self._mine
        queries = [ppo.stream.queries[i] for i in mine]
        count = min(config.holdout_prompts, len(ppo.stream.prompts))
        table = sampling_noise(count, config.max_new_tokens, generator(context.seed, "ppo/watch"))
        noise = table[mine.start : mine.stop]
        params = context.sampling(config.max_new_tokens, config.temperature)
        if ppo.remote is not None:
            return ppo.remote.sampled("policy", queries, params, noise)
        progress = context.bar.phase("responses for the held-out reward model", len(queries))

        def work() -> Generated:
            if not queries:
                return Generated(ids=[], finished=[])
            with ppo.base.role("policy") as role, ppo.sampling_retry.reporting(progress):
                return generate(
                    FastEngine(),
                    role,
                    queries,
                    noise=noise,
                    batch=len(queries),
                    params=params,
                    memory=ppo.sampling_retry,
                )

        return context.processes.together(work)

    @torch.no_grad()
    def _rows(self, made: Generated) -> list[tuple[float, float, float]]:
        """Proxy score, held-out score and KL of this process's responses."""
        ppo, config, context, mine = self.ppo, self.ppo.config, self.ppo.context, self._mine
        queries = [ppo.stream.queries[i] for i in mine]
        if not queries:
            return []
        kl, progress = torch.zeros(len(queries)), context.bar.phase("KL of the policy that is evaluated", len(queries))
        for index in micro_batches([len(ids) for ids in made.ids], config.micro_batch):
            rows = make_rows([queries[i] for i in index], [made.ids[i] for i in index], context.pad_id, ppo.base.device)
            with ppo.base.role("policy") as role:
                own, _ = policy_pass(role, rows, config.temperature)
            with ppo.base.role("reference") as role:
                theirs, _ = policy_pass(role, rows, config.temperature)
            for i, part in zip(index, (own - theirs).float().split(rows.response_lengths.tolist()), strict=True):
                kl[i] = part.sum()
            progress(len(index))

        def scores(model: RewardModel | None, name: str) -> list[float]:
            if model is None:
                return [0.0] * len(queries)
            samples = Samples(
                prompts=[ppo.stream.prompts[i] for i in mine],
                queries=queries,
                responses=made.ids,
                texts=[context.renderer.text(ids) for ids in made.ids],
                finished=made.finished,
            )
            progress = context.bar.phase(f"scores of the {name}", len(queries) * max(1, len(model.members)))
            with model.memory.reporting(progress):
                found = model.score(samples)
            return (found / max(model.score_std, 1e-6)).tolist()

        proxy, held_out = scores(self.proxy, "reward model"), scores(self.holdout_model, "held-out reward model")
        return list(zip(proxy, held_out, kl.tolist(), strict=True))

    def onset(self) -> Onset | None:
        """Where over-optimisation began by the evaluations so far; None where it did not."""
        return find_onset(self.evaluations)

    @torch.no_grad()
    def keep_best(self) -> int:
        """Put the policy back that the held-out score likes best; the number of its update."""
        for name, p in self.ppo.policy_parameters.items():
            p.copy_(self.best[name])
        return self.evaluations[best_of(self.evaluations)].update

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def add_to(self, state: State) -> State:
        """A checkpoint's state with the evaluations and the best policy."""
        state.numbers["looks"] = [asdict(evaluation) for evaluation in self.evaluations]
        state.tensors |= {
            BEST + name: whole_tensor(self.ppo.policy_parameters[name], tensor) for name, tensor in self.best.items()
        }
        return state

    def restore(self, state: State) -> None:
        """Take over what ``add_to`` has kept."""
        device = self.ppo.base.device
        self.evaluations = [HoldoutEvaluation(**evaluation) for evaluation in state.numbers["looks"]]
        best = {k.removeprefix(BEST): v for k, v in state.tensors.items() if k.startswith(BEST)}
        known = self.ppo.policy_parameters
        self.best = {name: own_tensor(known[name], v).to(device, copy=True) for name, v in best.items()}

    def summary(self) -> dict[str, Any]:
        """For the stage's metrics: each evaluation's means, and where the scores diverged, if they did."""
        found = self.onset()

        def mean(x: list[float]) -> float | None:
            return sum(x) / len(x) if x else None

        return {
            "evaluations": [
                {
                    "update": evaluation.update,
                    "proxy": mean(evaluation.proxy),
                    "held_out": mean(evaluation.held_out),
                    "kl": evaluation.kl,
                }
                for evaluation in self.evaluations
            ],
            "best_update": self.evaluations[best_of(self.evaluations)].update,
            "onset": asdict(found) if found else None,
        }
