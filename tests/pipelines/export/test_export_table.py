"""Every cell of the table of exports and tools: the form is made by the command, opened in the tool, and compared.

The cells of vLLM are slow and need its environment; see ``TRIVET_VLLM_PYTHON`` below.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from data.records import Message
from models.hub.gguf_base import import_gguf
from models.roles.shared_base import SharedBase
from pipelines.cli.main import main
from pipelines.run.open_run import open_run, stage_folder
from pipelines.run.pipeline import Pipeline
from pipelines.run.score import load_scorer
from tests.support.export_table import AT_EXPORT, CELLS, FORMS, GREEDY, LOGITS4, LOGITS5, REFUSED, ROUNDED, TOOLS
from tests.support.gguf import TEXTS, by_llama_cpp, byte_tokenizer, greedy, sized
from tests.support.recipes import ROOT

PYTHON = os.environ.get("TRIVET_VLLM_PYTHON", str(ROOT / ".vllm-env" / "bin" / "python"))
ASKED = ["tell 3", "once upon a fox", "12 whales?"]
RESPONSES = ["a fox and 3 whales", "rain", "There was a little whale, and it sang of foxes all day."]
COUNT = 32


class Made:
    """A tuned run and a reward model of another pooling, and each form of their exports, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
        pad = tokenizer.pad_token_id
        wide = {"hidden_size": 128, "intermediate_size": 128, "initializer_range": 0.15}  # heads that vLLM takes
        sized("llama", tokenizer, pad_token_id=pad, **wide).save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        shown = [{"prompt": f"tell {n}", "completion": f"a fox and {n} whales"} for n in range(16)]
        ranked = [{"prompt": f"tell {n}", "chosen": TEXTS[0][:40], "rejected": f"no {n}"} for n in range(12)]
        for name, rows in (("d", shown), ("r", ranked)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe: dict[str, Any] = {
            "name": "foxes",
            "base": str(folder / "base"),
            "stages": ["sft", "reward"],
            "data": {
                "demonstrations": str(folder / "d.jsonl"),
                "rankings": str(folder / "r.jsonl"),
                "held_out": 0.0,
            },
            "adapter": {"rank": 4, "alpha": 8},
            "sft": {"epochs": 3, "learning_rate": 3e-3, "batch": 8},
            "reward": {"learning_rate": 1e-2, "batch": 4, "max_tokens": 96, "calibration_samples": 8},
            "runtime": {"device": "cpu", "threads": 1, "dtype": "float32"},
        }
        Pipeline.from_recipe(recipe, run_dir=self.run).run()
        mean = {**recipe, "stages": ["reward"], "reward": recipe["reward"] | {"pooling": "mean"}}
        Pipeline.from_recipe(mean, run_dir=folder / "mean").run()
        pipeline = open_run(self.run)
        pipeline.loaded.load("sft", "sft", stage_folder(pipeline, "sft"))
        renderer, base = pipeline.loaded.renderer(), pipeline.loaded.base()
        self.tokenizer, self.stop = base.tokenizer, renderer.stop_ids[0]
        self.prompts = [renderer.prompt_ids([{"role": "user", "content": text}]) for text in ASKED]
        with base.role("sft") as view:
            self.expected = [self.of(view.lm, ids) for ids in self.prompts]
        self.asked = [[Message(role="user", content=text)] for text in ASKED]
        self.rows = []
        for asked, text in zip(self.asked, RESPONSES, strict=True):
            query, response = renderer.prompt_and_answer(asked, text, True, max_tokens=96)
            self.rows.append([*query, *response])

    def of(self, lm: Any, ids: list[int]) -> tuple[list[int], torch.Tensor]:
        """Greedy tokens but the end, and the logits of the prompt and them."""
        tokens = greedy(lm, ids, COUNT, [self.stop])
        with torch.no_grad():
            return tokens, lm(torch.tensor([[*ids, *tokens]])).logits.float()

    def export(self, form: str) -> Path:
        to = self.folder / form.replace(" ", "-")
        if not to.exists():
            run = self.folder / ("mean" if "mean" in form else "run")
            assert main(["export", str(run), *FORMS[form].options.split(), "--to", str(to)]) == 0
        return to

    def scores(self, form: str) -> torch.Tensor:
        run = self.folder / ("mean" if "mean" in form else "run")
        return torch.tensor(load_scorer(run)(self.asked, RESPONSES, [True] * 3)).double()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("exports"))


def answers(made: Made, lm: Any, tolerance: float) -> None:
    """Logits and greedy tokens of a model that another library opened are those of the run."""
    for ids, (tokens, logits) in zip(made.prompts, made.expected, strict=True):
        assert len(set(tokens)) > 3  # it says something
        found, theirs = made.of(lm.eval(), ids)
        torch.testing.assert_close(theirs, logits, atol=tolerance, rtol=0)
        assert found == tokens


def rounded(made: Made, lm: Any, cast: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A model's weights are the merged ones rounded, and it computes with these what Transformers does."""
    plain: Any = AutoModelForCausalLM.from_pretrained(made.export("merged"))
    with torch.no_grad():
        for p in plain.parameters():
            p.copy_(cast(p) if p.dim() > 1 or cast is bf16 else p)
    for ids in made.prompts:
        given = torch.tensor([ids])
        with torch.no_grad():
            torch.testing.assert_close(lm.eval().float()(given).logits, plain(given).logits, atol=1e-5, rtol=1e-5)


def bf16(values: torch.Tensor) -> torch.Tensor:
    return values.bfloat16().float()


# -- models that respond ----------------------------------------------------------------------------------------------


def by_transformers(made: Made, folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def by_peft(made: Made, folder: Path) -> Any:
    opened = AutoPeftModelForCausalLM.from_pretrained(folder)
    answers(made, opened, 1e-5)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(made.folder / "base"), folder)


def by_trl(made: Made, folder: Path) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_list([{"prompt": "tell 3", "completion": " a fox"}])
    settings = SFTConfig(
        output_dir=str(made.folder / "trl"), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False
    )
    return SFTTrainer(model=str(folder), args=settings, train_dataset=rows).model


def by_trivet(made: Made, folder: Path) -> Any:
    if (folder / "adapter_config.json").exists():
        base = SharedBase.load(str(made.folder / "base"), device="cpu", dtype="float32")
        base.load_role("given", folder)
        with base.role("given") as view:
            answers(made, view.lm, 1e-5)
        return None
    if (folder / "model.gguf").exists():
        to = folder.with_name(f"{folder.name}-read")
        import_gguf(folder / "model.gguf", to)
        folder = to
    return SharedBase.load(str(folder), device="cpu", dtype="float32").lm


MODELS = {"Transformers": by_transformers, "PEFT": by_peft, "TRL": by_trl, "trivet": by_trivet}


# -- reward models ----------------------------------------------------------------------------------------------------


def classifier(opener: Any) -> Callable[[Made, Path], torch.Tensor]:
    def scores(made: Made, folder: Path) -> torch.Tensor:
        model = opener.from_pretrained(str(folder), num_labels=1).eval()
        with torch.no_grad():
            found = torch.stack([model(torch.tensor([ids])).logits[0, 0] for ids in made.rows])
        return found.double() + constant(folder)

    return scores


def constant(folder: Path) -> float:
    return float(json.loads((folder / "scoring.json").read_text())["add_to_classifier"])


def trl_scores(made: Made, folder: Path) -> torch.Tensor:
    """As PPO's cousin in TRL calls a reward model, on its own rendering of the conversations."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    asked: list[Any] = [[{"role": "user", "content": text}] for text in ASKED]
    said: list[Any] = [[{"role": "assistant", "content": text}] for text in RESPONSES]
    settings = GRPOConfig(
        output_dir=str(made.folder / "grpo"), use_cpu=True, bf16=False, report_to="none", num_generations=2
    )
    trainer = GRPOTrainer(
        model=str(made.export("merged")),
        reward_funcs=[str(folder)],
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": one} for one in asked]),
    )
    model: Any = trainer.reward_funcs[0]
    model.eval()
    rows = [{"prompt": one} for one in asked]
    found = trainer._calculate_rewards(rows, asked, said, [[0]] * 3)
    return found[:, 0].double() + constant(folder)


def trivet_scores(made: Made, folder: Path) -> torch.Tensor:
    return torch.tensor(load_scorer(folder)(made.asked, RESPONSES, [True] * 3)).double()


REWARDS = {
    "Transformers": classifier(AutoModelForSequenceClassification),
    "PEFT": classifier(AutoPeftModelForSequenceClassification),
    "TRL": trl_scores,
    "trivet": trivet_scores,
}


# -- the cells --------------------------------------------------------------------------------------------------------

HERE = [cell for cell in CELLS if cell[1] not in ("vLLM", "llama.cpp")]


@pytest.mark.parametrize(("form", "tool"), HERE, ids=map(" in ".join, HERE))
def test_an_export_gives_what_the_run_gives(made: Made, form: str, tool: str) -> None:
    folder, given = made.export(form), CELLS[form, tool]
    if form.startswith("reward"):
        expected = made.scores(form)
        assert expected.std() > 1e-3
        tolerance = {"scores to 1e-5": 1e-5, "scores to 1e-4": 1e-4}[given]
        torch.testing.assert_close(REWARDS[tool](made, folder), expected, atol=tolerance, rtol=0)
        return
    lm = MODELS[tool](made, folder)
    if given == ROUNDED and form == "merged bf16":
        rounded(made, lm, bf16)
    elif given == ROUNDED:
        rounded(made, lm, by_gguf(form.split()[1]))
    elif lm is not None:
        answers(made, lm, {LOGITS5: 1e-5, LOGITS4: 1e-4}[given])


def by_gguf(kind: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Rounding to a type of GGUF's and back, by its own package."""

    def cast(values: torch.Tensor) -> torch.Tensor:
        gguf = pytest.importorskip("gguf")
        if kind == "f16":
            return values.half().float()
        own = gguf.GGMLQuantizationType[kind.upper()]
        packed = gguf.quants.quantize(values.detach().numpy(), own)
        return torch.tensor(gguf.quants.dequantize(packed, own))

    return cast


@pytest.mark.parametrize(("form", "tool"), REFUSED, ids=map(" in ".join, REFUSED))
def test_what_cannot_be_opened_says_so(made: Made, form: str, tool: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=r"score|size mismatch|ignore_mismatched_sizes"):
        REWARDS[tool](made, made.export(form))


CPP = [form for form, tool in CELLS if tool == "llama.cpp"]


@pytest.mark.parametrize("form", CPP)
def test_llama_cpp_responds_as_the_run(made: Made, form: str) -> None:
    file = made.export(form) / "model.gguf"
    for ids, (tokens, _) in zip(made.prompts, made.expected, strict=True):
        text = made.tokenizer.decode(ids)
        found, count = by_llama_cpp(file, text, COUNT)
        assert count == len(ids) and found
        if CELLS[form, "llama.cpp"] == GREEDY:
            assert found == made.tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize(("options", "words"), AT_EXPORT.items())
def test_what_is_refused_at_export_leaves_nothing(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, words: str
) -> None:
    assert main(["export", str(made.run), *options.split(), "--to", str(tmp_path / "x")]) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_card_of_a_gguf_file_says_what_it_is_and_how_it_is_run(made: Made) -> None:
    folder = made.export("gguf q8_0")
    card = (folder / "README.md").read_text()
    front = card.split("---")[1]
    assert "library_name: gguf" in front and "pipeline_tag: text-generation" in front
    assert "A GGUF file exported by trivet" in card and "the stage `sft`" in card
    assert "ollama create mine -f Modelfile" in card and "`q8_0`" in card
    assert f"A response ends with: `<end>` ({made.stop})" in card and "in `Modelfile`" in card
    assert (folder / "Modelfile").read_text().startswith("FROM ./model.gguf\n")


def test_no_cell_is_of_a_form_or_tool_that_is_not_in_the_table() -> None:
    assert {form for form, _ in CELLS | REFUSED} == set(FORMS) and {tool for _, tool in CELLS | REFUSED} == set(TOOLS)
    assert not CELLS.keys() & REFUSED.keys()


# -- vLLM -------------------------------------------------------------------------------------------------------------

VLLM = [form for form, tool in CELLS if tool == "vLLM"]
CODE = """
import json, sys
from vllm import LLM, PoolingParams, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":
    asked = json.load(open(sys.argv[1]))
    rows = [{"prompt_token_ids": ids} for ids in asked["rows"]]
    more = {"enforce_eager": True, "dtype": "float32", "max_model_len": 256}
    if asked["scores"]:
        llm = LLM(model=asked["model"], runner="pooling", **more)
        made = llm.classify(rows, pooling_params=PoolingParams(use_activation=False))
        out = [one.outputs.probs[0] for one in made]
    else:
        lora = asked["lora"]
        llm = LLM(model=asked["model"], enable_lora=bool(lora), **more)
        params = SamplingParams(temperature=0.0, max_tokens=asked["count"], min_tokens=asked["count"])
        request = LoRARequest("tuned", 1, lora) if lora else None
        made = llm.generate(rows, params, lora_request=request)
        out = [list(one.outputs[0].token_ids) for one in made]
    json.dump(out, open(sys.argv[2], "w"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", VLLM)
def test_vllm_gives_what_the_run_gives(made: Made, tmp_path: Path, form: str) -> None:
    if not os.path.exists(PYTHON):
        pytest.skip("no vLLM: `make vllm-env` builds an environment for it")
    folder, scores, adapter = made.export(form), form.startswith("reward"), form == "adapter"
    order = {
        "model": str(made.folder / "base") if adapter else str(folder),
        "lora": str(folder) if adapter else "",
        "scores": scores,
        "rows": made.rows if scores else made.prompts,
        "count": COUNT,
    }
    (tmp_path / "asked.json").write_text(json.dumps(order))
    (tmp_path / "ask.py").write_text(CODE)
    quiet = {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment = os.environ | quiet | {"HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    line = [PYTHON, str(tmp_path / "ask.py"), str(tmp_path / "asked.json"), str(tmp_path / "out.json")]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    out = json.loads((tmp_path / "out.json").read_text())
    if scores:
        found = torch.tensor(out).double() + constant(folder)
        torch.testing.assert_close(found, made.scores(form), atol=1e-4, rtol=0)
    else:
        assert out == [tokens for tokens, _ in made.expected]


def test_an_exported_tokenizer_writes_the_conversation_as_the_run(made: Made) -> None:
    for form in ("adapter", "merged", "reward merged"):
        tokenizer = AutoTokenizer.from_pretrained(made.export(form))
        asked = [{"role": "user", "content": ASKED[0]}]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        assert ids == made.prompts[0]
