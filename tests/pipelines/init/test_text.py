"""A recipe's text: what is written, what stands behind a #, and values that a reader takes for what they are."""

from __future__ import annotations

import pytest

from pipelines.init.text import WIDTH, Group, Line, recipe_text, value
from pipelines.recipe.yaml_source import read_text


@pytest.mark.parametrize(
    "found",
    [
        "plain", "./a/b.jsonl", "24GB", "1e3", "2024-01-01", "yes", "null", "~", "a: b", "x # y", "ü ber.jsonl", "",
        "7", "quote\"d\\", "-", "[a]", "{a}", "*", "&a", "!t", "%d", "@x", "`x`", "a\tb", "😀.json", 0.1, 3e-5, 0.0,
        2.0, 7, True, None, ["a", "b: c"], {"path": "a b.csv", "columns": {"prompt": "q: 1"}}, {},
    ],
)  # fmt: skip
def test_values_are_read_as_they_are(found: object) -> None:
    read = read_text(f"key: {value(found)}\n", "t").data["key"]
    assert read == found and (type(read) is type(found) or isinstance(found, float))


def test_groups_and_comments() -> None:
    """Written by hand: one written line, one that is shown, a group without a written line, and a list."""
    groups = [
        Group(key="", lines=[Line(key="name", value="x", why="a name")], about=["About."]),
        Group(key="data", lines=[Line(key="rankings", value=["a.jsonl", "b c.jsonl"], why="two files")]),
        Group(
            key="sft",
            lines=[Line(key="max_tokens", value=64, why="short"), Line(key="epochs", value=4.0, written=False)],
        ),
        Group(key="ppo", lines=[Line(key="updates", value=100, why="cycles", written=False)]),
    ]
    assert recipe_text(groups) == (
        "# About.\n"
        "name: x                           # a name\n"
        "\n"
        "data:\n"
        "  # two files\n"
        "  rankings:\n"
        "    - a.jsonl\n"
        '    - "b c.jsonl"\n'
        "\n"
        "sft:\n"
        "  max_tokens: 64                  # short\n"
        "#   epochs: 4\n"
        "\n"
        "# ppo:\n"
        "#   updates: 100                  # cycles\n"
    )


def test_a_comment_ends_where_it_ends() -> None:
    """Whatever a file's rows say, no line of it becomes a setting."""
    line = Line(key="a", value=1, why="bad\nb: 2\r\x85c: 3\u2028d: 4 " + "long " * 60)
    text = recipe_text([Group(key="", lines=[line], about=["x\ny: 1"])])
    assert read_text(text, "t").data == {"a": 1}
    assert max(map(len, text.splitlines())) <= WIDTH
