"""BASE_MODELS: the families that people align, by name. A new base is one entry here.

Hub ids, licences and which branch has safetensors were looked up on the models' hub pages. Chat template, pad and stop
tokens are the tokenizer's own business and are not repeated here. Knows nothing of loading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from models.hub.spec import BaseModelSpec

QWEN_RESEARCH = "Qwen Research License (no commercial use)"
LLAMA_31, LLAMA_32 = "Llama 3.1 Community License (gated)", "Llama 3.2 Community License (gated)"
GEMMA = "Gemma Terms of Use (gated)"
OPT = "OPT-175B License (no commercial use)"
ON_BRANCH = "; main holds pickled weights only, this revision is the hub's own safetensors conversion"

ROWS: Mapping[str, tuple[tuple[str, str, str, str], ...]] = {
    # family: (name, hub id, licence, size and use)
    "Qwen 2.5": (
        ("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", "Apache-2.0", "0.5 B, multilingual; a first real run on one small GPU"),
        ("qwen2.5-0.5b-instruct", "Qwen/Qwen2.5-0.5B-Instruct", "Apache-2.0", "0.5 B, chat-tuned"),
        ("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B", "Apache-2.0", "1.5 B, multilingual; one 16 GB GPU"),
        ("qwen2.5-1.5b-instruct", "Qwen/Qwen2.5-1.5B-Instruct", "Apache-2.0", "1.5 B, chat-tuned"),
        ("qwen2.5-3b", "Qwen/Qwen2.5-3B", QWEN_RESEARCH, "3 B, multilingual; mind the licence"),
        ("qwen2.5-3b-instruct", "Qwen/Qwen2.5-3B-Instruct", QWEN_RESEARCH, "3 B, chat-tuned; mind the licence"),
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B", "Apache-2.0", "7.6 B, multilingual; one large GPU"),
        ("qwen2.5-7b-instruct", "Qwen/Qwen2.5-7B-Instruct", "Apache-2.0", "7.6 B, chat-tuned; one large GPU"),
    ),
    "Qwen 3": (
        ("qwen3-0.6b-base", "Qwen/Qwen3-0.6B-Base", "Apache-2.0", "0.6 B, multilingual"),
        ("qwen3-0.6b", "Qwen/Qwen3-0.6B", "Apache-2.0", "0.6 B, chat-tuned, with a thinking mode"),
        ("qwen3-1.7b-base", "Qwen/Qwen3-1.7B-Base", "Apache-2.0", "1.7 B, multilingual"),
        ("qwen3-1.7b", "Qwen/Qwen3-1.7B", "Apache-2.0", "1.7 B, chat-tuned, with a thinking mode"),
        ("qwen3-4b-base", "Qwen/Qwen3-4B-Base", "Apache-2.0", "4 B, multilingual; one 24 GB GPU"),
        ("qwen3-4b", "Qwen/Qwen3-4B", "Apache-2.0", "4 B, chat-tuned, with a thinking mode"),
        ("qwen3-8b-base", "Qwen/Qwen3-8B-Base", "Apache-2.0", "8.2 B, multilingual; one large GPU"),
        ("qwen3-8b", "Qwen/Qwen3-8B", "Apache-2.0", "8.2 B, chat-tuned, with a thinking mode"),
    ),
    "Llama 3": (
        ("llama-3.2-1b", "meta-llama/Llama-3.2-1B", LLAMA_32, "1.2 B; one 16 GB GPU"),
        ("llama-3.2-1b-instruct", "meta-llama/Llama-3.2-1B-Instruct", LLAMA_32, "1.2 B, chat-tuned"),
        ("llama-3.2-3b", "meta-llama/Llama-3.2-3B", LLAMA_32, "3.2 B; one 24 GB GPU"),
        ("llama-3.2-3b-instruct", "meta-llama/Llama-3.2-3B-Instruct", LLAMA_32, "3.2 B, chat-tuned"),
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B", LLAMA_31, "8 B; one large GPU"),
        ("llama-3.1-8b-instruct", "meta-llama/Llama-3.1-8B-Instruct", LLAMA_31, "8 B, chat-tuned; one large GPU"),
    ),
    "SmolLM": (
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", "Apache-2.0", "135 M, English; small enough for a patient CPU"),
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0", "135 M, chat-tuned, English"),
        ("smollm2-360m", "HuggingFaceTB/SmolLM2-360M", "Apache-2.0", "360 M, English"),
        ("smollm2-360m-instruct", "HuggingFaceTB/SmolLM2-360M-Instruct", "Apache-2.0", "360 M, chat-tuned, English"),
        ("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B", "Apache-2.0", "1.7 B, English; one 16 GB GPU"),
        ("smollm2-1.7b-instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "Apache-2.0", "1.7 B, chat-tuned, English"),
        ("smollm3-3b-base", "HuggingFaceTB/SmolLM3-3B-Base", "Apache-2.0", "3.1 B, six European languages"),
        ("smollm3-3b", "HuggingFaceTB/SmolLM3-3B", "Apache-2.0", "3.1 B, chat-tuned, with a thinking mode"),
    ),
    "Gemma": (
        ("gemma-2-2b", "google/gemma-2-2b", GEMMA, "2.6 B, English; a vocabulary of 256,000"),
        ("gemma-2-2b-it", "google/gemma-2-2b-it", GEMMA, "2.6 B, chat-tuned, English"),
        ("gemma-3-270m", "google/gemma-3-270m", GEMMA, "270 M, most of it embeddings"),
        ("gemma-3-270m-it", "google/gemma-3-270m-it", GEMMA, "270 M, chat-tuned"),
        ("gemma-3-1b", "google/gemma-3-1b-pt", GEMMA, "1 B, text only"),
        ("gemma-3-1b-it", "google/gemma-3-1b-it", GEMMA, "1 B, chat-tuned, text only"),
    ),
    "Mistral": (
        ("mistral-7b-v0.3", "mistralai/Mistral-7B-v0.3", "Apache-2.0", "7.2 B; one large GPU"),
        (
            "mistral-7b-v0.3-instruct",
            "mistralai/Mistral-7B-Instruct-v0.3",
            "Apache-2.0",
            "7.2 B, chat-tuned; one large GPU",
        ),
    ),
    "OLMo 2": (
        ("olmo2-1b", "allenai/OLMo-2-0425-1B", "Apache-2.0", "1.5 B, fully open data and code, English"),
        ("olmo2-1b-instruct", "allenai/OLMo-2-0425-1B-Instruct", "Apache-2.0", "1.5 B, chat-tuned, English"),
        ("olmo2-7b", "allenai/OLMo-2-1124-7B", "Apache-2.0", "7.3 B, fully open; one large GPU"),
        ("olmo2-7b-instruct", "allenai/OLMo-2-1124-7B-Instruct", "Apache-2.0", "7.3 B, chat-tuned; one large GPU"),
    ),
    "Phi": (
        ("phi-3.5-mini", "microsoft/Phi-3.5-mini-instruct", "MIT", "3.8 B, chat-tuned; one 24 GB GPU"),
        ("phi-4-mini", "microsoft/Phi-4-mini-instruct", "MIT", "3.8 B, chat-tuned, multilingual; one 24 GB GPU"),
    ),
    "Pythia": (
        ("pythia-70m", "EleutherAI/pythia-70m", "Apache-2.0", "70 M, English; research, fast on CPU"),
        ("pythia-160m", "EleutherAI/pythia-160m", "Apache-2.0", "160 M, English; research"),
        ("pythia-410m", "EleutherAI/pythia-410m", "Apache-2.0", "410 M, English; research"),
        ("pythia-1b", "EleutherAI/pythia-1b", "Apache-2.0", "1 B, English; research"),
        ("pythia-1.4b", "EleutherAI/pythia-1.4b", "Apache-2.0", "1.4 B, English; research"),
    ),
    "OPT": (
        ("opt-125m", "facebook/opt-125m@refs/pr/35", OPT, "125 M, English; research" + ON_BRANCH),
        ("opt-350m", "facebook/opt-350m@refs/pr/33", OPT, "350 M, English; research" + ON_BRANCH),
        ("opt-1.3b", "facebook/opt-1.3b@refs/pr/25", OPT, "1.3 B, English; research" + ON_BRANCH),
    ),
    "GPT-2": (
        ("gpt2", "openai-community/gpt2", "MIT", "124 M, English; the classic, fast on CPU"),
        ("gpt2-medium", "openai-community/gpt2-medium", "MIT", "355 M, English"),
        ("gpt2-large", "openai-community/gpt2-large", "MIT", "774 M, English"),
        ("gpt2-xl", "openai-community/gpt2-xl", "MIT", "1.5 B, English"),
    ),
    "TinyLlama": (
        ("tinyllama-1.1b", "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", "Apache-2.0", "1.1 B, English"),
        ("tinyllama-1.1b-chat", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "Apache-2.0", "1.1 B, chat-tuned, English"),
    ),
}


def _entries() -> Iterator[BaseModelSpec]:
    for family, rows in ROWS.items():
        for name, source, licence, note in rows:
            hub_id, _, revision = source.partition("@")
            yield BaseModelSpec(
                name=name, source=hub_id, revision=revision or None, family=family, licence=licence, note=note
            )


BASE_MODELS: Mapping[str, BaseModelSpec] = {spec.name: spec for spec in _entries()}

WIDTHS: Mapping[str, int] = {
    "qwen2.5-0.5b": 896,
    "qwen2.5-1.5b": 1536,
    "qwen2.5-3b": 2048,
    "qwen2.5-7b": 3584,
    "qwen3-0.6b": 1024,
    "qwen3-1.7b": 2048,
    "qwen3-4b": 2560,
    "qwen3-8b": 4096,
    "llama-3.2-1b": 2048,
    "llama-3.2-3b": 3072,
    "llama-3.1-8b": 4096,
    "smollm2-135m": 576,
    "smollm2-360m": 960,
    "smollm2-1.7b": 2048,
    "smollm3-3b": 2048,
    "gemma-2-2b": 2304,
    "gemma-3-270m": 640,
    "gemma-3-1b": 1152,
    "mistral-7b-v0.3": 4096,
    "olmo2-1b": 2048,
    "olmo2-7b": 4096,
    "phi-3.5-mini": 3072,
    "phi-4-mini": 3072,
    "pythia-70m": 512,
    "pythia-160m": 768,
    "pythia-410m": 1024,
    "pythia-1b": 2048,
    "pythia-1.4b": 2048,
    "opt-125m": 768,
    "opt-350m": 1024,
    "opt-1.3b": 2048,
    "gpt2": 768,
    "gpt2-medium": 1024,
    "gpt2-large": 1280,
    "gpt2-xl": 1600,
    "tinyllama-1.1b": 2048,
}
"""Width of the states, as the models' own configs have it; a tuned model has its base's."""


def width_of(name: str) -> int | None:
    """The width of a base in the catalogue; None of another one."""
    if name not in BASE_MODELS:
        return None
    return WIDTHS.get(re.sub(r"-(instruct|it|base|chat)$", "", name))
