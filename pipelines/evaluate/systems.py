"""Names of systems -> models that respond: roles of the run, kept checkpoints, folders, and other ways of asking."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from data.common.errors import UserError
from data.common.strict_json import read_object
from data.template import Renderer
from evaluation.best_of import Chooser
from evaluation.held_out import Evaluator, System
from evaluation.prompting import asking
from evaluation.settings import OPTIMISED
from evaluation.systems import ROLES, Named, parse
from models.backbone.artifacts import MANIFEST
from models.hub.limits import check_stops
from models.hub.registry import resolve_base
from models.hub.spec import BaseModelSpec
from models.roles.files import ADAPTER, CONFIG, MODEL, new_tokens_of
from models.roles.shared_base import SharedBase
from pipelines.execution.loaded_models import LoadedModels, renderer_of_adapter
from pipelines.recipe.derived import choosing
from reward.terms.composition import compose
from stages.settings import KEPT
from stages.stage import StageContext


def open_system(context: StageContext, loaded: LoadedModels, evaluator: Evaluator, named: Named, label: str) -> System:
    """Load what a name means; ``label`` is what results call it.

    Raises:
        UserError: a checkpoint that was not kept, a folder that holds no model, or one that does not fit.
    """
    of_run = System(name=label, base=evaluator.base, role="base", renderer=evaluator.renderer)
    if named.kind == "role":
        role = ROLES[named.value]
        if role != "base" and role not in evaluator.base.roles:
            raise UserError(f"evaluation.systems: {named.value} is not in this run")
        return replace(of_run, role=role)
    if named.kind == "best_of":
        sampled = "reference" if "reference" in evaluator.base.roles else "base"
        return replace(of_run, role=sampled, best_of=int(named.value), chooser=_chooser(loaded, evaluator, named))
    if named.kind == "checkpoint":
        folder = _kept(context, int(named.value))
        return replace(of_run, role=_add(loaded, evaluator.base, named.name, folder))
    if named.kind == "path":
        folder = (loaded.recipe.base_dir / Path(named.value).expanduser()).resolve()
        return _of_path(loaded, of_run, named, folder)
    config = loaded.recipe.evaluation.asked(named.value)
    assert config is not None
    model = open_system(context, loaded, evaluator, parse(config.model), label)
    shown = asking(named.value, config, context.corpus.demonstrations.train, evaluator.seed)
    return replace(model, asking=shown)


def _chooser(loaded: LoadedModels, evaluator: Evaluator, named: Named) -> Chooser:
    """What chooses among the samples: the reward model, a reward of ``best_of_by``, or what PPO optimises."""
    recipe = loaded.recipe
    parts, ppo = choosing(recipe)[named.name], recipe.ppo
    if any(part.kind == "model" for part in parts) and evaluator.reward is None:
        raise UserError(f"evaluation.systems: {named.name} is chosen by a reward model, and there is none in this run")
    optimised = named.by == OPTIMISED
    reward = compose(
        parts,
        evaluator.reward,
        recipe.base_dir,
        standardise=optimised and ppo.standardise_scores,
        device=loaded.processes.device,
        where=OPTIMISED if optimised else f"evaluation.best_of_by.{named.by}",
    )
    if not optimised:
        return Chooser(reward=reward)
    return Chooser(reward=reward, clip=ppo.score_clip, missing_eos_penalty=ppo.missing_eos_penalty)


def _kept(context: StageContext, update: int) -> Path:
    """The folder of a policy that PPO kept on its way."""
    if "ppo" not in context.inputs:
        raise UserError(f"evaluation.systems: ppo@{update}: there is no ppo stage in this run")
    folder = context.inputs["ppo"] / KEPT
    found = sorted(int(p.name.removeprefix("update_")) for p in folder.glob("update_*"))
    if update not in found:
        there = ", ".join(f"ppo@{n}" for n in found) or "none; set ppo.keep_every and run the ppo stage again"
        raise UserError(f"evaluation.systems: ppo@{update}: that policy was not kept (kept: {there})")
    return folder / f"update_{update}"


def _add(loaded: LoadedModels, base: SharedBase, name: str, folder: Path) -> str:
    """A role of the shared base under a name that PEFT takes."""
    role = "system_" + "".join(c if c.isalnum() else "_" for c in name)
    if role not in base.roles:
        loaded.load("sft", role, folder)
    return role


def _of_path(loaded: LoadedModels, of_run: System, named: Named, folder: Path) -> System:
    """An adapter or a stage of ours on the run's base, or a model with a tokenizer of its own."""
    if not folder.is_dir():
        raise UserError(f"evaluation.systems: {named.name}: no such folder ({folder})")
    adapter = next((f for f in (folder / ADAPTER, folder) if (f / CONFIG).is_file()), None)
    if adapter is not None:
        other = _other_base(loaded, adapter)
        if other is None:
            role = _add(loaded, of_run.base, str(folder), folder)
            own = renderer_of_adapter(adapter, of_run.base)
            return replace(of_run, role=role, renderer=own or of_run.renderer)
        base, renderer = _load(loaded, other)
        base.load_role("model", folder)
        renderer = renderer_of_adapter(adapter, base) or renderer
        return replace(of_run, base=base, renderer=renderer, role="model")
    if (folder / MANIFEST).is_file() and (folder / MODEL / "config.json").is_file():
        if (folder / MODEL / "tokenizer.json").is_file() and not of_run.base.copies:
            trained = read_object(folder / MANIFEST).get("stage") not in ("pretrain", "continued")
            base, renderer = _load(loaded, _spec(folder / MODEL), trained)
            return replace(of_run, base=base, renderer=renderer)
        return replace(of_run, role=_add(loaded, of_run.base, str(folder), folder))
    base, renderer = _load(loaded, _spec(folder))
    return replace(of_run, base=base, renderer=renderer)


def _other_base(loaded: LoadedModels, adapter: Path) -> BaseModelSpec | None:
    """The base that a plain adapter names, where that is a folder of another model than the run's."""
    try:
        named = json.loads((adapter / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        return None  # load_role says what is wrong with it
    if not isinstance(named, str) or not (Path(named) / "config.json").is_file():
        return None
    tokens = new_tokens_of(adapter)
    same = Path(named).resolve() == Path(loaded.spec.source).resolve() and tokens in ((), loaded.spec.new_tokens)
    return None if same else _spec(Path(named)).model_copy(update={"new_tokens": tokens})


def _spec(folder: Path) -> BaseModelSpec:
    return resolve_base(str(folder.resolve()), base_dir=folder)


def _load(loaded: LoadedModels, spec: BaseModelSpec, trained: bool = False) -> tuple[SharedBase, Renderer]:
    """A model of its own: its chat template if it has one, else the recipe's template."""
    base = loaded.load_other(spec, trained)
    template = "auto" if base.tokenizer.chat_template else loaded.recipe.template_source
    renderer = Renderer(
        base.tokenizer,
        template=template,
        extra_stop_ids=base.extra_stop_ids,
        stop_strings=base.extra_stop_strings,
    )
    check_stops(base.limits, renderer.stop_ids)
    return base, renderer
