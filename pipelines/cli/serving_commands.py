"""Models that respond or score when asked: options of ``trivet chat``, ``serve``, ``serve-reward``, ``rollout-server``.

Heavy libraries are imported when a command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data.common.config import greedy_or_warm
from data.common.errors import UserError
from pipelines.cli.options import Port


def serve_reward(
    source: Annotated[
        str, typer.Argument(metavar="RUN_OR_FUNCTION", help="a run, a reward model, or file.py:function")
    ],
    port: Port = 8791,
) -> None:
    """Serve a reward model or a function over HTTP.

    To PPO runs on this machine: an example of a remote scorer.

    \b
    trivet serve-reward runs/demo
    trivet serve-reward my_rewards.py:kindness --port 0
    """
    from pipelines.cli.serve_reward import serve

    serve(source, port)


def serve(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="a run, or any model", show_default=False)],
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="STAGE", help="base, sft or ppo of a run; without it, all of them")
    ] = None,
    port: Port = 8790,
    engine: Annotated[str, typer.Option("--engine", metavar="NAME", help="trivet, transformers or vllm")] = "trivet",
    python: Annotated[
        str | None, typer.Option("--python", metavar="PATH", help="the interpreter that has vLLM; default: this one")
    ] = None,
) -> None:
    """Serve a run's models by OpenAI's protocol.

    Chat and completions with streaming, for programs on this machine; all models of a run stand on its one base, and
    a request names one as its `model`. With --engine one stage is exported, merged, and served by `transformers serve`
    or vLLM, which are quicker with many requests; flags that trivet does not know go to them.

    \b
    trivet serve runs/demo
    trivet serve runs/demo --stage ppo --port 0
    trivet serve runs/demo --stage ppo --engine transformers
    trivet serve runs/demo --engine vllm --python vllm-env/bin/python
    """
    from pipelines.cli import serve as own
    from pipelines.cli import serve_engines as engines

    if engine != engines.OWN:
        raise typer.Exit(engines.serve(engine, run, stage, port, python, context.args))
    for flag in (*context.args, *(["--python"] if python is not None else [])):
        raise UserError(f"{flag}: is for --engine vllm or transformers, and trivet's own server has no such option")
    own.serve(run, stage, port)


def rollout_server(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="whose base and limits it serves")],
    python: Annotated[str, typer.Option("--python", metavar="PATH", help="the interpreter that has vLLM")] = "python3",
    host: Annotated[str, typer.Option("--host", metavar="NAME", help="where it listens")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, metavar="N", help="and its port")] = 8000,
    show: Annotated[bool, typer.Option("--print", help="print the command and start nothing")] = False,
) -> None:
    """Start a vLLM server that samples a recipe's rollouts.

    vLLM lives in an environment of its own. Flags that trivet does not know go to vLLM.

    \b
    trivet rollout-server recipe.yaml --python vllm-env/bin/python
    trivet rollout-server recipe.yaml --print --tensor-parallel-size 2
    """
    from pipelines.cli.rollout_server import serve
    from pipelines.cli.run import make_pipeline

    raise typer.Exit(serve(make_pipeline(recipe, None, None, None).recipe, python, host, port, context.args, show))


def chat(
    run: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="a run, or any model", show_default=False)],
    stage: Annotated[str | None, typer.Option("--stage", metavar="STAGE", help="base, sft or ppo of a run")] = None,
    compare_with: Annotated[
        str | None, typer.Option("--compare-with", metavar="STAGE_OR_PATH", help="a second model that responds as well")
    ] = None,
    old_name: Annotated[str | None, typer.Option("--beside", hidden=True)] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="system prompt")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0.0, help="0 is greedy; default 1")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, metavar="N", help="longest response")] = None,
    preferences: Annotated[Path | None, typer.Option("--preferences", metavar="FILE", help="where votes go")] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="seed of the sampling")] = None,
) -> None:
    """Talk to a model, or to two side by side.

    With --compare-with both respond, each with its reward, and your votes become training data.

    \b
    trivet chat runs/demo
    trivet chat runs/demo --stage ppo --compare-with sft --preferences mine.jsonl
    trivet chat qwen2.5-0.5b-instruct
    """
    from pipelines.cli.chat import talk

    if old_name is not None:
        raise UserError(f"--beside is called --compare-with: trivet chat {run} --compare-with {old_name}")
    try:
        greedy_or_warm(0 if temperature is None else temperature)
    except ValueError as error:
        raise UserError(f"--temperature {temperature:g}: {error}") from None
    talk(
        *(run, stage, compare_with),
        system=system,
        temperature=temperature,
        max_new_tokens=tokens,
        preferences=preferences,
        seed=seed,
    )
