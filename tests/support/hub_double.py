"""The part of the hub's HTTP API that an upload needs, on loopback: tokens, repositories, commits and large files."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_" + "a" * 30


@dataclass
class Repo:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Hub:
    """What it holds, what it was asked, and what it refuses: path -> status."""

    address: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    refuses: dict[str, int] = field(default_factory=dict)

    def reply(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        self.asked.append((method, path))
        if (status := next((s for start, s in self.refuses.items() if path.startswith(start)), 0)) != 0:
            return status, {"error": "the double refuses it"}
        if method == "PUT":
            self.large[path.rsplit("/", 1)[1]] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        parts = path.strip("/").split("/")
        match method, *parts:
            case "GET", "api", "whoami-v2":
                return 200, {"type": "user", "name": "me", "auth": {"accessToken": {"role": "write"}}}
            case "POST", "api", "validate-yaml":
                return 200, {"errors": [], "warnings": []}
            case "POST", "api", "repos", "create":
                return self._create(json.loads(body))
            case "POST", owner, repo, "info", "lfs", "objects", "batch":
                return 200, self._batch(json.loads(body))
            case _, "api", "models", owner, repo, *rest:
                name = f"{owner}/{repo}"
                if name not in self.repos:
                    return 404, {"error": "Repository not found"}
                return 200, self._of(self.repos[name], name, rest, body)
        return 404, {"error": f"the double has no {method} {path}"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = "/".join(filter(None, (asked.get("organization") or "me", asked["name"])))
        private = asked.get("private") or asked.get("visibility") == "private"
        self.repos[name] = Repo(private=bool(private), files={".gitattributes": b"*.safetensors lfs\n"})
        return 200, {"url": f"{self.address}/{name}", "name": name, "id": "1"}

    def _batch(self, asked: dict[str, Any]) -> Any:
        objects = [{**o, "actions": {"upload": {"href": f"{self.address}/large/{o['oid']}"}}} for o in asked["objects"]]
        return {"transfer": "basic", "objects": objects}

    def _of(self, repo: Repo, name: str, rest: list[str], body: bytes) -> Any:
        match rest:
            case ["preupload", _]:
                files = json.loads(body)["files"]
                modes = {f["path"]: "lfs" if f["path"].endswith(".safetensors") else "regular" for f in files}
                return {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
            case ["commit", _]:
                self._commit(repo, [json.loads(line) for line in body.splitlines()])
                return {"commitUrl": f"{self.address}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40}
            case ["tree", *_]:
                return [{"type": "file", "path": p, "size": len(b), "oid": "0" * 40} for p, b in repo.files.items()]
            case _:
                siblings = [{"rfilename": p} for p in repo.files]
                return {"id": name, "private": repo.private, "siblings": siblings, "sha": "0" * 40, "tags": []}

    def _commit(self, repo: Repo, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                stored = self.large[value["oid"]]
                assert hashlib.sha256(stored).hexdigest() == value["oid"]
                repo.files[value["path"]] = stored
            elif line["key"] == "deletedFile":
                del repo.files[value["path"]]


@contextmanager
def hub_double() -> Iterator[Hub]:
    """A hub at ``address`` that knows one token."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            if self.headers.get("Transfer-Encoding", "") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path.replace(".git/", "/")
            status, value = hub.reply(self.command, path, body, self.headers.get("Authorization", ""))
            text = json.dumps(value).encode()
            self.send_response(status)
            if status == 404 and "not found" in str(value):
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = handle_any

        def log_message(self, *_: object) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
