"""Functions that users bring: a reward, a gold preference, an annotator, from a named file or an installed package.

A file is loaded under a private module name, without touching the import path, and its source is hashed so that a
changed function is a changed stage. Results are checked row by row. Knows nothing of models or stages.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.abc
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from data.common.errors import UserError, nearest


@dataclass(frozen=True, slots=True)
class UserFunction:
    """A loaded function ``fn(prompts, completions, **kwargs) -> one float a row``.

    ``name`` is as the user wrote it, ``path`` the file it came from and ``fingerprint`` the sha256 of that file.
    """

    fn: Callable[..., Any]
    name: str
    path: Path | None
    fingerprint: str

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **extra: Sequence[Any]) -> list[float]:
        return self.call(prompts, completions, **extra)

    def call(self, prompts: Sequence[str], completions: Sequence[str], **extra: Sequence[Any]) -> list[float]:
        """Return one finite number a row.

        Args:
            prompts, completions: texts, one a row.
            extra: further columns, one value a row (``finished``, ``messages``, ``categories``); a function gets those
                that it names, or all if it takes ``**kwargs``.

        Raises:
            UserError: the function failed, or its result is not one finite number for each row.
        """
        wanted = {k: list(v) for k, v in extra.items() if k in _accepted(self.fn, extra)}
        try:
            result = self.fn(list(prompts), list(completions), **wanted)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # sys.exit() in it would end the run without a word
            place = _place(error, self.path)
            raise UserError(f"{self.name} failed{place} with {type(error).__name__}: {error}") from error
        return self._checked(result, len(completions))

    def _checked(self, result: Any, rows: int) -> list[float]:
        if hasattr(result, "tolist"):  # tensors and arrays
            result = result.tolist()
        if isinstance(result, (str, bytes, Mapping)) or not hasattr(result, "__iter__"):
            raise UserError(f"{self.name} returned {type(result).__name__}; it must return a list of {rows} numbers")
        values = list(result)
        if len(values) != rows:
            raise UserError(
                f"{self.name} returned {len(values)} values for {rows} answers; it must return one for each"
            )
        floats: list[float] = []
        for i, value in enumerate(values):
            try:
                floats.append(float(value))
            except (TypeError, ValueError):
                raise UserError(f"{self.name} returned {value!r} for answer {i}; it must return a number") from None
            if not math.isfinite(floats[-1]):
                raise UserError(f"{self.name} returned {floats[-1]} for answer {i}; rewards must be finite")
        return floats


def load_function(reference: str, base_dir: Path | str = ".") -> UserFunction:
    """Load ``file.py:function`` (relative to ``base_dir``) or ``package.module:function``.

    Raises:
        UserError: no such file, module or function, or the file cannot be run; the nearest names are given.
    """
    where, colon, name = _parts(reference)
    if not colon or not where or not name:
        raise UserError(
            f"function {reference!r}: write it as 'file.py:function' or 'package.module:function', "
            "for example 'rewards.py:kindness'"
        )
    if _is_file_name(where):
        path: Path | None = _source_file(reference, where, base_dir)
        module = _load_file(reference, path)  # type: ignore[arg-type]
    else:
        module = _load_module(reference, where)
        file = getattr(module, "__file__", None)
        path = Path(file) if file else None
    fn = getattr(module, name, None)
    if fn is None or not callable(fn):
        known = [k for k, v in vars(module).items() if inspect.isfunction(v) and not k.startswith("_")]
        listing = f" Functions there: {', '.join(sorted(known))}." if known else ""
        what = "is not a function" if fn is not None else "is not there"
        raise UserError(f"function {reference!r}: {name} {what} in {where}.{nearest(name, known)}{listing}")
    source = path.read_bytes() if path is not None and path.is_file() else reference.encode()
    return UserFunction(fn=fn, name=reference, path=path, fingerprint=hashlib.sha256(source).hexdigest())


def fingerprint_of(reference: str, base_dir: Path | str = ".") -> str:
    """The fingerprint that ``load_function`` would give, without running any of a file's code.

    Raises:
        UserError: no such file, or no function of that name in it.
    """
    where, colon, name = _parts(reference)
    if not (colon and where and name and _is_file_name(where)):
        return load_function(reference, base_dir).fingerprint
    path = _source_file(reference, where, base_dir)
    source = path.read_bytes()
    try:
        tree = ast.parse(source, str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise UserError(f"function {reference!r}: loading {path} failed{line}: {_said(error)}") from error
    defined = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound |= {(a.asname or a.name).split(".")[0] for n in ast.walk(tree) if isinstance(n, _IMPORTS) for a in n.names}
    if name not in bound | set(defined) and "*" not in bound:
        nested = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        if name not in nested:
            raise UserError(f"function {reference!r}: {name} is not there in {where}.{nearest(name, defined)}")
    return hashlib.sha256(source).hexdigest()


_IMPORTS = (ast.Import, ast.ImportFrom)
_ADDRESS = re.compile(r"https?:/|[\w.-]+:\d")  # no function's name begins with a digit


def _parts(reference: str) -> tuple[str, str, str]:
    if _ADDRESS.match(reference):
        raise UserError(
            f"function {reference!r}: an address is no function. As a reward write http://host:port/ or https://...; "
            "elsewhere it must be 'file.py:function' or 'package.module:function'"
        )
    return reference.rpartition(":")


def _is_file_name(where: str) -> bool:
    return where.endswith(".py") or "/" in where


def _source_file(reference: str, where: str, base_dir: Path | str) -> Path:
    try:
        path = Path(base_dir, Path(where).expanduser())
        if path.is_file():
            return path
        there = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"function {reference!r}: no usable file name ({error})") from error
    raise UserError(f"function {reference!r}: there is no file {path}.{nearest(path.name, there)}")


class _Source(importlib.abc.SourceLoader):
    """Runs exactly these bytes: no ``__pycache__`` is read (its bytes are not what was hashed) or written."""

    def __init__(self, path: Path, source: bytes) -> None:
        self.path, self.source = str(path), source

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str | bytes) -> bytes:
        if str(path) != self.path:
            raise OSError(f"{path!r} is not this module's source")
        return self.source


def _load_file(reference: str, path: Path) -> ModuleType:
    source = path.read_bytes()
    # A name by content: another version of the file is another module, and the same one is loaded once.
    digest = hashlib.sha256(str(path.resolve()).encode() + source).hexdigest()[:16]
    private = f"_trivet_user_{digest}"
    if private in sys.modules:
        return sys.modules[private]
    loader = _Source(path, source)
    spec = importlib.util.spec_from_loader(private, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    sys.modules[private] = module  # dataclasses and typing look their module up there
    try:
        loader.exec_module(module)
    except BaseException as error:
        del sys.modules[private]
        if not isinstance(error, Exception | SystemExit):
            raise
        where = f" in line {error.lineno}" if isinstance(error, SyntaxError) else _place(error, path)
        raise UserError(f"function {reference!r}: loading {path} failed{where}: {_said(error)}") from error
    return module


def _load_module(reference: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        hint = f"; for a file, write '{name}.py:...'" if "." not in name else ""
        raise UserError(
            f"function {reference!r}: there is no module {error.name!r} in this environment{hint}"
        ) from error
    except Exception as error:
        raise UserError(f"function {reference!r}: importing {name} failed: {_said(error)}") from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _place(error: BaseException, path: Path | None) -> str:
    """`` in line 12 of rewards.py`` for the deepest frame in the user's own file."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        if path is not None and Path(trace.tb_frame.f_code.co_filename) == path:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" in line {lines[-1]} of {path.name}" if lines and path is not None else ""


def _accepted(fn: Callable[..., Any], offered: Mapping[str, Any]) -> set[str]:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # some builtins have none
        return set()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return set(offered)
    return {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
