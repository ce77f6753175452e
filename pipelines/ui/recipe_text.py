"""One setting of a recipe's text changed or taken out, everything else - comments, order, form - left as it is.

Works on the places that the YAML parser reports. Whatever it writes is read again and compared with what was wanted.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import yaml

from data.common.errors import UserError
from pipelines.init.text import value as as_yaml
from pipelines.recipe.yaml_source import read_text

NAME = "the recipe"


def with_value(text: str, path: Sequence[str], new: Any) -> str:
    """The text with a setting at a value.

    Args:
        text: of a recipe.
        path: keys from the top, such as ``("ppo", "kl_coef")``.
        new: a plain value.

    Raises:
        UserError: the text is no recipe, or the setting stands in a form that only a person can change.
    """
    wanted = copy.deepcopy(read_text(text, NAME).data)
    _set(wanted, path, new)
    return _checked(_changed(text, path, new), wanted, path)


def without(text: str, path: Sequence[str]) -> str:
    """The text without a setting, so that it has its default; a group that is left empty goes with it.

    Raises:
        UserError: as for ``with_value``.
    """
    wanted = copy.deepcopy(read_text(text, NAME).data)
    while True:
        here: Any = wanted
        for key in path[:-1]:
            here = here.get(key) if isinstance(here, dict) else None
        if not isinstance(here, dict) or path[-1] not in here:
            return text
        if len(here) > 1 or len(path) == 1:
            break
        path = path[:-1]
    del here[path[-1]]
    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    parent, _ = _found(root, path[:-1])
    if not isinstance(parent, yaml.MappingNode) or parent.flow_style:
        return _checked(_changed(text, path[:-1], here), wanted, path)
    key, value = next(pair for pair in parent.value if pair[0].value == path[-1])
    start = text.rfind("\n", 0, key.start_mark.index) + 1
    return _checked(text[:start] + text[_line_end(text, _end(value, key)) :], wanted, path)


def _set(data: dict[str, Any], path: Sequence[str], new: Any) -> None:
    *groups, last = path
    for key in groups:
        if not isinstance(data.get(key), dict):
            data[key] = {}
        data = data[key]
    data[last] = new


def _checked(text: str, wanted: Any, path: Sequence[str]) -> str:
    try:
        right = read_text(text, NAME).data == wanted
    except UserError:
        right = False
    if not right:
        raise UserError(
            f"{'.'.join(path)}: stands in a form that only an editor can change; edit the text of the recipe"
        )
    return text


def _changed(text: str, path: Sequence[str], new: Any) -> str:
    """The text with a value written over the old one, or a line added for it; not yet compared with what is wanted."""
    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    node, depth = _found(root, path)
    rest = path[depth:]
    if not path:
        return text[: node.start_mark.index] + as_yaml(new) + text[node.end_mark.index :]
    if not rest or not isinstance(node, yaml.MappingNode):  # the value itself, or a group that is written as nothing
        key, value = _pair(root, path[:depth])
        return _over(text, key, value, _nested(rest, new))
    if node.flow_style:
        merged = copy.deepcopy(read_text(text, NAME).value(tuple(path[:depth])))
        _set(merged, rest, new)
        return text[: node.start_mark.index] + as_yaml(merged) + text[node.end_mark.index :]
    key, value = node.value[-1]
    at = _line_end(text, _end(value, key))
    before = text[:at] if text[:at].endswith("\n") else text[:at] + "\n"
    if depth == 0:
        before = text if text.endswith("\n") else text + "\n"
        return before + _added(rest, new)
    indent = " " * key.start_mark.column
    return before + f"{indent}{rest[0]}: {as_yaml(_nested(rest[1:], new))}\n" + text[at:]


def _added(rest: Sequence[str], new: Any) -> str:
    """A new setting at the end of the recipe."""
    if len(rest) == 1:
        return f"{rest[0]}: {as_yaml(new)}\n"
    return f"\n{rest[0]}:\n  {rest[1]}: {as_yaml(_nested(rest[2:], new))}\n"


def _nested(rest: Sequence[str], new: Any) -> Any:
    for key in reversed(rest):
        new = {key: new}
    return new


def _over(text: str, key: yaml.Node, value: yaml.Node, new: Any) -> str:
    """The text with the value of a key replaced by one on a line."""
    start, end = value.start_mark.index, _end(value, key)
    block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    if block or start == end or getattr(value, "style", None) in ("|", ">"):
        start = text.index(":", key.end_mark.index) + 1
        rest = text[end:] if end > start else text[start:]
        newline = "\n" if text[max(start, end) - 1] == "\n" else ""
        return f"{text[:start]} {as_yaml(new)}{newline}{rest}"
    return text[:start] + as_yaml(new) + text[end:]


def _found(root: yaml.Node, path: Sequence[str]) -> tuple[Any, int]:
    """The deepest node on a path that is there, and how many of its keys lead there."""
    node, depth = root, 0
    for key in path:
        inner = _value(node, key)
        if inner is None:
            break
        node, depth = inner, depth + 1
    return node, depth


def _value(node: yaml.Node, key: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)


def _pair(root: Any, path: Sequence[str]) -> tuple[yaml.Node, yaml.Node]:
    parent, _ = _found(root, path[:-1])
    return next(pair for pair in parent.value if pair[0].value == path[-1])


def _end(node: yaml.Node, key: yaml.Node) -> int:
    """Where the text of a value ends, without the blank lines and comments behind a block."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        inner_key, inner = last if isinstance(last, tuple) else (key, last)
        return _end(inner, inner_key)
    return (
        max(node.end_mark.index, key.end_mark.index)
        if node.start_mark.index == node.end_mark.index
        else node.end_mark.index
    )


def _line_end(text: str, at: int) -> int:
    """Where the next line starts."""
    if at and text[at - 1] == "\n":  # a block of text ends behind its line
        return at
    end = text.find("\n", at)
    return len(text) if end < 0 else end + 1
