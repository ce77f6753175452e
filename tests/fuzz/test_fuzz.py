"""Short runs of the fuzzers: hypothesis over bytes, broken rows and recipes. ``make fuzz`` runs them for long."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings, target
from hypothesis import strategies as st

from tests.fuzz.artifacts import KINDS_OF_FILE, read_any
from tests.fuzz.readers import EXTENSIONS, read_everything, read_recipe

LONG = int(os.environ.get("TRIVET_FUZZ_EXAMPLES", "0"))
FEW = settings(
    max_examples=LONG or 30, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=not LONG
)
NAMES = [
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "responses",
    "ranks",
    "scores",
    "answers",
    "messages",
    "margin",
    "conversations",
    "instruction",
    "input",
    "output",
    "history",
    "instances",
    "text",
    "system",
    "finished",
    "category",
    "label",
    "role",
    "content",
    "from",
    "value",
    "score",
]
TEXT = st.text(max_size=8) | st.sampled_from(["\ud800", "\x00", "\n\nHuman: q\n\nAssistant: a", "user", "assistant"])
LEAF = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
VALUES = st.recursive(LEAF, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(NAMES), v, max_size=3))
ROWS = st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4), min_size=1, max_size=5)


def read(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        read_everything(content, suffix, Path(folder))


@FEW
@given(st.binary(max_size=200), st.sampled_from(EXTENSIONS))
def test_any_bytes(content: bytes, suffix: str) -> None:
    read(gzip.compress(content) if suffix.endswith(".gz") else content, suffix)


@FEW
@given(ROWS)
def test_any_rows(rows: list[dict[str, Any]]) -> None:
    target(float(len({k for row in rows for k in row})), label="columns")
    read("\n".join(json.dumps(row) for row in rows).encode(), ".jsonl")
    read(json.dumps(rows).encode(), ".json")


@FEW
@given(st.lists(st.lists(st.text(alphabet='a,"\n\t\r\x00é[{', max_size=6), max_size=4), max_size=5))
def test_any_cells(cells: list[list[str]]) -> None:
    body = "\n".join(",".join(row) for row in cells)
    read(("prompt,completion\n" + body).encode(), ".csv")
    read(("prompt\tcompletion\n" + body.replace(",", "\t")).encode(), ".tsv")


KEYS = [
    "base",
    "data",
    "ppo",
    "sft",
    "reward",
    "seed",
    "name",
    "stages",
    "kl_coef",
    "value",
    "demonstrations",
    "prompts",
    "<<",
    "pretrain",
    "model",
    "evaluation",
    "systems",
    "rankings",
    "annotator",
    "adapter",
    "stop",
    "source",
]
SETTINGS = st.recursive(
    LEAF | st.sampled_from(["gpt2", "sft", "model", "x.jsonl"]),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(KEYS), v, max_size=4),
)


@FEW
@given(st.dictionaries(st.sampled_from(KEYS), SETTINGS, max_size=5))
def test_any_settings(recipe: dict[str, Any]) -> None:
    good = {"base": "gpt2", "data": {"demonstrations": "d.jsonl"}}
    with tempfile.TemporaryDirectory() as folder:
        for one in (recipe, good | recipe):
            read_recipe(json.dumps(one).encode(), Path(folder))


@FEW
@given(st.text(alphabet="base: gpt2\n&*!<>[]{}|-?%@`'\"#,.0eéx\t", max_size=80))
def test_any_yaml(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        read_recipe(text.encode(), Path(folder))


@FEW
@given(st.integers(0, KINDS_OF_FILE - 1), st.binary(min_size=8, max_size=8) | st.binary(max_size=60))
def test_any_file_of_a_run_or_an_adapter(kind: int, content: bytes) -> None:
    """Manifests, run.json, stores, checkpoints, adapters, and what the report reads: good ones changed, and bytes."""
    with tempfile.TemporaryDirectory() as folder:
        read_any(content, kind, Path(folder))
