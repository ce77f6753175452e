"""lm-evaluation-harness on exported models: merged weights in a folder of their own, the harness's tasks over it.

An extra (``pip install trivet[lm-eval]``). Local task files work without a network; ``!function`` in a task file is
code of whoever wrote it. Tasks that run generated code stay off.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.common.errors import UserError, nearest
from data.common.patience import patience
from evaluation.held_out import Evaluator, System
from evaluation.settings import LmEvalConfig
from evaluation.systems import ROLES, parse
from models.backbone.artifacts import naming
from models.backbone.seeds import isolated_rng
from models.roles.export import write_model
from pipelines.evaluate.systems import open_system
from pipelines.execution.loaded_models import LoadedModels
from stages.stage import StageContext


def harness_results(
    context: StageContext, loaded: LoadedModels, evaluator: Evaluator, config: LmEvalConfig
) -> dict[str, Any]:
    """``{"version", "systems": {name: {task: {metric: {"value", "stderr"}, "n"}}}}`` for the systems of the settings.

    Raises:
        UserError: the harness is not installed, or knows no such task.
    """
    tasks = _tasks(config, loaded.recipe.base_dir)
    there = [n for n, role in reversed(ROLES.items()) if role in evaluator.base.roles]
    names = config.systems or tuple([*there, "base"][:1])
    found, done = {}, context.bar.phase(f"systems under {len(config.tasks)} tasks of lm-eval", len(names))
    for name in names:
        named = parse(name)
        system = open_system(context, loaded, evaluator, named, named.label)
        if system.best_of > 1 or system.asking is not None:
            raise UserError(f"evaluation.lm_eval.systems: {name} cannot be exported; name sft, ppo, ppo@N or path:DIR")
        scratch = tempfile.TemporaryDirectory(prefix=".harness-", dir=context.out.parent)
        with scratch as folder, patience(f"lm-eval of {named.label}", say=context.say):
            export_system(system, Path(folder))
            own = _run(Path(folder), config, tasks, loaded, evaluator.seed)
        found[named.label] = loaded.processes.gather([own])[0]
        done(1)
        context.say(f"lm-eval: {named.label} under {', '.join(config.tasks)}")
    return {"version": importlib.metadata.version("lm_eval"), "systems": found}


def export_system(system: System, folder: Path) -> None:
    """A system as a plain Hugging Face folder, its adapter merged, with the template that it is asked by."""
    write_model(system.base, system.role, folder, system.renderer.stop_ids)
    tokenizer = copy.deepcopy(system.base.tokenizer)
    tokenizer.chat_template = system.renderer.template
    with naming(folder):
        tokenizer.save_pretrained(folder)


def _tasks(config: LmEvalConfig, base_dir: Path) -> Any:
    """The harness's task manager; its own thousands of task files are read only where they are needed."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError("evaluation.lm_eval needs lm-evaluation-harness: pip install 'trivet[lm-eval]'") from error
    own = None
    if config.tasks_dir is not None:
        own = (base_dir / Path(config.tasks_dir).expanduser()).resolve()
        if not own.is_dir():
            raise UserError(f"evaluation.lm_eval.tasks_dir: no such folder ({own})")
        manager = TaskManager(include_path=str(own), include_defaults=False)
        if all(manager.match_tasks([task]) for task in config.tasks):
            return manager
    manager = TaskManager(include_path=str(own) if own else None)
    for task in config.tasks:
        if not manager.match_tasks([task]):
            where = f" nor in {own}" if own else ""
            hint = nearest(task, manager.all_tasks)
            raise UserError(f"evaluation.lm_eval.tasks: no task '{task}' in the harness{where}.{hint}")
    return manager


def _run(folder: Path, config: LmEvalConfig, tasks: Any, loaded: LoadedModels, seed: int) -> dict[str, Any]:
    """The harness over one exported folder; global generators are put back afterwards."""
    import lm_eval

    base = loaded.base()
    dtype = "float32" if base.copies else str(base.dtype).removeprefix("torch.")  # as trained weights are kept
    model = {"pretrained": str(folder), "dtype": dtype, "trust_remote_code": False}
    with isolated_rng(seed), _quiet():
        found = lm_eval.simple_evaluate(
            model="hf",
            model_args=model,
            tasks=list(config.tasks),
            num_fewshot=config.shots,
            batch_size=config.batch,
            device=loaded.processes.device.type,
            limit=config.limit,
            apply_chat_template=config.chat_template,
            task_manager=tasks,
            bootstrap_iters=1000,
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    return {} if found is None else simplified(found)  # of several processes, the main one alone is given them


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the harness's stream of notes; its errors stay."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def simplified(found: Mapping[str, Any]) -> dict[str, Any]:
    """Task -> metric (with its filter where that is not ``none``) -> value and standard error; and the rows asked."""
    out: dict[str, Any] = {}
    for task, values in found["results"].items():
        row: dict[str, Any] = {}
        for key, value in values.items():
            metric, _, how = key.partition(",")
            if not how or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{how}")
            name = metric if how == "none" else f"{metric} ({how})"
            row[name] = {"value": float(value), "stderr": float(error) if isinstance(error, int | float) else None}
        counted = found.get("n-samples", {}).get(task, {})
        out[task] = row | ({"n": int(counted["effective"])} if "effective" in counted else {})
    return out
