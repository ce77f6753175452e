"""Plant every defect of ``table`` in a copy of the source, one at a time, and say whether its tests notice.

    python tests/mutations/run.py [--only WORD] [--write docs/measurements/mutations.md]

Heavy libraries are loaded once; each defect gets a forked process that imports trivet from the copy. A defect is caught
when a test fails on an assertion of its own; an error of any other kind is a crash and does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.mutations.table import MUTANTS, Mutant  # noqa: E402
from tests.support.planting import PACKAGES, ROOT, copy_tree, mutated  # noqa: E402 - after the path is set

LIMIT = 300  # seconds of processor time for one selection of tests; a pause of the machine does not count


class Watcher:
    """What the first failure was."""

    def __init__(self, copy: Path) -> None:
        self.copy, self.passed = copy, 0
        self.verdict, self.detail = "", ""

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        import pytest

        if call.excinfo is None:
            self.passed += call.when == "call"
            return
        if self.verdict or call.excinfo.errisinstance(pytest.skip.Exception):
            return
        last = Path(str(call.excinfo.traceback[-1].path))
        ours = any(last.is_relative_to(self.copy / name) for name in PACKAGES)
        failed = call.excinfo.errisinstance((AssertionError, pytest.fail.Exception))
        self.verdict = "caught" if call.when == "call" and failed and not ours else "crashed"
        self.detail = f"{item.name}: {call.excinfo.exconly()}"[:300]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.verdict, self.detail = "crashed", str(report.longrepr)[-300:]


def run_tests(copy: Path, file: str, select: str) -> dict[str, Any]:
    """Verdict of a selection, in this process: caught, crashed, survived or empty."""
    import pytest

    os.chdir(copy)
    for name in [m for m in sys.modules if m.split(".")[0] in (*PACKAGES, "tests")]:
        del sys.modules[name]
    sys.path[:] = [str(copy), *(p for p in sys.path if p and not Path(p).resolve().is_relative_to(ROOT / "tests"))]
    sys.path[:] = [p for p in sys.path if Path(p).resolve() != ROOT]
    watcher = Watcher(copy)
    pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "", file, "-k", select], plugins=[watcher])
    import models

    if not Path(str(models.__file__)).is_relative_to(copy):
        return {"verdict": "crashed", "detail": f"trivet came from {models.__file__}, not from the copy"}
    return {
        "verdict": watcher.verdict or ("survived" if watcher.passed else "empty"),
        "detail": watcher.detail,
        "passed": watcher.passed,
    }


def in_child(copy: Path, file: str, select: str) -> dict[str, Any]:
    """``run_tests`` in a forked process with its output thrown away and a time limit."""
    answer = copy / "answer.json"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
            sink = os.open(copy / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            answer.write_text(json.dumps(run_tests(copy, file, select)))
        os._exit(0)
    os.waitpid(child, 0)
    if not answer.is_file():
        return {"verdict": "crashed", "detail": (copy / "output.txt").read_text()[-300:]}
    return json.loads(answer.read_text())


def preload() -> None:
    """What every test needs and no defect changes."""
    import datasets
    import hypothesis
    import peft
    import scipy.stats
    import sklearn
    import torch
    import transformers
    import trl

    torch.set_num_threads(1)
    del datasets, hypothesis, peft, scipy, sklearn
    for name in ("LlamaForCausalLM", "GPT2LMHeadModel", "Trainer"):
        getattr(transformers, name)
    _ = trl.SFTTrainer


def judge(copy: Path, mutant: Mutant) -> dict[str, Any]:
    """Plant, look, put back."""
    file = copy / mutant.file
    source = file.read_text(encoding="utf-8")
    try:
        file.write_text(mutated(source, mutant.old, mutant.new), encoding="utf-8")
        return in_child(copy, mutant.tests, mutant.select)
    except ValueError as error:
        return {"verdict": "crashed", "detail": str(error)}
    finally:
        file.write_text(source, encoding="utf-8")


def report(results: list[tuple[Mutant, dict[str, Any]]]) -> str:
    """A table in Markdown, the same for the same source."""
    counts = Counter(found["verdict"] for _, found in results)
    lines = [
        "# Planted defects",
        "",
        "Written by `make mutations`. Each line is one defect put into a copy of the source; `caught` means that a",
        "named test fails on an assertion. Classes are those of [conformance](../design/conformance.md).",
        "",
        f"**{counts['caught']} of {len(results)} caught** ("
        + ", ".join(f"{v} {k}" for k, v in sorted(counts.items()))
        + ").",
        "",
        "| class | defect | file | looked for by | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for mutant, found in results:
        by = f'`{Path(mutant.tests).parent.name}/{Path(mutant.tests).name}` -k "{mutant.select}"'
        lines.append(f"| {mutant.group} | {mutant.what} | `{mutant.file}` | {by} | {found['verdict']} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="classes, files or words of the defects, with commas")
    parser.add_argument("--write", type=Path, help="where the table goes")
    arguments = parser.parse_args()
    words = arguments.only.split(",")
    chosen = [m for m in MUTANTS if any(w in (m.group, m.file) or w in m.what for w in words)]
    preload()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="trivet-mutants-") as folder:
        copy = copy_tree(Path(folder).resolve())
        for file in dict.fromkeys(m.tests for m in chosen):
            select = " or ".join(dict.fromkeys(f"({m.select})" for m in chosen if m.tests == file))
            found = in_child(copy, file, select)
            if found["verdict"] != "survived":
                print(f"without any defect, {file} -k '{select}' {found['verdict']}: {found['detail']}", flush=True)
                failed += 1
        results = []
        for mutant in chosen:
            started = time.perf_counter()
            found = judge(copy, mutant)
            results.append((mutant, found))
            shown = "" if found["verdict"] == "caught" else f"\n    {found['detail']}"
            seconds = time.perf_counter() - started
            print(f"{found['verdict']:9} {seconds:5.1f} s  {mutant.group:4} {mutant.what}{shown}", flush=True)
    text = report(results)
    caught = sum(found["verdict"] == "caught" for _, found in results)
    print(f"{caught} of {len(results)} planted defects caught")
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
    return int(failed > 0 or caught < len(results))


if __name__ == "__main__":
    sys.exit(main())
