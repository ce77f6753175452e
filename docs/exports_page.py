"""The page of exports: which form is loaded in which tool by a test, and what it gives there."""

from __future__ import annotations

ABOUT = """\
Each cell is a test that exports a tuned model or a reward model, opens it in the tool and compares what comes out with
the run itself, in fp32: logits, the first 32 greedy tokens, scores of responses. In an empty cell the tool does not
know the form, or no test opens it there. llama.cpp computes with fp16 and eight-bit files in lower precision, so that
its tokens may differ from those of the same weights elsewhere. The tests of vLLM need its own environment (`make
vllm-env`), and are slow.
"""
FAMILIES = """\
A GGUF file is written for families and tokenizers that llama.cpp has as Transformers does, and others are refused by
name: [how](../how-to/serving.md#for-llamacpp-and-ollama). Reward models whose scores no plain classifier gives (another
pooling, an ensemble) are refused merged. A `Modelfile` is written beside every GGUF file; no test runs Ollama.
"""


def exports_page(note: str) -> str:
    """``exports.md``; ``note`` says whose writing it is."""
    from tests.support.export_table import AT_EXPORT, CELLS, FORMS, REFUSED, TOOLS

    out = ["# Exports and tools", "", note, ABOUT, f"| form | {' | '.join(TOOLS)} |", "| --- |" + " --- |" * len(TOOLS)]
    for name in FORMS:
        cells = (_cell(CELLS.get((name, tool)), REFUSED.get((name, tool))) for tool in TOOLS)
        out.append(f"| {name} | {' | '.join(cells)} |")
    out += ["", "## Forms", "", "| form | `trivet export RUN` | what it is |", "| --- | --- | --- |"]
    out += [f"| {name} | `{form.options}` | {form.what} |" for name, form in FORMS.items()]
    out += ["", "## Tools", ""]
    out += [f"- **{tool}**: {how}." for tool, how in TOOLS.items()]
    out += ["", "## Refused at export", "", FAMILIES, "| `trivet export RUN` | the message says |", "| --- | --- |"]
    out += [f"| `{options}` | {words} |" for options, words in AT_EXPORT.items()]
    return "\n".join([*out, ""])


def _cell(given: str | None, refused: str | None) -> str:
    return f"✓ {given}" if given else f"✗ {refused}" if refused else ""
