"""The live report: loopback only, new when files change, silent about everything else."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from data.common.errors import UserError
from pipelines.cli.watch import serving, version


def _get(address: str, path: str = "", host: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(address + path, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_page_grows_with_the_run(tmp_path: Path):
    with serving(tmp_path) as address:
        assert address.startswith("http://127.0.0.1:")
        assert "No stage has started yet" in _get(address)[1]
        (tmp_path / "run.json").write_text(json.dumps({"name": "mine", "stages": {"sft": {"status": "running"}}}))
        partial = tmp_path / ".sft.partial"
        partial.mkdir()
        before = version(tmp_path)
        rows = [{"step": i, "loss": 1 / i} for i in (1, 2)]
        (partial / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        status, page = _get(address)
        assert status == 200 and "chart-sft-loss" in page and "connect-src 'self'" in page
        now = _get(address, "version")[1]
        assert now == version(tmp_path) != before and now in page
        with (partial / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 3, "loss": 0.1}) + "\n")
        assert _get(address, "version")[1] != now
        assert '"x":[1,2,3]' in _get(address)[1]
    assert not (tmp_path / "report.html").exists()
    with pytest.raises((urllib.error.URLError, http.client.HTTPException)):
        _get(address)


def test_other_hosts_and_paths_get_nothing(tmp_path: Path):
    with serving(tmp_path) as address:
        assert _get(address, host="evil.example")[0] == 403
        assert _get(address, "../../etc/passwd")[0] == 404 and _get(address, "run.json")[0] == 404
        port = int(address.rsplit(":", 1)[1].strip("/"))
        with pytest.raises(UserError, match=f"--port {port}"), serving(tmp_path, port):
            pass
    with pytest.raises(UserError, match="no such run folder"), serving(tmp_path / "none"):
        pass
