"""Ways to tune a role: what each begins as, trains and leaves alone, and what others read of its files."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
from peft import PeftModel

from data.common.errors import UserError
from models.backbone.settings import METHODS, RESIDUAL, AdapterConfig
from models.roles import methods
from models.roles.export import save_role, write_model
from models.roles.files import read_role
from tests.conftest import make_base, randomise, tiny_lm

IDS = torch.tensor([[5, 9, 11, 7, 20, 21]])
MASK = torch.ones_like(IDS, dtype=torch.bool)
ON_BASE = [name for name, method in METHODS.items() if not method.copies]
VIRTUAL = [name for name, method in METHODS.items() if method.virtual]
WITH_RANK = {"rank": 4, "alpha": 8}


def settings(method, **more):
    own = WITH_RANK if "rank" in METHODS[method].settings else {}
    own = own | ({"virtual_tokens": 3} if METHODS[method].virtual else {})
    return AdapterConfig(method=method, **(own | more))


def logits(base, role):
    with base.role(role) as view, torch.no_grad():
        return view.logits(view.hidden(IDS, MASK))


def fast_states(base, role):
    with base.role(role) as view, torch.no_grad():
        return view.states(IDS, MASK, torch.arange(6))


def step(base, role, rate=0.05):
    """One step of plain gradient descent on something that every tensor of the role has a part in."""
    with base.training(role) as trained, base.role(role) as view:
        view.logits(view.hidden(IDS, MASK)).float().log_softmax(-1)[0, :, 3].sum().neg().backward()
        with torch.no_grad():
            for p in trained.values():
                if p.grad is not None:
                    p -= rate * p.grad
    return trained


def trained_role(method, family="llama", **more):
    """A role after two steps: with LoRA, A moves at the second alone."""
    base = make_base(family)
    base.add_role("sft", settings(method, **more))
    for _ in range(2):
        step(base, "sft")
    return base


def test_every_method_stands_in_every_table():
    assert set(get_args(AdapterConfig.model_fields["method"].annotation)) == METHODS.keys()
    assert set(methods.ADAPTERS) == set(ON_BASE) and set(methods.BEGINNINGS) == set(RESIDUAL) == {"pissa", "olora"}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", sorted(METHODS.keys() - set(VIRTUAL)))
def test_a_fresh_role_is_the_base(method, family):
    base = make_base(family)
    plain = logits(base, "base")
    base.add_role("sft", settings(method))
    torch.testing.assert_close(logits(base, "sft"), plain, atol=1e-5, rtol=1e-5)  # a residual's halves are rounded
    assert torch.equal(logits(base, "base"), plain)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_training_moves_what_the_method_names_and_nothing_else(method, family):
    base = make_base(family)
    base.add_role("other", settings(method))
    base.add_role("sft", settings(method))
    mine = set(base.parameters_of("sft"))
    everything = {f"lm.{n}": p for n, p in base.lm.named_parameters()}
    everything |= {f"copy.{r}.{n}": p for r, lm in base.copies.items() for n, p in lm.named_parameters()}
    own = {id(p) for p in base.parameters_of("sft").values()}
    before = {name: p.detach().clone() for name, p in everything.items()}
    for _ in range(2):
        step(base, "sft")
    moved = {name for name, p in everything.items() if not torch.equal(p, before[name])}
    assert moved and {id(everything[name]) for name in moved} <= own
    kinds = {
        "lora": {"lora_A", "lora_B"},
        "dora": {"lora_A", "lora_B", "lora_magnitude_vector"},
        "pissa": {"lora_A", "lora_B"},
        "olora": {"lora_A", "lora_B"},
        "adalora": {"lora_A", "lora_B", "lora_E"},
        "ia3": {"ia3_l"},
    }
    if method in kinds:
        assert {part for name in mine for part in name.split(".") if part.startswith(("lora_", "ia3_"))} == kinds[
            method
        ]
        assert {part for name in moved for part in name.split(".") if part.startswith(("lora_", "ia3_"))} == kinds[
            method
        ]
    if method in VIRTUAL:
        assert all(name.startswith("soft_prompts.sft.encoder.") for name in mine)
        assert moved == {f"lm.{name}" for name in mine}  # P-tuning's encoder as a whole
    assert base.base_fingerprint() == base.fingerprint


def test_freeze_trains_the_matrices_of_the_layers_that_are_named_and_shares_all_others():
    base = make_base()
    base.add_role("sft", settings("freeze", layers=(1,)))
    names = set(base.parameters_of("sft"))
    linear = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    linear += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert names == {f"sft.model.layers.1.{one}.weight" for one in linear}
    there = {p.data_ptr() for p in base.lm.parameters()}
    shared = [n for n, p in base.copies["sft"].named_parameters() if p.data_ptr() in there]
    assert {f"sft.{n}" for n in shared} == {f"sft.{n}" for n, _ in base.copies["sft"].named_parameters()} - names


def test_freeze_can_train_modules_outside_the_layers():
    base = make_base()
    base.add_role("sft", settings("freeze", targets=("norm",)))
    assert "sft.model.norm.weight" in base.parameters_of("sft")
    assert not [n for n in base.parameters_of("sft") if "proj" in n]


def test_frozen_tensors_of_a_stored_freeze_role_are_in_memory_once(tmp_path):
    trained = trained_role("freeze", layers=(1,))
    save_role(trained, "sft", tmp_path)
    base = make_base()
    base.add_role("reference", tmp_path)
    base.add_role("policy", settings("freeze", layers=(1,)), copy_of="reference")
    there = {p.data_ptr() for p in base.lm.parameters()}
    for role in ("reference", "policy"):
        own = {n for n, p in base.copies[role].named_parameters() if p.data_ptr() not in there}
        assert own and all("layers.1." in n and "proj" in n for n in own), role
    assert torch.equal(logits(base, "policy"), logits(trained, "sft"))
    step(base, "policy")
    assert torch.equal(logits(base, "reference"), logits(trained, "sft"))
    assert base.base_fingerprint() == base.fingerprint


@pytest.mark.parametrize("rslora", [False, True])
def test_pissa_begins_with_the_best_part_of_its_rank(rslora):
    """Eckart and Young: no matrix of that rank is nearer to the weight."""
    base = make_base()
    base.add_role("sft", settings("pissa", rslora=rslora))
    layer = base.lm.model.layers[0].mlp.down_proj
    a, b, scaling = layer.lora_A["sft"].weight, layer.lora_B["sft"].weight, layer.scaling["sft"]
    assert scaling == pytest.approx(8 / 2 if rslora else 8 / 4) and a.shape[0] == b.shape[1] == 8
    weight = layer.base_layer.weight.double()
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close((scaling * b[:, :4] @ a[:4]).double(), u[:, :4] * s[:4] @ v[:4], atol=1e-5, rtol=1e-4)
    assert torch.equal(b[:, 4:], -b[:, :4]) and torch.equal(a[4:], a[:4])


def test_pissa_of_a_large_matrix_is_close_to_the_exact_one(monkeypatch):
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(80, 60, generator=g) @ torch.diag(0.7 ** torch.arange(60.0)) @ torch.randn(60, 60, generator=g)
    a, b = methods.BEGINNINGS["pissa"](weight, 4, 2.0)
    exact = b @ a
    monkeypatch.setattr(methods, "EXACT", 8)
    a, b = methods.BEGINNINGS["pissa"](weight, 4, 2.0)
    near = b @ a
    assert (near - exact).norm() / exact.norm() < 1e-4


def test_olora_begins_with_an_orthonormal_b_and_rows_of_r():
    base = make_base()
    base.add_role("sft", settings("olora"))
    layer = base.lm.model.layers[1].self_attn.q_proj
    a, b = layer.lora_A["sft"].weight[:4], layer.lora_B["sft"].weight[:, :4]
    torch.testing.assert_close(b.T @ b, torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(a, b.T @ layer.base_layer.weight, atol=1e-5, rtol=1e-4)  # R = Q' W


@pytest.mark.parametrize("method", RESIDUAL)
def test_the_half_that_a_residual_adapter_began_with_stays(method):
    base = make_base()
    base.add_role("sft", settings(method))
    layer = base.lm.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["sft"].weight, layer.lora_B["sft"].weight
    first = a.detach().clone(), b.detach().clone()
    step(base, "sft")
    assert torch.equal(a[4:], first[0][4:]) and torch.equal(b[:, 4:], first[1][:, 4:])
    assert not torch.equal(a[:4], first[0][:4]) and not torch.equal(b[:, :4], first[1][:, :4])


@pytest.mark.parametrize("method", RESIDUAL)
def test_a_stored_residual_adapter_goes_on_as_one(tmp_path, method):
    trained = trained_role(method)
    save_role(trained, "sft", tmp_path)
    base = make_base()
    base.add_role("reference", tmp_path)
    assert base.unlike(settings(method), "reference") == ""
    assert "has " + method in base.unlike(settings("lora", rank=8, alpha=16), "reference")
    base.add_role("policy", settings(method), copy_of="reference")
    layer = base.lm.model.layers[0].self_attn.q_proj
    before = layer.lora_A["policy"].weight.detach().clone()
    step(base, "policy")
    assert torch.equal(layer.lora_A["policy"].weight[4:], before[4:])


@pytest.mark.parametrize("method", RESIDUAL)
def test_a_plain_adapter_is_not_taken_for_a_residual_one(tmp_path, method):
    plain = trained_role("lora", rank=8, alpha=16)
    save_role(plain, "sft", tmp_path)
    base = make_base()
    base.add_role("reference", tmp_path)
    assert base.unlike(settings(method), "reference") == f"method: {method} is asked for, 'reference' has lora"


def test_gaussian_begins_a_with_numbers_of_that_spread():
    base = make_base()
    base.add_role("sft", settings("lora", rank=16, alpha=16, init="gaussian"))
    numbers = torch.cat([p.flatten() for n, p in base.parameters_of("sft").items() if ".lora_A." in n])
    assert numbers.std().item() == pytest.approx(1 / 16, rel=0.05)  # PEFT: a deviation of 1 / rank
    kaiming = make_base()
    kaiming.add_role("sft", settings("lora", rank=16, alpha=16))
    spread = torch.cat([p.flatten() for n, p in kaiming.parameters_of("sft").items() if ".lora_A." in n])
    assert spread.abs().max() <= 1 / 32**0.5 + 1e-6  # uniform up to 1 / sqrt(width), by Kaiming with a = sqrt(5)


@pytest.mark.parametrize("method", ON_BASE)
def test_plain_peft_opens_what_is_written_and_gives_the_same(tmp_path, method):
    base = trained_role(method)
    save_role(base, "sft", tmp_path)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(tiny_lm().eval(), tmp_path / "adapter")(input_ids=IDS).logits
        theirs = theirs[:, -IDS.shape[1] :]  # PEFT gives the states of virtual tokens too
        plain = tiny_lm().eval()
        if method not in VIRTUAL:  # which it does not take
            plain.load_adapter(str(tmp_path / "adapter"))  # Transformers' own way
    torch.testing.assert_close(theirs, logits(base, "sft"), atol=1e-5, rtol=1e-4)
    if method not in VIRTUAL:
        torch.testing.assert_close(plain(input_ids=IDS).logits.detach(), theirs, atol=1e-6, rtol=1e-5)
    again = make_base()
    again.add_role("sft", tmp_path)
    torch.testing.assert_close(logits(again, "sft"), logits(base, "sft"), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - set(VIRTUAL)))
def test_a_merged_model_gives_the_same(tmp_path, method):
    base = trained_role(method)
    write_model(base, "sft", tmp_path, stop_ids=[2])
    with torch.no_grad():
        theirs = type(tiny_lm()).from_pretrained(tmp_path)(input_ids=IDS).logits
    torch.testing.assert_close(theirs, logits(base, "sft"), atol=1e-4, rtol=1e-3)
    assert base.base_fingerprint() == base.fingerprint


@pytest.mark.parametrize("method", METHODS)
def test_the_fast_path_and_the_modules_agree_or_the_modules_run(method):
    base = trained_role(method)
    with base.role("sft") as view:
        fast = view.decoder() is not None
        slow = view.hidden(IDS, MASK)[0]
    assert fast == (METHODS[method].plain or METHODS[method].copies)
    torch.testing.assert_close(fast_states(base, "sft"), slow.detach(), atol=1e-5, rtol=1e-4)


def test_adapters_of_two_kinds_do_not_share_a_base():
    base = make_base()
    base.add_role("sft", settings("lora"))
    with pytest.raises(UserError, match=r"'value' is a IA3 adapter, and others on base .* are LORA"):
        base.add_role("value", settings("ia3"))
    base.add_role("policy", settings("dora"))  # LoRA with more
    randomise(base, "policy", 0)
    assert not torch.equal(logits(base, "policy"), logits(base, "sft"))


def test_ia3_stands_where_pefts_table_says_and_elsewhere_where_it_is_told():
    base = make_base()
    base.add_role("sft", settings("ia3", layers=(1,)))
    shapes = {n.split("layers.")[1].split(".ia3_l")[0]: tuple(p.shape) for n, p in base.parameters_of("sft").items()}
    inner = base.lm.config.intermediate_size
    assert shapes.keys() == {"1.self_attn.k_proj", "1.self_attn.v_proj", "1.mlp.down_proj"}
    assert shapes["1.mlp.down_proj"] == (1, inner) and shapes["1.self_attn.k_proj"][1] == 1
    base.drop_roles()
    base.add_role("sft", settings("ia3", targets=("o_proj",)))
    assert all(".o_proj.ia3_l." in n for n in base.parameters_of("sft"))
    unknown = make_base()
    unknown.lm.config = copy.deepcopy(unknown.lm.config)
    unknown.lm.config.model_type = "nobody"
    with pytest.raises(UserError, match=r"does not say where \(IA\)3 stands on 'nobody': name modules"):
        unknown.add_role("sft", settings("ia3"))


def test_a_rank_larger_than_a_matrix_is_refused():
    base = make_base()
    with pytest.raises(UserError, match=r"adapter\.rank: 40 is more than the 32 x 64 matrix of 'model"):
        base.add_role("sft", settings("pissa", rank=40))
    assert base.roles == ()


def test_a_stored_model_that_is_trained_leaves_the_base_alone(tmp_path):
    """Its tensors that are the base's own are the base's only until somebody trains them."""
    trained = trained_role("freeze", layers=(1,))
    save_role(trained, "sft", tmp_path)
    for at_once in (True, False):
        base = make_base()
        base.add_role("sft", tmp_path, trainable=at_once)
        places = {p.data_ptr() for p in base.parameters_of("sft").values()}
        assert any(p.data_ptr() in places for p in base.lm.parameters()) != at_once
        assert not [n for n, p in base.lm.named_parameters() if p.requires_grad]
        before = logits(base, "sft")
        step(base, "sft")
        assert base.base_fingerprint() == base.fingerprint and not torch.equal(logits(base, "sft"), before)
        embeddings = base.copies["sft"].get_input_embeddings().weight
        assert not torch.equal(embeddings, base.lm.get_input_embeddings().weight)


def test_large_matrices_begin_alike_whatever_was_drawn_before(monkeypatch):
    """Their parts are found with random numbers, which are the role's own."""
    monkeypatch.setattr(methods, "EXACT", 8)
    found = []
    for seed in (1, 2):
        base = make_base()
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        base.add_role("sft", settings("pissa"), seed=3)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(torch.cat([p.detach().flatten() for p in base.parameters_of("sft").values()]))
    assert torch.equal(*found)


@pytest.mark.parametrize("method", RESIDUAL)
def test_the_half_stays_also_where_gradients_are_asked_for_at_once(method):
    base = make_base()
    base.add_role("sft", settings(method), trainable=True)
    assert all(p.requires_grad for p in base.parameters_of("sft").values())
    with base.role("sft") as view:
        view.hidden(IDS, MASK).square().sum().backward()
    layer = base.lm.model.layers[0].self_attn.q_proj
    assert layer.lora_A["sft"].weight.grad[4:].abs().max() == 0 < layer.lora_A["sft"].weight.grad[:4].abs().max()


def test_a_foreign_ia3_adapter_is_read_and_a_damaged_one_is_refused(tmp_path):
    base = trained_role("ia3")
    save_role(base, "sft", tmp_path)
    found = read_role(tmp_path).adapter
    assert found is not None and found.residual is None and len(found.tensors) == len(base.parameters_of("sft"))
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(file.read_text().replace('"modules_to_save": null', '"modules_to_save": ["lm_head"]'))
    with pytest.raises(
        UserError, match="modules_to_save: 'lm_head' has no weights next to it, and would change the shared base"
    ):
        read_role(tmp_path)


def test_an_ia3_adapter_of_another_base_is_refused_by_its_shapes_alone(tmp_path):
    from pipelines.run.base_rehearsal import KnownBase, check_stored_adapter

    save_role(trained_role("ia3"), "sft", tmp_path)
    other = tiny_lm(hidden_size=48, num_attention_heads=4).config
    base = KnownBase(name="wider", config=other, renderer=None, limits=None)
    with pytest.raises(
        UserError, match=r"sft: .*k_proj takes 48 numbers and gives 24 in base wider, and its ia3_l is 16 x 1"
    ):
        check_stored_adapter(base, tmp_path, "sft")
    check_stored_adapter(KnownBase(name="same", config=tiny_lm().config, renderer=None, limits=None), tmp_path, "sft")
