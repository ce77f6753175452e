"""A scorer behind an address on this machine: the server side of both protocols in ``reward.terms.remote``.

On this machine only (``data.common.loopback``). It scores one request at a time, since a model is one. It knows nothing
of what gives the scores.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from data.common import loopback
from data.common.errors import RowError, UserError
from data.common.loopback import Answer, as_json
from data.common.strict_json import object_of
from data.records import Message, Prompt

ROW = {"prompt": str, "completion": str, "messages": list, "finished": bool}
MESSAGE = {
    "role": str,
    "content": str,
    "name": str,
    "tool_call_id": str,
    "tool_calls": list,
    "tools": list,
    "trained": bool,
}
ROLES = ("user", "assistant", "system", "tool")
Scorer = Callable[[Sequence[Mapping[str, Any]]], Sequence[float]]


OK, BAD, FAILED = "200 OK", "400 Bad Request", "500 Internal Server Error"
NOT_FOUND = as_json("404 Not Found", {"error": "there is POST / (trivet's protocol), POST /classify and GET /health"})
NOT_JSON = as_json("415 Unsupported Media Type", {"error": "send JSON with Content-Type: application/json"})
Write = Callable[[list[float]], Any]


class Application:
    """``POST /`` is trivet's protocol, ``POST /classify`` the classifier's, ``GET /health`` an "ok".

    A scorer with ``with_cuts(rows)`` gives with the scores the rows of which only a part was scored; they stand in the
    reply under ``cut``.

    Only ``application/json`` is read, which pages of other sites cannot send without asking first.
    """

    def __init__(self, scorer: Scorer, name: str) -> None:
        self.scorer, self.name, self.lock = scorer, name, threading.Lock()

    def __call__(self, method: str, path: str, environ: Mapping[str, Any], body: bytes) -> Answer:
        if method == "GET" and path == "/health":
            return as_json(OK, {"status": "ok", "name": self.name})
        if method != "POST" or path not in ("/", "/score", "/classify", "/v1/classify"):
            return NOT_FOUND
        if str(environ.get("CONTENT_TYPE") or "").partition(";")[0].strip().lower() != "application/json":
            return NOT_JSON
        if path in ("/", "/score"):
            return self._scored(body, _rows, lambda scores: {"scores": scores})
        return self._scored(body, self._inputs, self._classes)

    def _scored(self, body: bytes, read: Callable[[Any], list[dict[str, Any]]], write: Write) -> Answer:
        try:
            rows = read(object_of(body.decode("utf-8-sig"), "the request"))
        except UserError as error:
            return as_json(BAD, {"error": f"{error}"})
        except UnicodeDecodeError as error:
            return as_json(BAD, {"error": f"the request: is no UTF-8 text (byte {error.start})"})
        return self._result(rows, write)

    def _result(self, rows: list[dict[str, Any]], write: Write) -> Answer:
        """A row that the scorer refuses is the sender's mistake; what else it fails with is ours, which may pass."""
        try:
            with self.lock:
                scores, cut = self._with_cuts(rows) if rows else ([], [])
            if odd := [i for i, s in enumerate(scores) if not math.isfinite(s)]:
                return as_json(FAILED, {"error": f"row {odd[0]} was scored {scores[odd[0]]}, which is no number"})
            return as_json(OK, write(scores) | ({"cut": cut} if cut else {}))
        except RowError as error:
            return as_json(BAD, {"error": f"row {error.row}: {str(error).partition(': ')[2]}"})
        except UserError as error:
            return as_json(FAILED, {"error": f"{error}"})
        except Exception as error:
            return as_json(FAILED, {"error": f"{type(error).__name__}: {error}"})

    def _with_cuts(self, rows: list[dict[str, Any]]) -> tuple[list[float], list[int]]:
        of_model = getattr(self.scorer, "with_cuts", None)
        scores, cut = (self.scorer(rows), []) if of_model is None else of_model(rows)
        return [float(s) for s in scores], cut

    def _inputs(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Texts of the classifier's protocol: what stands before the last empty line is the prompt."""
        texts = body.get("input")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise UserError('send {"input": ["text", ...]}')
        _known(body, ("input", "model"), "the request")
        if (model := body.get("model")) not in (None, self.name):
            raise UserError(f"the request: there is no model {str(model)[:80]!r}; leave it out, or name {self.name!r}")
        parts = [t.rpartition("\n\n") for t in texts]
        return _rows({"rows": [{"prompt": before, "completion": after} for before, _, after in parts]})

    def _classes(self, scores: list[float]) -> dict[str, Any]:
        rows = [{"index": i, "label": "reward", "probs": [s], "num_classes": 1} for i, s in enumerate(scores)]
        return {"object": "list", "model": self.name, "data": rows}


def _rows(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = body.get("rows")
    if not isinstance(rows, list):
        raise UserError('send {"rows": [{"prompt": "...", "completion": "..."}, ...]}')
    _known(body, ("rows",), "the request")
    made = []
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("completion"), str):
            raise UserError(f"row {i} is no object with a `completion`")
        wrong = [k for k, kind in ROW.items() if k in row and not isinstance(row[k], kind)]
        if wrong:
            raise UserError(f"row {i}: `{wrong[0]}` should be {ROW[wrong[0]].__name__}")
        _known(row, tuple(ROW), f"row {i}")
        prompt = row.get("prompt", "")
        messages = row.get("messages") or ([{"role": "user", "content": prompt}] if prompt else [])
        messages = [_message(m, f"row {i}") for m in messages]
        if any("\ud800" <= c <= "\udfff" for text in _texts([prompt, row["completion"], messages]) for c in text):
            raise UserError(f"row {i}: holds half of a surrogate pair, which is no text")
        asked = Prompt(messages=tuple(map(Message.from_dict, messages)), group="").text
        if prompt and prompt != asked:
            raise UserError(f"row {i}: `prompt` is not the text of its `messages`; give one of them")
        made.append({"finished": True, **row, "prompt": asked, "messages": messages})
    return made


def _message(turn: Any, where: str) -> dict[str, Any]:
    """A turn as ``Message.as_dict`` writes it; what is null is not there."""
    turn = {k: v for k, v in turn.items() if v is not None} if isinstance(turn, dict) else {}
    if turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
        raise UserError(f"{where}: a message is no object with a role ({', '.join(ROLES)}) and content, a text")
    _known(turn, tuple(MESSAGE), f"{where}: a message")
    if wrong := [k for k, kind in MESSAGE.items() if k in turn and not isinstance(turn[k], kind)]:
        raise UserError(f"{where}: `{wrong[0]}` of a message should be {MESSAGE[wrong[0]].__name__}")
    return turn


def _known(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Refuse what nothing would read."""
    if more := [k for k in given if k not in known]:
        raise UserError(f"{where}: nothing reads `{more[0]}`; there are {', '.join(known)}")


def _texts(value: Any) -> Iterator[str]:
    """Every text in JSON values, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for pair in value.items() for one in pair for text in _texts(one))
    elif isinstance(value, list):
        yield from (text for one in value for text in _texts(one))


@contextlib.contextmanager
def serving(scorer: Scorer, port: int = 0, name: str = "reward", patience: int = 30) -> Iterator[str]:
    """Serve in a thread; yields the address. Port 0 takes a free one.

    Args:
        scorer: from rows (``prompt``, ``completion``, ``messages``, ``finished``) to one number each.
        patience: seconds after which a silent connection is closed.

    Raises:
        UserError: the port is taken.
    """
    with loopback.serving(Application(scorer, name), port, patience) as address:
        yield address
