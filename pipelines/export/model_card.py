"""The model card of an export: README.md with the front matter that the hub reads, and what the run says of the model.

Numbers are those of the run's own files, and what they do not say is said to be unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from data.common.number_format import interval, number, percent
from data.template import Renderer
from models.backbone.artifacts import Artifact, naming
from models.hub.licences import CARD, Licence, licence_of
from models.hub.registry import BaseModelSpec, resolve_base
from pipelines.export.card_facts import (
    base_in_words,
    data_rows,
    evaluation_of,
    hub_sets,
    lineage,
    settings_off_default,
    steps_of,
)
from pipelines.export.load_snippets import snippet
from pipelines.run.pipeline import Pipeline
from pipelines.stages.table import STAGES
from reward.card.gate import card_failures, stored_card

FORMS = {
    "adapter": ("a PEFT adapter", "peft", "adapter"),
    "model": ("a whole model", "transformers", "finetune"),
    "classifier": ("a whole sequence classifier", "transformers", "finetune"),
    "classifier_adapter": ("a PEFT adapter that opens as a sequence classifier", "peft", "adapter"),
    "reward": ("PEFT adapter and head of a reward model", "peft", "adapter"),
    "gguf": ("a GGUF file", "gguf", "quantized"),
}
"""Forms of an export: in words, the hub's name of the library that loads it, and how it is related to its base."""
LONGEST = 200  # characters of a setting
SCORED = {
    "reward": "reward",
    "gold": "gold preference",
    "kl": "KL to the reference, nats a response",
    "length": "tokens",
}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was exported: its form, how its conversations are written, what a reward's score depends on, remarks, and
    what quantising lost."""

    form: str
    renderer: Renderer
    notes: Sequence[str] = ()
    score: Mapping[str, Any] = field(default_factory=dict)
    lost: Sequence[str] = ()


class _Facts:
    """What the run's files say of the model of a stage."""

    def __init__(self, pipeline: Pipeline, stage: str) -> None:
        self.pipeline, self.stage, self.stages = pipeline, stage, lineage(pipeline, stage)
        self.name, self.spec = f"{pipeline.recipe.name}-{stage}", _spec_of(pipeline, stage)
        artifact = self.stages[stage]
        on_run_base = stage != "reward" or not pipeline.loaded.reward_has_own_base
        self.base = base_in_words(pipeline) if on_run_base else f"`{self.spec.name}`"
        self.pretrained = on_run_base and not isinstance(pipeline.recipe.base, str)
        first = pipeline.loaded.first_spec if on_run_base and pipeline.recipe.continued else self.spec
        self.licence = None if self.pretrained else licence_of(first)
        self.results, self.why_not = evaluation_of(pipeline, stage, artifact) if stage != "reward" else ({}, "")
        self.card = stored_card(artifact.path) if stage == "reward" and artifact is not None else {}
        self.rows = data_rows(pipeline, self.stages)


def write_card(pipeline: Pipeline, stage: str, exported: Exported, folder: Path) -> None:
    """Write the card of a stage's export into its folder."""
    facts = _Facts(pipeline, stage)
    head, parts = _front_matter(facts, exported).to_yaml(), _sections(facts, exported)
    with naming(folder):
        ModelCard(f"---\n{head}\n---\n\n" + "\n\n".join(parts) + "\n").save(folder / CARD)


def _front_matter(facts: _Facts, exported: Exported) -> ModelCardData:
    """What the hub reads."""
    _, library, relation = FORMS[exported.form]
    licence, stage = facts.licence, facts.stage
    on_hub = not facts.pretrained and not Path(facts.spec.source).is_dir()
    return ModelCardData(
        model_name=facts.name,
        base_model=facts.spec.source if on_hub else None,
        base_model_relation=relation if on_hub else None,
        license=licence.hub_id if licence else None,
        license_name=licence.name if licence else None,
        library_name=library,
        pipeline_tag="text-classification" if stage == "reward" else "text-generation",
        tags=["trivet", stage],
        datasets=hub_sets(facts.rows) or None,
        eval_results=_evaluations(stage, facts.pipeline.recipe.name, facts.card, facts.results) or None,
    )


def _sections(facts: _Facts, exported: Exported) -> list[str]:
    """Headings and paragraphs."""
    pipeline, stage = facts.pipeline, facts.stage
    found = _reward_found(facts.card) if stage == "reward" else _policy_found(stage, facts.results, facts.why_not)
    return [
        f"# {facts.name}",
        f"{_a(FORMS[exported.form][0])} exported by trivet {_trivet()}: the stage `{stage}` ({STAGES[stage].title}) of "
        f"the run `{pipeline.recipe.name}`, on {facts.base}.",
        "## Load it",
        snippet(exported.form, facts.spec, exported.renderer, exported.score),
        "## What it depends on",
        _bullets(_depends(pipeline, stage, exported)),
        "## What was found of it",
        found,
        *([f"What quantising lost, evaluated at the export:\n\n{_bullets(exported.lost)}"] if exported.lost else []),
        "## Training",
        _training(pipeline, facts.stages),
        "## Data",
        _data(facts.rows, bool(set(pipeline.given) & set(facts.stages))),
        "## Licences",
        _licences(facts.licence, facts.pretrained),
    ]


def _spec_of(pipeline: Pipeline, stage: str) -> BaseModelSpec:
    """The base that a stage stands on."""
    if stage == "reward" and pipeline.loaded.reward_has_own_base:
        return resolve_base(pipeline.recipe.reward.base, base_dir=pipeline.recipe.base_dir)
    return pipeline.loaded.spec


def _trivet() -> str:
    try:
        return version("trivet")
    except PackageNotFoundError:
        return "(from a checkout, not installed)"


def _a(kind: str) -> str:
    return kind[:1].upper() + kind[1:]


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of GitHub's Markdown; what would end a cell or a line is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in row) + " |" for row in lines)


_IN_CONFIG = (
    "They stand in `generation_config.json`: Transformers' `generate` finds them where it is given `tokenizer=`, keeps "
    "them at the end of what it returns, and reads the prompt's end too; vLLM reads none there, so that each request "
    "names them as `stop`."
)
STOP_STRINGS = {
    "model": _IN_CONFIG,
    "adapter": _IN_CONFIG,
    "gguf": "GGUF has no place for them: they stand in `Modelfile`, and other programs are to be given them.",
}


def _depends(pipeline: Pipeline, stage: str, exported: Exported) -> list[str]:
    """Template, stops, limits and, of a reward, pooling and mean: what another use of the weights has to keep."""
    recipe, renderer = pipeline.recipe, exported.renderer
    texts = renderer.tokenizer.convert_ids_to_tokens(list(renderer.stop_ids))
    stops = ", ".join(f"`{text}` ({i})" for text, i in zip(texts, renderer.stop_ids, strict=True))
    where = "in `Modelfile`" if exported.form == "gguf" else "the tokenizer's chat template in this folder"
    lines = [f"Conversations are written by the template `{_file_name(renderer.template_name)}`: {where}."]
    if recipe.template_args:
        lines.append(f"The template's arguments: `{json.dumps(recipe.template_args, ensure_ascii=False)}`.")
    lines.append(f"A response ends with: {stops}.")
    if renderer.stop_strings and stage != "reward":
        shown = ", ".join(f"`{json.dumps(text, ensure_ascii=False)}`" for text in renderer.stop_strings.texts)
        lines.append(f"It ends too where one of these texts is complete: {shown}. {STOP_STRINGS[exported.form]}")
    if stage == "ppo":
        lines.append(f"PPO sampled at most {recipe.ppo.max_new_tokens:,} tokens a response.")
    elif stage == "sft":
        lines.append(f"SFT saw at most {recipe.sft.max_tokens:,} tokens of prompt and response.")
    if stage == "reward":
        lines += _score_depends(exported.score)
    if recipe.runtime.quantize and exported.form not in ("model", "classifier", "gguf"):
        lines.append(f"It was trained on the base in four bits ({recipe.runtime.quantize}).")
    return [*lines, *exported.notes]


def _file_name(name: str) -> str:
    """A template's name, of a file without its folders."""
    return PurePath(name.strip("'")).name if name.strip("'").endswith(".jinja") else name.strip("'")


def _score_depends(score: Mapping[str, Any]) -> list[str]:
    lines = [
        f"A row holds at most {score['max_tokens']:,} tokens of prompt and response.",
        f"Pooling: `{score['pooling']}`." + (f" Members: {score['members']}." if score["members"] > 1 else ""),
        f"Scores are given less their mean over {score['mean_over']}, {number(score['score_mean'])}.",
    ]
    if (add := score.get("add_to_classifier")) is not None:
        lines.append(f"A plain classifier's logit and {add!r} make the run's score.")
    else:
        lines.append("Plain Transformers has no classifier with these scores: `trivet score` gives them.")
    return lines


def _reward_found(card: Mapping[str, Any]) -> str:
    """The verdict and the numbers of a reward model's report card."""
    if "rankings" not in card:
        return "No report card: there were no held-out rankings to examine it with."
    accuracy, failed = card["accuracy"], card_failures(card)
    judged = "It passes trivet's gate." if accuracy["ci95"] else "Too few held-out prompts to judge its accuracy."
    verdict = "It fails trivet's gate: " + "; ".join(failed) + "." if failed else judged
    rows = [("held-out pairs ordered as labelled", accuracy), ("best response scored highest", card["top1"])]
    rows += [
        (f"trivial rule: {name.replace('answer', 'response')}", found) for name, found in card["baselines"].items()
    ]
    taught = card.get("negatives") or ()
    rows += [
        (f"whole response beats one {name}" + " (in training, too)" * (name in taught), found)
        for name, found in card["probes"].items()
    ]
    table = [
        (name, percent(found["share"]), interval(found.get("ci95"), 100, 1), str(found.get("n", "")))
        for name, found in rows
        if found.get("share") is not None
    ]
    warnings = [_a(str(w)) + "." for w in card.get("warnings") or []]
    return "\n\n".join(
        [verdict, _table(("", "share", "95 % interval", "n"), table), *([_bullets(warnings)] if warnings else [])]
    )


def _policy_found(stage: str, results: Mapping[str, Any], why_not: str) -> str:
    """A model's numbers in the run's evaluation, its comparisons, and what the evaluation warns of."""
    if not results:
        return why_not
    rows = []
    for decoding, group in (("sampled", results["systems"]), ("greedy", results.get("greedy") or {})):
        for key, label in SCORED.items():
            found = (group.get(stage) or {}).get(key)
            if isinstance(found, dict) and found.get("mean") is not None:
                rows.append((label, decoding, number(found["mean"]), interval(found.get("ci95"))))
    parts = [
        f"On {results['prompts']:,} held-out prompts of the run:",
        _table(("mean", "decoding", "value", "95 % interval"), rows),
    ]
    if compared := [_comparison(c) for c in _comparisons(stage, results)]:
        parts.append(_bullets(compared))
    others = tuple(f"{name}{end}" for name in results["systems"] if name != stage for end in (":", " ("))
    if warnings := [_a(str(w)) for w in results.get("warnings") or [] if not str(w).startswith(others)]:
        parts += ["The evaluation warns:", _bullets(warnings)]
    return "\n\n".join(parts)


def _comparisons(stage: str, results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [c for c in results.get("comparisons") or [] if c.get("a") == stage]


def _comparison(c: Mapping[str, Any]) -> str:
    ci = interval(c.get("ci95"), 100, 1) or "too few prompts for an interval"
    said = f": {c['verdict']}" if c.get("verdict") else ""
    return (
        f"`{c['a']}` against `{c['b']}` by {c['by']}, {c['decoding']}: wins {100 * c['win_rate']:.1f} % of the prompts "
        f"{ci} ({c['wins']} wins, {c['ties']} ties, {c['losses']} losses){said}."
    )


def _evaluations(stage: str, run: str, card: Mapping[str, Any], results: Mapping[str, Any]) -> list[EvalResult]:
    """The same as the hub's ``model-index`` has it, unrounded, with intervals as the metric's arguments."""
    out = []
    if "rankings" in card and card["accuracy"].get("share") is not None:
        accuracy = card["accuracy"]
        out.append(
            EvalResult(
                task_type="text-classification",
                dataset_type="held-out-rankings",
                dataset_name=f"held-out rankings of the run {run}",
                metric_type="accuracy",
                metric_name="pair accuracy",
                metric_value=accuracy["share"],
                metric_args={"ci95": accuracy["ci95"], "n": accuracy["n"]},
            )
        )
    out += [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out-prompts",
            dataset_name=f"held-out prompts of the run {run}",
            metric_type="win_rate",
            metric_name=f"win rate against {c['b']} by {c['by']}, {c['decoding']}",
            metric_value=c["win_rate"],
            metric_args={"ci95": c.get("ci95"), "n": c["n"]},
        )
        for c in _comparisons(stage, results)
    ]
    return out


def _training(pipeline: Pipeline, stages: Mapping[str, Artifact | None]) -> str:
    """Every stage of the lineage: rows, seed and settings off their defaults, as its manifest has them."""
    parts = []
    for name, artifact in stages.items():
        given = " It was given to the run." if name in pipeline.given else ""
        if artifact is None:
            parts.append(f"**{name}**: a model that the run was given, of which its files say nothing more.")
            continue
        changed = settings_off_default(name, artifact)
        facts = [f for f in (steps_of(artifact), f"seed {artifact.manifest.get('seed')}") if f]
        text = f"**{name}** ({STAGES[name].title}): {', '.join(facts)}; key `{artifact.key[:12]}`.{given}"
        listed = _bullets(
            [f"`{key}: {json.dumps(value, ensure_ascii=False)[:LONGEST]}`" for key, value in changed.items()]
        )
        parts.append(text + ("\n\n" + listed if listed else " All settings are the defaults."))
    last = list(stages.values())[-1]
    libraries = last.manifest.get("libraries") if last is not None else None
    if libraries:
        parts.append("Made with " + ", ".join(f"{k} {v}" for k, v in sorted(libraries.items())) + ".")
    return "Settings that are not listed have trivet's defaults.\n\n" + "\n\n".join(parts)


def _data(rows: Sequence[Sequence[str]], given: bool) -> str:
    text = "The run's files name no source of the data."
    if rows:
        text = _table(("part", "source", "rows for training", "rows held out", "hash of the part"), rows)
    return f"{text}\n\nWhat the stages that it was given were trained on is not in the run's files." if given else text


def _licences(licence: Licence | None, pretrained: bool) -> str:
    if pretrained:
        base = "The base was pretrained in the run: it brings no licence of its own"
    elif licence is None:
        base = "The licence of the base is not known"
    else:
        base = f"The licence of the base is {licence.text} (by {licence.said_by})"
    return f"{base}. Licences of the data are not known to trivet."
