"""A stage's language model in the form that others load: a folder of Transformers or PEFT, or a GGUF file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.template import Renderer
from models.backbone.artifacts import naming
from models.roles.export import generation_settings, save_adapter, write_model
from models.roles.gguf_file import QUANTISED, check_gguf, modelfile, write_gguf
from models.roles.own_models import merged_copy
from models.roles.saving import Saving
from models.roles.shared_base import SharedBase
from pipelines.export.model_card import Exported
from pipelines.export.quantised_loss import quantised_loss
from pipelines.run.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class StageModel:
    """What is exported: the model that a finished stage of a run has made.

    Args:
        pipeline: the run.
        stage: its name.
        role: that the stage makes; ``base`` of one that trains the base itself.
        folder: the finished stage.
    """

    pipeline: Pipeline
    stage: str
    role: str
    folder: Path

    def on_base(self, whole: bool) -> SharedBase:
        """The run's base with the role; ``whole``: as it was given, where the run has it in four bits."""
        loaded = self.pipeline.loaded
        base = loaded.base()
        if self.role != "base":
            loaded.load(self.stage, self.role, self.folder)  # which refuses what was trained on another base
        if whole and self.pipeline.recipe.runtime.quantize:
            base = loaded.load_other(loaded.spec)
            if self.role != "base":
                base.load_role(self.role, self.folder)
        return base


def export_lm(model: StageModel, partial: Path, merge: bool, saving: Saving, say: Callable[[str], None]) -> Exported:
    """A folder of Transformers or PEFT, with the run's template and the tokens that end its responses.

    Args:
        model: what is exported.
        partial: the folder to fill.
        merge: full weights with the adapter merged into them.
        saving: precision and shards of full weights.
        say: hears what rounding to that precision does.
    """
    loaded, role = model.pipeline.loaded, model.role
    base, renderer = model.on_base(whole=role == "base" or merge), loaded.renderer()
    whole = role == "base" or role in base.copies or merge
    if whole:
        write_model(base, role, partial, renderer.stop_ids, saving, say, renderer.stop_strings.texts)
    else:
        save_adapter(base, role, partial, base_path=loaded.spec.source)
        with naming(partial):
            settings = generation_settings(base, renderer.stop_ids, renderer.stop_strings.texts)
            settings.save_pretrained(partial)
    save_tokenizer(run_tokenizer(base, renderer), partial)
    return Exported(form="model" if whole else "adapter", renderer=renderer)


def export_gguf(model: StageModel, partial: Path, kind: str, say: Callable[[str], None]) -> Exported:
    """One file for llama.cpp, and Ollama's description of it.

    Args:
        model: what is exported.
        partial: the folder to fill.
        kind: the file's type (``models.roles.gguf_file.TYPES``).
        say: hears what quantising does.

    Raises:
        UserError: llama.cpp has no such model, tokenizer or type.
    """
    pipeline, role = model.pipeline, model.role
    renderer = pipeline.loaded.renderer()
    tokenizer = run_tokenizer(pipeline.loaded.base(), renderer)
    check_gguf(pipeline.loaded.base().lm.config, tokenizer, kind)
    base = model.on_base(whole=True)
    lm = base.copies[role] if role in base.copies else merged_copy(base.lm, None if role == "base" else role)
    name, file = f"{pipeline.recipe.name}-{model.stage}", partial / "model.gguf"
    odd = write_gguf(lm, tokenizer, file, kind=kind, name=name, stops=renderer.stop_ids)
    with naming(partial):
        (partial / "Modelfile").write_text(_modelfile(file.name, tokenizer, renderer), encoding="utf-8")
    about = _about_types(kind, odd)
    lost = quantised_loss(pipeline, model.stage, file, kind) if kind in QUANTISED else []
    for text in [*about, *lost]:
        say(text)
    return Exported(
        form="gguf", renderer=renderer, notes=[f"The matrices are of the type `{kind}`.", *about], lost=lost
    )


def _about_types(kind: str, odd: Sequence[str]) -> list[str]:
    """Sentences on the tensors that are of another type than the file; ``odd``: those whose rows do not fit it."""
    about = []
    if odd:
        about.append(f"{len(odd)} matrices have rows that are no multiple of 32 numbers, and are fp16 ({odd[0]}, ...).")
    if kind in QUANTISED[1:]:
        about.append("Embeddings and output layer are of the type `q8_0`.")
    return about


def _modelfile(file: str, tokenizer: Any, renderer: Renderer) -> str:
    """Ollama's description: how a conversation is written, and what ends a response."""

    def render(messages: Sequence[Mapping[str, str]]) -> str:
        ids = renderer.prompt_ids(messages)
        return str(tokenizer.decode(ids[ids[0] == tokenizer.bos_token_id :], skip_special_tokens=False))

    stops = [str(tokenizer.decode([i], skip_special_tokens=False)) for i in renderer.stop_ids]
    return modelfile(file, render, [*stops, *renderer.stop_strings.texts])


def run_tokenizer(base: SharedBase, renderer: Renderer) -> Any:
    """A copy of a base's tokenizer with the run's template."""
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.chat_template = renderer.template
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer's files into the folder; an error of the disk names it."""
    with naming(folder):
        tokenizer.save_pretrained(folder)
