"""A base pretrained, trained further, taught by a larger one, and exported: what each step does to held-out text.

Usage: ``python benchmarks/base_chain.py TEXT --folder DIR [--quick]``. ``TEXT`` is a file of text, about a million
characters for the numbers of docs/measurements/base_chain.md; DIR takes the runs, the export and result.json.

The text is cut into passages. Three fifths are documents; three tenths are cut in two, a prompt and its continuation,
and are never documents; the rest is held out. One recipe makes the student: ``pretrain``, ``continued`` (with tokens
learnt from the documents) and ``distil`` (by logits, on the continuations). The teacher is the same recipe with a wider
base and without ``distil``. Losses are nats a byte of whole held-out passages, which tokens of any length leave
comparable, by plain Transformers from the folders that the stages and the export wrote. A control is trained on the
same continuations as often and at the same rates without a teacher (``sft``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.common.intervals import ratio_interval
from pipelines.export.stage import export_stage
from pipelines.run.pipeline import Pipeline
from stages.training.chunks import chunks, encode

PASSAGE = 600  # characters, about
CONTEXT = 128
SHARES = (0.6, 0.3)  # of passages: documents, continuations; the rest is held out
SMALL = {"layers": 2, "width": 48, "feed_forward": 120, "heads": 4, "context": CONTEXT}
LARGE = {"layers": 2, "width": 128, "feed_forward": 320, "heads": 4, "context": CONTEXT}
FULL = {"pretrain": 150, "large": 250, "continued": 100, "epochs": 2.0, "added": 96, "vocabulary": 400}
QUICK = {"pretrain": 20, "large": 40, "continued": 20, "epochs": 0.5, "added": 16, "vocabulary": 320}
BATCH = 8


def passages(text: str) -> list[str]:
    """Paragraphs, joined until they are about ``PASSAGE`` characters."""
    out, now = list[str](), ""
    for paragraph in text.split("\n\n"):
        now = f"{now}\n\n{paragraph}".strip()
        if len(now) >= PASSAGE:
            out.append(now)
            now = ""
    return out


def halves(passage: str) -> dict[str, str]:
    """A passage as a prompt and its continuation, cut at white space; the template ``text`` puts nothing between."""
    at = passage.find(" ", len(passage) // 2)
    return {"prompt": passage[:at], "completion": passage[at:]}


def write_data(text: str, folder: Path) -> list[str]:
    """``documents.jsonl`` and ``continuations.jsonl``; the held-out passages, which are in neither."""
    folder.mkdir(parents=True, exist_ok=True)
    cut = passages(text)
    order = np.random.default_rng(0).permutation(len(cut))
    first, second = (round(share * len(cut)) for share in (SHARES[0], sum(SHARES)))
    parts = [[cut[i] for i in order[a:b]] for a, b in ((0, first), (first, second), (second, None))]
    rows: list[list[dict[str, str]]] = [[{"text": t} for t in parts[0]], [halves(t) for t in parts[1]]]
    for name, found in zip(("documents", "continuations"), rows, strict=True):
        lines = "".join(json.dumps(row) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return parts[2]


def recipe(folder: Path, sizes: dict[str, Any], teacher: bool) -> dict[str, Any]:
    """The student's recipe, or with a wider base and without distillation the teacher's."""
    scratch = {
        "tokenizer": "bpe",
        "vocabulary": sizes["vocabulary"],
        "steps": sizes["large" if teacher else "pretrain"],
        "batch": BATCH,
        "learning_rate": 3e-3,
        "matrix_learning_rate": 0.02,
        "model": LARGE if teacher else SMALL,
    }
    further = {
        "steps": sizes["continued"],
        "batch": BATCH,
        "learning_rate": 1e-3,
        "added_vocabulary": sizes["added"],
        "context": CONTEXT,
    }
    made: dict[str, Any] = {
        "name": "large" if teacher else "small",
        "base": {"pretrain": scratch},
        "template": "text",
        "stages": ["pretrain", "continued"],
        "data": {"documents": str(folder / "documents.jsonl"), "held_out": 0.1},
        "continued": further,
        "runtime": {"device": "cpu"},
        "tracking": [],
    }
    if teacher:
        return made
    made["data"]["demonstrations"] = str(folder / "continuations.jsonl")
    made["stages"] = ["pretrain", "continued", "distil"]
    made["adapter"] = {"method": "full"}
    made["distil"] = {
        "teacher": str(folder / "large" / "continued"),
        "loss": "logits",
        "responses": "demonstrations",
        "epochs": sizes["epochs"],
        "batch": BATCH,
        "learning_rate": 1e-3,
        "max_tokens": CONTEXT,
    }
    return made


def control(student: dict[str, Any]) -> dict[str, Any]:
    """The student's recipe with SFT on the continuations instead of the teacher."""
    taught = {k: v for k, v in student["distil"].items() if k not in ("teacher", "loss", "responses")}
    made = {k: v for k, v in student.items() if k != "distil"}
    return made | {"name": "control", "stages": ["pretrain", "continued", "sft"], "sft": taught}


@torch.no_grad()
def losses(model: Path, texts: Sequence[str]) -> tuple[list[float], int]:
    """Nats of each text by plain Transformers, in chunks of the context, and the parameters."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm: Any = AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    out = []
    for ids in encode(tokenizer, texts):
        nats = 0.0
        for row in chunks(ids, CONTEXT):
            logprobs = lm(torch.tensor([row])).logits[0, :-1].float().log_softmax(-1)
            nats -= float(logprobs.gather(1, torch.tensor(row[1:])[:, None]).double().sum())
        out.append(nats)
    return out, sum(p.numel() for p in lm.parameters())


def by_frequency(folder: Path, texts: Sequence[str]) -> list[float]:
    """Nats of each text by how often each byte occurs in the documents: what knows nothing of order."""
    documents = [json.loads(line)["text"] for line in (folder / "documents.jsonl").read_text("utf-8").splitlines()]
    counts = 1 + np.bincount(np.frombuffer("".join(documents).encode(), np.uint8), minlength=256)
    nats = -np.log(counts / counts.sum())
    return [float(nats[np.frombuffer(text.encode(), np.uint8)].sum()) for text in texts]


def compared(before: Sequence[float], after: Sequence[float], sizes: Sequence[int]) -> dict[str, Any]:
    """Nats a byte of a model, and its difference to the one before with an interval of 95 % over passages."""
    change = np.array(after) - np.array(before)
    low, high, _ = ratio_interval(change, np.array(sizes, dtype=np.float64))
    return {"change": float(change.sum() / sum(sizes)), "ci95": [low, high]}


def measure(text: str, folder: Path, sizes: dict[str, Any]) -> dict[str, Any]:
    """Run both recipes, export the student, and compare each step with the one before on the held-out passages."""
    held_out = write_data(text, folder)
    Pipeline.from_recipe(recipe(folder, sizes, teacher=True), run_dir=folder / "large").run()
    student = recipe(folder, sizes, teacher=False)
    Pipeline.from_recipe(student, run_dir=folder / "small").run()
    given = {stage: str(folder / "small" / stage) for stage in ("pretrain", "continued")}
    Pipeline.from_recipe(control(student), run_dir=folder / "control", inputs=given).run()
    exported = folder / "exported"
    if not exported.is_dir():
        export_stage(folder / "small", "distil", exported)
    models = {
        "pretrain": folder / "small/pretrain/model",
        "continued": folder / "small/continued/model",
        "distil": folder / "small/distil/model",
        "export": exported,
        "control": folder / "control/sft/model",
        "teacher": folder / "large/continued/model",
    }
    sizes_of = [len(t.encode()) for t in held_out]
    found = {"bytes by frequency": (by_frequency(folder, held_out), 256)}
    found |= {name: losses(model, held_out) for name, model in models.items()}
    steps = list(found)[:5]
    out: dict[str, Any] = {"passages": len(held_out), "bytes": sum(sizes_of), "settings": sizes, "models": {}}
    for name, (nats, parameters) in found.items():
        out["models"][name] = {"nats_per_byte": sum(nats) / sum(sizes_of), "parameters": parameters}
    for before, after in (*pairwise(steps), ("continued", "control")):
        out["models"][after] |= compared(found[before][0], found[after][0], sizes_of)
    taught = compared(found["control"][0], found["distil"][0], sizes_of)
    out["distil_less_control"] = taught
    manifests = {s: json.loads((folder / f"small/{s}/manifest.json").read_text())["metrics"] for s in steps[1:4]}
    kept = ("held_out_nll", "held_out_change", "held_out_change_ci95", "agreement_before", "agreement", "added_tokens")
    out["manifests"] = {s: {k: v for k, v in m.items() if k in kept} for s, m in manifests.items()}
    out["manifests"]["distil"]["curve"] = manifests["distil"]["held_out_curves"]["distilled"]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="a file of plain text")
    parser.add_argument("--folder", type=Path, required=True, help="takes the runs and result.json")
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it works")
    asked = parser.parse_args()
    text = asked.text.read_text(encoding="utf-8")
    found = measure(text, asked.folder.resolve(), QUICK if asked.quick else FULL)
    found["text"] = asked.text.name
    (asked.folder / "result.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
