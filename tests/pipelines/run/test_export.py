"""What is exported gives the run's answers and scores in plain Transformers and PEFT, at settings off the defaults."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.common.errors import UserError
from data.records import Message
from models.backbone.tensor_files import save_tensors
from models.hub.limits import unused_in
from models.sampling.generate import CachedEngine, SamplingParams
from pipelines.cli import main as cli
from pipelines.run.export import export_stage
from pipelines.run.pipeline import Pipeline
from pipelines.run.rehearsal import rehearse
from pipelines.run.score import load_scorer
from tests.conftest import tiny_lm, word_tokenizer

LIMIT = 24  # of the reward model, below the length of some answers
SHAPING = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 5.0, "suppress_tokens": [12], "min_new_tokens": 9}
"""Of the base's generation config: a greedy response by it is another one, whatever the weights."""
MESSAGES = [{"role": "user", "content": "w1 w2"}]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """SFT and a reward model on a base whose generation config samples, with an end and a template of the run's own."""
    folder = tmp_path_factory.mktemp("exports")
    tiny_lm().save_pretrained(folder / "base")
    # sampling flags without do_sample, as public checkpoints have them, which Transformers refuses to save again
    config = json.loads((folder / "base/generation_config.json").read_text())
    (folder / "base/generation_config.json").write_text(json.dumps(config | SHAPING))
    word_tokenizer().save_pretrained(folder / "base")
    (folder / "own.jinja").write_text(
        "{% if mood is defined %}{{ mood + ' ' }}{% endif %}"
        "{% for m in messages %}{{ m.role + ' : ' + m.content }}{% if m.role == 'assistant' %} w9{% endif %} "
        "{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
    )
    shown = [{"prompt": f"w{n} w2", "completion": "w3 w4"} for n in range(12)]
    ranked = [{"prompt": f"w{n}", "chosen": "w5 " * 30, "rejected": f"w6 w{n}"} for n in range(12)]
    for name, rows in (("d", shown), ("r", ranked)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    recipe = {
        "base": "./base",
        "template": "own.jinja",
        "template_args": {"mood": "w8"},
        "stop": ["w9"],
        "stages": ["sft", "reward"],
        "data": {"demonstrations": "d.jsonl", "rankings": "r.jsonl", "held_out": 0.0},
        "adapter": {"rank": 4, "alpha": 8},
        "sft": {"learning_rate": 5e-2, "batch": 4, "epochs": 3},
        "reward": {"learning_rate": 1e-2, "batch": 4, "max_tokens": LIMIT, "calibration_samples": 8, "pooling": "mean"},
        "runtime": {"device": "cpu", "threads": 1},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    made = Pipeline.from_recipe(folder / "recipe.yaml", run_dir=folder / "run")
    made.run()
    return made


def answer_of_the_run(pipeline: Pipeline) -> tuple[list[int], list[int]]:
    """The prompt's ids and the greedy answer of the SFT model, by the run's own loop."""
    loaded = pipeline.loaded
    loaded.clear()
    loaded.load("sft", "sft", pipeline.run_dir / "sft")
    renderer = loaded.renderer()
    from data.records import Message

    query = renderer.prompt_ids([Message(role="user", content="w1 w2")])
    with loaded.base().role("sft") as role:
        greedy = SamplingParams(max_new_tokens=12, stop_ids=renderer.stop_ids)
        made = CachedEngine()(role, [query], params=greedy, noise=None)
    return query, made.ids[0]


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "adapter"])
def test_an_exported_model_is_asked_and_ends_as_in_the_run(finished: Pipeline, tmp_path: Path, merge: bool) -> None:
    query, expected = answer_of_the_run(finished)
    folder = export_stage(finished.run_dir, "sft", tmp_path / "out", merge=merge)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids: Any = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    assert ids[0].tolist() == query and query[0] == tokenizer.convert_tokens_to_ids("w8")  # by template_args
    lm: Any
    if merge:
        lm = AutoModelForCausalLM.from_pretrained(folder)
        settings = lm.generation_config
    else:
        from transformers import GenerationConfig

        lm = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(finished.loaded.spec.source), folder)
        settings = lm.generation_config = GenerationConfig.from_pretrained(folder)
    made = lm.generate(ids, generation_config=settings, max_new_tokens=12, do_sample=False)
    assert made[0, len(query) :].tolist() == expected
    assert expected[-1] == tokenizer.convert_tokens_to_ids("w9")  # it has learnt its end, which is not the base's


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "adapter"])
def test_the_program_of_the_card_keeps_nothing_of_the_base_s_generation_config(
    finished: Pipeline, tmp_path: Path, merge: bool, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    folder = export_stage(finished.run_dir, "sft", tmp_path / "out", merge=merge)
    finished.loaded.clear()
    finished.loaded.load("sft", "sft", finished.run_dir / "sft")
    renderer = finished.loaded.renderer()
    with finished.loaded.base().role("sft") as role:
        query = renderer.prompt_ids([Message(role="user", content="Hello")])
        params = SamplingParams(max_new_tokens=64, stop_ids=renderer.stop_ids)
        ids = CachedEngine()(role, [query], params=params, noise=None).ids[0]
    monkeypatch.chdir(folder)
    capsys.readouterr()
    program = re.search(r"(?s)```python\n(.*?)\n```", (folder / "README.md").read_text())
    assert program is not None
    exec(compile(program[1], "README.md", "exec"), {})
    assert capsys.readouterr().out == renderer.tokenizer.decode(ids, skip_special_tokens=True) + "\n"


def test_what_no_stage_uses_of_a_generation_config_is_told(finished: Pipeline) -> None:
    warned: list[str] = []
    rehearse(finished, ["sft"], warned.append)
    assert [text for text in warned if "generation_config" in text] == [
        "base base: its generation_config.json sets temperature 0.7, top_p 0.9, repetition_penalty 5.0, "
        "min_new_tokens 9, suppress_tokens [12]: nothing here uses it. Responses come from the model's own "
        "distribution, in training, evaluation, chat and exports"
    ]


@pytest.mark.parametrize(
    "config", [{}, {"temperature": 1.0, "top_k": 0, "suppress_tokens": []}, {"do_sample": True, "eos_token_id": 2}]
)
def test_a_generation_config_that_changes_nothing_is_not_told(config: dict[str, Any]) -> None:
    assert unused_in(config) == {}


def test_an_exported_reward_model_scores_as_in_the_run(finished: Pipeline, tmp_path: Path) -> None:
    folder = export_stage(finished.run_dir, "reward", tmp_path / "out")
    from data.records import Message

    asked = [[Message(role="user", content="w1 w2")]] * 3
    answers = ["w5 " * 30, "w6 w7", "w8 " * 40]
    ours, theirs = (load_scorer(place)(asked, answers, [True] * 3) for place in (finished.run_dir, folder))
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), atol=1e-5, rtol=1e-5)


def test_an_export_that_fails_leaves_nothing(finished: Pipeline, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.run.export._save_tokenizer", full)
    with pytest.raises(UserError, match=r"cannot be written .No space left on device.*another --to"):
        export_stage(finished.run_dir, "sft", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["/dev/null/x", "file/x"])
def test_a_place_that_cannot_be_is_one_message(finished: Pipeline, tmp_path: Path, to: str, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert cli.main(["export", str(finished.run_dir), "--stage", "sft", "--to", to]) == 2
    told = capsys.readouterr().err
    assert "choose another --to" in told and "Traceback" not in told


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_of_runs_and_exports_have_the_modes_that_new_files_have(
    mask: int, finished: Pipeline, tmp_path: Path
) -> None:
    """The library that writes weights gives them to their owner alone, whatever the system says of new files."""
    before = os.umask(mask)
    try:
        for stage, merge in (("sft", False), ("sft", True), ("reward", False)):
            export_stage(finished.run_dir, stage, tmp_path / f"{stage}-{merge}", merge=merge)
        save_tensors({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert sum(f.suffix == ".safetensors" for f in files) >= 5
    assert {f.name: f.stat().st_mode & 0o777 for f in files} == {f.name: 0o666 & ~mask for f in files}
