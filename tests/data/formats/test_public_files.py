"""The public files and the small shapes beside the checkout: each row as its own JSON says it, or its reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from data.checks import check_files
from data.common.errors import UserError
from data.doctor.corpus import examine
from data.formats import NoFormat
from data.source_settings import DataConfig, Source
from data.sources import parse_file
from data.splits import load_corpus
from tests.support.raw_rows import raw_rows, records, summary, turns_of, understood

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared" / "data"
TABLE = json.loads((ROOT / "docs" / "public_files.json").read_text(encoding="utf-8"))
pytestmark = pytest.mark.real_data


def shared(name: str, folder: str = "public") -> Path:
    path = SHARED / folder / name
    if not path.is_file():
        pytest.skip(f"{name} is not beside the checkout")
    return path


def rows_of(name: str, folder: str = "public"):
    return raw_rows(shared(name, folder))


def test_the_table_names_every_file_once():
    assert len(TABLE) == len({one["file"] for one in TABLE}) == 47
    assert all(one["repository"].count("/") == 1 and one["path"] for one in TABLE)


@pytest.mark.parametrize("one", [one for one in TABLE if "read" in one], ids=lambda one: one["file"])
def test_a_public_file_is_read_as_the_reference_says(one):
    rows = rows_of(one["file"])
    found = understood(rows)
    assert summary(found) == one["read"]
    if "paste" not in one:
        assert not any(isinstance(each.error, NoFormat) for each in found)
        return
    assert f"`{one['paste']}`" in found[0].reason
    assert summary(understood(rows, **yaml.safe_load(f"{{{one['paste']}}}"))) == one["pasted"]


def test_thumbs_as_the_file_says_them():
    rows = rows_of("lf_kto_en.json")
    found = understood(rows)
    assert [one.row.scores[0] for one in found] == [float(row["label"]) for row in rows]
    wanted = [row["messages"][-1]["content"] for row in rows if row["label"]]
    assert [d.answer for d in records(found, "demonstrations")] == wanted


def test_ties_as_the_file_says_them():
    rows = rows_of("ff_dpo.jsonl")
    for row, one in zip(rows, understood(rows), strict=True):
        assert one.row.answers == (row["chosen"][-1]["content"], row["rejected"][-1]["content"])
        assert one.row.ranks == ((0, 0) if row["score_chosen"] == row["score_rejected"] else (0, 1))
        assert turns_of(one.row.messages) == "u:" + row["prompt"]


def test_tool_turns_as_the_file_says_them():
    rows = rows_of("lf_toolcall_en.json")
    for row, one in zip(rows, understood(rows), strict=True):
        said = Counter(turn["from"] for turn in row["conversations"])
        roles = Counter(m.role for m in one.row.messages)
        assert (roles["user"], roles["tool"]) == (said["human"], said["observation"])
        calls = [json.loads(m.tool_calls) for m in one.row.messages if m.tool_calls]
        assert sum(map(len, calls)) == said["function_call"]
        assert bool(one.row.messages[0].tools) == (row["tools"] != "[]")


def test_rankings_of_trees_by_another_walk():
    expected: dict[tuple[str, ...], list[str]] = {}

    def walk(node, before):
        path = (*before, node["text"])
        ranked = sorted((r for r in node["replies"] if r.get("rank") is not None), key=lambda r: r["rank"])
        if node["role"] == "prompter" and len(ranked) > 1:
            expected[path] = [r["text"] for r in ranked]
        for reply in node["replies"]:
            walk(reply, path)

    rows = rows_of("oa_tree.jsonl")
    for row in rows:
        walk(row["prompt"], ())
    found = {
        tuple(m.content for m in r.prompt.messages): list(r.answers) for r in records(understood(rows), "rankings")
    }
    assert found == expected


def test_pass_rates_order_the_completions():
    [row] = rows_of("oi_ace.jsonl")
    [ranking] = records(understood([row]), "rankings")
    rate = {}
    for one in row["inferences"]:
        rate[one["completion"]] = max(one["pass_rate"], rate.get(one["completion"], 0.0))
    assert dict(zip(ranking.answers, ranking.scores, strict=True)) == rate
    assert list(ranking.scores) == sorted(ranking.scores, reverse=True)


def test_turns_marked_as_not_trained():
    rows = rows_of("xt_qwen35.jsonl")
    marked = sum(turn.get("loss") is False for row in rows for turn in row["messages"])
    assert sum(not m.trained for one in understood(rows) if one.row for m in one.row.messages) == marked == 2


def test_a_spreadsheet_of_preferences_by_another_reader():
    from openpyxl import load_workbook

    path = shared("oi_annot.xlsx")
    names, *cells = load_workbook(path, read_only=True, data_only=True).worksheets[0].iter_rows(values_only=True)
    rows = [dict(zip(names, one, strict=True)) for one in cells if any(c is not None for c in one)]
    expected = [
        ((0, 0), row["completion_a"], row["completion_b"])
        if row["preference"] == "tie"
        else ((0, 1), *(row[f"completion_{x}"] for x in ("ab" if row["preference"].startswith("a-") else "ba")))
        for row in rows
        if row["completion_a"] != row["completion_b"]
    ]
    found = list(parse_file(path, path.name))
    assert [(one.row.ranks, *one.row.answers) for one in found if one.row] == expected
    assert [one.reason for one in found if not one.row] == ["its two responses are the same"] * (
        len(rows) - len(expected)
    )


def test_a_table_of_counts_is_refused():
    path = shared("oa_commits.tsv")
    with pytest.raises(UserError, match=r"(?s)oa_commits\.tsv:1: '19758' is no column name.*header: false"):
        list(parse_file(path, path.name))


B, N = "u:What keeps bread fresh?", "u:Name a river in Spain."
CLOTH, NOTHING, EBRO, RAIN = "A cloth bag does.", "Nothing at all.", "The Ebro.", "Rain."
PIRATE = "s:Speak like a pirate.|"
BOTH = [(B, (CLOTH, NOTHING), (0, 1)), (N, (EBRO, RAIN), (0, 1))]
SHAPES = {
    "c12_data4.json": [("u:a?", ("b",), (0,)), ("u:c?", ("d",), (0,))],
    "c26_upper.csv": [("u:a?", ("b",), (0,)), ("u:c?", ("d",), (0,))],
    "c32_array.jsonl": [("u:a?", ("b",), (0,)), ("u:c?", ("d",), (0,))],
    "i03_oasst_tree.jsonl": [("u:Name a tree", ("Oak.", "A fish."), (0, 1))],
    "i04_chosen_response.jsonl": [("u:Name a tree", ("Oak", "Fish"), (0, 1))],
    "p01_orca.jsonl": [(PIRATE + p, a, r) for p, a, r in BOTH],
    "p02_lf_alpaca_dpo.jsonl": [(p + "\n\nIn one line.", a, r) for p, a, r in BOTH],
    "p03_system.jsonl": [(PIRATE + p, a, r) for p, a, r in BOTH],
    "p04_context.jsonl": BOTH,
    "p06_messages.jsonl": BOTH,
    "p07_prompt_null.jsonl": BOTH,
    "r01_pku.jsonl": BOTH,
    "r05_arena.jsonl": [BOTH[0], (N, (EBRO, RAIN), (0, 0))],
    "r06_ultrafb.jsonl": BOTH,
    "r07_helpsteer.jsonl": [(B, (CLOTH,), (0,)), (B, (NOTHING,), (0,))],
    "r08_nectar.jsonl": [(p, a, (1, 2)) for p, a, _ in BOTH],
    "r09_responses_rewards.jsonl": BOTH,
    "r12_score_equal.jsonl": [(p, a, (0, 0)) for p, a, _ in BOTH],
    "r16_empty_chosen.jsonl": [(B, ("", NOTHING), (0, 1)), (N, ("", RAIN), (0, 1))],
    "r17_same_ws.jsonl": [(B, (CLOTH, CLOTH + " \n"), (0, 1)), (N, (EBRO, EBRO + " \n"), (0, 1))],
    "r18_contradict.jsonl": [BOTH[0], (B, (NOTHING, CLOTH), (0, 1)), BOTH[1]],
    "s01_system_prompt_resp.jsonl": [(PIRATE + B, (CLOTH,), (0,)), (PIRATE + N, (EBRO,), (0,))],
    "s04_dolly.jsonl": [(B + "\n\nA passage to use.", (CLOTH,), (0,)), (N + "\n\nA passage to use.", (EBRO,), (0,))],
    "s06_system_messages.jsonl": [(PIRATE + B, (CLOTH,), (0,)), (PIRATE + N, (EBRO,), (0,))],
    "s09_parts.jsonl": [(B, (CLOTH,), (0,)), (N, (EBRO,), (0,))],
    "s10_toolcall_null.jsonl": [(B + "|a:|t:42", (CLOTH,), (0,)), (N + "|a:|t:42", (EBRO,), (0,))],
    "s12_developer.jsonl": [("s:Be kind|" + B, (CLOTH,), (0,)), ("s:Be kind|" + N, (EBRO,), (0,))],
    "t01_kto_false_messages.jsonl": [(B, (NOTHING,), (0,)), (N, (RAIN,), (0,))],
    "t02_kto_csv.csv": [(B, (NOTHING,), (0,)), (N, (RAIN,), (0,))],
    "t03_kto_minus1.jsonl": [(B, (NOTHING,), (0,)), (N, (RAIN,), (0,))],
}
REFUSED = {
    "i01_images.json": "column images",
    "r13_score_contra.jsonl": "2 of chosen and 9 of rejected, against the choice",
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_arrives_whole(name):
    found = understood(rows_of(name, "shapes"))
    assert [(turns_of(one.row.messages), one.row.answers, one.row.ranks) for one in found] == SHAPES[name]
    if name.startswith("t"):
        assert all(one.row.scores == (0.0,) for one in found) and not records(found, "demonstrations")


@pytest.mark.parametrize("name", REFUSED)
def test_a_shape_that_cannot_be_read_says_why(name):
    assert all(one.row is None and REFUSED[name] in one.reason for one in understood(rows_of(name, "shapes")))


QUESTIONS = {"What is ice?": "Frozen water", "What is fog?": "A cloud"}
CONTAINERS = {
    "c01_semicolon.csv": ([("u:" + q, a) for q, a in QUESTIONS.items()], {}),
    "c03_unclosed.csv": (
        [("u:" + q, a) for q, a in (QUESTIONS | {"What is dew?": "Drops", "What is sleet?": "Ice and rain"}).items()],
        {3: "it opens a quote that does not close"},
    ),
    "c07_gbk.csv": ([("u:水是什么?", "水是一种液体")], {}),
    "c08_gbk.jsonl": ([("u:水是什么?", "一种液体")], {}),
    "c24_header.tsv": ([("u:What is ice?", "Frozen water"), ("u:What is fog?", "A cloud near the ground")], {}),
    "s20_dupkey.jsonl": ([], {1: "it names the key 'completion' twice, with two values; keep one"}),
}
"""By file the demonstrations, and by line why a row is refused."""


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_is_read_whole(name):
    good, bad = CONTAINERS[name]
    found = list(parse_file(shared(name, "shapes"), name))
    assert [(turns_of(one.row.messages), *one.row.answers) for one in found if one.row] == good
    refused = {one.place: one.reason for one in found if one.row is None}
    assert list(refused) == [f"{name}:{line}" for line in bad]
    assert all(why in refused[f"{name}:{line}"] for line, why in bad.items())


def test_json_in_cells_is_a_pair():
    found = list(parse_file(shared("c21_jsonobj.csv", "shapes"), "a"))
    assert [(turns_of(one.row.messages), one.row.answers, one.row.ranks) for one in found] == BOTH


def test_a_table_without_a_header_waits_for_the_recipe(tmp_path):
    path = shared("c23_noheader.tsv", "shapes")
    with pytest.raises(UserError, match=r"(?s)'What is ice\?' is no column name.*header: \[prompt, completion\]"):
        list(parse_file(path, "a"))
    named = Source(path="-", header=("prompt", "completion"))
    found = [(turns_of(one.row.messages), *one.row.answers) for one in parse_file(path, "a", source=named)]
    assert found == [("u:What is ice?", "Frozen water"), ("u:What is fog?", "A cloud near the ground")]


def test_the_long_the_near_and_the_like_arrive_whole():
    rows = rows_of("near.jsonl", "shapes")
    found = [(one.row.messages[0].content, *one.row.answers) for one in understood(rows)]
    assert found == [(row["prompt"], row["completion"]) for row in rows] and len(rows) == 240
    path = shared("long.jsonl", "shapes")
    *lines, empty, broken = path.read_text(encoding="utf-8").splitlines()
    *good, nothing, bad = parse_file(path, "a")
    told = [(row["prompt"], row["completion"]) for row in map(json.loads, lines)]
    assert [(one.row.messages[0].content, *one.row.answers) for one in good] == told and len(told) == 12
    assert "null" in empty and nothing.row is not None and nothing.row.answers == ()
    assert broken.endswith(",}") and bad.place == "a:14" and "not JSON" in bad.reason
    rows = rows_of("tmpl.jsonl", "shapes")
    for row, one in zip(rows, understood(rows), strict=True):
        said = [turn["value"] for turn in row["conversations"]]
        assert [*(m.content for m in one.row.messages), *one.row.answers] == said


def test_the_doctor_of_the_near_and_the_like():
    """Held-out prompts that are in training but for "!", and a file whose first messages are all alike."""
    shared("near.jsonl", "shapes")
    near = load_corpus(DataConfig(demonstrations=("near.jsonl",), held_out=0.2), seed=0, base_dir=SHARED / "shapes")
    split = near.demonstrations
    sides = [{d.prompt.text.rstrip("!") for d in side} for side in (split.train, split.held_out)]
    [leak] = [f for f in examine(near).findings if f.kind == "leak"]
    assert leak.count == len(sides[0] & sides[1]) > 20
    [alike] = check_files([shared("tmpl.jsonl", "shapes")]).files
    assert any("all 200 rows are of one group" in f.text for f in alike.findings)
