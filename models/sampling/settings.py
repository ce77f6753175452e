"""Settings of sampling elsewhere, without importing torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from data.common.config import Config


class RolloutServers(Config):
    """Who samples PPO's rollouts, rankings and an evaluation's responses: trivet itself, or a pool of vLLM servers."""

    engine: Literal["own", "vllm"] = Field("own", description="own: the process that trains; vllm: the servers")
    servers: tuple[str, ...] = Field((), description="vllm: their addresses (http://host:8000); they share the rows")
    timeout: float = Field(600.0, gt=0, description="vllm: seconds for one response")
    retries: int = Field(2, ge=0, description="vllm: how often a request is repeated before another server gets it")
    backoff: float = Field(0.5, ge=0, description="vllm: seconds before the first further try; doubles each time")
    concurrency: int = Field(64, ge=1, le=1024, description="vllm: responses that a server samples at a time")
    tolerance: float | None = Field(
        None,
        gt=0,
        description="vllm: nats a token by which a server's log-probabilities may differ from the policy's on average; "
        "null: 0.001 for an fp32 base, else 0.1",
    )
    token_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="vllm: environment variable with the servers' API key",
    )

    @model_validator(mode="after")
    def _of_vllm(self) -> RolloutServers:
        if self.engine == "vllm" and not self.servers:
            raise ValueError("engine 'vllm' needs servers: [http://host:8000]; `trivet rollout-server` starts one")
        if self.engine == "own":
            given = [k for k, f in type(self).model_fields.items() if k != "engine" and getattr(self, k) != f.default]
            if given:
                raise ValueError(f"'{given[0]}' belongs to engine 'vllm', not to 'own': remove it")
        return self
