# ruff: noqa: E501 - a table: one defect a line or two
"""Planted defects: each names its class, one exact piece of source, what stands there instead, and who must notice.

Pure data. ``old`` occurs exactly once in its file. ``tests`` is a pytest selection: a file, then words for ``-k``.
"""

from __future__ import annotations

from dataclasses import dataclass

MATHS, PPO = "tests/stages/test_ppo_math.py", "tests/stages/ppo/test_update.py"
ORACLE, FAMILIES = "tests/conformance/test_oracle.py", "tests/conformance/test_families.py"
PATH, TRAINING = "tests/conformance/test_ppo_path.py", "tests/conformance/test_reward_sft.py"
SAMPLING, ROLES = "tests/models/backbone/test_logprobs_and_sampling.py", "tests/models/roles/test_shared_base.py"
STAGES, LOSSES = "tests/stages/test_sft_reward.py", "tests/reward/test_losses.py"
ACCURACY, SHARED, RESPONSE = (
    "tests/reward/card/test_accuracy.py",
    "tests/reward/test_shared_prompt.py",
    "tests/models/roles/test_response_loss.py",
)
BATCHES, TEMPLATE = "tests/data/test_batching.py", "tests/data/test_template.py"

PLAIN = "plain and llama-False"
ALL = "everything and llama-False"


@dataclass(frozen=True)
class Mutant:
    """One defect."""

    group: str  # class of docs/design/conformance.md
    what: str
    file: str
    old: str
    new: str
    tests: str
    select: str


def _of(group: str, what: str, file: str, old: str, new: str, tests: str, select: str) -> Mutant:
    return Mutant(group=group, what=what, file=file, old=old, new=new, tests=tests, select=select)


M, PM, RO, GEN, LP, SB, FW = (
    "stages/ppo/update.py", "stages/ppo_math.py", "stages/ppo/rollout.py", "models/sampling/generate.py", "models/backbone/logprobs.py",
    "models/roles/shared_base.py", "models/backbone/forward.py",
)  # fmt: skip
FAW, FAL, FAY, FAE, FAH = (
    "models/fast/weights.py",
    "models/fast/layers.py",
    "models/fast/layout.py",
    "models/sampling/decoding.py",
    "models/fast/logprobs.py",
)
DEVICE, DOUBLE = "models/sampling/device_steps.py", "tests/gpu/test_double.py"
FAT, OL, STATE = "models/fast/prefix_cache.py", "stages/ppo/old_logprobs.py", "stages/ppo/state.py"
LL, FAP = "stages/ppo/shared_layers.py", "models/fast/products.py"
OPT, MET = "stages/ppo/optimizer.py", "stages/ppo/metrics.py"
FAST = "tests/models/fast/test_fast_path.py"
HALF = "tests/models/fast/test_bf16.py"
OLD, LOWER = "tests/stages/ppo/test_old_logprobs.py", "tests/stages/ppo/test_shared_layers.py"
BA, TE, NLL = "data/batching.py", "data/template.py", "models/roles/response_loss.py"
RM, RTR, RL, SP = "reward/model.py", "stages/training/ranking_trainer.py", "reward/losses.py", "reward/shared_prompt.py"
FI, HE, SFT, PS = "models/roles/files.py", "models/backbone/scalar_head.py", "stages/sft.py", "stages/ppo/stage.py"

ROLLOUT = [
    _of("R2", "fast path: position one late in decoding", FAE, "self.lengths[self.at] + step", "self.lengths[self.at] + step + 1", FAST,
        "tokens_are_those and llama"),
    _of("R2", "steps of a device: a window one token wide of the mark", FAE, "<= self.column - window", "< self.column - window", DOUBLE,
        "tokens_of_the_cpu and gemma2"),
    _of("R19", "steps of a device: noise of rows that have left", DEVICE, ".squeeze(1)[self.at]", ".squeeze(1)[: len(self.at)]", DOUBLE,
        "tokens_of_the_cpu"),
    _of("R2", "steps of a device: a token does not see itself", DEVICE, "index_fill_(3, self.column, 0.0)", "index_fill_(3, self.column - 1, 0.0)",
        DOUBLE, "tokens_of_the_cpu and llama"),
    _of("R2", "steps of a device: what was captured is kept for other rows", DEVICE, "if changed or columns != self.columns:",
        "if columns != self.columns:", DOUBLE, "tokens_of_the_cpu"),
    _of("R2", "steps of a device: states not written to the graph's memory", DEVICE, "self.hidden.copy_(rms_norm(x, decoder.norm, decoder.epsilon))",
        "self.hidden = rms_norm(x, decoder.norm, decoder.epsilon)", DOUBLE, "tokens_of_the_cpu"),
    _of("R2", "fast path: prompts of all lengths begin in one column", FAE, "cells + (width - lengths)[", "cells + 0 * (width - lengths)[", FAST,
        "tokens_are_those and llama"),
    _of("R2", "fast path: storage laid out anew without what was in it", FAE, "new[:rows, :, :used] = old[:rows].clone()", "pass", FAST,
        "columns_stay"),
    _of("R2", "fast path: columns that hold nothing yet are not cleared", FAE, "new[:rows, :, used:] = 0.0", "pass", FAST,
        "columns_stay"),
    _of("R2", "fast path: a token does not see itself", FAE, "self.hidden[:rows, :, :, column] = 0.0", "self.hidden[:rows, :, :, column - 1] = 0.0",
        FAST, "tokens_are_those and llama"),
    _of("R19", "fast path: a row takes another's place but keeps its draws", FAE,
        "self.at, self.done, x, positions = (t[places] for t in (self.at, self.done, x, positions))",
        "self.at, self.done, x, positions = self.at[: len(places)], self.done[places], x[places], positions[places]", FAST, "tokens_are_those and llama"),
    _of("R15", "fast path: the adapter's scale forgotten", FAP, "alpha=p.scale, out=weight[part]", "alpha=1.0, out=weight[part]",
        FAST, "states_are_those and llama"),
    _of("R15", "fast path: adapter added into the base itself", FAP, "torch.addmm(own, p.b, p.a, alpha=p.scale, out=weight[part])",
        "weight[part] = own.addmm_(p.b, p.a, alpha=p.scale)", FAST, "seen_at_once"),
    _of("L2", "fast path: rows of one length leak into each other", FAY, "        shape=(rows, width),",
        "        shape=(1, rows * width) if full else (rows, width),", FAST, "leak"),
    _of("L2", "fast path: dropout of the adapter ignored", FAW, "or strange or dropping or", "or strange or", FAST, "not_known and dropping"),
    _of("L2", "fast path: hooks ignored", FAW, "not any(hooks)", "True", FAST, "not_known and hooked"),
    _of("F1", "fast path: loss at the token itself", NLL, "labels.flatten()[positions + 1]",
        "labels.flatten()[positions].clamp(min=0)", RESPONSE, "plain_path and llama and None"),
    _of("M4", "fast path: answers see those beside them", FAY, "at, row = at + n, row + 1", "at, row = at + n, row", SHARED, "plain_rows and llama"),
    _of("M4", "fast path: responses see one token less of themselves", FAL, "return back >= 0 if", "return back > 0 if", SHARED, "plain_rows and llama"),
    _of("R5", "fast path: log-probabilities ignore the temperature", FAH, "if temperature != 1.0:", "if temperature == 0.0:", FAST,
        "by_blocks"),
    _of("C10", "fast path: gradient of B without the scale", FAL, "(parts[id(p)].T @ u).to(own).mul_(p.scale)", "(parts[id(p)].T @ u).to(own)", FAST,
        "gradients_are_those and llama"),
    _of("C10", "fast path: rotation not turned back", FAL, "rotate(g.to(cos.dtype), cos, -sin)",
        "rotate(g.to(cos.dtype), cos, sin)", FAST, "gradients_are_those and llama"),
    _of("R15", "bf16 products: the adapter's scale forgotten", FAP, "torch.mul(p.b, p.scale, out=", "torch.mul(p.b, 1.0, out=", HALF,
        "no_further and llama"),
    _of("C10", "bf16 products: no gradient through the adapter", FAP, "if (thin := _thin(group, self.dtype)) is not None:",
        "if False and (thin := _thin(group, self.dtype)):", HALF, "no_further and llama"),
    _of("L2", "bf16 products: the sampler's log-probabilities believed", FAP, "return product_dtype(decoder.embeddings) != torch.bfloat16",
        "return True", OLD, "not_known_to_agree"),
    _of("R15", "widened bf16 weights: the adapter's scale forgotten", FAP, "weight[part].addmm_(p.b, p.a, alpha=p.scale)",
        "weight[part].addmm_(p.b, p.a, alpha=1.0)", HALF, "no_further and llama"),
    _of("R1", "prompts padded on the right", GEN, "import left_pad\n", "import right_pad as left_pad\n", SAMPLING,
        "does_not_depend_on_the_batch and llama"),
    _of("R1", "padding sides swapped", BA, "if left else", "if not left else", BATCHES, "masks_come_from_lengths"),
    _of("R2", "positions count padding", FW, "(mask.long().cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]",
        "torch.arange(mask.shape[1])[None, -ids.shape[1] :]", SAMPLING, "padding_and_neighbours and gpt2"),
    _of("R3", "mask from the padding id when batching", BA, "mask[i, where] = True", "mask[i, where] = ids[i, where] != pad_id",
        BATCHES, "masks_come_from_lengths"),
    _of("R3", "mask from the padding id in rows", LP, "mask=steps < (query_lengths + response_lengths)[:, None]", "mask=ids != pad_id", SAMPLING,
        "tempered_softmax"),
    _of("R4", "top-k of 5 leaks into sampling", GEN, "torch.softmax(tempered, dim=-1)",
        "torch.softmax(tempered.masked_fill(logits < logits.topk(5).values[:, -1:], -1e9), dim=-1)", SAMPLING,
        "sampled_tokens_follow"),
    _of("R5", "sampling ignores the temperature", GEN, "logits.float() if temperature == 1.0 else",
        "logits.float() if temperature else", SAMPLING, "sampled_tokens_follow"),
    _of("R5", "log-probabilities ignore the temperature", LP, "if temperature == 1.0 else logits / temperature", "if temperature else logits",
        SAMPLING, "tempered_softmax"),
    _of("R5", "reference without the temperature", M, "policy_pass(reference, rows, temperature)",
        "policy_pass(reference, rows, 1.0)", PPO, "before_the_first and llama"),
    _of("R5", "new log-probabilities without the temperature", M, "policy_pass(policy, rows, config.temperature, config.entropy_coef > 0)",
        "policy_pass(policy, rows, 1.0, config.entropy_coef > 0)", PPO, "before_the_first and llama"),
    _of("R6", "functional attention dropout stays", FW, "setattr(module, name, 0.0)", "setattr(module, name, value)", ROLES,
        "dropout_is_off"),
    _of("R6", "dropout modules stay", FW, "module.p = 0.0", "module.p = module.p + 0.0", ROLES, "dropout_is_off"),
    _of("R6", "train mode under checkpointing", FW, "module.training = True  # this flag alone", "module.train()  #", FAMILIES,
        "dropout_of_the_adapters and llama"),
    _of("R7", "sampling loses its cache under checkpointing", GEN, "with checkpointing_paused(role.lm):", "if True:", FAMILIES,
        "generation_is_the_same and llama"),
    _of("R8", "only the first stop id ends a row", GEN, "torch.isin(tokens, self.ids)", "tokens == self.ids[0]", SAMPLING,
        "rows_end_with"),
    _of("R9", "mask without the stop token", PM, "[None] < lengths[:, None]", "[None] < lengths[:, None] - 1", PATH,
        "sampled_ids"),
    _of("R9", "sampler drops the stop token", GEN, "[t for t in row if t >= 0]", "[t for t in row if t >= 0 and t != params.stop_ids[0]]",
        SAMPLING, "rows_end_with"),
    _of("R10", "stop token written over the last token", GEN, "for row in out.tolist()]",
        "for row in out.index_fill(1, torch.tensor([params.max_new_tokens - 1]), int(params.stop_ids[0])).tolist()]", SAMPLING, "rows_end_with"),
    _of("R11", "finished guessed from the width", GEN, "finished=done.tolist()",
        "finished=[int((row >= 0).sum()) < params.max_new_tokens for row in out]", SAMPLING, "rows_end_with"),
    _of("R12", "answers decoded and encoded again for the reward model", RM, "if self.takes_ids:", "if not self.takes_ids:", PATH,
        "reward_models_score_in_ppo"),
    _of("R13", "query without the end of its generation prompt", M, "[context.renderer.prompt_ids(p.messages) for p in prompts]",
        "[context.renderer.prompt_ids(p.messages)[:-1] for p in prompts]", PPO, "score_sees"),
    _of("R13", "two BOS", TE, "added = () if ids[:1] == list(self._added_bos) else self._added_bos", "added = self._added_bos",
        TEMPLATE, "bos"),
    _of("R14", "no room kept for the answer", PS, "positions - config.max_new_tokens",
        "positions", PATH, "do_not_fit"),
    _of("R15", "rollouts from the reference", M, 'with self.base.role("policy") as role:', 'with self.base.role("reference") as role:',
        PATH, "drawn_from_the_policy"),
    _of("R16", "one draw for all rows", GEN, "torch.rand((rows, steps), generator=generator, dtype=torch.float64)",
        "torch.rand((1, steps), generator=generator, dtype=torch.float64).expand(rows, steps)", PATH, "equal_prompts"),
    _of("R17", "padding id outside the embeddings is handed on", "stages/stage.py",
        "return pad if pad < self.base.lm.get_input_embeddings().weight.shape[0] else 0", "return pad", PATH,
        "outside_the_vocabulary"),
    _of("R18", "mean over nothing is NaN", PM, "count = mask.sum().clamp(min=1) if", "count = mask.sum() if", TRAINING,
        "nothing_real"),
    _of("R19", "chunks lose their order", GEN, "for i, row, flag in zip(chosen,", "for i, row, flag in zip(sorted(chosen),",
        PATH, "chunks_of_unsorted"),
    _of("R19", "draws of another row in a chunk", GEN, "noise[list(chosen)]", "noise[: len(chosen)]", PATH,
        "chunks_of_unsorted"),
    _of("R20", "prompts in another order than queries", M, "prompts=[self.stream.prompts[i] for i in chosen]",
        "prompts=[self.stream.prompts[i] for i in sorted(chosen)]", PPO, "score_sees"),
    _of("R20", "prompts drawn with replacement", "stages/ppo/prompt_stream.py", "torch.randperm(len(self.prompts), generator=g)",
        "torch.randint(len(self.prompts), (len(self.prompts),), generator=g)", PATH, "visits_every_prompt"),
]  # fmt: skip

LOGPROBS = [
    _of("L1", "state one later", LP, "first = self.query_lengths[:, None] - 1", "first = self.query_lengths[:, None]", SAMPLING,
        "response_positions"),
    _of("L1", "token of the state itself", LP, "self.response_positions() + 1", "self.response_positions() + 0", SAMPLING,
        "response_positions"),
    _of("L2", "old log-probabilities rounded to bf16", M, "scatter(flat.float(), rows.response_lengths, width)",
        "scatter(flat.bfloat16().float(), rows.response_lengths, width)", PPO, "before_the_first and llama"),
    _of("L2", "old log-probabilities of the reference", M, 'if source == "policy":', 'if source == "nobody":', OLD, "are_taken"),
    _of("L2", "old log-probabilities of the reference, always", M, 'if source == "reference":', 'if source != "sampler":', OLD,
        "are_taken"),
    _of("L2", "a policy that has moved taken for the reference", OL, "and same_weights(own, other)", "or same_weights(own, other)", OLD,
        "other_settings"),
    _of("L2", "the sampler's log-probabilities are believed unseen", OL, "self._judge(self._of_some_rows(policy, rollout))",
        "self._judge(0)", OLD, "not_believed"),
    _of("L2", "the sampler's log-probabilities of a float64 base", OL, "and decoder.norm.dtype == torch.float32", "", OLD,
        "not_known_to_agree"),
    _of("L2", "a sampler that goes wrong later is not seen", M, "            if not self.records:  # no step", "            if False:  # no step", OLD,
        "wrong_later"),
    _of("L2", "sampler's lower states one position late", FAE, "storage.prefix_states[self.at, positions] = x", "storage.prefix_states[self.at, positions - 1] = x",
        LOWER, "sampler_keeps"),
    _of("L2", "sampler's lower states not compared before they are used", LL, "> TOLERANCE:", "> 1e9:", LOWER, "far_from"),
    _of("K2", "the sampler's lower states missing in a checkpoint", STATE, "if rollout.prefix_states is not None and ppo.mine:",
        "if not ppo.mine:", LOWER, "interrupted"),
    _of("L2", "known products without the adapter's part", FAP, "part.addmm_(x @ p.a.T, p.b.T, alpha=p.scale)", "pass", LOWER,
        "states_and_gradients"),
    _of("L2", "kept lower layers used below an adapter", FAT, "or decoder.lowest < self.depth", "or decoder.lowest < 0", LOWER,
        "only_for_its_rows"),
    _of("L3", "softmax in bf16", LP, "logits = logits.to(torch.promote_types(logits.dtype, torch.float32))",
        "logits = logits + 0", FAMILIES, "of_a_bf16_model"),
    _of("L4", "mask by multiplication", PM, "return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))",
        "return x * mask", MATHS, "masked_slots"),
    _of("L5", "ratio averaged over padding", PM, '"ratio": masked_mean(ratio, mask, denominator)', '"ratio": ratio.mean()', MATHS,
        "masked_slots"),
    _of("L6", "numerator without its mask", PM, "return _clean(x, mask).sum()", "return x.sum()", MATHS, "masked_mean_by_hand"),
    _of("L7", "prompt tokens as actions", LP, "inside = (steps >= first) & (steps", "inside = (steps >= 0) & (steps", SAMPLING,
        "response_positions"),
    _of("L8", "padding is attended to", FW, "attention_mask=mask.long()", "attention_mask=torch.ones_like(mask).long()", SAMPLING,
        "padding_and_neighbours and llama"),
]  # fmt: skip

REWARDS = [
    _of("W1", "score one token early", PM, "last = mask & (later == 1)", "last = mask & (later == 2)", MATHS, "score_lands"),
    _of("W1", "score on every token", PM, "torch.where(last, scores", "torch.where(mask, scores", MATHS, "score_lands"),
    _of("W2", "KL is paid for", PM, "rewards = -kl_coef", "rewards = kl_coef", MATHS, "score_lands"),
    _of("W2", "KL the wrong way round", PM, "k1 = logprobs - ref_logprobs", "k1 = ref_logprobs - logprobs", MATHS, "by_hand"),
    _of("W3", "k3 in the reward", M, 'rollout.ref_logprobs, "k1")', 'rollout.ref_logprobs, "k3")', PPO, "rewards_are"),
    _of("W4", "KL of padding counts", PM, "_clean(kl, mask)", "kl", MATHS, "score_lands"),
    _of("W5", "the base as reference", M, 'self.base.role("reference") as reference', 'self.base.role("base") as reference', PPO,
        "before_the_first and llama"),
    _of("W5", "policy starts from the base", PS, 'copy_of="reference", seed=seed)', "copy_of=None, seed=seed)", PATH,
        "critic_starts"),
    _of("W6", "reference follows the policy", M, "        self.update_index += 1\n",
        "        self.update_index += 1\n        for a, b in zip(self.base.parameters_of('reference').values(), "
        "self.policy_parameters.values(), strict=True):\n            a.data.lerp_(b.data, 0.01)\n", PPO, "exactly_policy"),
    _of("W7", "reward model drifts", M, "        self.update_index += 1\n",
        "        self.update_index += 1\n        for p in self.base.parameters_of('reward').values() "
        "if 'reward' in self.base.roles else ():\n            p.data.mul_(0.999)\n", PPO, "exactly_policy"),
    _of("W8", "score without its centre", RM, "return raw - self.score_mean", "return raw", PATH, "reward_models_score_in_ppo"),
    _of("W8", "reward model does not see the stop token", RM, "[self.renderer.closed(p.messages, ids) for p, ids in rows])",
        "[r[: len(r) - f] for r, f in zip(samples.responses, samples.finished)])",
        PATH, "reward_models_score_in_ppo"),
    _of("W9", "finished rows are penalised", M, "(~rollout.finished).to(scores.dtype)", "(rollout.finished).to(scores.dtype)", PPO,
        "rewards_are"),
    _of("W9", "penalty is a bonus", M, "rollout.scores = scores - config", "rollout.scores = scores + config", PPO, "rewards_are"),
    _of("W11", "mean kept in the wrong case", PM, "(0.0 if shift_mean else mean)", "(mean if shift_mean else 0.0)", MATHS,
        "whitening_by_hand"),
    _of("W12", "clip after the penalty", M,
        "rollout.scores = scores - config.missing_eos_penalty * (~rollout.finished).to(scores.dtype)",
        "rollout.scores = (rollout.raw_scores - config.missing_eos_penalty * (~rollout.finished).to(scores.dtype))"
        ".clamp(-(config.score_clip or 1e9), config.score_clip or 1e9)", PATH, "penalty_comes_after"),
    _of("W13", "controller sees KL per token", M, 'metrics["objective/kl"], self.config.rollouts',
        'metrics["objective/kl_per_token"], self.config.rollouts', PATH, "controllers_new"),
    _of("W13", "error not clipped below", "stages/ppo/kl_controller.py", "max(-0.2, min(0.2, kl / self.target - 1.0))",
        "min(0.2, kl / self.target - 1.0)", MATHS, "kl_controllers"),
    _of("W14", "raw scores changed in place", M, "scores.clamp(-config", "scores.clamp_(-config", PPO, "rewards_are"),
    _of("W15", "scores on other rows", PM, "scores[:, None].to(rewards.dtype)", "scores.flip(0)[:, None].to(rewards.dtype)",
        MATHS, "score_lands"),
]  # fmt: skip

ADVANTAGES = [
    _of("A1", "lambda forgotten", PM, "gamma * lam * running", "gamma * running", MATHS, "gae_by_hand"),
    _of("A1", "discount forgotten", PM, "gamma * next_value", "next_value", MATHS, "gae_by_hand"),
    _of("A2", "values of padding get through", PM, "_clean(rewards, mask), _clean(values, mask)", "_clean(rewards, mask), values",
        MATHS, "gae_equals"),
    _of("A2", "the next value is padding's", PM, "torch.where(mask[:, t], values[:, t], next_value)", "values[:, t]", MATHS,
        "gae_equals"),
    _of("A3", "bootstrapped behind the end", PM, "torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])",
        "torch.zeros_like(values[:, 0]), values[:, -1].clone()", MATHS, "undiscounted_credit"),
    _of("A4", "returns from a later critic", M, "old(rollout.returns), mask",
        "(old(rollout.advantages) + padded(values).detach()), mask", ORACLE, PLAIN),
    _of("A5", "whitening counts padding", PM, "mean = total / count.clamp(min=1)", "mean = total / mask.numel()", MATHS,
        "whitening_by_hand"),
    _of("A5", "whitened again per micro-batch", M, "old(rollout.advantages), mask, config.clip",
        "ppo_math.whiten(old(rollout.advantages), mask), mask, config.clip", ORACLE, PLAIN),
    _of("A6", "returns from whitened advantages", M,
        "rollout.advantages = ppo_math.whiten(raw, mask) if config.whiten_advantages else raw",
        "rollout.advantages = ppo_math.whiten(raw, mask) if config.whiten_advantages else raw\n"
        "        rollout.returns = rollout.advantages + rollout.values * mask", PPO, "returns_do_not_depend"),
    _of("A7", "no spread divides by zero", PM, "torch.where(variance > 1e-12, variance.clamp(min=1e-12).rsqrt(), torch.zeros_like(variance))",
        "variance.rsqrt()", MATHS, "too_few"),
    _of("A8", "a masked token discounts", PM, "delta + gamma * lam * running, running)",
        "delta + gamma * lam * running, gamma * lam * running)", MATHS, "gae_equals"),
]  # fmt: skip

POLICY_LOSS = [
    _of("O1", "the smaller loss of clipped and plain", PM, "loss = masked_mean(torch.maximum(", "loss = masked_mean(torch.minimum(",
        MATHS, "right_side"),
    _of("O1", "sign of the surrogate", PM, "-advantages * ratio, -advantages * ratio.clamp", "advantages * ratio, advantages * ratio.clamp",
        MATHS, "right_side"),
    _of("O1", "clipped at half the width", PM, "ratio.clamp(1.0 - clip, 1.0 + clip)", "ratio.clamp(1.0 - clip / 2, 1.0 + clip / 2)",
        MATHS, "right_side"),
    _of("O2", "gradient through the old side", PM, "_clean(logprobs, mask) - _clean(old_logprobs, mask)",
        "_clean(logprobs, mask).detach() * 2 - _clean(logprobs, mask) - _clean(old_logprobs, mask)", MATHS, "right_side"),
    _of("O2", "rollouts with gradients", M, "    @torch.no_grad()\n    def rollout(", "    def rollout(", PPO,
        "nothing_in_a_rollout"),
    _of("O3", "value clipped around the return", PM, "torch.clamp(values, old_values - clip, old_values + clip)",
        "torch.clamp(values, returns - clip, returns + clip)", MATHS, "around_the_old_value"),
    _of("O3", "the smaller value loss", PM, "0.5 * masked_mean(torch.maximum(", "0.5 * masked_mean(torch.minimum(", MATHS,
        "around_the_old_value"),
    _of("O4", "value read one token late", RO, "return view.head(response_states(view, rows))",
        "return view.head(view.hidden(rows.ids, rows.mask).flatten(0, 1)[rows.response_positions() + 1])", PATH,
        "loss_reaches and False"),
    _of("O5", "entropy is punished", M, "total = loss - config.entropy_coef", "total = loss + config.entropy_coef", PATH,
        "entropy_bonus"),
    _of("O5", "entropy from the sampled token", LP, "entropy = normaliser - torch.linalg.vecdot(probabilities, logits)",
        "entropy = -logprobs", SAMPLING, "tempered_softmax"),
    _of("O6", "KL in the loss as well", M, "total = loss - config.entropy_coef",
        "total = loss + self.controller.coef * ppo_math.masked_mean((padded(logprobs) - old(rollout.ref_logprobs)) ** 2, mask, tokens)"
        " - config.entropy_coef", ORACLE, ALL),
    _of("O7", "mean over rows", PM, "count = mask.sum().clamp(min=1) if", "count = mask.any(1).sum().clamp(min=1) if", MATHS,
        "mean_of_means"),
    _of("O8", "ratio overflows", PM, "torch.exp(log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))", "torch.exp(log_ratio)",
        MATHS, "huge_ratio"),
    _of("O8", "steps with non-finite gradients are taken", M, "applied = all(map(math.isfinite, [*norms, *totals[:2], *ptx.values()]))",
        "applied = bool(norms)", PPO, "non_finite"),
]  # fmt: skip

OPTIMISATION = [
    _of("C1", "each micro-batch's own token count, policy", M, "mask, config.clip, tokens", "mask, config.clip, None", PPO,
        "however_the_minibatch_is_cut and float64-llama"),
    _of("C1", "each micro-batch's own token count, value", M, "config.value_clip, tokens", "config.value_clip, None", PPO,
        "however_the_minibatch_is_cut and float64-llama"),
    _of("C1", "each micro-batch's own ranking count", RTR, "count = len(losses) if num_items_in_batch is None else num_items_in_batch",
        "count = len(losses)", TRAINING, "reward_gradients"),
    _of("C2", "one step an epoch", M, "minibatches(config.rollouts, config.minibatches, g)", "minibatches(config.rollouts, 1, g)",
        PPO, "epochs_times_minibatches"),
    _of("C2", "gradients are never zeroed", M, "        self.optimizer.zero_grad(set_to_none=True)\n        return StepRecord", "        return StepRecord", ORACLE, PLAIN),
    _of("C3", "the same order every epoch", M, "self.update_index * config.epochs + epoch", "self.update_index * config.epochs", PPO,
        "epochs_times_minibatches"),
    _of("C3", "rows drawn with replacement", PM, "torch.randperm(rows, generator=generator)",
        "torch.randint(rows, (rows,), generator=generator)", MATHS, "exactly_one_minibatch"),
    _of("C4", "gradient clipping ignored", M, "clip_gradients(p, config.max_grad_norm)", "clip_gradients(p, 1e9)", PPO,
        "clipping_is_applied"),
    _of("C4", "policy clipped by the joint norm", M, "for p in roles]", "for p in ([*roles[0], *roles[1]], roles[1])]", ORACLE, ALL),
    _of("C5", "schedule of twice the length", M, "self.update_index / config.updates,", "self.update_index / config.updates / 2,", PPO,
        "follows_the_schedule"),
    _of("C6", "value adapter not in the optimizer", OPT, "    if adapter:\n", "    if adapter is None:\n", PPO, "exactly_policy"),
    _of("C6", "policy not in the optimizer", OPT, '{"params": list(policy.values()), "lr"',
        '{"params": list(policy.values())[:1], "lr"', PPO, "exactly_policy"),
    _of("C7", "heads are decayed", OPT, 'n.startswith("value.head.")', 'n.startswith("value_head.")', PATH, "decay_does_not_move"),
    _of("C8", "Adam's default epsilon", OPT, "eps=config.adam_epsilon", "eps=1e-8", PPO, "follows_the_schedule"),
    _of("C9", "adapters in bf16", SB, "self.peft.add_adapter(name, config)",
        "self.peft.add_adapter(name, config, autocast_adapter_dtype=False)", FAMILIES, "bf16_base and llama"),
    _of("C10", "recomputed chunks lose their gradient", LP, "checkpoint(_chunk, h, t,", "checkpoint(_chunk, h.detach() if start else h, t,",
        SAMPLING, "gradient_of_the_whole and True"),
    _of("C10", "later chunks lose their gradient", LP, "p.div_(temperature).to(raw.dtype))[0]",
        "p.div_(temperature).to(raw.dtype))[0] * (start == 0)", SAMPLING, "gradient_of_the_whole and False"),
    _of("C11", "draws from the global generator", M, 'generator(context.seed, "ppo/rollout", self.update_index)',
        "torch.default_generator", PPO, "the_same_seed"),
    _of("C11", "minibatches from the global generator", PM, "torch.randperm(rows, generator=generator)", "torch.randperm(rows)", PPO,
        "the_same_seed"),
]  # fmt: skip

ADAPTERS = [
    _of("P1", "PEFT's own switching", "models/roles/together.py", "layer._active_adapter = [adapter] if adapter else []",
        "layer.set_adapter([adapter] if adapter else [])", ROLES, "requires_grad"),
    _of("P2", "adapter switched before backward", M, "            total.backward()\n",
        '            with self.base.role("value"):\n                total.backward()\n', ORACLE, "plain and gpt2-True"),
    _of("P3", "a role is never left", SB, "        finally:\n            self._select(before)", "        finally:\n            pass",
        ROLES, "each_role_has"),
    _of("P3", "roles stay trainable", SB, "            self._restore_trainable(before)\n", "            pass\n", ROLES, "requires_grad"),
    _of("P4", "adding an adapter freezes the others", SB, "self._restore_trainable(trainable)", "self._restore_trainable(set())", ROLES,
        "adding_a_role"),
    _of("P5", "reward runs on the policy's adapter", SB, 'self._select(None if name == "base" else name)',
        'self._select(None if name == "base" else "policy" if name == "reward" else name)', ROLES, "each_role_has"),
    _of("P6", "critic and reward model share a head", PS, "target.weight.copy_(source.weight * scale)",
        "target.weight.data = source.weight.data", PATH, "critic_starts and False"),
    _of("P7", "head not loaded", FI, "        head.load_state_dict({name: tensors[name].float() for name in head.state_dict()})\n",
        "", ROLES, "survives_the_disk and llama"),
    _of("P8", "head saved without its weights", "models/roles/export.py", '{k: v.detach().cpu() for k, v in', '{k: v.detach().cpu() * (k != "weight") for k, v in',
        STAGES, "survives_the_hand_over"),
    _of("P9", "random critic instead of zero", PS, 'head = base.heads["value"].zero_()', 'head = base.heads["value"]', PATH,
        "zero_critic"),
    _of("P11", "fingerprint without the weights", "models/roles/fingerprint.py",
        "                digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())\n",
        "                pass\n", PATH, "fingerprint"),
    _of("P12", "an adapter misses a block", "models/roles/lora.py", 'None if layers == "all" else', 'list(range(count - 1)) if layers == "all" else',
        PATH, "placed_once"),
    _of("P14", "alpha lost on loading", "models/hub/validate.py", 'settings = known.model_dump(exclude_none=True)\n',
        'settings = known.model_dump(exclude_none=True) | {"lora_alpha": known.r}\n', ROLES, "survives_the_disk and llama"),
    _of("P15", "copies start from the base", SB, "            self._fill_adapter(name, {key: state[key] for key in self.adapter_state(name)})\n", "", ROLES,
        "copied_role and llama"),
    _of("P17", "everything is trained", SB, "for p in chosen.values():", "for p in self._all_parameters():", ROLES, "base_gets_no"),
    _of("P18", "value loss on the policy's trunk", M, 'self.value_on_policy = config.value.init == "policy_trunk"', "self.value_on_policy = bool(config)",
        PATH, "value_loss_reaches"),
]  # fmt: skip

REWARD_MODEL = [
    _of("M1", "score at the token before the last", RM, "width + rows.lengths - 1", "width + rows.lengths - 2", STAGES, "last_real_token"),
    _of("M2", "no stop token in training", "stages/training/ranking_rows.py", "ranking.finished[i], max_tokens", "False, max_tokens", TRAINING, "finished_answers"),
    _of("M3", "worse answers are better", RL, "ranks[:, :, None] < ranks[:, None, :]", "ranks[:, :, None] > ranks[:, None, :]", LOSSES,
        "one_pair"),
    _of("M3", "margin added", RL, "difference = difference - margins", "difference = difference + margins", LOSSES, "margin"),
    _of("M4", "scores of other rankings", RTR, ".masked_scatter(present, scores)", ".masked_scatter(present, scores.flip(0))", TRAINING,
        "own_ranking"),
    _of("M4", "pairs with padding", RL, "return (ranks[:, :, None] < ranks[:, None, :]) & mask[:, :, None] & mask[:, None, :]",
        "return (ranks[:, :, None] < ranks[:, None, :]) & mask[:, None, :]", LOSSES, "naive_loops"),
    _of("M4", "padding chosen from in a ranking", RL, "tied = (ranks[:, :, None] == ranks[:, None, :]) & mask[:, :, None] & mask[:, None, :]",
        "tied = ranks[:, :, None] == ranks[:, None, :]", LOSSES, "naive_loops"),
    _of("M3", "ties by Breslow", RL, "left = 1.0 - before / tied.sum(2).clamp(min=1)", "left = 1.0 - 0.0 * before", LOSSES,
        "plackett_luce_by_hand"),
    _of("M4", "rankings without a pair not in the mean", RL, "margins, mask, label_smoothing).mean()",
        "margins, mask, label_smoothing).sum() / (ranks != ranks[:, :1]).any(1).sum().clamp(min=1)", LOSSES, "counts_as_0"),
    _of("M5", "the same answer twice", "stages/training/ranking_rows.py",
        "rows.setdefault((*made.query, -1, *made.response), i) == i", "rows.setdefault((*made.query, -1, *made.response), i) >= 0",
        STAGES, "compared_once"),
    _of("M6", "head too wide", HE, "1.0 / math.sqrt(hidden_size + 1)", "1.0", STAGES, "head_is_initialised"),
    _of("M1", "padding has a share in learned pooling", "reward/pooling.py", "hidden, some", "hidden", SHARED, "plain_rows and llama and learned"),
    _of("M4", "answers see those beside them", SP, "(same | (segments[:, None, :] == 0)).tril()", "(same | (segments[:, None, :] >= 0)).tril()",
        SHARED, "plain_rows and llama"),
    _of("M1", "positions go on from answer to answer", SP, "torch.arange(len(prompt), len(prompt) + len(branch))",
        "torch.arange(at, at + len(branch))", SHARED, "plain_rows and llama"),
    _of("M7", "centred on the median", "stages/training/calibration.py", "mean, std = samples.mean().item()", "mean, std = samples.median().item()", TRAINING, "calibration"),
    _of("M9", "ties are right", RL, "0.5 * wide(difference == 0)", "1.0 * wide(difference == 0)", LOSSES, "ties_as_half"),
    _of("M9", "mean of means", "reward/card/accuracy.py", "return proportion_interval(outcomes, owners.tolist())",
        "return proportion_interval([outcomes[owners == i].mean() for i in np.unique(owners)])", ACCURACY, "by_hand"),
    _of("M9", "pairs of one ranking taken as independent", "reward/card/accuracy.py", "(outcomes, owners.tolist())", "(outcomes)", ACCURACY,
        "units"),
    _of("M10", "head in bf16", HE, "return hidden.to(self.weight.dtype) @ self.weight + self.bias",
        "return (hidden.bfloat16() @ self.weight.bfloat16() + self.bias.bfloat16()).float()", FAMILIES, "small_differences"),
    _of("M11", "the policy's ids on another vocabulary", RM, "if self.takes_ids:", "if self.renderer:", PATH, "another_base"),
]  # fmt: skip

INSTRUCTION = [
    _of("F1", "prompt supervised", TE, "labels = [IGNORE] * len(prompt.ids)", "labels = list(prompt.ids)", TEMPLATE, "labels_are"),
    _of("F2", "padding id never supervised", SFT, '    labels, _ = right_pad([row["labels"] for row in batch], -100)\n',
        '    labels, _ = right_pad([row["labels"] for row in batch], -100)\n    labels = labels.masked_fill(ids == pad_id, -100)\n',
        STAGES, "first_batch and True"),
    _of("F3", "earlier answers not supervised", TE, "labels[i] = prompt.ids[i]", "labels[i] = IGNORE", TEMPLATE, "labels"),
    _of("F4", "tokens merged across the border", TE, "if whole[: len(own)] == own:", "if whole:", TEMPLATE, "merge_across"),
    _of("F1", "states of the token itself, not of the one before", NLL, "mask[group, :width])[:, :-1]", "mask[group, :width])[:, 1:]",
        RESPONSE, "plain_path and llama"),
    _of("F5", "rows packed without borders", SFT, "    return kept, tally\n",
        "    kept = [Encoded(ids=[i for r in kept for i in r.ids], labels=[i for r in kept for i in r.labels], cut=False)]\n"
        "    return kept, tally\n", TRAINING, "never_packed"),
    _of("F6", "long prompts cut at their end", TE, "[*range(bos), *range(len(prompt) - room + bos, len(prompt))]", "[*range(room)]",
        TEMPLATE, "truncation"),
    _of("F8", "stop token cut off", TE, "return ids[: end + 1]", "return ids[:end]", STAGES, "first_batch"),
]  # fmt: skip

REPORTING = [
    _of("E1", "clip fraction over a fixed number", PM, '"clipfrac": masked_mean((clipped > plain).to(ratio.dtype), mask, denominator),',
        '"clipfrac": masked_mean((clipped >= plain).to(ratio.dtype), mask, denominator),', PPO, "before_the_first and llama"),
    _of("E2", "KL of a row as a mean over its width", MET, '"objective/kl": kl.sum(1)', '"objective/kl": kl.mean(1)', PPO, "rewards_are"),
    _of("E3", "penalty inside the reported score", MET, '"objective/scores": raw_scores,', '"objective/scores": scores,',
        PPO, "rewards_are"),
    _of("E7", "explained variance without the mean", PM, "both - mean[:, None, None]", "both", MATHS, "explained_variance"),
    _of("D7", "shares overlap", "models/backbone/processes.py", "start = self.rank * each + min(self.rank, extra)", "start = self.rank * each", PATH,
        "shares_of_processes"),
]  # fmt: skip

SC, WA, CHECKS, SIGNS = (
    "stages/ppo/self_check.py", "stages/ppo/warning_signs.py", "tests/conformance/test_self_check.py", "tests/conformance/test_warnings.py",
)  # fmt: skip
GUARDS = [
    _of("G1", "self-check: any trainable set will do", SC, "ok = asking == set(held) == named and len(held) == len(named) and not others & named",
        "ok = named <= asking", CHECKS,
        "without_the_value_role or holds_the_reference"),
    _of("G1", "self-check: any reference will do", SC, 'ok=gap <= batch.same_path, detail=f"log-', 'ok=gap >= 0, detail=f"log-', CHECKS,
        "not_the_reference"),
    _of("G1", "self-check: any ratio will do", SC, 'ok=gap <= batch.same_path, detail=f"the ratio', 'ok=gap >= 0, detail=f"the ratio',
        CHECKS, "dropout_that_is_on"),
    _of("G1", "self-check: any neighbours will do", SC, 'ok=gap <= batch.other_batch, detail=f"rows', 'ok=gap >= 0, detail=f"rows',
        CHECKS, "ignores_the_attention_mask"),
    _of("G1", "self-check: any greedy token will do", SC, 'ok=gap <= batch.other_batch, detail=f"best', 'ok=gap >= 0, detail=f"best',
        CHECKS, "positions_that_ignore"),
    _of("G1", "self-check: padding may be the only stop", SC, "if set(stops) == {tokenizer.pad_token_id} and",
        "if set(stops) == {-1} and", CHECKS, "cannot_be_reached"),
    _of("G1", "self-check: any reward model will do", SC, "ok=gap <= (0.1 if half else 1e-3)", "ok=gap >= 0", CHECKS,
        "not_the_recorded_one"),
    _of("G1", "self-check: failures are not told", SC, "    if bad:\n", "    if not findings:\n", CHECKS, "not_the_reference"),
    _of("G1", "self-check: draws from the global generator", SC, 'generator(ppo.context.seed, "ppo/self_check")', "torch.default_generator",
        CHECKS, "it_leaves"),
    _of("G2", "warning: negative KL the wrong way round", WA, "lambda x: x < NEGATIVE_KL", "lambda x: x > NEGATIVE_KL", SIGNS, "sign"),
    _of("G2", "warning: a falling KL is running away", WA, " and values[-1] > values[0]", "", SIGNS, "what_passes"),
    _of("G2", "warning: high entropy is a collapse", WA, "lambda x: x < COLLAPSED_ENTROPY", "lambda x: x > COLLAPSED_ENTROPY", SIGNS,
        "sign or healthy"),
    _of("G2", "warning: no patience with the critic", WA, "lambda x: x < 0.0, LONG)", "lambda x: x < 0.0)", SIGNS, "sign"),
    _of("G2", "warning: scores that never differ are fine", WA, "max(FLAT_SCORES * start, 1e-6)", "FLAT_SCORES * start", SIGNS, "sign"),
    _of("G2", "warning: truncation never told", WA, "lambda x: x > TRUNCATED", "lambda x: x > 1 + TRUNCATED", SIGNS, "sign"),
    _of("G2", "warning: length never told", WA, "> LONGER * start", "> 10 * LONGER * start", SIGNS, "sign"),
    _of("G2", "warning: skipped steps told too late", WA, '"ppo/skipped_steps", 0.0) > 0', '"ppo/skipped_steps", 0.0) > 1', SIGNS, "sign"),
    _of("G2", "warning: told at every update", WA, "self._given.add(sign.name)", "self._given.discard(sign.name)", SIGNS, "sign"),
    _of("G2", "warning: believed too early", WA, "PATIENCE = 3  #", "PATIENCE = 2  #", SIGNS,
        "sign or what_passes"),
]  # fmt: skip

CP, TS = "stages/safe_points/checkpoints.py", "stages/safe_points/training_state.py"
ST, RESUME = "stages/ppo/state.py", "tests/resume/test_ppo_state.py"
RESUMING = [
    _of("K1", "what was found of the sampler is lost", STATE, 'ppo.old.agree = state.numbers["sampler_agrees"]', "pass", OLD,
        "resumed_run_decides"),
    _of("K1", "Adam begins afresh", TS, 'packed["state"] = {i: states[names[id(p)]] for i, p in enumerate(flat) if names[id(p)] in states}',
        'packed["state"] = {}', RESUME, "goes_on"),
    _of("K1", "the critic does not come back", TS, 'p.copy_(own_tensor(p, tensors[f"weights/{name}"]))',
        'p.copy_(p if name.startswith("value") else own_tensor(p, tensors[f"weights/{name}"]))', RESUME, "goes_on"),
    _of("K2", "minibatches of an interrupted update again", ST, "records=records)", "records=[])", RESUME, "goes_on"),
    _of("K3", "the KL coefficient begins afresh", ST, 'ppo.controller.coef = state.numbers["kl_coef"]',
        "ppo.controller.coef = ppo.config.kl_coef", RESUME, "goes_on"),
    _of("K3", "running means of the reward begin afresh", ST, "ppo.reward.restore(running)", "ppo.reward.restore(ppo.reward.state)",
        "tests/resume/test_remote_reward.py", "same_bytes and nan"),
    _of("K6", "nothing saved when a scorer fails", "stages/ppo/stage.py", "if not lasting and checkpoints.save_now(self.ppo.position, self.state()):",
        "if not lasting:", "tests/resume/test_remote_reward.py", "same_bytes and nan"),
    _of("K6", "the best policy is the last one looked at", "stages/ppo/holdout_monitor.py", "best_of(self.evaluations) == len(self.evaluations) - 1", "self.evaluations",
        "tests/stages/ppo/test_holdout_monitor.py", "best_policy_is_kept"),
    _of("K4", "the resumed policy is the reference", ST, '    ppo.controller.coef = state.numbers["kl_coef"]\n',
        '    ppo.controller.coef = state.numbers["kl_coef"]\n'
        '    for p, q in zip(ppo.base.parameters_of("reference").values(), ppo.policy_parameters.values(), strict=True):\n'
        "        p.data.copy_(q.data)\n", RESUME, "goes_on"),
    _of("K5", "hashes of a checkpoint are not looked at", CP, "if wrong := problems(found):", "if wrong := problems(found)[:0]:", RESUME,
        "altered"),
    _of("K5", "the newest by name", CP, "if (m := NAME.fullmatch(p.name))), reverse=True)", "if (m := NAME.fullmatch(p.name))), key=str, reverse=True)",
        "tests/resume/test_resume.py", "newest_is_chosen"),
    _of("K7", "names of an adapter's weights are not compared", "models/roles/lora.py", "if not (missing or unknown or wrong):", "if not wrong:", ROLES,
        "do_not_fit"),
]  # fmt: skip

LO, AR, RE, RT = (
    "models/hub/load.py",
    "models/backbone/artifacts.py",
    "pipelines/report/page.py",
    "data/template_sandbox.py",
)
CALLS, LEAKS, HOSTILE = "tests/redteam/test_calls.py", "tests/redteam/test_leaks.py", "tests/redteam/test_models.py"
ENTRIES, RECIPES, JINJA = (
    "tests/redteam/test_manifests.py",
    "tests/redteam/test_recipes.py",
    "tests/redteam/test_templates.py",
)

SAFETY = [
    _of("H1", "remote code may be loaded with a model", LO, "use_safetensors=True,\n            trust_remote_code=False",
        "use_safetensors=True,\n            trust_remote_code=True", CALLS, "no_call_runs"),
    _of("H1", "remote code may be loaded with a tokenizer", LO, "from_pretrained(folder, trust_remote_code=False",
        "from_pretrained(folder, trust_remote_code=True", CALLS, "no_call_runs"),
    _of("H1", "an adapter's pattern is run", "models/hub/validate.py", "if not NAME.fullmatch(name):", "if not name:", HOSTILE,
        "hostile_adapter_settings"),
    _of("H2", "pickled weights may be read", LO, "use_safetensors=True", "use_safetensors=False", CALLS, "no_call_runs"),
    _of("H2", "pickled weights pass for weights", "models/hub/registry.py", 'if any(path.glob("*.safetensors")):',
        'if any(path.glob("*.safetensors")) or any(path.glob("*.bin")):', HOSTILE, "hub_folder_is_checked"),
    _of("H3", "manifests name files anywhere", AR, ' or ".." in path.parts', "", ENTRIES, "another_shape"),
    _of("H3", "links may leave the folder", AR, "return file.resolve().is_relative_to(folder.resolve())", "return True",
        "tests/models/backbone/test_artifacts.py", "link"),
    _of("H4", "secrets in manifests", AR, "**redacted(manifest)", "**manifest", LEAKS, "no_secret_in_manifests"),
    _of("H4", "secrets in the report's answers", RE, "samples=redacted(samples)", "samples=samples", LEAKS, "no_secret_in_the_report"),
    _of("H4", "secrets before the process that renders", RT, "if not _SECRET.search(k)}", "if k}", JINJA, "sees_no_secret"),
    _of("H5", "texts become markup", RE, "autoescape=True", "autoescape=False", LEAKS, "becomes_markup"),
    _of("H6", "templates write as much as they like", RT, 'if len(text) > asked["most"]:', 'if len(text) > 1 << 40:', JINJA,
        "hostile_template"),
    _of("H7", "tokenizers are not tried when loaded", LO, "        check_speed(tokenizer)\n", "        pass\n", HOSTILE, "when_it_is_loaded"),
    _of("H7", "a slow tokenizer is not told", "data/tokens.py", "if seconds > SLOW * max(1.0, len(text) / LONG):",
        "if seconds > 1e9:", HOSTILE, "waits_for_its_moment"),
    _of("H8", "what runs is not what was hashed", "data/common/user_files.py",
        "loader = Source(path, self.sources[name] if name in self.sources else path.read_bytes())",
        "loader = importlib.machinery.SourceFileLoader(self._name(dotted), str(path))", RECIPES, "what_was_hashed"),
]  # fmt: skip

FINDINGS, CLEANING = "tests/data/doctor/test_findings.py", "tests/data/cleaning/test_cleaning.py"
DATA = [
    _of("Q1", "a contradiction counts as a new preference", "data/doctor/rankings.py", "if (b, a) in graph:", "if (b, a) in {}:",
        FINDINGS, "doubtful_ranking"),
    _of("Q1", "conversations that end alike contradict", "data/doctor/entry.py", "for m in entry.messages]\n    return digest",
        "for m in entry.messages[-1:]]\n    return digest", FINDINGS, "same_conversation"),
    _of("Q1", "a cut-off answer is one that ends", "data/doctor/rankings.py", "not _ENDS.search(text[-2:])", "_ENDS.search(text[-2:])",
        FINDINGS, "cut_off"),
    _of("Q1", "ties prefer the longer answer", "data/doctor/entry.py", "if self.ranks[i] < self.ranks[j]]",
        "if self.ranks[i] <= self.ranks[j]]", FINDINGS, "told_in_its_unit"),
    _of("Q2", "punctuation tells prompts apart", "data/near_duplicates.py", '{c: " " for c in string.punctuation', '{c: c for c in string.punctuation',
        FINDINGS, "but_for_punctuation"),
    _of("Q2", "vowel signs are no letters", "data/near_duplicates.py", 'r"[\\w\\p{M}]+|\\p{S}"', 'r"\\p{L}+|\\p{S}"', FINDINGS, "no_punctuation"),
    _of("Q2", "scripts without spaces are cut like English", "data/near_duplicates.py", "SHINGLE_UNSPACED if 2 *", "SHINGLE if 2 *",
        FINDINGS, "every_script"),
    _of("Q2", "held-out documents are found by consonants", "data/leaks.py", "|[\\w\\p{M}]+", "|\\p{L}+",
        "tests/data/formats/test_scripts.py", "document_with"),
    _of("Q3", "joiners go from Persian and Hindi", "data/odd_characters.py", '|(?<![{_JOINED}])\\u200c|', '|\\u200c|', CLEANING, "mean_something"),
    _of("Q3", "any sixteen digits are a card", "data/cleaning/masks.py", " and luhn.is_valid(digits)", "", CLEANING, "personal_data"),
    _of("Q3", "code loses its tags", "data/cleaning/markup.py", "last = code.end()", "last = code.start()", CLEANING, "markup_goes"),
    _of("Q3", "a cleaned prompt keeps the group of before", "data/cleaning/rows.py", "if row.group == own else row.group", "if not own else row.group",
        CLEANING, "group_follows"),
    _of("Q4", "dropped rows are counted as used", "data/sources.py", "count.dropped += not left", "count.dropped += 0",
        CLEANING, "counted_and_fingerprinted"),
    _of("Q5", "a sample by hash keeps what it left out", "data/doctor/sampling.py", "del self.items[-heapreplace(self._keys, -key)]",
        "heapreplace(self._keys, -key)", FINDINGS, "bounded_and_say"),
    _of("Q6", "a copy replaces what is there", "data/fix.py", "if os.path.lexists(path) and not overwrite:", "if False and not overwrite:",
        "tests/data/test_fix.py", "overwritten"),
    _of("Q7", "a shortened row passes", "data/readers/table.py", "if isinstance(cells, Stray) and cells.cells < width and waiting",
        "if isinstance(cells, Stray) and cells.cells < 0 and waiting", "tests/data/readers/test_readers.py", "not_shortened"),
]  # fmt: skip

MUTANTS: list[Mutant] = [
    *ROLLOUT, *LOGPROBS, *REWARDS, *ADVANTAGES, *POLICY_LOSS, *OPTIMISATION, *ADAPTERS, *REWARD_MODEL, *INSTRUCTION, *REPORTING,
    *GUARDS, *RESUMING, *SAFETY, *DATA,
]  # fmt: skip
