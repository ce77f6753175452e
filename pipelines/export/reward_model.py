"""A stage's reward model in the form that others load: an adapter and its head, or a plain sequence classifier."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.common.errors import UserError
from models.backbone.artifacts import read_artifact, write_json
from models.backbone.scalar_head import ScalarHead
from models.roles.as_classifier import (
    add_score,
    fits_classifier,
    padding_token,
    passes_over_stops,
    write_classifier,
)
from models.roles.export import save_adapter
from models.roles.files import ADAPTER, SCORING
from models.roles.saving import Saving
from pipelines.export.language_model import StageModel, run_tokenizer, save_tokenizer
from pipelines.export.model_card import Exported
from reward.files import MEMBERS, save_reward
from reward.model import RewardModel


def export_reward(
    stage: StageModel, partial: Path, merge: bool, saving: Saving, say: Callable[[str], None]
) -> Exported:
    """A PEFT folder with ``head.safetensors`` next to it; merged, or of a model of its own, a whole classifier.

    ``trivet score`` takes both. What else its scores depend on goes along: the run's template, the tokens that end a
    response, and the limit.

    Args:
        stage: what is exported.
        partial: the folder to fill.
        merge: a whole classifier.
        saving: precision and shards of its weights.
        say: hears what rounding to that precision does.

    Raises:
        UserError: a whole classifier is asked for, and its scores are none that a plain one gives.
    """
    model = stage.pipeline.loaded.load_reward(stage.folder)
    if merge or model.role in model.base.copies:
        _export_classifier(model, partial, saving, say)
        form = "classifier"
    else:
        opens = _export_adapters(stage, model, partial)
        form = "classifier_adapter" if opens else "reward"
    score = _depends_on(model, stage.folder) | ({} if form == "reward" else _constant(model))
    return Exported(form=form, renderer=model.renderer, score=score)


def _export_adapters(stage: StageModel, model: RewardModel, partial: Path) -> bool:
    """PEFT's folders of a reward model and the members of its ensemble; returns whether it opens as a classifier."""
    loaded = stage.pipeline.loaded
    source = loaded.spec.source if model.takes_ids else stage.pipeline.recipe.reward.base
    save_reward(model, partial)
    shutil.rmtree(partial / ADAPTER)
    save_adapter(model.base, model.role, partial, base_path=source)
    for number, member in enumerate(model.members[1:], 1):
        save_adapter(model.base, member.role, partial / MEMBERS / str(number) / ADAPTER, base_path=source)
    opens = _no_classifier(model) is None
    _add_scores(model, partial, opens)
    write_json(partial / SCORING, _limits(model) | (_constant(model) if opens else {}))
    if opens:
        save_tokenizer(_classifier_tokenizer(model), partial)
    else:
        save_tokenizer(run_tokenizer(model.base, model.renderer), partial)
    return opens


def _export_classifier(model: RewardModel, folder: Path, saving: Saving, say: Callable[[str], None]) -> None:
    """A whole model for sequence classification."""
    if (why := _no_classifier(model)) is not None:
        raise UserError(
            f"--stage reward: {why}, and plain Transformers has no such classifier: "
            + ("score with the run" if model.role in model.base.copies else "export it without --merge")
        )
    pad = padding_token(model.base, model.renderer.stop_ids, model.renderer.template or "")
    write_classifier(model.base, model.role, folder, pad, saving, say)
    write_json(folder / SCORING, _limits(model) | _constant(model))
    save_tokenizer(_classifier_tokenizer(model), folder)


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


def _add_scores(model: RewardModel, folder: Path, opens: bool) -> None:
    """Store what ``AutoModelForSequenceClassification`` opens, or what makes it raise.

    Other poolings, ensembles, architectures without such a classifier and bases that pad with a stop token, which it
    would pass over, cannot be opened as one.
    """
    weight: Any = model.base.heads[model.role].weight
    add_score(folder, weight if opens else None)
    for other in folder.glob(f"{MEMBERS}/*/{ADAPTER}"):
        add_score(other, None)


def _classifier_tokenizer(model: RewardModel) -> Any:
    """The run's tokenizer, which pads with what a plain classifier passes over, and on the right, or refuses to pad."""
    tokenizer = run_tokenizer(model.base, model.renderer)
    tokenizer.pad_token = padding_token(model.base, model.renderer.stop_ids, model.renderer.template or "")
    tokenizer.padding_side = "right"
    return tokenizer


def _limits(model: RewardModel) -> dict[str, Any]:
    """What a scorer of the exported folder is to know besides the weights."""
    return {"max_tokens": model.max_tokens, "stop_ids": list(model.renderer.stop_ids)}


def _constant(model: RewardModel) -> dict[str, float]:
    """What is to be added to a classifier's number."""
    head = model.base.heads[model.role]
    assert isinstance(head, ScalarHead)
    return {"add_to_classifier": head.bias.item() - model.score_mean}


def _depends_on(model: RewardModel, folder: Path) -> dict[str, Any]:
    """What a reward's scores depend on, for the model card."""
    artifact = read_artifact(folder)
    return {
        "max_tokens": model.max_tokens,
        "pooling": model.pooling,
        "members": max(1, len(model.members)),
        "score_mean": model.score_mean,
        "mean_over": (artifact.metrics.get("centred_on") if artifact else None) or "samples",
    }
