"""What ``trivet data check`` finds in files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.checks import check_files
from data.common.errors import UserError
from data.source_settings import Source
from data.storage import store
from tests.conftest import word_tokenizer

SHARED = Path(__file__).parents[2].parent / "shared"


def write(path: Path, rows: list) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def test_counts_lengths_bad_rows_and_duplicates(tmp_path):
    ranked = {"prompt": "q one", "responses": ["longer", "no", "longer"]}
    rows = [ranked, "{", {"prompt": "q two", "completion": "yes"}, ranked, {"x": 1}, {"prompt": "q one"}]
    file = write(tmp_path / "a.jsonl", rows)
    found = check_files([file]).files[0]
    assert found.rows == 6
    assert found.formats == {"ranked answers": 2, "prompt and completion": 1, "prompts": 1}
    assert [b.source for b in found.bad] == [f"{file}:2", f"{file}:5"] and "not JSON" in found.bad[0].reason
    assert found.usable == {"demonstrations": 3, "rankings": 2, "prompts": 4, "documents": 4}
    assert found.duplicates == ((f"{file}:4", f"{file}:1"),) and found.repeated_prompts == 2
    assert found.notes == {"repeated responses dropped": 2}
    assert found.answers == {1: 1, 2: 2} and found.longer_is_better == 1.0
    prompt = found.characters["prompt"]
    assert (prompt.count, prompt.mean, prompt.median, prompt.longest) == (4, 5.0, 5.0, 5) and not found.tokens
    assert json.dumps(check_files([file]).as_dict()) and not check_files([file]).clean


def test_overlaps_between_files_are_named(tmp_path):
    one = write(
        tmp_path / "a.jsonl", [{"prompt": "Same  question", "completion": "x"}, {"prompt": "own", "completion": "y"}]
    )
    two = write(tmp_path / "b.txt", ["something", "else"])
    three = write(tmp_path / "c.jsonl", [{"prompt": "new"}, {"prompt": "same question"}])
    [overlap] = check_files([one, two, three]).overlaps
    assert (overlap.first, overlap.second, overlap.shared) == (str(one), str(three), 1)
    assert overlap.examples == ((f"{one}:1", f"{three}:2"),)
    assert check_files([one, two]).clean
    assert check_files([two]).files[0].usable["prompts"] == 2  # a text file's lines serve as prompts


def test_mistakes(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"question": "x"}])
    with pytest.raises(
        UserError, match=r"no row fits a known format.*Columns found: question\. Known: .*prompt, completion"
    ):
        check_files([file])
    with pytest.raises(UserError, match=r"is not there.*Did you mean 'a\.jsonl'"):
        check_files([tmp_path / "a.json"])
    with pytest.raises(UserError, match="there is no folder"):
        check_files([write(tmp_path / "b.jsonl", [{"prompt": "x"}])], tokenizer=tmp_path / "none")
    with pytest.raises(UserError, match="holds none that loads"):
        check_files([tmp_path / "b.jsonl"], tokenizer=tmp_path)


@pytest.mark.real_data
def test_real_overlap_and_token_counts():
    train = SHARED / "data/ready/ranked/pandalm_human.train.jsonl.gz"
    held = SHARED / "data/ready/prompts/self_instruct_252.all.jsonl.gz"
    model = SHARED / "models/stories260K"
    if not (train.is_file() and held.is_file() and model.is_dir()):
        pytest.skip("the files are not beside the checkout")
    found = check_files([train, held], tokenizer=model)
    assert found.overlaps[0].shared == 65  # PandaLM's prompts come from the other file
    assert found.files[0].tokens["answer"].count == found.files[0].characters["answer"].count == 220


def test_roles_turns_scripts_columns_beside_and_doubts(tmp_path):
    rows = [{"id": i, "prompt": f"什么是水 {i}？", "chosen": "一种液体", "rejected": "不知道"} for i in range(4)]
    rows += [{"id": 9, "prompt": "什么是水 0？", "chosen": "不知道", "rejected": "一种液体"}]
    file = write(tmp_path / "a.jsonl", rows)
    found = check_files([file]).files[0]
    assert (found.roles, found.turns) == ({"assistant": 10, "user": 5}, {2: 5})
    assert found.unread == {"id": 5} and found.scripts == {"Han": 5} and found.languages == {"zh": 5}
    [doubt] = [f for f in found.findings if f.kind == "contradiction"]
    assert doubt.places == (f"{file}:5",) and f"the first is {file}:5, against {file}:1" in doubt.text


def test_files_that_nearly_share_prompts(tmp_path):
    asked = [f"Explain in your own words how machine number {i * 7919} works" for i in range(12)]
    one = write(tmp_path / "a.jsonl", [{"prompt": p, "completion": "x"} for p in asked])
    two = write(
        tmp_path / "b.jsonl", [{"prompt": p + "!"} for p in asked[:5]] + [{"prompt": asked[7]}, {"prompt": "x"}]
    )
    found = check_files([one, two])
    [overlap] = found.overlaps
    assert (overlap.shared, overlap.nearly) == (1, 5)
    assert overlap.near_examples[0] == (f"{one}:1", f"{two}:1") and not found.clean


def test_a_file_of_one_group_is_told(tmp_path):
    turns = [
        {
            "messages": [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi"},
                {"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": "a"},
            ]
        }
        for i in range(3)
    ]
    found = check_files([write(tmp_path / "a.jsonl", turns)]).files[0]
    assert [f.kind for f in found.findings if f.kind == "one group"] == ["one group"]


def test_settings_of_how_files_are_read(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"question": "q", "completion": "a", "remark": "long text"}])
    reading = Source(path="-", columns={"prompt": "question"}, ignore=("remark",))
    assert check_files([file], reading=reading).clean
    with pytest.raises(UserError, match="no row fits a known format"):
        check_files([file])


def test_many_bad_rows_and_judgements_lie_on_disk_and_are_all_told(tmp_path, monkeypatch):
    thumbs = [{"prompt": f"q {i // 2}", "completion": f"a {i}", "label": i % 2 == 0} for i in range(20)]
    rows = [{"prompt": "x", "completion": "y"}, *({"x": i} for i in range(30)), *thumbs]
    file = write(tmp_path / "a.jsonl", rows)
    few = check_files([file])
    monkeypatch.setattr(store, "IN_MEMORY", 3)
    many = check_files([file])
    assert isinstance(many.files[0].bad, store.Store) and many.files[0].bad.file is not None
    assert many.as_dict() == few.as_dict() and json.dumps(many.as_dict())
    assert [row.source for row in many.files[0].bad] == [f"{file}:{i}" for i in range(2, 32)]
    assert many.files[0].usable["rankings"] == 10


def test_a_link_to_nothing_is_named_with_its_target_wherever_a_file_is_given(tmp_path, capsys):
    from pipelines.cli.main import main

    link = tmp_path / "rows.jsonl"
    link.symlink_to("gone.jsonl")
    recipe = tmp_path / "r.yaml"
    recipe.symlink_to("gone.yaml")
    for command in (
        ["data", "check", str(link)],
        ["data", "fix", str(link), "--out", str(tmp_path / "out.jsonl")],
        ["init", str(link), "--base", "gpt2", "--out", str(tmp_path / "new.yaml")],
        ["score", str(tmp_path), str(link)],
    ):
        assert main(command) == 2
        assert f"{link} is a link to gone.jsonl, which is not there" in capsys.readouterr().err, command
    assert main(["plan", str(recipe)]) == 2
    assert "is a link to gone.yaml, which is not there" in capsys.readouterr().err


def test_special_tokens_in_texts_are_found_by_the_tokenizer(tmp_path):
    tokenizer = word_tokenizer()
    rows = [{"prompt": "w1 <eos> w2", "completion": "w3"}, {"prompt": "w4", "completion": "w5"}]
    file = write(tmp_path / "a.jsonl", rows)

    def told(**more):
        return [f for f in check_files([file], **more).files[0].findings if f.kind == "special token"]

    assert [(f.count, f.places) for f in told(tokenizer=tokenizer)] == [(1, (f"{file}:1",))]
    assert told() == []
