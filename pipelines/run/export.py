"""``trivet export``: a plain Hugging Face folder, an adapter or merged weights, that others load without trivet."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path

from data.common.errors import UserError, nearest
from data.template import Renderer
from models.backbone.artifacts import partial_folder
from models.roles.export import write_model
from models.roles.files import ADAPTER, save_adapter
from models.roles.shared_base import SharedBase
from pipelines.run.open_run import open_run, stage_folder
from pipelines.run.pipeline import Pipeline
from reward.files import save_reward

EXPORTABLE = {"sft": "sft", "reward": "reward", "ppo": "policy", "pretrain": "base"}


def export_stage(run: Path | str, stage: str, to: Path | str, merge: bool = False) -> Path:
    """Export a stage's model.

    Args:
        run: a run folder.
        stage: ``sft``, ``reward`` (with its head, and all members of an ensemble), ``ppo`` or ``pretrain``.
        to: the folder to make; it must not exist.
        merge: full weights with the adapter merged into a *copy* of the base, instead of the adapter alone.

    Raises:
        UserError: an unknown stage, an unfinished one, or a folder that exists.
    """
    if stage not in EXPORTABLE:
        raise UserError(
            f"--stage {stage}: cannot be exported.{nearest(stage, EXPORTABLE)} One of: {', '.join(EXPORTABLE)}"
        )
    to = Path(to).resolve()
    if to.exists():
        raise UserError(f"{to}: exists already; choose a new folder")
    pipeline = open_run(Path(run))
    folder = stage_folder(pipeline.run_dir, stage)
    base, role = pipeline.loaded.base(), EXPORTABLE[stage]
    if role == "reward":
        return _export_reward(pipeline, folder, to, merge)
    if role != "base":
        pipeline.loaded.load(stage, role, folder)
    partial = partial_folder(to)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if role == "base" or role in base.copies or merge:
        write_model(base, role, partial)
    else:
        save_adapter(base, role, partial, base_path=pipeline.loaded.spec.source)
    _save_tokenizer(base, pipeline.loaded.renderer(), partial)
    os.replace(partial, to)
    return to


def _export_reward(pipeline: Pipeline, folder: Path, to: Path, merge: bool) -> Path:
    """A PEFT folder with ``head.safetensors`` beside it, as ``trivet score`` takes it; the head is ours alone."""
    if merge:
        raise UserError("--merge: a reward model is an adapter and a head; export it without --merge")
    model = pipeline.loaded.load_reward(folder)
    if model.base.copies:
        raise UserError("--stage reward: a fully fine-tuned reward model stays in its run; score with the run")
    spec = pipeline.loaded.spec if model.takes_ids else None
    source = spec.source if spec is not None else pipeline.recipe.reward.base
    partial = partial_folder(to)
    shutil.rmtree(partial, ignore_errors=True)
    save_reward(model, partial)
    shutil.rmtree(partial / ADAPTER)
    save_adapter(model.base, model.role, partial, base_path=source)
    _save_tokenizer(model.base, model.renderer, partial)
    os.replace(partial, to)
    return to


def _save_tokenizer(base: SharedBase, renderer: Renderer, folder: Path) -> None:
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.chat_template = tokenizer.chat_template or renderer.template
    tokenizer.save_pretrained(folder)
