"""Chat: streamed answers are those of generation, commands, votes, and votes that the reward stage trains on."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM

from data.common.errors import UserError
from data.records import Message
from data.sources import DataConfig, load_records
from data.template import Renderer
from models.sampling.generate import CachedEngine, SamplingParams
from models.sampling.stream import stream
from pipelines.cli.chat import Chat
from pipelines.run.chat_models import Room, Speaker, open_room, open_speakers
from reward.model import RewardModel
from tests.conftest import ADAPTER, make_base, randomise, tiny_lm, word_tokenizer

ROOT = Path(__file__).parents[3]


def scripted(*lines: str) -> Callable[[str], str]:
    """Standard input with these lines, then its end."""
    left = list(lines)

    def ask(_: str) -> str:
        if not left:
            raise EOFError
        return left.pop(0)

    return ask


def a_room(**changes: Any) -> Room:
    """Two roles of a tiny base; no reward model."""
    base = make_base()
    for i, name in enumerate(("sft", "policy")):
        base.add_role(name, ADAPTER)
        randomise(base, name, i + 1)
    renderer = Renderer(base.tokenizer, template="dialogue")
    both = [Speaker(name=n, base=base, role=r, renderer=renderer) for n, r in (("ppo", "policy"), ("sft", "sft"))]
    return Room(**({"speakers": tuple(both), "reward": None, "max_new_tokens": 8} | changes))


def chat(room: Room, folder: Path, *lines: str, terminal: bool = False) -> tuple[Chat, str]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    made = Chat(
        room=room, console=console, ask=scripted(*lines), preferences=folder / "preferences.jsonl", max_new_tokens=8
    )
    made.run()
    return made, out.getvalue()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_streamed_ids_are_those_of_the_engine(temperature: float):
    base, prompt = make_base(), [4, 6, 9, 11, 5, 6]
    with base.role("base") as view:
        ids = list(
            stream(
                view,
                prompt,
                generator=torch.Generator().manual_seed(3),
                params=SamplingParams(max_new_tokens=12, temperature=temperature, stop_ids=[2]),
            )
        )
        noise = torch.cat(
            [
                torch.rand((1,), generator=g, dtype=torch.float64)
                for g in [torch.Generator().manual_seed(3)]
                for _ in range(12)
            ]
        )[None]
        made = CachedEngine()(
            view,
            [prompt],
            noise=noise if temperature else None,
            params=SamplingParams(max_new_tokens=12, temperature=temperature or 1.0, stop_ids=[2], pad_id=0),
        )
    assert ids == made.ids[0] and len(ids) > 1


def test_commands_change_what_they_say_and_wrong_ones_nothing(tmp_path: Path):
    lines = [
        "/help",
        "/system be brief",
        "/temperature 0",
        "/temperature x",
        "/temperature 1e-300",
        "/tokens 5",
        "/tokens 0",
        "/nope",
        "w1 w2",
    ]
    room = a_room()
    made, out = chat(
        Room(speakers=room.speakers[:1], reward=None, max_new_tokens=8), tmp_path, *lines, "/save", "/quit"
    )
    assert (made.system, made.temperature, made.max_new_tokens) == ("be brief", 0.0, 5)
    assert "/temperature 1e-300: give a number of at least 0.0001, or 0" in out
    assert "/temperature x: give a number" in out and "/tokens 0: give" in out and "/nope: no such command" in out
    assert "votes need --compare-with" in out and not (tmp_path / "preferences.jsonl").exists()
    assert [m.role for m in made.messages()] == ["system", "user", "assistant"]
    assert made.turns[1].content and made.turns[1].content in out
    made.command("/clear")
    assert made.turns == []


def test_votes_become_rankings_that_data_reading_takes(tmp_path: Path):
    made, out = chat(a_room(), tmp_path, "w1 w2", "2", "w3", "1", "w4", "=", "w5", "", "/save", "/quit")
    file = tmp_path / "preferences.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [r["ranks"] for r in rows] == [[1, 0], [0, 1]] and "2 preferences appended" in out
    assert all(r["systems"] == ["ppo", "sft"] for r in rows)
    # the better answer is what the conversation went on with
    assert rows[1]["prompt"][1]["content"] == rows[0]["responses"][1]
    records = load_records((file.name,), "rankings", DataConfig(), seed=0, base_dir=tmp_path).records
    assert len(records) == 2 and records[0].answers[records[0].ranks.index(0)] == rows[0]["responses"][1]
    made.save(file)
    assert len(file.read_text().splitlines()) == 2  # nothing twice


def test_unsaved_votes_are_kept_at_the_end(tmp_path: Path):
    _, out = chat(a_room(), tmp_path, "w1 w2", "1", terminal=True)
    assert len((tmp_path / "preferences.jsonl").read_text().splitlines()) == 1
    assert "1 · ppo" in out and "2 · sft" in out


def test_the_same_seed_says_the_same(tmp_path: Path):
    room = a_room()
    first, second = (chat(room, tmp_path, "w1", "", "w2", "")[0].turns for _ in range(2))
    assert first == second


def test_a_long_conversation_is_cut_from_the_left_and_says_so(tmp_path: Path):
    room = a_room()
    lines = [f"w{i} w{i} w{i} w{i} w{i}" for i in range(8)]  # 64 positions, 8 of them for each answer
    made, out = chat(room, tmp_path, "/system w9", "/temperature 0", *[w for one in lines for w in (one, "1")])
    assert out.count("no longer fit") >= 2
    assert made.turns[0].role == "user" and made.turns[-1].role == "assistant" and len(made.turns) < 16
    last = json.loads((tmp_path / "preferences.jsonl").read_text().splitlines()[-1])
    assert last["prompt"][0] == {"role": "system", "content": "w9"}  # stays
    assert last["prompt"][1]["role"] == "user" and last["prompt"][-1]["content"] == lines[-1]
    speaker = room.speakers[0]
    asked = [Message(**m) for m in last["prompt"]]
    assert speaker.missing(asked, 8) <= 0 < speaker.missing([*made.messages(), *made.messages()], 8)


def test_a_message_that_can_never_fit_is_refused_and_forgotten(tmp_path: Path):
    made, out = chat(a_room(), tmp_path, "w1 " * 70, "w2", "1", "/tokens 63", "w3")
    assert "tokens too long for ppo, which has 64 positions, 8 of them" in out and "63 of them" in out
    assert [m.content for m in made.turns if m.role == "user"] == ["w2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two plain model folders, and a PEFT folder for each."""
    folder = tmp_path_factory.mktemp("models")
    for i, name in enumerate(("one", "two")):
        lm = tiny_lm(seed=i)
        peft = get_peft_model(lm, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
        peft.peft_config["default"].base_model_name_or_path = str(folder / name)
        peft.save_pretrained(str(folder / f"{name}-adapter"))
        tiny_lm(seed=i).save_pretrained(folder / name)
        word_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    ("target", "beside", "shared"),
    [
        ("one", None, True),
        ("one-adapter", None, True),
        ("one-adapter", "base", True),
        ("one", "one-adapter", True),
        ("one", "two", False),
        ("one", "two-adapter", False),
    ],
)
def test_plain_models_and_adapters_talk_and_stand_on_their_own_base(models, target, beside, shared):
    room = open_room(str(models / target), None, beside and (beside if beside == "base" else str(models / beside)))
    assert len({id(s.base) for s in room.speakers}) == (1 if shared else 2) and room.max_new_tokens == 32

    def greedy(speaker: Speaker, lm: Any) -> None:
        ids = speaker.renderer.prompt_ids([Message(role="user", content="w1 w2")])
        with speaker.base.role(speaker.role) as view, torch.no_grad():
            made = view.logits(view.hidden(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)))
            assert torch.allclose(made.float(), lm(torch.tensor([ids])).logits, atol=1e-4)

    for speaker, name in zip(room.speakers, [target, beside], strict=False):
        name = target.removesuffix("-adapter") if name == "base" else name
        assert name is not None
        lm = AutoModelForCausalLM.from_pretrained(models / name.removesuffix("-adapter")).eval()
        greedy(speaker, PeftModel.from_pretrained(lm, models / name).eval() if "adapter" in name else lm)


def test_an_adapter_is_asked_by_the_template_and_ends_by_the_stops_beside_it(models: Path, tmp_path: Path) -> None:
    adapter = Path(copytree(models / "one-adapter", tmp_path / "adapter"))
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}w7 {{ m.content }}\n{% endfor %}w8 "
    tokenizer.save_pretrained(adapter)
    (adapter / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    asked = [Message(role="user", content="w1 w2")]
    rooms = (open_room(str(adapter), None, "base"), open_room(str(models / "one"), None, str(adapter)))
    for position, room in enumerate(rooms):
        ours, other = room.speakers[position].renderer, room.speakers[1 - position].renderer
        assert tokenizer.decode(ours.prompt_ids(asked)) == "w7 w1 w2 w8"
        assert {5, 6} <= set(ours.stop_ids) and not {5, 6} & set(other.stop_ids)
        assert tokenizer.decode(other.prompt_ids(asked)) == "user : w1 w2 assistant :"


def test_a_second_speaker_that_is_nothing_is_named(models, tmp_path):
    with pytest.raises(
        UserError, match=r"--compare-with .*nothing: cannot be opened as a stage \(base, distil, sft, ppo\), a run"
    ):
        open_room(str(models / "one"), None, str(tmp_path / "nothing"))


def test_a_run_that_is_not_there_is_not_asked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/run.json").write_text("{}")
    for opened in (open_room, open_speakers):
        with pytest.raises(UserError, match=r"^runs/mime: there is no such run or folder\. Did you mean 'mine'\?"):
            opened("runs/mime")


def test_a_folder_with_an_organisations_name_that_holds_no_run_hides_no_model_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Some-Organisation/notes").mkdir(parents=True)
    asked = list[str]()

    def fetched(target: str, compare_with: str | None) -> Room:
        asked.append(target)
        return a_room()

    monkeypatch.setattr("pipelines.run.chat_models._of_model", fetched)
    open_room("Some-Organisation/a-model")
    assert asked == ["Some-Organisation/a-model"]


def test_wrong_rooms_are_named(tmp_path: Path):
    with pytest.raises(UserError, match="is no run folder"):
        open_room(str(tmp_path), "ppo")
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match="--stage pop"):
        open_room(str(tmp_path), "pop")


@pytest.mark.slow
def test_the_loop_closes(tmp_path: Path):
    """A run, a scripted chat with two of its models, and a reward stage on nothing but the votes."""
    from pipelines import Pipeline

    recipe = ROOT / "examples" / "tiny.yaml"
    run = tmp_path / "run"
    Pipeline.from_recipe(recipe, ["base.pretrain.steps=10", "ppo.updates=1"], run).run(until="ppo")
    room = open_room(str(run), "ppo", "sft")
    assert room.reward is not None
    votes = [w for i in range(12) for w in (f"tell a story {i}", "12"[i % 2], "/clear")]
    _, out = chat(room, tmp_path, *votes)
    assert "reward " in out
    changes = [f"data.rankings={tmp_path / 'preferences.jsonl'}", "rankings=null", "ppo.updates=1"]
    again = Pipeline.from_recipe(
        recipe, changes, tmp_path / "again", {"pretrain": str(run / "pretrain"), "sft": str(run / "sft")}
    )
    again.run(only=["reward"])
    manifest = json.loads((tmp_path / "again" / "reward" / "manifest.json").read_text())
    assert manifest["metrics"]["rankings"] >= 8


def test_bytes_that_are_no_text_end_no_conversation(tmp_path: Path) -> None:
    made, said = chat(a_room(), tmp_path, "w1 \udcff", "w1 w2", "/quit")
    assert "that holds bytes that are no text in UTF-8; type it again" in said
    assert [turn.content for turn in made.turns if turn.role == "user"] == ["w1 w2"]


def test_the_reward_beside_a_response_says_where_it_is_of_a_part(tmp_path: Path) -> None:
    room = a_room()
    base = room.speakers[0].base
    base.add_role("reward", ADAPTER, head=True)
    randomise(base, "reward", 3)
    model = RewardModel(base=base, role="reward", renderer=room.speakers[0].renderer, max_tokens=12)
    room = replace(room, reward=model)
    asked = [Message(role="user", content="w1")]
    fits, long = "w2 w3", "w2 " * 20
    scores = [float(model.score_texts([asked], [text], [True])[0]) for text in (fits, long)]
    assert room.note(asked, fits, True) == f"reward {scores[0]:+.2f}"
    assert room.note(asked, long, False).endswith(" of a part, longer than reward.max_tokens, cut off")
    assert room.note(asked, " ", True) == "no reward model"
    assert f"reward {scores[1]:+.2f} of a part" in room.note(asked, long, True)
