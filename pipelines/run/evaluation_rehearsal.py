"""What evaluation will need, asked before the first stage: its systems, their prompts, metrics, tasks and rankings."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.common.errors import UserError, located
from data.records import Prompt
from data.sources import load_records
from data.splits import Corpus
from data.template import Renderer
from evaluation.metrics.registry import NO_REFERENCES, needs_references
from evaluation.prompting import Asking, asking
from evaluation.systems import Named, parse
from models.backbone.artifacts import MANIFEST
from models.hub.limits import check_rows
from models.hub.registry import resolve_base
from models.roles.files import ADAPTER, CONFIG, MODEL
from pipelines.evaluate.references import references_for
from pipelines.recipe.derived import evaluation_prompts, lacking, names_systems, response_limit
from pipelines.recipe.schema import Recipe
from pipelines.run.base_rehearsal import KnownBase, check_stored_adapter, known_base, model_of

CURE = "lower evaluation.max_new_tokens, or leave out the longest prompts"
EXPORTED = ("role", "checkpoint", "path")  # systems that the harness can be given


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRehearsal:
    """The checks of one recipe's evaluation.

    Attributes:
        recipe: whose evaluation it is.
        corpus: its data.
        stages: that the run has or is given.
        prompts: held-out ones that are rendered.
        warn: reports doubts.
    """

    recipe: Recipe
    corpus: Corpus
    stages: set[str]
    prompts: Sequence[Prompt]
    warn: Callable[[str], None]

    def check(self) -> None:
        """Everything that needs no model.

        Raises:
            UserError: no prompt is left, a system that cannot be, or something that a metric, the harness or the
                reward model's card needs and that is not there.
        """
        recipe, config = self.recipe, self.recipe.evaluation
        if not self.corpus.prompts.held_out[: config.prompts]:
            raise UserError("data.held_out: no held-out prompt is left for evaluation; raise the share or name a file")
        for name in config.systems:
            self._check_system(parse(name), f"evaluation.systems: {name}")
        if names_systems(recipe) and (missing := lacking(recipe, self.stages)):
            raise UserError(f"evaluation.systems: {next(iter(missing.values()))}")
        self._check_metrics()
        self._check_harness()
        if config.rankings is not None and "reward" in self.stages:
            load_records([config.rankings], "rankings", recipe.data, seed=recipe.seed, base_dir=recipe.base_dir)

    def check_models(self, base: KnownBase) -> None:
        """Folders' models, and the prompts of every way of asking, as far as models are known without their weights.

        Raises:
            UserError: an adapter of another base, no model, a template that refuses, or prompts that do not fit.
        """
        known: dict[str, KnownBase | None] = {}
        for name in dict.fromkeys(self.recipe.evaluation.systems):
            named, shown = parse(name), self.asking(name)
            model = parse(shown.config.model) if shown is not None else named
            if model.kind == "path" and model.value not in known:
                known[model.value] = self._of_path(model, base)
            asked = known[model.value] if model.kind == "path" else base
            if asked is None or (shown is None and asked is base):  # the bare prompts are rendered for all stages
                continue
            rows = list(self._rows(asked.renderer, shown))
            if asked.limits is not None:
                places = [p.source for p in self.prompts]
                check_rows(asked.limits, rows, f"evaluation, {name}", CURE, self.warn, self._room, places)

    @property
    def _room(self) -> int:
        return response_limit(self.recipe)

    def _rows(self, renderer: Renderer, shown: Asking | None) -> Iterator[list[int]]:
        for prompt in self.prompts:
            with located(prompt.source):
                yield renderer.prompt_ids(prompt.messages if shown is None else shown.messages(prompt.messages))

    def asking(self, name: str) -> Asking | None:
        """How a system is asked, where that is not by the bare prompt."""
        named, recipe = parse(name), self.recipe
        if named.kind != "prompted":
            return None
        config = recipe.evaluation.asked(named.value)
        assert config is not None  # the recipe's own check
        seed = recipe.seed if recipe.evaluation.seed is None else recipe.evaluation.seed
        return asking(named.value, config, self.corpus.demonstrations.train, seed)

    def _check_system(self, named: Named, text: str) -> None:
        recipe = self.recipe
        if named.kind == "checkpoint" and "ppo" in recipe.stages:
            every, update = recipe.ppo.keep_every, int(named.value)
            if not every or update % every or not 0 < update <= recipe.ppo.updates:
                kept = f"every {every}th of {recipe.ppo.updates} is" if every else "none is, without ppo.keep_every,"
                raise UserError(
                    f"{text}: that policy will not be kept ({kept} kept); change ppo.keep_every or the system"
                )
        if named.kind == "checkpoint" and "ppo" not in self.stages:
            raise UserError(f"{text}: there is no ppo stage in this run; add it, or give --input ppo=PATH")
        if named.kind == "path" and not (folder := self._folder(named)).is_dir():
            raise UserError(f"{text}: no such folder ({folder})")
        if (shown := self.asking(named.name)) is not None:
            self._check_system(parse(shown.config.model), text)

    def _folder(self, named: Named) -> Path:
        return (self.recipe.base_dir / Path(named.value).expanduser()).resolve()

    def _of_path(self, named: Named, base: KnownBase) -> KnownBase | None:
        """The model that a folder's system will respond with; None where its files say too little of it."""
        folder, what = self._folder(named), f"evaluation.systems: {named.name}"
        if any((f / CONFIG).is_file() for f in (folder / ADAPTER, folder)):
            check_stored_adapter(base, folder, what)
            return None
        inner = (
            folder / MODEL if (folder / MANIFEST).is_file() and (folder / MODEL / "config.json").is_file() else folder
        )
        if inner != folder and not (inner / "tokenizer.json").is_file():
            return None  # a role of the run's base, by all its weights
        if not (inner / "config.json").is_file():
            raise UserError(
                f"{what}: {folder}: no config.json there and no adapter; name a folder that a stage, `trivet export` "
                "or save_pretrained wrote"
            )
        found = known_base(resolve_base(str(inner), base_dir=inner), self.recipe.template_source)
        if found is not None:
            model_of(found)
        return found

    def _check_metrics(self) -> None:
        """References where a metric needs them, folders where one is named."""
        config = self.recipe.evaluation
        for name in config.metrics:
            kind, _, where = name.partition(":")
            if kind == "folder" and not (folder := self.recipe.base_dir / Path(where).expanduser()).is_dir():
                raise UserError(f"evaluation.metrics: {name}: no such folder ({folder})")
        if needs_references(config.metrics):
            prompts = evaluation_prompts(self.recipe, self.corpus)
            references = references_for(self.recipe, self.corpus, prompts)
            if not any(references):
                first = next(name for name in config.metrics if needs_references([name]))
                raise UserError(f"evaluation.metrics: {NO_REFERENCES.format(name=first)}")
            if "labels" in config.metrics:
                self._check_labels(prompts, references)

    def _check_labels(self, prompts: Sequence[Prompt], references: Sequence[Sequence[str]]) -> None:
        from evaluation.metrics.text import no_labels

        for prompt, right in zip(prompts, references, strict=True):
            if other := no_labels([right], self.recipe.evaluation.labels):
                raise UserError(
                    f"evaluation.labels: the reference {other[0][:60]!r} ({prompt.source}) is none of them; add it, or "
                    "fix the data"
                )

    def _check_harness(self) -> None:
        config, where = self.recipe.evaluation.lm_eval, "evaluation.lm_eval"
        if not config.tasks:
            return
        if importlib.util.find_spec("lm_eval") is None:
            raise UserError(f"{where} needs lm-evaluation-harness: pip install 'trivet[lm-eval]'")
        if config.tasks_dir is not None:
            folder = (self.recipe.base_dir / Path(config.tasks_dir).expanduser()).resolve()
            if not folder.is_dir():
                raise UserError(f"{where}.tasks_dir: no such folder ({folder})")
        for name in config.systems:
            named = parse(name)
            if named.kind not in EXPORTED:
                raise UserError(f"{where}.systems: {name} cannot be exported; name sft, ppo, ppo@N or path:DIR")
            self._check_system(named, f"{where}.systems: {name}")
