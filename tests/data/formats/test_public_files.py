"""The public files and the small shapes beside the checkout: each row as its own JSON says it, or its reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from data.formats import NoFormat
from tests.support.raw_rows import raw_rows, records, summary, turns_of, understood

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared" / "data"
TABLE = json.loads((ROOT / "docs" / "public_files.json").read_text(encoding="utf-8"))
pytestmark = pytest.mark.real_data


def rows_of(name: str, folder: str = "public"):
    path = SHARED / folder / name
    if not path.is_file():
        pytest.skip(f"{name} is not beside the checkout")
    return raw_rows(path)


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
