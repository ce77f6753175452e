"""What a user's file imports from beside it: it is found, hashed with the file, and clashes with nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from data.common.errors import UserError
from data.common.user_files import source_closure
from data.common.user_functions import fingerprint_of, load_function

F = "def f(completions):\n    return [float({}) for c in completions]\n"


def write(folder: Path, **files: str) -> None:
    """Files by name, ``b__c`` for ``b/c.py``."""
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)


def score(folder: Path, reference: str = "rewards.py:f") -> float:
    return load_function(reference, folder)(["p"], ["abc"])[0]


@pytest.mark.parametrize("name", ["models", "data", "stages", "reward", "utils", "evaluation", "pipelines"])
def test_a_helper_may_have_any_name_of_trivets_own_packages(tmp_path: Path, name: str) -> None:
    write(tmp_path, rewards=f"from {name} import weight\n" + F.format("weight(c)"))
    write(tmp_path, **{name: "import math\ndef weight(text):\n    return math.sqrt(len(text) + 1)\n"})
    path, before = list(sys.path), set(sys.modules)
    assert score(tmp_path) == 2.0
    assert sys.path == path and all(m.startswith("_trivet_user_") for m in set(sys.modules) - before)
    import models

    assert Path(str(models.__file__)).is_relative_to(Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("import helpers.text as t\n" + F.format("t.N"), 5.0),
        ("from helpers import text\n" + F.format("text.N"), 5.0),
        ("from helpers.text import N\n" + F.format("N"), 5.0),
        ("import helpers.text\n" + F.format("helpers.text.N"), 5.0),
        ("from .helpers.text import N\n" + F.format("N"), 5.0),
        ("from . import flat\n" + F.format("flat.M"), 7.0),
        ("def f(completions):\n    from flat import M\n    return [M for c in completions]\n", 7.0),
        ("def f(completions):\n    import flat\n    return [flat.late() for c in completions]\n", 5.0),
        ("flat = __import__('flat')\n" + F.format("flat.M"), 7.0),
    ],
)
def test_every_way_to_import(tmp_path: Path, code: str, value: float) -> None:
    write(tmp_path, rewards=code, helpers__text="from .number import N\n", helpers__number="N = 5\n")
    write(tmp_path, flat="M = 7\ndef late():\n    from helpers import text\n    return text.N\n")
    assert score(tmp_path) == value


def test_files_that_import_each_other(tmp_path: Path) -> None:
    write(tmp_path, rewards="import a\n" + F.format("a.g()"), a="import b\nONE = 1\ndef g():\n    return b.two()\n")
    write(tmp_path, b="import a\ndef two():\n    return a.ONE + 1\n")
    assert score(tmp_path) == 2.0


def test_the_fingerprint_follows_all_files_and_no_others(tmp_path: Path) -> None:
    write(tmp_path, rewards="import a\n" + F.format("a.g()"), a="def g():\n    import b.c\n    return b.c.X\n")
    write(tmp_path, b__c="X = 1\n", other="Y = 1\n")
    assert set(source_closure(tmp_path / "rewards.py")) >= {"rewards.py", "a.py", "b/c.py"}
    seen = [fingerprint_of("rewards.py:f", tmp_path)]
    assert score(tmp_path) == 1.0
    write(tmp_path, other="Y = 2\n")
    assert fingerprint_of("rewards.py:f", tmp_path) == seen[0]
    write(tmp_path, b__c="X = 2\n")
    seen.append(fingerprint_of("rewards.py:f", tmp_path))
    assert score(tmp_path) == 2.0, "the changed helper is loaded anew"
    write(tmp_path, a="def g():\n    import b.c\n    return b.c.X + 1\n")
    seen.append(fingerprint_of("rewards.py:f", tmp_path))
    assert len(set(seen)) == 3 and score(tmp_path) == 3.0
    assert load_function("rewards.py:f", tmp_path).fingerprint == seen[-1]


def test_the_fingerprint_runs_no_file(tmp_path: Path) -> None:
    write(tmp_path, rewards="import a\n" + F.format("1"), a="raise SystemExit('ran')\n")
    assert len(fingerprint_of("rewards.py:f", tmp_path)) == 64
    before = set(sys.modules)
    with pytest.raises(UserError, match="ran"):
        load_function("rewards.py:f", tmp_path)
    assert set(sys.modules) == before


def test_a_mistake_beside_the_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, rewards="import a\n" + F.format("1"), a="x = 1\ndef g(:\n")
    with pytest.raises(UserError, match=r"line 2 of a\.py"):
        load_function("rewards.py:f", tmp_path)
    write(tmp_path, rewards="from .nowhere import x\n" + F.format("1"))
    with pytest.raises(UserError, match="nowhere"):
        load_function("rewards.py:f", tmp_path)


@pytest.mark.parametrize("where", ["rewards.py", "__init__.py"])
def test_the_fingerprint_of_a_package_follows_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    package = tmp_path / f"mine_{len(where)}"
    package.mkdir()
    for name in ("__init__.py", "words.py", "other.py"):
        (package / name).write_text("X = 1\n")
    (package / where).write_text("from .words import X\n" + F.format("X"))
    reference = f"{package.name}{'' if where == '__init__.py' else '.rewards'}:f"
    monkeypatch.syspath_prepend(str(tmp_path))
    first = fingerprint_of(reference)
    (package / "other.py").write_text("X = 2\n")
    assert fingerprint_of(reference) == first
    (package / "words.py").write_text("X = 2\n")
    assert fingerprint_of(reference) != first
