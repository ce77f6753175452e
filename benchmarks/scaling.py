"""Step time and memory of every stage for bases of 0.5B to 70B on 1 to 512 GPUs, counted; writes its page.

python benchmarks/scaling.py             docs/measurements/scaling.md again, from counts and the results file
python benchmarks/scaling.py --measure   counts against seconds of this CPU first: about a minute of one core

Nothing here is fitted: a stage's work is counted in operations, bytes, launches and messages, and divided by a device's
published peaks times four factors that are the same in every row.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.stages import memory
from pipelines.stages.memory import Numbers, Rows
from pipelines.stages.shapes import Shape

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "measurements" / "scaling.md"
RESULTS = Path(__file__).parent / "results" / "scaling.json"
BF16, GIB = 2, 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU by its data sheet, with its links within a machine and between several; bytes and operations a second."""

    name: str
    peak: float  # bf16, dense
    bandwidth: float
    memory: float  # bytes
    link: float  # one way, within a machine
    network: float  # one way, of one GPU's share


H100 = Device(name="H100 SXM", peak=989e12, bandwidth=3.35e12, memory=80e9, link=450e9, network=50e9)
A100 = Device(name="A100 80GB SXM", peak=312e12, bandwidth=2.039e12, memory=80e9, link=300e9, network=25e9)

PRODUCTS, READS, LINKS = 0.45, 0.6, 0.6
"""Shares of the peaks that products, reads of weights and messages reach."""
LAUNCH, MESSAGE = 5e-6, 30e-6  # seconds of a kernel that is launched, and of a message besides its bytes
MACHINE = 8  # GPUs of one
HEADROOM = 0.85  # share of a GPU's memory that may be planned with
READ_LAUNCHES, TRAIN_LAUNCHES = 40, 120  # kernels a layer and pass, forward, and forward and backward: an assumption
STEP_MESSAGES = 6  # collectives a minibatch: failures, counts, losses and gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A published configuration."""

    name: str
    layers: int
    width: int
    inner: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False
    gated: bool = True  # three matrices behind attention, not two
    biases: int = 0  # numbers of a layer's biases
    positions: int = 0  # rows of learnt positions

    @property
    def queries(self) -> int:
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        return self.key_heads * self.head_size

    @property
    def linear(self) -> int:
        """Numbers of the blocks' matrices."""
        return self.layers * self.width * (2 * self.queries + 2 * self.keys + (3 if self.gated else 2) * self.inner)

    @property
    def parameters(self) -> int:
        tables = self.vocabulary * (1 if self.tied else 2) + self.positions
        norms = (2 * self.layers + 1) * self.width * (1 if self.gated else 2)
        return self.linear + tables * self.width + norms + self.layers * self.biases

    def adapter(self, rank: int) -> int:
        """Numbers of LoRA on all matrices of the blocks."""
        both = 2 * (self.width + self.queries) + 2 * (self.width + self.keys)
        return rank * self.layers * (both + (3 if self.gated else 2) * (self.width + self.inner))

    def shape(self, rank: int) -> Shape:
        """As the plan's memory counts it."""
        return Shape(
            parameters=self.parameters,
            linear=self.linear,
            adapter=self.adapter(rank),
            layers=self.layers,
            trained_layers=self.layers,
            width=self.width,
            inner=self.inner,
            heads=self.heads,
            key_heads=self.key_heads,
            head_size=self.head_size,
            vocabulary=self.vocabulary,
        )


def _llama(name: str, layers: int, width: int, inner: int, heads: int, key_heads: int, vocabulary: int) -> Model:
    return Model(
        name=name,
        layers=layers,
        width=width,
        inner=inner,
        heads=heads,
        key_heads=key_heads,
        head_size=width // heads,
        vocabulary=vocabulary,
    )


def _qwen(base: Model, tied: bool = False) -> Model:
    return replace(base, tied=tied, biases=base.queries + 2 * base.keys)


def _opt(name: str, layers: int, width: int, heads: int) -> Model:
    base = _llama(name, layers, width, 4 * width, heads, heads, 50272)
    return replace(base, gated=False, tied=True, positions=2050, biases=9 * width)


MODELS = (
    _qwen(_llama("Qwen2.5-0.5B", 24, 896, 4864, 14, 2, 151936), tied=True),
    _qwen(_llama("Qwen2.5-1.5B", 28, 1536, 8960, 12, 2, 151936), tied=True),
    _llama("Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128256),
    _qwen(replace(_llama("Qwen2.5-32B", 64, 5120, 27648, 40, 8, 152064))),
    _llama("Llama-3.1-70B", 80, 8192, 28672, 64, 8, 128256),
)
OPTS = (_opt("OPT-1.3B", 24, 2048, 32), _opt("OPT-6.7B", 32, 4096, 32), _opt("OPT-13B", 40, 5120, 40))
GPUS = (1, 2, 8, 16, 64, 128, 512)


# -- counts -----------------------------------------------------------------------------------------------------------


def forward_flops(model: Model, tokens: float, length: float, read: float, causal: float = 0.5) -> float:
    """Operations of a forward pass without adapters: two a number and token, attention's products, logits of ``read``.

    Args:
        tokens: of all rows.
        length: of one row.
        causal: share of attention's scores that are computed; 1 for all.
    """
    attention = causal * 4 * length * model.queries * model.layers * tokens
    return 2 * model.linear * tokens + attention + 2 * model.vocabulary * model.width * read


def gradient_flops(model: Model, tokens: float, length: float, read: float, causal: float = 0.5) -> float:
    """Operations of a backward pass through frozen weights: the gradient by each product's input alone, and both of
    attention's products twice."""
    attention = causal * 8 * length * model.queries * model.layers * tokens
    return 2 * model.linear * tokens + attention + 2 * model.vocabulary * model.width * read


def training_flops(model: Model, rank: int, tokens: float, length: float, read: float, again: bool = True) -> float:
    """Of a step of LoRA; ``again`` where layers are computed a second time in backward (gradient checkpointing)."""
    once = forward_flops(model, tokens, length, read)
    layers = forward_flops(model, tokens, length, 0) if again else 0.0
    return once + layers + gradient_flops(model, tokens, length, read) + 6 * model.adapter(rank) * tokens


def full_training_flops(model: Model, tokens: float, length: float, read: float) -> float:
    """Of a step that trains every weight: the gradient by weights is a third product as large as the others."""
    tables = 2 * model.vocabulary * model.width * read
    both = forward_flops(model, tokens, length, read) + gradient_flops(model, tokens, length, read)
    return both + 2 * model.linear * tokens + tables


def decoding_bytes(model: Model, rows: float, length: float) -> float:
    """Read in one step of decoding: every weight once, and the keys and values of all rows."""
    table = model.vocabulary * model.width  # the output layer; of the input's a row a token
    return BF16 * (model.linear + table + 2 * model.layers * model.keys * rows * length)


# -- seconds ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every row of the page computes: the batches of one step."""

    rank: int = 16
    batch: int = 128  # conversations of a step of SFT, and rankings of one of the reward stage
    answers: int = 2  # of a ranking
    rollouts: int = 512
    minibatches: int = 4
    epochs: int = 2
    prompt: int = 256
    response: int = 512
    micro_batch: int = 8

    @property
    def length(self) -> int:
        return self.prompt + self.response


def sharded(model: Model, device: Device) -> bool:
    """Whether the frozen base takes more than a GPU, so that its layers are gathered from all."""
    return BF16 * model.parameters > 0.6 * device.memory


def tensor_parallel(model: Model, device: Device) -> int:
    """GPUs of one server: the fewest of one machine that leave its base room for keys and values."""
    return next((n for n in (1, 2, 4, 8) if BF16 * model.parameters <= 0.5 * n * device.memory), MACHINE)


def link(device: Device, gpus: int) -> float:
    """Bytes a second between GPUs, the slowest of a ring."""
    return LINKS * (device.link if gpus <= MACHINE else device.network)


def pass_seconds(model: Model, device: Device, gpus: int, flops: float, launches: float, gathers: float) -> float:
    """Of one GPU's share: products or the gathering of a sharded base, which overlap, whichever is longer."""
    work = max(flops / (PRODUCTS * device.peak), launches * LAUNCH)
    if not sharded(model, device) or gpus == 1:
        return work
    moved = gathers * BF16 * model.linear * (gpus - 1) / gpus
    return max(work, moved / link(device, gpus) + gathers * model.layers * MESSAGE)


def reduce_seconds(numbers: float, device: Device, gpus: int) -> float:
    """Of gradients summed over GPUs in one message (a ring sends each number twice), and of a step's small ones."""
    if gpus == 1:
        return 0.0
    return 2 * 4 * numbers * (gpus - 1) / gpus / link(device, gpus) + STEP_MESSAGES * MESSAGE


def sampling_seconds(model: Model, device: Device, gpus: int, rows: float, job: Job) -> float:
    """Of responses of full length, by servers of ``tensor_parallel`` GPUs each that share the rows."""
    wide = min(gpus, tensor_parallel(model, device))
    each = max(1.0, rows / max(1, gpus // wide))
    peak, bandwidth = wide * PRODUCTS * device.peak, wide * READS * device.bandwidth
    first = forward_flops(model, each * job.prompt, job.prompt, each) / peak
    mean = job.prompt + job.response / 2
    flops = forward_flops(model, each, mean, each, causal=1.0)
    step = max(decoding_bytes(model, each, mean) / bandwidth, flops / peak)
    messages = 2 * model.layers * MESSAGE / 3 if wide > 1 else 0.0  # two sums a layer, in kernels of their own
    return first + job.response * (step + messages + LAUNCH)


def stage_seconds(model: Model, device: Device, gpus: int, job: Job) -> dict[str, float]:
    """Seconds of a step of each stage: of an update of PPO, and of as many responses of rankings and evaluation."""
    trained = model.adapter(job.rank)

    def passes(rows: float, *logits: bool) -> float:
        """Of roles that gather each layer together, each with logits of the responses or without."""
        mine = max(1.0, rows / gpus)
        tokens, count = mine * job.length, max(1.0, mine / job.micro_batch)
        flops = sum(forward_flops(model, tokens, job.length, mine * job.response * wanted) for wanted in logits)
        return pass_seconds(model, device, gpus, flops, len(logits) * count * READ_LAUNCHES * model.layers, count)

    def training(rows: float, logits: bool = True) -> float:
        mine = max(1.0, rows / gpus)
        tokens, count = mine * job.length, max(1.0, mine / job.micro_batch)
        flops = training_flops(model, job.rank, tokens, job.length, mine * job.response * logits)
        return pass_seconds(model, device, gpus, flops, count * TRAIN_LAUNCHES * model.layers, 3 * count)

    sampled = sampling_seconds(model, device, gpus, job.rollouts, job)
    scored = passes(job.rollouts, False)
    read = passes(job.rollouts, True, True, False) + scored  # policy, reference and value together; reward
    learnt = job.epochs * (training(job.rollouts) + training(job.rollouts, False))
    summed = job.epochs * job.minibatches * reduce_seconds(2 * trained, device, gpus)
    step = reduce_seconds(trained, device, gpus)
    return {
        "sft": training(job.batch) + step,
        "rankings": sampled,
        "reward": training(job.batch * job.answers, False) + step,
        "ppo": sampled + read + learnt + summed,
        "evaluate": sampled + 2 * passes(job.rollouts, True) + scored,
    }


# -- bytes ------------------------------------------------------------------------------------------------------------


def stage_bytes(model: Model, device: Device, gpus: int, job: Job) -> dict[str, float]:
    """Bytes of one training GPU at the peak of SFT, the reward stage and PPO, by the plan's own formulas.

    A base that is sharded counts its share and one layer.
    """
    shape, numbers = model.shape(job.rank), Numbers(weight=BF16, product=BF16, checkpointing=True)
    base = memory.base_bytes(shape, numbers)
    if sharded(model, device):
        base = base / gpus + base / model.layers * (gpus > 1)

    def held(rows: int, roles: int, frozen: int, logits: bool) -> float:
        tokens = float(rows * job.length)
        one = Rows(count=rows, tokens=tokens, longest=job.length, read=float(rows * job.response), uneven=True)
        pass_ = sum(memory.training(shape, numbers, one, logits).values())
        weights = shape.adapter * (memory.TRAINED * roles + memory.FP32 * frozen)
        return base + weights + pass_

    stored = job.rollouts * job.response * (memory.FIELDS * memory.FP32 + 8)
    return {
        "sft": held(job.micro_batch, 1, 0, True),
        "reward": held(job.micro_batch * job.answers, 1, 1, False),
        "ppo": held(job.micro_batch, 2, 2, True) + stored,
    }


# -- published figures ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A figure of others, and what the same counts give for their way of doing it."""

    what: str
    unit: str
    published: float
    counted: float
    source: str

    @property
    def error(self) -> float:
        return self.counted / self.published - 1


def deepspeed_chat(model: Model, said: float) -> Published:
    """PPO of DeepSpeed-Chat on one A100: 256 tokens asked and 256 answered, one epoch, actor and critic trained in full
    (the larger two by LoRA on frozen weights would be less), a critic and a reward model of 350M."""
    job = Job(prompt=256, response=256, rollouts=128)
    small = _opt("OPT-350M", 24, 1024, 16)
    tokens, read = job.rollouts * job.length, job.rollouts * job.response
    flops = 2 * forward_flops(model, tokens, job.length, read) + full_training_flops(model, tokens, job.length, read)
    flops += 2 * forward_flops(small, tokens, job.length, 0) + full_training_flops(small, tokens, job.length, 0)
    seconds = flops / (PRODUCTS * A100.peak) + sampling_seconds(model, A100, 1, job.rollouts, job)
    return Published(
        what=f"DeepSpeed-Chat, PPO, {model.name} on one A100-80G",
        unit="tokens/s",
        published=said,
        counted=tokens / seconds,
        source="its blog (2023)",
    )


def nemo_rl() -> Published:
    """GRPO of NeMo-RL on 16 H100: 2,048 responses a step, full training; their length from its own tokens a second."""
    model = next(m for m in MODELS if m.name == "Llama-3.1-8B")
    gpus, rows, said = 16, 2048, 92.8
    length = 1581 * gpus * said / rows
    job = Job(prompt=128, response=int(length) - 128, rollouts=rows)
    tokens, read = rows * job.length / gpus, rows * job.response / gpus
    flops = 2 * forward_flops(model, tokens, job.length, read) + full_training_flops(model, tokens, job.length, read)
    seconds = flops / (PRODUCTS * H100.peak) + sampling_seconds(model, H100, gpus, rows, job)
    return Published(
        what="NeMo-RL, GRPO, Llama-3.1-8B on 16 H100",
        unit="s a step",
        published=said,
        counted=seconds + reduce_seconds(model.parameters, H100, gpus),
        source="its performance summary",
    )


def ms_swift() -> Published:
    """LoRA PPO of ms-swift: policy, reward and value each hold an 8B base of their own on every GPU."""
    model = next(m for m in MODELS if m.name == "Llama-3.1-8B")
    job = Job(micro_batch=1)
    one = stage_bytes(model, H100, 1, job)["ppo"]
    return Published(
        what="ms-swift, LoRA PPO, policy and reward model of 8B, memory a GPU of 4",
        unit="GiB",
        published=50.0,
        counted=(one + 2 * BF16 * model.parameters) / GIB,
        source="its documentation",
    )


def published() -> list[Published]:
    found = [deepspeed_chat(m, said) for m, said in zip(OPTS, (3205.0, 919.0, 319.0), strict=True)]
    return [*found, nemo_rl(), ms_swift()]


# -- this machine -----------------------------------------------------------------------------------------------------


def measured() -> dict[str, Any]:
    """CPU seconds of one thread for a training pass of two widths, with what the counts say by a product's rate."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)

    def seconds_of(work: Any, times: int) -> float:
        work()
        best = float("inf")
        for _ in range(times):
            began = time.process_time()
            work()
            best = min(best, time.process_time() - began)
        return best

    a = torch.randn(512, 512)
    rate = 2 * 512**3 / seconds_of(lambda: a @ a, 20)
    rows = []
    for width in (256, 512):
        model = replace(_llama(f"width {width}", 4, width, 4 * width, 4, 2, 1024), tied=False)
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=1024,
        )
        lm = LlamaForCausalLM(config).requires_grad_(False)
        x = torch.randn(4, 128, width, requires_grad=True)

        def work(lm: Any = lm, x: Any = x) -> None:
            lm(inputs_embeds=x).logits.sum().backward()

        flops = forward_flops(model, 512, 128, 512, 1.0) + gradient_flops(model, 512, 128, 512, 1.0)
        rows.append({"width": width, "counted": flops / rate, "measured": seconds_of(work, 5)})
    return {"rate": rate, "passes": rows}


# -- the page ---------------------------------------------------------------------------------------------------------


def _line(*cells: Any) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


def _short(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2f}"


def time_table(job: Job) -> Iterator[str]:
    stages = list(stage_seconds(MODELS[0], H100, 1, job))
    yield _line("base", "GPUs", *(f"{s} s" for s in stages), "PPO, tokens/s and GPU")
    yield "|" + "---|" * (len(stages) + 3)
    for model in MODELS:
        for gpus in GPUS:
            if not fits(model, gpus, job):
                yield _line(model.name, gpus, *["does not fit"] + [""] * (len(stages) - 1), "")
                continue
            found = stage_seconds(model, H100, gpus, job)
            rate = job.rollouts * job.length / found["ppo"] / gpus
            yield _line(model.name, gpus, *(_short(found[s]) for s in stages), f"{rate:,.0f}")


def fits(model: Model, gpus: int, job: Job) -> bool:
    return max(stage_bytes(model, H100, gpus, job).values()) <= HEADROOM * H100.memory


def memory_table(job: Job) -> Iterator[str]:
    yield _line("base", "parameters", "GPUs", "base sharded", "SFT GiB", "reward GiB", "PPO GiB")
    yield "|" + "---|" * 7
    for model in MODELS:
        for gpus in (1, 8, 64):
            found = stage_bytes(model, H100, gpus, job)
            shares = "yes" if sharded(model, H100) else "no"
            gib = [f"{found[s] / GIB:.1f}" for s in ("sft", "reward", "ppo")]
            yield _line(model.name, f"{model.parameters:,}", gpus, shares, *gib)


def chart(job: Job, name: str) -> Iterator[str]:
    model = next(m for m in MODELS if m.name == name)
    seconds = [stage_seconds(model, H100, n, job)["ppo"] for n in GPUS]
    yield "```mermaid"
    yield "xychart-beta"
    yield f'  title "An update of PPO, {name}: times faster than on one H100"'
    yield f'  x-axis "GPUs" [{", ".join(map(str, GPUS))}]'
    yield f'  y-axis "times" 0 --> {max(2, round(seconds[0] / min(seconds) * 1.1))}'
    yield f"  line [{', '.join(f'{seconds[0] / s:.1f}' for s in seconds)}]"
    yield "```"


def published_table() -> Iterator[str]:
    yield _line("of others", "published", "counted", "error", "source")
    yield "|" + "---|" * 5
    for one in published():
        yield _line(
            one.what, f"{one.published:,.4g} {one.unit}", f"{one.counted:,.4g}", f"{one.error:+.0%}", one.source
        )


def measured_table(found: dict[str, Any]) -> Iterator[str]:
    yield _line("forward and backward, 4 layers", "counted s", "measured s", "counted / measured")
    yield "|" + "---|" * 4
    for row in found["passes"]:
        ratio = row["counted"] / row["measured"]
        yield _line(f"width {row['width']}", f"{row['counted']:.4f}", f"{row['measured']:.4f}", f"{ratio:.2f}")


def prose(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), width=118, break_long_words=False, break_on_hyphens=False)


def devices() -> Iterator[str]:
    yield _line("device", "bf16, dense", "bandwidth", "memory", "NVLink, one way", "network a GPU, one way", "source")
    yield "|" + "---|" * 7
    for d in (H100, A100):
        gigabytes = [f"{x / 1e9:.0f} GB" for x in (d.memory, d.link, d.network)]
        rates = [f"{d.peak / 1e12:.0f} TFLOP/s", f"{d.bandwidth / 1e12:.2f} TB/s"]
        source = f"NVIDIA's data sheet; InfiniBand of {d.network * 8 / 1e9:.0f} Gb/s"
        yield _line(d.name, *rates, gigabytes[0], f"{gigabytes[1]}/s", f"{gigabytes[2]}/s", source)


def page(found: dict[str, Any]) -> str:
    """The whole page."""
    job = Job()
    farthest = max(max(o.counted / o.published, o.published / o.counted) for o in published())
    parts = [
        "# Scale, on paper",
        prose(f"""Generated by `python benchmarks/scaling.py`; no GPU was at hand. Work is counted and divided by
            published peaks times factors that are the same in every row: products reach {PRODUCTS:.0%} of the peak,
            reads of weights {READS:.0%} of the bandwidth, messages {LINKS:.0%} of a link; a kernel's launch takes
            {LAUNCH * 1e6:.0f} us and a message {MESSAGE * 1e6:.0f} us besides its bytes. They are round numbers of the
            range that is published for training on such GPUs (a utilisation of 35 to 55 %), chosen before any row
            was computed. Others' figures, below, lie up to a factor of {farthest:.1f} from the same counts: read
            the rows so, and as how a step divides."""),
        "\n".join(devices()),
        prose(f"""Counted are, for LoRA on a frozen bf16 base with gradient checkpointing: forward two operations a
            number and token; backward the gradient by inputs alone; layers computed once more; attention over the
            causal half; logits of responses; adapters. A step of decoding reads every weight and the rows' keys and
            values once. A base that takes more than 60 % of a GPU is sharded over all of them: each pass gathers it
            layer by layer, beside its products, over the network where there are more than {MACHINE} GPUs; policy,
            reference and value of a rollout gather each layer together. Gradients are summed in one message a step,
            and {STEP_MESSAGES} small collectives go with it. Launches, {READ_LAUNCHES} kernels a layer and forward
            pass and {TRAIN_LAUNCHES} with backward, are an assumption."""),
        prose("""Rollouts are sampled by servers on the same GPUs, in turns with training, and every response has
            full length: there are no early stops and no waiting for the longest of uneven ones. Reading data,
            functions of the user's, checkpoints, failures and pretraining from scratch, which is for small bases,
            are left out."""),
        prose(f"""A step of SFT has {job.batch} conversations of {job.length} tokens, of the reward stage as many
            rankings of {job.answers}; an update of PPO {job.rollouts} rollouts of {job.prompt} + {job.response}
            tokens, {job.epochs} epochs of {job.minibatches} minibatches, a policy and a value role. Rankings and
            evaluation are of as many responses. Batches are the same on any number of GPUs, so that many of them
            wait for few rows."""),
        "## Seconds of a step, H100",
        "\n".join(time_table(job)),
        "\n".join(chart(job, "Llama-3.1-8B")),
        "## Memory of a training GPU",
        prose(f"""By the formulas of `trivet plan` ([measured](plan.md): 0.96 to 1.12 of what runs take),
            {job.micro_batch} rows to a micro-batch. A sharded base counts its share and one layer. Sampling is the
            servers'."""),
        "\n".join(memory_table(job)),
        "## Against figures of others",
        prose("""Their way of doing it by the same counts, peaks and factors. What they do not say is assumed:
            DeepSpeed-Chat trains actor and critic in full on 128 rows of 256 + 256 tokens, beside a critic and a
            reward model of 350M; NeMo-RL samples 2,048 responses a step and trains all weights, and its responses'
            length is that of its own tokens a second; ms-swift holds three bases of 8B on every GPU, with one row
            to a pass."""),
        "\n".join(published_table()),
        prose("""The counts of time are optimistic: software adds what is not counted, such as offloading to the
            host where an optimizer's state does not fit one GPU (the 6.7B and 13B rows), waiting for the longest
            response, and moving weights between engines."""),
        "## Against this machine",
        prose(f"""Transformers' Llama with frozen weights, one thread of a CPU, CPU seconds, the best of five;
            counted by the rate of a product of 512 x 512 matrices ({found["rate"] / 1e9:.0f} GFLOP/s), without a
            factor. Operations equal those that torch counts itself (`tests/benchmarks/test_scaling.py`), and
            parameters the published numbers."""),
        "\n".join(measured_table(found)),
        prose("""What the counts leave out, sums that are no products, takes the rest. Not measured: GPUs,
            launches, and messages between machines."""),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure this machine first")
    if parser.parse_args().measure:
        RESULTS.write_text(json.dumps(measured(), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
