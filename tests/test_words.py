"""The field's words: no identifier, setting, option, metric or heading uses one that has another meaning there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from pipelines.recipe.errors import models_in
from pipelines.recipe.schema import Recipe

ROOT = Path(__file__).parents[1]
FOLDERS = ("data", "models", "reward", "stages", "evaluation", "pipelines")

INSTEAD = {
    "parting": "onset or divergence", "parted": "onset or divergence", "watcher": "held-out reward model",
    "look": "evaluation", "looks": "evaluations", "piece": "micro-batch",
    "pieces": "micro-batches", "skips": "skipped or non-finite steps", "see": "record", "least": "min", "most": "max",
    "halving": "OOM retry", "world": "world_size, or task", "apart": "mismatch, separate or disjoint",
    "like": "length-bucketed", "bench": "loaded models", "workbench": "loaded models", "job": "stage context",
    "jobs": "stage requests", "begun": "resumed, or stopped work", "beside": "compare with, or sibling",
    "centre": "mean", "spread": "std", "caution": "uncertainty penalty", "trunk": "prefix layers, activation cache",
    "folded": "merged", "pick": "inverse-CDF sampling", "draw": "sample", "draws": "noise", "drawn": "sampled",
    "uniforms": "noise", "lay": "scatter or pad", "laid": "packed", "slope": "gradient", "slopes": "gradients",
    "bends": "entropy gradients", "shaping": "reward transform", "shaped": "transformed",
    "paid": "optimised against", "emptied": "empty-response probe", "mend": "fix", "told": "one word for each sense",
    "measure": "one word for each sense", "measured": "one word for each sense", "captured": "snapshot",
    "capture": "snapshot",
}  # fmt: skip
ELSEWHERE = "a name of a library's"
FINE = {
    "most_common": ELSEWHERE,
    "empty_like": ELSEWHERE,
    "full_like": ELSEWHERE,
    "ones_like": ELSEWHERE,
    "zeros_like": ELSEWHERE,
    "ArrayLike": ELSEWHERE,
    "WordPiece": ELSEWHERE,
    "WordPieceTrainer": ELSEWHERE,
    "SentencePieceProcessor": ELSEWHERE,
    "SentencePieceTrainer": ELSEWHERE,
    "id_to_piece": ELSEWHERE,
    "pad_piece": ELSEWHERE,
    "bos_piece": ELSEWHERE,
    "eos_piece": ELSEWHERE,
    "unk_piece": ELSEWHERE,
    "looks_like_path": "plain English: nothing is evaluated",
    "world_size": "the field's word",
    "check_world_size": "the field's word",
    "policy_trunk": "the trunk that policy and value share, as the field says; no cache",
}
FINE_IN = {
    ("data/demo/task.py", "job"): "the profession of a person in the task's texts",
    ("data/demo/task.py", "jobs"): "the professions of persons in the task's texts",
    ("data/demo/task.py", "job_of"): "the profession of a person in the task's texts",
    ("data/demo/text.py", "draw"): "text that is written by chance; no token is sampled",
    ("data/common/intervals.py", "centre"): "the middle of an interval, which is not its mean",
    ("data/common/intervals.py", "drawn"): "clusters of a bootstrap, as the literature says",
    ("evaluation/metrics/length_control.py", "centre"): "the middle of an interval, which is not its mean",
    ("models/sampling/device_steps.py", "capture_error_mode"): "a name of PyTorch's",
    ("data/template_sandbox.py", "most"): "a word of the child process's protocol",
    ("pipelines/report/samples.py", "most"): "a bound on rows of three lists together",
    ("pipelines/report/reward_card.py", "slope"): "the slope of a regression, not a gradient",
    ("pipelines/cli/exit_codes.py", "spread_values"): "values of an option, spread over several: no deviation",
    ("pipelines/cli/main.py", "spread_values"): "values of an option, spread over several: no deviation",
    ("evaluation/metrics/registry.py", "_spread"): "one number for every row: no deviation",
}
SOURCES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))


def words(name: str) -> set[str]:
    return {w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def wrong(name: str) -> str:
    """The left column's word in a name, and what to write; '' where there is none."""
    found = sorted(words(name) & set(INSTEAD))
    return f"{name}: not '{found[0]}' but {INSTEAD[found[0]]}" if found and name not in FINE else ""


def identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield name
            case ast.alias(name=name, asname=other):
                yield from (*name.split("."), other or "")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_identifier_uses_a_word_of_its_own(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    names = set(identifiers(ast.parse(path.read_text(encoding="utf-8"))))
    assert not sorted(filter(None, (wrong(n) for n in names if (where, n) not in FINE_IN)))


def settings(model: type[BaseModel], path: str = "") -> Iterator[str]:
    for key, field in model.model_fields.items():
        yield f"{path}{key}"
        for inner in models_in(field.annotation):
            yield from settings(inner, f"{path}{key}.")


def test_no_setting_uses_a_word_of_its_own() -> None:
    names = list(settings(Recipe))
    assert len(names) > 150 and not [found for name in names if (found := wrong(name))]


def test_no_metric_or_option_uses_a_word_of_its_own() -> None:
    texts = [p.read_text(encoding="utf-8") for p in SOURCES]
    metrics = {m for t in texts for m in re.findall(r"\"([a-z]+/[a-z_/]+)\"", t)}
    options = {o for t in texts for o in re.findall(r"typer\.Option\(\s*\"(--[a-z-]+)\"(?!, hidden)", t)}
    assert {"objective/kl", "holdout/held_out"} <= metrics and "--compare-with" in options
    seeds = {"ppo/watch", "reward/centre"}  # purposes of random streams: another text would be other numbers
    old = {
        m for m in metrics if m.startswith("watch/") or m == "objective/shaped_scores"
    }  # of runs from before, which are read
    assert not [found for name in (metrics | options) - seeds - old if (found := wrong(name))]


def test_no_heading_of_the_docs_uses_a_word_of_its_own() -> None:
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    headings = {h for f in files for h in re.findall(r"(?m)^#+ (.*)$", f.read_text(encoding="utf-8"))}
    plain = {"see", "most", "least", "like", "measured"}  # ordinary English in a sentence
    assert headings and not [h for h in headings if words(h) & (set(INSTEAD) - plain)]


TOLD = {"UserError", "StageError", "RemoteError", "Reject", "Unusable", "ValueError", "warn", "say", "_say", "echo"}
"""Functions whose texts a user reads, by their last name."""
HELP = {"help", "description", "advice", "about", "note"}
TEXT = {
    "answer": "response", "answers": "responses", "beside": "next to, with", "begun": "started, resumed",
    "told": "reported", "draw": "sample, tie", "draws": "noise", "drawn": "sampled", "pieces": "micro-batches, chunks",
    "piece": "micro-batch, chunk", "centred": "less its mean", "centre": "mean", "spread": "std", "apart": "separately",
    "look": "check", "looks": "evaluations", "looked": "checked", "looking": "searching", "paid": "optimised against",
    "pays": "rewards", "measured": "found, computed", "watcher": "held-out reward model", "captured": "saved",
    "job": "stage", "jobs": "stages", "bench": "loaded models", "emptied": "empty response", "caution": "penalty",
    "trunk": "prefix layers", "slope": "gradient", "parting": "divergence", "folded": "merged", "mend": "fix",
}  # fmt: skip
PHRASES = {
    r"\b(go|goes|going|gone|went) on\b": "resume, continue",
    r"\bbegins again\b": "starts again",
    r"\bas ever\b": "as before",
    r"\bother hands\b": "third-party",
}
SPOKEN = {  # what stays, by a part of the text
    "its answer is": "a server's reply",
    "row of its answer": "a server's reply",
    "answer within": "a server's reply",
    "an answer within": "a server's reply",
    "tool's answer": "what a tool says",
    "answers no turn": "what a tool says",
    "question and answer": "the user's own file",
    "response and answer are names": "the user's own file",
    "MT-Bench's answers": "the user's own file",
    "MT-Bench's form": "the name of a data set",
    "a reference answer": "the user's own file",
    "text or answer": "the user's own file",
    "examples: [{prompt: ..., answer: ...}]": "a key of the recipe",
    "a good answer": "describes the recipe's key `answer`",
    "final answer": "what is extracted from a response, as evaluation harnesses call it",
    "--beside is called": "the option's old name",
    "policy's own trunk": "the trunk that policy and value share, as the field says; no cache",
    "shares the policy's trunk": "the trunk that policy and value share, as the field says; no cache",
}


def read_by_users(tree: ast.AST) -> Iterator[str]:
    """Texts of messages, help and descriptions; what an f-string fills in is left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(".command(" in ast.unparse(d) for d in node.decorator_list):
            yield ast.get_docstring(node) or ""
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            given = [*node.args] if name in TOLD else []
            given += [k.value for k in node.keywords if k.arg in HELP]
            for text in given:
                inner = {id(n) for f in ast.walk(text) if isinstance(f, ast.FormattedValue) for n in ast.walk(f)}
                yield "".join(
                    n.value if isinstance(n, ast.Constant) and isinstance(n.value, str) else " "
                    for n in ast.walk(text)
                    if id(n) not in inner and isinstance(n, ast.Constant | ast.FormattedValue)
                )


def own_words(text: str) -> list[str]:
    """Words of the left column in a text for users, each with what to write."""
    for part in SPOKEN:
        text = text.replace(part, "")
    names_left_out = re.sub(r"\S*[_./`{}\[\]\"]\S*", " ", text)
    found = [f"{w}: {TEXT[w]}" for w in re.findall(r"[a-z]+", names_left_out.lower()) if w in TEXT]
    return found + [f"{p}: {better}" for p, better in PHRASES.items() if re.search(p, text)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_text_for_users_uses_a_word_of_its_own(path: Path) -> None:
    texts = read_by_users(ast.parse(path.read_text(encoding="utf-8")))
    assert not {text: found for text in texts if (found := own_words(text))}


def test_texts_for_users_are_found() -> None:
    tree = ast.parse('raise UserError(f"{x.answer}: its spread" " is told")\nField(1, description="goes on")')
    assert [own_words(t) for t in read_by_users(tree)] == [
        ["spread: std", "told: reported"],
        [r"\b(go|goes|going|gone|went) on\b: resume, continue"],
    ]
    every = "\n".join(t for p in SOURCES for t in read_by_users(ast.parse(p.read_text(encoding="utf-8"))))
    assert len(every) > 20_000 and not [part for part in SPOKEN if part not in every]


def test_every_exception_is_needed() -> None:
    for where, name in FINE_IN:
        if (ROOT / where).is_file():
            assert name in set(identifiers(ast.parse((ROOT / where).read_text(encoding="utf-8")))), (where, name)
