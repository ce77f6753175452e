"""PPO against the reward: rollout -> scores -> token rewards -> advantages -> update.

Schulman et al. 2017 as Ziegler et al. 2019 and Huang et al. 2024 (arXiv 2403.17031) apply it to language models, on
one shared base: the reference is the frozen SFT adapter, the policy starts as its copy, and the value role starts as a
copy of the reward model. The mathematics is in ``ppo_math``; this file is the order in which it happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from data.records import Prompt
from models.backbone.forward import set_gradient_checkpointing
from models.backbone.logprobs import Rows, scatter
from models.backbone.oom_retry import OOMRetry
from models.backbone.processes import peak_memory
from models.backbone.seeds import generator
from models.roles.shared_base import RoleView
from models.sampling.fast import FastEngine
from models.sampling.generate import Engine, generate, uniforms_for
from reward.terms.composition import WeightedSum
from stages import ppo_math
from stages.ppo.kl_controller import make_controller
from stages.ppo.old_logprobs import OldLogprobs, Source, apart
from stages.ppo.rollout import Cycle, Rollout, StepRecord, policy_pass, response_states, value_pass
from stages.ppo.shared_layers import keep_lower_layers, shared_depth
from stages.settings import PPOConfig
from stages.stage import StageContext, schedule_factor
from stages.training.nonfinite import NonFiniteSteps

VERSION = 10


class PPO:
    """The algorithm on a shared base that already has the roles policy, reference and value.

    Args:
        context: the stage's context.
        config: PPO's settings.
        prompts: queries are drawn from these; each once before any comes again.
        reward: scores whole responses.
        engine: samples responses; inject your own to roll out elsewhere.
    """

    def __init__(
        self,
        context: StageContext,
        config: PPOConfig,
        prompts: Sequence[Prompt],
        reward: WeightedSum,
        engine: Engine | None = None,
    ) -> None:
        self.context, self.config, self.base, self.reward = context, config, context.base, reward
        measured = config.old_logprobs != "recompute"
        self.engine = engine or FastEngine(measured, depth=shared_depth(self.base, config)[0])
        self.old = OldLogprobs(config.old_logprobs, config.temperature, context)
        self.prompts = prompts
        self.queries = [context.renderer.prompt_ids(p.messages) for p in prompts]
        self.controller = make_controller(config.kl, config.kl_coef, config.kl_target, config.kl_horizon)
        self.on_trunk = config.value.init == "policy_trunk"
        self.policy_parameters = self.base.parameters_of("policy")
        self.value_parameters = self.base.parameters_of("value")
        self.optimizer = self._make_optimizer()
        self.base_rates = [g["lr"] for g in self.optimizer.param_groups]
        self.update_index = 0
        self.skips = NonFiniteSteps("ppo.max_skipped_steps", config.max_skipped_steps)
        met = (context.warn, context.processes.together)
        self.memory = OOMRetry(f"ppo.micro_{'batch' if config.micro_tokens is None else 'tokens'}", *met)
        self.sampling = OOMRetry("rows sampled at once", *met)
        self.records: list[StepRecord] = []
        self.cycle: Cycle | None = None
        self.safe_point: Callable[[], None] = lambda: None  # called where the state could be saved, inside a cycle

    @property
    def trainable_names(self) -> list[str]:
        """Literal names of everything that the optimizer changes."""
        return [*self.policy_parameters, *self.value_parameters]

    def train(self) -> Iterator[dict[str, float]]:
        """Run the remaining updates, yielding each one's metrics."""
        with self.base.training("policy", "value"):
            models = [self.base.lm, *self.base.copies.values()]
            for lm in models:
                set_gradient_checkpointing(lm, self.context.gradient_checkpointing)
            try:
                while self.update_index < self.config.updates:
                    yield self.step()
            finally:
                self.base.trunk = None
                for lm in models:
                    set_gradient_checkpointing(lm, False)

    def step(self) -> dict[str, float]:
        """One cycle of rollout and update."""
        started = time.perf_counter()
        if self.cycle is None:  # not one that was interrupted
            rollout, times = self.rollout()
            self.shape_rewards(rollout)
            self.cycle = Cycle(rollout=rollout, times=times)
            self.safe_point()
        elif self.base.trunk is None:
            keep_lower_layers(self.base, self.cycle.rollout, self.config, self.context.warn)
        rollout, times = self.cycle.rollout, self.cycle.times
        before = time.perf_counter()
        learned = self.update(rollout, self.cycle.records)
        times["time/update"] = time.perf_counter() - before
        metrics = self.summary(rollout) | learned | times | {"time/total": time.perf_counter() - started}
        kl, rows = metrics["objective/kl"], self.config.rollouts
        metrics["objective/kl_coef"] = self.controller.coef
        self.controller.update(kl, rows)  # the new coefficient holds from the next rollout on
        self.update_index += 1
        self.cycle = self.base.trunk = None
        return metrics

    @property
    def position(self) -> int:
        """Number of the latest safe point: a cycle has one at its start, after the rollout and between minibatches."""
        each = self.config.epochs * self.config.minibatches + 1
        return self.update_index * each + (0 if self.cycle is None else 1 + len(self.cycle.records))

    # -- 1. rollout ----------------------------------------------------------------------------------------------

    @torch.profiler.record_function("trivet/rollout")
    @torch.no_grad()
    def rollout(self) -> tuple[Rollout, dict[str, float]]:
        """Sample responses and evaluate policy, reference, value and reward on them; nothing here has a gradient."""
        config, context = self.config, self.context
        total = config.rollouts
        mine, chosen = self.chosen()
        queries = [self.queries[i] for i in chosen]
        uniforms = uniforms_for(total, config.max_new_tokens, generator(context.seed, "ppo/rollout", self.update_index))
        t0 = time.perf_counter()
        with self.base.role("policy") as role:
            made = self.sampling.run(
                lambda size: generate(
                    self.engine,
                    role,
                    queries,
                    uniforms=uniforms[mine.start : mine.stop],
                    batch=size,
                    max_new_tokens=config.max_new_tokens,
                    temperature=config.temperature,
                    stop_ids=context.renderer.stop_ids,
                    pad_id=context.pad_id,
                ),
                max(1, len(queries)),
            )
        t1 = time.perf_counter()
        rollout = Rollout.of(
            made,
            device := self.base.device,
            row_ids=torch.tensor(list(mine)),
            prompts=[self.prompts[i] for i in chosen],
            queries=queries,
            texts=[context.renderer.text(ids) for ids in made.ids],
        )
        keep_lower_layers(self.base, rollout, config, context.warn)
        source = self.old.source(self.base, rollout, made)
        self.memory.run(lambda size: self._evaluate(rollout, size, source), *self._micro(rollout))
        scores, parts = self._scored(rollout)
        rollout.raw_scores = scores.to(device)
        rollout.score_parts = {k: v.to(device) for k, v in parts.items()}
        return rollout, {"time/rollout": t1 - t0, "time/score": time.perf_counter() - t1}

    def _scored(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """The reward's scores; where a process cannot get its own, all of them stop with its error."""
        own = self.context.processes.together(lambda: self.reward.scores(rollout.samples()))
        return self.reward.combine(own)

    def _evaluate(self, rollout: Rollout, size: int, source: Source) -> None:
        """Old log-probabilities unless the sampler gave them, reference, values."""
        for index in rollout.parts(range(len(rollout.queries)), size, self.config.micro_tokens and size):
            rows = rollout.rows(index, self.context.pad_id)
            width, temperature = rollout.mask.shape[1], self.config.temperature

            def lay(flat: Tensor, rows: Rows = rows, width: int = width) -> Tensor:
                return scatter(flat.float(), rows.response_lengths, width)

            with self.base.role("policy") as policy:
                if source == "policy":
                    logprobs, entropy = policy_pass(policy, rows, temperature)
                    rollout.logprobs[index], rollout.entropy[index] = lay(logprobs), lay(entropy)
                if self.on_trunk:
                    rollout.values[index] = lay(self._trunk_value(policy, rows))
            with self.base.role("reference") as reference:
                logprobs, entropy = policy_pass(reference, rows, temperature)
                rollout.ref_logprobs[index] = lay(logprobs)
                if source == "reference":
                    rollout.logprobs[index], rollout.entropy[index] = lay(logprobs), lay(entropy)
            if not self.on_trunk:
                with self.base.role("value") as value:
                    rollout.values[index] = lay(value_pass(value, rows))

    def _trunk_value(self, policy: RoleView, rows: Rows) -> Tensor:
        head = self.base.heads["value"]
        return head(response_states(policy, rows))

    def chosen(self) -> tuple[range, list[int]]:
        """Rows of this process in the present update's rollout, and the number of each one's prompt."""
        total = self.config.rollouts
        mine = self.context.processes.share(total)
        return mine, [self._prompt_number(self.update_index * total + i) for i in mine]

    def _prompt_number(self, position: int) -> int:
        """Position in an endless stream of permutations: each prompt once before any comes again; no state to save."""
        epoch, at = divmod(position, len(self.prompts))
        if getattr(self, "_order", (None, None))[0] != epoch:
            g = generator(self.context.seed, "ppo/prompts", epoch)
            self._order = (epoch, torch.randperm(len(self.prompts), generator=g).tolist())
        return self._order[1][at]

    # -- 2. scores -> token rewards -> advantages ------------------------------------------------------------------

    @torch.no_grad()
    def shape_rewards(self, rollout: Rollout) -> None:
        """Clip the score, subtract the missing-EOS penalty, add the KL penalty per token, then GAE and whitening."""
        config, mask, reduce = self.config, rollout.mask, self.context.processes.sum
        scores = rollout.raw_scores
        if config.score_clip is not None:
            scores = scores.clamp(-config.score_clip, config.score_clip)
        rollout.scores = scores - config.missing_eos_penalty * (~rollout.finished).to(scores.dtype)
        kl = ppo_math.kl_penalty(rollout.logprobs, rollout.ref_logprobs, "k1")
        rollout.rewards = ppo_math.token_rewards(rollout.scores, kl, mask, self.controller.coef)
        if config.whiten_rewards:
            rollout.rewards = ppo_math.whiten(rollout.rewards, mask, shift_mean=False, reduce=reduce)
        raw, rollout.returns = ppo_math.gae(rollout.rewards, rollout.values, mask, config.gamma, config.lam)
        rollout.advantages = ppo_math.whiten(raw, mask, reduce=reduce) if config.whiten_advantages else raw

    # -- 3. update -------------------------------------------------------------------------------------------------

    @torch.profiler.record_function("trivet/update")
    def update(self, rollout: Rollout, records: list[StepRecord] | None = None) -> dict[str, float]:
        """Several epochs of minibatches over one rollout; every row exactly once an epoch.

        ``records`` are those of minibatches that an interrupted update has done already; new ones are added to it.
        """
        config, self.records = self.config, [] if records is None else records
        done = len(self.records)
        factor = schedule_factor(config.schedule, self.update_index / config.updates, config.final_learning_rate)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        local = {int(row): i for i, row in enumerate(rollout.row_ids)}
        for epoch in range(config.epochs):
            g = generator(self.context.seed, "ppo/minibatches", self.update_index * config.epochs + epoch)
            chunks = ppo_math.minibatches(config.rollouts, config.minibatches, g)
            for chunk in chunks[max(0, done - epoch * config.minibatches) :]:
                self.records.append(self._minibatch(rollout, [local[r] for r in chunk.tolist() if r in local]))
                self.skips.record(self.records[-1].applied, f"PPO, update {self.update_index + 1}", self.records[-1].norms)
                if len(self.records) < config.epochs * config.minibatches:
                    self.safe_point()
        names = self.records[0].metrics
        out = {name: sum(r.metrics[name] for r in self.records) / len(self.records) for name in names}
        out["ppo/policy/grad_norm"] = sum(r.policy_grad_norm for r in self.records) / len(self.records)
        out["ppo/value/grad_norm"] = sum(r.value_grad_norm for r in self.records) / len(self.records)
        return out | {"ppo/skipped_steps": float(self.skips.total), "ppo/learning_rate": self.base_rates[0] * factor}

    def _minibatch(self, rollout: Rollout, index: list[int]) -> StepRecord:
        """Gradients of the whole minibatch, whatever its micro-batches, then one step for each role."""
        config, reduce = self.config, self.context.processes.sum
        tokens = reduce(rollout.mask[index].sum().double()).clamp(min=1).item()
        sums = self.memory.run(
            lambda size: self._gradients(rollout, index, tokens, size),
            *self._micro(rollout),
            undo=lambda: self.optimizer.zero_grad(set_to_none=True),
        )
        names = ["loss/policy", "loss/value", "policy/approxkl", "policy/clipfrac", "policy/ratio", "value/clipfrac"]
        totals = reduce(torch.stack([sums.get(n, torch.zeros((), dtype=torch.float64)) for n in [*names, "apart"]]))
        self.old.see(totals[-1].item())
        roles = [list(self.policy_parameters.values()), list(self.value_parameters.values())]
        self.context.processes.sum_gradients([p for role in roles for p in role])
        norms = [torch.nn.utils.clip_grad_norm_(p, config.max_grad_norm).item() for p in roles]
        applied = all(map(_finite, [*norms, *totals[:2].tolist()]))
        if applied:
            if self.update_index < config.critic_warmup:
                for p in roles[0]:
                    p.grad = None
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepRecord(
            row_ids=[int(rollout.row_ids[i]) for i in index],
            tokens=tokens,
            policy_grad_norm=norms[0],
            value_grad_norm=norms[1],
            learning_rate=self.optimizer.param_groups[0]["lr"],
            applied=applied,
            metrics={f"ppo/{n}": v for n, v in zip(names, totals[:-1].tolist(), strict=True)},
        )

    def _micro(self, rollout: Rollout) -> tuple[int, int]:
        """The size of a micro-batch (rows, or padded tokens) that is wanted, and the least that makes a difference."""
        return (self.config.micro_tokens, rollout.longest) if self.config.micro_tokens else (self.config.micro_batch, 1)

    def _gradients(self, rollout: Rollout, index: list[int], tokens: float, size: int) -> dict[str, Tensor]:
        """Add up a minibatch's gradients and metrics over its micro-batches of ``size`` rows."""
        sums: dict[str, Tensor] = {}
        for part in rollout.parts(index, size, self.config.micro_tokens and size):
            for name, value in self._backward(rollout, part, tokens).items():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value.detach().double().cpu()
        return sums

    def _backward(self, rollout: Rollout, index: list[int], tokens: float) -> dict[str, Tensor]:
        """Forward and backward of one micro-batch, each inside its role: recomputation must find the same adapter."""
        config, rows = self.config, rollout.rows(index, self.context.pad_id)
        width = int(rows.response_lengths.max().clamp(min=1))
        mask = rollout.mask[index, :width]

        def lay(flat: Tensor) -> Tensor:
            return scatter(flat, rows.response_lengths, width)

        def old(field: Tensor) -> Tensor:
            return field[index, :width]

        def value_terms(values: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            loss, found = ppo_math.value_loss(
                lay(values), old(rollout.values), old(rollout.returns), mask, config.value_clip, tokens
            )
            return loss, {"loss/value": loss, **{f"value/{k}": v for k, v in found.items()}}

        with self.base.role("policy") as policy:
            logprobs, entropy = policy_pass(policy, rows, config.temperature, config.entropy_coef > 0)
            loss, metrics = ppo_math.policy_loss(
                lay(logprobs), old(rollout.logprobs), old(rollout.advantages), mask, config.clip, tokens
            )
            out = {"loss/policy": loss, **{f"policy/{k}": v for k, v in metrics.items()}}
            if self.old.agree and not self.records:  # the policy is still the one that sampled
                out["apart"] = apart(lay(logprobs), old(rollout.logprobs), mask)
            total = loss - config.entropy_coef * ppo_math.masked_mean(lay(entropy), mask, tokens)
            if self.on_trunk:
                value_part, found = value_terms(self._trunk_value(policy, rows))
                total, out = total + config.value_coef * value_part, out | found
            total.backward()
        if not self.on_trunk:
            with self.base.role("value") as value:
                value_part, found = value_terms(value_pass(value, rows))
                value_part.backward()
            out |= found
        return out

    # -- 4. report -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def summary(self, rollout: Rollout) -> dict[str, float]:
        """The field's metrics over real tokens and all processes; means of rows are means of per-row sums."""
        mask, processes = rollout.mask, self.context.processes
        kl = torch.where(mask, rollout.logprobs - rollout.ref_logprobs, torch.zeros_like(rollout.logprobs))
        per_row = {
            "objective/kl": kl.sum(1),
            "objective/scores": rollout.raw_scores,
            "objective/scores_squared": rollout.raw_scores**2,
            "objective/shaped_scores": rollout.scores,
            "objective/rlhf_reward": rollout.scores - self.controller.coef * kl.sum(1),
            "rollout/length": rollout.lengths,
            "rollout/truncated_fraction": ~rollout.finished,
            **{f"reward/{name}": v for name, v in rollout.score_parts.items()},
        }
        table = torch.stack([v.double() for v in per_row.values()])
        rows = processes.sum(torch.tensor(float(table.shape[1]), dtype=torch.float64, device=table.device))
        means = dict(zip(per_row, (processes.sum(table.sum(1)) / rows).tolist(), strict=True))
        spread = max(0.0, means.pop("objective/scores_squared") - means["objective/scores"] ** 2)
        sums = torch.stack(
            [mask.sum().double(), ppo_math.masked_sum(rollout.entropy, mask).double(), kl.double().sum()]
        )
        tokens, entropy, kl_total = processes.sum(sums).tolist()
        variance = ppo_math.explained_variance(rollout.values, rollout.returns, mask, processes.sum)
        return means | {
            "objective/scores_std": spread**0.5,
            "objective/entropy": entropy / max(tokens, 1),
            "objective/kl_per_token": kl_total / max(tokens, 1),
            "ppo/value/explained_variance": variance.item(),
            "tokens/response": tokens,
            "memory/peak": float(peak_memory(self.base.device)),
            self.memory.name.replace("ppo.", "memory/"): float(self.memory.size(self._micro(rollout)[0])),
        }

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        value_rate = config.learning_rate if config.value_learning_rate is None else config.value_learning_rate
        head_rate = value_rate if config.value_head_learning_rate is None else config.value_head_learning_rate
        heads = {n: p for n, p in self.value_parameters.items() if n.startswith("value.head.")}
        adapter = [p for n, p in self.value_parameters.items() if n not in heads]
        groups: list[dict[str, Any]] = [
            {"params": list(self.policy_parameters.values()), "lr": config.learning_rate},
            {"params": list(heads.values()), "lr": head_rate, "weight_decay": 0.0},
        ]
        if adapter:
            groups.insert(1, {"params": adapter, "lr": value_rate})
        return torch.optim.AdamW(groups, eps=config.adam_epsilon, weight_decay=config.weight_decay)


def _finite(x: float) -> bool:
    return x == x and abs(x) != float("inf")
