"""Whether what lies in a run folder is a stage's result, and why it is not: keys compared, and changes named."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.backbone.artifacts import Artifact, damage, previous_folder, problems, read_artifact
from pipelines.recipe.renamed import in_new_words, in_old_words
from pipelines.recipe.schema import Recipe
from pipelines.run.opened import OPENED, changed_files
from pipelines.stages.described import Here, made_with, without_speed
from pipelines.stages.keys import differences, hash_of
from pipelines.stages.table import STAGES, group_of
from stages.safe_points.checkpoints import CHECKPOINTS, newest_state
from stages.safe_points.stopped import StoppedWork, newest_step, other_work, place_of, work_of


@dataclass(frozen=True, slots=True, kw_only=True)
class StageState:
    """A stage of the recipe against what lies in the run folder.

    ``reason`` says why what is there is not the stage's result; '' where it is. ``remark`` adds what a reader should
    know of a result that is there: with which settings of speed it was made, or that it has to be put back first.
    """

    name: str
    folder: Path
    described: dict[str, Any]
    key: str
    there: Artifact | None
    reason: str
    remark: str = ""
    put_back: bool = False  # the previous artifact is the result

    @property
    def there_otherwise(self) -> str:
        """How the result that lies there differs from what the recipe says; empty where it does not, or none is."""
        if self.put_back:
            return f"the one that the recipe describes is {self.remark}"
        return self.reason if self.there is not None else ""


def state_of(
    name: str, described: dict[str, Any], run_dir: Path, recipe: Recipe, here: Here, again: bool = False
) -> StageState:
    """What lies in a run folder of a stage, compared with its description.

    Args:
        here: what would compute it.
        again: the stage is run whatever lies there.
    """
    final = run_dir / STAGES[name].folder
    there, before = read_artifact(final), read_artifact(previous_folder(final))
    if there is not None and (changed := changed_files(there.manifest, recipe.base_dir)):
        described = described | {OPENED: changed}  # so that what follows from it is stale too
    key = hash_of(in_old_words(described))
    wrong = problems(there) if there is not None else []
    if there is not None and not wrong and not again and _same_but_speed(name, there, described, recipe):
        key = there.key  # another one where it was written when keys held settings of speed too
    reason, remark, put_back = "", "", False
    if there is not None and there.key == key:
        reason, remark = wrong[0] if wrong else "", _made_otherwise(there, made_with(recipe, name, here))
    elif (
        before is not None
        and before.key == key
        and not (problems(before) or changed_files(before.manifest, recipe.base_dir))
    ):
        there, put_back, remark = before, True, f"finished before, and kept in {before.path.name}"
    else:
        reason = _why(name, described, key, there, final, recipe)
    return StageState(
        name=name,
        folder=final,
        described=described,
        key=key,
        there=there,
        reason=reason,
        remark=remark,
        put_back=put_back,
    )


def _why(name: str, described: Mapping[str, Any], key: str, there: Artifact | None, final: Path, recipe: Recipe) -> str:
    """Why a stage is run: what changed of the finished one, or where a stopped one resumes or starts again."""
    own, other = work_of(final, key), other_work(final, key)
    reason = damage(final)
    if there is not None:
        old = without_speed(in_new_words(there.manifest.get("described", {})), recipe, name)
        opened = [f"{file}, which code of yours opened" for file in described.get(OPENED, ())]
        changed = differences(_but_opened(old), in_new_words(_but_opened(described)))
        reason = "changed: " + _some([*opened, *changed])
    more = resumes_at(own / CHECKPOINTS, key, name, recipe) if own is not None else ""
    if not more and other is not None:
        more = begins_again(other, final, name, described)
    return "; ".join(filter(None, (reason, more))) or "not run yet"


UNITS = {"ppo": "update", "rankings": "response"}
"""What a stage's progress counts, where it is not steps."""


def resumes_at(folder: Path, key: str, name: str, recipe: Recipe) -> str:
    """Where a stopped stage resumes, in what its progress counts; '' where it has no checkpoint."""
    found = newest_state(folder, key)
    if found is None:
        return ""
    number, state = found
    done: Any = number
    total: int | None = None
    if name == "ppo":  # whose checkpoints are numbered by safe points, several an update
        done, total = state.get("update"), recipe.ppo.updates
    elif isinstance(trainer := state.get("trainer"), Mapping) and not (name == "reward" and _several(recipe)):
        offset, steps = state.get("offset"), trainer.get("max_steps")
        total = offset + steps if isinstance(offset, int) and isinstance(steps, int) else None
    if not isinstance(done, int):
        return f"resumes from checkpoint step_{number}"
    unit = UNITS.get(name, "step")
    if total is None:
        return f"resumes at {unit} {done + 1:,}"
    return f"resumes {f'at {unit} {done + 1:,}' if done < total else f'after {unit} {done:,}'} of {total:,}"


def _several(recipe: Recipe) -> bool:
    """Whether several reward models are trained one after another: a checkpoint knows the end of the present one."""
    return recipe.reward.ensemble > 1 or recipe.reward.holdout > 0


def _same_but_speed(name: str, there: Artifact, described: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether an artifact differs from a description in settings alone that no key holds."""
    old = without_speed(in_new_words(there.manifest.get("described", {})), recipe, name)
    old = old if OPENED in described else _but_opened(old)
    return hash_of(in_old_words(old)) == hash_of(in_old_words(described))


def _but_opened(described: Mapping[str, Any]) -> dict[str, Any]:
    """A description without the opened files that had changed since an earlier result."""
    return {key: value for key, value in described.items() if key != OPENED}


def _made_otherwise(there: Artifact, now: Mapping[str, Any]) -> str:
    """With which settings of speed a finished stage was made, where the recipe or the machine has others."""
    noted = there.manifest.get("made_with")
    if not isinstance(noted, Mapping):
        return ""
    differ = sorted(k for k in now if k in noted and noted[k] != now[k] and now[k] != "auto")
    settings = [f"{k} {json.dumps(noted[k], default=str)} (now {json.dumps(now[k])})" for k in differ]
    return "made with " + ", ".join(settings) if settings else ""


def and_remark(text: str, remark: str) -> str:
    return f"{text}; {remark}" if remark else text


def _some(changed: Sequence[str]) -> str:
    """The first few of a list of changes."""
    return ", ".join(changed[:4]) + (" ..." if len(changed) > 4 else "")


def begins_again(other: tuple[Path, StoppedWork], final: Path, name: str, described: Mapping[str, Any]) -> str:
    """Why a stage that was stopped does not resume, and where what it saved stays."""
    out, before = other
    changed = differences(in_new_words(before.described), in_new_words(described)) if before.described else []
    group = group_of(name)
    named = [c.replace(f"settings.{group}.", "settings.").replace("settings.", f"{group}.", 1) for c in changed]
    step = newest_step(out)
    saved = "what was finished before stays" if step is None else f"the checkpoints of before (step_{step}) stay"
    because = f"because {_some(named)} changed" if named else "with other settings"
    return f"starts again {because}; {saved} in {place_of(final, before.key).name}"
