"""The rules of examples/real_model: by hand on short texts, and prompts that name the rule they are checked by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.common.user_functions import load_function
from tests.support.real_runs import EXAMPLES, example_module

FOLDER = EXAMPLES / "real_model"


RULES = example_module("real_model/rules.py")


@pytest.mark.parametrize(
    ("rule", "value", "follows", "does_not"),
    [
        ("at_most_words", "3", "Don't panic, 42!", "one two three four"),
        ("at_most_words", "3", "one", ""),
        ("at_least_words", "3", "one, two and three", "- one two -"),
        ("sentences", "1", "It costs 3.50 in all.", "It rains. It pours."),
        ("sentences", "3", 'He said "no." She left! why', "One. Two."),
        ("bullets", "2", "Here:\n- one\n * two", "- one\n-two\n* three\n- four"),
        ("lowercase", "", "all small, 3 of them.", "Not all"),
        ("uppercase", "", "LOUD 1!", "LOUd"),
        ("no_comma", "", "none here", "one, here"),
        ("no_comma", "", "none here", "..."),
        ("ends_with", "Bye now", "Well. Bye now\n", "Bye now, then"),
        ("quoted", "", ' "as asked" ', '"only" the first'),
        ("quoted", "", '"a"', '"'),
    ],
)
def test_checks(rule: str, value: str, follows: str, does_not: str) -> None:
    assert RULES.CHECKS[rule](follows, value)
    assert not RULES.CHECKS[rule](does_not, value)


@pytest.mark.parametrize(
    ("rule", "value", "text", "degree"),
    [
        ("at_most_words", "20", "word " * 50, 0.4),
        ("at_least_words", "40", "word " * 10, 0.25),
        ("sentences", "1", "One. Two. Three.", 1 / 3),
        ("bullets", "3", "no bullet", 1 / 4),
        ("lowercase", "", "A Big day", 1 / 3),
        ("uppercase", "", "LOUd", 1 / 2),
        ("no_comma", "", "one, two, and three", 1 / 3),
        ("ends_with", "Bye now", "Here you know", 3 / 7),
        ("ends_with", "Bye now", "Bye now, then", 1 / 2),
        ("ends_with", "Bye now", "nothing!", 0),
        ("quoted", "", '"only" the first', 1 / 2),
    ],
)
def test_degrees_by_hand(rule: str, value: str, text: str, degree: float) -> None:
    def nearly(completion: str, finished: bool = True) -> float:
        return RULES.nearly([completion], [rule], [value], [finished])[0]

    assert nearly(text) == pytest.approx(degree) and nearly(text, finished=False) == pytest.approx(degree / 2)
    assert nearly("") == 0


def test_a_degree_is_one_where_the_rule_is_followed_and_nowhere_else() -> None:
    texts = [
        "",
        "...",
        "One.",
        "one two three. ",
        "A, b. C! D?",
        '"a b c."',
        "- a\n- b\n- c",
        "x Bye now",
        "UP 1",
        "a " * 60,
    ]
    asked = [
        (name, value) for name in RULES.CHECKS for value in (("3",) if name not in ("ends_with",) else ("Bye now",))
    ]
    for name, value in asked:
        for text in texts:
            for done in (True, False):
                followed, nearly = (f([text], [name], [value], [done])[0] for f in (RULES.followed, RULES.nearly))
                assert (nearly == 1) == (followed == 1) and 0 <= nearly <= 1, (name, text, done)


def test_functions_as_a_recipe_names_them() -> None:
    def scores(name: str, *texts: str, **columns: list) -> list[float]:
        function = load_function(f"rules.py:{name}", FOLDER)
        return list(function([""] * len(texts), list(texts), finished=[True] * len(texts), **columns))

    assert scores("followed", "small", "Big", rule=["lowercase"] * 2, value=["", ""]) == [1, 0]
    assert RULES.followed(["small"], ["lowercase"], [""], [False]) == [0.0]
    assert scores("whole", "It ends.", "It does not", "```\ncode\n```", "") == [1, 0, 1, 0]
    assert RULES.whole(["It ends."], [False]) == [0.0]
    assert scores("brief", "some words", "", "word " * 80, "word " * 81) == [1, 0, 1, 0]
    twice = "We like short books. Then: we LIKE short books!"
    assert scores("unrepeated", twice.replace("Then: ", ""), "So it is. So it is.", "one two\none two", "") == [
        0,
        1,
        1,
        0,
    ]
    assert scores("clean", "Fine: a user: none", "Hi\nUser: what?", "So<|im_end|>") == [1, 0, 0]


def test_every_rule_of_the_prompts_can_be_checked_and_is_said(tmp_path: Path) -> None:
    constraints = example_module("real_model/constraints.py")
    source, out = tmp_path / "a.json", tmp_path / "b.jsonl"
    rows = [{"instruction": f"Do thing {i}.", "input": "this" if i % 2 else "", "output": "x"} for i in range(200)]
    source.write_text(json.dumps(rows), encoding="utf-8")
    constraints.main(source, out)
    made = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(made) == 200 and {(r["rule"], r["value"]) for r in made} == {(a, b) for a, b, _ in constraints.RULES}
    assert {r["rule"] for r in made} <= set(RULES.CHECKS)
    said = {(rule, value): sentence for rule, value, sentence in constraints.RULES}
    for i, row in enumerate(made):
        given = f"Do thing {i}.\n\nthis" if i % 2 else f"Do thing {i}."
        assert row["prompt"] == f"{given}\n\n{said[row['rule'], row['value']]}"
        assert set(row) == {"prompt", "rule", "value"}
