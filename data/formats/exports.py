"""Records of annotation tools (Argilla, Label Studio) as rows with a column for each field and each answer.

A record that several people answered becomes a row for each of them; drafts, discarded and cancelled answers are left
out. What comes out has none of the tool's columns, so that it passes unchanged a second time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from data.formats.rows import Reject

_SUBMITTED = ("submitted", "completed", None)


def is_export(row: Any) -> bool:
    """Whether a row is a record of an annotation tool."""
    if not isinstance(row, Mapping) or not _may_be(tuple(row)):
        return False
    return _is_argilla(row) or _is_flat(row) or _is_label_studio(row)


@lru_cache(maxsize=4096)
def _may_be(names: tuple[Any, ...]) -> bool:
    """Whether a record could have these columns; asked of every row, so kept."""
    known = {"fields", "data"} & set(names)
    return bool(known) or any(str(name).endswith((".responses", "-suggestion")) for name in names)


def unwrapped(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a record.

    Raises:
        Reject: nobody answered it, or its parts are not what they are in such files.
    """
    try:
        found = list(_label_studio(row) if _is_label_studio(row) else _argilla(row))
    except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:
        raise Reject(f"it has the columns of an annotation tool's record, but is none ({error})") from None
    if not found:
        raise Reject("no annotation of it is submitted")
    yield from found


# ---- Argilla ---------------------------------------------------------------------------------------------------------


def _is_argilla(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("fields"), Mapping) and isinstance(row.get("responses"), list)


def _is_flat(row: Mapping[str, Any]) -> bool:
    """A data set as Argilla pushes it to the hub: answers in lists, with their users or with their status."""
    return any(f"{name}.users" in row or f"{name}.status" in row for name in _answered(row)) or any(
        map(_is_answers, row.values())
    )


def _answered(row: Mapping[str, Any]) -> list[str]:
    return [str(k) for k in row if str(k).endswith(".responses") and isinstance(row[k], list)]


def _is_answers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) and set(v) >= _ANSWER for v in value)


_ANSWER = {"user_id", "value", "status"}


def _argilla(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each answer that is submitted."""
    if _is_argilla(row):
        fields = dict(row["fields"]) | _plain_metadata(row)
        for one in row["responses"]:
            if one.get("status") in _SUBMITTED:
                yield _with(fields, {name: value.get("value") for name, value in one["values"].items()})
        return
    answers: dict[str, list[tuple[Any, Any]]] = {}
    for name in _answered(row):
        status = row.get(f"{name}.status") or ["submitted"] * len(row[name])
        users = row.get(f"{name}.users") or list(range(len(row[name])))
        pairs = zip(users, row[name], status, strict=True)
        answers[name.removesuffix(".responses")] = [(user, v) for user, v, how in pairs if how in _SUBMITTED]
    for name, value in row.items():
        if _is_answers(value):
            answers[name] = [(one["user_id"], one["value"]) for one in value if one["status"] in _SUBMITTED]
    fields = {k: v for k, v in row.items() if k not in answers and not _is_of(str(k), answers)}
    for user in dict.fromkeys(user for found in answers.values() for user, _ in found):
        given = {name: value for name, found in answers.items() for who, value in found if who == user}
        yield _with(fields, given)


def _is_of(name: str, answers: Mapping[str, Any]) -> bool:
    return any(name.startswith((f"{question}.", f"{question}-suggestion")) for question in answers)


def _plain_metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": row["id"]} if "id" in row else {}


def _with(fields: Mapping[str, Any], answers: Mapping[str, Any]) -> dict[str, Any]:
    """Fields and answers in one row; a ranking of fields becomes the texts and their ranks."""
    out = dict(fields)
    for name, value in answers.items():
        ranked = isinstance(value, list) and value and all(isinstance(v, Mapping) and "rank" in v for v in value)
        if not ranked:
            out[name] = value
            continue
        names = [one["value"] for one in value]
        out |= {"responses": [fields[one] for one in names], "ranks": [one["rank"] for one in value]}
        for one in names:
            out.pop(one)
    return out


# ---- Label Studio ----------------------------------------------------------------------------------------------------


def _is_label_studio(row: Mapping[str, Any]) -> bool:
    marks = row.get("annotations", row.get("completions"))
    return (
        isinstance(row.get("data"), Mapping)
        and isinstance(marks, list)
        and all(isinstance(one, Mapping) and "result" in one for one in marks)
    )


_VALUES = ("selected", "choices", "rating", "text", "number", "labels", "taxonomy", "ranker")


def _label_studio(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each annotation that is not cancelled."""
    for one in row.get("annotations", row.get("completions")) or []:
        if one.get("was_cancelled"):
            continue
        answers = {
            str(r.get("from_name")): _value(r["value"]) for r in one["result"] if isinstance(r.get("value"), dict)
        }
        if answers:
            yield {**row["data"], **({"id": row["id"]} if "id" in row else {}), **answers}


def _value(value: Mapping[str, Any]) -> Any:
    """What somebody chose, rated or wrote; one choice as a text."""
    found = next((value[name] for name in _VALUES if name in value), dict(value))
    return found[0] if isinstance(found, list) and len(found) == 1 else found
