"""Distillation: the divergence against a loop in float64, its gradient, and what a student learns of a teacher."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from data.common.errors import UserError
from data.records import Demonstration
from data.splits import Corpus, Split
from data.template import Renderer
from models.roles.shared_base import SharedBase
from stages import distil
from stages.distil import Said, Teacher
from stages.distil_math import agreeing, forward_kl
from stages.safe_points.checkpoints import Checkpoints, State
from stages.settings import DistilConfig
from stages.stage import StageContext
from stages.training.distil_losses import by_distributions, by_tokens, row_sums
from tests.conftest import WORDS, make_base, randomise, tiny_lm, word_tokenizer
from tests.support.ppo import make_context, make_prompt

TRAIN = [make_prompt(f"w{i} w{i + 1}") for i in range(24)]
HELD_OUT = [make_prompt(f"w{i} w{i + 2}") for i in range(24)]
SETTINGS: dict[str, Any] = {
    "teacher": "large", "epochs": 4, "learning_rate": 1e-2, "batch": 8, "max_new_tokens": 6, "max_tokens": 32,
}  # fmt: skip


def naive_kl(student: list[float], teacher: list[float], temperature: float) -> float:
    """T^2 sum p log(p / q), token by token in Python's floats."""
    p, q = ([math.exp(x / temperature) for x in logits] for logits in (teacher, student))
    p, q = [x / math.fsum(p) for x in p], [x / math.fsum(q) for x in q]
    return temperature**2 * math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_the_divergence_is_that_of_a_loop_in_float64(temperature: float) -> None:
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 7, generator=g, dtype=torch.float64) * 3 for _ in range(2))
    expected = [naive_kl(a, b, temperature) for a, b in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert_close(
        forward_kl(student, teacher, temperature), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_the_divergence_by_hand() -> None:
    """Teacher 3/4 and 1/4, student 1/2 each: 3/4 log(3/2) + 1/4 log(1/2)."""
    teacher, student = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    assert float(forward_kl(student, teacher)) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(forward_kl(teacher, teacher)) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_its_gradient_is_t_times_the_difference_of_the_softened_probabilities(temperature: float) -> None:
    """d/dz T^2 KL = T (q - p) (Hinton et al. 2015, equation 2, with their factor)."""
    g = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    forward_kl(student, teacher, temperature).sum().backward()
    p, q = (torch.softmax(x.detach() / temperature, -1) for x in (teacher, student))
    assert student.grad is not None
    assert_close(student.grad, temperature * (q - p))


def test_vocabularies_of_different_padding_are_compared_where_both_have_tokens() -> None:
    teacher, student = torch.randn(2, 9), torch.randn(2, 7)
    assert_close(forward_kl(student, teacher), forward_kl(student, teacher[:, :7]))
    wide = torch.cat([student, torch.full((2, 3), 99.0)], dim=1)
    assert agreeing(wide, student).all() and not agreeing(-student, student).any()


def teacher_of(seed: int = 5, **changes: Any) -> Teacher:
    base = make_base(seed=seed, **changes)
    return Teacher(name="large", base=base, role="base", renderer=Renderer(base.tokenizer, template="dialogue"))


def context_of(tmp_path: Path, **changes: Any) -> StageContext:
    tmp_path.mkdir(exist_ok=True)
    demonstrations = tuple(Demonstration(prompt=p, answer=f"{p.text} w9") for p in TRAIN)
    corpus = Corpus(
        prompts=Split(train=tuple(TRAIN), held_out=tuple(HELD_OUT)),
        demonstrations=Split(train=demonstrations, held_out=demonstrations[:3]),
    )
    return make_context(make_base(initializer_range=0.1), tmp_path, corpus, **changes)


def responses(teacher: Teacher, prompt: Any, count: int) -> list[int]:
    """Greedy tokens of a teacher, by Transformers' own forward pass."""
    ids = list(teacher.renderer.prompt_ids(prompt.messages))
    made: list[int] = []
    while len(made) < count and not (made and made[-1] in teacher.renderer.stop_ids):
        with torch.no_grad():
            made.append(int(teacher.base.lm(torch.tensor([ids + made])).logits[0, -1].argmax()))
    return made


def test_the_teachers_responses_are_its_own_greedy_ones(tmp_path: Path) -> None:
    context, teacher = context_of(tmp_path), teacher_of()
    said = distil.responses_of(context, DistilConfig(**SETTINGS), teacher, TRAIN[:5], None)
    assert said.ids == [responses(teacher, p, 6) for p in TRAIN[:5]]
    assert said.finished == [ids[-1] in teacher.renderer.stop_ids for ids in said.ids]
    assert [d.answer for d in said.demonstrations] == [teacher.renderer.text(ids) for ids in said.ids]


def test_samples_depend_on_rows_alone(tmp_path: Path) -> None:
    context, teacher = context_of(tmp_path), teacher_of()
    found = [
        distil.responses_of(
            context, DistilConfig(**SETTINGS, sampling_temperature=1.0, sampling_batch=size), teacher, TRAIN[:7], None
        ).ids
        for size in (2, 7)
    ]
    greedy = distil.responses_of(context, DistilConfig(**SETTINGS), teacher, TRAIN[:7], None).ids
    assert found[0] == found[1] != greedy


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_of_a_batch_is_that_of_whole_logits(temperature: float, fast: bool) -> None:
    """Packed, in chunks and by the fast path, against Transformers' logits of each row alone."""
    student, teacher = make_base(seed=1, initializer_range=0.1), make_base(seed=5)
    student.fast = teacher.fast = fast
    student.add_role("distilled", make_context(student, Path("/dev")).adapter)
    randomise(student, "distilled", 3, scale=0.1)
    rows = [[1, 7, 8, 9, 2], [1, 10, 11, 12, 13, 14, 2], [1, 9]]
    lengths = [2, 3, 1]  # of the prompts
    ids, mask, labels = (torch.zeros(3, 7, dtype=torch.long) for _ in range(3))
    labels[:] = -100
    for i, (row, prompt) in enumerate(zip(rows, lengths, strict=True)):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        labels[i, prompt : len(row)] = ids[i, prompt : len(row)]
    with teacher.role("base") as view, student.role("distilled") as mine:
        found = row_sums(by_distributions(view, temperature), mine, ids, mask, labels)
        tokens = row_sums(by_tokens, mine, ids, mask, labels)
        with torch.no_grad():
            for i, (row, prompt) in enumerate(zip(rows, lengths, strict=True)):
                own, its = (b.lm(torch.tensor([row])).logits[0, prompt - 1 : len(row) - 1] for b in (student, teacher))
                assert_close(found[0][i], forward_kl(own, its, temperature).sum().double(), atol=1e-4, rtol=1e-4)
                assert float(found[1][i]) == float(agreeing(own, its).sum())
                nats = -own.log_softmax(-1).gather(1, torch.tensor(row[prompt:])[:, None]).sum()
                assert_close(tokens[0][i], nats.double(), atol=1e-4, rtol=1e-4)
    assert found[2].tolist() == tokens[2].tolist() == [3.0, 4.0, 1.0]


@pytest.mark.parametrize("settings", [
    {"loss": "sequence"}, {"loss": "logits"}, {"loss": "logits", "temperature": 2.0},
    {"loss": "logits", "responses": "demonstrations"},
])  # fmt: skip
def test_a_student_learns_of_its_teacher(tmp_path: Path, settings: dict[str, Any]) -> None:
    context, teacher = context_of(tmp_path), teacher_of(initializer_range=0.2)
    before = {n: p.clone() for n, p in context.base.lm.named_parameters()}
    its = {n: p.clone() for n, p in teacher.base.lm.named_parameters()}
    result = distil.run(context, DistilConfig(**SETTINGS | {"epochs": 15} | settings), teacher)
    metrics = dict(result.metrics)
    curve = metrics["held_out_curves"]["distilled"]
    assert curve["evaluations"][-1]["loss"] < 0.95 * curve["before"]["loss"]
    assert metrics["agreement"] > metrics["agreement_before"]
    if settings.get("responses") != "demonstrations":
        assert curve["change_ci95"][1] < 0 and metrics["sampled"]["responses"] == 48
    assert metrics["rows"] == 24 and metrics["teacher_fingerprint"] == teacher.base.fingerprint
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    for name, p in context.base.lm.named_parameters():
        assert name not in before or torch.equal(p, before[name])
    assert all(torch.equal(p, its[n]) for n, p in teacher.base.lm.named_parameters())


def test_a_student_starts_from_sft(tmp_path: Path) -> None:
    context, teacher = context_of(tmp_path), teacher_of()
    context.base.add_role("sft", context.adapter)
    randomise(context.base, "sft", 4, scale=0.2)
    distil.run(context, DistilConfig(**SETTINGS | {"learning_rate": 0.0, "epochs": 0.1}), teacher)
    pairs = zip(*(context.base.parameters_of(role).values() for role in ("sft", "distilled")), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_other_tokenizers_are_refused_by_name_where_distributions_are_compared(tmp_path: Path) -> None:
    words = [*WORDS[:-1], "other"]
    base = SharedBase(tiny_lm(seed=5), word_tokenizer(words=words), name="tiny-llama")
    teacher = Teacher(
        name="runs/large/ppo", base=base, role="base", renderer=Renderer(base.tokenizer, template="dialogue")
    )
    message = (
        r"distil\.loss: 'logits' .*the teacher runs/large/ppo has another tokenizer .*\(2 tokens differ, .*'sequence'"
    )
    with pytest.raises(UserError, match=message):
        distil.run(context_of(tmp_path / "a"), DistilConfig(**SETTINGS, loss="logits"), teacher)
    assert distil.run(context_of(tmp_path / "b"), DistilConfig(**SETTINGS), teacher).metrics["rows"] == 24


def test_a_loss_without_the_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes nothing from the teacher: use loss 'logits'"):
        DistilConfig(**SETTINGS, responses="demonstrations")


def test_responses_are_kept_in_checkpoints_and_restored(tmp_path: Path) -> None:
    said = Said([], [[3, 4], [], [5]], [True, False, True])
    other = Said([], [], [])
    other.restore(said.tensors())
    assert (other.ids, other.finished) == (said.ids, said.finished)


def test_responses_that_the_limit_cuts_are_told_before_the_student_learns_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, told = context_of(tmp_path), list[str]()
    context = replace(context, warn=told.append)
    fit, before = distil.fit, list[str]()

    def watched(trainer: Any) -> int:
        before.extend(told)
        return fit(trainer)

    monkeypatch.setattr(distil, "fit", watched)
    metrics = distil.run(context, DistilConfig(**SETTINGS | {"max_new_tokens": 2, "epochs": 1}), teacher_of()).metrics
    cut = metrics["sampled"]["unfinished"]
    assert cut > 10 and metrics["sampled"] == {"responses": 48, "unfinished": cut, "limit": 2}
    [text] = [t for t in before if "responses were cut at the limit" in t]
    assert text.startswith(f"distillation: {cut} of 48 ") and text.endswith("raise distil.max_new_tokens")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["data/sampled/unfinished"] == cut and rows[0]["data/sampled/responses"] == 48
    assert rows[-1]["step"] == metrics["steps"]


def copied(state: State) -> State:
    """What a checkpoint writes; the tensors themselves are trained further."""
    return replace(state, tensors={n: t.detach().clone() for n, t in state.tensors.items()})


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_it_resumes_from_any_safe_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    """Safe point 1 is behind the responses, later ones are in training; the teacher is not asked again."""
    states: list[State] = []
    monkeypatch.setattr(Checkpoints, "safe_point", lambda self, step, save, *_, **__: states.append(copied(save())))
    config = DistilConfig(**SETTINGS | {"epochs": 1})
    whole = context_of(tmp_path / "whole")
    expected = distil.run(whole, config, teacher_of()).metrics
    saved = states[stop - 1]
    context = context_of(tmp_path / "resumed")
    monkeypatch.setattr(Checkpoints, "resume", lambda self: saved)
    monkeypatch.setattr(distil, "generate", None)  # it would fail
    found = distil.run(context, config, teacher_of()).metrics
    pairs = zip(*(c.base.parameters_of("distilled").values() for c in (whole, context)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert (
        json.dumps(found["agreement"]) == json.dumps(expected["agreement"]) and found["steps"] == expected["steps"] == 4
    )
