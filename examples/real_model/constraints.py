"""Prompts with a rule that can be checked: ``python constraints.py INSTRUCTIONS.json OUT.jsonl``.

Each instruction of an alpaca file gets one of the rules of ``rules.py``, in turn, as a sentence behind it; the columns
``rule`` and ``value`` say which. The instruction's hash decides the rule, so the same file gives the same prompts.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

RULES = [
    ("at_most_words", "20", "Answer in at most 20 words."),
    ("at_least_words", "40", "Answer in at least 40 words."),
    ("sentences", "1", "Answer in exactly one sentence."),
    ("sentences", "3", "Answer in exactly three sentences."),
    ("bullets", "3", "Answer with exactly three bullet points, each on a line that begins with a dash."),
    ("lowercase", "", "Write everything in lowercase letters."),
    ("no_comma", "", "Do not use any commas."),
    ("ends_with", "Is there anything else?", 'End with the words "Is there anything else?"'),
    ("quoted", "", "Put your whole answer in double quotation marks."),
]


def with_rule(instruction: str, given: str) -> dict[str, str]:
    """A prompt with its rule: ``prompt``, ``rule`` and ``value``."""
    number = int.from_bytes(hashlib.sha256(instruction.encode()).digest()[:8], "big") % len(RULES)
    rule, value, sentence = RULES[number]
    asked = f"{instruction}\n\n{given}" if given else instruction
    return {"prompt": f"{asked}\n\n{sentence}", "rule": rule, "value": value}


def main(source: Path, out: Path) -> None:
    rows = json.loads(source.read_text(encoding="utf-8"))
    made = [with_rule(row["instruction"], row.get("input", "")) for row in rows]
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    print(f"{len(made):,} prompts with a rule: {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
