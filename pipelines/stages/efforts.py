"""What each stage computes, in passes and sampled responses: its entry in the table names one of these functions.

Rows have their mean length. Responses are taken to be as long as the demonstrations' that SFT learns from, and as long
as their limit where there are none or where the base is asked as it is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from evaluation.adversaries import CONSTANT, adversaries
from pipelines.recipe.derived import offered, response_limit
from pipelines.stages.duration import Effort, Kind, Passes, Sampled, without_nothing
from pipelines.stages.estimates import CALIBRATED, CONTEXT, HELD_OUT, SCORED, Estimator, shares_prompts
from pipelines.stages.lengths import with_negatives, within
from reward.tables import POOLINGS
from stages.distil_cost import asked, learnt_on
from stages.held_out_cost import evaluated, evaluations
from stages.settings import RewardConfig, SFTConfig

PROBES, PROBED = 6, 256  # damaged responses of the reward model's card: kinds, and rows of each
EXAMINED_MIN, EXAMINED_MAX = 64, 4096  # held-out rankings that the card scores
UPDATE = 0.05  # seconds of an update of PPO besides its passes
KL_PASSES = 2  # of a system and of the reference
ADVERSARIES = adversaries((), ("",))
EMPTY, CONSTANT_TOKENS = 1, len(CONSTANT.split())  # tokens of two of them, about
INTERVALS = 0.1  # seconds of a system's metrics and intervals


def mean(lengths: Sequence[float]) -> float:
    return statistics.fmean(lengths) if lengths else 0.0


def longest_of(lengths: Sequence[float], count: int) -> float:
    """The mean of the longest of ``count`` rows that are picked at random: what they are padded to."""
    ranked, n = sorted(lengths), len(lengths)
    return sum(x * (((i + 1) / n) ** count - (i / n) ** count) for i, x in enumerate(ranked))


def response(e: Estimator, room: int) -> tuple[float, float]:
    """Mean and longest response of a trained policy that may say so many tokens."""
    lengths = [min(float(room), answered) for _, answered in e.lengths.demonstrations if answered > 0]
    if not lengths or "sft" not in e.recipe.stages:
        return float(room), float(room)
    return mean(lengths), max(lengths)


def _micro(rows: float, batch: int, tokens: float, limit: int | None) -> float:
    """Rows of a pass, by their number or by a limit of tokens."""
    return max(1.0, min(rows, batch if limit is None else limit / max(1.0, tokens)))


def pretrain(e: Estimator) -> Effort:
    assert not isinstance(e.recipe.base, str)
    p = e.recipe.base.pretrain
    lengths = [min(float(p.model.context), n) for n in e.lengths.documents]
    tokens = p.batch * longest_of(lengths, p.batch)  # with padding
    return Effort(steps=p.steps, pretraining=(p.steps, tokens))


def continued(e: Estimator) -> Effort:
    c = e.recipe.continued
    assert c is not None
    lengths = [min(float(c.context or CONTEXT), n) for n in e.lengths.documents]
    tokens = c.batch * longest_of(lengths, c.batch)  # with padding
    each = Passes(kind="train", count=c.steps, rows=c.batch, tokens=tokens, read=tokens)
    trained = float(e.shape.parameters) if e.shape is not None else 0.0
    return Effort(passes=without_nothing((each,)), steps=c.steps, trained=trained, full=True)


def sft(e: Estimator) -> Effort:
    s, corpus = e.recipe.sft, e.corpus.demonstrations
    limit = float(s.max_tokens)
    tokens = mean([min(limit, asked + answered) for asked, answered in e.lengths.demonstrations])
    read = mean([min(limit, asked + answered, answered) for asked, answered in e.lengths.demonstrations])
    rows = _micro(min(s.batch, len(corpus.train)), s.micro_batch, tokens, s.batch_tokens)
    some = min(HELD_OUT, len(corpus.held_out))
    steps = len(corpus.train) / s.batch * s.epochs
    seen = _evaluated(s, len(corpus.held_out), len(corpus.train), steps)
    each = min(float(HELD_OUT), s.micro_batch, seen)

    def of(kind: Kind, count: float, each: float) -> Passes:
        return Passes(kind=kind, count=count, rows=each, tokens=each * tokens, read=each * read)

    passes = (
        of("train", len(corpus.train) * s.epochs / rows, rows),
        of("read", len(corpus.held_out) / max(1, some), some),
        of("read", seen / max(1, each), each),
    )
    return Effort(passes=without_nothing(passes), steps=steps, trained=_adapter(e), trainer=True, full=e.whole_copies)


def _evaluated(config: SFTConfig | RewardConfig, held_out: int, trained: int, steps: float) -> float:
    """Rows that the held-out curve of one training of so many steps computes."""
    return evaluated(config, held_out, trained) * evaluations(config, max(1, math.ceil(steps)))


def distil(e: Estimator) -> Effort:
    """The teacher's part is its own base's, and the student's where that is not on this machine."""
    d = e.recipe.distil
    assert d is not None
    rows, prompts = learnt_on(d, e.corpus), asked(d, e.corpus)
    if d.responses == "teacher":
        prompt, read = mean(e.lengths.prompts), response(e, d.max_new_tokens)[0]
    else:
        prompt, read = mean([n for n, _ in e.lengths.demonstrations]), mean([n for _, n in e.lengths.demonstrations])
    tokens = min(float(d.max_tokens), prompt + read)
    each = _micro(min(d.batch, rows), d.micro_batch, tokens, d.batch_tokens)

    student = Passes(kind="train", count=rows * d.epochs / each, rows=each, tokens=each * tokens, read=each * read)
    compared = (replace(student, kind="read", by=e.teacher),) if d.loss == "logits" else ()
    said = _sampled(e, prompts, d.sampling_batch, d.max_new_tokens)
    steps = rows / d.batch * d.epochs
    return Effort(
        passes=without_nothing((student, *compared)),
        sampled=tuple(replace(one, by=e.teacher) for one in said),
        steps=steps,
        trained=_adapter(e),
        trainer=True,
        full=e.whole_copies,
    )


def rankings(e: Estimator) -> Effort:
    r, prompts = e.recipe.rankings, e.corpus.prompts
    assert r is not None
    asked = len(prompts.train[: r.prompts]) + len(prompts.held_out[: r.held_out_prompts])
    return Effort(sampled=_sampled(e, asked * r.answers, r.batch, r.max_new_tokens, r.answers))


def reward(e: Estimator) -> Effort:
    w, r = e.recipe.reward, e.recipe.rankings
    if r is not None:
        total, held_out = len(e.corpus.prompts.train[: r.prompts]), len(e.corpus.prompts.held_out[: r.held_out_prompts])
        ranked = [(asked, [response(e, r.max_new_tokens)[0]] * r.answers) for asked in e.lengths.prompts]
    else:
        total, held_out, ranked = len(e.corpus.rankings.train), len(e.corpus.rankings.held_out), e.lengths.ranked
    ranked = within(ranked, w.max_tokens)
    trained = within(with_negatives(ranked, w.negatives, mean, w.negatives_share), w.max_tokens)
    sharing = shares_prompts(e)
    trees = mean([q + sum(a) if sharing else sum(q + n for n in a) for q, a in trained])
    answers, seats = mean([len(a) for _, a in ranked]), mean([len(a) for _, a in trained])
    said = mean([sum(a) for _, a in trained])
    last = POOLINGS[w.pooling].last_only
    rows = min(w.micro_batch, w.batch, max(1, total))
    models = w.ensemble + (w.holdout > 0)
    seen = total * w.epochs * (w.ensemble * (1 - w.holdout) + w.holdout)
    examined = min(held_out, max(EXAMINED_MIN, min(EXAMINED_MAX, total * w.epochs))) * answers
    single = mean([q + n for q, a in ranked for n in a])
    read = 1.0 if last else mean([n for _, a in ranked for n in a])
    calibrated = min(CALIBRATED, w.calibration_samples, len(e.corpus.prompts.train)) if "sft" in e.recipe.stages else 0
    curve = _evaluated(w, held_out, total, total * w.epochs / w.batch) * answers
    scored = (examined + calibrated + curve) * models + (PROBES * min(PROBED, held_out))
    passes = (
        Passes(
            kind="branches" if sharing else "train",
            count=seen / rows,
            logits=False,
            rows=rows * (1.0 if sharing else seats),
            tokens=rows * trees,
            read=rows * trees if sharing else rows * (seats if last else said),
        ),
        _scores(scored, single, read),
    )
    room = max((n for _, a in ranked for n in a), default=0.0)
    return Effort(
        passes=without_nothing(passes),
        sampled=_sampled(e, calibrated, calibrated, int(room)),
        steps=seen / w.batch,
        trained=_adapter(e),
        trainer=True,
        full=e.whole_copies,
    )


def _scores(rows: float, tokens: float, read: float) -> Passes:
    """Responses that a reward model scores."""
    each = min(float(SCORED), rows)
    count = rows / max(1.0, each)
    return Passes(kind="read", count=count, rows=each, tokens=each * tokens, read=each * read, logits=False)


def ppo(e: Estimator) -> Effort:
    p, w = e.recipe.ppo, e.recipe.reward
    asked = mean([n for n in e.lengths.prompts if n <= p.max_prompt_tokens] or e.lengths.prompts)
    said, _ = response(e, p.max_new_tokens)
    tokens = asked + said
    rows = _micro(p.rollouts / p.minibatches, p.micro_batch, tokens, p.micro_tokens)
    known = p.share_prefix_layers and e.numbers.fast

    def of(kind: Kind, times: float, logits: bool) -> Passes:
        count, all_tokens, read = p.updates * times * p.rollouts / rows, rows * tokens, rows * said
        return Passes(kind=kind, count=count, rows=rows, tokens=all_tokens, read=read, logits=logits, known=known)

    separate = p.value.init != "policy_trunk"
    asks = any(part.kind == "model" for part in p.reward)
    sampler = p.old_logprobs == "sampler" or (p.old_logprobs == "auto" and e.numbers.merged and e.numbers.fast)
    again = 0 if sampler else 1
    last = POOLINGS[w.pooling].last_only
    passes = (
        of("read", 1 + again, True),  # the reference, and the policy again
        of("read", separate, False),
        _scores(p.updates * p.rollouts * w.ensemble * asks, tokens, 1.0 if last else said),
        of("train", p.epochs, True),
        of("train", p.epochs * separate, False),
        *_ptx(e),
    )
    at_once = p.sampling_batch or p.rollouts
    return Effort(
        passes=without_nothing(passes),
        sampled=_sampled(e, p.updates * p.rollouts, min(at_once, p.rollouts), p.max_new_tokens),
        steps=p.updates * p.epochs * p.minibatches,
        trained=_adapter(e) * (1 + separate),
        rest=UPDATE * p.updates,
        full=e.whole_copies,
    )


def _ptx(e: Estimator) -> tuple[Passes, ...]:
    """The pretraining loss that is mixed into PPO."""
    p = e.recipe.ppo
    if not p.ptx_coef:
        return ()
    if p.ptx_data == "documents":
        tokens = read = mean([min(float(p.ptx_max_tokens), n) for n in e.lengths.documents])
    else:
        tokens = mean([min(float(p.ptx_max_tokens), asked + said) for asked, said in e.lengths.demonstrations])
        read = mean([min(tokens, said) for _, said in e.lengths.demonstrations])
    batch = p.ptx_batch or p.rollouts // p.minibatches
    rows = min(batch, p.micro_batch)
    count = p.updates * p.epochs * p.minibatches * batch / rows
    return (Passes(kind="train", count=count, rows=rows, tokens=rows * tokens, read=rows * read),)


def evaluate(e: Estimator) -> Effort:
    v, room = e.recipe.evaluation, response_limit(e.recipe)
    rows = min(v.prompts, len(e.corpus.prompts.held_out)) * v.samples_per_prompt
    said, _ = response(e, room)
    sampled: tuple[Sampled, ...] = ()
    scored = compared = likely = 0.0
    reference = "sft" if "sft" in e.recipe.stages else "base"  # whose KL to itself is not computed
    for named in offered(e.recipe, e.recipe.stages):
        times = int(named.value) if named.kind == "best_of" else 1 + v.greedy
        trained = named.name != "base"
        sampled += _sampled(e, rows * times, v.batch, room, trained=trained)
        scored += rows * (times + (named.kind == "best_of"))
        compared += rows * (named.kind != "best_of" and named.name != reference)
        likely += rows * ("base_perplexity" in v.metrics)
    tokens, each = mean(e.lengths.prompts) + said, min(float(v.batch), float(rows))
    count = (KL_PASSES * compared + likely) / max(1.0, each)
    kl = Passes(kind="read", count=count, rows=each, tokens=each * tokens, read=each * said)
    watching = e.recipe.reward.holdout > 0 and e.recipe.ppo.keep != "best"  # the held-out reward model judges too
    members = (e.recipe.reward.ensemble + watching) * ("reward" in e.recipe.stages)
    rewards = _scores(scored * members, tokens, said)
    deceiving = _scores(rows * len(ADVERSARIES) * members, *_adversaries(e, room))
    return Effort(passes=without_nothing((kl, rewards, deceiving)), sampled=sampled, rest=INTERVALS * len(sampled))


def _adversaries(e: Estimator, room: int) -> tuple[float, float]:
    """Mean tokens of a row with a response that deserves nothing, and of the response alone."""
    asked, (_, longest) = mean(e.lengths.prompts), response(e, room)
    said = (longest + EMPTY + CONSTANT_TOKENS + asked) / len(ADVERSARIES)
    return asked + said, said


def _sampled(
    e: Estimator, rows: float, batch: int, room: int, same: int = 1, trained: bool = True
) -> tuple[Sampled, ...]:
    """So many responses, ``batch`` at once, of which ``same`` are to one prompt; nothing where there are none."""
    if rows <= 0 or room <= 0:
        return ()
    said, longest = response(e, room) if trained else (float(room), float(room))
    each, prompt = min(float(batch), float(rows)), mean(e.lengths.prompts)
    prompts = max(1.0, each / same) * prompt
    made = Sampled(calls=rows / each, rows=each, prompt=prompt, prompts=prompts, mean=said, longest=longest)
    return (made,)


def _adapter(e: Estimator) -> float:
    return float(e.shape.adapter) if e.shape is not None else 0.0
