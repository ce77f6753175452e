"""Arguments of a chat template, such as ``enable_thinking``: written into it as what holds where a caller says nothing.

So whatever keeps or shows the template - an export, a fingerprint, an evaluation - has them with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, TemplateError, nodes

from data.common.errors import UserError, nearest

GIVEN = frozenset({"messages", "tools", "add_generation_prompt", "stop_token", "continue_final_message"})
"""What every conversation brings itself."""


def with_args(name: str, source: str, args: Mapping[str, Any]) -> str:
    """The template's source with its arguments in front.

    Args:
        name: of the template, for messages.
        source: jinja.
        args: values of JSON by the names that the template asks for.

    Raises:
        UserError: the template asks for no such name, or the name is that of the conversation itself.
    """
    if not args:
        return source
    asked = _names(source)
    for key in args:
        if key in GIVEN or key.endswith("_token"):
            raise UserError(f"template_args.{key}: every conversation brings that itself; leave it out")
        if key not in asked:
            known = sorted(asked - GIVEN)
            listed = f" It asks for: {', '.join(known)}." if known else " It asks for nothing besides the conversation."
            raise UserError(
                f"template_args.{key}: template {name} asks for no such name, so that it would have no effect."
                f"{nearest(key, known)}{listed}"
            )
    lines = [
        f"{{%- if {key} is not defined -%}}{{%- set {key} = {_literal(v)} -%}}{{%- endif -%}}"
        for key, v in args.items()
    ]
    return "".join(lines) + source


def _names(source: str) -> frozenset[str]:
    """Names that a template asks the caller for: those that it reads, without those that it only sets itself."""
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"]).parse(_without_generation(source))
    except TemplateError:
        return frozenset()
    found = list(tree.find_all(nodes.Name))
    bound = {one.name for loop in tree.find_all(nodes.For) for one in _targets(loop.target)} | {
        one.name for macro in tree.find_all(nodes.Macro) for one in macro.args
    }
    called = {one.node.name for one in tree.find_all(nodes.Call) if isinstance(one.node, nodes.Name)}
    stored = {one.name for one in found if one.ctx == "store"}
    may_be_missing = {
        one.node.name
        for one in tree.find_all((nodes.Test, nodes.Filter))
        if isinstance(one.node, nodes.Name) and one.name in ("defined", "undefined", "default", "d")
    }
    read = {one.name for one in found if one.ctx == "load"}
    return frozenset(name for name in read - bound - called - _OF_JINJA if name not in stored or name in may_be_missing)


_OF_JINJA = frozenset({"loop", "caller", "varargs", "kwargs", "self", "namespace"})


def _targets(target: nodes.Node) -> list[nodes.Name]:
    return [target] if isinstance(target, nodes.Name) else list(target.find_all(nodes.Name))


def _without_generation(source: str) -> str:
    """Without the marks of Transformers for what is generated, which plain jinja does not know."""
    for mark in ("generation", "endgeneration"):
        for left in ("{%", "{%-"):
            for right in ("%}", "-%}"):
                source = source.replace(f"{left} {mark} {right}", "")
    return source


def _literal(value: Any) -> str:
    """A value of JSON as jinja writes it."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(str(k))}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
