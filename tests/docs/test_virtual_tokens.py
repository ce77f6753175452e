"""The page about virtual tokens and stop strings, word for word: its recipe runs, and its program asks the export."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import tiny_lm
from tests.docs.commands import ROOT, shell
from tests.support.rendering import byte_tokenizer

PAGE = (ROOT / "docs/how-to/virtual_tokens.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"(?ms)^```{language}\n(.*?)^```", PAGE)
    return str(found)


@pytest.mark.slow
def test_the_page_runs_as_it_is_written(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tiny_lm(vocab_size=len(tokenizer), max_position_embeddings=128).save_pretrained(tmp_path / "my-base")
    tokenizer.save_pretrained(tmp_path / "my-base")
    shown = [{"prompt": f"hello {n}", "completion": f"bye {n}"} for n in range(40)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, shown)) + "\n")
    (tmp_path / "virtual.yaml").write_text(block("yaml"))
    for command in block("sh").splitlines():
        done = shell(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    results = json.loads((tmp_path / "runs/virtual/evaluation/results.json").read_text())
    assert results["systems"].keys() == {"base", "sft"}
    config = json.loads((tmp_path / "tuned/adapter_config.json").read_text())
    assert (config["peft_type"], config["num_virtual_tokens"]) == ("PREFIX_TUNING", 8)
    program = [sys.executable, "-c", block("python")]
    asked = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert asked.returncode == 0, asked.stderr[-3000:]
    assert asked.stdout.startswith("['\\nUser:'] ")
