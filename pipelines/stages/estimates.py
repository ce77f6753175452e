"""What a stage will take: tokens, memory and disk, from shapes and rows alone. For ``trivet plan``; loads no weights.

Rough on purpose, and tested to lie within a factor of 3 of what a tiny run took. Tokens are those that a stage trains
on or generates (at most: responses end by themselves). Memory is weights, training state and activations: on a CPU with
what Python and its libraries take, on a GPU what is allocated there. Disk is what stays in the run folder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data.common.errors import UserError
from data.common.strict_json import read_object
from data.splits import Corpus
from evaluation.systems import parse
from models.hub.registry import resolve_base
from models.hub.validate import shapes_of, weight_files
from pipelines.recipe.derived import response_limit
from pipelines.recipe.schema import Recipe

CHARACTERS = 4.0  # a token, where the tokenizer is not made yet or not read
SAMPLED = 500  # rows whose length is taken
TURN = 5  # tokens that a template writes around a turn
LIBRARIES = 450 << 20  # bytes of Python, torch and the rest on a CPU
FACTOR = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of one stage; None where it cannot be known yet."""

    tokens: int | None
    memory: int | None
    disk: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of the base: parameters and of one adapter, layers, width, vocabulary."""

    parameters: int
    adapter: int
    layers: int
    width: int
    inner: int
    vocabulary: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a stage does, as far as its estimate needs it.

    ``rows`` of a forward pass have ``length`` tokens each; ``tokens`` are those of the whole stage. ``texts`` are bytes
    that stay besides weights; ``frozen`` and ``trained`` roles of an adapter's size; ``whole`` where the base itself is
    trained; ``samples`` where it generates and trains nothing; ``logits`` where the loss is over the vocabulary.
    """

    rows: int
    length: float
    tokens: int
    texts: int = 0
    frozen: int = 0
    trained: int = 0
    whole: bool = False
    samples: bool = False
    logits: bool = True


def shape_of(recipe: Recipe) -> Shape | None:
    """The base's shape: of a base from scratch by the recipe, of a folder by its files; None for one not downloaded."""
    lora = recipe.adapter.method == "lora"
    share = 1.0 if recipe.adapter.layers == "all" else 0.5
    if not isinstance(recipe.base, str):
        m, vocabulary = recipe.base.pretrain.model, recipe.base.pretrain.vocabulary
        matrices = [(m.width, m.width)] * 4 + [(m.width, m.feed_forward)] * 3
        count = vocabulary * m.width + m.layers * sum(a * b for a, b in matrices)
        adapter = recipe.adapter.rank * m.layers * sum(a + b for a, b in matrices)
        sizes = (m.layers, m.width, m.feed_forward, vocabulary)
    else:
        folder = Path(resolve_base(recipe.base, base_dir=recipe.base_dir).source)
        if not folder.is_dir():
            return None
        try:
            named = [pair for file in weight_files(folder) for pair in shapes_of(file)]
            raw = read_object(folder / "config.json")
        except UserError:
            return None
        config: dict[str, Any] = raw.get("text_config") or raw
        count = sum(math.prod(shape) for _, shape in named)
        inside = [s for n, s in named if len(s) == 2 and any(part.isdigit() for part in n.split("."))]
        adapter = recipe.adapter.rank * sum(map(sum, inside))
        layers = _first(config, "num_hidden_layers", "n_layer")
        width = _first(config, "hidden_size", "n_embd")
        inner = _first(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * width
        sizes = (layers, width, inner, _first(config, "vocab_size"))
    return Shape(
        parameters=count,
        adapter=int(adapter * share) if lora else count,
        layers=sizes[0],
        width=sizes[1],
        inner=sizes[2],
        vocabulary=sizes[3],
    )


def _first(config: dict[str, Any], *names: str) -> int:
    return next((v for n in names if isinstance(v := config.get(n), int)), 0)


Row = TypeVar("Row")


def _some(rows: Sequence[Row]) -> Sequence[Row]:
    """About ``SAMPLED`` of many rows."""
    return list(rows[:: max(1, len(rows) // SAMPLED)])


class Estimator:
    """Estimates for the stages of one recipe."""

    def __init__(self, recipe: Recipe, corpus: Corpus, bytes_a_weight: int, libraries: int = LIBRARIES) -> None:
        self.recipe, self.corpus, self.bytes, self.libraries = recipe, corpus, bytes_a_weight, libraries
        self.shape = shape_of(recipe)

    def of(self, work: Work) -> Estimate:
        """The estimate of a stage that does this work."""
        if self.shape is None:
            return Estimate(tokens=work.tokens, memory=None, disk=None)
        return Estimate(tokens=work.tokens, memory=self._memory(work), disk=self._disk(work))

    # -- lengths in tokens -------------------------------------------------------------------------------------------

    def _tokens(self, texts: Sequence[str]) -> float:
        """Mean tokens of a text."""
        if not texts:
            return 0.0
        kind = "" if isinstance(self.recipe.base, str) else self.recipe.base.pretrain.tokenizer
        if kind == "words":
            return sum(len(t.split()) for t in texts) / len(texts)
        return sum(map(len, texts)) / len(texts) / (1.0 if kind == "characters" else CHARACTERS)

    def _prompt(self) -> float:
        prompts = _some(self.corpus.prompts.train or self.corpus.prompts.held_out)
        turns = sum(len(p.messages) for p in prompts) / max(1, len(prompts))
        return self._tokens([" ".join(m.content for m in p.messages) for p in prompts]) + TURN * (turns + 1)

    # -- the work of each stage, named by its entry in the table ----------------------------------------------------

    def pretrain(self) -> Work:
        assert not isinstance(self.recipe.base, str)
        p = self.recipe.base.pretrain
        length = min(p.model.context, self._tokens([d.text for d in _some(self.corpus.documents.train)]) + 2)
        return Work(rows=p.batch, length=length, tokens=int(p.steps * p.batch * length), whole=True)

    def sft(self) -> Work:
        s, rows = self.recipe.sft, self.corpus.demonstrations.train
        some = _some(rows)
        asked = self._tokens([" ".join(m.content for m in d.prompt.messages) for d in some])
        length = min(s.max_tokens, asked + self._tokens([d.answer for d in some]) + 2 * TURN)
        count = min(s.micro_batch, max(1, len(rows)))
        return Work(rows=count, length=length, tokens=int(len(rows) * length * s.epochs), trained=1)

    def rankings(self) -> Work:
        r = self.recipe.rankings
        assert r is not None
        prompts = min(r.prompts, len(self.corpus.prompts.train))
        prompts += min(r.held_out_prompts, len(self.corpus.prompts.held_out))
        tokens = prompts * r.answers * r.max_new_tokens
        rows = min(r.batch, prompts * r.answers)
        length = self._prompt() + r.max_new_tokens
        return Work(rows=rows, length=length, tokens=tokens, texts=int(CHARACTERS * tokens), frozen=1, samples=True)

    def reward(self) -> Work:
        w, r, rows = self.recipe.reward, self.recipe.rankings, self.corpus.rankings.train
        if r is not None:
            count, answers = min(r.prompts, len(self.corpus.prompts.train)), float(r.answers)
            length = self._prompt() + r.max_new_tokens
        else:
            some = _some(rows)
            count, answers = len(rows), sum(len(x.answers) for x in some) / max(1, len(some))
            asked = self._tokens([" ".join(m.content for m in x.prompt.messages) for x in some])
            length = asked + self._tokens([a for x in some for a in x.answers]) + 2 * TURN
        length = min(w.max_tokens, length)
        tokens = int(count * answers * length * w.epochs)
        rows_at_once = int(w.micro_batch * answers)
        return Work(rows=rows_at_once, length=length, tokens=tokens, frozen=1, trained=1, logits=False)

    def ppo(self) -> Work:
        p = self.recipe.ppo
        length = min(p.max_prompt_tokens, self._prompt()) + p.max_new_tokens
        tokens = p.updates * p.rollouts * p.max_new_tokens
        return Work(rows=min(p.micro_batch, p.rollouts), length=length, tokens=tokens, frozen=2, trained=2)

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
        texts = int(prompts * kept * (CHARACTERS * longest + 150))
        return Work(rows=rows, length=self._prompt() + longest, tokens=tokens, texts=texts, frozen=3, samples=True)

    # -- bytes -------------------------------------------------------------------------------------------------------

    def _memory(self, work: Work) -> int:
        """Weights, what is trained with its gradient and two moments in fp32, and what a forward pass holds."""
        s = self.shape
        assert s is not None
        tokens = work.rows * work.length
        if work.samples:  # keys and values, one step's logits
            trained, held = 0, tokens * s.layers * 2 * s.width * self.bytes + work.rows * s.vocabulary * 8
        else:
            inner = 3 * s.width if self.recipe.runtime.gradient_checkpointing else 16 * s.width + 5 * s.inner
            trained = 16 * (s.parameters if work.whole else s.adapter * work.trained)
            logits = 3 * s.vocabulary if work.logits else 0
            held = 4 * tokens * (s.layers * inner + logits)
        weights = 4 * s.parameters if work.whole else self.bytes * s.parameters
        frozen = work.frozen * 4 * s.adapter  # of a full copy fp32 too, whatever the base has
        return int(self.libraries + weights + frozen + trained + held)

    def _disk(self, work: Work) -> int:
        s = self.shape
        assert s is not None
        weights = 4 * s.parameters if work.whole else 4 * s.adapter * work.trained
        return int(weights + work.texts + 12_000)  # manifest, metrics, settings
