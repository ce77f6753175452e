"""What the fuzzers ask of files in run folders and adapters: a UserError or a correct read, whatever stands in them.

``mutated`` changes good files in a few places, which reaches further than bytes at random.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ODD: list[Any] = [None, True, False, 0, -1, 2**63, 1.5, float("nan"), float("inf"), "", "x", "../x", "/etc/passwd"]
ODD += ["\x00", "\ud800", "(a+)+$", "<script>", [], {}, [[]], [None], {"": None}, {"mean": None}, "9" * 400, 10**400]


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _paths(inner, (*path, key))


def mutated(good: Any, seed: int) -> bytes:
    """A good JSON value with one to three places changed, removed, added or cut, by a seed."""
    draw = random.Random(seed)
    value = json.loads(json.dumps(good))
    for _ in range(draw.randint(1, 3)):
        path = draw.choice(list(_paths(value)))
        if not path:
            if draw.random() < 0.1:
                value = copy.deepcopy(draw.choice(ODD))
            elif isinstance(value, dict):
                value[draw.choice(["", "x", "files", "key", "metrics"])] = copy.deepcopy(draw.choice(ODD))
            continue
        parent = value
        for step in path[:-1]:
            parent = parent[step]
        if draw.random() < 0.2:
            del parent[path[-1]]
        else:
            parent[path[-1]] = copy.deepcopy(draw.choice(ODD))
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    if draw.random() < 0.1:
        at = draw.randrange(len(text) + 1)
        text = text[:at] + draw.choice([b"", b"\xff", b"\x00", b"{", text[:50]])
    return text


# -- manifests, run.json, stores --------------------------------------------------------------------------------------

DESCRIBED = {"stage": "sft", "settings": {"epochs": 1}, "inputs": {"pretrain": "a" * 64}}


def read_manifests(content: bytes, where: str, folder: Path) -> None:
    """A run whose manifest or run.json is ``content``: every command that reads it ends well or in a UserError."""
    import shutil

    from data.common.errors import UserError
    from models.backbone.artifacts import load_artifact, problems, publish, read_artifact
    from pipelines.cli.folders import _entries, _runs, _stages
    from pipelines.workspace.gc import leftovers
    from pipelines.workspace.store import Store
    from pipelines.workspace.verify import verify_run

    run = folder / "runs/r"
    shutil.rmtree(folder / "runs", ignore_errors=True)
    shutil.rmtree(folder / "store", ignore_errors=True)
    part = run / ".sft.partial"
    part.mkdir(parents=True)
    (part / "w").write_text("weights")
    made = publish(part, run / "sft", {"stage": "sft", "key": "b" * 64, "described": DESCRIBED, "parents": {}})
    store = Store(folder / "store")
    store.put(made)
    (run / "recipe.yaml").write_text("name: r\n")
    (run / "run.json").write_text("{}")
    target = {"manifest": run / "sft/manifest.json", "run": run / "run.json"}.get(where)
    (target or store.entries / made.key / "manifest.json").write_bytes(content)
    outside = folder / "outside"
    outside.write_text("stays")
    looks = (lambda: load_artifact(run / "sft", "sft stage"), lambda: verify_run(run), lambda: leftovers(run),
             lambda: _runs(run.parent), lambda: _stages(run), lambda: _entries(store.root), store.verify,
             lambda: store.fetch(made.key, folder / "runs/fetched"))  # fmt: skip
    for look in looks:
        try:
            look()
        except UserError as error:
            assert str(error)
    found = read_artifact(run / "sft")
    if found is not None:
        wrong = problems(found)
        store.put(found) if not wrong and len(found.key) == 64 and found.key.isalnum() else None
    assert outside.read_text() == "stays" and {p.name for p in folder.iterdir()} == {"runs", "store", "outside"}


@cache
def _good_manifest() -> dict[str, Any]:
    import tempfile

    from models.backbone.artifacts import publish

    folder = Path(tempfile.mkdtemp())
    part = folder / ".sft.partial"
    part.mkdir()
    (part / "w").write_text("weights")
    made = publish(part, folder / "sft", {"stage": "sft", "key": "b" * 64, "described": DESCRIBED, "parents": {}})
    return dict(made.manifest)


GOOD_RUN = {"name": "r", "seed": 0, "recipe_folder": ".", "inputs": {"sft": "x"}, "data": {"rows": 1},
            "stages": {"sft": {"status": "done", "key": "b", "seconds": 1.0, "peak_memory": 1}}}  # fmt: skip


# -- checkpoints ------------------------------------------------------------------------------------------------------


def read_checkpoint(content: bytes, name: str, folder: Path) -> None:
    """A checkpoint whose ``state.json`` or manifest is ``content``: refused by name, or read."""
    import shutil

    import torch

    from data.storage.file_hashes import sha256_of
    from stages.safe_points.checkpoint_files import own_hash
    from stages.safe_points.checkpoints import Checkpoints, State
    from stages.safe_points.interrupts import INTERRUPTS

    place = folder / "checkpoints"
    shutil.rmtree(place, ignore_errors=True)
    told: list[str] = []
    points = Checkpoints(place, "k", warn=told.append)
    points.save(1, State(tensors={"weights/a": torch.zeros(2)}, numbers={"step": 1}))
    points.wait()
    step = place / "step_1"
    (step / name).write_bytes(content)
    if name == "state.json":  # hostile rather than damaged: its hash is right
        manifest = json.loads((step / "manifest.json").read_text())
        manifest["files"][name] = {"sha256": sha256_of(step / name), "bytes": len(content)}
        (step / "manifest.json").write_text(json.dumps(manifest | {"own": own_hash(manifest)}))
    if points.tidy(folder / "metrics.jsonl") is None:
        assert told or name == "manifest.json"
    else:
        assert points.resume() is not None
    INTERRUPTS.listening = False


GOOD_STATE = {"state": {"step": 1}, "processes": [{}]}


# -- reports ----------------------------------------------------------------------------------------------------------

REPORTED = ("evaluation/results.json", "reward/report_card.json", "run.json", "ppo/manifest.json", "ppo/metrics.jsonl",
            "evaluation/samples.jsonl")  # fmt: skip


@cache
def _good_report() -> tuple[Path, dict[str, Any]]:
    import tempfile

    from tests.support.finished_run import make_run

    run = make_run(Path(tempfile.mkdtemp()) / "demo", n=12)
    good = {n: json.loads((run / n).read_text()) for n in REPORTED if n.endswith(".json")}
    lines = {n: json.loads((run / n).read_text().splitlines()[0]) for n in REPORTED if n.endswith(".jsonl")}
    return run, good | lines


def read_reported(content: bytes, name: str) -> None:
    """The report of a run one of whose files is ``content``: a page, with a note where something was left out."""
    from data.common.errors import UserError
    from pipelines.cli.folders import verdict
    from pipelines.report.page import page_of
    from pipelines.report.run_files import read_run

    run, _ = _good_report()
    before = (run / name).read_bytes()
    try:
        (run / name).write_bytes(content)
        page = page_of(read_run(run))
        assert page.rstrip().endswith("</html>") and page.count("<script") == 5
        verdict(run, "evaluate")
    except UserError as error:
        assert str(error)
    finally:
        (run / name).write_bytes(before)


# -- adapters ---------------------------------------------------------------------------------------------------------

GOOD_ADAPTER = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj"],
    "bias": "none",
    "task_type": None,
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {},
    "layers_to_transform": [0],
    "layers_pattern": ["layers"],
    "use_rslora": False,
    "modules_to_save": None,
    "init_lora_weights": True,
}


def read_adapter(content: bytes, folder: Path) -> None:
    """Settings of an adapter: plain LoRA for the weights beside it, or a UserError."""
    import torch

    from data.common.errors import UserError
    from models.hub.validate import read_adapter_config

    (folder / "adapter_config.json").write_bytes(content)
    from peft import IA3Config, LoraConfig

    weights = {"base_model.model.layers.0.q_proj.lora_A.weight": torch.zeros(2, 4)}
    try:
        made = read_adapter_config(folder, weights)
    except UserError as error:
        assert str(error)
        return
    if isinstance(made, IA3Config):
        assert not made.modules_to_save
        return
    assert isinstance(made, LoraConfig)
    assert 1 <= made.r <= 2 and made.bias == "none" and not made.modules_to_save and made.megatron_config is None
    assert not isinstance(made.target_modules, str) or made.target_modules == "all-linear"


def read_any(content: bytes, kind: int, folder: Path) -> None:
    """One of the readers, by number; the content as it is, or as the seed of a mutation."""
    seed = int.from_bytes(content[:8], "big")
    goods = {0: GOOD_RUN, 1: _good_manifest(), 2: _good_manifest(), 3: GOOD_STATE, 4: _good_manifest(), 5: GOOD_ADAPTER}
    name = REPORTED[seed % len(REPORTED)]
    good = goods[kind] if kind in goods else _good_report()[1][name]
    data = mutated(good, seed) if len(content) == 8 else content
    if kind < 3:
        read_manifests(data, ("run", "manifest", "store")[kind], folder)
    elif kind < 5:
        read_checkpoint(data, ("state.json", "manifest.json")[kind - 3], folder)
    elif kind == 5:
        read_adapter(data, folder)
    else:
        read_reported(data, name)


KINDS_OF_FILE = 7
