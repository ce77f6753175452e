"""YAML text -> plain values with the place of every key: what messages about a recipe are made from.

Values are text, numbers, booleans, null, lists and mappings. Differences from YAML 1.1 on purpose: ``1e-3`` is a
number, dates and sexagesimals are text, a key given twice is an error. Knows nothing of what the keys mean.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from data.common.errors import UserError

Path = tuple[str | int, ...]

LARGEST_TEXT, MAX_VALUES, LARGEST_INT, DEEPEST = 1_000_000, 20_000, 2**63 - 1, 200
PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}


class _Loader(yaml.SafeLoader):
    """SafeLoader with its own copy of the implicit types."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float", ":int"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9][0-9_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _number(convert: type) -> Any:
    def construct(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
        text = str(loader.construct_scalar(node)).replace("_", "").lower()
        return convert(text.replace(".inf", "inf").replace(".nan", "nan"))

    return construct


_Loader.add_constructor("tag:yaml.org,2002:int", _number(int))
_Loader.add_constructor("tag:yaml.org,2002:float", _number(float))


@dataclass
class Source:
    """A recipe's plain values and where each came from."""

    name: str  # the file, or "recipe" for a dict
    data: dict[str, Any]
    places: dict[Path, str] = field(default_factory=dict)  # path -> "file:line" or "--set a.b=c"

    def place(self, path: Sequence[str | int]) -> str:
        """Where a key, or else the group that it belongs to, was written."""
        for end in range(len(path), -1, -1):
            if (found := self.places.get(tuple(path[:end]))) is not None:
                return found
        return self.name

    def value(self, path: Sequence[str | int]) -> Any:
        """The value at a path.

        Raises:
            LookupError: there is none.
        """
        here: Any = self.data
        for step in path:
            if isinstance(here, dict) or (isinstance(here, list) and isinstance(step, int)):
                here = here[step]  # type: ignore[index]
            else:
                raise LookupError(step)
        return here


def read_text(text: str, name: str) -> Source:
    """Parse a recipe.

    Raises:
        UserError: not YAML, not a mapping, a key twice, or a tag that is not plain data.
    """
    if len(text) > LARGEST_TEXT:
        raise UserError(f"{name}: {len(text):,} characters are no recipe (at most {LARGEST_TEXT:,})")
    if _depth(text) > DEEPEST:
        raise UserError(f"{name}: is nested too deeply for a recipe (more than {DEEPEST} brackets)")
    source = Source(name=name, data={})
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise UserError(f"{name}: is empty; a recipe needs at least `base` and `data` (docs/how-to/recipe.md)")
            _bounded(node, name)
            data = _build(loader, node, (), source, ())
        finally:
            loader.dispose()
    except RecursionError:
        raise UserError(f"{name}: is nested too deeply for a recipe") from None
    except yaml.YAMLError as error:
        raise UserError(f"{_where(name, error)}: not readable as YAML: {_problem(error)}") from error
    if not isinstance(data, dict):
        raise UserError(f"{name}: a recipe is a mapping of settings (`key: value`), this is a {_kind(data)}")
    source.data = data
    return source


def _depth(text: str) -> int:
    """How many brackets are open at once at most: the parser is slow on many."""
    deepest = now = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        now = now + 1 if bracket in "[{" else max(0, now - 1)
        deepest = max(deepest, now)
    return deepest


def _bounded(root: yaml.Node, name: str) -> None:
    """Refuse aliases that stand for more values than any recipe has, before anything is expanded."""
    counts: dict[int, int] = {}

    def count(node: yaml.Node, above: tuple[int, ...]) -> int:
        if id(node) in above:
            raise UserError(f"{name}:{node.start_mark.line + 1}: an alias that contains itself")
        if id(node) not in counts:
            inner = (*above, id(node))
            items = node.value if not isinstance(node, yaml.ScalarNode) else []
            parts = [p for item in items for p in (item if isinstance(item, tuple) else (item,))]
            counts[id(node)] = 1 + sum(count(part, inner) for part in parts)
            if counts[id(node)] > MAX_VALUES:
                raise UserError(
                    f"{name}:{node.start_mark.line + 1}: its aliases stand for more than {MAX_VALUES:,} values"
                )
        return counts[id(node)]

    count(root, ())


def _plain(loader: _Loader, node: yaml.Node, place: str) -> Any:
    """A text, number, true, false or null."""
    try:
        value = loader.construct_object(node)
    except (ValueError, KeyError, AttributeError, OverflowError):
        raise UserError(f"{place}: {str(node.value)[:40]!r} is no value that a recipe can hold") from None
    if isinstance(value, int) and abs(value) > LARGEST_INT:
        raise UserError(f"{place}: the number {str(node.value)[:20]}... is too large (at most {LARGEST_INT})")
    return value


def _build(loader: _Loader, node: yaml.Node, path: Path, source: Source, above: tuple[int, ...]) -> Any:
    line = node.start_mark.line + 1
    if id(node) in above:
        raise UserError(f"{source.name}:{line}: an alias that contains itself")
    above = (*above, id(node))
    if node.tag not in PLAIN:
        tag = str(node.tag).rpartition(":")[2]
        what = f"the tag '{tag}' makes no plain value; leave it out"
        raise UserError(f"{source.name}:{line}: not readable as YAML: {what}")
    source.places.setdefault(path, f"{source.name}:{line}" if path else source.name)
    if isinstance(node, yaml.MappingNode):
        _no_duplicates(node, path, source.name)
        loader.flatten_mapping(node)
        out = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            inner = (*path, key)
            source.places[inner] = f"{source.name}:{key_node.start_mark.line + 1}"
            out[key] = _build(loader, value_node, inner, source, above)
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*path, i), source, above) for i, item in enumerate(node.value)]
    return _plain(loader, node, f"{source.name}:{line}")


def _no_duplicates(node: yaml.MappingNode, path: Path, name: str) -> None:
    first: dict[str, int] = {}
    for key_node, _ in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{name}:{line}: a key must be a plain word")
        key = key_node.value
        if key in first:
            dotted = ".".join(map(str, (*path, key)))
            raise UserError(f"{name}:{line}: {dotted} is given twice (first in line {first[key]}); remove one")
        first[key] = line


def read_value(text: str) -> Any:
    """One value, as on the command line.

    Raises:
        yaml.YAMLError: not readable.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _bounded(node, "value")
        return _build(loader, node, (), Source(name="value", data={}), ())
    finally:
        loader.dispose()


def apply_override(source: Source, override: str) -> None:
    """Set one ``a.b=c``; groups on the way are made, list items are named by number.

    Raises:
        UserError: no ``=``, or a path through something that is no group.
    """
    dotted, equals, text = override.partition("=")
    if _depth(text) > DEEPEST:
        raise UserError(f"--set {dotted}: the value is nested too deeply")
    steps = [s.strip() for s in dotted.split(".")]
    if not equals or not all(steps):
        raise UserError(f"--set {override}: must have the form key.subkey=value, for example --set ppo.kl_coef=0.1")
    if not text.strip():
        raise UserError(f"--set {override}: the value is empty; write null for none, or give one (a shell's variable?)")
    try:
        value = read_value(text)
    except UserError as error:
        raise UserError(f"--set {override}: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"--set {override}: the value is not readable as YAML; quote it") from error
    here: Any = source.data
    path: Path = ()
    for n, step in enumerate(steps):
        last = n == len(steps) - 1
        index = _step(here, step, ".".join(steps[:n]), override)
        path = (*path, index)
        source.places[path] = f"--set {override}"
        if last:
            here[index] = value
            for known in [p for p in source.places if p[: len(path)] == path and p != path]:
                del source.places[known]
        else:
            if isinstance(here, dict) and here.get(step) is None:
                here[index] = {}
            here = here[index]


def _step(here: Any, step: str, above: str, override: str) -> str | int:
    if isinstance(here, dict):
        return step
    if isinstance(here, list):
        if step.isdigit() and int(step) < len(here):
            return int(step)
        raise UserError(f"--set {override}: {above} is a list of {len(here)}; name an item by its number, from 0")
    raise UserError(
        f"--set {override}: {above} is {here!r}, not a group with settings of its own; set {above} itself instead"
    )


def _where(name: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{name}:{mark.line + 1}" if mark is not None else name


def _problem(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    if "\\t" in str(problem):
        problem = "a tab; indent with blanks"
    return " ".join(str(problem).split())


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list) else "single value"
