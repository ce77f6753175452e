"""What stages of one process share: the processes, the base in memory once, renderers, and loading of roles.

Every stage starts by dropping all roles and loading those it needs from files, so that a stage run alone gives the
same bytes as in the chain.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from data.chat_template import TemplateChoice
from data.common.errors import UserError
from data.common.patience import patience
from data.common.strict_json import read_object
from data.template import Renderer
from models.backbone.artifacts import read_artifact
from models.backbone.encoders import check_method, is_encoder, refusal
from models.backbone.processes import Processes
from models.hub.limits import check_stops, stop_ids_in, stop_strings_in
from models.hub.load import dtype_of, encoder_in, folder_of_spec, load_tokenizer
from models.hub.registry import BaseModelSpec, resolve_base
from models.hub.validate import elements_of
from models.roles.files import CONFIG, new_tokens_of
from models.roles.shared_base import SharedBase
from pipelines.execution.sharding import is_divided
from pipelines.recipe.schema import Recipe
from reward.files import HOLDOUT, load_reward
from reward.model import RewardModel


def renderer_of_adapter(adapter: Path, base: SharedBase) -> Renderer | None:
    """How an adapter's own tokenizer writes conversations, with the stops beside it; None where it brings no template.

    Args:
        adapter: a plain PEFT folder, such as `trivet export` writes.
        base: what it stands on, whose stops count where the folder names none.
    """
    if not (adapter / "tokenizer_config.json").is_file():
        return None
    tokenizer, config = load_tokenizer(str(adapter)), adapter / "generation_config.json"
    if not tokenizer.chat_template:
        return None
    own = read_object(config) if config.is_file() else {}
    stops, strings = (
        stop_ids_in(own.get("eos_token_id"), str(config)),
        stop_strings_in(own.get("stop_strings"), str(config)),
    )
    renderer = Renderer(
        tokenizer, extra_stop_ids=stops or base.extra_stop_ids, stop_strings=strings or base.extra_stop_strings
    )
    check_stops(base.limits, renderer.stop_ids)
    return renderer


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """A model on a base of its own: the role that it is there, and how it is asked."""

    base: SharedBase
    role: str
    renderer: Renderer


class LoadedModels:
    """Loads what is needed, once.

    Args:
        recipe: whose stages.
        processes: that work together.
        made: folders of the stages that make a base, by stage.
    """

    def __init__(self, recipe: Recipe, processes: Processes, made: Mapping[str, Path]) -> None:
        self.recipe, self.processes, self.made = recipe, processes, dict(made)
        self._bases: dict[str, SharedBase] = {}
        self.warn: Callable[[str], None] = warnings.warn
        self.open_stage: Callable[[Path], OpenedModel | None] = lambda folder: None  # of other runs; the runner knows

    @property
    def _new_tokens(self) -> tuple[str, ...]:
        return self.recipe.adapter.new_tokens

    @cached_property
    def spec(self) -> BaseModelSpec:
        """The base that stages stand on, with the tokens that adapters add."""
        recipe, tokens = self.recipe, self._new_tokens
        if recipe.continued is None:
            return self.first_spec.model_copy(update={"new_tokens": tokens}) if tokens else self.first_spec
        spec = resolve_base(str(self._folder("continued")), base_dir=recipe.base_dir, new_tokens=tokens)
        # stops, targets and the like that an entry names hold for what it became
        kept = self.first_spec if isinstance(recipe.base, str) else spec
        use = {n: getattr(kept, n) for n in ("lora_targets", "dtype", "chat_template", "stop", "pad_token")}
        return spec.model_copy(update=use | {"name": f"continued/{recipe.name}"})

    @cached_property
    def first_spec(self) -> BaseModelSpec:
        """The base as it is given or made from scratch, before pretraining is continued."""
        recipe = self.recipe
        if isinstance(recipe.base, str):
            return resolve_base(recipe.base, base_dir=recipe.base_dir)
        spec = resolve_base(str(self._folder("pretrain")), base_dir=recipe.base_dir)
        return spec.model_copy(update={"name": f"pretrained/{recipe.name}"})

    def _folder(self, stage: str) -> Path:
        """The model that a stage made.

        Raises:
            UserError: it is not there yet.
        """
        folder = self.made.get(stage)
        if folder is None:
            setting = {"pretrain": "base.pretrain"}.get(stage, stage)
            raise UserError(f"{setting}: the base is not there yet; run the {stage} stage or give --input {stage}=PATH")
        return folder / "model"

    def base(self, writes: bool = True) -> SharedBase:
        """The base that stages stand on.

        Args:
            writes: text; an encoder can be scored with alone.

        Raises:
            UserError: it cannot be loaded, or is an encoder and is to write.
        """
        if writes and "base" not in self._bases and encoder_in(folder_of_spec(self.spec)):
            raise refusal(self.spec.name)
        return self._load("base", self.spec)

    def stand_on(self, base: SharedBase) -> None:
        """Take a base that is in memory already for the one that stages stand on, which it must be."""
        self._bases["base"] = base

    def renderer(self) -> Renderer:
        base, recipe = self.base(), self.recipe
        strings = (*recipe.stop_strings, *base.extra_stop_strings)
        return self._renderer(base, recipe.template_source, recipe.stop or self.spec.stop, strings)

    def _renderer(
        self,
        base: SharedBase,
        template: str | TemplateChoice,
        stop: tuple[str | int, ...],
        stop_strings: tuple[str, ...] = (),
    ) -> Renderer:
        renderer = Renderer(
            base.tokenizer,
            template=template,
            stop=stop,
            extra_stop_ids=base.extra_stop_ids,
            stop_strings=stop_strings,
        )
        check_stops(base.limits, renderer.stop_ids)
        return renderer

    def _load(self, name: str, spec: BaseModelSpec) -> SharedBase:
        if name not in self._bases:
            self._bases[name] = self.load_other(spec, four_bits=self.recipe.runtime.quantize == "nf4")
            self._bases[name].reserved = self.recipe.adapter.positions
        return self._bases[name]

    def load_other(self, spec: BaseModelSpec, trained: bool = False, four_bits: bool = False) -> SharedBase:
        """A base that is not kept here, on the recipe's device and in its precision; what a stage ``trained`` in fp32,
        which is how such weights are kept. ``four_bits``: quantised, as the roles of such a run stand on it."""
        asked = "float32" if trained else self.recipe.runtime.dtype
        dtype = self._agreed(dtype_of(spec, asked, self.processes.device))
        divided = self.processes if self._divided(spec, dtype) else None
        with patience(f"loading base {spec.name} and hashing its weights"):
            base = SharedBase.load(
                spec, dtype=dtype, device=self.processes.device, four_bits=four_bits, divided=divided
            )
        base.fast = self.recipe.runtime.engine == "auto"
        return base

    def _divided(self, spec: BaseModelSpec, dtype: torch.dtype) -> bool:
        """Whether the processes hold a base in parts: all of them do where it is too large for one."""
        asked, processes = self.recipe.runtime.sharding, self.processes
        if processes.world_size == 1 or asked == "none" or (asked == "auto" and processes.device.type == "cpu"):
            return False
        weights = elements_of(folder_of_spec(spec)) * dtype.itemsize
        return any(processes.gather([is_divided(self.recipe, processes.device, processes.world_size, weights)]))

    def _agreed(self, dtype: torch.dtype) -> torch.dtype:
        """One precision for all processes: fp32 where their processors differ in what they do faster."""
        return dtype if len(set(self.processes.gather([str(dtype)]))) == 1 else torch.float32

    @property
    def reward_has_own_base(self) -> bool:
        return self.recipe.reward.base != "same"

    def reward_base(self) -> tuple[SharedBase, Renderer]:
        """The base and rendering of the reward model: the shared one, or its own."""
        if not self.reward_has_own_base:
            return self.base(), self.renderer()
        recipe = self.recipe
        spec = resolve_base(recipe.reward.base, base_dir=recipe.base_dir, new_tokens=self._new_tokens)
        base = self._load("reward", spec)
        if is_encoder(base.lm):
            check_method(base.name, recipe.adapter.method, recipe.adapter.tuning.virtual)
        return base, self._renderer(base, "auto", ())

    def open_model(self, source: str) -> OpenedModel:
        """Any model on a base of its own, which nobody else holds: a stage of a run, an adapter, or a whole model.

        Args:
            source: its folder, from the recipe's; or a name or hub id of a whole model.

        Raises:
            UserError: there is nothing that can be loaded.
        """
        folder = (self.recipe.base_dir / Path(source).expanduser()).resolve()
        if (found := self.open_stage(folder) if folder.is_dir() else None) is not None:
            return found
        adapter = folder if (folder / CONFIG).is_file() else None
        named = str(read_object(folder / CONFIG).get("base_model_name_or_path") or "") if adapter else source
        if adapter is not None and not named:
            raise UserError(f"{folder / CONFIG}: names no base; give the stage's folder in its run, or a merged export")
        tokens = () if adapter is None else new_tokens_of(adapter)
        base = self.load_other(resolve_base(named, base_dir=self.recipe.base_dir, new_tokens=tokens))
        if is_encoder(base.lm):
            raise refusal(base.name)
        own = renderer_of_adapter(adapter, base) if adapter is not None else None
        template = "auto" if base.tokenizer.chat_template else self.recipe.template_source
        renderer = own or self._renderer(base, template, ())
        if adapter is not None:
            base.load_role("model", adapter)
        return OpenedModel(base=base, role="base" if adapter is None else "model", renderer=renderer)

    def clear(self, warn: Callable[[str], None] = warnings.warn) -> None:
        """Drop every role and give memory back before a stage, whose warnings go to ``warn``."""
        self.warn = warn
        for base in self._bases.values():
            base.drop_roles()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def base_of(self, stage: str) -> tuple[SharedBase, Renderer]:
        """The base that a stage stands on, and its rendering."""
        return self.reward_base() if stage == "reward" else (self.base(), self.renderer())

    def fingerprint(self, stage: str) -> str:
        """Hash of the base that a stage stands on."""
        return self.base_of(stage)[0].fingerprint

    def load(self, stage: str, role: str, folder: Path) -> None:
        """Add a role to the shared base from a finished stage or a folder that the user gave."""
        self._same_base(stage, folder)
        self.base().load_role(role, folder)

    def _same_base(self, stage: str, folder: Path) -> None:
        """An adapter means nothing on another base than the one it was trained on."""
        artifact = read_artifact(folder)
        made_on = artifact.manifest.get("base_fingerprint") if artifact else None
        if made_on and made_on != self.fingerprint(stage):
            raise UserError(
                f"{folder}: was trained on another base (fingerprint {made_on[:12]}, this one is "
                f"{self.fingerprint(stage)[:12]}); use the base it was made with, or run the stage again"
            )

    def load_reward(self, folder: Path, role: str = "reward", inner: Path | None = None) -> RewardModel:
        """A finished reward stage's model, with its heads; ``inner`` is a folder inside the stage's."""
        self._same_base("reward", folder)
        base, renderer = self.reward_base()
        model = load_reward(
            base,
            inner or folder,
            renderer,
            role=role,
            takes_ids=not self.reward_has_own_base,
            max_tokens=self.recipe.reward.max_tokens,
        )
        model.memory.warn = self.warn
        return model

    def load_holdout_model(self, folder: Path) -> RewardModel | None:
        """The second reward model of a finished reward stage, where it has one."""
        inner = folder / HOLDOUT
        return self.load_reward(folder, role=HOLDOUT, inner=inner) if inner.is_dir() else None
