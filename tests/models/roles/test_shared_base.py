"""One frozen base, many roles: storage, switching, trainable sets, files."""

from __future__ import annotations

import json

import pytest
import torch

from data.common.errors import UserError
from models.backbone.artifacts import publish
from models.backbone.forward import hidden_states, logits_of, set_gradient_checkpointing
from models.backbone.settings import AdapterConfig
from models.hub.registry import BaseModelSpec
from models.roles.export import save_role
from models.roles.shared_base import SharedBase
from tests.conftest import ADAPTER, FAMILIES, make_base, randomise, tiny_lm, word_tokenizer

IDS = torch.tensor([[5, 9, 11, 7, 20, 21]])
MASK = torch.ones_like(IDS, dtype=torch.bool)


def logits(base, role):
    with base.role(role) as view, torch.no_grad():
        return view.logits(view.hidden(IDS, MASK))


def with_roles(*names, family="llama", head=()):
    base = make_base(family)
    for i, name in enumerate(names):
        base.add_role(name, ADAPTER, head=name in head)
        randomise(base, name, seed=i)
    return base


@pytest.mark.parametrize("family", FAMILIES)
def test_body_and_output_layer_give_the_models_own_logits(family):
    lm = tiny_lm(family).eval()
    with torch.no_grad():
        own = lm(input_ids=IDS, attention_mask=MASK.long(), use_cache=False).logits
        ours = logits_of(lm, hidden_states(lm, IDS, MASK))
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_off_wherever_a_config_has_it(family):
    """R6: two passes in train mode are the same, functional attention dropout included."""
    base = make_base(family)
    base.lm.train()
    with torch.no_grad():
        first, second = (hidden_states(base.lm, IDS, MASK) for _ in range(2))
    assert torch.equal(first, second)


def test_the_base_is_one_copy_through_all_roles():
    base = make_base()
    before = {n: p.data_ptr() for n, p in base.base_tensors().items()}
    hashed = base.base_fingerprint()
    for name in ("sft", "reference", "policy", "reward", "value"):
        base.add_role(name, ADAPTER, head=name in ("reward", "value"))
    after = {n: p.data_ptr() for n, p in base.base_tensors().items()}
    assert before == after
    assert base.base_fingerprint() == hashed == base.fingerprint
    for name in base.roles:
        with base.role(name) as view:
            assert {p.data_ptr() for p in view.lm.parameters()} >= set(before.values())


def test_each_role_has_its_own_effect_and_leaves_no_trace():
    """P5: distinct effects, and an exception inside a role restores what was active."""
    base = with_roles("sft", "policy", "reward")
    plain = logits(base, "base")
    seen = {name: logits(base, name) for name in base.roles}
    values = [plain, *seen.values()]
    for i, a in enumerate(values):
        for b in values[i + 1 :]:
            assert (a - b).abs().max() > 1e-2
    with base.role("policy") as view:
        with pytest.raises(RuntimeError, match="inside"), base.role("reward"):
            raise RuntimeError("inside")
        with torch.no_grad():
            assert torch.equal(view.logits(view.hidden(IDS, MASK)), seen["policy"])
    assert torch.equal(logits(base, "base"), plain)


def test_entering_a_role_changes_nobodys_requires_grad():
    """P1, P3, P4: PEFT's own switching would freeze the others."""
    base = with_roles("policy", "value", "reference")
    with base.training("policy", "value") as trainable:
        expected = {n for n, p in base.lm.named_parameters() if ".policy." in n or ".value." in n}
        for role in ("reference", "policy", "base", "value"):
            with base.role(role):
                assert {n for n, p in base.lm.named_parameters() if p.requires_grad} == expected
        with pytest.raises(ValueError), base.role("reference"):
            raise ValueError
        assert {n for n, p in base.lm.named_parameters() if p.requires_grad} == expected == set(trainable)
    assert not any(p.requires_grad for p in base.lm.parameters())


def test_adding_a_role_while_training_leaves_the_trainable_set():
    base = with_roles("policy")
    with base.training("policy") as trainable:
        base.add_role("late", ADAPTER)
        assert {n for n, p in base.lm.named_parameters() if p.requires_grad} == set(trainable)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_two_roles_do_not_mix(checkpointing):
    """P1, P2, C10: each role's gradient is what it is alone, with and without gradient checkpointing."""

    def gradients(together):
        base = with_roles("policy", "value")
        out = {}
        with base.training("policy", "value") as trainable:
            set_gradient_checkpointing(base.lm, checkpointing)
            for turn in (("policy", "value"),) if together else (("policy",), ("value",)):
                for p in trainable.values():
                    p.grad = None
                for role in turn:
                    with base.role(role) as view:
                        view.hidden(IDS, MASK).square().sum().backward()
                out |= {n: p.grad.clone() for n, p in trainable.items() if any(f".{r}." in n for r in turn)}
            set_gradient_checkpointing(base.lm, False)
        return out

    alone, both = gradients(False), gradients(True)
    assert alone.keys() == both.keys()
    for name in alone:
        assert alone[name].abs().max() > 0, name
        torch.testing.assert_close(both[name], alone[name], rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing_gives_the_same_gradient():
    def gradient(checkpointing):
        base = with_roles("policy")
        with base.training("policy") as trainable:
            set_gradient_checkpointing(base.lm, checkpointing)
            with base.role("policy") as view:
                view.hidden(IDS, MASK).square().sum().backward()
            flagged = any(getattr(m, "gradient_checkpointing", False) for m in base.lm.modules())
            assert flagged is checkpointing
            return torch.cat([p.grad.flatten().clone() for p in trainable.values()])

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-5, atol=1e-6)


def test_the_base_gets_no_gradient():
    """P17."""
    base = with_roles("policy")
    with base.training("policy"), base.role("policy") as view:
        view.hidden(IDS, MASK).sum().backward()
        assert all(p.grad is None for n, p in base.lm.named_parameters() if ".lora_" not in n)
    assert all(p.grad is None for p in base.lm.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copied_role_starts_equal_and_then_lives_its_own_life(family):
    base = with_roles("sft", family=family)
    base.add_role("policy", ADAPTER, copy_of="sft")
    assert torch.equal(logits(base, "sft"), logits(base, "policy"))
    randomise(base, "policy", seed=9)
    assert not torch.equal(logits(base, "sft"), logits(base, "policy"))


def test_adapters_never_sit_on_embeddings_or_the_output_layer():
    """P13."""
    for family in FAMILIES:
        base = with_roles("sft", family=family)
        names = list(base.parameters_of("sft"))
        assert names and not any("embed" in n or "lm_head" in n or "wte" in n for n in names)


def test_layers_can_be_chosen():
    base = make_base()
    base.add_role("sft", AdapterConfig(rank=2, alpha=4, layers="upper_half"))
    assert {n.split("layers.")[1][0] for n in base.parameters_of("sft")} == {"1"}
    with pytest.raises(UserError, match="outside the 2 layers"):
        base.add_role("other", AdapterConfig(layers=(5,)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_a_role_survives_the_disk_exactly(family, tmp_path):
    """P7, P14, K7: adapter, scaling and head come back bit for bit, in a plain PEFT folder."""
    base = with_roles("reward", family=family, head=("reward",))
    save_role(base, "reward", tmp_path / "a", {"centre": 0.1234567890123})
    other = make_base(family)
    numbers = other.load_role("reward", tmp_path / "a", head=True)
    assert numbers == {"centre": 0.1234567890123}
    assert torch.equal(logits(base, "reward"), logits(other, "reward"))
    assert torch.equal(base.heads["reward"].weight, other.heads["reward"].weight)
    save_role(other, "reward", tmp_path / "b", numbers)
    for file in (tmp_path / "a").rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


def test_peft_itself_reads_our_adapter(tmp_path):
    from peft import PeftModel

    base = with_roles("sft")
    save_role(base, "sft", tmp_path)
    lm = PeftModel.from_pretrained(tiny_lm(), tmp_path / "adapter").eval()
    with torch.no_grad():
        theirs = lm(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(theirs, logits(base, "sft"), atol=1e-5, rtol=1e-5)


def test_a_checkpoint_without_its_head_is_refused(tmp_path):
    base = with_roles("reward", head=("reward",))
    save_role(base, "reward", tmp_path)
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(UserError, match=r"head\.safetensors"):
        make_base().load_role("reward", tmp_path, head=True)


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path):
    from safetensors.torch import load_file, save_file

    base = with_roles("sft")
    save_role(base, "sft", tmp_path)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    state = load_file(weights)
    first = next(iter(state))
    save_file({("renamed" if k == first else k): v for k, v in state.items()}, weights)
    fresh = make_base()
    with pytest.raises(UserError, match="1 missing, 1 unknown"):
        fresh.load_role("sft", tmp_path)
    assert "sft" not in fresh.roles
    weights.unlink()
    with pytest.raises(UserError, match="safetensors"):
        fresh.load_role("sft", tmp_path)


def test_an_adapter_that_would_change_the_base_is_refused(tmp_path):
    base = with_roles("sft")
    save_role(base, "sft", tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"modules_to_save": ["lm_head"]}))
    with pytest.raises(UserError, match="modules_to_save"):
        make_base().load_role("sft", tmp_path)


def test_dropping_roles_leaves_the_base_as_it_was():
    base = make_base()
    plain, hashed = logits(base, "base"), base.base_fingerprint()
    base.add_role("sft", ADAPTER, head=True)
    randomise(base, "sft", 0)
    base.drop_roles()
    assert base.roles == ()
    assert torch.equal(logits(base, "base"), plain) and base.base_fingerprint() == hashed
    base.add_role("sft", ADAPTER)
    randomise(base, "sft", 0)
    assert not torch.equal(logits(base, "sft"), plain)


def test_full_fine_tuning_roles_are_copies_and_the_base_stays():
    base = make_base()
    full = AdapterConfig(method="full")
    base.add_role("reference", full)
    base.add_role("policy", full, copy_of="reference", head=True)
    with base.training("policy") as trainable, base.role("policy") as view:
        view.hidden(IDS, MASK).square().sum().backward()
        with torch.no_grad():
            for p in trainable.values():
                if p.grad is not None:
                    p -= 0.01 * p.grad
    assert torch.equal(logits(base, "reference"), logits(base, "base"))
    assert not torch.equal(logits(base, "policy"), logits(base, "base"))
    assert base.base_fingerprint() == base.fingerprint


# -- the names that users rely on --------------------------------------------------------------------------------


def saved_base(folder):
    lm, tokenizer = tiny_lm(), word_tokenizer()
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_base_is_loaded_from_a_folder_or_a_spec(tmp_path, monkeypatch):
    folder = saved_base(tmp_path / "base")
    base = SharedBase.load(folder, device="cpu", dtype="float32")
    assert base.base_fingerprint() == base.fingerprint == make_base().base_fingerprint()
    monkeypatch.chdir(tmp_path)
    half = SharedBase.load(BaseModelSpec(name="tiny", source=str(folder)), device="cpu", dtype=torch.bfloat16)
    assert half.name == "tiny" and next(half.lm.parameters()).dtype == torch.bfloat16
    assert next(SharedBase.load("./base", device="cpu").lm.parameters()).dtype == torch.float32
    with pytest.raises(UserError, match="nowhere"):
        SharedBase.load("./nowhere")


def test_a_role_comes_from_a_config_an_artifact_or_another_role(tmp_path):
    base = with_roles("reward", head=("reward",))
    save_role(base, "reward", tmp_path / "partial", {"centre": 0.5})
    artifact = publish(tmp_path / "partial", tmp_path / "reward", {"key": "k"})
    for source in (artifact, artifact.path):
        fresh = make_base()
        fresh.add_role("judge", source)
        assert torch.equal(logits(fresh, "judge"), logits(base, "reward"))
        assert torch.equal(fresh.heads["judge"].weight, base.heads["reward"].weight)
        assert fresh.trainable_names("judge") == []
    base.add_role("twin", copy_of="reward")
    assert torch.equal(logits(base, "twin"), logits(base, "reward")) and "twin" not in base.heads
    with pytest.raises(ValueError, match="one of them"):
        base.add_role("nothing")
    with pytest.raises(ValueError, match="one of them"):
        base.add_role("both", artifact, copy_of="reward")
    with pytest.raises(ValueError, match="exists already"):
        base.add_role("twin", ADAPTER)


def test_trainable_roles_and_their_literal_names():
    base = with_roles("sft")
    base.add_role("policy", copy_of="sft", trainable=True, head=True)
    names = base.trainable_names("policy")
    assert names == list(base.parameters_of("policy")) and "policy.head.weight" in names
    assert base.trainable_names("sft") == []
    with base.training("sft"):
        assert base.trainable_names("sft") == list(base.parameters_of("sft")) and not base.trainable_names("policy")
    assert base.trainable_names("policy") == names


def test_a_copy_of_a_full_copy_is_full():
    base = make_base()
    base.add_role("reference", AdapterConfig(method="full"))
    base.add_role("policy", copy_of="reference")
    assert set(base.copies) == {"reference", "policy"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 3}, "rank: 3 is asked for, 'sft' has 4"),
        ({"alpha": 1}, "alpha: 1.0 is asked for, 'sft' has 8"),
        ({"dropout": 0.25}, "dropout: 0.25 is asked for, 'sft' has 0.0"),
        ({"rslora": True}, "rslora: True is asked for, 'sft' has False"),
        ({"targets": ["q_proj"]}, "modules: 2 is asked for, 'sft' has 14"),
        ({"layers": [1]}, "modules: 7 is asked for, 'sft' has 14"),
    ],
)
def test_a_copy_cannot_have_settings_that_its_weights_do_not_have(changes, said):
    base = with_roles("sft")
    other = AdapterConfig.model_validate(ADAPTER.model_dump() | changes)
    with pytest.raises(ValueError, match="cannot have other settings") as refused:
        base.add_role("policy", other, copy_of="sft")
    assert said.replace("1.0", "1") in str(refused.value).replace("1.0", "1") and base.roles == ("sft",)
    assert base.unlike(other, "sft") and not base.unlike(ADAPTER, "sft")
    base.add_role("policy", copy_of="sft")
    assert not base.unlike(ADAPTER, "policy")


def test_other_words_for_the_same_modules_are_no_other_settings():
    """And as many modules, but others, are."""
    base = with_roles("sft")
    names = sorted({n.rpartition(".")[2] for n in base.linear_names})
    assert not base.unlike(
        AdapterConfig.model_validate(ADAPTER.model_dump() | {"targets": names, "layers": [0, 1]}), "sft"
    )
    base.add_role("a", AdapterConfig.model_validate(ADAPTER.model_dump() | {"targets": ["q_proj"]}))
    other = AdapterConfig.model_validate(ADAPTER.model_dump() | {"targets": ["v_proj"]})
    assert base.unlike(other, "a") == "modules: 'a' has others than those that are asked for"


def test_a_full_copy_is_no_start_of_an_adapter():
    base = make_base()
    base.add_role("reference", AdapterConfig(method="full"))
    with pytest.raises(ValueError, match="method: lora is asked for, 'reference' is full"):
        base.add_role("policy", ADAPTER, copy_of="reference")
