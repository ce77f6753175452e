"""PPO as a stage: roles from the finished SFT and reward stages, the loop, and what is written at the end."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from data.common.errors import CheckpointError, NonFiniteError, StageError, UserError, located
from data.common.patience import each
from data.counting import Fitted, Tally, log_row, warned
from data.records import Prompt
from data.storage.views import View, origin_of
from data.template import Renderer
from models.backbone.scalar_head import ScalarHead
from models.hub.limits import check_rows
from models.roles.export import save_role
from reward.model import RewardModel
from reward.terms.composition import compose
from reward.terms.judge import summaries
from stages.ppo import state as ppo_state
from stages.ppo.holdout_monitor import HoldoutMonitor
from stages.ppo.ptx import ptx_rows
from stages.ppo.self_check import require, self_check
from stages.ppo.update import PPO
from stages.ppo.warning_signs import Warned, Watch
from stages.safe_points.checkpoints import State
from stages.settings import KEPT, PPOConfig
from stages.stage import StageContext, StageResult, prompt_rows, settings_of_copy


def run(
    context: StageContext, config: PPOConfig, model: RewardModel | None, judge: RewardModel | None = None
) -> StageResult:
    """Align the ``sft`` role's copy; write ``adapter/`` (the policy), ``value/`` and the policies kept on the way.

    Expects the role ``reference`` (the SFT adapter) and, where the reward model stands on this base, ``reward``.
    ``judge`` is the held-out reward model: it evaluates the policy and is not optimised.
    """
    if config.keep == "best" and judge is None:
        raise UserError("ppo.keep: 'best' is chosen by a held-out reward model: set reward.holdout, for example 0.2")
    prompts, tally = counted_prompts(context, config)
    context.log.note(log_row(tally.as_dict()))
    reward = compose(
        config.reward,
        model,
        context.recipe_folder,
        standardise=config.standardise_scores,
        device=context.processes.device,
    )
    add_roles(context, config, model)
    ppo = PPO(context, config, prompts, reward, ptx_rows=ptx_rows(context, config) if config.ptx_coef else ())
    optimised = any(part.kind == "model" for part in config.reward)
    monitor = HoldoutMonitor(ppo, judge, model if optimised else None) if judge is not None else None
    if ppo.remote is not None:
        ppo.remote.check(max(map(len, ppo.stream.queries)), config.max_new_tokens)
    resume_or_check(ppo, monitor, model)
    loop = Loop(ppo, monitor)
    last = loop.run()
    if ppo.remote is not None:
        ppo.remote.close()
    for text in summaries([source for _, _, source in reward.parts]):
        context.say(text)
    kept = monitor.keep_best() if monitor is not None and config.keep == "best" else ppo.update_index
    for role, folder in (("policy", context.out), ("value", context.out / "value")):
        save_role(context.base, role, folder, main=context.processes.is_main)
    return StageResult(
        metrics={
            "updates": ppo.update_index,
            "prompts": len(prompts),
            "prompts_left_out": sum(tally.dropped.values()),
            "counts": tally.as_dict(),
            **({} if ppo.ptx is None else {"ptx_rows": len(ppo.ptx.rows)}),
            "skipped_steps": ppo.nonfinite.total,
            "kept_update": kept,
            **({"holdout": monitor.summary()} if monitor is not None else {}),
            "warnings": [
                *warned(tally.warning()).get("warnings", []),
                *({"step": w.step, "text": w.text} for w in [*loop.watch.given, *onset_warnings(monitor)]),
            ],
            # only the main process, whose metrics are kept, knows them where all updates were done before a checkpoint
            **{name: last[name] for name in ("objective/kl", "objective/scores", "rollout/length") if name in last},
        }
    )


def resume_or_check(ppo: PPO, monitor: HoldoutMonitor | None, model: RewardModel | None) -> None:
    """Go on from the newest checkpoint; at the beginning, compare what PPO takes for equal.

    Raises:
        UserError: it is not equal.
    """
    saved = ppo.context.checkpoints.resume()
    if saved is None:
        if ppo.config.self_check:
            require(self_check(ppo, model))
        return
    ppo_state.restore(ppo, saved)
    if monitor is not None:
        monitor.restore(saved)


class Loop:
    """PPO's updates with what happens around them: the held-out reward model, warnings, logs, checkpoints."""

    def __init__(self, ppo: PPO, monitor: HoldoutMonitor | None) -> None:
        self.ppo, self.context, self.monitor = ppo, ppo.context, monitor
        self.watch = Watch(critic_warmup=ppo.config.critic_warmup)
        ppo.safe_point = self.safe_point

    def run(self) -> dict[str, float]:
        """All updates that are left; the metrics of the last one.

        Raises:
            StageError, UserError: a scorer that does not answer, or a function of the user's that fails; what was
                finished before is saved.
        """
        last: dict[str, float] = {}
        for last in self.context.log.rows():  # of the updates before the checkpoint; reported already
            self.watch.record(int(last["step"]), last)
        if self.monitor is not None and self.monitor.due:
            self.monitor.evaluate()
        try:
            for last in self.ppo.train():
                self.after_update(last)
        except (StageError, UserError) as error:
            raise self.saved_before(error) from error
        config, trained = self.ppo.config, self.ppo.policy_parameters | self.ppo.value_parameters
        if without := self.ppo.gradients.reached.warning(trained):
            self.context.warn(f"PPO: {without}")
        self.ppo.nonfinite.require_a_step(config.updates * config.epochs * config.minibatches, "PPO")
        return last

    def after_update(self, metrics: dict[str, float]) -> None:
        """Evaluate, warn, log, show, keep and save; the held-out reward model adds to ``metrics``."""
        number = self.ppo.update_index
        if self.monitor is not None and self.monitor.due:
            metrics |= self.monitor.evaluate()
        self.context.log.write(number, metrics)
        new = [w.text for w in onset_warnings(self.monitor) if w.step == number]
        for text in [*self.watch.record(number, metrics), *new]:
            self.context.warn(f"PPO, update {number}: {text}")
        shown = {k.split("/")[-1]: metrics[k] for k in ("objective/scores", "objective/kl", "rollout/length")}
        self.context.bar.advance(number, shown, int(metrics["tokens/response"]))
        every = self.ppo.config.keep_every
        if every and number % every == 0:
            folder = self.context.out / KEPT / f"update_{number}"
            save_role(self.context.base, "policy", folder, main=self.context.processes.is_main)
        self.safe_point(number)

    def state(self) -> State:
        """What a checkpoint keeps."""
        state = ppo_state.snapshot(self.ppo)
        return state if self.monitor is None else self.monitor.add_to(state)

    def safe_point(self, step: int | None = None) -> None:
        """A moment at which the state could be saved; ``step`` where an update has just ended."""
        good = self.ppo.nonfinite.in_a_row == 0
        self.context.checkpoints.safe_point(self.ppo.position, self.state, step, good=good)

    def saved_before(self, error: Exception) -> Exception:
        """Save what is finished; the error, saying where the run resumes once it is fixed."""
        checkpoints, words = self.context.checkpoints, ""
        lasting = isinstance(error, CheckpointError | NonFiniteError)
        if not lasting and checkpoints.save_now(self.ppo.position, self.state()):
            words = (
                f"\n{self.ppo.update_index} of {self.ppo.config.updates} updates are done and saved; once it is "
                "fixed, the same command resumes from there"
            )
        return type(error)(f"{error}{words}")


def onset_warnings(monitor: HoldoutMonitor | None) -> list[Warned]:
    """The warning, at the evaluation that shows it, that the reward is being over-optimised; or none."""
    found = monitor.onset() if monitor is not None else None
    if found is None:
        return []
    text = (
        f"the reward is over-optimised: since update {found.after} its score has kept rising while that of the "
        "held-out reward model has fallen. Keep that policy (ppo.keep: best), raise ppo.kl_coef, or train less long."
    )
    return [Warned(found.seen, text)]


def counted_prompts(context: StageContext, config: PPOConfig) -> tuple[Sequence[Prompt], Tally]:
    """Training prompts that fit ``max_prompt_tokens`` and the model's positions, and the count of all.

    Raises:
        UserError: none fit.
    """
    positions = context.base.context_length
    prompts, tally = fitting_prompts(context.renderer, context.corpus.prompts.train, config, positions)
    left_out = sum(tally.dropped.values())
    kept = prompt_rows(context.renderer, prompts)
    check_rows(
        context.base.limits, kept, "data.prompts", "lower ppo.max_new_tokens", context.warn, config.max_new_tokens
    )
    if not prompts:
        raise none_fits(left_out, prompt_limit(config, positions))
    if left_out:
        context.warn(f"{left_out} prompts are longer than {tally.limit} tokens and are left out")
        if tally.warning():
            context.warn(f"PPO: {tally.warning()}")
    return prompts, tally


def prompt_room(config: PPOConfig, positions: int | None) -> int | None:
    """What a response leaves of the base's positions for its prompt; None where nothing says how many those are."""
    return None if positions is None else positions - config.max_new_tokens


def prompt_limit(config: PPOConfig, positions: int | None) -> int:
    """The longest prompt in tokens: the recipe's limit, and what a response leaves of the base's positions.

    Raises:
        UserError: it leaves none.
    """
    room = prompt_room(config, positions)
    if room is None:
        return config.max_prompt_tokens
    if room < 1:
        raise UserError(
            f"ppo.max_new_tokens: {config.max_new_tokens} leaves no room for a prompt in the base's "
            f"{positions} positions; lower it"
        )
    return min(config.max_prompt_tokens, room)


def none_fits(count: int, limit: int) -> UserError:
    """The error where no training prompt fits."""
    return UserError(f"data.prompts: none of {count} training prompts has at most {limit} tokens; PPO needs some")


def fitting_prompts(
    renderer: Renderer, prompts: Sequence[Prompt], config: PPOConfig, positions: int | None
) -> tuple[Sequence[Prompt], Tally]:
    """Prompts that the settings and the base's positions leave room for, and the count of all; see ``prompt_limit``."""
    limit = prompt_limit(config, positions)
    room = prompt_room(config, positions)
    tally = Tally(unit="prompts", key="ppo.max_prompt_tokens", limit=limit, room=room, sign=renderer.unknown_id)
    kept = array("Q")
    for place, prompt in enumerate(each(prompts, "rendering prompts")):
        with located(prompt.source):
            query = renderer.prompt_ids(prompt.messages)
        fits = len(query) <= limit
        why = "" if fits else f"longer than {limit:,} tokens"
        tally.record([Fitted.of(query, [], range(len(query)), 0)], why, origin_of(prompts, place))
        if fits:
            kept.append(place)
    return View(prompts, np.array(kept, np.int64)), tally


def add_roles(context: StageContext, config: PPOConfig, model: RewardModel | None) -> None:
    """The policy starts as the reference; the value role as the reward model, the reference, or a head alone."""
    base, seed = context.base, context.seed
    base.add_role("policy", settings_of_copy(context, "policy", "reference"), copy_of="reference", seed=seed)
    shares_base = "reward" in base.roles
    if config.value.init == "policy_trunk":
        base.add_head("value", seed).zero_()
        return
    start = "reward" if config.value.init == "reward" and shares_base else "reference"
    base.add_role("value", settings_of_copy(context, "value", start), copy_of=start, head=True, seed=seed)
    head = base.heads["value"].zero_()  # type: ignore[operator]
    if start == "reward" and config.value.head == "copy":
        copy_reward_head(base.heads["reward"], head, model, config.standardise_scores)


def copy_reward_head(source: nn.Module, target: nn.Module, model: RewardModel | None, standardise: bool) -> None:
    """The value of a state starts as its score by the reward model, less the mean and, if asked, standardised."""
    assert isinstance(source, ScalarHead) and isinstance(target, ScalarHead) and model is not None
    scale = 1.0 / max(model.score_std, 1e-6) if standardise else 1.0
    with torch.no_grad():
        target.weight.copy_(source.weight * scale)
        target.bias.copy_((source.bias - model.head_mean) * scale)
