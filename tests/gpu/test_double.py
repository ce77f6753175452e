"""On the double of a CUDA device (``tests/support/gpu_double.py``): what a GPU would refuse, wait for and launch."""

from __future__ import annotations

import pytest
import torch

from models.backbone.logprobs import make_rows, scatter
from models.backbone.processes import Processes
from models.backbone.transfers import received, sent, wide
from models.roles.shared_base import SharedBase
from models.sampling import fast as fast_engine
from models.sampling.fast import SYNC_EVERY_OTHER, FastEngine, on_device
from models.sampling.generate import inverse_cdf, sampling_noise
from tests.conftest import ADAPTER, tiny_lm, word_tokenizer
from tests.support import ppo as tiny_ppo
from tests.support.fast import sampled
from tests.support.gpu_double import DeviceMismatch, GpuDouble

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


def decoded(gpu, base, monkeypatch, steps: int):
    """Samples, with the steps' waits and launches under ``read`` and ``layers``."""

    def watch(owner, name, phase):
        inner = getattr(owner, name)

        def wrapped(*args, **kwargs):
            with gpu.within(phase):
                return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    watch(fast_engine.Decoding, "sample", "step")
    watch(fast_engine.Decoding, "read", "step")
    watch(fast_engine, "decode_layers", "layers")
    noise = sampling_noise(len(QUERIES), steps, torch.Generator().manual_seed(0))
    return sampled(base, FastEngine(True), QUERIES, noise=noise, stops=(39,), steps=steps)


@DTYPES
def test_decoding_waits_once_in_so_many_tokens(gpu, dtype, monkeypatch):
    steps = 3 * SYNC_EVERY_OTHER
    made = decoded(gpu, base_of(dtype), monkeypatch, steps)
    assert max(map(len, made.ids)) == steps
    assert gpu.waited("layers") == 0
    looks = [k for (phase, k, _), n in gpu.waits.items() for _ in range(n) if phase == "step"]
    # where a look finds a row done, the rows that are left are taken from the host's list
    assert looks.count("tolist") == steps // SYNC_EVERY_OTHER - 1 and set(looks) <= {"tolist", "copy to the device"}


@pytest.mark.parametrize(("adapter", "most", "most_with_fused_norms"), [(True, 40, 26), (False, 30, 20)])
def test_launches_of_a_layer_and_token(gpu, adapter, most, most_with_fused_norms, monkeypatch):
    launches, norms = [], []
    for layers in (2, 6):
        base = base_of(torch.bfloat16, layers)
        if not adapter:
            base.drop_roles()
        before = gpu.launches["layers"], gpu.norms["layers"]
        noise = sampling_noise(8, 9, torch.Generator().manual_seed(0))
        with monkeypatch.context() as patch:
            inner = fast_engine.decode_layers

            def watched(*args, inner=inner):
                with gpu.within("layers"):
                    return inner(*args)

            patch.setattr(fast_engine, "decode_layers", watched)
            role = "policy" if adapter else "base"
            sampled(base, FastEngine(), QUERIES, noise=noise, stops=(39,), steps=9, role=role)
        launches.append((gpu.launches["layers"] - before[0]) / 8)
        norms.append((gpu.norms["layers"] - before[1]) / 8)
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
