"""``trivet score`` on models that are no run: a sequence classifier, an exported reward adapter."""

from __future__ import annotations

import io
import json
import sys
import urllib.request

import pytest
import torch

from data.common.errors import UserError
from data.template import Renderer
from pipelines.cli.main import main
from pipelines.cli.serve_reward import scorer_of
from pipelines.run.score import OfRewardModel, load_scorer, score_file
from reward.model import RewardModel
from reward.terms.server import serving
from tests.conftest import ADAPTER, WORDS, make_base, randomise, word_tokenizer
from tests.support.classifiers import save_classifier

ROWS = [("w1 w2", "w3"), ("w1", "w4 w5 w6 w7"), ("w2", "w8 w9"), ("w3", "w8 w1")]


def answers_file(folder):
    file = folder / "answers.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "response": a}) + "\n" for p, a in ROWS))
    return file


def test_a_classifier_scores_each_answer_as_it_does_alone(tmp_path):
    model = save_classifier(tmp_path / "model")
    assert score_file(tmp_path / "model", answers_file(tmp_path), tmp_path / "out.jsonl") == len(ROWS)
    found = [json.loads(line)["reward"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    tokenizer = word_tokenizer()
    for (prompt, answer), score in zip(ROWS, found, strict=True):
        ids = tokenizer(prompt, answer, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert model(input_ids=ids).logits.item() == pytest.approx(score, abs=1e-5)


def test_one_of_several_labels_is_named_and_scored_by_its_odds(tmp_path):
    model = save_classifier(tmp_path, ("class0", "class1", "class2"))
    with pytest.raises(UserError, match="has 3 labels; name the one to score by `label`"):
        load_scorer(tmp_path)
    with pytest.raises(UserError, match=r"no such label.*class1"):
        load_scorer(tmp_path, "clas1")
    found = load_scorer(tmp_path, "class1")([[]], ["w5 w6"], [True])[0]
    with torch.no_grad():
        p = model(input_ids=word_tokenizer()("w5 w6", return_tensors="pt")["input_ids"]).logits.softmax(-1)[0, 1].item()
    assert found == pytest.approx(torch.logit(torch.tensor(p)).item(), abs=1e-4)


def test_too_long_and_nothing_at_all(tmp_path):
    save_classifier(tmp_path / "model")
    with pytest.raises(UserError, match="40 tokens, the model takes 32"):
        load_scorer(tmp_path / "model")([[]], ["w1 " * 40], [True])
    with pytest.raises(UserError, match="neither a run"):
        load_scorer(tmp_path)


def test_columns_of_other_names_are_mapped(tmp_path):
    from data.source_settings import Source
    from pipelines.run.score import answers_in

    (tmp_path / "a.csv").write_text("question,reply,note\nWhat is ice?,Frozen water,a remark\n")
    reading = Source(path="-", columns={"prompt": "question", "completion": "reply"}, ignore=("note",))
    [(prompt, answer, finished)] = answers_in(tmp_path / "a.csv", reading)
    assert (prompt.text, answer, finished) == ("What is ice?", "Frozen water", True)


def test_rows_that_cannot_be_scored_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "pipelines.run.score.load_scorer", lambda *_: lambda asked, answers, ended: [float(len(a)) for a in answers]
    )
    file, rows = (
        tmp_path / "a.jsonl",
        [("a", "bcd"), ("a", ""), ("c", None), ("d", "ef"), *(("e", "") for _ in range(4))],
    )
    lines = [json.dumps({"prompt": p, "completion": a}) for p, a in rows]
    file.write_text("\n".join([*lines, '{"prompt": "broken']))
    told: list[str] = []
    assert score_file("model", file, tmp_path / "out.jsonl", say=told.append) == 2
    assert [json.loads(line)["reward"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [3.0, 2.0]
    assert [t.split(":")[:3] for t in told[:2]] == [["not scored", " a.jsonl", n] for n in ("2", "3")]
    assert told[5].startswith("warning: 7 of 9 rows cannot be scored, 2 of them not shown") and len(told) == 6


def test_rows_that_the_models_limit_cuts_are_told_and_marked(tmp_path, monkeypatch):
    """In the terminal, in the file, and by a server: their scores are those of what is left of them."""
    base = make_base()
    base.add_role("reward", ADAPTER, head=True)
    randomise(base, "reward", 1)
    model = RewardModel(base=base, role="reward", renderer=Renderer(base.tokenizer, template="dialogue"), max_tokens=12)
    monkeypatch.setattr("pipelines.run.score.load_scorer", lambda *_: OfRewardModel(model))
    rows = [("w1", "w2 w3"), ("w1", "w2 " * 20), ("w1 " * 20, "w2"), ("w1", "w4")]
    file, told = tmp_path / "a.jsonl", list[str]()
    file.write_text("".join(json.dumps({"prompt": p, "completion": a.strip()}) + "\n" for p, a in rows))
    score_file("model", file, tmp_path / "out.jsonl", say=told.append)
    assert [json.loads(line).get("cut", False) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        False, True, True, False
    ]  # fmt: skip
    assert len(told) == 1 and told[0].startswith("warning: 2 of 4 rows are longer than the 12 tokens that the reward")
    assert told[0].endswith("the first is a.jsonl:2")
    with serving(scorer_of("model")) as address:
        for some, cut in ((rows, {"cut": [1, 2]}), (rows[:1], {})):
            sent = json.dumps({"rows": [{"prompt": p, "completion": a} for p, a in some]}).encode()
            request = urllib.request.Request(address, sent, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request) as found:
                said = json.load(found)
            assert len(said.pop("scores")) == len(some) and said == cut


def test_rows_that_an_exported_classifier_s_limit_cuts_are_told_and_marked(tmp_path):
    """A folder of `trivet export --merge`: a plain classifier, with the limit of its run beside it."""
    folder = tmp_path / "model"
    save_classifier(folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    scoring = {"max_tokens": 12, "stop_ids": [WORDS.index("<eos>")], "add_to_classifier": 0.0}
    (folder / "scoring.json").write_text(json.dumps(scoring))
    rows = [("w1", "w2 w3"), ("w1", "w2 " * 20), ("w1 " * 20, "w2"), ("w1", "w4")]
    file, told = tmp_path / "a.jsonl", list[str]()
    file.write_text("".join(json.dumps({"prompt": p, "completion": a.strip()}) + "\n" for p, a in rows))
    score_file(folder, file, tmp_path / "out.jsonl", say=told.append)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row.get("cut", False) for row in found] == [False, True, True, False]
    assert len(told) == 1 and told[0].startswith("warning: 2 of 4 rows are longer than the 12 tokens that the reward")
    rewards = [row["reward"] for row in found]
    sent = [{"completion": a, "messages": [{"role": "user", "content": p}], "finished": True} for p, a in rows]
    assert scorer_of(str(folder)).with_cuts(sent) == (pytest.approx(rewards, abs=1e-5), [1, 2])  # type: ignore[attr-defined]


def test_words_that_the_model_has_no_token_for_are_told(tmp_path, monkeypatch):
    base = make_base()
    base.add_role("reward", ADAPTER, head=True)
    model = RewardModel(base=base, role="reward", renderer=Renderer(base.tokenizer, template="dialogue"))
    monkeypatch.setattr("pipelines.run.score.load_scorer", lambda *_: OfRewardModel(model))
    for words, said in (("w2 w3 w4", False), ("Wort w3 w4", True)):
        file, told = tmp_path / "a.jsonl", list[str]()
        file.write_text(json.dumps({"prompt": "w1", "completion": words}) + "\n")
        score_file("model", file, tmp_path / f"{said}.jsonl", say=told.append)
        assert told == [] if not said else told[0].startswith("warning: in the rows 1 of ")


def test_a_file_that_is_there_is_kept_and_the_input_never_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "pipelines.run.score.load_scorer", lambda *_: lambda asked, answers, ended: [1.0] * len(answers)
    )
    file, out, told = answers_file(tmp_path), tmp_path / "out.jsonl", list[str]()
    before = file.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(file)
    for same in (file, tmp_path / "link.jsonl"):
        with pytest.raises(UserError, match="is the file that is scored"):
            score_file("model", file, same)
    out.write_text("of yesterday")
    score_file("model", file, out, say=told.append)
    assert (tmp_path / ".out.jsonl.previous").read_text() == "of yesterday" and file.read_bytes() == before
    assert told == ["out.jsonl: another one was there; it is kept as .out.jsonl.previous"]


@pytest.mark.parametrize("charset", ["ascii", "latin-1", "utf-8"])
def test_standard_output_is_the_same_json_in_any_character_set(tmp_path, monkeypatch, charset):
    """A locale without the response's characters (LC_ALL=C, a Windows console) stops nothing."""
    rows = [{"prompt": "你好", "completion": "≥ 汉字 🦊 é"}]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr("pipelines.run.score.load_scorer", lambda *_: lambda asked, responses, ended: [1.0])
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=charset))
    assert main(["score", "model", str(file)]) == 0
    sys.stdout.flush()
    assert json.loads(raw.getvalue().decode(charset)) == {"prompt": "你好", "answer": "≥ 汉字 🦊 é", "reward": 1.0}


def test_other_text_that_the_locale_cannot_hold_is_escaped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "汉字").mkdir()
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["ls", "汉字"]) == 0
    sys.stdout.flush()
    assert raw.getvalue() == b"no runs in \\u6c49\\u5b57\n"
