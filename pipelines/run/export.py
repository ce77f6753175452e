"""``trivet export``: a plain Hugging Face folder, an adapter or merged weights, that others load without trivet."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.common.errors import UNWRITABLE, UserError, nearest
from data.common.patience import patience
from data.template import Renderer
from models.backbone.artifacts import naming, partial_folder, read_artifact, write_json
from models.backbone.launch import check_alone
from models.backbone.scalar_head import ScalarHead
from models.backbone.settings import METHODS
from models.roles.as_classifier import (
    add_score,
    fits_classifier,
    padding_token,
    passes_over_stops,
    write_classifier,
)
from models.roles.export import generation_settings, save_adapter, write_model
from models.roles.files import ADAPTER, SCORING
from models.roles.gguf_file import QUANTISED, check_gguf, modelfile, write_gguf
from models.roles.own_models import merged_copy
from models.roles.saving import Saving
from models.roles.shared_base import SharedBase
from pipelines.run.model_card import Exported, write_card
from pipelines.run.open_run import open_run, stage_folder
from pipelines.run.pipeline import Pipeline
from pipelines.run.push import Repository
from pipelines.run.quantised_loss import quantised_loss
from pipelines.stages.table import STAGES
from reward.files import MEMBERS, save_reward
from reward.model import RewardModel


def exportable() -> dict[str, str]:
    """Stages whose model can be exported, and the role that each makes."""
    return {name: stage.role for name, stage in STAGES.items() if stage.role is not None}


def export_stage(
    run: Path | str,
    stage: str,
    to: Path | str,
    merge: bool = False,
    gguf: str | None = None,
    *,
    dtype: str | None = None,
    max_shard_size: str | None = None,
    push: str | None = None,
    public: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Export a stage's model, with a model card.

    Args:
        run: a run folder.
        stage: ``sft``, ``reward`` (with its head, and all members of an ensemble), ``ppo``, ``pretrain`` or
            ``continued``.
        to: the folder to make; it must not exist.
        merge: full weights with the adapter merged into a *copy* of the base, instead of the adapter alone.
        gguf: a GGUF file of them in this type (``models.roles.gguf_file.TYPES``), and Ollama's Modelfile. What a type
            of whole numbers loses is found by the run's evaluation.
        dtype: precision of full weights (``models.roles.saving.DTYPES``); None: fp32 where an adapter was merged.
        max_shard_size: of a file of full weights, such as ``5GB``; None: Transformers' own.
        push: ``owner/name`` of a repository on the hub, to which the folder goes as well.
        public: everybody may read that repository; otherwise it is private.
        overwrite: the export takes the place of what the repository holds.
        say: hears what rounding to ``dtype`` or quantising does, and where the repository is.

    Raises:
        UserError: an unknown stage, an unfinished one, a folder that exists, what llama.cpp does not have,
            ``dtype`` and ``max_shard_size`` where no full weights are written, or what keeps it from the hub.
    """
    check_alone("export", os.environ)
    saving = Saving(dtype=dtype, max_shard_size=max_shard_size)
    roles = exportable()
    if gguf is not None and (merge or roles.get(stage) == "reward"):
        why = "is merged anyway: leave out --merge" if merge else "is for models that respond, and reward scores"
        raise UserError(f"--gguf: a GGUF file {why}")
    if stage not in roles:
        raise UserError(f"--stage {stage}: cannot be exported.{nearest(stage, roles)} One of: {', '.join(roles)}")
    to = Path(to).resolve()
    try:
        to.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UserError(f"{to}: cannot be written ({error.strerror}); choose another --to") from error
    else:
        raise UserError(f"{to}: exists already; choose a new folder")
    pipeline = open_run(Path(run))
    folder = stage_folder(pipeline, stage)
    role = roles[stage]
    if push is None and (public or overwrite):
        raise UserError("--public and --overwrite are for the repository that --push names")
    method = pipeline.recipe.adapter.method
    if METHODS[method].virtual and role != "base" and (merge or gguf is not None):
        asked = "--merge" if merge else "--gguf"
        raise UserError(
            f"{asked}: '{stage}' is tuned by adapter.method '{method}', whose virtual tokens no weights of the base "
            f"can stand for: nothing can be merged. Export it without {asked}, as an adapter of PEFT"
        )
    whole = merge or role == "base" or METHODS[pipeline.recipe.adapter.method].copies
    if saving != Saving() and (gguf is not None or not whole):
        why = "--gguf names the type of its file" if gguf is not None else "an adapter is kept as it is: give --merge"
        raise UserError(f"--dtype and --max-shard-size are for full weights of Transformers; {why}")
    repository = None if push is None else Repository(push, public=public, overwrite=overwrite)
    notes: list[str] = []

    def noted(text: str) -> None:
        notes.append(text)
        say(text)

    with patience(f"exporting {stage} to {to}"), _written_whole(to) as partial:
        if role == "reward":
            made = _export_reward(pipeline, folder, partial, merge, saving, noted)
        elif gguf is not None:
            made = _export_gguf(pipeline, stage, role, folder, partial, gguf, say)
        else:
            made = _export_lm(pipeline, stage, role, folder, partial, merge, saving, noted)
        write_card(pipeline, stage, replace(made, notes=(*made.notes, *notes)), partial)
    if repository is not None:
        with patience(f"uploading {to} to {push}"):
            say(f"uploaded to {repository.upload(to)}")
    return to


@contextlib.contextmanager
def _written_whole(to: Path) -> Iterator[Path]:
    """A hidden folder that becomes ``to`` at the end, and goes where anything fails."""
    partial = partial_folder(to)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, to)
    except OSError as error:
        if error.errno in UNWRITABLE and isinstance(error.filename, str):  # a full disk is no mistake in the command
            place = error.filename.replace(str(partial), str(to), 1)
            raise OSError(error.errno, error.strerror, place) from error
        raise UserError(f"{to}: cannot be written ({error.strerror or error}); choose another --to") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _base_with(pipeline: Pipeline, stage: str, role: str, folder: Path, whole: bool) -> SharedBase:
    """The run's base with a stage's role; ``whole``: as it was given, where the run has it in four bits."""
    base = pipeline.loaded.base()
    if role != "base":
        pipeline.loaded.load(stage, role, folder)  # which refuses what was trained on another base
    if whole and pipeline.recipe.runtime.quantize:
        base = pipeline.loaded.load_other(pipeline.loaded.spec)
        if role != "base":
            base.load_role(role, folder)
    return base


def _export_gguf(
    pipeline: Pipeline, stage: str, role: str, folder: Path, partial: Path, kind: str, say: Callable[[str], None]
) -> Exported:
    """One file for llama.cpp, and Ollama's description of it."""
    renderer = pipeline.loaded.renderer()
    tokenizer = _tokenizer(pipeline.loaded.base(), renderer)
    check_gguf(pipeline.loaded.base().lm.config, tokenizer, kind)
    base = _base_with(pipeline, stage, role, folder, whole=True)
    lm = base.copies[role] if role in base.copies else merged_copy(base.lm, None if role == "base" else role)
    name = f"{pipeline.recipe.name}-{stage}"
    odd = write_gguf(lm, tokenizer, partial / "model.gguf", kind=kind, name=name, stops=renderer.stop_ids)
    notes = [f"The matrices are of the type `{kind}`."]
    if odd:
        notes.append(f"{len(odd)} matrices have rows that are no multiple of 32 numbers, and are fp16 ({odd[0]}, ...).")
    if kind in QUANTISED[1:]:
        notes.append("Embeddings and output layer are of the type `q8_0`.")

    def render(messages: Sequence[Mapping[str, str]]) -> str:
        ids = renderer.prompt_ids(messages)
        return str(tokenizer.decode(ids[ids[0] == tokenizer.bos_token_id :], skip_special_tokens=False))

    stops = [str(tokenizer.decode([i], skip_special_tokens=False)) for i in renderer.stop_ids]
    stops += renderer.stop_strings.texts
    with naming(partial):
        (partial / "Modelfile").write_text(modelfile("model.gguf", render, stops), encoding="utf-8")
    found = quantised_loss(pipeline, stage, partial / "model.gguf", kind) if kind in QUANTISED else []
    for text in [*notes[1:], *found]:
        say(text)
    return Exported(form="gguf", renderer=renderer, notes=notes, lost=found)


def _export_lm(
    pipeline: Pipeline,
    stage: str,
    role: str,
    folder: Path,
    partial: Path,
    merge: bool,
    saving: Saving,
    say: Callable[[str], None],
) -> Exported:
    """The language model of a stage, with the run's template and the tokens that end its responses."""
    base, renderer = _base_with(pipeline, stage, role, folder, role == "base" or merge), pipeline.loaded.renderer()
    whole = role == "base" or role in base.copies or merge
    if whole:
        write_model(base, role, partial, renderer.stop_ids, saving, say, renderer.stop_strings.texts)
    else:
        save_adapter(base, role, partial, base_path=pipeline.loaded.spec.source)
        with naming(partial):
            settings = generation_settings(base, renderer.stop_ids, renderer.stop_strings.texts)
            settings.save_pretrained(partial)
    _save_tokenizer(base, renderer, partial)
    return Exported(form="model" if whole else "adapter", renderer=renderer)


def _export_reward(
    pipeline: Pipeline, folder: Path, partial: Path, merge: bool, saving: Saving, say: Callable[[str], None]
) -> Exported:
    """A PEFT folder with ``head.safetensors`` next to it; merged, or of a model of its own, a whole classifier.

    ``trivet score`` takes both. What else its scores depend on goes along: the run's template, the tokens that end a
    response, and the limit.
    """
    model = pipeline.loaded.load_reward(folder)
    if merge or model.role in model.base.copies:
        _export_classifier(model, partial, saving, say)
        return _exported_reward("classifier", model, folder)
    spec = pipeline.loaded.spec if model.takes_ids else None
    source = spec.source if spec is not None else pipeline.recipe.reward.base
    save_reward(model, partial)
    shutil.rmtree(partial / ADAPTER)
    save_adapter(model.base, model.role, partial, base_path=source)
    for number, member in enumerate(model.members[1:], 1):
        save_adapter(model.base, member.role, partial / MEMBERS / str(number) / ADAPTER, base_path=source)
    add = _for_classifiers(model, partial)
    write_json(partial / SCORING, _limits(model) | add)
    _save_tokenizer(model.base, model.renderer, partial, pads_classifier=bool(add))
    return _exported_reward("classifier_adapter" if add else "reward", model, folder)


def _exported_reward(form: str, model: RewardModel, folder: Path) -> Exported:
    """What a reward's scores depend on, for the model card."""
    artifact = read_artifact(folder)
    score = {
        "max_tokens": model.max_tokens,
        "pooling": model.pooling,
        "members": max(1, len(model.members)),
        "score_mean": model.score_mean,
        "mean_over": (artifact.metrics.get("centred_on") if artifact else None) or "samples",
    }
    add = {} if form == "reward" else _constant(model)
    return Exported(form=form, renderer=model.renderer, score=score | add)


def _limits(model: RewardModel) -> dict[str, Any]:
    return {"max_tokens": model.max_tokens, "stop_ids": list(model.renderer.stop_ids)}


def _export_classifier(model: RewardModel, folder: Path, saving: Saving, say: Callable[[str], None]) -> None:
    """A whole model for sequence classification.

    Raises:
        UserError: its scores are none that a plain classifier gives.
    """
    if (why := _no_classifier(model)) is not None:
        raise UserError(
            f"--stage reward: {why}, and plain Transformers has no such classifier: "
            + ("score with the run" if model.role in model.base.copies else "export it without --merge")
        )
    pad = padding_token(model.base, model.renderer.stop_ids, model.renderer.template or "")
    write_classifier(model.base, model.role, folder, pad, saving, say)
    write_json(folder / SCORING, _limits(model) | _constant(model))
    _save_tokenizer(model.base, model.renderer, folder, pads_classifier=True)


def _no_classifier(model: RewardModel) -> str | None:
    """Why no plain classifier gives the scores of a reward model; None where one does."""
    if model.members:
        return "its scores are those of an ensemble"
    if model.pooling != "last":
        return f"reward.pooling is '{model.pooling}'"
    if not fits_classifier(model.base, model.role):
        return f"base {model.base.name} has no classifier with one linear score at the last token"
    if passes_over_stops(model.base, model.renderer.stop_ids):
        return f"base {model.base.name} pads with a token that ends responses, which would be passed over"
    return None


def _constant(model: RewardModel) -> dict[str, float]:
    """What is to be added to a classifier's number."""
    head = model.base.heads[model.role]
    assert isinstance(head, ScalarHead)
    return {"add_to_classifier": head.bias.item() - model.score_mean}


def _for_classifiers(model: RewardModel, folder: Path) -> dict[str, float]:
    """Store what ``AutoModelForSequenceClassification`` opens, and return what is to be added to its number.

    Other poolings, ensembles, architectures without such a classifier and bases that pad with a stop token, which it
    would pass over, cannot be opened as one: that raises.
    """
    exact = _no_classifier(model) is None
    weight: Any = model.base.heads[model.role].weight
    add_score(folder, weight if exact else None)
    for other in folder.glob(f"{MEMBERS}/*/{ADAPTER}"):
        add_score(other, None)
    return _constant(model) if exact else {}


def _tokenizer(base: SharedBase, renderer: Renderer) -> Any:
    """A copy of a base's tokenizer with the run's template."""
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.chat_template = renderer.template
    return tokenizer


def _save_tokenizer(base: SharedBase, renderer: Renderer, folder: Path, pads_classifier: bool = False) -> None:
    """The run's tokenizer with its template.

    Args:
        pads_classifier: it pads with what a plain classifier passes over, and on the right, or refuses to pad.
    """
    tokenizer = _tokenizer(base, renderer)
    if pads_classifier:
        tokenizer.pad_token = padding_token(base, renderer.stop_ids, renderer.template or "")
        tokenizer.padding_side = "right"
    with naming(folder):
        tokenizer.save_pretrained(folder)
