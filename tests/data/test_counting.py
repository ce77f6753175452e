"""What is cut and dropped, counted by the stages' own functions and by hand; answers that a template leaves out."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from data import kept_parts
from data.common.errors import UserError
from data.counting import Fitted, Tally, log_row, share_warning
from data.records import Demonstration, Message, Prompt, RankedAnswers
from data.source_settings import DataConfig
from data.splits import load_corpus
from data.storage import store
from data.template import Renderer
from data.tokens import unknown_id
from pipelines.run.pipeline import Pipeline
from stages.ppo.stage import fitting_prompts
from stages.pretrain import train_tokenizer
from stages.reward_model import split_holdout
from stages.settings import PPOConfig, PretrainConfig, RewardConfig, SFTConfig
from stages.sft import encode_demonstrations
from stages.training.chunks import chunks
from stages.training.ranking_rows import EQUAL_WHEN_CUT, encode_rankings
from tests.conftest import word_tokenizer
from tests.support.recipes import RECIPE as LEAST

WORDS = [f"w{i}" for i in range(60)]
RECIPE: dict = LEAST


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    texts = [" ".join([*WORDS, "user : assistant : system :"])] * 3
    return Renderer(train_tokenizer(texts, PretrainConfig(tokenizer="words", vocabulary=400)), template="dialogue")


def prompt(words: int, n: int = 0) -> Prompt:
    text = " ".join(WORDS[(n + i) % 60] for i in range(words))
    return Prompt(messages=(Message(role="user", content=text),), group=str(n), source=f"rows.jsonl:{n}")


def answer(words: int) -> str:
    return " ".join(WORDS[:words])


def test_planted_cuts_of_demonstrations_are_all_counted(renderer: Renderer) -> None:
    # "user : q... \n assistant : a... <eos>": 4 words of the template and a stop token, and a BOS if one is added
    extra = len(renderer.prompt_ids(prompt(1).messages)) - 1 + 1
    limit = 40
    short = [Demonstration(prompt=prompt(3, n), answer=answer(4)) for n in range(50)]
    long_answers = [Demonstration(prompt=prompt(3, n), answer=answer(50)) for n in range(3)]
    long_prompts = [Demonstration(prompt=prompt(45, n), answer=answer(4)) for n in range(2)]
    rows, tally = encode_demonstrations(renderer, [*short, *long_answers, *long_prompts], SFTConfig(max_tokens=limit))
    found = tally.as_dict()
    independent = [extra + q + a > limit for q, a in [(3, 4)] * 50 + [(3, 50)] * 3 + [(45, 4)] * 2]
    assert found["rows"] == found["used"] == len(rows) == 55 and found["dropped"] == 0
    assert found["cut"] == sum(independent) == 5 and found["cut_answers"] == 3
    assert found["cut_prompts"] == 2, "a prompt of eight ids is never cut"
    assert sum(r.ids[-1] not in renderer.stop_ids for r in rows) == 3, "those have lost their stop token"
    # 5 of 55 are 9 %: 53 whole rows are 95 %, and the 53rd in order of length is one with a long prompt
    lengths = sorted(extra + q + a for q, a in [(3, 4)] * 50 + [(3, 50)] * 3 + [(45, 4)] * 2)
    assert found["limit_for_95_percent"] == lengths[52]
    assert f"sft.max_tokens of {lengths[52]} would keep 95 % whole" in tally.warning()
    every = [*short, *long_answers, *long_prompts]
    again = encode_demonstrations(renderer, every, SFTConfig(max_tokens=lengths[52]))[1]
    assert again.cut <= 0.05 * 55 and not again.warning()


def test_rankings_that_the_cut_makes_equal_are_dropped_and_counted(renderer: Renderer) -> None:
    same = RankedAnswers(prompt=prompt(2), answers=(answer(50), answer(50) + " w1"), ranks=(0, 1))
    fine = RankedAnswers(prompt=prompt(2), answers=(answer(5), answer(6)), ranks=(0, 1))
    halved = RankedAnswers(prompt=prompt(2), answers=(answer(50), "w7 w8"), ranks=(0, 1))
    kept, tally = encode_rankings(renderer, [same, same, fine, halved], RewardConfig(max_tokens=32))
    assert len(kept) == 2 and tally.dropped == {EQUAL_WHEN_CUT: 2}
    assert (tally.cut, tally.cut_answers, tally.rows, tally.lost) == (1, 1, 4, 3)
    assert "equal once cut" in tally.warning() and "reward.max_tokens of" in tally.warning()


def test_prompts_that_do_not_fit_are_counted(renderer: Renderer) -> None:
    prompts = [prompt(3, n) for n in range(8)] + [prompt(40, n) for n in range(2)]
    kept, tally = fitting_prompts(renderer, prompts, PPOConfig(max_prompt_tokens=20), None)
    needed = len(renderer.prompt_ids(prompts[-1].messages))
    assert kept == prompts[:8] and tally.as_dict()["dropped"] == 2
    assert f"ppo.max_prompt_tokens of {needed} would keep 95 % whole" in tally.warning()


def test_no_limit_is_named_that_the_base_has_no_room_for(renderer: Renderer) -> None:
    """Rows of more than 40 tokens on a base of 30 positions, prompts of 40 on one of 50 less a response of 24."""
    ppo, prompts = PPOConfig(max_prompt_tokens=20, max_new_tokens=24), [prompt(40, n) for n in range(4)]
    rows = [Demonstration(prompt=prompt(3, n), answer=answer(50)) for n in range(4)]
    pairs = [RankedAnswers(prompt=prompt(2, n), answers=(answer(50), "w7 w8"), ranks=(0, 1)) for n in range(4)]
    found = [
        (encode_demonstrations(renderer, rows, SFTConfig(max_tokens=24), positions=30)[1], 30),
        (encode_rankings(renderer, pairs, RewardConfig(max_tokens=24), positions=30)[1], 30),
        (fitting_prompts(renderer, prompts, ppo, 50)[1], 50 - 24),
    ]
    for tally, room in found:
        needed = tally.limit_for_95_percent()
        assert needed is not None and needed > room
        assert f"95 % of them take {needed}, and the base's positions leave room for {room}" in tally.warning()


def test_the_limit_for_95_percent_by_hand() -> None:
    tally = Tally(unit="rows", key="k", limit=10)
    for n in range(1, 101):
        tally.record([Fitted.of(list(range(n)), [], range(min(n, 10)), 0)])
    assert tally.limit_for_95_percent() == 95 and tally.cut == 90
    assert not Tally(unit="rows", key="k").warning() and Tally(unit="rows", key="k").limit_for_95_percent() is None
    assert share_warning(5, 100, "a", "b") == "" and "6 of 100 a (6%); b" in share_warning(6, 100, "a", "b")


def test_unknown_tokens_are_counted_among_those_that_are_used() -> None:
    """Of 20 tokens two are the sign 3: a tenth, which is a warning; a dropped row's ids do not count."""
    tally = Tally(unit="rows", key="k", limit=30, sign=3)
    tally.record([Fitted.of([7, 3, 8], [4, 5], range(3), 2), Fitted.of([7, 8, 9], [3, 4], range(3), 2)])
    tally.record([Fitted.of([7] * 10, [], range(10), 0)])
    tally.record([Fitted.of([3] * 40, [], range(40), 0)], "empty")
    assert (tally.tokens, tally.unknown) == (20, 2)
    assert {k: tally.as_dict()[k] for k in ("tokens", "unknown_tokens")} == {"tokens": 20, "unknown_tokens": 2}
    words = "in rows 2 of 20 tokens stand for text that the tokenizer does not know"
    assert tally.summary() == f"of 3 rows 1 dropped (empty); {words}"
    assert (
        tally.warning().startswith("of 3 rows 1 dropped (empty)") and f"{words}; take a base whose" in tally.warning()
    )
    few = Tally(unit="rows", key="k", sign=3)
    few.record([Fitted.of([3, *[7] * 30], [], range(31), 0)])
    assert (
        few.summary() == "in rows 1 of 31 tokens stand for text that the tokenizer does not know" and not few.warning()
    )
    none = Tally(unit="rows", key="k")
    none.record([Fitted.of([3], [], [0], 0)])
    assert none.summary() == "" and "unknown_tokens" not in none.as_dict()


def test_every_stage_counts_what_the_tokenizer_does_not_know() -> None:
    """``zz`` is no word of the tokenizer; its end of a turn and its padding are no unknown text."""
    renderer = Renderer(word_tokenizer(), template="dialogue")
    prompts = [Prompt(messages=(Message(role="user", content="w1 zz w2"),), group="g")] * 2
    shown = encode_demonstrations(renderer, [Demonstration(prompt=p, answer="w3 zz") for p in prompts], SFTConfig())[1]
    pairs = [RankedAnswers(prompt=p, answers=("w3 zz", "w4"), ranks=(0, 1)) for p in prompts]
    ranked = encode_rankings(renderer, pairs, RewardConfig())[1]
    asked = fitting_prompts(renderer, prompts, PPOConfig(), None)[1]
    assert [tally.unknown for tally in (shown, ranked, asked)] == [4, 6, 2]  # a ranking's prompt is read twice
    assert all("does not know; take a base" in tally.warning() for tally in (shown, ranked, asked))
    gpt2 = word_tokenizer()
    gpt2.unk_token = gpt2.eos_token
    assert unknown_id(gpt2) is None and unknown_id(word_tokenizer()) == 3


@pytest.mark.parametrize("length", [1, 2, 3, 8, 9, 15, 16, 17, 100])
def test_every_token_of_a_document_is_predicted_once(length: int) -> None:
    ids = list(range(1000, 1000 + length))
    pieces = chunks(ids, 8)
    assert all(2 <= len(p) <= 8 for p in pieces)
    assert [token for p in pieces for token in p[1:]] == ids[1:]
    assert pieces == ([ids] if 1 < length <= 8 else pieces)


def test_manifest_and_report_counts_agree_with_an_independent_count(tmp_path) -> None:
    rows = [{"prompt": f"say {i}", "completion": "so it is ."} for i in range(30)]
    rows += [{"prompt": f"tell {i}", "completion": "one two three four five " * 12} for i in range(6)]
    lines = [json.dumps(r) for r in rows] + ["{broken", json.dumps({"nothing": 1})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    more = [{"prompt": f"ask {i}", "completion": "so it is . " * (1 + 10 * (i < 3))} for i in range(4)]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, more)) + "\n")
    (tmp_path / "long.txt").write_text("a b c d e f g h " * 100)
    settings = {
        "data": {"demonstrations": ["rows.jsonl", "more.jsonl"], "documents": ["long.txt", "demo-task?rows=60"],
                 "held_out": 0.0, "text_unit": "file"},
        "sft": RECIPE["sft"] | {"max_tokens": 32},
        "rankings": RECIPE["rankings"] | {"held_out_prompts": 256},
    }  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps(RECIPE | settings))
    made = Pipeline.from_recipe(tmp_path / "r.json", run_dir=tmp_path / "run")
    made.run(only=["pretrain"])
    planned = {p.name: p.details["counts"] for p in made.plan()}
    made.run(only=["sft"])
    files = {s: tmp_path / "run" / s / "manifest.json" for s in ("pretrain", "sft")}
    manifests = {s: json.loads(file.read_text())["metrics"] for s, file in files.items()}
    counts = manifests["sft"]["counts"]
    assert (counts["rows"], counts["cut"], counts["cut_answers"], counts["dropped"]) == (40, 9, 9, 0)
    own = {"rows.jsonl": {"rows": 36, "cut": 6, "dropped": 0}, "more.jsonl": {"rows": 4, "cut": 3, "dropped": 0}}
    assert counts["by_source"] == own
    assert planned["sft"] == counts
    warning = manifests["sft"]["warnings"][0]["text"]
    assert "would keep 95 % whole" in warning and "(rows.jsonl: 6 cut of 36; more.jsonl: 3 cut of 4)" in warning
    pretrain = manifests["pretrain"]["counts"]
    assert pretrain["documents"] == 61 and pretrain["documents_in_several_chunks"] == 1
    assert pretrain["chunks"] == 60 + -(-(8 * 100 + 1) // 127)
    assert json.loads((tmp_path / "run/run.json").read_text())["data"]["rejected rows"] == 2
    from pipelines.report.run_files import read_run
    from pipelines.report.stage_facts import facts

    told = dict(facts(read_run(tmp_path / "run")))
    shown = {k: v for part in told.values() for k, v in part.items()}
    assert (shown["cut answers"], shown["cut of rows.jsonl"], shown["cut of more.jsonl"]) == ("9", "6", "3")


@pytest.mark.parametrize("annotators", ["mean", "share", "keep"])
@pytest.mark.parametrize("large", [False, True])
def test_lost_rows_are_counted_by_source(renderer: Renderer, tmp_path, monkeypatch, large, annotators) -> None:
    monkeypatch.setenv("TRIVET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_parts, "LARGE", 0 if large else 10**9)  # read, and then found in the cache
    monkeypatch.setattr(store, "IN_MEMORY", 8 if large else 10**9)
    lengths = {"a.jsonl": [3, 60, 3, 3, 60, 3, 3, 3, 3, 3, 3, 3], "b.jsonl": [60, 3, 60, 60] * 5}
    asked = {"a.jsonl": [2] * 12, "b.jsonl": [2, 50, 2, 2] * 5}
    for name, words in lengths.items():
        pairs = zip(words, asked[name], strict=True)
        rows = [
            {"prompt": f"{name[0]}{i} {answer(q)}", "chosen": answer(n), "rejected": "w9 w8"}
            for i, (n, q) in enumerate(pairs)
        ]
        rows += [{"prompt": "of two people", "chosen": answer(3), "rejected": "w9 w8"}]
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)) + "\n")
    config = DataConfig(rankings=["a.jsonl", "b.jsonl"], held_out=0.3, annotators=annotators)
    for _ in range(2):
        corpus = load_corpus(config, seed=0, base_dir=tmp_path)
        mine, holdout = split_holdout(corpus.rankings.train, 0.5)
        cut: Counter[str] = Counter()
        rows_of: Counter[str] = Counter()
        for rankings in (mine, holdout, corpus.rankings.held_out):
            tally = encode_rankings(renderer, rankings, RewardConfig(max_tokens=40))[1]
            found = tally.as_dict()["by_source"]
            for name, counts in found.items():
                place = [r for r in rankings if r.prompt.source.startswith(name)]
                assert counts["rows"] == len(place)
                over = [len(r.prompt.text.split()) > 40 or len(r.answers[0].split()) > 40 for r in place]
                assert counts["cut"] == sum(over) and not counts["dropped"]
                cut[name] += counts["cut"]
                rows_of[name] += counts["rows"]
        assert cut == {"a.jsonl": 2, "b.jsonl": 20} and rows_of == {
            "a.jsonl": 13,
            "b.jsonl": 21 - (annotators == "mean"),
        }
        dropped: Counter[str] = Counter()
        for prompts in (corpus.prompts.train, corpus.prompts.held_out):
            tally = fitting_prompts(renderer, prompts, PPOConfig(max_prompt_tokens=30), None)[1]
            dropped += Counter({name: own.dropped for name, own in tally.sources.items()})
            assert sum(own.rows for own in tally.sources.values()) == tally.rows == len(prompts)
        assert dropped == {"b.jsonl": 5}


def test_a_line_names_the_sources_that_lose_most() -> None:
    tally = Tally(unit="rows", key="k", limit=3)
    for n in range(8):
        for _ in range(n):
            tally.record([Fitted.of([0] * 4, [], range(3), 0)], source=f"{n}.jsonl")
    shown = "; ".join(f"{n}.jsonl: {n} cut of {n}" for n in (7, 6, 5, 4, 3))
    assert tally.summary().endswith(f"({shown}, and 2 sources more)")
    tally.record([Fitted.of([0], [], [0], 0)], "empty", "0.jsonl")
    assert tally.as_dict()["by_source"]["0.jsonl"] == {"rows": 1, "cut": 0, "dropped": 1}
    assert not any("jsonl" in name for name in log_row(tally.as_dict())), "numbers of a metrics file are numbers"


CLOSING_ONLY = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'user' %}{{ m.content }}{% endif %}"
    "</{{ m.role }}>{% endfor %}"
)
PARTS = "{% for m in messages %}{{ m.role }} :{% for p in m.content %}{{ p.text }}{% endfor %} {% endfor %}"
THOUGHTS = (
    "{% for m in messages %}{{ m.role }} : {{ m.content.split('</think>')[-1] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "said"),
    [(CLOSING_ONLY, "w1 w2 w3"), (PARTS, "w1 w2 w3"), (THOUGHTS, "<think> w9 w8 </think> w1 w2")],
)
def test_an_answer_that_the_template_leaves_out_is_refused_with_row_and_template(
    renderer: Renderer, template: str, said: str, tmp_path
) -> None:
    (tmp_path / "t.jinja").write_text(template)
    made = Renderer(renderer.tokenizer, template=str(tmp_path / "t.jinja"))
    row = Demonstration(prompt=prompt(3, 17), answer=said)
    with pytest.raises(UserError, match=r"rows\.jsonl:17: template .*t\.jinja.* leaves out"):
        encode_demonstrations(made, [row], SFTConfig())
    ranked = RankedAnswers(prompt=row.prompt, answers=(said, said + " w5"), ranks=(0, 1))
    with pytest.raises(UserError, match=r"rows\.jsonl:17: template .*leaves out"):
        encode_rankings(made, [ranked], RewardConfig())


SAID = ["w1 w2", " w1  w2\n", "", "unknown words w1", "w1 <eos> w2", "<think> w3 </think> w4"]


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("template", ["dialogue", "text"])
def test_every_answer_that_is_rendered_passes(renderer: Renderer, template: str, said: str) -> None:
    made = Renderer(renderer.tokenizer, template=template)
    row = made.conversation(prompt(2).messages, said)
    assert row.ids[-1] in made.stop_ids


def test_many_rejected_rows_are_told_before_the_first_stage(tmp_path, capsys) -> None:
    from pipelines.execution.progress import Progress
    from pipelines.run.rehearsal import before_first_stage

    lines = [json.dumps({"prompt": f"say {i}", "completion": "so it is ."}) for i in range(10)] + ["{broken"] * 30
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    data = RECIPE["data"] | {"demonstrations": "rows.jsonl"}  # type: ignore[operator]
    (tmp_path / "r.json").write_text(json.dumps(RECIPE | {"data": data}))
    made = Pipeline.from_recipe(tmp_path / "r.json", run_dir=tmp_path / "run")
    before_first_stage(made, Progress(), ["sft"])
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "warning" in told
        and "30 of 40 rows of data.demonstrations were rejected (75%)" in told
        and "rows.jsonl:11" in told
    )


def test_an_answer_that_is_left_out_is_not_scored(renderer: Renderer, tmp_path, monkeypatch) -> None:
    from pipelines.run import score
    from reward.model import RewardModel

    (tmp_path / "t.jinja").write_text(CLOSING_ONLY)
    made = Renderer(renderer.tokenizer, template=str(tmp_path / "t.jinja"))
    model = RewardModel(base=None, role="reward", renderer=made)  # type: ignore[arg-type]
    asked = [prompt(3).messages] * 2
    with pytest.raises(UserError, match=r"row 2: template .*t\.jinja.* leaves out"):
        model.score_texts(asked, ["", "w1 w2"], [True, True], prove=True)
    monkeypatch.setattr(score, "load_scorer", lambda *_: score.OfRewardModel(model))
    rows = [{"prompt": "w1", "completion": "w2"}] * 2
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    with pytest.raises(UserError, match=r"rows\.jsonl:1: template .*t\.jinja.* leaves out"):
        score.score_file("any", tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_worked_examples_that_the_template_leaves_out_are_refused(renderer: Renderer, tmp_path) -> None:
    (tmp_path / "thoughts.jinja").write_text(THOUGHTS)
    said = [("user", "w1"), ("assistant", "<think> w7 </think> w2"), ("user", "w3")]
    shown = [Message(role=role, content=content) for role, content in said]  # type: ignore[arg-type]
    user = "{% for m in messages if m.role == 'user' %}{{ m.content }} {% endfor %}assistant :"
    for template, whose in (("{{ messages[-1].content }} assistant :", "user"), (user, "assistant")):
        with pytest.raises(UserError, match=f"leaves out the {whose}'s message"):
            Renderer(renderer.tokenizer, template=template).prompt_ids(shown)
    assert Renderer(renderer.tokenizer, template=str(tmp_path / "thoughts.jinja")).prompt_ids(shown)
