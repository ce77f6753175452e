"""Which form of export is loaded in which tool by a test, what it gives there, and what is refused. Not a test file.

``docs/exports_page.py`` makes the page of it, ``tests/pipelines/export/test_export_table.py`` runs every cell.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form of export: the options that make it, and what it is."""

    options: str
    what: str


FORMS = {
    "adapter": Form(options="--stage sft", what="a PEFT adapter"),
    "merged": Form(options="--stage sft --merge", what="whole weights in fp32"),
    "merged bf16": Form(options="--stage sft --merge --dtype bf16", what="whole weights in bf16"),
    "sharded": Form(options="--stage sft --merge --max-shard-size 100KB", what="whole weights in several files"),
    "reward adapter": Form(options="--stage reward", what="adapter and head, as a sequence classifier"),
    "reward merged": Form(options="--stage reward --merge", what="a whole sequence classifier"),
    "reward of mean pooling": Form(options="--stage reward", what="adapter and head that no classifier is"),
    "gguf f32": Form(options="--stage sft --gguf f32", what="a GGUF file in fp32, and a Modelfile"),
    "gguf f16": Form(options="--stage sft --gguf f16", what="a GGUF file in fp16, and a Modelfile"),
    "gguf q8_0": Form(options="--stage sft --gguf q8_0", what="a GGUF file in eight bits, and a Modelfile"),
}
TOOLS = {
    "Transformers": "`from_pretrained` of its `Auto` classes",
    "PEFT": "`PeftModel` and its `Auto` classes",
    "TRL": "the model of an `SFTTrainer`, the reward function of a `GRPOTrainer`",
    "vLLM": "`LLM` on a CPU, in an environment of its own (`make vllm-env`)",
    "llama.cpp": "`xllamacpp`'s server, with a cache in fp32",
    "trivet": "another run's base or `--input`, `ppo.reward`, `trivet score`, `trivet import`",
}
LOGITS5, LOGITS4 = "logits to 1e-5, 32 greedy tokens", "logits to 1e-4, 32 greedy tokens"
SCORES5, SCORES4 = "scores to 1e-5", "scores to 1e-4"
ROUNDED = "logits to 1e-5 of the rounded weights"
GREEDY = "32 greedy tokens"
CELLS = {
    ("adapter", "Transformers"): LOGITS5,
    ("adapter", "PEFT"): LOGITS5,
    ("adapter", "vLLM"): GREEDY,
    ("adapter", "trivet"): LOGITS5,
    ("merged", "Transformers"): LOGITS4,
    ("merged", "TRL"): LOGITS4,
    ("merged", "vLLM"): GREEDY,
    ("merged", "trivet"): LOGITS4,
    ("merged bf16", "Transformers"): ROUNDED,
    ("merged bf16", "TRL"): ROUNDED,
    ("merged bf16", "trivet"): ROUNDED,
    ("sharded", "Transformers"): LOGITS4,
    ("sharded", "TRL"): LOGITS4,
    ("sharded", "vLLM"): GREEDY,
    ("sharded", "trivet"): LOGITS4,
    ("reward adapter", "Transformers"): SCORES5,
    ("reward adapter", "PEFT"): SCORES5,
    ("reward adapter", "TRL"): SCORES5,
    ("reward adapter", "trivet"): SCORES5,
    ("reward merged", "Transformers"): SCORES4,
    ("reward merged", "TRL"): SCORES4,
    ("reward merged", "vLLM"): SCORES4,
    ("reward merged", "trivet"): SCORES4,
    ("reward of mean pooling", "trivet"): SCORES5,
    ("gguf f32", "llama.cpp"): GREEDY,
    ("gguf f16", "llama.cpp"): "opens and responds",
    ("gguf q8_0", "llama.cpp"): "opens and responds",
    ("gguf f32", "trivet"): LOGITS4,
    ("gguf f16", "trivet"): f"{ROUNDED}",
    ("gguf q8_0", "trivet"): f"{ROUNDED}",
}
"""What a test asks of a form in a tool, against the run itself."""
REFUSED = {
    ("reward of mean pooling", "Transformers"): "refuses to open it: its `score` is stored empty",
    ("reward of mean pooling", "PEFT"): "refuses to open it: its `score` is stored empty",
    ("reward of mean pooling", "TRL"): "refuses to open it: its `score` is stored empty",
}
"""Where opening fails, as it should: a test asks for that too."""
AT_EXPORT = {
    "--stage reward --gguf f32": "a GGUF file is for models that respond, and reward scores",
    "--stage sft --gguf f32 --merge": "is merged anyway: leave out --merge",
    "--stage sft --gguf q9": "one of f32, f16, bf16, q8_0",
    "--stage sft --dtype bf16": "an adapter is kept as it is: give --merge",
    "--stage sft --gguf f32 --dtype bf16": "--gguf names the type of its file",
}
"""What the export refuses, by the options, with words of the message."""
