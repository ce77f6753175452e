"""``trivet export``: a stage of a run as a folder or file that other tools open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import RunFolder


def export(
    run: RunFolder,
    stage: Annotated[
        str, typer.Option("--stage", metavar="STAGE", help="sft, distil, reward, ppo, pretrain or continued")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="a new folder")],
    merge: Annotated[bool, typer.Option("--merge", help="full weights instead of an adapter")] = False,
    gguf: Annotated[
        str | None,
        typer.Option(
            "--gguf", metavar="TYPE", help="a file for llama.cpp: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0"
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="TYPE", help="of full weights: fp32, bf16 or fp16")
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option("--max-shard-size", metavar="SIZE", help="of a file of full weights, such as 5GB")
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="upload it to this repository of the hub as well")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="everybody may read that repository")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="in place of what that repository holds")] = False,
) -> None:
    """Write a stage as a folder or GGUF file, with a card.

    Transformers, PEFT and vLLM load the folder; --gguf writes model.gguf and Ollama's Modelfile instead. What its types
    of whole numbers (q8_0 to q4_0) lose on held-out prompts is evaluated, printed and written into the card. --push
    uploads it to a private repository of the hub, with the token of HF_TOKEN or `hf auth login`.

    \b
    trivet export runs/demo --stage ppo --to aligned --merge
    trivet export runs/demo --stage ppo --to small --merge --dtype bf16
    trivet export runs/demo --stage ppo --to for-ollama --gguf q8_0
    trivet export runs/demo --stage ppo --to aligned --push me/aligned
    """
    from pipelines.export.stage import export_stage

    def say(text: str) -> None:
        typer.echo(text, err=True)

    made = export_stage(
        *(run, stage, to, merge, gguf),
        dtype=dtype,
        max_shard_size=max_shard_size,
        push=push,
        public=public,
        overwrite=overwrite,
        say=say,
    )
    typer.echo(str(made))
