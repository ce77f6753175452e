"""``trivet export``: a plain Hugging Face folder, an adapter or merged weights, that others load without trivet."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from data.common.errors import UNWRITABLE, UserError, nearest
from data.common.patience import patience
from models.backbone.artifacts import partial_folder
from models.backbone.launch import check_alone
from models.backbone.settings import METHODS
from models.hub.load import encoder_in
from models.roles.saving import Saving
from pipelines.export.language_model import StageModel, export_gguf, export_lm
from pipelines.export.model_card import write_card
from pipelines.export.push import Repository
from pipelines.export.reward_model import export_reward
from pipelines.run.open_run import open_run, stage_folder
from pipelines.stages.table import STAGES
from pipelines.workspace.run_folder import check_outside


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
        stage: one of ``exportable``; ``reward`` with its head, and all members of an ensemble.
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
    _check_stage(stage, merge, gguf)
    to = _new_folder(to)
    check_outside(to, "--to")
    pipeline = open_run(Path(run), stage=stage)
    model = StageModel(pipeline, stage, exportable()[stage], stage_folder(pipeline, stage))
    if push is None and (public or overwrite):
        raise UserError("--public and --overwrite are for the repository that --push names")
    _check_method(model, merge, gguf, saving)
    repository = None if push is None else Repository(push, public=public, overwrite=overwrite)
    notes: list[str] = []

    def noted(text: str) -> None:
        notes.append(text)
        say(text)

    with patience(f"exporting {stage} to {to}"), _written_whole(to) as partial:
        if model.role == "reward":
            made = export_reward(model, partial, merge, saving, noted)
        elif gguf is not None:
            made = export_gguf(model, partial, gguf, say)
        else:
            made = export_lm(model, partial, merge, saving, noted)
        write_card(pipeline, stage, replace(made, notes=(*made.notes, *notes)), partial)
    if repository is not None:
        with patience(f"uploading {to} to {push}"):
            say(f"uploaded to {repository.upload(to)}")
    return to


def _check_stage(stage: str, merge: bool, gguf: str | None) -> None:
    """Whether the stage makes a model, and one of this form."""
    roles = exportable()
    if gguf is not None and (merge or roles.get(stage) == "reward"):
        why = "is merged anyway: leave out --merge" if merge else "is for models that respond, and reward scores"
        raise UserError(f"--gguf: a GGUF file {why}")
    if stage not in roles:
        raise UserError(f"--stage {stage}: cannot be exported.{nearest(stage, roles)} One of: {', '.join(roles)}")


def _new_folder(to: Path | str) -> Path:
    """Where the export goes, if nothing is there yet."""
    to = Path(to).resolve()
    try:
        to.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return to
    except OSError as error:
        raise UserError(f"{to}: cannot be written ({error.strerror}); choose another --to") from error
    raise UserError(f"{to}: exists already; choose a new folder")


def _check_method(model: StageModel, merge: bool, gguf: str | None, saving: Saving) -> None:
    """Whether what was tuned can be written as it is asked for."""
    if model.role == "base" and encoder_in(model.folder / "model"):
        raise UserError(
            f"{model.folder / 'model'}: is an encoder, to which an export has neither template nor stops to add; it "
            "is a plain Transformers folder (AutoModelForMaskedLM): take it as it is"
        )
    method = model.pipeline.recipe.adapter.method
    if METHODS[method].virtual and model.role != "base" and (merge or gguf is not None):
        asked = "--merge" if merge else "--gguf"
        raise UserError(
            f"{asked}: '{model.stage}' is tuned by adapter.method '{method}', whose virtual tokens no weights of the "
            f"base can stand for: nothing can be merged. Export it without {asked}, as an adapter of PEFT"
        )
    whole = merge or model.role == "base" or METHODS[method].copies
    if saving != Saving() and (gguf is not None or not whole):
        why = "--gguf names the type of its file" if gguf is not None else "an adapter is kept as it is: give --merge"
        raise UserError(f"--dtype and --max-shard-size are for full weights of Transformers; {why}")


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
