"""On the double of a CUDA device (``tests/support/gpu_double.py``): what a GPU would refuse, wait for and launch."""

from __future__ import annotations

import pytest
import torch

from models.backbone.logprobs import make_rows
from models.roles.shared_base import SharedBase
from models.sampling import fast as fast_engine
from models.sampling.fast import SYNC_EVERY_OTHER, FastEngine
from models.sampling.generate import sampling_noise
from tests.conftest import ADAPTER, tiny_lm, word_tokenizer
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
