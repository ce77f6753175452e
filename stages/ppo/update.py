"""PPO against the reward: respond -> score -> token rewards -> advantages -> update.

Schulman et al. 2017 (arXiv 1707.06347) as Ziegler et al. 2019 (arXiv 1909.08593) and Huang et al. 2024 (arXiv
2403.17031) apply it to language models, on one shared base: the reference is the frozen SFT adapter, the policy starts
as its copy, and the value role starts as a copy of the reward model. The mathematics is in ``ppo_math``; this file is
the order in which it happens. What it does not know: files, checkpoints, stages before and after.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from data.records import Prompt
from models.backbone.forward import set_gradient_checkpointing
from models.backbone.logprobs import Rows, scatter
from models.backbone.oom_retry import OOMRetry
from models.backbone.processes import peak_memory
from models.backbone.seeds import generator
from models.backbone.trained_shards import clip_gradients, drop_parts, failed_anywhere
from models.backbone.transfers import wide
from models.roles.role_view import RoleView
from models.roles.together import known_states
from models.sampling.fast import FastEngine
from models.sampling.generate import Engine, Generated, gathered, generate, sampling_noise
from reward.terms.composition import WeightedSum
from stages import ppo_math
from stages.ppo.kl_controller import make_controller
from stages.ppo.metrics import STEP_METRICS, rollout_metrics, texts_metrics, update_metrics
from stages.ppo.micro_batching import MicroBatching
from stages.ppo.old_logprobs import OldLogprobs
from stages.ppo.optimizer import make_optimizer
from stages.ppo.prompt_stream import PromptStream
from stages.ppo.ptx import PTX, Row
from stages.ppo.rollout import EVALUATED, Cycle, Rollout, StepRecord, policy_pass, response_states, value_pass
from stages.ppo.shared_layers import keep_prefix_states, shared_depth
from stages.remote_rollouts import RemoteRollouts, importance_weights, rollout_servers
from stages.settings import PPOConfig
from stages.stage import StageContext, schedule_factor
from stages.training.gradient_sums import OrderedSums
from stages.training.nonfinite import NonFiniteSteps
from stages.training.rank_budget import RankBudget

VERSION = 13


class PPO:
    """The algorithm on a shared base that already has the roles policy, reference and value.

    Args:
        context: the stage's context.
        config: PPO's settings.
        prompts: queries are taken from these; each once before any comes again.
        reward: scores whole responses.
        engine: samples responses; inject your own to roll out elsewhere.
        ptx_rows: of the pretraining loss that is mixed in; none without ``ppo.ptx_coef``.
    """

    def __init__(
        self,
        context: StageContext,
        config: PPOConfig,
        prompts: Sequence[Prompt],
        reward: WeightedSum,
        engine: Engine | None = None,
        ptx_rows: Sequence[Row] = (),
    ) -> None:
        self.context, self.config, self.base, self.reward = context, config, context.base, reward
        self.stream = PromptStream(prompts, [context.renderer.prompt_ids(p.messages) for p in prompts], context.seed)
        self.remote = rollout_servers(context) if engine is None else None
        self.engine = engine or FastEngine(config.old_logprobs != "recompute", shared_depth(self.base, config)[0])
        self.old = OldLogprobs(config.old_logprobs, config.temperature, context)
        self.controller = make_controller(config.kl, config.kl_coef, config.kl_target, config.kl_horizon)
        self.value_on_policy = config.value.init == "policy_trunk"
        self.policy_parameters = self.base.parameters_of("policy")
        self.value_parameters = self.base.parameters_of("value")
        self.optimizer = make_optimizer(config, self.policy_parameters, self.value_parameters)
        self.base_rates = [g["lr"] for g in self.optimizer.param_groups]
        self.nonfinite = NonFiniteSteps("ppo.max_skipped_steps", config.max_skipped_steps)
        setting = f"ppo.micro_{'batch' if config.micro_tokens is None else 'tokens'}"
        trained = [*self.policy_parameters.values(), *self.value_parameters.values()]
        retry = OOMRetry(setting, context.warn_alone, context.processes.together, failed_anywhere(trained))
        self.micro = MicroBatching(config, retry, context.processes)
        self.gradients = OrderedSums(trained, context.processes)
        self.ptx = PTX(context, config, ptx_rows, list(self.policy_parameters.values())) if config.ptx_coef else None
        budgets = (RankBudget.of(self.base, role, context.adapter) for role in ("policy", "value"))
        self.budgets = [budget for budget in budgets if budget is not None]
        self.sampling_retry = OOMRetry("rows sampled at once", context.warn_alone, context.processes.together)
        self.update_index = 0
        self.records: list[StepRecord] = []
        self.cycle: Cycle | None = None
        self.safe_point: Callable[[], None] = lambda: None  # called where the state could be saved, inside a cycle

    def train(self) -> Iterator[dict[str, float]]:
        """Run the remaining updates, yielding each one's metrics."""
        with self.base.training("policy", "value"):
            models = [self.base.lm, *self.base.copies.values()]
            for lm in models:
                set_gradient_checkpointing(lm, self.context.gradient_checkpointing, self.context.offload_activations)
            try:
                while self.update_index < self.config.updates:
                    yield self.step()
            finally:
                self.base.prefix_cache = None
                for lm in models:
                    set_gradient_checkpointing(lm, False)

    def step(self) -> dict[str, float]:
        """One iteration: sample responses, score them, turn scores into advantages, and update on them."""
        started = time.perf_counter()
        if self.cycle is None:
            rollout, numbers = self.rollout()
            self.compute_rewards(rollout)
            self.compute_advantages(rollout)
            self.cycle = Cycle(rollout=rollout, numbers=numbers)
            self.safe_point()
        elif self.base.prefix_cache is None:  # an iteration that was interrupted is resumed
            keep_prefix_states(self.base, self.cycle.rollout, self.config, self.context.warn)
        rollout, numbers = self.cycle.rollout, self.cycle.numbers
        before = time.perf_counter()
        learned = self.update(rollout, self.cycle.records)
        numbers["time/update"] = time.perf_counter() - before
        metrics = self.summary(rollout) | learned | numbers | {"time/total": time.perf_counter() - started}
        self.controller.update(metrics["objective/kl"], self.config.rollouts)  # holds from the next rollout on
        self.update_index += 1
        self.cycle = self.base.prefix_cache = None
        return metrics

    @property
    def position(self) -> int:
        """Number of the latest safe point: a cycle has one at its start, after the rollout and between minibatches."""
        each = self.config.epochs * self.config.minibatches + 1
        return self.update_index * each + (0 if self.cycle is None else 1 + len(self.cycle.records))

    @property
    def mine(self) -> range:
        """The rows of a rollout that this process samples, scores and saves."""
        return self.context.processes.share(self.config.rollouts)

    # -- 1. rollout: queries, responses, log-probabilities, values, scores -----------------------------------------

    @torch.profiler.record_function("trivet/rollout")
    @torch.no_grad()
    def rollout(self) -> tuple[Rollout, dict[str, float]]:
        """Sample responses and evaluate policy, reference, value and reward on them; nothing here has a gradient.

        Every process samples its share of the rows, and has all of them afterwards.
        """
        mine, chosen = self.mine, self.stream.chosen(self.update_index, self.config.rollouts)
        queries = [self.stream.queries[i] for i in chosen]
        t0 = time.perf_counter()
        own = self.sample(queries[mine.start : mine.stop], mine)
        generated = gathered(own, self.context.processes)
        t1 = time.perf_counter()
        rollout = Rollout.of(
            generated,
            self.base.device,
            prompts=[self.stream.prompts[i] for i in chosen],
            queries=queries,
            texts=[self.context.renderer.text(ids) for ids in generated.ids],
        )
        self.evaluate(rollout, generated)
        numbers = {} if self.remote is None else self.compare_servers(self.remote, rollout, own)
        numbers |= self.score(rollout)
        return rollout, numbers | {"time/rollout": t1 - t0, "time/score": time.perf_counter() - t1}

    def sample(self, queries: Sequence[list[int]], mine: range) -> Generated:
        """One response of the policy to each query of this process, whose rows in the whole rollout are ``mine``."""
        config, context = self.config, self.context
        rng = generator(context.seed, "ppo/rollout", self.update_index)
        noise = sampling_noise(config.rollouts, config.max_new_tokens, rng)[mine.start : mine.stop]
        params = context.sampling(config.max_new_tokens, config.temperature)
        if self.remote is not None:
            return self.remote.sample("policy", queries, params, noise)
        with self.base.role("policy") as role:
            return self.sampling_retry.run(
                lambda size: generate(self.engine, role, queries, noise=noise, batch=size, params=params),
                max(1, min(len(queries), config.sampling_batch or len(queries))),
            )

    def evaluate(self, rollout: Rollout, generated: Generated) -> None:
        """Fill in the policy's and the reference's log-probabilities and the values; processes share the passes."""
        keep_prefix_states(self.base, rollout, self.config, self.context.warn)
        source = self.old.source(self.base, rollout, generated)
        temperature, width = self.config.temperature, rollout.mask.shape[1]
        roles = ["reference"] if self.value_on_policy else ["reference", "value"]
        if source == "policy" or self.value_on_policy:
            roles.append("policy")

        def pass_of(index: list[int]) -> None:
            rows = rollout.rows(index, self.context.pad_id)
            numbers = rows.numbers

            def padded(flat: Tensor) -> Tensor:
                return scatter(flat.float(), rows.response_lengths, width)

            with known_states(self.base, roles, rows.ids, rows.mask):
                with self.base.role("policy") as policy:
                    if source == "policy":
                        logprobs, entropy = policy_pass(policy, rows, temperature)
                        rollout.logprobs[numbers], rollout.entropy[numbers] = padded(logprobs), padded(entropy)
                    if self.value_on_policy:
                        rollout.values[numbers] = padded(self.policy_value(policy, rows))
                with self.base.role("reference") as reference:
                    logprobs, entropy = policy_pass(reference, rows, temperature)
                    rollout.ref_logprobs[numbers] = padded(logprobs)
                    if source == "reference":
                        rollout.logprobs[numbers], rollout.entropy[numbers] = padded(logprobs), padded(entropy)
                if not self.value_on_policy:
                    with self.base.role("value") as value:
                        rollout.values[numbers] = padded(value_pass(value, rows))

        self.micro.each(rollout, pass_of)
        for name in EVALUATED if source != "sampler" else ("ref_logprobs", "values"):
            setattr(rollout, name, self.context.processes.sum(getattr(rollout, name)))

    def policy_value(self, policy: RoleView, rows: Rows) -> Tensor:
        """Values (N,) by the value head on the policy's own states."""
        head = self.base.heads["value"]
        return head(response_states(policy, rows))

    def score(self, rollout: Rollout) -> dict[str, float]:
        """Fill in the reward's scores; where a process cannot get its share's, all of them stop with its error.

        Returns:
            Of reward models on another base and of classifiers, the shares of responses and of tokens that they could
            not read as they are.
        """
        processes, before = self.context.processes, self.reward.texts
        own = self.reward.scores(rollout.samples(self.mine), processes)
        scores, parts = self.reward.combine({name: processes.gather_rows(values) for name, values in own.items()})
        rollout.raw_scores = scores.to(self.base.device)
        rollout.score_parts = {k: v.to(self.base.device) for k, v in parts.items()}
        texts = self.reward.texts
        return {} if texts is None or before is None else texts_metrics(processes.sum(texts.since(before)))

    def compare_servers(self, remote: RemoteRollouts, rollout: Rollout, own: Generated) -> dict[str, float]:
        """Refuse what was not sampled from the policy; otherwise, where asked, the weights that correct for the gap.

        ``own`` is what servers gave to this process.
        """
        mine, cap = slice(self.mine.start, self.mine.stop), self.config.importance_cap
        found = remote.compare(rollout.logprobs[mine], own, rollout.mask[mine])
        if cap is not None:
            assert own.logprobs is not None
            sampled = self.context.processes.gather_rows(own.logprobs)[:, : rollout.mask.shape[1]]
            rollout.importance = importance_weights(rollout.logprobs, sampled, rollout.mask, cap)
            weights = ppo_math.masked_sum(wide(rollout.importance), rollout.mask)
            found["rollout/importance_weight"] = (weights / rollout.mask.sum().clamp(min=1)).item()
        return found

    # -- 2. scores -> token rewards -> advantages ------------------------------------------------------------------

    @torch.no_grad()
    def compute_rewards(self, rollout: Rollout) -> None:
        """Clip the score, subtract the missing-EOS penalty, and add the KL penalty on every token."""
        config, scores = self.config, rollout.raw_scores
        if config.score_clip is not None:
            scores = scores.clamp(-config.score_clip, config.score_clip)
        rollout.scores = scores - config.missing_eos_penalty * (~rollout.finished).to(scores.dtype)
        kl = ppo_math.kl_penalty(rollout.logprobs, rollout.ref_logprobs, "k1")
        rollout.rewards = ppo_math.token_rewards(rollout.scores, kl, rollout.mask, self.controller.coef)

    @torch.no_grad()
    def compute_advantages(self, rollout: Rollout) -> None:
        """Generalised advantage estimation over response tokens, whitened over the whole rollout."""
        config, mask = self.config, rollout.mask
        if config.whiten_rewards:
            rollout.rewards = ppo_math.whiten(rollout.rewards, mask, shift_mean=False)
        raw, rollout.returns = ppo_math.gae(rollout.rewards, rollout.values, mask, config.gamma, config.lam)
        rollout.advantages = ppo_math.whiten(raw, mask) if config.whiten_advantages else raw
        if rollout.importance is not None:  # a positive factor of the clipped objective and of the plain one alike
            rollout.advantages = rollout.advantages * rollout.importance

    # -- 3. update -------------------------------------------------------------------------------------------------

    @torch.profiler.record_function("trivet/update")
    def update(self, rollout: Rollout, records: list[StepRecord] | None = None) -> dict[str, float]:
        """Several epochs of minibatches over one rollout; every row exactly once an epoch.

        ``records`` are those of minibatches that an interrupted update has done already; new ones are added to it.
        """
        self.records = [] if records is None else records
        rate = self._set_learning_rate()
        minibatches = self._minibatches()
        for rows in minibatches[len(self.records) :]:
            tokens = float(max(1, sum(len(rollout.responses[i]) for i in rows)))

            def backward(part: list[int], tokens: float = tokens) -> dict[str, Tensor]:
                return self.backward(rollout, part, tokens)

            losses = self.micro.accumulate(
                rollout, rows, backward, STEP_METRICS, self.gradients, undo=self._discard_gradients
            )
            record = self.optimizer_step(losses, tokens, rows)
            self.records.append(record)
            self.nonfinite.record(record.applied, f"PPO, update {self.update_index + 1}", record.norms)
            if len(self.records) < len(minibatches):
                self.safe_point()
        metrics = update_metrics(self.records)
        return metrics | {"ppo/skipped_steps": float(self.nonfinite.total), "ppo/learning_rate": rate}

    def backward(self, rollout: Rollout, index: list[int], tokens: float) -> dict[str, Tensor]:
        """Losses of one micro-batch and their gradients; each role is held through its own backward.

        Args:
            rollout: what was sampled, with advantages and returns.
            index: the micro-batch's rows.
            tokens: response tokens of the whole minibatch over all processes: the denominator of every mean.
        """
        config, rows = self.config, rollout.rows(index, self.context.pad_id)
        width = max(1, *(len(rollout.responses[i]) for i in index))
        mask = rollout.mask[rows.numbers, :width]

        def padded(flat: Tensor) -> Tensor:
            return scatter(flat, rows.response_lengths, width)

        def old(field: Tensor) -> Tensor:
            return field[rows.numbers, :width]

        def value_loss(values: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return ppo_math.value_loss(
                padded(values), old(rollout.values), old(rollout.returns), mask, config.value_clip, tokens
            )

        with self.base.role("policy") as policy:
            logprobs, entropy = policy_pass(policy, rows, config.temperature, config.entropy_coef > 0)
            if not self.records:  # no step since the rollout: the policy is still the one that sampled
                self.old.compare(padded(logprobs), old(rollout.logprobs), mask)
            loss, about_policy = ppo_math.policy_loss(
                padded(logprobs), old(rollout.logprobs), old(rollout.advantages), mask, config.clip, tokens
            )
            total = loss - config.entropy_coef * ppo_math.masked_mean(padded(entropy), mask, tokens)
            if self.value_on_policy:
                value_part, about_value = value_loss(self.policy_value(policy, rows))
                total = total + config.value_coef * value_part
            total.backward()
        if not self.value_on_policy:
            with self.base.role("value") as value:
                value_part, about_value = value_loss(value_pass(value, rows))
                value_part.backward()
        metrics = {"loss/policy": loss, "loss/value": value_part}
        metrics |= {f"policy/{name}": x for name, x in about_policy.items()}
        return metrics | {f"value/{name}": x for name, x in about_value.items()}

    def optimizer_step(self, losses: dict[str, Tensor], tokens: float, row_ids: list[int]) -> StepRecord:
        """Add gradients over processes, clip each role's by its own norm, and step where all of it is finite."""
        config, totals = self.config, torch.stack([losses[name] for name in STEP_METRICS]).tolist()
        if not self.records:
            self.old.conclude()
        roles = [list(self.policy_parameters.values()), list(self.value_parameters.values())]
        self.gradients.finish()
        ptx = {} if self.ptx is None or self.warming_up else {"ppo/loss/ptx": self.ptx.add(self.steps_done)}
        for budget in self.budgets:
            budget.add_orthogonality()
        norms = torch.stack([clip_gradients(p, config.max_grad_norm) for p in roles]).tolist()
        applied = all(map(math.isfinite, [*norms, *totals[:2], *ptx.values()]))
        if applied:
            if self.warming_up:
                for p in roles[0]:
                    p.grad = None
            self.optimizer.step()
            self.take_ranks()
        self.optimizer.zero_grad(set_to_none=True)
        return StepRecord(
            row_ids=row_ids,
            tokens=tokens,
            policy_grad_norm=norms[0],
            value_grad_norm=norms[1],
            learning_rate=self.optimizer.param_groups[0]["lr"],
            applied=applied,
            metrics={f"ppo/{name}": x for name, x in zip(STEP_METRICS, totals, strict=True)} | ptx,
        )

    @property
    def warming_up(self) -> bool:
        """Whether this update trains the value role alone."""
        return self.update_index < self.config.critic_warmup

    @property
    def steps_done(self) -> int:
        """Optimizer steps of the stage before this one."""
        return self.update_index * self.config.epochs * self.config.minibatches + len(self.records)

    def take_ranks(self) -> None:
        """AdaLoRA's budgets after this step, of all steps of the stage."""
        each = self.config.epochs * self.config.minibatches
        for budget in self.budgets:
            budget.after_step(self.steps_done + 1, self.config.updates * each)

    def summary(self, rollout: Rollout) -> dict[str, float]:
        """The rollout's metrics, and what this update took."""
        retry = self.micro.retry
        return rollout_metrics(rollout, self.controller.coef) | {
            "objective/kl_coef": self.controller.coef,
            "memory/peak": float(peak_memory(self.base.device)),
            retry.name.replace("ppo.", "memory/"): float(self.micro.size),
        }

    def _minibatches(self) -> list[list[int]]:
        """The rows of every minibatch of all epochs, in order; an epoch is a fresh permutation."""
        config, out = self.config, list[list[int]]()
        for epoch in range(config.epochs):
            g = generator(self.context.seed, "ppo/minibatches", self.update_index * config.epochs + epoch)
            out += [chunk.tolist() for chunk in ppo_math.minibatches(config.rollouts, config.minibatches, g)]
        return out

    def _set_learning_rate(self) -> float:
        """Put every group at its rate for this update; the policy's rate."""
        config = self.config
        factor = schedule_factor(config.schedule, self.update_index / config.updates, config.final_learning_rate)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        return self.base_rates[0] * factor

    def _discard_gradients(self) -> None:
        """Leave nothing of a minibatch for which memory did not suffice."""
        self.optimizer.zero_grad(set_to_none=True)
        drop_parts(self.gradients.parameters)
        self.old.forget()
