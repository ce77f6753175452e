"""Responses of several systems to the same held-out prompts, with the same noise and limits, scored by the same path.

It knows roles of bases but not how they were trained; statistics are in ``results``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, TypeVar

from torch import Tensor

from data import tokens
from data.common.errors import located
from data.common.user_functions import UserFunction, columns_of
from data.records import Message, Prompt
from data.template import Renderer
from evaluation.answers import SystemResponses
from evaluation.best_of import Chooser
from evaluation.divergence import kl_to_reference
from evaluation.generations import Generations, digest_of, libraries, weights_key
from evaluation.likelihood import log_likelihoods, under_base
from evaluation.metrics.builtin import Perplexity
from evaluation.prompting import Asking
from evaluation.settings import EvaluationConfig
from models.backbone.oom_retry import OOMRetry
from models.backbone.processes import Processes
from models.backbone.seeds import generator
from models.hub.limits import check_rows
from models.roles.shared_base import SharedBase
from models.sampling.fast import FastEngine
from models.sampling.generate import Engine, Generated, SamplingParams, generate, sampling_noise
from reward.card.scored_once import Phase, silent
from reward.model import RewardModel, Samples
from stages.remote_rollouts import RemoteRollouts

Decoding = Literal["sampled", "greedy"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class System:
    """Something that responds: a role of a base, asked by the prompt itself or in another way.

    With ``best_of`` its response is the one of so many samples that ``chooser`` likes best.
    """

    name: str
    base: SharedBase
    role: str
    renderer: Renderer
    asking: Asking | None = None
    best_of: int = 1
    chooser: Chooser | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Everything that stays the same from system to system. ``renderer`` and ``base`` are those of the run."""

    base: SharedBase
    renderer: Renderer
    config: EvaluationConfig
    prompts: Sequence[Prompt]  # one entry a sample: prompts are repeated for several samples each
    max_new_tokens: int
    seed: int
    reward: RewardModel | None = None
    held_out_reward: RewardModel | None = None  # trained on other prompts; PPO does not optimise it
    gold: UserFunction | None = None
    generations: Generations = field(default_factory=lambda: Generations(None))
    engine: Engine = field(default_factory=FastEngine)
    memory: OOMRetry = field(default_factory=lambda: OOMRetry("evaluation.batch"))
    phase: Phase = silent
    processes: Processes | None = None  # that evaluate together; each calls everything in the same order
    servers: RemoteRollouts | None = None  # of ``runtime.rollouts``; they sample from adapters on the run's base

    def _on_main(self, work: Callable[[], T]) -> T:
        """What the main process finds, for all: it alone asks the user's functions, other machines and the disk."""
        return work() if self.processes is None else self.processes.on_main(work)

    def run(self, system: System, decoding: Decoding) -> SystemResponses:
        """Sample (or decode greedily) and score one system."""
        kl: list[float] | None = None
        exact: list[float] | None = None
        if system.best_of > 1:
            said, kl = self._best_of(system)
        else:
            said = self._said(system, "greedy" if decoding == "greedy" else "0")
            if decoding == "sampled":
                kl, exact = self._kl(system, said)
        samples = said.samples
        return SystemResponses(
            name=system.name,
            decoding=decoding,
            prompts=[p.text for p in self.prompts],
            categories=[p.category for p in self.prompts],
            groups=["\n".join(f"{m.role}: {m.content}" for m in p.messages) for p in self.prompts],
            responses=list(samples.texts),
            token_ids=samples.responses,  # type: ignore[arg-type]
            finished=samples.finished,
            reward=_scores(self.reward, samples, self.phase, f"rewards of {system.name}"),
            held_out_reward=_scores(self.held_out_reward, samples, self.phase, f"held-out rewards of {system.name}"),
            gold=self._gold(samples.texts, samples.finished),
            kl=kl,
            kl_exact=exact,
            raw=said.raw,
            extracted=said.extracted,
            generation=said.key,
        )

    def _gold(self, texts: Sequence[str], finished: Sequence[bool]) -> list[float] | None:
        if self.gold is None:
            return None
        gold, prompts = self.gold, [p.text for p in self.prompts]
        return self._on_main(
            lambda: gold.call(prompts, list(texts), **columns_of(self.prompts), finished=list(finished))
        )

    def judges(self) -> dict[str, Callable[[Sequence[str]], list[float]]]:
        """What scores single responses, the first judge first: from any responses to the prompts to their scores.

        Gold, then the held-out reward model, then the one that PPO optimises; those that are there.
        """
        found: dict[str, Callable[[Sequence[str]], list[float]]] = {}
        if self.gold is not None:
            found["gold"] = lambda texts: self._gold(texts, [True] * len(texts)) or []
        for name, model in (("held_out_reward", self.held_out_reward), ("reward", self.reward)):
            if model is not None:
                found[name] = partial(self._of_texts, model)
        return found

    def _of_texts(self, model: RewardModel, texts: Sequence[str]) -> list[float]:
        """A reward model's scores of arbitrary responses to the prompts."""
        with model.memory.reporting(self.phase("rewards of other answers", _passes(model, texts))):
            return model.score_texts([p.messages for p in self.prompts], texts, [True] * len(texts)).tolist()

    @cached_property
    def queries(self) -> list[list[int]]:
        return [self.renderer.prompt_ids(p.messages) for p in self.prompts]

    def settings(self) -> dict[str, Any]:
        """What is the same for all systems, and its hash: results with equal hashes can be compared."""
        asked = [[m.as_dict() for m in p.messages] for p in self.prompts]
        same = {
            "prompts": digest_of(asked),
            "seed": self.seed,
            "temperature": self.config.temperature,
            "max_new_tokens": self.max_new_tokens,
            "samples_per_prompt": self.config.samples_per_prompt,
        }
        return same | {"hash": digest_of(same)}

    # -- what a system says -----------------------------------------------------------------------------------------

    def _generate(self, system: System, stream: str) -> tuple[Generated, str]:
        """Sampled ids and the key that they are kept under; from disk where these responses were made before."""
        renderer, messages = system.renderer, self._messages(system)
        queries = []
        for prompt, asked in zip(self.prompts, messages, strict=True):
            with located(prompt.source):
                queries.append(renderer.prompt_ids(asked))
        if system.asking is not None or system.base is not self.base:
            self._fits(system, queries)
        settings = {
            "weights": weights_key(system.base, system.role),
            "dtype": str(next(system.base.lm.parameters()).dtype),
            "device": system.base.device.type,
            "rendering": renderer.fingerprint(),
            "queries": digest_of(queries),
            "seed": None if stream == "greedy" else self.seed,
            "stream": stream,
            "temperature": None if stream == "greedy" else self.config.temperature,
            "max_new_tokens": self.max_new_tokens,
            "batch": self.config.batch,
            "fast": system.base.fast,
            "libraries": libraries(),
            **({"sampled_by": "vllm"} if self._by_servers(system) else {}),
        }
        key = digest_of(settings)[:24]
        if (found := self._on_main(lambda: self.generations.find(settings, len(queries)))) is not None:
            return found, key
        noise: Tensor | None = None
        if stream != "greedy":
            noise = sampling_noise(len(queries), self.max_new_tokens, generator(self.seed, f"evaluation/{stream}"))
        if self.servers is not None and not self._by_servers(system):
            why = "is a model of its own, which the servers of runtime.rollouts do not have: trivet samples it"
            self.servers.context.say(f"evaluation: {system.name} {why}")
        made = self._sampled(system, queries, noise)
        self.generations.keep(settings, made, [p.text for p in self.prompts], [renderer.text(i) for i in made.ids])
        return made, key

    def _sampled(self, system: System, queries: Sequence[list[int]], noise: Tensor | None) -> Generated:
        """A response to each query; processes share the rows, and with them the noise."""
        mine = range(len(queries)) if self.processes is None else self.processes.share(len(queries))
        rows = slice(mine.start, mine.stop)
        own_noise = None if noise is None else noise[rows]
        params = SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.config.temperature,
            stop_ids=system.renderer.stop_ids,
            stop_strings=system.renderer.stop_strings,
            pad_id=system.renderer.pad_id,
        )

        def work() -> Generated:
            progress = self.phase(f"responses of {system.name}", len(mine))
            with system.base.role(system.role) as view, self.memory.reporting(progress):
                return generate(
                    self.engine,
                    view,
                    queries[rows],
                    noise=own_noise,
                    batch=self.config.batch,
                    params=params,
                    memory=self.memory,
                )

        if self.servers is not None and self._by_servers(system):
            self.servers.check(max(map(len, queries)), self.max_new_tokens)
            own = self.servers.sampled(system.role, queries[rows], params, own_noise)
        elif self.processes is None or self.processes.world_size == 1:
            return work()
        else:
            own = self.processes.together(work)
        if self.processes is None:
            return own
        rows_of_all = self.processes.gather(list(zip(own.ids, own.finished, strict=True)))
        return Generated(ids=[ids for ids, _ in rows_of_all], finished=[ended for _, ended in rows_of_all])

    def _by_servers(self, system: System) -> bool:
        """Whether servers sample this system: they have the run's base, and are given its adapters."""
        mine = system.base is self.base and system.role not in self.base.copies
        return self.servers is not None and mine

    def _messages(self, system: System) -> list[Sequence[Message]]:
        ask = system.asking
        return [p.messages if ask is None else ask.messages(p.messages) for p in self.prompts]

    def _fits(self, system: System, queries: Sequence[Sequence[int]]) -> None:
        fewer = ", use fewer examples" if system.asking is not None else ""
        cure = f"lower evaluation.max_new_tokens{fewer}, or leave out the longest prompts"
        places, room = [p.source for p in self.prompts], self.max_new_tokens
        check_rows(system.base.limits, queries, f"evaluation: {system.name}", cure, self.memory.warn, room, places)

    def _said(self, system: System, stream: str) -> _Said:
        """A system's responses as samples of the run's own base.

        Ids are those that were sampled, unless another tokenizer or template made them or only a part of the text is
        the response: then the response's text is rendered again.
        """
        made, key = self._generate(system, stream)
        texts, finished = [system.renderer.text(ids) for ids in made.ids], made.finished
        if self._rendered_alike(system):
            return _Said(self._samples(made.ids, texts, finished), key)
        raw = extracted = None
        if system.asking is not None:
            finals = [system.asking.final(t, f) for t, f in zip(texts, finished, strict=True)]
            raw, texts, finished = texts, [f.text for f in finals], [f.finished for f in finals]
            extracted = [f.extracted for f in finals] if system.asking.config.answer is not None else None
        rows = zip(self.prompts, texts, finished, strict=True)
        ids = [self.renderer.answer_ids(p.messages, text, done) for p, text, done in rows]
        return _Said(self._samples(ids, texts, finished), key, raw, extracted)

    def _rendered_alike(self, system: System) -> bool:
        """Whether a system is asked by the run's own ids and ends where the run's do, whoever's base it stands on."""
        own, other = self.renderer, system.renderer
        if system.asking is not None:
            return False
        if own is other:
            return True
        return _same_tokens(own, other) and all(
            other.prompt_ids(p.messages) == ids for p, ids in zip(self.prompts, self.queries, strict=True)
        )

    def _samples(self, ids: list[list[int]], texts: Sequence[str], finished: Sequence[bool]) -> Samples:
        return Samples(prompts=self.prompts, queries=self.queries, responses=ids, texts=texts, finished=finished)

    def _best_of(self, system: System) -> tuple[_Said, list[float]]:
        """Best of n samples by the chooser, the first sample being the one that the system alone gives.

        Its KL to the sampled system is at most log n - (n - 1) / n (Stiennon et al. 2020; Beirami et al. 2024).
        """
        n = system.best_of
        tries = [self._said(system, str(i)) for i in range(n)]
        best = self._chosen(system, [t.samples for t in tries])
        chosen = [tries[t].samples for t in best]
        samples = self._samples(
            [list(s.responses[i]) for i, s in enumerate(chosen)],
            [s.texts[i] for i, s in enumerate(chosen)],
            [s.finished[i] for i, s in enumerate(chosen)],
        )
        return _Said(samples, digest_of([t.key for t in tries])[:24]), [math.log(n) - (n - 1) / n] * len(best)

    def _chosen(self, system: System, tries: Sequence[Samples]) -> list[int]:
        """The chooser's best try of each prompt, with its progress: in rows of the reward model where that is asked."""
        assert system.chooser is not None
        name, total = f"choice of {system.name}", sum(len(t.texts) for t in tries)
        chooser, reward = system.chooser, self.reward
        if reward is None or not chooser.asks(reward):
            best = self._on_main(lambda: chooser(tries, self.phase(name, total)))
        else:
            with reward.memory.reporting(self.phase(name, total * max(1, len(reward.members)))):
                best = self._on_main(lambda: chooser(tries))
        for text in chooser.reward.unread():
            self.memory.warn(f"evaluation: {name}, {text}")
        return best

    def perplexity(self, system: System, references: Sequence[Sequence[str]]) -> dict[str, float]:
        """Of a system on the references, each behind its prompt as the system is asked; stop token included."""
        rows = [(i, text) for i, found in enumerate(references) for text in found]
        messages = self._messages(system)
        queries, ids = [], []
        for i, text in rows:
            with located(self.prompts[i].source):
                made = system.renderer.fitted(messages[i], text, prove=True)
            queries.append(made.query)
            ids.append(made.response)
        whole = [q + a for q, a in zip(queries, ids, strict=True)]
        cure = "leave out the longest references"
        check_rows(system.base.limits, whole, f"evaluation: {system.name}, perplexity", cure, self.memory.warn)
        with self.memory.reporting(self.phase(f"perplexity of {system.name}", len(rows))):
            each = log_likelihoods(
                system.base,
                system.role,
                queries,
                ids,
                pad_id=system.renderer.pad_id,
                batch=self.config.batch,
                memory=self.memory,
            )
        logprobs = [math.fsum(row) for row in each]
        characters = sum(len(text) for _, text in rows)
        return Perplexity().compute(predictions=logprobs, references=[len(r) for r in ids], characters=characters)

    def base_perplexity(self, said: SystemResponses) -> dict[str, Any]:
        """Of a system's responses under the run's frozen base (``evaluation.likelihood.under_base``)."""
        with self.memory.reporting(self.phase(f"likelihood of {said.name} under the base", len(said.token_ids))):
            logprobs = log_likelihoods(
                self.base,
                "base",
                self.queries,
                said.token_ids,
                pad_id=self.renderer.pad_id,
                batch=self.config.batch,
                memory=self.memory,
            )
        return under_base(logprobs, [self.renderer.body_length(ids) for ids in said.token_ids])

    def _kl(self, system: System, said: _Said) -> tuple[list[float] | None, list[float] | None]:
        """Sampled and exact KL to SFT, or the base without it; None on another base, or where it is asked otherwise."""
        if system.base is not self.base or not self._rendered_alike(system):
            return None, None
        reference = "reference" if "reference" in self.base.roles else "base"
        if system.role == reference:
            none = [0.0] * len(self.queries)
            return none, none
        with self.memory.reporting(self.phase(f"KL of {system.name}", len(self.queries))):
            return kl_to_reference(
                self.base,
                system.role,
                self.queries,
                said.samples.responses,
                pad_id=self.renderer.pad_id,
                temperature=self.config.temperature,
                batch=self.config.batch,
                reference=reference,
                memory=self.memory,
            )


def _same_tokens(a: Renderer, b: Renderer) -> bool:
    """Whether two renderers write the same text with the same ids, and end responses alike."""
    ends = [(frozenset(r.stop_ids), tuple(r.stop_strings.texts)) for r in (a, b)]
    return ends[0] == ends[1] and tokens.content_hash(a.tokenizer) == tokens.content_hash(b.tokenizer)


@dataclass(frozen=True)
class _Said:
    """Responses as samples, the key of the generation, and for another way of asking the whole texts."""

    samples: Samples
    key: str
    raw: list[str] | None = None
    extracted: list[bool] | None = None


def _scores(model: RewardModel | None, samples: Samples, phase: Phase, name: str) -> list[float] | None:
    """A reward model's scores of a system's responses; None where there is no such model."""
    if model is None:
        return None
    with model.memory.reporting(phase(name, _passes(model, samples.responses))):
        return model.score(samples).tolist()


def _passes(model: RewardModel, rows: Sequence[Any]) -> int:
    """How many rows a reward model computes to score these: an ensemble's members each."""
    return len(rows) * max(1, len(model.members))
