"""OpenAssistant's trees of messages, and its dumps of one message a line, which are put together to trees.

The responses to one message are a ranking by their ``rank``; each is read on as far as the tree goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from data.formats.columns import switch
from data.formats.ranking import ranking, unranked
from data.formats.rows import DELETED, REVIEWED, Format, Reject, Row
from data.formats.turns import ROLES
from data.formats.values import blank, number, string
from data.records import Message
from data.storage.branches import Branches

UNJUDGED = "responses without a rank left out"
AGAIN = "(again)"
"""Stands for the parent of a message whose id came before in a dump."""

DEEPEST = 200
"""Turns of a conversation in a tree."""

_NODE = (
    "message_id",
    "parent_id",
    "user_id",
    "created_date",
    "text",
    "role",
    "lang",
    "review_count",
    "review_result",
    "deleted",
    "rank",
    "synthetic",
    "model_name",
    "detoxify",
    "message_tree_id",
    "tree_state",
    "emojis",
    "labels",
    "replies",
    "events",
)
T = TypeVar("T")


def _tree(row: Mapping[str, Any]) -> list[Row]:
    _check_state(row)
    return _rows_of(row["prompt"])


def _check_state(row: Mapping[str, Any]) -> None:
    """Refuse a tree that its makers gave up."""
    state = str(row.get("tree_state") or "")
    if state.startswith(("aborted", "halted")):
        raise Reject(f"its tree was given up: tree_state is {state[:40]}")


def _node(row: Mapping[str, Any]) -> list[Row]:
    if row.get("parent_id") == AGAIN:
        raise Reject(f"its message_id {str(row.get('message_id'))[:40]!r} came before")
    if row.get("parent_id"):
        raise Reject("its parent is not in the file, or they are parents of each other")
    _check_state(row)
    return _rows_of(row)


def _rows_of(root: Any) -> list[Row]:
    if isinstance(root, Mapping) and switch(root.get("review_result")) is False:
        raise Reject("a review turned its first message down: review_result is false")
    rows: list[Row] = []
    unanswered: tuple[str, ...] = ()
    waiting: list[tuple[Any, tuple[Message, ...]]] = [(root, ())]
    while waiting:
        node, before = waiting.pop()
        turn = _turn(node)
        so_far = (*before, turn)
        if len(so_far) > DEEPEST:
            raise Reject(f"its tree is deeper than {DEEPEST} turns")
        there = [r for r in node.get("replies") or [] if not (isinstance(r, Mapping) and _is_deleted(r))]
        replies = [r for r in there if not (isinstance(r, Mapping) and switch(r.get("review_result")) is False)]
        if turn.role == "user":
            notes = (DELETED,) * (len(node.get("replies") or []) - len(there))
            notes += (REVIEWED,) * (len(there) - len(replies))
            made = _answers(so_far, replies, notes)
            rows += made
            unanswered += () if made else notes
        waiting += [(reply, so_far) for reply in reversed(replies)]
    if not rows:
        rows = [Row(messages=(_turn(root),))] if _turn(root).role == "user" else []
    if not rows:
        raise Reject("its tree has no message of a user")
    return [replace(rows[0], notes=(*rows[0].notes, *unanswered)), *rows[1:]] if unanswered else rows


def _is_deleted(node: Mapping[str, Any]) -> bool:
    mark = node.get("deleted")
    return bool(mark) and switch(mark) is not False


def _turn(node: Any) -> Message:
    if not isinstance(node, Mapping) or not isinstance(node.get("replies") or [], list):
        raise Reject("a message of its tree is no object with text, role and replies")
    role = ROLES.get(str(node.get("role")).lower())
    if role not in ("user", "assistant"):
        raise Reject(f"a message of its tree has the role {str(node.get('role'))[:40]!r}")
    text = string(node.get("text"), "a message's text")
    if not text.strip():
        raise Reject("a message of its tree is empty")
    return Message(role=role, content=text)


def _answers(asked: tuple[Message, ...], replies: list[Any], notes: tuple[str, ...]) -> list[Row]:
    """The row that the responses to one message make: a ranking, one demonstration, or nothing."""
    spoken = [(_turn(reply), reply.get("rank")) for reply in replies]
    given = [(turn.content, rank) for turn, rank in spoken if turn.role == "assistant"]
    if not given:
        return []
    if len(given) == 1:
        return [Row(messages=asked, answers=(given[0][0],), ranks=(0,), notes=notes)]
    ranked = [(text, number(rank, "rank")) for text, rank in given if not blank(rank)]
    if not ranked:
        return [unranked(asked, [text for text, _ in given])]
    if any(not r.is_integer() or r < 0 for _, r in ranked):
        raise Reject("rank must be a whole number from 0 (best)")
    notes += (UNJUDGED,) * (len(given) - len(ranked))
    return [ranking(asked, [t for t, _ in ranked], [int(r) for _, r in ranked], notes=notes)]


def is_dump(row: Any) -> bool:
    """Whether a row is one message of a dump, to be put together with the others by ``assembled``."""
    return isinstance(row, Mapping) and "message_id" in row and "role" in row and "text" in row and "replies" not in row


def assembled(rows: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T | dict[str, Any]]]:
    """Rows as they come; those that are messages of a dump as trees behind them, each at its root's place.

    Args:
        rows: places and rows.
    """
    messages: Branches | None = None
    for place, row in rows:
        if isinstance(row, dict) and "message_id" not in row:  # nearly all: asked first, for speed
            yield place, row
        elif is_dump(row):
            assert isinstance(row, Mapping)
            messages = Branches("replies") if messages is None else messages
            above = str(row["parent_id"]) if row.get("parent_id") else None
            if not messages.add(str(row["message_id"]), above, place, dict(row)):
                yield place, {**row, "replies": [], "parent_id": AGAIN}
        else:
            yield place, row
    if messages is not None:
        yield from messages.trees()


def _is_tree(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("prompt"), Mapping) and "replies" in row["prompt"]


_LEAF = {"message_id": "2", "text": "The Ebro.", "role": "assistant", "rank": 0, "replies": []}
_OTHER = {"message_id": "3", "text": "Rain.", "role": "assistant", "rank": 1, "replies": []}

TREES: dict[str, Format] = {
    "message tree": Format(
        columns="message_tree_id, prompt: {text, role, replies}",
        required=("message_tree_id", "prompt"),
        optional=("tree_state", "origin"),
        fits=_is_tree,
        read=_tree,
        example={
            "message_tree_id": "1",
            "tree_state": "ready_for_export",
            "prompt": {"message_id": "1", "text": "Name a river.", "role": "prompter", "replies": [_LEAF, _OTHER]},
        },
        note="OpenAssistant's; responses to one message are a ranking by their rank",
    ),
    "message tree without a head": Format(
        columns="text, role, replies",
        required=("text", "role", "replies"),
        optional=_NODE,
        kept=("rank", "labels"),  # of the first message alone, which stands in no ranking
        read=_node,
        example={"message_id": "1", "text": "Name a river.", "role": "prompter", "replies": [_LEAF, _OTHER]},
        note="also what the lines of a dump (message_id, parent_id, text, role, rank) are put together to",
    ),
}
