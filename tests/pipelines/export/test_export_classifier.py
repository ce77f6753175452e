"""An exported reward adapter, opened as a sequence classifier by plain Transformers and PEFT: right, or an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from data.common.errors import UserError
from data.records import Message
from models.backbone.settings import METHODS, RESIDUAL
from models.roles.files import read_role
from pipelines.export.stage import export_stage
from pipelines.run.pipeline import Pipeline
from pipelines.run.score import exported_reward, load_scorer
from tests.conftest import tiny_lm, word_tokenizer

OPENERS: Any = [AutoModelForSequenceClassification, AutoPeftModelForSequenceClassification]
ASKED = [[Message(role="user", content="w1 w2")]] * 3
ANSWERS = ["w5 " * 5, "w6 w7", "w8 " * 40]


ADAPTER: dict[str, Any] = {"rank": 3, "alpha": 7, "targets": ["q_proj", "up_proj"], "rslora": True}


def exported(
    folder: Path,
    lm_pad: int | None = 0,
    pad: str = "<pad>",
    spare: str = "",
    adapter: dict[str, Any] = ADAPTER,
    to: str | None = "out",
    **reward: Any,
) -> Path:
    """The export of a reward model on a tiny base, at settings that are not the defaults.

    ``lm_pad`` is what the base's config pads with, ``pad`` what its tokenizer does; ``spare`` is a special token.
    """
    tiny_lm(pad_token_id=lm_pad).save_pretrained(folder / "base")
    tokenizer = word_tokenizer(pad_is_eos=pad == "<eos>")
    if spare:
        tokenizer.add_special_tokens({"additional_special_tokens": [spare]})
    tokenizer.save_pretrained(folder / "base")
    ranked = [{"prompt": f"w{n}", "chosen": "w5 " * 9, "rejected": f"w6 w{n}"} for n in range(8)]
    (folder / "r.jsonl").write_text("\n".join(map(json.dumps, ranked)) + "\n")
    recipe = {
        "base": "./base",
        "stages": ["reward"],
        "data": {"rankings": "r.jsonl", "held_out": 0.0},
        "adapter": adapter,
        "reward": {"learning_rate": 3e-2, "batch": 4, "max_tokens": 24, "calibration_samples": 8, **reward},
        "runtime": {"device": "cpu", "threads": 1},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    made = Pipeline.from_recipe(folder / "recipe.yaml", run_dir=folder / "run")
    made.run()
    return export_stage(made.run_dir, "reward", folder / to) if to else folder


# before whose rows no virtual tokens stand: such a reward is opened by trivet (`test_virtual_chain`)
PLAIN = [name for name, tuning in METHODS.items() if not tuning.virtual]


@pytest.mark.parametrize("method", [name for name in PLAIN if not METHODS[name].copies])
def test_a_classifier_gives_the_run_s_scores_up_to_the_constant_beside_it(tmp_path: Path, method: str) -> None:
    own = {k: v for k, v in ADAPTER.items() if k in METHODS[method].settings and (k, method) != ("targets", "ia3")}
    folder = exported(tmp_path, adapter={"method": method} | own)
    expected = torch.tensor(load_scorer(tmp_path / "run")(ASKED, ANSWERS, [True] * 3))
    torch.testing.assert_close(torch.tensor(load_scorer(folder)(ASKED, ANSWERS, [True] * 3)), expected)
    assert expected.std() > 1e-3
    model = exported_reward(folder)
    rows = []
    for asked, answer in zip(ASKED, ANSWERS, strict=True):
        query, response = model.renderer.prompt_and_answer(asked, answer, True, max_tokens=24)
        rows.append([*query, *response])
    add = json.loads((folder / "scoring.json").read_text())["add_to_classifier"]
    for opener in OPENERS:
        opened = opener.from_pretrained(str(folder), num_labels=1).eval()
        with torch.no_grad():
            found = torch.stack([opened(torch.tensor([ids])).logits[0, 0] for ids in rows])
        torch.testing.assert_close(found + add, expected, atol=1e-5, rtol=0)
    stored = read_role(folder).adapter
    assert stored is not None and stored.residual == (method if method in RESIDUAL else None)


@pytest.mark.parametrize("method", PLAIN)
def test_a_whole_classifier_gives_the_run_s_scores(tmp_path: Path, method: str) -> None:
    own = {k: v for k, v in ADAPTER.items() if k in METHODS[method].settings and (k, method) != ("targets", "ia3")}
    exported(tmp_path, adapter={"method": method} | own, to=None)
    folder = export_stage(tmp_path / "run", "reward", tmp_path / "whole", merge=not METHODS[method].copies)
    assert not (folder / "adapter_config.json").exists()
    expected = torch.tensor(load_scorer(tmp_path / "run")(ASKED, ANSWERS, [True] * 3))
    ours = torch.tensor(load_scorer(folder)(ASKED, ANSWERS, [True] * 3))
    torch.testing.assert_close(ours, expected.to(ours), atol=1e-4, rtol=0)
    assert expected.std() > 1e-3
    renderer, tokenizer = load_scorer(folder).renderer, AutoTokenizer.from_pretrained(str(folder))  # type: ignore[attr-defined]
    rows = [renderer.prompt_and_answer(a, r, True, max_tokens=24) for a, r in zip(ASKED, ANSWERS, strict=True)]
    batch = tokenizer.pad({"input_ids": [q + r for q, r in rows]}, return_tensors="pt")
    add = json.loads((folder / "scoring.json").read_text())["add_to_classifier"]
    with torch.no_grad():
        plain = AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
        found = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    torch.testing.assert_close(found + add, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("reward", "words"),
    [({"pooling": "mean"}, r"reward\.pooling is 'mean'"), ({"ensemble": 2}, "those of an ensemble")],
    ids=["mean", "ensemble"],
)
def test_what_no_classifier_can_be_is_no_whole_one(tmp_path: Path, reward: dict[str, Any], words: str) -> None:
    exported(tmp_path, to=None, **reward)
    with pytest.raises(UserError, match=rf"--stage reward: .*{words}.*export it without --merge"):
        export_stage(tmp_path / "run", "reward", tmp_path / "whole", merge=True)
    assert not (tmp_path / "whole").exists()


def test_one_of_several_processes_exports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="trivet export: is the work of one process, and the launcher started 2"):
        export_stage(tmp_path / "run", "reward", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_note_of_the_limit_is_named(tmp_path: Path) -> None:
    exported(tmp_path, to=None)
    folder = export_stage(tmp_path / "run", "reward", tmp_path / "whole", merge=True)
    (folder / "scoring.json").write_text("{}")
    with pytest.raises(UserError, match=r"scoring\.json: not as `trivet export` writes it"):
        load_scorer(folder)


@pytest.mark.parametrize(
    ("lm_pad", "pad", "spare", "expected"),
    [
        (0, "<pad>", "", "<pad>"),
        (0, "<eos>", "", "<pad>"),  # the model passes over <pad> alone: other padding would be read
        (None, "<eos>", "w30", "w30"),
        (None, "<pad>", "", "<pad>"),
    ],
)
def test_rows_padded_by_the_exported_tokenizer_have_the_run_s_scores(
    tmp_path: Path, lm_pad: int | None, pad: str, spare: str, expected: str
) -> None:
    folder = exported(tmp_path, lm_pad, pad, spare)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    assert tokenizer.pad_token == expected
    scores = torch.tensor(load_scorer(tmp_path / "run")(ASKED, ANSWERS, [True] * 3))
    ours = exported_reward(folder).renderer
    rows = [ours.prompt_and_answer(a, r, True, max_tokens=24) for a, r in zip(ASKED, ANSWERS, strict=True)]
    batch = tokenizer.pad({"input_ids": [q + r for q, r in rows]}, return_tensors="pt")
    assert (batch["attention_mask"].sum(1) < batch["input_ids"].shape[1]).any()
    add = json.loads((folder / "scoring.json").read_text())["add_to_classifier"]
    for opener in OPENERS:
        opened = opener.from_pretrained(str(folder), num_labels=1).eval()
        opened.config.pad_token_id = tokenizer.pad_token_id
        with torch.no_grad():
            found = opened(**batch).logits[:, 0]
        torch.testing.assert_close(found + add, scores, atol=1e-5, rtol=0)


def test_without_a_token_to_pad_with_a_batch_is_refused(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(exported(tmp_path, None, "<eos>")))
    with pytest.raises(ValueError, match="does not have a padding token"):
        tokenizer.pad({"input_ids": [[4], [5, 6]]}, return_tensors="pt")


def test_a_base_that_pads_with_a_stop_token_is_no_classifier(tmp_path: Path) -> None:
    """It would read each row, even one alone, at the token before its stop."""
    folder = exported(tmp_path, lm_pad=2)
    for opener in OPENERS:
        with pytest.raises(RuntimeError, match=r"ignore_mismatched_sizes|size mismatch"):
            opener.from_pretrained(str(folder), num_labels=1)
    assert "add_to_classifier" not in json.loads((folder / "scoring.json").read_text())
    ours, theirs = (load_scorer(place)(ASKED, ANSWERS, [True] * 3) for place in (tmp_path / "run", folder))
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours))


@pytest.mark.parametrize("reward", [{"pooling": "mean"}, {"ensemble": 2}], ids=["mean", "ensemble"])
def test_what_no_classifier_can_be_is_not_opened_as_one(tmp_path: Path, reward: dict[str, Any]) -> None:
    folder = exported(tmp_path, **reward)
    ours, theirs = (load_scorer(place)(ASKED, ANSWERS, [True] * 3) for place in (tmp_path / "run", folder))
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours))
    for place in [folder, *folder.glob("members/*/adapter")]:
        for opener in OPENERS:
            with pytest.raises(RuntimeError, match=r"ignore_mismatched_sizes|size mismatch"):
                opener.from_pretrained(str(place), num_labels=1)


def test_a_score_that_is_not_the_head_beside_it_is_refused(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.score.weight"] += 1
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"score\.weight is not the head in .*export anew"):
        load_scorer(folder)
