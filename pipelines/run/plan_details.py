"""What ``trivet plan`` says of a stage besides its status: steps, rows, estimates, and what is cut or dropped.

Counts are the stages' own (``data.counting``): rows are rendered with the base's tokenizer where it lies on this
machine; no weights are loaded and nothing is fetched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from data.chat_template import TemplateChoice
from data.common.errors import UserError
from data.common.number_format import size
from data.common.strict_json import read_object
from data.counting import share_warning
from data.splits import Corpus
from data.template import Renderer
from models.backbone.device_memory import USABLE, device_memory, parse_size
from models.backbone.four_bits import can_quantize
from models.backbone.processes import resolve_dtype
from models.backbone.settings import AdapterConfig
from models.fast.products import product_dtype
from models.fast.weights import DTYPES, FAMILIES
from models.hub.download import local_folder
from models.hub.limits import limits_of_folder, stop_ids_in
from models.hub.load import encoder_in, tokenizer_of
from models.hub.registry import BaseModelSpec, resolve_base
from pipelines.execution.sharding import is_divided, sentence
from pipelines.recipe import rates
from pipelines.recipe.schema import Recipe
from pipelines.run.fit import Fit, needed
from pipelines.run.teachers import teacher_shape
from pipelines.stages.estimates import LIBRARIES, Estimate, Estimator
from pipelines.stages.memory import Numbers, base_bytes, gathered_bytes
from pipelines.stages.shapes import Shape, shape_of, shape_of_folder
from pipelines.stages.table import STAGES
from pipelines.stages.taken_rows import taken_rows
from pipelines.stages.tallies import Count, continued, pretrain

NO_TEMPLATE = "the tokenizer has no chat template: `user : ...`, `assistant : ...`"


@dataclass(frozen=True)
class PlanDetails:
    """Details of the stages of one recipe.

    ``made`` is where each base lies that the run makes, once it is done; ``before`` the plans of the stages so far;
    ``processes`` how many work together; ``given`` the stages whose results are given and that take nothing;
    ``amounts`` says of stages what was chosen by their data.
    """

    recipe: Recipe
    corpus: Corpus
    device: torch.device
    made: Mapping[str, Path]
    before: Sequence[Any] = ()
    processes: int = 1
    given: Collection[str] = ()
    amounts: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def fit(self) -> Fit:
        """What fits the memory of the device, or of ``runtime.fit``."""
        asked = self.recipe.runtime.fit
        whole = device_memory(self.device) if asked in (None, "auto") else parse_size(str(asked), "runtime.fit")
        return Fit(self.recipe, self.estimator, int(whole * USABLE), can_quantize(), self.given)

    def takes(self, name: str) -> Estimate:
        """The estimate of a stage as it would run: what the recipe leaves to the device is settled."""
        return self.fit.takes(name, self.fit.settled(name))

    def too_large(self, name: str) -> str:
        """A sentence where a stage would not fit, with the change that helps; empty where it fits."""
        settled = self.fit.settled(name)
        if self.fit.fits(name, settled):
            return ""
        parts = self.fit.takes(name, settled).parts
        assert parts is not None
        more, limit = self.fit.remedy(name), self.fit.limit
        words = f"needs about {size(needed(parts))} of memory, and {size(limit)} can be used here"
        if not more:
            return f"{words}; no setting of memory helps: take a smaller base or shorter texts{self._parts()}"
        return f"{words}: --set {' '.join(f'{k}={value_text(v)}' for k, v in more.items())}"

    def _parts(self) -> str:
        """What several processes could do about it."""
        whole = self.processes == 1 and self.recipe.adapter.method == "lora" and self.recipe.runtime.quantize is None
        return ", or let several processes hold the base in parts (runtime.sharding)" if whole else ""

    def of(self, name: str) -> dict[str, Any]:
        """``steps``, ``rows``, ``takes`` and ``counts`` of a stage; empty counts where the base is not there yet.

        ``rows_are`` says which rows those of each part are.

        Raises:
            UserError: the template refuses a row; its file and line are named.
        """
        taken = taken_rows(name, self.recipe, self.corpus)
        steps = STAGES[name].steps(self.recipe, self.corpus)
        tallies = self.tallies(name)
        return {
            "steps": steps,
            "rows": {part: one.rows for part, one in taken.items()},
            "rows_are": {part: one.what for part, one in taken.items()},
            "takes": self.takes(name),
            "too_large": self.too_large(name),
            "chosen": self.chosen(name),
            "counts": {},
            **{group: tally.as_dict() for group, tally in tallies.items()},
            "counted": "; ".join(t.summary() for t in tallies.values() if t.summary()),
            "sampled": "; ".join(t.sampled() for t in tallies.values() if t.sampled()),
            "warning": "; ".join(t.warning() for t in tallies.values() if t.warning()),
        }

    def chosen(self, name: str) -> str:
        """A sentence about what trivet chooses of the stage's settings, the learning rate first; empty otherwise."""
        return "\n".join(text for text in (self._rate(name), self.amounts.get(name, "")) if text)

    def _rate(self, name: str) -> str:
        if name not in rates.DIVISORS:
            return ""
        recipe, rate = self.recipe, float(getattr(self.recipe, name).learning_rate)
        plain = recipe.model_dump(mode="json", include={"base", "adapter", "reward"})
        usual = type(getattr(recipe, name)).model_fields[rates.SETTING].default
        if rate != rates.chosen_rates(plain, recipe.base_dir).get(name, usual):
            return ""
        base = rates.bases_of(plain)[name]
        return f"learning_rate {rate:.1e}: {rates.why(name, base, recipe.adapter.method, recipe.base_dir)}"

    @cached_property
    def estimator(self) -> Estimator:
        numbers = numbers_of(self.recipe, self.device, self.shape, self.processes)
        libraries = LIBRARIES if self.device.type == "cpu" else 0
        renderer = None if self.opened is None else self.opened.renderer
        return Estimator(self.recipe, self.corpus, numbers, libraries, renderer, teacher_shape(self.recipe))

    @property
    def sharding(self) -> str:
        """A sentence on how the processes hold the base; empty where each holds all of it, as it is asked to."""
        if self.processes == 1 and self.recipe.runtime.sharding != "fsdp2":
            return ""
        numbers = numbers_of(self.recipe, self.device, self.shape, self.processes)
        said = sentence(self.recipe, numbers.parts > 1, self.processes)
        if not said or self.shape is None or self.processes > 1:
            return said
        base, layer = base_bytes(self.shape, numbers), gathered_bytes(self.shape, replace(numbers, parts=2))
        return f"{said}. Of N processes each would hold an Nth of its {size(base)}, and up to {size(layer)} gathered"

    @cached_property
    def shape(self) -> Shape | None:
        """That of the base, where it is known."""
        return shape_of(self.recipe)

    @cached_property
    def opened(self) -> Opened | None:
        """Rendering and positions of the stages, or None where the base is not on this machine yet."""
        recipe = self.recipe
        source = self._source(recipe.base_stage)
        if source is None:
            return None
        spec = resolve_base(source, base_dir=recipe.base_dir, new_tokens=recipe.adapter.new_tokens)
        given = resolve_base(recipe.base, base_dir=recipe.base_dir) if isinstance(recipe.base, str) else spec
        return opened(spec, recipe.template_source, recipe.stop or given.stop, recipe.adapter.positions)

    def _source(self, stage: str | None) -> str | None:
        """The base that a stage makes, or that the recipe names; None where it is not on this machine yet."""
        if stage is None:
            return str(self.recipe.base)
        stale = any(p.name == stage and p.status not in ("cached", "given") for p in self.before)
        folder = self.made[stage] / "model"
        return None if stale or not folder.is_dir() else str(folder)

    @cached_property
    def opened_for_reward(self) -> Opened | None:
        """As ``opened``, of the base that the reward model stands on."""
        if self.recipe.reward.base == "same":
            return self.opened
        recipe = self.recipe
        spec = resolve_base(recipe.reward.base, base_dir=recipe.base_dir, new_tokens=recipe.adapter.new_tokens)
        return opened(spec, "auto", (), recipe.adapter.positions)

    def opened_for(self, stage: str) -> Opened | None:
        """As ``opened``, of the base that a stage's role stands on."""
        return self.opened_for_reward if STAGES[stage].role == "reward" else self.opened

    def tallies(self, name: str) -> Mapping[str, Count]:
        """What a stage cuts and drops, by group of rows; empty where no tokenizer is there."""
        if name == "pretrain":
            return pretrain(self.recipe, self.corpus)
        if name == "continued":
            return self._continued()
        if (tally := STAGES[name].tally) is None or (found := self.opened_for(name)) is None:
            return {}
        return tally(found.renderer, self.recipe, self.corpus, found.positions)

    def _continued(self) -> Mapping[str, Count]:
        """Chunks by the tokenizer of the base that is trained further, before further tokens are learnt."""
        source = self._source(self.recipe.first_base_stage)
        if source is None or self.recipe.continued is None:
            return {}
        spec = resolve_base(source, base_dir=self.recipe.base_dir)
        folder = local_folder(spec.source, spec.revision)
        if folder is None:
            return {}
        spec = spec.model_copy(update={"source": str(folder)})
        limits = limits_of_folder(folder, spec.name)
        positions = None if limits is None else limits.positions
        return continued(tokenizer_of(spec), positions, self.recipe, self.corpus, encoder_in(folder))


def value_text(value: Any) -> str:
    """A setting's value as an override writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def numbers_of(recipe: Recipe, device: torch.device, shape: Shape | None, processes: int = 1) -> Numbers:
    """How the recipe's base is kept and computed with on this device; a base that is not here is taken for a Llama."""
    name, family = recipe.runtime.dtype, "llama" if shape is None else shape.family
    if name == "auto" and isinstance(recipe.base, str):
        name = resolve_base(recipe.base, base_dir=recipe.base_dir).dtype
    dtype = resolve_dtype(name, device, None if shape is None else shape.width)
    plain = recipe.adapter.tuning.plain and not recipe.adapter.embeddings_setting
    known = plain or recipe.adapter.tuning.copies
    fast = recipe.runtime.engine == "auto" and dtype in DTYPES and family in FAMILIES and known
    product = product_dtype(torch.empty(0, dtype=dtype, device="meta" if device.type == "cuda" else device))
    whole = None if shape is None else base_bytes(shape, Numbers(weight=dtype.itemsize))
    divided = is_divided(recipe, device, processes, whole)
    return Numbers(
        parts=processes if divided else 1,
        weight=dtype.itemsize,
        product=product.itemsize,
        fast=fast and not divided,
        packed_output=device.type == "cpu" and product == torch.bfloat16,
        checkpointing=recipe.runtime.gradient_checkpointing is True,
        offload=recipe.runtime.offload_activations,
        nf4=recipe.runtime.quantize == "nf4",
    )


@dataclass(frozen=True)
class Opened:
    """How a base's rows are rendered, and how many positions it has, where its config says so."""

    renderer: Renderer
    positions: int | None


def opened(
    spec: BaseModelSpec, template: str | TemplateChoice, stop: tuple[str | int, ...], reserved: int = 0
) -> Opened | None:
    """A base whose files lie on this machine, by its tokenizer and configs alone; None where they do not.

    ``reserved``: positions that virtual tokens take.

    Weights without a tokenizer, and a damaged one, are None too: the run reports it when it loads the base.
    """
    folder = local_folder(spec.source, spec.revision)
    if folder is None:
        return None
    try:
        tokenizer, limits = tokenizer_of(spec.model_copy(update={"source": str(folder)})), None
        if (folder / "config.json").is_file():
            limits = limits_of_folder(folder, spec.name)
    except UserError:
        return None
    config = folder / "generation_config.json"
    stops = stop_ids_in(read_object(config).get("eos_token_id"), str(config)) if config.is_file() else ()
    renderer = Renderer(tokenizer, template=template, stop=stop, extra_stop_ids=stops)
    positions = None if limits is None else limits.positions
    return Opened(renderer, None if positions is None else max(1, positions - reserved))


def own_facts(spec: BaseModelSpec) -> dict[str, str]:
    """What a base's files say of it where they lie on this machine: size, positions and chat template, as far as they
    can be read; empty where they do not.
    """
    folder, found = local_folder(spec.source, spec.revision), {}
    if folder is None:
        return {}
    with contextlib.suppress(UserError):
        found["size"] = shape_of_folder(folder, AdapterConfig()).size
    with contextlib.suppress(UserError):
        limits = limits_of_folder(folder, spec.name)
        if limits is not None and limits.positions is not None:
            found["positions"] = f"{limits.positions:,}"
    with contextlib.suppress(UserError):
        own = tokenizer_of(spec.model_copy(update={"source": str(folder)})).chat_template
        found["chat_template"] = spec.chat_template or ("the tokenizer's" if own else NO_TEMPLATE)
    return found


def rejected_warning(corpus: Corpus) -> str:
    """A sentence where more than 5 % of the rows of a part of the data cannot be used; empty otherwise."""
    found = []
    for part, (rows, rejected) in corpus.read.items():
        first = f"the first is {rejected[0].source} ({rejected[0].reason})" if rejected else ""
        found.append(share_warning(len(rejected), rows, f"rows of data.{part} were rejected", first))
    return "; ".join(text for text in found if text)
