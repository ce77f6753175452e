"""Functions from the user's files: loading, keyword arguments, checked results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.common.errors import UserError
from data.common.function_binding import OFFERED
from data.common.user_functions import check_statically, columns_of, load_function, offered_for
from data.sources import DataConfig
from data.splits import load_corpus

ROOT = Path(__file__).resolve().parents[3]
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
def unordered(prompts, completions): return {float(len(c)) for c in completions}
def frozen(prompts, completions): return frozenset((1.0, 2.0))
def large(prompts, completions): return [1e39] * len(prompts)
def huge(prompts, completions): return [10**400] * len(prompts)
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
        ("short", "returned 1 values for 2 responses"),
        ("nan", "returned nan for response 0"),
        ("words", "returned 'good' for response 0"),
        ("one", "returned float; it must return a list of 2 numbers"),
        ("unordered", "returned set; it must return a list of 2 numbers"),
        ("frozen", "returned frozenset; it must return a list of 2 numbers"),
        ("large", r"returned 1e\+39 for response 0; it must lie within"),
        ("huge", "returned a number for response 0 that no float can hold"),
        ("broken", r"failed in line \d+ of rewards.py with ZeroDivisionError"),
    ],
)
def test_wrong_results_name_the_function(folder, name, message):
    with pytest.raises(UserError, match=f"rewards.py:{name} .*{message}|rewards.py:{name} {message}"):
        load_function(f"rewards.py:{name}", folder).call(["", ""], ["a", "bc"])


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


CALLED = """
import functools

def kwargs(f):
    @functools.wraps(f)
    def wrapper(*args, **kw):
        return f(*args, **kw)
    return wrapper

def bare(f):
    def wrapper(*args, **kw):
        return f(*args, **kw)
    return wrapper

def marks(c, extra=0.0):
    return [len(x) + extra for x in c]

def swapped(completions, prompts): return marks(completions)
def plain(prompts, completions): return marks(completions)
def trl(completions, **kwargs): return marks(completions, len(kwargs["answer"]))
def truth(completions, answer): return [float(c == a) for c, a in zip(completions, answer)]
def responses(responses): return marks(responses)
def only(prompts, completions, /): return marks(completions)
def turned(completions, prompts, /, *, answer): return marks(completions)
def optional(completions, threshold=0.5, /, other=2): return marks(completions, threshold)
def generator(completions):
    yield from marks(completions)
decorated = kwargs(swapped)
weighted = functools.partial(lambda completions, weight: [weight * len(c) for c in completions], weight=2.0)
first = functools.partial(lambda weight, completions: [weight * len(c) for c in completions], 3.0)

class Object:
    def __call__(self, completions, prompts): return marks(completions)
    def method(self, completions): return marks(completions)
instance = Object()
method = Object().method

def texts(texts): return marks(texts)
def promts(promts, completions): return marks(completions)
def nothing(a=1, b=2): return [1.0]
def starred(*args): return [1.0]
wrapped = bare(swapped)
def narrow(f):
    @functools.wraps(f)
    def wrapper(a, b):
        return f(a, b)
    return wrapper
renaming = narrow(swapped)
async def waiting(completions): return marks(completions)
class Waiting:
    async def __call__(self, completions): return marks(completions)
class Record:
    pass
class Needs:
    def __init__(self, size): pass
    def __call__(self, completions): return marks(completions)
builtin = len
"""
COLUMNS: dict[str, list] = {"answer": ["ab", "x"], "weight": [9, 9]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((n, [2.0, 3.0]) for n in ("swapped", "plain", "responses", "only", "turned", "generator", "decorated")),
        *((n, [2.0, 3.0]) for n in ("Object", "instance", "method")),
        ("trl", [4.0, 5.0]),
        ("truth", [1.0, 0.0]),
        ("optional", [2.5, 3.5]),
        ("weighted", [4.0, 6.0]),  # what partial has set stays, whatever the data's columns are called
        ("first", [6.0, 9.0]),
    ],
)
def test_columns_are_given_by_name(tmp_path, name, expected):
    (tmp_path / "r.py").write_text(CALLED)
    function = load_function(f"r.py:{name}", tmp_path)
    function.check({*OFFERED, *COLUMNS})
    assert function.call(["a long prompt", "q"], ["ab", "cde"], **COLUMNS) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("texts", "no column is called 'texts'.*on offer are .*completions.*prompts"),
        ("promts", "'promts'. Did you mean 'prompts'"),
        ("truth", "no column is called 'answer'"),
        ("nothing", "no parameter of it has the name of a column"),
        ("starred", "no parameter of it"),
        ("wrapped", "functools.wraps"),
        ("renaming", r"wrapper cannot be called by the names of the columns.*\*args, \*\*kwargs"),
        ("waiting", "is async"),
        ("Waiting", "is async"),
        ("Record", "is a class without `__call__`"),
        ("Needs", "cannot be made without arguments"),
        ("builtin", "no column is called 'obj'"),
    ],
)
def test_what_cannot_be_called_by_name_is_refused(tmp_path, name, message):
    (tmp_path / "r.py").write_text(CALLED)
    with pytest.raises(UserError, match=message):
        load_function(f"r.py:{name}", tmp_path).check()


@pytest.mark.parametrize("name", ["texts", "promts", "truth", "nothing", "starred", "waiting"])
def test_plain_functions_are_refused_without_running_the_file(tmp_path, name):
    (tmp_path / "r.py").write_text(CALLED + "\nraise SystemExit\n")
    with pytest.raises(UserError, match=r"r\.py:" + name):
        check_statically(f"r.py:{name}", OFFERED, tmp_path)
    for fine in ("swapped", "trl", "only", "optional", "Object", "decorated", "weighted"):
        check_statically(f"r.py:{fine}", OFFERED, tmp_path)


def test_the_datas_columns_are_carried_to_functions(tmp_path):
    rows = [
        {"prompt": "2 + 2?", "answer": "4", "level": 1},
        {"prompt": "3 + 3?", "answer": "6", "finished": True, "self": "x", "prompts": "mine"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    corpus = load_corpus(DataConfig(prompts=("p.jsonl",), held_out=0.0), seed=0, base_dir=tmp_path)
    prompts = corpus.prompts.train
    assert columns_of(prompts)["answer"] == ["4", "6"] and columns_of(prompts[1:])["level"] == [None]
    assert offered_for(prompts) == {*OFFERED, "answer", "level", "self"}
    (tmp_path / "r.py").write_text(CALLED)
    truth = load_function("r.py:truth", tmp_path)
    assert truth.call([p.text for p in prompts], ["4", "5"], **columns_of(prompts)) == [1.0, 0.0]


LAZY = """
import random

def lazy(completions):
    return map(lambda text: random.random(), completions)

def broken(completions):
    return map(lambda text: 1 / 0, completions)
"""


def test_an_iterator_is_drained_where_chance_is_seeded_and_errors_are_named(tmp_path):
    (tmp_path / "lazy.py").write_text(LAZY)
    texts = ["p", "q"], ["a", "b"]
    assert load_function("lazy.py:lazy", tmp_path).call(*texts) == load_function("lazy.py:lazy", tmp_path).call(*texts)
    with pytest.raises(UserError, match=r"lazy\.py:broken failed in line 8 of lazy\.py with ZeroDivisionError"):
        load_function("lazy.py:broken", tmp_path).call(*texts)


def test_a_changed_column_is_another_fingerprint_of_the_columns_alone(tmp_path):
    def load(answer: str):
        (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "2 + 2?", "answer": answer}) + "\n")
        return load_corpus(DataConfig(prompts=("p.jsonl",), held_out=0.0), seed=0, base_dir=tmp_path)

    one, other = load("4"), load("5")
    assert one.fingerprint("prompts") == other.fingerprint("prompts")
    assert one.columns_fingerprint("prompts") != other.columns_fingerprint("prompts")


LASTING = """
import os, random
import numpy as np
import torch

torch.set_grad_enabled(False)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(torch.get_num_threads() + 1)
torch.manual_seed(7)
random.seed(7)
np.random.seed(7)
np.seterr(all="raise")
os.chdir("/")

def f(completions):
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    os.chdir("/")
    torch.manual_seed(7), random.seed(7), np.random.seed(7), np.seterr(all="raise")
    return [0.0] * len(completions)
"""


def _state() -> list[object]:
    import random

    import numpy as np
    import torch

    return [
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state(legacy=True)[1].tolist(),  # type: ignore[index]
        np.geterr(),
        os.getcwd(),
    ]


def test_what_a_function_sets_for_the_whole_process_ends_with_it(tmp_path):
    (tmp_path / "rewards.py").write_text(LASTING)
    before = _state()
    fn = load_function("rewards.py:f", tmp_path)
    assert _state() == before
    fn(["p"], ["c"])
    assert _state() == before


def test_a_function_that_takes_chance_gives_the_same_for_the_same_rows(tmp_path):
    """A run that is stopped and resumed calls it after other calls than one that never stopped."""
    import random

    import numpy as np
    import torch

    (tmp_path / "rewards.py").write_text(
        "import random, numpy, torch\n"
        "def f(completions):\n"
        "    return [random.random() + numpy.random.rand() + torch.rand(()).item() for _ in completions]\n"
    )
    fn = load_function("rewards.py:f", tmp_path)
    first, other = fn(["p", "p"], ["a", "b"]), fn(["p", "p"], ["a", "c"])
    random.random(), np.random.rand(), torch.rand(())  # the process goes on by itself
    assert fn(["p", "p"], ["a", "b"]) == first and len({*first, *other}) == 4


def test_a_function_that_changes_what_it_is_given_changes_no_row(tmp_path):
    (tmp_path / "rewards.py").write_text(
        "def f(completions, messages, tags, **kwargs):\n"
        "    completions.clear(), messages[0].clear(), tags[0].append(1), kwargs['meta'][0].clear()\n"
        "    return [1.0]\n"
    )
    columns = {"messages": [[{"role": "user", "content": "q"}]], "tags": [["a"]], "meta": [{"b": 1}]}
    completions = ["c"]
    assert load_function("rewards.py:f", tmp_path)(["p"], completions, **columns) == [1.0]
    assert (completions, columns["tags"], columns["meta"]) == (["c"], [["a"]], [{"b": 1}])
    assert columns["messages"] == [[{"role": "user", "content": "q"}]]


FIRST = """
import torch
torch.set_grad_enabled(False), torch.set_default_dtype(torch.float64), torch.set_float32_matmul_precision("medium")
def f(completions):
    return [0.0]
"""


def test_a_function_that_is_the_first_to_import_torch_changes_nothing_either(tmp_path):
    (tmp_path / "rewards.py").write_text(FIRST)
    script = (
        "import sys\n"
        "from data.common.user_functions import load_function\n"
        "assert 'torch' not in sys.modules\n"
        "load_function('rewards.py:f', '.')(['p'], ['c'])\n"
        "import torch\n"
        "print(torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_float32_matmul_precision())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.split() == ["True", "torch.float32", "highest"]


def test_a_function_runs_where_the_folder_of_the_process_is_gone(tmp_path, monkeypatch):
    (tmp_path / "rewards.py").write_text("def f(completions):\n    return [1.0]\n")
    fn, gone = load_function("rewards.py:f", tmp_path), tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert fn(["p"], ["c"]) == [1.0]
