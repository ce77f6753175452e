"""A source with settings of its own: each acts, what cannot act is refused, and rows are counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from data.common.errors import UserError
from data.source_settings import DataConfig, Source
from data.sources import load_records
from data.splits import load_corpus
from data.where import WhereError, where


def rows(folder: Path, name: str, made: list[dict]) -> str:
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in made), encoding="utf-8")
    return name


def some(count: int = 20) -> list[dict]:
    return [{"prompt": f"q{i}", "completion": f"a{i}", "score": i, "lang": ["de", "en"][i % 2]} for i in range(count)]


def load(folder: Path, kind: str = "demonstrations", seed: int = 0, **settings):
    return load_records([Source(**settings)], kind, DataConfig(), seed=seed, base_dir=folder)


def answers(loaded) -> list[str]:
    return [d.answer for d in loaded.records]


def test_columns_format_and_ignore(tmp_path):
    name = rows(tmp_path, "a.jsonl", [{"ask": "q", "reply": "a", "prompt": "other"}])
    loaded = load(tmp_path, path=name, ignore=["prompt"], columns={"prompt": "ask", "completion": "reply"})
    assert [(d.prompt.text, d.answer) for d in loaded.records] == [("q", "a")]
    with pytest.raises(UserError, match=r"columns.prompt: no row has a column 'aks'. Did you mean 'ask'"):
        load(tmp_path, path=name, columns={"prompt": "aks"})
    name = rows(tmp_path, "b.jsonl", [{"prompt": "q", "completion": "a", "text": "t"}])
    with pytest.raises(UserError, match=r"columns that nothing reads: prompt .*ignore: \[prompt, completion\]"):
        load(tmp_path, "documents", path=name, format="text")
    pasted = load(tmp_path, "documents", path=name, format="text", ignore=["prompt", "completion"])
    assert pasted.records[0].text == "t"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("score > 17", [18, 19]),
        ("score >= 3 and score < 6 and lang == 'en'", [3, 5]),
        ("score in [1, 4] or row['score'] == 19", [1, 4, 19]),
        ("not score > 1", [0, 1]),
        ("17 < score != 18", [19]),
        ("'9' in completion", [9, 19]),
    ],
)
def test_where(tmp_path, text, kept):
    loaded = load(tmp_path, path=rows(tmp_path, "a.jsonl", some()), where=text)
    assert answers(loaded) == [f"a{i}" for i in kept]
    assert (loaded.counts[0].read, loaded.counts[0].where, loaded.counts[0].used) == (20, 20 - len(kept), len(kept))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("keep", "acf"),
        ("not keep", "bdeg"),
        ("keep and score > 8", "ac"),
        ("score > '9'", "c"),
        ("score >= '9' or keep", "abcf"),
        ("day > '2024-01-09'", "ceg"),
    ],
)
def test_where_reads_the_words_of_tables_as_truth_values_and_numbers(tmp_path, text, kept):
    table = [
        "prompt,completion,keep,score,day",
        *("q,a,True,9,2024-01-09", "q,b,False,9,2024-01-02", "q,c,yes,10,2024-01-10", "q,d,no,8,2024-01-01"),
        *("q,e,0,,2024-02-01", "q,f,1,,2023-12-31", "q,g,,7,2025-01-01"),
    ]
    (tmp_path / "a.csv").write_text("\n".join(table) + "\n")
    found = load(tmp_path, path="a.csv", where=text, ignore=["keep", "score", "day"])
    assert "".join(sorted(answers(found))) == kept


def test_a_truth_value_is_no_number_to_an_order(tmp_path):
    assert where("s > -1")({"s": 1}) and not where("s > -1")({"s": True}) and where("s")({"s": True})


def test_where_reads_the_text_of_tables_as_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion,score,ok\nq,a,10,True\nr,b,9,False\ns,c,,true\n")
    assert answers(load(tmp_path, path="a.csv", where="score > 9", ignore=["ok"])) == ["a"]
    assert sorted(answers(load(tmp_path, path="a.csv", where="ok == true"))) == ["a", "c"]


@pytest.mark.parametrize(
    "text", ["f(score)", "score.x", "__import__('os')", "[x for x in y]", "1 == 1", "score >", "a := 1"]
)
def test_where_runs_no_code(text):
    with pytest.raises(WhereError):
        where(text)


def test_weight_and_limit_draw_by_seed_and_content(tmp_path):
    name = rows(tmp_path, "a.jsonl", some())
    half = load(tmp_path, path=name, weight=0.5)
    assert len(half.records) == 10 and half.counts[0].not_sampled == 10
    assert answers(half) == answers(load(tmp_path, path=name, weight=0.5))
    assert answers(half) != answers(load(tmp_path, path=name, weight=0.5, seed=1))
    few = answers(load(tmp_path, path=name, weight=0.5, limit=3))
    assert len(few) == 3 and set(few) < set(answers(half))
    back = rows(tmp_path, "b.jsonl", some()[::-1])  # the order of the rows is no matter
    assert set(answers(load(tmp_path, path=back, limit=3))) == set(few)


def test_encoding_delimiter_and_header(tmp_path):
    (tmp_path / "a.csv").write_bytes("frage:antwort\nwo?:dört\n".encode("latin-1"))
    loaded = load(
        tmp_path, path="a.csv", encoding="latin-1", delimiter=":", columns={"prompt": "frage", "completion": "antwort"}
    )
    assert answers(loaded) == ["dört"]
    (tmp_path / "b.tsv").write_text("good\tbad\n")
    assert load(tmp_path, "rankings", path="b.tsv", header=False).records[0].answers == ("good", "bad")
    assert answers(load(tmp_path, path="b.tsv", header=["prompt", "completion"])) == ["bad"]
    with pytest.raises(UserError, match=r"none of its 0 rows.*write {path: b.tsv, header: false}"):
        load(tmp_path, "rankings", path="b.tsv")


def test_a_table_of_texts_and_counts_is_no_ranking(tmp_path):
    (tmp_path / "a.tsv").write_text("fix\t19758\nminor fix\t17527\n")
    with pytest.raises(UserError, match=r"a.tsv:1: '19758' is no column name[^}]*{path: a.tsv, header: false}"):
        load(tmp_path, "rankings", path="a.tsv")


def test_folders_read_their_data_files_of_one_split(tmp_path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    rows(tmp_path / "set" / "data", "train-0.jsonl", some(3))
    rows(tmp_path / "set" / "data", "test-0.jsonl", some(5)[3:])
    (tmp_path / "set" / "README.md").write_text("# about\n")
    rows(tmp_path / "set" / "data", "train-1.jsonl", some(6)[5:])
    with pytest.raises(UserError, match="set holds several splits: test, train; choose one"):
        load(tmp_path, path="set")
    training = load(tmp_path, path="set", split="train")
    assert len(training.records) == 4 and training.remarks == ["set: 2 files: train-0.jsonl, train-1.jsonl"]
    assert answers(load(tmp_path, path="set", split="train")) == ["a0", "a1", "a2", "a5"]
    assert answers(load(tmp_path, path="set", data_dir="data", split="test")) == ["a3", "a4"]
    with pytest.raises(UserError, match="no file of it is of split 'dev'"):
        load(tmp_path, path="set", split="dev")


def test_hub_settings_reach_datasets(tmp_path, monkeypatch):
    import datasets

    asked = {}

    def double(path, **options):
        asked.update(options, id=path)
        return datasets.Dataset.from_list(some(4)).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", double)
    monkeypatch.setattr("data.hub.hub_is_known", lambda: True)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    loaded = load(tmp_path, path="hub:a/b", config="c", data_dir="d", split="test", revision="r", limit=2)
    assert asked == {"id": "a/b", "name": "c", "data_dir": "d", "split": "test", "revision": "r", "streaming": True}
    assert (loaded.counts[0].read, len(loaded.records)) == (4, 2)


@pytest.mark.parametrize(
    "wrong",
    [{"weight": 0}, {"weight": 1.5}, {"limit": 0}, {"where": "f()"}, {"encoding": "klingon"}, {"format": "nope"},
     {"delimiter": "ab"}, {"header": []}, {"colums": {}}],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        Source(path="a.jsonl", **wrong)


@pytest.mark.parametrize("idle", [{"delimiter": ";"}, {"header": False}, {"config": "c"}, {"revision": "r"}])
def test_settings_that_do_nothing_for_a_file_are_refused(tmp_path, idle):
    with pytest.raises(UserError, match=next(iter(idle))):
        load(tmp_path, path=rows(tmp_path, "a.jsonl", some(1)), **idle)


def test_a_corpus_counts_its_rows_by_source(tmp_path):
    a = rows(tmp_path, "a.jsonl", [*some(40), {"nothing": 1}])
    b = rows(tmp_path, "b.jsonl", [{"prompt": "same"}, {"prompt": "same"}, {"prompt": "q1"}])
    config = DataConfig(demonstrations={"path": a, "where": "score != 0 or nothing == 1"}, prompts=b, held_out=0.3)
    found = load_corpus(config, seed=0, base_dir=tmp_path)
    demos, prompts = found.counts
    assert (demos.read, demos.rejected, demos.where, demos.used) == (41, 1, 1, 39)
    assert demos.held_out == len(found.demonstrations.held_out) > 0
    assert (prompts.read, prompts.used, prompts.repeated) == (3, 3, 1)
    other = load_corpus(config.model_copy(update={"demonstrations": (a,)}), seed=0, base_dir=tmp_path)
    assert other.fingerprint("demonstrations") != found.fingerprint("demonstrations")


def test_patterns_that_match_no_column_are_refused(tmp_path):
    name = rows(tmp_path, "a.jsonl", some())
    with pytest.raises(UserError, match=r"a\.jsonl: ignore: no row has a column 'lnag'\. Did you mean 'lang'\?"):
        load(tmp_path, path=name, ignore=["score", "lnag"])
    with pytest.raises(UserError, match=r"data\.ignore: no row has a column 'meta_\*'.*Columns found: prompt"):
        load_corpus(DataConfig(demonstrations=name, ignore=("meta_*",)), seed=0, base_dir=tmp_path)
    other = rows(tmp_path, "b.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b", "meta_x": "t"}])
    both = DataConfig(demonstrations=name, rankings=other, ignore=("meta_*", "sco?e"), held_out=0.0)
    assert len(load_corpus(both, seed=0, base_dir=tmp_path).rankings) == 1


def test_held_out_prompts_with_settings_of_their_own(tmp_path):
    name = rows(tmp_path, "a.jsonl", some())
    held = rows(tmp_path, "h.jsonl", [{"ask": f"q{i}", "use": i % 2} for i in range(6)])
    settings = {"path": held, "columns": {"prompt": "ask"}, "where": "use == 1"}
    config = DataConfig.model_validate({"demonstrations": name, "held_out": settings})
    corpus = load_corpus(config, seed=0, base_dir=tmp_path)
    assert sorted(p.text for p in corpus.prompts.held_out) == ["q1", "q3", "q5"]
    assert len(corpus.demonstrations.train) == 17 and corpus.counts[-1].part == "held_out"
