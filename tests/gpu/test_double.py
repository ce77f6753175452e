"""On the double of a CUDA device (``tests/support/gpu_double.py``): what a GPU would refuse, wait for and launch."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import pytest
import torch

from models.backbone.logprobs import make_rows, scatter
from models.backbone.processes import Processes
from models.backbone.transfers import received, sent, wide
from models.roles.shared_base import SharedBase
from models.sampling import device_steps
from models.sampling.device_steps import SYNC_EVERY, DeviceDecoding, on_device
from models.sampling.fast import FastEngine
from models.sampling.generate import inverse_cdf, sampling_noise
from pipelines.run.pipeline import Pipeline
from reward.model import packed_scores
from reward.shared_prompt import can_share, shared_states
from tests.conftest import ADAPTER, tiny_lm, word_tokenizer
from tests.support import ppo as tiny_ppo
from tests.support.fast import sampled
from tests.support.gpu_double import DeviceMismatch, GpuDouble
from tests.support.recipes import RECIPE, metrics

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
QUERIES = [[5, 9], [7, 8, 9, 10, 11], [12, 13], [20]] * 2


@pytest.fixture
def gpu():
    with GpuDouble().installed() as double:
        yield double


def base_of(dtype: torch.dtype, layers: int = 2, **changes) -> SharedBase:
    lm = tiny_lm("llama", num_hidden_layers=layers, initializer_range=0.2, **changes).to("cuda", dtype)
    base = SharedBase(lm, word_tokenizer(), name="tiny")
    base.add_role("policy", ADAPTER, head=True, trainable=True)
    return base


@pytest.mark.parametrize(
    "mixed",
    [
        lambda a, b: a + b,
        lambda a, b: a @ b,
        lambda a, b: torch.cat([a, b]),
        lambda a, b: torch.zeros_like(a).copy_(a).add_(b),
        lambda a, b: torch.where(a > 0, a, b),
        lambda a, b: b.index_put_((torch.zeros(1, dtype=torch.long),), a[0]),
    ],
)
def test_two_devices_in_one_operation_are_refused(gpu, mixed):
    a, b = torch.ones((2, 2), device="cuda"), torch.ones((2, 2))
    assert a.device == torch.device("cuda:0") and a.is_cuda and not b.is_cuda
    mixed(a, torch.ones((2, 2), device="cuda"))
    with pytest.raises(DeviceMismatch):
        mixed(a, b)
    assert (a + torch.tensor(1.0)).is_cuda  # a scalar may come from the host


@pytest.mark.parametrize(
    ("waiting", "kind"),
    [
        (lambda t: t.sum().item(), "item"),
        (lambda t: bool((t > 0).all()), "item"),
        (lambda t: t.tolist(), "tolist"),
        (lambda t: t.cpu(), "copy to the host"),
        (lambda t: t[t > 0], "index by a mask"),
        (lambda t: t.nonzero(), "nonzero"),
        (lambda t: t[[0, 1]], "index from the host"),
        (lambda t: t + torch.ones(3).to(t.device), "copy to the device"),
    ],
)
def test_what_waits_for_the_device_is_counted(gpu, waiting, kind):
    t = torch.ones(3, device="cuda")
    with gpu.within("here"):
        (t * 2 + 1).relu_()
        assert gpu.waited("here") == 0 and gpu.launches["here"] == 3
        waiting(t)
    kinds = {k for phase, k, _ in gpu.waits if phase == "here"}
    assert kind in kinds


def test_values_and_gradients_are_those_of_the_cpu(gpu):
    x = torch.linspace(-1, 1, 6, device="cuda").requires_grad_()
    (x.pow(3).sum() * 2).backward()
    torch.testing.assert_close(x.grad.cpu().as_subclass(torch.Tensor), 6 * torch.linspace(-1, 1, 6).square())


@DTYPES
def test_passes_and_gradients_are_on_one_device(gpu, dtype):
    base = base_of(dtype)
    rows = make_rows(QUERIES, [[4, 5, 6][: 1 + i % 3] for i in range(8)], 0, base.device)
    with base.training("policy") as trained, base.role("policy") as view:
        assert view.decoder() is not None
        states = view.states(rows.ids, rows.mask, rows.response_positions())
        (view.logprobs(states, rows.targets(), 0.7)[0].sum() + view.head(states).sum()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # gemma2: windows and soft caps
@pytest.mark.parametrize("depth", [0, 1])
def test_steps_of_a_device_give_the_tokens_of_the_cpu(family, depth, monkeypatch):
    steps = 3 * SYNC_EVERY + 5
    sizes = {"sliding_window": 20} if family == "gemma2" else {}
    found = []
    for device in ("cpu", "cuda"):
        with GpuDouble().installed() if device == "cuda" else contextlib.nullcontext() as gpu:
            lm = tiny_lm(family, num_hidden_layers=3, initializer_range=0.2, **sizes).to(device)
            base = SharedBase(lm, word_tokenizer(), name="tiny")
            base.add_role("policy", ADAPTER.model_copy(update={"layers": (1, 2)}), trainable=True)
            noise = sampling_noise(len(QUERIES), steps, torch.Generator().manual_seed(3))
            made = sampled(base, FastEngine(True, depth), QUERIES, noise=noise, stops=(39,), steps=steps)
            numbers = [made.logprobs, made.entropy, *(made.prefix_states or ())]
            found.append((made.ids, made.finished, [t.cpu() for t in numbers]))
            graphs = [g.replays for g in gpu.graphs] if gpu else []
    (ids, finished, numbers), expected = found[1], found[0]
    assert (ids, finished) == expected[:2] and len(numbers) == 2 + len(QUERIES) * depth
    assert max(map(len, ids)) == steps and min(map(len, ids)) < SYNC_EVERY  # rows leave at a look, and some stay
    for there, here in zip(numbers, expected[2], strict=True):
        torch.testing.assert_close(there, here, atol=1e-4, rtol=1e-4)
    assert 1 < len(graphs) <= 4 and sum(graphs) == steps - len(graphs)


@DTYPES
def test_decoding_looks_once_in_so_many_tokens_and_waits_for_nothing_else(gpu, dtype, monkeypatch):
    inner = DeviceDecoding.step

    def watched(self):
        with gpu.within("step"):
            inner(self)

    monkeypatch.setattr(DeviceDecoding, "step", watched)
    steps = 3 * SYNC_EVERY
    noise = sampling_noise(len(QUERIES), steps, torch.Generator().manual_seed(0))
    gpu.waits.clear()
    made = sampled(base_of(dtype), FastEngine(True), QUERIES, noise=noise, stops=(39,), steps=steps)
    assert max(map(len, made.ids)) == steps and gpu.waited("step") == 0
    kinds = Counter(kind for (_, kind, where), n in gpu.waits.items() for _ in range(n) if "sampling" in where)
    assert kinds["tolist"] == steps // SYNC_EVERY and sum(kinds.values()) <= steps // SYNC_EVERY + 4
    assert sum(g.replays for g in gpu.graphs) > 0.9 * (steps - len(gpu.graphs)) and not gpu.float64


def test_where_no_graph_can_be_captured_it_is_said_and_steps_go_on(gpu, monkeypatch):
    base, steps = base_of(torch.float32), SYNC_EVERY + 3
    noise = sampling_noise(len(QUERIES), steps, torch.Generator().manual_seed(0))
    expected = sampled(base, FastEngine(), QUERIES, noise=noise, stops=(39,), steps=steps)
    assert gpu.graphs
    inner = DeviceDecoding.step

    def asks(self):
        inner(self)
        assert self.step_at.item() <= steps

    monkeypatch.setattr(DeviceDecoding, "step", asks)
    with pytest.warns(UserWarning, match="no CUDA graph.*item"):
        made = sampled(base, FastEngine(), QUERIES, noise=noise, stops=(39,), steps=steps)
    assert made == expected


@pytest.mark.parametrize(("adapter", "most", "most_with_fused_norms"), [(True, 40, 26), (False, 30, 20)])
def test_launches_of_a_layer_and_token(gpu, adapter, most, most_with_fused_norms, monkeypatch):
    inner = device_steps.decode_layers

    def watched(*args):
        with gpu.within(f"layers of {len(base.lm.model.layers)}"):
            return inner(*args)

    monkeypatch.setattr(device_steps, "decode_layers", watched)
    launches, norms = [], []
    for layers in (2, 6):
        base = base_of(torch.bfloat16, layers)
        if not adapter:
            base.drop_roles()
        noise = sampling_noise(8, 1, torch.Generator().manual_seed(0))  # one token: one step, and no graph
        role = "policy" if adapter else "base"
        sampled(base, FastEngine(), QUERIES, noise=noise, stops=(39,), steps=1, role=role)
        launches.append(gpu.launches[f"layers of {layers}"])
        norms.append(gpu.norms[f"layers of {layers}"])
    each, normed = (launches[1] - launches[0]) / 4, (norms[1] - norms[0]) / 4
    assert normed == 2
    assert 10 < each <= most and each - 5 * normed <= most_with_fused_norms


@DTYPES
def test_an_update_of_ppo_seldom_waits_and_has_no_float64_on_the_device(gpu, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_ppo, "Processes", lambda *_: Processes("cuda"))
    base = SharedBase(tiny_lm("llama", num_hidden_layers=3).to("cuda", dtype), word_tokenizer(), name="tiny")
    sizes = {"rollouts": 64, "minibatches": 4, "epochs": 1, "micro_batch": 16, "max_new_tokens": 24}
    ppo = tiny_ppo.make_ppo(tmp_path, base=base, **sizes)
    backward = ppo.backward

    def watched(*args):
        with gpu.within("micro-batch"):
            return backward(*args)

    ppo.backward = watched
    steps = ppo.train()
    next(steps)
    gpu.waits.clear()
    gpu.float64.clear()
    metrics = next(steps)
    assert metrics["ppo/policy/grad_norm"] > 0 and ppo.update_index == 2
    assert gpu.waited("micro-batch") == 0
    assert 4 < sum(gpu.waits.values()) < 100 / 4
    assert not gpu.float64


@DTYPES
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "modules"])
def test_rankings_wait_for_what_they_read_and_make_their_masks_on_the_device(gpu, dtype, fast):
    base = base_of(dtype)
    base.fast = fast
    rows = make_rows([[5, 9, 3]] * 3, [[4, 5, 6][: 1 + i % 3] for i in range(3)], 0, base.device)
    with base.training("policy"), base.role("policy") as view:
        assert can_share(view.lm)
        gpu.waits.clear()
        states, lengths = shared_states(view, rows, [3])
        kinds = Counter(kind for (_, kind, where), n in gpu.waits.items() for _ in range(n) if "shared_prompt" in where)
        packed_scores(states, view.head, lengths, "last").sum().backward()
    assert kinds == {"tolist": 3}  # lengths, queries and tokens; nothing of a row squared is sent


def pipeline_on(device: str, dtype: str, folder: Path) -> dict[str, list[dict]]:
    """Metrics of every stage of the least run."""
    sizes = ["base.pretrain.steps=6", "rankings.prompts=8", "rankings.held_out_prompts=4", "evaluation.prompts=2"]
    sizes += ["rankings.max_new_tokens=6", "ppo.max_new_tokens=6"]
    Pipeline.from_recipe(RECIPE, [f"runtime.device={device}", f"runtime.dtype={dtype}", *sizes], run_dir=folder).run()
    return metrics(folder)


def test_the_whole_pipeline_on_one_of_two_devices(tmp_path, capsys):
    """Each stage on the device in both precisions, with the CPU's numbers in fp32; the second device stays idle."""
    found = {"cpu": pipeline_on("cpu", "float32", tmp_path / "cpu")}
    for dtype in ("float32", "bfloat16"):
        with GpuDouble(count=2).installed() as gpu:
            found[dtype] = pipeline_on("cuda", dtype, tmp_path / dtype)
        assert gpu.graphs and not gpu.float64  # decoding is captured; a mixture of devices would have raised
        assert len(found[dtype]["ppo"]) == 2 and (tmp_path / dtype / "evaluation/manifest.json").is_file()
        assert found[dtype]["ppo"][0]["ppo/policy/ratio"] == pytest.approx(1.0, abs=1e-2)
    assert "2 GPUs are visible, and one process uses one of them (cuda:0)" in capsys.readouterr().out
    for stage in ("pretrain", "sft", "reward", "ppo"):
        for here, there in zip(found["cpu"][stage], found["float32"][stage], strict=True):
            assert here.keys() == there.keys()
            for name in here:
                assert there[name] == pytest.approx(here[name], rel=1e-4, abs=1e-5), (stage, name)
    assert found["bfloat16"]["sft"] != found["float32"]["sft"]


def test_tokens_drawn_on_a_device_are_those_of_the_cpu_but_at_the_edges_of_rounding(gpu):
    g = torch.Generator().manual_seed(0)
    probabilities = torch.softmax(4 * torch.randn((4000, 1000), generator=g), dim=-1)
    probabilities[:, ::3] = 0.0
    noise = torch.rand(4000, generator=g, dtype=torch.float64)
    noise[0], noise[1] = 0.0, 1.0 - 2.0**-53  # the largest number below 1, which fp32 does not have
    expected = inverse_cdf(probabilities, noise)
    there = inverse_cdf(probabilities.to("cuda"), on_device(noise, torch.device("cuda"))).cpu()
    assert (there == expected).double().mean() > 0.998
    assert (probabilities.gather(1, there[:, None]) > 0).all() and not gpu.float64


def test_what_travels_in_one_message_arrives_as_it_was(gpu):
    host = [torch.tensor([[1, 2], [3, 4]]), torch.tensor([], dtype=torch.long), torch.tensor([2**40, -1])]
    with gpu.within("there"):
        there = sent(host, "cuda")
    assert all(t.is_cuda for t in there) and gpu.waited("there") == 0
    for sent_one, one in zip(there, host, strict=True):
        torch.testing.assert_close(sent_one.cpu(), one, rtol=0, atol=0)
    mixed = [torch.rand(3, 2), torch.tensor([True, False]), torch.tensor(1.5)]
    with gpu.within("back"):
        back = received([t.to("cuda") for t in mixed])
    assert [k for phase, k, _ in gpu.waits if phase == "back"].count("copy to the host") == 1
    for received_one, one in zip(back, mixed, strict=True):
        assert received_one.dtype == one.dtype and not received_one.is_cuda
        torch.testing.assert_close(received_one, one, rtol=0, atol=0)
    assert wide(torch.ones(2)).dtype == torch.float64 and wide(torch.ones(2).to("cuda")).dtype == torch.float32


def test_scattering_and_packing_ask_the_device_nothing(gpu):
    with gpu.within("here"):
        rows = make_rows([[5], [6, 7]], [[1, 2], [3]], 0, "cuda", numbers=[7, 4])
        table = scatter(torch.tensor([1.0, 2.0, 3.0]).to("cuda"), rows.response_lengths, 3)
        assert rows.packing is not None
        cells = rows.packing.cells
    assert {k for phase, k, _ in gpu.waits if phase == "here"} == {"copy to the device"}  # the test's own numbers
    assert table.cpu().tolist() == [[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]
    assert rows.mask.cpu().tolist() == [[True] * 3, [True] * 3] and cells.cpu().tolist() == list(range(6))
    assert rows.response_positions().cpu().tolist() == [0, 1, 4] and rows.numbers.cpu().tolist() == [7, 4]
