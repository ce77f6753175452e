"""What each stage does, as far as the estimate of its memory, tokens and disk needs it; the stage table names these."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

from pipelines.recipe.derived import offered, response_limit
from pipelines.stages.estimates import CALIBRATED, CONTEXT, HELD_OUT, SCORED, Estimator, Work, shares_prompts
from pipelines.stages.lengths import CHARACTERS, with_negatives, within
from pipelines.stages.memory import FIELDS, FP32, base_bytes
from stages.distil_cost import asked, learnt_on


def pretrain(e: Estimator) -> Work:
    assert not isinstance(e.recipe.base, str)
    p = e.recipe.base.pretrain
    lengths = [min(float(p.model.context), n) for n in e.lengths.documents]
    rows = e.lengths.rows(lengths, lengths, p.batch, p.steps)
    mean = statistics.fmean(lengths) if lengths else 0.0
    return Work(tokens=int(p.steps * p.batch * mean), whole=True, train=rows)


def continued(e: Estimator) -> Work:
    c = e.recipe.continued
    assert c is not None
    lengths = [min(float(c.context or CONTEXT), n) for n in e.lengths.documents]
    rows = e.lengths.rows(lengths, lengths, c.batch, c.steps)
    mean = statistics.fmean(lengths) if lengths else 0.0
    return Work(tokens=int(c.steps * c.batch * mean), whole=True, train=rows)


def sft(e: Estimator) -> Work:
    s, rows, held_out = e.recipe.sft, e.corpus.demonstrations.train, e.corpus.demonstrations.held_out
    lengths = [min(float(s.max_tokens), asked + answered) for asked, answered in e.lengths.demonstrations]
    read = [min(whole, answered) for whole, (_, answered) in zip(lengths, e.lengths.demonstrations, strict=True)]
    mean = statistics.fmean(lengths) if lengths else 0.0
    count, steps = min(s.micro_batch, s.batch, max(1, len(rows))), len(rows) * s.epochs
    train = e.lengths.rows(lengths, read, count, steps / max(1, count))
    if s.batch_tokens is not None and train.tokens > s.batch_tokens:
        share = s.batch_tokens / train.tokens
        train = replace(train, tokens=float(s.batch_tokens), count=max(1, int(count * share)), read=train.read * share)
    after = e.lengths.rows(lengths, read, min(HELD_OUT, len(held_out)), 1.0) if held_out else None
    several = train.count < min(s.batch, len(rows))
    return Work(
        tokens=int(steps * mean),
        trained=("sft",),
        train=train,
        read=after,
        accumulates=several,
        extra=_best_weights(e, s.keep),
    )


def _best_weights(e: Estimator, keep: str) -> dict[str, float]:
    """The copy of what is trained that waits, in the host's memory, for a better one."""
    if keep == "last" or e.shape is None or not e.libraries:
        return {}
    return {"best_weights": FP32 * e.shape.adapter}


def distil(e: Estimator) -> Work:
    d = e.recipe.distil
    assert d is not None
    rows, prompts = learnt_on(d, e.corpus), asked(d, e.corpus)
    if d.responses == "teacher":
        lengths = [min(float(d.max_tokens), n + d.max_new_tokens) for n in e.lengths.prompts]
        read = [float(d.max_new_tokens)] * len(lengths)
    else:
        lengths = [min(float(d.max_tokens), sum(pair)) for pair in e.lengths.demonstrations]
        read = [min(n, answered) for n, (_, answered) in zip(lengths, e.lengths.demonstrations, strict=True)]
    mean = statistics.fmean(lengths) if lengths else 0.0
    count = min(d.micro_batch, d.batch, max(1, rows))
    return Work(
        tokens=int(rows * d.epochs * mean) + prompts * d.max_new_tokens,
        frozen=("sft",) if "sft" in e.recipe.stages else (),
        trained=("distilled",),
        train=e.lengths.rows(lengths, read, count, rows * d.epochs / max(1, count)),
        sampling=e.lengths.sampling(e.lengths.prompts, min(d.sampling_batch, prompts), d.max_new_tokens)
        if prompts
        else None,
        accumulates=count < min(d.batch, rows),
        sampler=e.teacher,
        extra=_best_weights(e, d.keep) | {"teacher": _teacher(e, d.teacher)},
    )


def _teacher(e: Estimator, source: str) -> float:
    """Bytes of a teacher: of its base as it is kept here; where that is not known, of the files on this machine."""
    if e.teacher is not None:
        return base_bytes(e.teacher, replace(e.numbers, nf4=False))
    folder = e.recipe.base_dir / Path(source).expanduser()
    return float(sum(f.stat().st_size for f in folder.rglob("*.safetensors"))) if folder.is_dir() else 0.0


def rankings(e: Estimator) -> Work:
    r = e.recipe.rankings
    assert r is not None
    prompts = min(r.prompts, len(e.corpus.prompts.train))
    prompts += min(r.held_out_prompts, len(e.corpus.prompts.held_out))
    tokens = prompts * r.answers * r.max_new_tokens
    rows = min(r.batch, prompts * r.answers)
    sampling = e.lengths.sampling(e.lengths.prompts, rows, r.max_new_tokens)
    sampling = replace(sampling, prompts=sampling.prompts / r.answers)
    return Work(tokens=tokens, texts=int(CHARACTERS * tokens), frozen=("sft",), sampling=sampling)


def reward(e: Estimator) -> Work:
    w, r, stages = e.recipe.reward, e.recipe.rankings, e.recipe.stages
    if r is not None:
        total = min(r.prompts, len(e.corpus.prompts.train))
        ranked = [(asked, [float(r.max_new_tokens)] * r.answers) for asked in e.lengths.prompts]
    else:
        total, ranked = len(e.corpus.rankings.train), e.lengths.ranked
    ranked = within(ranked, w.max_tokens)
    trained = within(with_negatives(ranked, w.negatives, max), w.max_tokens)  # the largest rows may have one
    seen = within(with_negatives(ranked, w.negatives, max, w.negatives_share), w.max_tokens)
    sharing = shares_prompts(e)
    trees = [q + sum(a) if sharing else sum(q + n for n in a) for q, a in trained]
    mean = statistics.fmean(sum(q + n for n in a) for q, a in seen) if seen else 0.0
    count = min(w.micro_batch, w.batch, max(1, total))
    singles = [q + n for q, a in ranked for n in a]
    train = replace(e.lengths.rows(trees, trees, count, total * w.epochs / max(1, count)), uneven=True)
    if sharing and e.numbers.fast:
        each = len(singles) / max(1, len(ranked)) + bool(w.negatives)
        train = replace(train, grid=count * each * max(singles, default=0.0))
    longest = max((n for _, a in ranked for n in a), default=0.0)
    examined = len(e.corpus.rankings.held_out) * len(singles) // max(1, len(ranked))
    centred = "sft" in stages and bool(e.corpus.prompts.train)
    rows = min(CALIBRATED, w.calibration_samples, len(e.corpus.prompts.train))
    members = (*(f"reward {i + 2}" for i in range(w.ensemble - 1)), *(("held-out reward",) if w.holdout else ()))
    return Work(
        tokens=int(total * mean * w.epochs * w.ensemble),
        frozen=(*(("sft",) if "sft" in stages and w.base == "same" else ()), *members),
        trained=("reward",),
        train=train,
        read=e.lengths.rows(singles, [1.0] * len(singles), min(SCORED, max(rows, examined)), 1.0),
        sampling=e.lengths.sampling(e.lengths.prompts, rows, int(longest)) if centred else None,
        logits=False,
        accumulates=count < min(w.batch, total),
        masks=train.count * train.longest**2 if sharing and not e.numbers.fast else 0.0,
        own_base=w.base != "same",
        extra=_best_weights(e, w.keep),
    )


def ppo(e: Estimator) -> Work:
    p, w = e.recipe.ppo, e.recipe.reward
    prompts = [n for n in e.lengths.prompts if n <= p.max_prompt_tokens] or e.lengths.prompts
    length = (statistics.fmean(prompts) if prompts else 0.0) + p.max_new_tokens
    count = min(p.micro_batch, p.rollouts)
    if p.micro_tokens is not None:
        count = max(1, int(p.micro_tokens / max(1.0, length)))
    passes = p.updates * p.epochs * p.rollouts / max(1, count)
    asks = any(part.kind == "model" for part in p.reward)
    scorers = [*(f"reward {i + 1}" for i in range(w.ensemble))] if w.ensemble > 1 else ["reward"]
    frozen = ["reference", *(scorers if asks and w.base == "same" else ())]
    frozen += ["held-out reward"] if w.holdout else []
    at_once = p.rollouts if p.sampling_batch is None else min(p.sampling_batch, p.rollouts)
    cached = _prefix_cache(e, p.rollouts * length) if p.share_prefix_layers else 0.0
    return Work(
        tokens=p.updates * p.rollouts * p.max_new_tokens,
        frozen=tuple(frozen),
        trained=("policy",) if p.value.init == "policy_trunk" else ("policy", "value"),
        train=e.lengths.answers_of(prompts, count, p.max_new_tokens, passes),
        read=e.lengths.answers_of(prompts, min(SCORED, p.rollouts), p.max_new_tokens, 1.0),
        sampling=e.lengths.sampling(prompts, at_once, p.max_new_tokens),
        stored=p.rollouts * p.max_new_tokens * (FIELDS * FP32 + 8) + cached,
        accumulates=count < p.rollouts // p.minibatches,
        own_base=asks and w.base != "same",
        extra={"classifiers": _classifiers(e)} if any(t.kind == "classifier" for t in p.reward) else {},
    )


def _classifiers(e: Estimator) -> float:
    """Bytes of the weights of ready classifiers that pay, as far as their files lie on this machine."""
    from reward.terms.classifier import classifier_folder

    sources = {part.source for part in e.recipe.ppo.reward if part.kind == "classifier"}
    folders = [classifier_folder(source, e.recipe.base_dir, download=False) for source in sources]
    return sum(file.stat().st_size for folder in folders if folder for file in folder.glob("*.safetensors"))


def _prefix_cache(e: Estimator, tokens: float) -> float:
    """Bytes of the states and products of the layers below all adapters."""
    s = e.shape
    if s is None or not e.numbers.fast or s.trained_layers == s.layers or e.whole_copies:
        return 0.0
    products = (s.queries + 2 * s.keys) * FP32 if e.numbers.merged else 0
    return tokens * (2 * FP32 * s.width + products)


def evaluate(e: Estimator) -> Work:
    v, longest = e.recipe.evaluation, response_limit(e.recipe)
    prompts = min(v.prompts, len(e.corpus.prompts.held_out))
    named = offered(e.recipe, e.recipe.stages)
    kinds = sum(int(s.value) if s.kind == "best_of" else 1 for s in named)
    kept = len(named) * v.samples_per_prompt
    if v.greedy:
        plain = sum(s.kind != "best_of" for s in named)
        kinds, kept = kinds + plain, kept + plain
    rows = min(v.batch, max(1, prompts))
    tokens = prompts * kinds * v.samples_per_prompt * longest
    return Work(
        tokens=tokens,
        texts=int(prompts * kept * (CHARACTERS * longest + 150)),
        frozen=("sft", "policy", "reward"),
        read=e.lengths.answers_of(e.lengths.prompts, rows, longest, 1.0),
        sampling=e.lengths.sampling(e.lengths.prompts, rows, longest),
        own_base=e.recipe.reward.base != "same",
    )
