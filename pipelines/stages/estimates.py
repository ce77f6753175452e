"""What a stage will take: tokens, memory and disk, from shapes and rows alone. For ``trivet plan``; loads no weights.

Tokens are those that a stage trains on or generates (at most: responses end by themselves). Memory is the peak by
``pipelines.stages.memory``, for the longest rows that a stage is likely to meet: on a CPU with what Python and its
libraries take, on a GPU what is allocated there. Disk is what stays in the run folder.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from data.records import Message
from data.splits import Corpus
from evaluation.systems import parse
from pipelines.recipe.derived import response_limit
from pipelines.recipe.schema import Recipe
from pipelines.stages import memory
from pipelines.stages.memory import FIELDS, FP32, MOVED, Memory, Numbers, Part, Rows, Sampling
from pipelines.stages.shapes import Shape, shape_of
from stages.distil_cost import asked, learnt_on

if TYPE_CHECKING:
    from data.template import Renderer

CHARACTERS = 4.0  # a token, where the tokenizer is not made yet or not read
SAMPLED = 500  # rows whose length is taken
TURN = 5  # tokens that a template writes around a turn
LIBRARIES = 450 << 20  # bytes of Python, torch and the rest on a CPU
FACTOR = 3
CONTEXT = 1024  # tokens of a chunk where continued pretraining names no context
SCORED, HELD_OUT, CALIBRATED = 64, 32, 128  # rows of a pass that scores, that measures a loss, that is centred on


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of one stage; None where it cannot be known yet."""

    tokens: int | None
    memory: int | None
    disk: int | None
    parts: Memory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a stage does, as far as its estimate needs it.

    ``tokens`` are those of the whole stage, ``texts`` bytes that stay besides weights. ``frozen`` and ``trained`` are
    roles, which stand beside the base; ``whole``: the base itself is trained. ``train`` and ``read`` are the largest
    passes with and without gradients, ``sampling`` the most responses at once, ``stored`` bytes of a rollout.
    """

    tokens: int
    texts: int = 0
    frozen: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    whole: bool = False
    train: Rows | None = None
    read: Rows | None = None
    sampling: Sampling | None = None
    stored: float = 0.0
    accumulates: bool = False  # whether a step has several passes, so that gradients are there before the last
    masks: float = 0.0  # cells of masks of attention
    logits: bool = True  # whether the trained pass ends in the vocabulary
    own_base: bool = False  # whether the reward model's other base is there too
    extra: Mapping[str, float] = field(default_factory=dict)


Row = TypeVar("Row")


def _some(rows: Sequence[Row]) -> Sequence[Row]:
    """About ``SAMPLED`` of many rows."""
    return list(rows[:: max(1, len(rows) // SAMPLED)])


def largest_sum(lengths: Sequence[float], count: int, passes: float) -> float:
    """About the largest sum of ``count`` lengths that as many passes will meet; no more than the longest rows' own."""
    if not lengths or not count:
        return 0.0
    std = statistics.pstdev(lengths) if len(lengths) > 1 else 0.0
    likely = count * statistics.fmean(lengths) + std * math.sqrt(2 * count * math.log(max(1.0, passes)))
    longest = sorted(lengths, reverse=True)[:count]
    return min(likely, sum(longest) + max(0, count - len(longest)) * max(lengths))


class Estimator:
    """Estimates for the stages of one recipe.

    Args:
        recipe: whose stages.
        corpus: their rows.
        numbers: how the base is kept and computed with.
        libraries: bytes beside what torch allocates.
        renderer: gives the rows' lengths in tokens; without it they are guessed from characters.
    """

    def __init__(
        self,
        recipe: Recipe,
        corpus: Corpus,
        numbers: Numbers | None = None,
        libraries: int = LIBRARIES,
        renderer: Renderer | None = None,
    ) -> None:
        self.recipe, self.corpus, self.libraries, self.renderer = recipe, corpus, libraries, renderer
        self.numbers = numbers or Numbers()
        self.shape = shape_of(recipe)

    def changed(self, recipe: Recipe, numbers: Numbers) -> Estimator:
        """The same for other settings of memory; lengths that are known are not taken again."""
        made = Estimator.__new__(Estimator)
        made.__dict__ |= self.__dict__ | {"recipe": recipe, "numbers": numbers}
        return made

    def of(self, work: Work) -> Estimate:
        """The estimate of a stage that does this work."""
        if self.shape is None:
            return Estimate(tokens=work.tokens, memory=None, disk=None)
        found = self.memory(work, self.shape)
        return Estimate(tokens=work.tokens, memory=found.peak, disk=self._disk(work), parts=found)

    # -- lengths in tokens -------------------------------------------------------------------------------------------

    def _tokens(self, text: str) -> float:
        kind = "" if isinstance(self.recipe.base, str) else self.recipe.base.pretrain.tokenizer
        if kind == "words":
            return float(len(text.split()))
        return len(text) / (1.0 if kind == "characters" else CHARACTERS)

    def _asked(self, messages: Sequence[Message]) -> float:
        if self.renderer is not None:
            return float(len(self.renderer.prompt_ids(messages)))
        return sum(self._tokens(m.content) for m in messages) + TURN * (len(messages) + 1)

    def _answered(self, messages: Sequence[Message], answer: str) -> float:
        """Tokens of a response behind its prompt."""
        if self.renderer is not None:
            return float(len(self.renderer.answer_ids(messages, answer, True)))
        return self._tokens(answer) + 1

    @cached_property
    def prompts(self) -> list[float]:
        """Tokens of some prompts that are asked."""
        return [self._asked(p.messages) for p in _some(self.corpus.prompts.train or self.corpus.prompts.held_out)]

    @cached_property
    def documents(self) -> list[float]:
        return [self._tokens(d.text) + 2 for d in _some(self.corpus.documents.train)]

    @cached_property
    def demonstrations(self) -> list[tuple[float, float]]:
        """Tokens of some demonstrations' prompts and responses."""
        rows = _some(self.corpus.demonstrations.train)
        return [(self._asked(d.prompt.messages), self._answered(d.prompt.messages, d.answer)) for d in rows]

    @cached_property
    def ranked(self) -> list[tuple[float, list[float]]]:
        """Tokens of some rankings' prompts, and of each of their responses."""
        rows = _some(self.corpus.rankings.train)
        return [
            (self._asked(r.prompt.messages), [self._answered(r.prompt.messages, a) for a in r.answers]) for r in rows
        ]

    def _rows(self, lengths: Sequence[float], read: Sequence[float], count: int, passes: float) -> Rows:
        """The largest of ``passes`` passes of ``count`` rows."""
        return Rows(
            count=count,
            tokens=largest_sum(lengths, count, passes),
            longest=max(lengths, default=0.0),
            read=largest_sum(read, count, passes),
        )

    def _answers_of(self, prompts: Sequence[float], count: int, room: int, passes: float) -> Rows:
        """``count`` prompts with a response of ``room`` tokens each."""
        asked = largest_sum(prompts, count, passes)
        longest = max(prompts, default=0.0) + room
        return Rows(count=count, tokens=asked + count * room, longest=longest, read=count * room, uneven=True)

    def _sampling(self, prompts: Sequence[float], rows: int, room: int) -> Sampling:
        return Sampling(rows=rows, prompt=max(prompts, default=0.0), prompts=largest_sum(prompts, rows, 1.0), room=room)

    # -- the work of each stage, named by its entry in the table ----------------------------------------------------

    def pretrain(self) -> Work:
        assert not isinstance(self.recipe.base, str)
        p = self.recipe.base.pretrain
        lengths = [min(float(p.model.context), n) for n in self.documents]
        rows = self._rows(lengths, lengths, p.batch, p.steps)
        mean = statistics.fmean(lengths) if lengths else 0.0
        return Work(tokens=int(p.steps * p.batch * mean), whole=True, train=rows)

    def continued(self) -> Work:
        c = self.recipe.continued
        assert c is not None
        lengths = [min(float(c.context or CONTEXT), n) for n in self.documents]
        rows = self._rows(lengths, lengths, c.batch, c.steps)
        mean = statistics.fmean(lengths) if lengths else 0.0
        return Work(tokens=int(c.steps * c.batch * mean), whole=True, train=rows)

    def sft(self) -> Work:
        s, rows, held_out = self.recipe.sft, self.corpus.demonstrations.train, self.corpus.demonstrations.held_out
        lengths = [min(float(s.max_tokens), asked + answered) for asked, answered in self.demonstrations]
        read = [min(whole, answered) for whole, (_, answered) in zip(lengths, self.demonstrations, strict=True)]
        mean = statistics.fmean(lengths) if lengths else 0.0
        count, steps = min(s.micro_batch, s.batch, max(1, len(rows))), len(rows) * s.epochs
        train = self._rows(lengths, read, count, steps / max(1, count))
        if s.batch_tokens is not None and train.tokens > s.batch_tokens:
            share = s.batch_tokens / train.tokens
            train = replace(
                train, tokens=float(s.batch_tokens), count=max(1, int(count * share)), read=train.read * share
            )
        after = self._rows(lengths, read, min(HELD_OUT, len(held_out)), 1.0) if held_out else None
        several = train.count < min(s.batch, len(rows))
        return Work(
            tokens=int(steps * mean),
            trained=("sft",),
            train=train,
            read=after,
            accumulates=several,
            extra=self._best_weights(s.keep),
        )

    def _best_weights(self, keep: str) -> dict[str, float]:
        """The copy of what is trained that waits, in the host's memory, for a better one."""
        if keep == "last" or self.shape is None or not self.libraries:
            return {}
        return {"best_weights": FP32 * self.shape.adapter}

    def distil(self) -> Work:
        d = self.recipe.distil
        assert d is not None
        rows, prompts = learnt_on(d, self.corpus), asked(d, self.corpus)
        if d.responses == "teacher":
            lengths = [min(float(d.max_tokens), n + d.max_new_tokens) for n in self.prompts]
            read = [float(d.max_new_tokens)] * len(lengths)
        else:
            lengths = [min(float(d.max_tokens), sum(pair)) for pair in self.demonstrations]
            read = [min(n, answered) for n, (_, answered) in zip(lengths, self.demonstrations, strict=True)]
        mean = statistics.fmean(lengths) if lengths else 0.0
        count = min(d.micro_batch, d.batch, max(1, rows))
        return Work(
            tokens=int(rows * d.epochs * mean) + prompts * d.max_new_tokens,
            frozen=("sft",) if "sft" in self.recipe.stages else (),
            trained=("distilled",),
            train=self._rows(lengths, read, count, rows * d.epochs / max(1, count)),
            sampling=self._sampling(self.prompts, min(d.sampling_batch, prompts), d.max_new_tokens)
            if prompts
            else None,
            accumulates=count < min(d.batch, rows),
            extra=self._best_weights(d.keep) | {"teacher": self._files(d.teacher)},
        )

    def _files(self, source: str) -> float:
        """Bytes of the weights of a model, or of an adapter without its base, as far as they lie on this machine."""
        folder = self.recipe.base_dir / Path(source).expanduser()
        return float(sum(f.stat().st_size for f in folder.rglob("*.safetensors"))) if folder.is_dir() else 0.0

    def rankings(self) -> Work:
        r = self.recipe.rankings
        assert r is not None
        prompts = min(r.prompts, len(self.corpus.prompts.train))
        prompts += min(r.held_out_prompts, len(self.corpus.prompts.held_out))
        tokens = prompts * r.answers * r.max_new_tokens
        rows = min(r.batch, prompts * r.answers)
        sampling = self._sampling(self.prompts, rows, r.max_new_tokens)
        sampling = replace(sampling, prompts=sampling.prompts / r.answers)
        return Work(tokens=tokens, texts=int(CHARACTERS * tokens), frozen=("sft",), sampling=sampling)

    def reward(self) -> Work:
        w, r, stages = self.recipe.reward, self.recipe.rankings, self.recipe.stages
        if r is not None:
            total = min(r.prompts, len(self.corpus.prompts.train))
            ranked = [(asked, [float(r.max_new_tokens)] * r.answers) for asked in self.prompts]
        else:
            total, ranked = len(self.corpus.rankings.train), self.ranked
        limit = float(w.max_tokens)
        ranked = [(min(q, limit), [min(a, max(0.0, limit - q)) for a in answers]) for q, answers in ranked]
        sharing = shares_prompts(self)
        trees = [q + sum(a) if sharing else sum(q + n for n in a) for q, a in ranked]
        mean = statistics.fmean(sum(q + n for n in a) for q, a in ranked) if ranked else 0.0
        count = min(w.micro_batch, w.batch, max(1, total))
        singles = [q + n for q, a in ranked for n in a]
        train = replace(self._rows(trees, trees, count, total * w.epochs / max(1, count)), uneven=True)
        if sharing and self.numbers.fast:
            train = replace(train, grid=count * len(singles) / max(1, len(ranked)) * max(singles, default=0.0))
        longest = max((n for _, a in ranked for n in a), default=0.0)
        examined = len(self.corpus.rankings.held_out) * len(singles) // max(1, len(ranked))
        centred = "sft" in stages and bool(self.corpus.prompts.train)
        rows = min(CALIBRATED, w.calibration_samples, len(self.corpus.prompts.train))
        members = (*(f"reward {i + 2}" for i in range(w.ensemble - 1)), *(("held-out reward",) if w.holdout else ()))
        return Work(
            tokens=int(total * mean * w.epochs * w.ensemble),
            frozen=(*(("sft",) if "sft" in stages and w.base == "same" else ()), *members),
            trained=("reward",),
            train=train,
            read=self._rows(singles, [1.0] * len(singles), min(SCORED, max(rows, examined)), 1.0),
            sampling=self._sampling(self.prompts, rows, int(longest)) if centred else None,
            logits=False,
            accumulates=count < min(w.batch, total),
            masks=train.count * train.longest**2 if sharing and not self.numbers.fast else 0.0,
            own_base=w.base != "same",
            extra=self._best_weights(w.keep),
        )

    def ppo(self) -> Work:
        p, w = self.recipe.ppo, self.recipe.reward
        prompts = [n for n in self.prompts if n <= p.max_prompt_tokens] or self.prompts
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
        cached = self._prefix_cache(p.rollouts * length) if p.share_prefix_layers else 0.0
        return Work(
            tokens=p.updates * p.rollouts * p.max_new_tokens,
            frozen=tuple(frozen),
            trained=("policy",) if p.value.init == "policy_trunk" else ("policy", "value"),
            train=self._answers_of(prompts, count, p.max_new_tokens, passes),
            read=self._answers_of(prompts, min(SCORED, p.rollouts), p.max_new_tokens, 1.0),
            sampling=self._sampling(prompts, at_once, p.max_new_tokens),
            stored=p.rollouts * p.max_new_tokens * (FIELDS * FP32 + 8) + cached,
            accumulates=count < p.rollouts // p.minibatches,
            own_base=asks and w.base != "same",
            extra={"classifiers": self._classifiers()} if any(t.kind == "classifier" for t in p.reward) else {},
        )

    def _classifiers(self) -> float:
        """Bytes of the weights of ready classifiers that pay, as far as their files lie on this machine."""
        from reward.terms.classifier import classifier_folder

        sources = {part.source for part in self.recipe.ppo.reward if part.kind == "classifier"}
        folders = [classifier_folder(source, self.recipe.base_dir, download=False) for source in sources]
        return sum(file.stat().st_size for folder in folders if folder for file in folder.glob("*.safetensors"))

    def _prefix_cache(self, tokens: float) -> float:
        """Bytes of the states and products of the layers below all adapters."""
        s = self.shape
        if s is None or not self.numbers.fast or s.trained_layers == s.layers or self._full:
            return 0.0
        products = (s.queries + 2 * s.keys) * FP32 if self.numbers.merged else 0
        return tokens * (2 * FP32 * s.width + products)

    def evaluate(self) -> Work:
        e, longest = self.recipe.evaluation, response_limit(self.recipe)
        prompts = min(e.prompts, len(self.corpus.prompts.held_out))
        named = [parse(s) for s in e.systems]
        kinds = sum(int(s.value) if s.kind == "best_of" else 1 for s in named)
        kept = len(e.systems) * e.samples_per_prompt
        if e.greedy:
            plain = sum(s.kind != "best_of" for s in named)
            kinds, kept = kinds + plain, kept + plain
        rows = min(e.batch, max(1, prompts))
        tokens = prompts * kinds * e.samples_per_prompt * longest
        return Work(
            tokens=tokens,
            texts=int(prompts * kept * (CHARACTERS * longest + 150)),
            frozen=("sft", "policy", "reward"),
            read=self._answers_of(self.prompts, rows, longest, 1.0),
            sampling=self._sampling(self.prompts, rows, longest),
            own_base=self.recipe.reward.base != "same",
        )

    # -- bytes -------------------------------------------------------------------------------------------------------

    def memory(self, work: Work, shape: Shape) -> Memory:
        """What a stage holds always, and in each of its phases."""
        numbers = replace(self.numbers, fast=self.numbers.fast and not (work.whole or self._full))
        return Memory(always=self._always(work, shape, numbers), phases=self._phases(work, shape, numbers))

    @property
    def _full(self) -> bool:
        return self.recipe.adapter.tuning.copies

    def _always(self, work: Work, shape: Shape, numbers: Numbers) -> tuple[Part, ...]:
        base = memory.scratch_bytes(shape) if work.whole else memory.base_bytes(shape, numbers)
        found = {"libraries": float(self.libraries), "base": base}
        if not work.whole:
            found["gathered_layer"] = memory.gathered_bytes(shape, numbers)
        if work.own_base and (other := shape_of(self.recipe, self.recipe.reward.base)) is not None:
            found["reward_base"] = memory.base_bytes(other, numbers)
        each = self._trained(shape, numbers)
        found |= {f"{name}_(frozen)": FP32 * each for name in work.frozen}
        found |= {f"{name}_with_optimizer": MOVED * each for name in work.trained}
        return memory.parts(**found, stored_rollout=work.stored, **work.extra)

    def _trained(self, shape: Shape, numbers: Numbers) -> float:
        """Weights of a role here; processes that hold the base in parts hold its whole copies so as well."""
        return shape.adapter / (numbers.parts if self._full else 1)

    def _phases(self, work: Work, shape: Shape, numbers: Numbers) -> dict[str, tuple[Part, ...]]:
        phases: dict[str, tuple[Part, ...]] = {}
        if work.train is not None:
            plain = replace(numbers, weight=FP32, product=FP32, nf4=False) if work.whole else numbers
            held = memory.training(shape, plain, work.train, work.logits)
            held["masks"] = work.masks * (1 + FP32)
            gradients = len(work.trained) - 1 + work.accumulates
            held["gradients"] = FP32 * self._trained(shape, numbers) * gradients
            if self._full and numbers.parts > 1:
                held["gradient_of_the_output_layer"] = FP32 * shape.vocabulary * shape.width
            elif self._full and numbers.weight != FP32:
                held["weights_in_bf16"] = shape.linear * numbers.weight
            phases["training"] = memory.parts(**held)
        if work.read is not None:
            phases["scoring"] = memory.parts(**memory.reading(shape, numbers, work.read, work.logits))
        if work.sampling is not None:
            phases["sampling"] = memory.parts(**memory.sampled(shape, numbers, work.sampling))
        return phases

    def _disk(self, work: Work) -> int:
        s = self.shape
        assert s is not None
        weights = FP32 * s.parameters if work.whole else FP32 * s.adapter * len(work.trained)
        return int(weights + work.texts + 12_000)  # manifest, metrics, settings


def shares_prompts(e: Estimator) -> bool:
    """Whether a ranking's prompt is computed once: by the fast path, and by modules without windows."""
    return e.numbers.fast or e.shape is None or not e.shape.sliding
