"""Splits by group for all stages at once; nothing held out is in any training part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.common.errors import UserError
from data.records import normalise
from data.sources import DataConfig
from data.splits import PARTS, Corpus, is_held_out, load_corpus

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
STABLE = [
    "1",
    "3",
    "5",
    "7",
    "9",
]  # written down once: a changed hash would mix old runs' held-out prompts into training


def corpus(folder: Path, seed: int = 0, **config) -> Corpus:
    return load_corpus(DataConfig(**config), seed=seed, base_dir=folder)


def write(folder: Path, name: str, rows: list) -> str:
    text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
    (folder / name).write_text(text, encoding="utf-8")
    return name


def demos(count: int = 200, first: int = 0) -> list[dict]:
    return [{"prompt": f"question number {i}", "completion": f"answer {i}"} for i in range(first, first + count)]


def questions(records) -> set[str]:
    return {getattr(r, "prompt", r).text for r in records}


def headless(name: str) -> dict:
    return {"path": name, "header": False}


def test_share_is_stable_and_grows():
    groups = [str(i) for i in range(4000)]
    held = [{g for g in groups if is_held_out(g, share)} for share in (0.0, 0.1, 0.3)]
    assert not held[0] and held[1] < held[2]
    assert 320 < len(held[1]) < 480 and 1080 < len(held[2]) < 1320
    assert [g for g in groups[:12] if is_held_out(g, 0.3)] == STABLE


def test_same_prompt_is_on_the_same_side_in_every_part(tmp_path):
    rankings = [{"prompt": f" Question  NUMBER {i}", "responses": ["a", "b"]} for i in range(100, 300)]
    found = corpus(
        tmp_path,
        demonstrations=write(tmp_path, "d.jsonl", demos()),
        rankings=write(tmp_path, "r.jsonl", rankings),
        held_out=0.25,
    )
    held = {normalise(q) for part in PARTS[1:] for q in questions(getattr(found, part).held_out)}
    train = {normalise(q) for part in PARTS[1:] for q in questions(getattr(found, part).train)}
    assert held and train and not held & train
    assert len(found.prompts) == 400 and len(found.demonstrations) == len(found.rankings) == 200
    groups = {d.group for d in found.documents.held_out}
    assert groups and not groups & {d.group for d in found.documents.train}
    assert len(found.documents) == 600  # every answer in a transcript of its own


def test_split_and_fingerprints_do_not_depend_on_seed_folder_or_name(tmp_path):
    one = corpus(tmp_path, demonstrations=write(tmp_path, "d.jsonl", demos()))
    (tmp_path / "else").mkdir()
    two = corpus(tmp_path / "else", seed=9, demonstrations=write(tmp_path / "else", "x.jsonl", demos()))
    assert [one.fingerprint(p) for p in (*PARTS, "held_out")] == [two.fingerprint(p) for p in (*PARTS, "held_out")]
    changed = demos()
    changed[0]["completion"] = "other"
    three = corpus(tmp_path, demonstrations=write(tmp_path, "d.jsonl", changed))
    assert three.fingerprint("demonstrations") != one.fingerprint("demonstrations")
    assert three.fingerprint("prompts") == one.fingerprint("prompts")
    more = corpus(tmp_path, demonstrations="d.jsonl", held_out=0.2)
    assert more.fingerprint("held_out") != three.fingerprint("held_out")
    with pytest.raises(ValueError, match="no part"):
        one.fingerprint("demos")


def test_promptless_rankings_that_share_an_answer_keep_together(tmp_path):
    rows = [f"good {i}\tbad {i}\tworse {i}" for i in range(60)]
    rows += [f"link {i}\tLINK  {i + 1}" for i in range(40)]  # a chain: all of it is one group
    found = corpus(tmp_path, rankings=headless(write(tmp_path, "r.tsv", rows)), held_out=0.3)
    sides = [
        {normalise(a) for r in side for a in r.answers} for side in (found.rankings.train, found.rankings.held_out)
    ]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len({r.prompt.group for r in (*found.rankings.train, *found.rankings.held_out)}) == 61
    assert {normalise(d.text) for d in found.documents.train} == sides[0]
    backwards = corpus(tmp_path, rankings=headless(write(tmp_path, "r.tsv", rows[::-1])), held_out=0.3)
    assert {r.answers for r in backwards.rankings.held_out} == {r.answers for r in found.rankings.held_out}


def test_text_of_a_promptless_ranking_in_another_file_goes_with_it(tmp_path):
    write(tmp_path, "r.tsv", [f"good {i}\tbad {i}" for i in range(100)])
    write(tmp_path, "t.txt", [f"GOOD {i}" for i in range(100)])
    found = corpus(tmp_path, rankings=headless("r.tsv"), documents="t.txt", held_out=0.3)
    held = {normalise(a) for r in found.rankings.held_out for a in r.answers}
    assert {normalise(d.text) for d in found.documents.held_out} == {h for h in held if h.startswith("good")}


def test_documents_with_a_held_out_prompt_are_held_out(tmp_path):
    openings = [f"Once upon a time there lived dragon number {i} in a cave." for i in range(100)]
    stories = [f"Preface. {o} It slept.".replace("dragon", "Dragon") for o in openings]
    write(tmp_path, "p.jsonl", [{"prompt": o} for o in openings])
    write(tmp_path, "t.jsonl", [{"text": s} for s in stories])
    found = corpus(tmp_path, prompts="p.jsonl", documents="t.jsonl", held_out=0.3)
    for prompt in found.prompts.held_out:
        assert not any(prompt.text.casefold() in d.text.casefold() for d in found.documents.train)
    assert len(found.documents.held_out) >= len(found.prompts.held_out) and found.documents.train
    assert any("contain a held-out prompt" in note for note in found.notes)


def test_held_out_file_of_prompts(tmp_path):
    write(tmp_path, "d.jsonl", demos())
    write(tmp_path, "h.txt", ["question NUMBER 7", "question number 9", "a question of its own", "question number 9"])
    found = corpus(tmp_path, demonstrations="d.jsonl", held_out="h.txt")
    assert questions(found.demonstrations.held_out) == {"question number 7", "question number 9"}
    assert [p.text for p in found.prompts.held_out] == [
        "question NUMBER 7",
        "question number 9",
        "a question of its own",
    ]
    assert len(found.demonstrations.train) == len(found.prompts.train) == 198
    with pytest.raises(UserError, match=r"Did you mean 'h\.txt'"):
        corpus(tmp_path, demonstrations="d.jsonl", held_out="hh.txt")


def test_named_groups_keep_together_and_their_leaks_are_named(tmp_path):
    rows = [{**row, "topic": i // 10} for i, row in enumerate(demos())]
    found = corpus(tmp_path, demonstrations=write(tmp_path, "d.jsonl", rows), group_by="topic", held_out=0.3)
    assert {d.prompt.group for d in found.demonstrations.held_out}.isdisjoint(
        d.prompt.group for d in found.demonstrations.train
    )
    rows += [{**row, "topic": f"again {i}"} for i, row in enumerate(demos())]
    write(tmp_path, "d.jsonl", rows)
    with pytest.raises(
        UserError, match=r"leak: the prompt of d\.jsonl:\d+ .*held out, at d\.jsonl:\d+.*question number"
    ):
        corpus(tmp_path, demonstrations="d.jsonl", group_by="topic", held_out=0.3)


def test_nothing_left_to_train_on_is_an_error(tmp_path):
    write(tmp_path, "d.jsonl", demos(1))
    write(tmp_path, "h.txt", ["question number 0"])
    with pytest.raises(UserError, match=r"data\.demonstrations: all 1 records are held out.*cover them all"):
        corpus(tmp_path, demonstrations="d.jsonl", held_out="h.txt")


def test_prompts_are_distinct_and_default_to_the_others(tmp_path):
    write(tmp_path, "d.jsonl", demos(30) + demos(30))
    assert len(corpus(tmp_path, demonstrations="d.jsonl").prompts) == 30
    write(tmp_path, "p.txt", ["x one", "x two", "x one"])
    found = corpus(tmp_path, demonstrations="d.jsonl", prompts="p.txt", held_out=0.0)
    assert [p.text for p in found.prompts.train] == ["x one", "x two"] and not found.prompts.held_out
    assert found.notes == {"repeated prompts dropped": 1}


def one_of_each(count: int, **columns) -> list[dict]:
    return [{"prompt": f"question number {i}"} | {k: f"{v} {i}" for k, v in columns.items()} for i in range(count)]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("derived", [False, True])
def test_a_repeated_prompt_has_the_columns_of_all_its_rows(tmp_path, derived, turned):
    """Of two files with the same prompts one has an answer, null in one row, and the other a level."""
    with_answer, with_level = one_of_each(9, answer="a"), one_of_each(9, level="l")
    with_answer[4]["answer"] = with_level[4]["answer"] = None
    for name, rows in (("a", with_answer), ("l", with_level)):
        more = {"responses": ["x", "y"]} if name == "a" else {"completion": "x"}
        write(tmp_path, f"{name}.jsonl", [row | (more if derived else {}) for row in rows])
    if derived:
        parts = {"rankings": "a.jsonl", "demonstrations": "l.jsonl"}
    else:
        parts = {"prompts": ["l.jsonl", "a.jsonl"] if turned else ["a.jsonl", "l.jsonl"]}
    config = DataConfig(**parts, held_out=0.0)
    for known in (["answer", "level"], *([] if derived else [["*"], None])):
        found = load_corpus(config, seed=0, base_dir=tmp_path, known=known)
        columns = [p.columns for p in found.prompts.train]
        assert [c["answer"] for c in columns] == [None if i == 4 else f"a {i}" for i in range(9)]
        assert [c["level"] for c in columns] == [f"l {i}" for i in range(9)]
        assert all(c.keys() == columns[0].keys() for c in columns)
        assert not any("differ" in remark for remark in found.remarks)


def test_columns_that_nobody_reads_change_no_key(tmp_path):
    """What is taken of other rows is what a function asks for: the columns of a run without one stay as they were."""
    plain, more = one_of_each(9), one_of_each(9, answer="a")
    config = DataConfig(prompts=(write(tmp_path, "p.jsonl", plain), write(tmp_path, "q.jsonl", more)), held_out=0.0)
    alone = DataConfig(prompts=("p.jsonl",), held_out=0.0)
    both = [load_corpus(config, seed=0, base_dir=tmp_path, known=known) for known in ([], ["level"], ["answer"])]
    before = load_corpus(alone, seed=0, base_dir=tmp_path)
    assert {c.fingerprint("prompts") for c in both} == {before.fingerprint("prompts")}
    prints = [c.columns_fingerprint("prompts") for c in both]
    assert prints[0] == prints[1] == before.columns_fingerprint("prompts") != prints[2]


def test_rows_of_one_prompt_that_differ_in_a_column_are_counted_and_the_first_is_told(tmp_path):
    rows = [row for pair in zip(one_of_each(9, answer="a"), one_of_each(9, answer="b"), strict=True) for row in pair]
    rows[0] = rows[1]  # the first prompt's rows are the same
    config = DataConfig(prompts=(write(tmp_path, "p.jsonl", rows),), held_out=0.0)
    found = load_corpus(config, seed=0, base_dir=tmp_path, known=["answer"])
    assert found.prompts.train[1].columns["answer"] == "a 1"
    assert found.notes == {"repeated prompts dropped": 9, "repeated prompts whose rows differ in a column": 8}
    assert found.remarks == (
        "repeated prompts whose rows differ in a column, of which the first row's value is used: 8, "
        "the first in 'answer' of p.jsonl:3 and of p.jsonl:4",
    )
    assert not load_corpus(config, seed=0, base_dir=tmp_path, known=["level"]).remarks
    ranked = [row | {"responses": ["x", f"y {n}"]} for n, row in enumerate(rows)]
    config = DataConfig(rankings=(write(tmp_path, "r.jsonl", ranked),), held_out=0.0)
    assert load_corpus(config, seed=0, base_dir=tmp_path, known=["answer"]).notes == {
        "repeated prompts whose rows differ in a column": 8
    }
    ranked = [{"prompt": row["prompt"], "responses": row["responses"]} for row in ranked]
    write(tmp_path, "r.jsonl", ranked)
    assert not load_corpus(config, seed=0, base_dir=tmp_path, known=["*"]).remarks  # responses differ, as they must


def test_demo_world_holds_out_combinations(tmp_path):
    found = corpus(
        tmp_path,
        demonstrations="demo-task?rows=300",
        prompts="demo-task?rows=600",
        documents="demo-task?rows=800",
        held_out=0.125,
    )
    train = {d.group for d in found.documents.train} | {d.prompt.group for d in found.demonstrations.train}
    train |= {p.group for p in found.prompts.train}
    held = {p.group for p in found.prompts.held_out}
    assert held and not held & train
    assert found.documents.held_out and found.demonstrations.held_out


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("file", "rankings"), [("raw/reviews_ranked4_zh.tsv", 2091), ("raw/hh_harmless_base.jsonl.gz", 1908)]
)
def test_real_rankings_split_with_their_text(file, rankings):
    if not (SHARED / file).is_file():
        pytest.skip(f"{file} is not beside the checkout")
    found = corpus(SHARED, rankings=headless(file) if file.endswith(".tsv") else file)
    assert len(found.rankings) == rankings and 0.07 < len(found.rankings.held_out) / rankings < 0.13
    assert not {d.group for d in found.documents.train} & {r.prompt.group for r in found.rankings.held_out}
    held = {normalise(a) for r in found.rankings.held_out for a in r.answers if not r.prompt.messages}
    assert not held & {normalise(d.text) for d in found.documents.train}


@pytest.mark.real_data
def test_real_training_file_with_an_evaluation_file_held_out():
    train, held = "ready/ranked/alpacaeval2_gpt4judge.train.jsonl.gz", "ready/prompts/self_instruct_252.all.jsonl.gz"
    if not (SHARED / train).is_file():
        pytest.skip(f"{train} is not beside the checkout")
    found = corpus(SHARED, rankings=train, held_out=held)
    assert len(found.prompts.held_out) == 252 and len(found.rankings.held_out) > 100
    assert not {normalise(q) for q in questions(found.rankings.train)} & {
        normalise(q) for q in questions(found.prompts.held_out)
    }
