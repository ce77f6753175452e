"""Names of systems, other ways of asking, kept answers, and the two estimates of the KL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data.common.errors import UserError
from data.records import Demonstration, Message, Prompt
from data.template import Renderer
from evaluation.best_of import Chooser
from evaluation.divergence import kl_to_reference
from evaluation.generations import Generations, weights_key
from evaluation.held_out import Evaluator, System
from evaluation.prompting import Asking, asking
from evaluation.settings import PROMPTED, EvaluationConfig, PromptedConfig, Shot
from evaluation.systems import parse, problem_of
from models.backbone.settings import AdapterConfig
from models.sampling.generate import Generated
from reward.model import Samples, TextsRead
from reward.settings import RewardPart
from reward.terms.classifier import ClassifierReward
from reward.terms.composition import RewardTransform, Running, WeightedSum
from tests.conftest import make_base, randomise
from tests.support.ppo import PROMPTS


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("sft", "role", "sft"),
        ("ppo@120", "checkpoint", "120"),
        ("best_of_16", "best_of", "16"),
        ("best_of_4:ppo.reward", "best_of", "4"),
        ("path:/models/mine", "path", "/models/mine"),
        ("prompted:few_shot", "prompted", "few_shot"),
    ],
)
def test_names(name: str, kind: str, value: str):
    found = parse(name)
    assert (found.kind, found.value) == (kind, value)
    assert found.label == ("path:mine" if kind == "path" else name)
    assert found.by == ("ppo.reward" if ":ppo" in name else "model")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ppo@last", "no system"),
        ("best_of_1", "Did you mean 'best_of_4'"),
        ("spt", "Did you mean 'sft'"),
        ("prompted:few_shots", "Did you mean 'few_shot'"),
        ("prompted:odd", "cannot be prompted"),
        ("best_of_4:shrt", "Did you mean 'short'? Declare it under evaluation.best_of_by"),
        ("best_of_4:", "no system"),
        ("path:", "no system"),
    ],
)
def test_wrong_names_are_told(name: str, words: str):
    own = {"short": (RewardPart(source="length", max_length=1),)}
    config = EvaluationConfig(prompted={"odd": PromptedConfig(model="best_of_4")}, best_of_by=own)
    assert words in problem_of(name, config)
    assert not problem_of("best_of_4:short", config)


@pytest.mark.parametrize(("name", "parts", "words"), [("model", ["x"], "choose another name"), ("a", [], "no part")])
def test_a_reward_that_cannot_choose_is_refused(name: str, parts: list[str], words: str):
    with pytest.raises(ValueError, match=words):
        EvaluationConfig(best_of_by={name: [{"source": part} for part in parts]})


def test_the_best_of_n_is_chosen_by_the_composed_reward():
    """Two prompts, three tries; one part is normalised over all six scores, then clipped, the other adds a tenth."""
    numbers = {"a": 0.0, "b": 3.0, "c": 30.0, "d": 4.0}

    def given(samples: Samples) -> torch.Tensor:
        return torch.tensor([numbers[t] for t in samples.texts])

    def late(samples: Samples) -> torch.Tensor:
        return torch.tensor([float(t in "bd") for t in samples.texts])

    def tried(texts: str, finished: tuple[bool, bool] = (True, True)) -> Samples:
        return Samples(prompts=[], queries=[], responses=[], texts=list(texts), finished=finished)

    tries = [tried("aa"), tried("bd"), tried("cc", (True, False))]
    plain = WeightedSum([("given", 1.0, given)])
    told: list[int] = []
    assert Chooser(reward=plain)(tries, told.append) == [2, 2] and told == [2, 2, 2]
    assert Chooser(reward=plain, missing_eos_penalty=27.0)(tries) == [2, 1]
    assert Chooser(reward=plain, clip=2.0)(tries) == [1, 1]  # the first of equals
    both: list = [("given", 1.0, given), ("late", 0.1, late)]
    # mean 67 / 6: a, b, d lie below it by more than 0.01 spreads and c above
    transformed = WeightedSum(both, {"given": RewardTransform(Running(), clip=0.01)})
    assert Chooser(reward=transformed)(tries) == [1, 1]
    assert Chooser(reward=WeightedSum(both, {"given": RewardTransform(Running())}))(tries) == [2, 2]


def test_what_a_classifier_that_chooses_did_not_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    base, told = make_base(), list[str]()
    renderer = Renderer(base.tokenizer, template="dialogue")
    evaluator = Evaluator(
        base=base, renderer=renderer, config=EvaluationConfig(), prompts=PROMPTS[:3], max_new_tokens=5, seed=0
    )
    monkeypatch.setattr(evaluator.memory, "warn", told.append)
    chooser = object.__new__(ClassifierReward)  # without its model
    chooser.texts = TextsRead()

    def scores(self: ClassifierReward, samples: Samples) -> torch.Tensor:
        self.texts.rows, self.texts.cut = self.texts.rows + len(samples.texts), self.texts.cut + 1
        return torch.zeros(len(samples.texts))

    monkeypatch.setattr(ClassifierReward, "__call__", scores)
    reward = WeightedSum([("./rm", 1.0, chooser)])
    system = System(
        name="best_of_2", base=base, role="base", renderer=renderer, best_of=2, chooser=Chooser(reward=reward)
    )
    evaluator.run(system, "sampled")
    assert told == [
        "evaluation: choice of best_of_2, ./rm: of 2 of 6 responses only a part is scored (reward.max_tokens)"
    ]


def test_dashes_are_underscores():
    named = ("best-of-8", "prompted:few-shot", "path:best-of-8", "best-of-3:a-b")
    config = EvaluationConfig(systems=named, prompted={"my-way": {}})
    assert config.systems == ("best_of_8", "prompted:few_shot", "path:best-of-8", "best_of_3:a-b")
    assert config.asked("my_way") is not None


def test_settings_of_asking_are_checked():
    with pytest.raises(ValueError, match=r"must hold \{prompt\}"):
        PromptedConfig(prompt="Say something.")
    with pytest.raises(ValueError, match="needs a group"):
        PromptedConfig(answer="Answer: .*")
    with pytest.raises(ValueError, match="is no regular expression"):
        PromptedConfig(answer="(")


def test_messages_of_another_way_of_asking():
    config = PromptedConfig(prompt="Q: {prompt} {x}", system="Be brief.", examples=(Shot(prompt="a", answer="b"),))
    before = (Message(role="user", content="hi"), Message(role="assistant", content="yes?"))
    made = Asking(config, config.examples).messages((*before, Message(role="user", content="why")))
    assert [(m.role, m.content) for m in made] == [
        ("system", "Be brief."),
        ("user", "Q: a {x}"),
        ("assistant", "b"),
        ("user", "hi"),
        ("assistant", "yes?"),
        ("user", "Q: why {x}"),
    ]
    own = (Message(role="system", content="own"), Message(role="user", content="why"))
    assert [m.content for m in Asking(config).messages(own)] == ["own", "Q: why {x}"]


@pytest.mark.parametrize(
    ("text", "answer", "finished", "extracted"),
    [
        ("3 and 4 is 7.\nAnswer: 7", "7", False, True),
        ("answer: 5, no.\nSo the answer is: 7 \nuser : more", "7", True, True),
        ("一加一。\nAnswer：二", "二", False, True),
        ("I do not know", "I do not know", False, False),
    ],
)
def test_final_answers_of_chains_of_thought(text: str, answer: str, finished: bool, extracted: bool):
    found = Asking(PROMPTED["chain_of_thought"]).final(text, False)
    assert (found.text, found.finished, found.extracted) == (answer, finished, extracted)


def test_shots_are_drawn_once_and_by_seed():
    def shown(i: int, finished: bool = True) -> Demonstration:
        prompt = Prompt(messages=(Message(role="user", content=f"p{i}"),), group=str(i))
        return Demonstration(prompt=prompt, answer=f"a{i}", finished=finished)

    rows = [shown(i) for i in range(20)] + [shown(99, finished=False)]
    first = asking("few", PromptedConfig(shots=3), rows, 0)
    assert first == asking("few", PromptedConfig(shots=3), rows, 0) != asking("few", PromptedConfig(shots=3), rows, 1)
    assert len(first.examples) == 3 and all(s.answer == "a" + s.prompt[1:] for s in first.examples)
    with pytest.raises(UserError, match=r"21 shots are asked for, and data.demonstrations has 20"):
        asking("few", PromptedConfig(shots=21), rows, 0)


def test_kept_answers_are_found_only_where_everything_agrees(tmp_path: Path):
    kept, made = Generations(tmp_path / "g"), Generated(ids=[[1, 2], [3]], finished=[True, False])
    assert kept.find({"seed": 0}, 2) is None
    kept.keep({"seed": 0}, made, ["p", "q"], ["a\nb\u2028", "c"])
    assert kept.find({"seed": 0}, 2) == made
    assert kept.find({"seed": 1}, 2) is None and kept.find({"seed": 0}, 3) is None
    path = next((tmp_path / "g").iterdir())
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert rows[0]["settings"] == {"seed": 0}
    assert rows[1] == {"prompt": "p", "text": "a\nb\u2028", "ids": [1, 2], "finished": True}
    path.write_text(path.read_text(encoding="utf-8").replace("[1, 2]", "[1, 5]"), encoding="utf-8")
    assert kept.find({"seed": 0}, 2) is None
    Generations(tmp_path / "none", write=False).keep({}, made, ["p", "q"], ["a", "b"])
    assert not (tmp_path / "none").exists() and Generations(None).find({}, 2) is None


def test_a_key_of_weights_knows_every_tensor_and_the_scaling():
    base = make_base("llama")
    for name, alpha, seed in (("one", 8, 1), ("two", 8, 2), ("three", 16, 1)):
        base.add_role(name, AdapterConfig(rank=4, alpha=alpha))
        randomise(base, name, seed)
    keys = {name: weights_key(base, name) for name in ("base", "one", "two", "three")}
    assert len(set(keys.values())) == 4 and keys["base"] == base.fingerprint
    again = make_base("llama")
    again.add_role("other", AdapterConfig(rank=4, alpha=8))
    randomise(again, "other", 2)
    assert weights_key(again, "other") == keys["two"]


def test_kl_by_samples_and_by_step_equal_a_naive_loop():
    base = make_base("llama")
    for seed, name in enumerate(("reference", "policy")):
        base.add_role(name, AdapterConfig(rank=4, alpha=8))
        randomise(base, name, seed)
    queries, responses = [[5, 6, 7], [8], [9, 10]], [[11, 12], [13, 14, 15, 16], []]
    sampled, exact = kl_to_reference(base, "policy", queries, responses, pad_id=0, temperature=0.7, batch=2)
    for q, r, found, by_step in zip(queries, responses, sampled, exact, strict=True):
        want, want_exact = 0.0, 0.0
        for t, token in enumerate(r):
            logs = {}
            for name in ("reference", "policy"):
                ids = torch.tensor([q + r[:t]])
                with base.role(name) as view, torch.no_grad():
                    logits = view.logits(view.hidden(ids, torch.ones_like(ids, dtype=torch.bool)))[0, -1]
                logs[name] = torch.log_softmax(logits.double() / 0.7, -1)
            ratio = logs["policy"] - logs["reference"]
            want += ratio[token].item()
            want_exact += (logs["policy"].exp() * ratio).sum().item()
        assert found == pytest.approx(want, abs=1e-4) and by_step == pytest.approx(want_exact, abs=1e-4)
        assert by_step > 0 or not r


@pytest.mark.parametrize("reference", ["reference", "base"])
def test_the_kl_is_to_sft_and_without_it_to_the_base(reference: str) -> None:
    """A system that is the reference itself has none."""
    base = make_base("llama")
    for seed, name in enumerate(dict.fromkeys(("policy", reference))):
        if name != "base":
            base.add_role(name, AdapterConfig(rank=4, alpha=8))
            randomise(base, name, seed)
    renderer = Renderer(base.tokenizer, template="dialogue")
    evaluator = Evaluator(
        base=base, renderer=renderer, config=EvaluationConfig(), prompts=PROMPTS[:3], max_new_tokens=5, seed=0
    )
    ppo, own = (
        evaluator.run(System(name=role, base=base, role=role, renderer=renderer), "sampled")
        for role in ("policy", reference)
    )
    want = kl_to_reference(
        base, "policy", evaluator.queries, ppo.token_ids, pad_id=renderer.pad_id, reference=reference
    )
    assert (ppo.kl, ppo.kl_exact) == want and min(want[1]) > 0
    assert own.kl == own.kl_exact == [0.0] * 3
