"""The doctor's verdict in lines, of real files."""

from __future__ import annotations

import json
from pathlib import Path

from data.checks import check_files
from pipelines.ui.data_verdict import verdicts


def test_rows_uses_and_doubts(tmp_path: Path) -> None:
    good = [{"prompt": f"what is {i} and {i + 1} ?", "completion": f"it is {2 * i + 1} ."} for i in range(6)]
    rows = [*good, good[0]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{no json\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": good[1]["prompt"], "chosen": "yes .", "rejected": "no ."}))
    names = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    first, second = verdicts(json.loads(json.dumps(check_files(names).as_dict())))
    assert first.headline == "8 rows, prompt and completion" and not first.good
    assert "7 as demonstrations (SFT)" in first.facts[0]
    assert first.doubts[0] == "1 of 8 rows cannot be used" and "a.jsonl:8" in first.doubts[1]
    assert "1 of 8 rows repeat one before" in first.doubts
    assert second.facts[0].startswith("usable: 1 as rankings (the reward model)") and second.headline.startswith(
        "1 row,"
    )
    assert any(f"1 prompts are in {names[0]} as well" in text for text in second.doubts)
