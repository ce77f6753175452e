"""Functions from the user's files: loading, keyword arguments, checked results."""

from __future__ import annotations

import sys

import pytest

from data.common.errors import UserError
from data.common.user_functions import load_function

SOURCE = """
from dataclasses import dataclass

@dataclass
class Scale:
    by: float = 1.0

def kindness(prompts, completions):
    return [float(len(c)) for c in completions]

def ends(prompts, completions, finished, *, categories=None):
    return [f + (c == "x") for f, c in zip(finished, categories)]

def everything(prompts, completions, **kwargs):
    return [len(kwargs)] * len(prompts)

def short(prompts, completions): return [1.0]
def nan(prompts, completions): return [float("nan")] * len(prompts)
def words(prompts, completions): return ["good"] * len(prompts)
def one(prompts, completions): return 1.0
def broken(prompts, completions):
    return [1 / 0]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rewards.py").write_text(SOURCE)
    return tmp_path


def test_loads_a_file_without_touching_the_path(folder):
    path, modules = list(sys.path), set(sys.modules)
    fn = load_function("rewards.py:kindness", folder)
    assert fn(["p", "q"], ["abc", ""]) == fn.call(["p", "q"], ["abc", ""]) == [3.0, 0.0]
    assert sys.path == path
    assert all(m.startswith("_trivet_user_") for m in set(sys.modules) - modules)
    assert fn.name == "rewards.py:kindness"


def test_changed_source_is_another_fingerprint_and_is_loaded_anew(folder):
    old = load_function("rewards.py:kindness", folder)
    (folder / "rewards.py").write_text(SOURCE.replace("float(len(c))", "2.0 * len(c)"))
    new = load_function("rewards.py:kindness", folder)
    assert new(["p"], ["abc"]) == [6.0] and old(["p"], ["abc"]) == [3.0]
    assert new.fingerprint != old.fingerprint


def test_passes_only_what_the_function_names(folder):
    extra: dict[str, list] = {"finished": [True, False], "categories": ["x", "y"], "messages": [[], []]}
    assert load_function("rewards.py:kindness", folder).call(["", ""], ["a", "b"], **extra) == [1.0, 1.0]
    assert load_function("rewards.py:ends", folder).call(["", ""], ["a", "b"], **extra) == [2.0, 0.0]
    assert load_function("rewards.py:everything", folder).call(["", ""], ["a", "b"], **extra) == [3.0, 3.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "returned 1 values for 2 answers"),
        ("nan", "returned nan for answer 0"),
        ("words", "returned 'good' for answer 0"),
        ("one", "returned float; it must return a list of 2 numbers"),
        ("broken", r"failed in line \d+ of rewards.py with ZeroDivisionError"),
    ],
)
def test_wrong_results_name_the_function(folder, name, message):
    with pytest.raises(UserError, match=f"rewards.py:{name} .*{message}|rewards.py:{name} {message}"):
        load_function(f"rewards.py:{name}", folder).call(["", ""], ["a", "b"])


def test_mistakes_name_the_nearest(folder):
    with pytest.raises(UserError, match=r"Did you mean 'rewards\.py'"):
        load_function("reward.py:kindness", folder)
    with pytest.raises(UserError, match="Did you mean 'kindness'"):
        load_function("rewards.py:kindnes", folder)
    with pytest.raises(UserError, match="write it as"):
        load_function("rewards.py", folder)
    with pytest.raises(UserError, match=r"no module 'rewards'.*'rewards.py:"):
        load_function("rewards:kindness", folder)
    (folder / "syntax.py").write_text("def f(:\n")
    with pytest.raises(UserError, match=r"syntax\.py failed in line 1"):
        load_function("syntax.py:f", folder)


def test_loads_from_a_package():
    fn = load_function("math:fsum")
    assert callable(fn.fn) and fn.fingerprint
    assert load_function("data.records:ranks_from_scores").path is not None
