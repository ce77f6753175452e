"""What ``trivet data check`` finds in files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.checks import check_files
from data.common.errors import UserError

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


def test_longer_is_better_in_the_unit_that_it_says():
    """One file for which characters and words say the opposite."""
    from data.checks import _longer_is_better
    from data.formats import Row

    rows = [
        Row(answers=("extraordinarily", "a b c d"), ranks=(0, 1)),
        Row(answers=("same one", "one same"), ranks=(0, 0)),
    ]
    assert _longer_is_better(rows, lambda texts: [len(t) for t in texts]) == 1.0
    assert _longer_is_better(rows, lambda texts: [len(t.split()) for t in texts]) == 0.0
    assert _longer_is_better([], lambda texts: [1 // 0]) is None
