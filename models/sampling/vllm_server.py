"""One vLLM server as its OpenAI-compatible interface shows it: token ids in, token ids and log-probabilities out.

A request asks for one response, since a seed holds for a whole request. Every warper is named neutral, stops are the
request's own ids and strings, and what comes back is checked: the prompt that was read, the adapter that answered, the
number of tokens and of log-probabilities, and the way in which the response ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.common.http_client import Server, Unusable
from models.sampling.generate import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """Sampled ids, with what ended them, and of each its log-probability in nats under the tempered distribution."""

    ids: list[int]
    logprobs: list[float]
    finished: bool


class VLLMServer:
    """A server that was started as ``trivet rollout-server`` starts one.

    Args:
        server: its address and how it is asked.
    """

    def __init__(self, server: Server) -> None:
        self.server, self.url = server, server.url.rstrip("/").removesuffix("/v1")

    def _at(self, path: str) -> Server:
        return replace(self.server, url=f"{self.url}/v1/{path}")

    def models(self) -> dict[str, dict[str, Any]]:
        """The names that it answers to, with what it says of each.

        Raises:
            RemoteError: it does not answer, or not as vLLM does.
        """
        return self._at("models").get(_models_in)

    def load_adapter(self, name: str, folder: str) -> None:
        """Load a PEFT folder, which the server must see under the same path, as ``name``.

        Raises:
            RemoteError: it refuses, for instance since it was not started for adapters or of this rank.
        """
        if name in self.models():
            return
        self._at("load_lora_adapter").tell({"lora_name": name, "lora_path": folder})

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; RemoteError where the server refuses."""
        self._at("unload_lora_adapter").tell({"lora_name": name})

    def complete(self, model: str, prompt: Sequence[int], params: SamplingParams, seed: int | None) -> Response:
        """One response.

        Args:
            model: the name of the base or of a loaded adapter.
            prompt: ids, not empty.
            params: how it is sampled.
            seed: of this response; None: greedy.

        Raises:
            RemoteError: no usable answer after all retries.
        """
        body = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": params.max_new_tokens,
            "temperature": 0.0 if seed is None else params.temperature,
            "seed": seed,
            **NEUTRAL,
            "stop_token_ids": list(params.stop_ids),
            **({"stop": list(params.stop_strings.texts)} if params.stop_strings else {}),
        }
        return self._at("completions").post(body, lambda answer: response_in(answer, model, prompt, params))


NEUTRAL: dict[str, Any] = {
    "n": 1,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "ignore_eos": True,  # the stops are those of the request alone
    "logprobs": 0,  # of the sampled token
    "return_token_ids": True,
    "add_special_tokens": False,
    "skip_special_tokens": False,
    "stream": False,
}


def _models_in(answer: Any) -> dict[str, dict[str, Any]]:
    found = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(found, list) or not all(isinstance(m, dict) and isinstance(m.get("id"), str) for m in found):
        raise Unusable('its answer is no object with "data", a list of models')
    return {m["id"]: m for m in found}


def response_in(answer: Any, model: str, prompt: Sequence[int], params: SamplingParams) -> Response:
    """The response of an answer.

    Raises:
        Unusable: it is of another shape, of another model or prompt, or its tokens and log-probabilities do not match.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list) or len(answer["choices"]) != 1:
        raise Unusable('its answer is no object with "choices", a list of one')
    if answer.get("model") != model:
        raise Unusable(f"model {answer.get('model')!r} answered instead of {model!r}")
    choice = answer["choices"][0]
    ids = choice.get("token_ids") if isinstance(choice, dict) else None
    if not isinstance(ids, list) or not ids or not all(isinstance(i, int) and i >= 0 for i in ids):
        raise Unusable('it gave no "token_ids": it must be vLLM 0.10.2 or newer')
    read = choice.get("prompt_token_ids")
    if read is not None and read != list(prompt):
        raise Unusable(f"it read {len(read)} prompt tokens other than the {len(prompt)} that it was sent")
    numbers = (choice.get("logprobs") or {}).get("token_logprobs")
    if not isinstance(numbers, list) or len(numbers) != len(ids):
        raise Unusable(f"it gave {len(numbers) if isinstance(numbers, list) else 'no'} logprobs for {len(ids)} tokens")
    if not all(isinstance(x, int | float) and math.isfinite(x) and x <= 1e-3 for x in numbers):
        raise Unusable("a log-probability is no finite number up to 0")
    end = None if params.stop_strings is None else params.stop_strings.end(ids)
    if end is not None:  # a server that samples several tokens in one step may give more of them
        ids, numbers = ids[: end + 1], numbers[: end + 1]
    finished = ids[-1] in params.stop_ids or end is not None
    early = next((i for i, token in enumerate(ids[:-1]) if token in params.stop_ids), None)
    if len(ids) > params.max_new_tokens or early is not None or (not finished and len(ids) < params.max_new_tokens):
        raise Unusable(
            f"{len(ids)} tokens ({choice.get('finish_reason')}) where at most {params.max_new_tokens} end in a stop "
            f"token ({', '.join(map(str, params.stop_ids))}) or string, or at the limit"
        )
    return Response(ids=ids, logprobs=[float(x) for x in numbers], finished=finished)
