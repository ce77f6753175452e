"""Blind mutants of the mathematics: operators, comparisons, constants, signs, one at a time, by the syntax tree.

    python tests/mutations/generic.py [--only FILE] [--write docs/measurements/mutations_generic.md]

Unlike the planted defects these mean nothing by themselves: many only break the code, and some change nothing that can
be seen. What survives all tests of its file and the oracle is listed, with the reason why it is harmless where
``REASONS`` has one.
"""

from __future__ import annotations

import argparse
import ast
import copy as copying
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.mutations.run import in_child, preload  # noqa: E402
from tests.support.planting import ROOT, copy_tree  # noqa: E402 - after the path is set

ORACLE = ("tests/conformance/test_oracle.py", "llama-False")
# source -> the selections that look for its mutants, cheapest first
FILES: dict[str, list[tuple[str, str]]] = {
    "stages/ppo_math.py": [("tests/stages/test_ppo_math.py", "test"), ORACLE],
    "reward/losses.py": [("tests/reward/test_losses.py", "test")],
    "models/backbone/logprobs.py": [
        (
            "tests/models/backbone/test_logprobs_and_sampling.py",
            "positions or tempered or chunks or entropy or default",
        ),
        ("tests/conformance/test_families.py", "of_a_bf16_model"),
        ORACLE,
    ],
    "models/fast/logprobs.py": [
        ("tests/models/fast/test_fast_path.py", "blocks or exactly or likelihood or more_than"),
        ("tests/models/roles/test_response_loss.py", "plain_path and llama"),
        ORACLE,
    ],
    "stages/ppo/rollout.py": [
        ("tests/stages/ppo/test_update.py", "longest_row"),
        ("tests/conformance/test_ppo_path.py", "loss_reaches or rows_that_the_update or sampled_ids"),
        ORACLE,
    ],
}  # fmt: skip
# words of the source line -> why a surviving mutant of it is harmless
REASONS: dict[str, str] = {
    "@dataclass(": "How the record is built and stored, not what is in it.",
    "field(default_factory=lambda: torch.empty(0))": "A placeholder that is replaced before anything reads it.",
    "CHUNK = ": "How many rows at a time; results do not depend on it.",
    "LOG_RATIO_LIMIT =": "Any limit far outside every clip will do as long as its exponential is finite.",
    "running, next_value = torch.zeros_like": "Only the shape and type of a column are taken.",
    "variance > 1e-12": "At exactly the bound: either way next to zero.",
    "spread > 1e-12": "At exactly the bound: either way next to zero.",
    "count = reduce(mask.sum().double()).clamp(min=1)": "A single token has no spread: the result is 0 either way.",
    "strict=True)), default=1)": "A guard against callers' mistakes; a rollout has as many queries as responses.",
    "strict=True)], pad_id)": "A guard against callers' mistakes; ours give columns of one length.",
    "dim=-1": "The logits have two dimensions: the last one is dimension 1.",
    "if training and h.requires_grad:": "Recomputation changes memory, not values.",
    "logits.amax(-1)": "The logits have two dimensions: the last one is dimension 1.",
    "logits_of(hidden[:0].detach())": "Whether the output layer is trained shows without a row as with one.",
    "entropy_gradient: bool = False": "A gradient that nobody asked for costs a product and is used by nobody.",
    "ROWS, WORDS = ": "How many rows and words at a time; results do not depend on it.",
    'if weight.device.type != "cpu":': "One product or several by blocks: the same logits.",
    "slopes=False)": "Slopes that nobody asked for are computed and thrown away.",
    "if torch.is_grad_enabled() and hidden.requires_grad:": "Slopes that nobody will ask for cost time, not values.",
    "range(0, max(1, len(hidden)), ROWS)": "Without tokens one empty block, with some the same blocks.",
    "inside = (at >= 0) & (at < len(words))": "A word behind the block's last: the next block corrects it.",
    "here = top - p.amax(-1)": "The logits have two dimensions: the last one is dimension 1.",
    "use_reentrant=False": "Either way of recomputing gives the same values and gradients here.",
    "left = 1.0 - before / tied": "Who ties with nobody has nobody before it: 0 divided by 1 or by 2.",
    "order = sorted(range(len(lengths))": "The order of micro-batches; results do not depend on it.",
}

SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And, ast.USub: ast.UAdd, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is, ast.Invert: ast.UAdd,
}  # fmt: skip


@dataclass(frozen=True)
class Blind:
    """One mutant: where, what, and the whole changed source."""

    file: str
    line: int
    what: str
    source: str


def changes(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Fields of a node that can be changed, and a name for the change."""
    for field in ("op", "ops"):
        found = getattr(node, field, None)
        first = found[0] if isinstance(found, list) and found else found
        if isinstance(first, ast.AST) and type(first) in SWAPS:
            yield field, f"{type(first).__name__} -> {SWAPS[type(first)].__name__}"
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        yield "value", f"{node.value!r} -> {other(node.value)!r}"


def other(value: bool | int | float) -> bool | int | float:
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value * 2 + 0.5


def apply(node: ast.AST, field: str) -> None:
    found = getattr(node, field)
    if field == "value":
        node.value = other(found)  # type: ignore[attr-defined]
    elif isinstance(found, list):
        found[0] = SWAPS[type(found[0])]()
    else:
        setattr(node, field, SWAPS[type(found)]())


def annotated(tree: ast.AST) -> set[int]:
    """Nodes inside annotations, which nothing evaluates."""
    inside: set[int] = set()
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if isinstance(part, ast.AST):
                inside |= {id(n) for n in ast.walk(part)}
    return inside


def mutants(file: str) -> Iterator[Blind]:
    """Every mutant of a source file, in the order of its text."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    skipped = annotated(tree)
    nodes = list(ast.walk(tree))
    places = [(i, f, w) for i, n in enumerate(nodes) if id(n) not in skipped for f, w in changes(n)]
    for index, field, what in sorted(places, key=lambda p: getattr(nodes[p[0]], "lineno", 0)):
        changed = copying.deepcopy(tree)
        apply(list(ast.walk(changed))[index], field)
        yield Blind(file, getattr(nodes[index], "lineno", 0), what, ast.unparse(changed))


def survives(copy: Path, blind: Blind) -> bool:
    """Whether all selections pass on the mutant."""
    place = copy / blind.file
    source = place.read_text(encoding="utf-8")
    try:
        place.write_text(blind.source, encoding="utf-8")
        return all(in_child(copy, *selection)["verdict"] == "survived" for selection in FILES[blind.file])
    finally:
        place.write_text(source, encoding="utf-8")


def reason(line: str) -> str:
    return next((why for words, why in REASONS.items() if words in line), "not explained")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a file's name")
    parser.add_argument("--write", type=Path, help="where the list of survivors goes")
    arguments = parser.parse_args()
    preload()
    lines, unexplained = [], 0
    with tempfile.TemporaryDirectory(prefix="trivet-blind-") as folder:
        copy = copy_tree(Path(folder).resolve())
        for file in (f for f in FILES if arguments.only in f):
            found = list(mutants(file))
            text = (ROOT / file).read_text(encoding="utf-8").splitlines()
            left = [b for b in found if survives(copy, b)]
            lines += ["", f"## `{file}`: {len(found) - len(left)} of {len(found)} noticed", ""]
            lines += [f"- `{text[b.line - 1].strip()}`: {b.what}. {reason(text[b.line - 1])}" for b in left]
            unexplained += sum(reason(text[b.line - 1]) == "not explained" for b in left)
            print("\n".join(lines[-len(left) - 2 :]), flush=True)
    if arguments.write:
        head = "# Blind mutants\n\nWhat no test of its file and no oracle notices, and why it does no harm."
        arguments.write.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return int(unexplained > 0)


if __name__ == "__main__":
    sys.exit(main())
