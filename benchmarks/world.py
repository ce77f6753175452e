"""What both sides of a benchmark share: model shapes, tokens, measures, limits of the machine. Imports no trivet.

Runs in trivet's environment and in TRL's; torch and transformers are imported where they are needed, so that memory
"above the imports" can be told apart.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

VOCABULARY = 32_000
PAD, EOS = 0, 2
SIZES: dict[str, dict[str, Any]] = {
    "S": {"hidden_size": 288, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 768},
    "M": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1376},
    "135M": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49_152,
    },
}
LORA: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def llama_config(size: str, **more: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        max_position_embeddings=2048, tie_word_embeddings=True, pad_token_id=PAD,
        bos_token_id=1, eos_token_id=EOS, **({"vocab_size": VOCABULARY} | SIZES[size]), **more,
    )  # fmt: skip


def vocabulary(size: str) -> int:
    """How many words a model of this size has."""
    return SIZES[size].get("vocab_size", VOCABULARY)


def tokenizer(side: str = "right", size: str = "S") -> Any:
    """As many words as a model of this size has, one token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{i}" for i in range(4, vocabulary(size)))]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        padding_side=side,
    )  # fmt: skip


def rows_of_tokens(count: int, shortest: int, longest: int, seed: int) -> list[list[int]]:
    """Rows of random ids, lengths uniform; the same on every machine and side."""
    rng = random.Random(seed)
    return [[rng.randrange(4, VOCABULARY) for _ in range(rng.randint(shortest, longest))] for _ in range(count)]


def demonstrations(rows: int, prompt: tuple[int, int], answer: tuple[int, int]) -> list[tuple[list[int], list[int]]]:
    """Prompts and answers of SFT; every answer ends in the stop token."""
    prompts, answers = rows_of_tokens(rows, *prompt, seed=1), rows_of_tokens(rows, *answer, seed=2)
    return [(p, [*a[:-1], EOS]) for p, a in zip(prompts, answers, strict=True)]


def rankings(rows: int, answers: int, prompt: tuple[int, int], answer: tuple[int, int]) -> list[Any]:
    """Rankings ``(prompt, [answers, best first])``."""
    prompts = rows_of_tokens(rows, *prompt, seed=3)
    flat = [[*a[:-1], EOS] for a in rows_of_tokens(rows * answers, *answer, seed=4)]
    return [(p, flat[i * answers : (i + 1) * answers]) for i, p in enumerate(prompts)]


def in_dtype(model: Any, case: dict[str, Any]) -> Any:
    """The model with weights in the case's ``dtype``, fp32 where it names none."""
    import torch

    return model.to(getattr(torch, case.get("dtype", "float32")))


# -- measures -----------------------------------------------------------------------------------------------------


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Phases:
    """CPU seconds by name; what is inside another phase is taken out of it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = [0.0]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.process_time()
        self._inside.append(0.0)
        try:
            yield
        finally:
            spent = time.process_time() - started
            own = spent - self._inside.pop()
            self._inside[-1] += spent
            self.seconds[name] = self.seconds.get(name, 0.0) + own

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Count every call of ``owner.attribute``."""
        inner = getattr(owner, attribute)

        def outer(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return inner(*args, **kwargs)

        setattr(owner, attribute, outer)


def report(phases: Phases, imports: int, **more: Any) -> None:
    """The worker's one line of JSON, last on standard output."""
    found = {"seconds": sum(phases.seconds.values()), "phases": phases.seconds, "peak": peak_bytes(), **more}
    found["peak_above_imports"] = found["peak"] - imports
    sys.stdout.flush()
    print("\n" + json.dumps(found), flush=True)


def settings() -> dict[str, Any]:
    """The case, given as JSON on the command line."""
    import torch

    torch.set_num_threads(1)
    return json.loads(sys.argv[1])


# -- limits of the machine ------------------------------------------------------------------------------------------


def machine_rates() -> dict[str, float]:
    """Matrix rate (FLOP/s, the better of a large square product and the output layer's) and copy rate (bytes/s)."""
    import torch

    torch.set_num_threads(1)

    def best(work: Any, repeats: int = 5) -> float:
        work()
        seconds = []
        for _ in range(repeats):
            t = time.process_time()
            work()
            seconds.append(time.process_time() - t)
        return min(seconds)

    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    h, v = torch.randn(512, 288), torch.randn(VOCABULARY, 288)
    x = torch.randn(16_000_000)
    y = torch.empty_like(x)
    return {
        "matrix_flops": 2 * 1024**3 / best(lambda: a @ b),
        "head_flops": 2 * 512 * 288 * VOCABULARY / best(lambda: h @ v.T),
        "copy_bytes": 2 * 4 * x.numel() / best(lambda: y.copy_(x)),
    }


def forward_flops(size: str, lengths: Sequence[int], logits: int) -> float:
    """``2 [tokens n + L D T^2 + positions with logits x D V]`` over rows of these lengths."""
    s = SIZES[size]
    d, layers = s["hidden_size"], s["num_hidden_layers"]
    body = layers * (4 * d * d + 3 * d * s["intermediate_size"])
    return 2.0 * (sum(lengths) * body + layers * d * sum(t * t for t in lengths) + logits * d * vocabulary(size))


def ppo_flops(size: str, queries: Sequence[int], new: int, epochs: int, full_value: bool) -> dict[str, float]:
    """One update by phases: sampling; reference log-probs, value, reward; then ``epochs`` passes of both roles.

    Old log-probs are the sampler's, on both sides. Backward costs a forward again with LoRA and two with full training.
    """
    rows = [q + new for q in queries]
    tokens = len(rows) * new
    scored, plain = forward_flops(size, rows, tokens), forward_flops(size, rows, 0)
    train = epochs * (2 * scored + (3 if full_value else 2) * plain)
    return {"generate": scored, "score": scored + 2 * plain, "train": train}
