"""An export ends its responses where the run does: its stop strings in plain Transformers, and in the card's words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data.records import Demonstration, Message, Prompt
from data.stop_strings import StopStrings
from models.sampling.generate import CachedEngine, SamplingParams
from pipelines.export.stage import export_stage
from pipelines.run.chat_models import open_room
from pipelines.run.pipeline import Pipeline
from pipelines.run.rehearsal import rehearse
from pipelines.run.stops_rehearsal import doubtful_ends
from tests.conftest import tiny_lm
from tests.support.rendering import byte_tokenizer

STOP = "\nUser:"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """An SFT model that goes on as the user, on a base in whose vocabulary the string begins and ends inside tokens."""
    folder = tmp_path_factory.mktemp("stops")
    tokenizer = byte_tokenizer([("Ċ", "U"), ("r", ":"), ("r:", "Ġ"), ("d", "Ċ"), ("dĊ", "U")])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + '>' + m.content }}{% if m.role == 'assistant' %}<|end|>{% endif %}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant>{% endif %}"
    )
    tiny_lm(vocab_size=len(tokenizer), max_position_embeddings=128).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    shown = [{"prompt": "Hello" + "!" * n, "completion": "good\nUser: more"} for n in range(12)]  # the card says Hello
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, shown)) + "\n")
    recipe = {
        "base": "./base",
        "stop_strings": [STOP],
        "stages": ["sft"],
        "data": {"demonstrations": "d.jsonl", "held_out": 0.0},
        "adapter": {"rank": 4, "alpha": 8},
        "sft": {"learning_rate": 5e-2, "batch": 4, "epochs": 16},
        "runtime": {"device": "cpu", "threads": 1},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    made = Pipeline.from_recipe(folder / "recipe.yaml", run_dir=folder / "run")
    made.run()
    return made


@pytest.mark.parametrize("merge", [False, True], ids=["adapter", "merged"])
def test_the_program_of_the_card_ends_with_the_string(
    finished: Pipeline, tmp_path: Path, merge: bool, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    folder = export_stage(finished.run_dir, "sft", tmp_path / "out", merge=merge)
    loaded = finished.loaded
    loaded.clear()
    loaded.load("sft", "sft", finished.run_dir / "sft")
    renderer = loaded.renderer()
    with loaded.base().role("sft") as role:
        params = SamplingParams(max_new_tokens=64, stop_ids=renderer.stop_ids, stop_strings=renderer.stop_strings)
        query = renderer.prompt_ids([Message(role="user", content="Hello")])
        ids = CachedEngine()(role, [query], params=params, noise=None).ids[0]
    assert renderer.text(ids) == "good" and renderer.ended_by_string(ids)
    assert json.loads((folder / "generation_config.json").read_text())["stop_strings"] == [STOP]
    card = (folder / "README.md").read_text()
    assert 'It ends too where one of these texts is complete: `"\\nUser:"`.' in card
    program = re.search(r"(?s)```python\n(.*?)\n```", card)
    assert program is not None
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(compile(program[1], "README.md", "exec"), {})
    assert capsys.readouterr().out == renderer.tokenizer.decode(ids) + "\n" == "good\nUser: \n"
    assert open_room(str(folder)).speakers[0].renderer.stop_strings.texts == (STOP,)  # in trivet's chat, as a base too


def test_the_rehearsal_tells_that_demonstrations_go_on(finished: Pipeline, capsys) -> None:
    warned: list[str] = []
    rehearse(finished, ["sft"], warned.append)
    assert [text for text in warned if "12 of 12 demonstrations go on behind a stop string" in text]


def test_demonstrations_that_teach_no_end_are_told_of() -> None:
    asked = Prompt(messages=(Message(role="user", content="q"),), group="q", source="d.jsonl:1")
    tokenizer = byte_tokenizer()

    def told(answers: list[str], strings: list[str], finished: bool = False) -> list[str]:
        shown = [Demonstration(prompt=asked, answer=a, finished=finished) for a in answers]
        return list(doubtful_ends(StopStrings(tokenizer, strings), shown))

    assert "none of 2 demonstrations ends in a stop token or has a stop string" in told(["a", "b"], ["##"])[0]
    assert "none of 1 demonstrations ends in a stop token: SFT" in told(["a##"], [])[0]
    assert told(["a", "b##"], ["##"]) == told(["a"], ["##"], finished=True) == told([], ["##"]) == []
    assert "1 of 2 demonstrations go on behind a stop string (the first is d.jsonl:1)" in told(["a##b", "c"], ["##"])[0]
