"""Every call in the source that could run code of others, found in its syntax tree and asked to be the safe kind."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("data", "models", "reward", "stages", "evaluation", "pipelines")
FILES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))
UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "tarfile", "zipfile"}
UNSAFE_CALLS = {"torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "os.system", "np.load", "numpy.load"}
READS_ZIP = {"data/readers/packed.py", "data/readers/spreadsheet.py"}  # members are read in memory, none extracted
RENDERS = {"data/template_sandbox.py", "pipelines/report/page.py"}  # a bounded process; our own template


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def unsafe(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"line {node.lineno}: imports {n}" for n in names if n.split(".")[0] in UNSAFE_MODULES)
        if not isinstance(node, ast.Call):
            continue
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        name = called(node)
        if name.endswith(".from_pretrained") and options.get("trust_remote_code") != "False":
            yield f"line {node.lineno}: {name} without trust_remote_code=False"
        elif (
            name.startswith("AutoModel")
            and name.endswith(".from_pretrained")
            and options.get("use_safetensors") != "True"
        ):
            yield f"line {node.lineno}: {name} without use_safetensors=True"
        if name in UNSAFE_CALLS or options.get("shell") == "True" or options.get("weights_only"):
            yield f"line {node.lineno}: {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_call_runs_code_of_others(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = list(unsafe(ast.parse(text)))
    if str(path.relative_to(ROOT)) in READS_ZIP:
        assert ".extract" not in text
        found = [f for f in found if not f.endswith("imports zipfile")]
    assert found == []


def test_an_unsafe_call_would_be_seen() -> None:
    for text in (
        "import pickle",
        "from zipfile import ZipFile",
        "torch.load(f)",
        "AutoModel.from_pretrained(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=False, use_safetensors=False)",
        "yaml.load(f)",
        "subprocess.run(x, shell=True)",
    ):
        assert len(list(unsafe(ast.parse(text)))) == 1, text


def test_templates_are_rendered_in_two_places_only() -> None:
    texts = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in FILES}
    found = {n for n, t in texts.items() if ("jinja" in t and ".render(" in t) or "render_jinja_template" in t}
    assert found == RENDERS
