"""A vLLM server's interface over trivet's own sampling: adapters are read from the files that it is told of.

Its answers have the fields of vLLM 0.32's. ``faults`` makes it err in ways that real servers were seen to.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from data.stop_strings import StopStrings
from models.roles.shared_base import SharedBase
from models.sampling.generate import CachedEngine, SamplingParams

Answer = dict[str, Any]


@dataclass
class VLLMDouble:
    """What one server holds; ``change`` is given each completion before it is sent."""

    base: SharedBase
    room: int = 64
    change: Callable[[Answer], Answer] = lambda answer: answer
    stale: bool = False  # a name that is loaded later means the first adapter still
    dies_after: int | None = None  # completions, then connections end without an answer
    seconds: float = 0.0  # that a completion takes
    loaded: list[str] = field(default_factory=list)
    asked: list[Answer] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)

    def load(self, body: Answer) -> tuple[int, Any]:
        name = body["lora_name"]
        if name in self.roles:
            return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded.", "code": 400}}
        if self.stale and self.roles:
            self.roles[name] = next(iter(self.roles.values()))
        else:
            self.roles[name] = f"r{len(self.loaded)}"
            self.base.add_role(self.roles[name], Path(body["lora_path"]))
        self.loaded.append(name)
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, body: Answer) -> tuple[int, Any]:
        if body["lora_name"] not in self.roles:
            return 404, {"error": {"message": "The lora adapter cannot be found.", "code": 404}}
        if not self.stale:
            del self.roles[body["lora_name"]]
        return 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully."

    def models(self) -> tuple[int, Any]:
        card = {"object": "model", "owned_by": "vllm", "root": "base"}
        made = [card | {"id": "base", "parent": None, "max_model_len": self.room}]
        return 200, {"object": "list", "data": [*made, *(card | {"id": n, "parent": "base"} for n in self.roles)]}

    def complete(self, body: Answer) -> tuple[int, Any]:
        self.asked.append(body)
        if body["model"] not in {"base", *self.roles}:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}}
        greedy = body["temperature"] == 0
        params = SamplingParams(
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"] or 1.0,
            stop_ids=body["stop_token_ids"],
            stop_strings=StopStrings(self.base.tokenizer, body.get("stop", [])),
        )
        g = None if greedy else torch.Generator().manual_seed(body["seed"])
        noise = None if g is None else torch.rand((1, body["max_tokens"]), generator=g, dtype=torch.float64)
        with self.base.role(self.roles.get(body["model"], "base")) as role:
            made = CachedEngine(with_logprobs=True)(role, [body["prompt"]], params=params, noise=noise)
        assert made.logprobs is not None
        ids, stopped = made.ids[0], made.finished[0]
        numbers = made.logprobs[0, : len(ids)].tolist()
        choice = {
            "index": 0,
            "text": "",
            "logprobs": {"token_logprobs": numbers, "tokens": [""] * len(ids), "top_logprobs": [], "text_offset": []},
            "finish_reason": "stop" if stopped else "length",
            "stop_reason": (ids[-1] if ids[-1] in params.stop_ids else "text") if stopped else None,
            "token_ids": ids,
            "prompt_token_ids": body["prompt"],
        }
        return 200, self.change({"object": "text_completion", "model": body["model"], "choices": [choice]})

    def answer(self, path: str, body: Answer | None) -> tuple[int, Any] | None:
        """What is said to a request; None: the connection ends."""
        with self.lock:
            if path == "/v1/completions":
                if self.dies_after is not None and len(self.asked) >= self.dies_after:
                    return None
                made = self.complete(body or {})
            else:
                if self.dies_after is not None and len(self.asked) >= self.dies_after > 0:
                    return None
                routes = {"/v1/load_lora_adapter": self.load, "/v1/unload_lora_adapter": self.unload}
                made = self.models() if path == "/v1/models" else routes[path](body or {})
        time.sleep(self.seconds if path == "/v1/completions" else 0.0)
        return made


@contextmanager
def serving_vllm(double: VLLMDouble) -> Iterator[str]:
    """The double on loopback; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def respond(self, body: Answer | None) -> None:
            made = double.answer(self.path, body)
            if made is None:
                self.close_connection = True
                return
            text = made[1].encode() if isinstance(made[1], str) else json.dumps(made[1]).encode()
            self.send_response(made[0])
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            with suppress(OSError):  # who asked has gone
                self.wfile.write(text)

        def do_GET(self) -> None:
            self.respond(None)

        def do_POST(self) -> None:
            self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, *_: Any) -> None:
            """Silence."""

    class Listening(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

    server = Listening(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
