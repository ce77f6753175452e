"""Names that settings, their values, functions, data sources and metrics had before, and what they are called.

A recipe that a user wrote is refused with the new name; what trivet wrote itself (a run folder's resolved recipe, a
manifest, metrics) is translated. Keys of stages are hashes of descriptions in the old words, so that a rename alone
makes no finished stage stale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.recipe.yaml_source import Path, Source

SETTINGS = {
    "ppo.watch_every": "holdout_every",
    "ppo.watch_prompts": "holdout_prompts",
    "ppo.share_lower_layers": "share_prefix_layers",
    "reward.caution": "uncertainty_penalty",
    "reward.centre_samples": "calibration_samples",
    "reward.gate.emptied": "empty_response",
    "reward.gate.spread": "score_std",
    "ppo.reward.*.at_least": "min_length",
    "ppo.reward.*.at_most": "max_length",
    "evaluation.best_of_by.*.*.at_least": "min_length",
    "evaluation.best_of_by.*.*.at_most": "max_length",
}
"""Dotted path of a setting, ``*`` for an item's number or a name that the user chose -> its new last word."""
VALUES = {"reward.combine": {"worst": "min", "mean_minus_spread": "mean_minus_std"}}
MODULES = {"data.demo_world": "data.demo.task"}
"""Modules of ours that references such as ``module:function`` name."""
SOURCES = {"demo-world": "demo-task"}
METRICS = {f"watch/{name}": f"holdout/{name}" for name in ("held_out", "proxy", "kl")} | {
    "objective/shaped_scores": "objective/transformed_scores"
}
FINGERPRINTS = {"data.demo_world": "7c33e2fae9c3d133f03ed76080521625b5059032c81bee83d647c21a8966a606"}
"""What keys hold for a function of these modules instead of a hash of their text, which a move or a new docstring would
change. A test compares the gold's scores with those of that text: change the fingerprint where the scores change."""

Names = Mapping[tuple[str, ...], str]
_NEW: Names = {tuple(old.split(".")): new for old, new in SETTINGS.items()}
_OLD: Names = {(*path[:-1], new): path[-1] for path, new in _NEW.items()}


def old_names(data: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """Every old name in a recipe, with a sentence that says the new one."""
    return list(_found(data, ()))


def _found(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    for key, inner in _items(value):
        here = (*path, key)
        new = _name(here, _NEW)
        if new != key:
            yield here, f"is called {'.'.join(map(str, (*path, new)))}: write that name"
        yield from _found(inner, here)
    if isinstance(value, str) and (new_value := _value(path, value, old_to_new=True)) != value:
        yield path, f"'{value}' is called '{new_value}': write that"


def in_new_names(source: Source) -> Source:
    """A recipe that trivet wrote, in today's names; places stay those of the file."""
    places = {_path(path, _NEW): place for path, place in source.places.items()}
    return Source(name=source.name, data=_translated(source.data, (), old_to_new=True), places=places)


def in_old_words(described: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's description as keys are made of it; one in old words stays as it is."""
    return _description(described, old_to_new=False)


def in_new_words(described: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's description, of whenever it was written, in today's names."""
    return _description(described, old_to_new=True)


def metrics_in_new_words(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl``, of whenever they were written, in today's names."""
    return [{METRICS.get(k, k.replace("/shaped", "/transformed")): v for k, v in row.items()} for row in rows]


def _description(described: Mapping[str, Any], old_to_new: bool) -> dict[str, Any]:
    out = dict(described)
    stage = out.get("stage")
    group = "evaluation" if stage == "evaluate" else str(stage)
    settings = out.get("settings")
    if isinstance(settings, Mapping):
        if isinstance(settings.get(group), Mapping):
            inner = _translated(settings[group], (group,), old_to_new)
            out["settings"] = dict(settings) | {group: inner}
        else:
            out["settings"] = _translated(settings, (group,), old_to_new)
    if isinstance(functions := out.get("functions"), Mapping):
        out["functions"] = {_reference(k, old_to_new): _fingerprint(k, v) for k, v in functions.items()}
    return out


def _fingerprint(reference: str, found: Any) -> Any:
    return FINGERPRINTS.get(_reference(reference, old_to_new=False).partition(":")[0], found)


def _translated(value: Any, path: Path, old_to_new: bool) -> Any:
    names = _NEW if old_to_new else _OLD
    if isinstance(value, Mapping):
        return {_name((*path, k), names): _translated(v, (*path, k), old_to_new) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_translated(v, (*path, i), old_to_new) for i, v in enumerate(value)]
    return _value(path, value, old_to_new) if isinstance(value, str) else value


def _value(path: Path, value: str, old_to_new: bool) -> str:
    known = VALUES.get(".".join(map(str, path)), {})
    changed = known if old_to_new else {new: old for old, new in known.items()}
    if value in changed:
        return changed[value]
    if path[:1] == ("data",) and old_to_new:
        name, mark, rest = value.partition("?")
        return f"{SOURCES.get(name, name)}{mark}{rest}"
    return _reference(value, old_to_new)


def _reference(value: str, old_to_new: bool) -> str:
    modules = MODULES if old_to_new else {new: old for old, new in MODULES.items()}
    module, colon, name = value.partition(":")
    return f"{modules[module]}:{name}" if colon and module in modules else value


def _name(path: Path, names: Names) -> str | int:
    """The last step of a path in the other words."""
    if isinstance(path[-1], str):
        for pattern, new in names.items():
            if len(pattern) == len(path) and all(p in ("*", s) for p, s in zip(pattern, path, strict=True)):
                return new
    return path[-1]


def _path(path: Path, names: Names) -> Path:
    return (*path[:-1], _name(path, names)) if path else path


def _items(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(k), v) for k, v in value.items())
    elif isinstance(value, list):
        yield from enumerate(value)
