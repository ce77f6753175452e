"""Functions that users bring: a reward, a gold preference, an annotator, from a named file or an installed package.

A file is loaded under a private module name, without touching the import path, and its source is hashed with those of
the files next to it that it imports (``user_files``), so that a changed function is a changed stage. Columns are given
by name (``binding``) and results are checked row by row. Knows nothing of models or stages.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib
import inspect
import math
import re
import sysconfig
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from data.common.errors import UserError, nearest
from data.common.function_binding import ALIASES, OFFERED, bind, bind_function, is_async, parameters_of
from data.common.opened_files import noting
from data.common.process_state import kept
from data.common.user_files import Importer, closure_digest, source_closure
from data.records import Prompt

FP32_MAX = 3.4028234663852886e38  # of the largest number that rewards are computed with
TRIVET = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class UserFunction:
    """A loaded function of named columns, such as ``fn(prompts, completions)``, that returns one number a row.

    ``name`` is as the user wrote it, ``path`` the file it came from and ``fingerprint`` the sha256 of that file, with
    those that it imports from its own folder. Files below ``folder`` that it opens are noted.
    """

    fn: Callable[..., Any]
    name: str
    path: Path | None
    fingerprint: str
    folder: Path = Path(".")

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], /, **extra: Sequence[Any]) -> list[float]:
        return self.call(prompts, completions, **extra)

    def check(self, offered: Collection[str] = OFFERED) -> None:
        """Refuse the function where it cannot be called with these columns.

        Raises:
            UserError: see ``binding.bind``.
        """
        bind_function(self.fn, offered, self.name)

    def call(self, prompts: Sequence[str], completions: Sequence[str], /, **extra: Sequence[Any]) -> list[float]:
        """Return one finite number a row.

        Args:
            prompts, completions: texts, one a row.
            extra: further columns, one value a row (``finished``, ``messages``, ``categories``, the data's own); a
                function gets those that it names, or all if it takes ``**kwargs``.

        Raises:
            UserError: the function cannot be called with these columns, it failed, or its result is not one finite
                number for each row.
        """
        columns = {**extra, "prompts": prompts, "completions": completions}
        binding = bind_function(self.fn, columns, self.name)

        def column(name: str) -> list[Any]:
            return _copied(columns[name] if name in columns else columns[ALIASES[name]])

        given = [column(name) for name in binding.positional]
        named = {name: column(name) for name in binding.named}
        if binding.rest:
            taken = {*named, *binding.positional, *binding.fixed}
            named |= {name: _copied(values) for name, values in columns.items() if name not in taken}
        try:
            with _running(self.name, self.path, self.folder, CALLS, (*prompts, *completions)):
                result = self.fn(*given, **named)
                if isinstance(result, Iterator):  # a generator, map, zip: what it does is done here
                    result = list(result)  # what it raises is the function's
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # sys.exit() in it would end the run without a word
            place = _place(error, self.path)
            raise UserError(f"{self.name} failed{place} with {type(error).__name__}: {error}") from error
        return self._checked(result, len(completions))

    def _checked(self, result: Any, rows: int) -> list[float]:
        if hasattr(result, "tolist"):  # tensors and arrays
            result = result.tolist()
        if isinstance(result, (str, bytes, Mapping, Set)) or not hasattr(result, "__iter__"):  # a set has no order
            raise UserError(f"{self.name} returned {type(result).__name__}; it must return a list of {rows} numbers")
        values = list(result)
        if len(values) != rows:
            raise UserError(
                f"{self.name} returned {len(values)} values for {rows} responses; it must return one for each"
            )
        floats: list[float] = []
        for i, value in enumerate(values):
            try:
                floats.append(float(value))
            except OverflowError:
                raise UserError(f"{self.name} returned a number for response {i} that no float can hold") from None
            except (TypeError, ValueError):
                raise UserError(f"{self.name} returned {value!r} for response {i}; it must return a number") from None
            if abs(floats[-1]) > FP32_MAX and math.isfinite(floats[-1]):
                raise UserError(f"{self.name} returned {floats[-1]:g} for response {i}; it must lie within 3.4e38")
            if not math.isfinite(floats[-1]):
                raise UserError(f"{self.name} returned {floats[-1]} for response {i}; rewards must be finite")
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
        with _running(reference, path, base_dir):
            module = _load_file(reference, path)  # type: ignore[arg-type]
    else:
        with _running(reference, None, base_dir):
            module = _load_module(reference, where)
        file = getattr(module, "__file__", None)
        path = Path(file) if file else None
    fn = getattr(module, name, None)
    if isinstance(fn, type):
        with _running(reference, path, base_dir):
            fn = _instance(reference, fn)
    if fn is None or not callable(fn):
        known = [k for k, v in vars(module).items() if inspect.isfunction(v) and not k.startswith("_")]
        listing = f" Functions there: {', '.join(sorted(known))}." if known else ""
        what = "is not a function" if fn is not None else "is not there"
        raise UserError(f"function {reference!r}: {name} {what} in {where}.{nearest(name, known)}{listing}")
    if is_async(fn):
        raise UserError(ASYNC.format(reference=reference, name=name))
    fingerprint = _fingerprint(reference, path)
    return UserFunction(fn=fn, name=reference, path=path, fingerprint=fingerprint, folder=Path(base_dir))


def _copied(values: Sequence[Any]) -> list[Any]:
    """A column that a function may change in place: the rows, and what other functions are given, stay as they are."""
    return [copy.deepcopy(value) if isinstance(value, list | dict) else value for value in values]


CALLS = " called"


@contextmanager
def _running(
    reference: str, path: Path | None, folder: Path | str, doing: str = "", texts: Sequence[str] = ()
) -> Iterator[None]:
    """Run code of a function's: seeded by its name and the texts that it is given, and without lasting effects.

    What it opens below its own folder and the recipe's is noted; nothing of what is installed.
    """
    where = reference.rpartition(":")[0]
    seed = hashlib.sha256("\x1f".join((reference, *texts)).encode(errors="surrogatepass")).digest()
    with ExitStack() as stack:
        owner = str(path.resolve()) if path is not None and _is_file_name(where) else where
        stack.enter_context(kept(int.from_bytes(seed[:8], "big") >> 1, owner))
        if path is None or not _is_installed(path):
            stack.enter_context(noting(owner + doing, [Path(folder), *([path.parent] if path is not None else [])]))
        yield


def owners_of(reference: str, base_dir: Path | str) -> list[str]:
    """The names under which files are noted that a function's code opens (``opened_files``): loaded, and called."""
    where = reference.rpartition(":")[0]
    owner = str(Path(base_dir, Path(where).expanduser()).resolve()) if _is_file_name(where) else where
    return [owner, owner + CALLS]


ASYNC = "function {reference!r}: {name} is async; write a plain function, for example one that calls asyncio.run"


def _instance(reference: str, made: type) -> Any:
    """An object of a class with ``__call__``; a class without one is no function.

    Raises:
        UserError: it has no ``__call__``, or cannot be made without arguments.
    """
    if not any("__call__" in vars(base) for base in made.__mro__):
        raise UserError(f"function {reference!r}: {made.__name__} is a class without `__call__`, not a function")
    try:
        return made()
    except (Exception, SystemExit) as error:
        raise UserError(
            f"function {reference!r}: the class {made.__name__} cannot be made without arguments ({_said(error)}); "
            f"make an object of it in the file, `f = {made.__name__}(...)`, and name that"
        ) from error


def _fingerprint(reference: str, path: Path | None) -> str:
    """Of a file with those next to it that it imports, and of a package of the user's likewise; of an installed
    module's source alone, since it is installed as a whole."""
    if path is None or not path.is_file():
        return hashlib.sha256(reference.encode()).hexdigest()
    where = reference.rpartition(":")[0]
    if _is_file_name(where):
        return closure_digest(source_closure(path))
    if path.suffix != ".py" or _is_installed(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    inside = where.split(".") if path.name == "__init__.py" else where.split(".")[:-1]
    return closure_digest(source_closure(path, path.parents[len(inside)]))


def _is_installed(path: Path) -> bool:
    """Whether a module belongs to Python, to an installed distribution, or to trivet."""
    places = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return any(path.resolve().is_relative_to(place) for place in (*places, TRIVET))


RESERVED = frozenset({*OFFERED, *ALIASES, "completion_ids"})
"""Names that mean the same for every function; a column of the data that is called so is not passed on."""


def columns_of(prompts: Collection[Prompt]) -> dict[str, list[Any]]:
    """What every function is offered of prompts besides their text: turns, categories and the data's own columns.

    A row that lacks a column of the others has None there.
    """
    names = dict.fromkeys(name for p in prompts for name in p.columns if name not in RESERVED)
    own: dict[str, list[Any]] = {name: [p.columns.get(name) for p in prompts] for name in names}
    return own | {
        "messages": [[m.as_dict() for m in p.messages] for p in prompts],
        "categories": [p.category for p in prompts],
    }


def offered_for(prompts: Iterable[Prompt], *more: str) -> set[str]:
    """Names of the columns that a function of these prompts' responses is offered: those with a value in some row."""
    own = {name for p in prompts for name, value in p.columns.items() if value is not None}
    return {*OFFERED, *more, *(own - RESERVED)}


def check_statically(reference: str, offered: Collection[str], base_dir: Path | str = ".") -> None:
    """Refuse what can be seen not to bind without running any code: a plain function in a file.

    Decorated functions, classes and what is computed are bound when they are loaded.

    Raises:
        UserError: a parameter is not on offer, the function is async, or it is not there.
    """
    fingerprint_of(reference, base_dir)
    where, _, name = _parts(reference)
    if not _is_file_name(where):
        return
    tree = ast.parse(_source_file(reference, where, base_dir).read_bytes())
    last = [n for n in tree.body if name in _bound_by(n)][-1:]
    for node in last:
        if isinstance(node, ast.AsyncFunctionDef):
            raise UserError(ASYNC.format(reference=reference, name=name))
        if isinstance(node, ast.FunctionDef) and not node.decorator_list:
            bind(parameters_of(node), offered, reference)


def columns_read(reference: str, base_dir: Path | str = ".") -> set[str]:
    """Names of the columns that a function names as parameters, without running any code; ``*`` where it may read all.

    A function that cannot be read so (of a module, decorated, computed, or not there) may read all.
    """
    if (parameters := parameters_read(reference, base_dir)) is None:
        return {"*"}
    return {"*" if p.kind is inspect.Parameter.VAR_KEYWORD else p.name for p in parameters}


def parameters_read(reference: str, base_dir: Path | str = ".") -> list[inspect.Parameter] | None:
    """The parameters of a plain function in a file, without running any code; None where they cannot be read so."""
    try:
        where, _, name = _parts(reference)
        if not _is_file_name(where):
            return None
        tree = ast.parse(_source_file(reference, where, base_dir).read_bytes())
    except (UserError, OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    last = [n for n in tree.body if name in _bound_by(n)][-1:]
    if not last or not isinstance(last[0], ast.FunctionDef) or last[0].decorator_list:
        return None
    return parameters_of(last[0])


def _bound_by(node: ast.stmt) -> set[str]:
    """Names that a statement at the top of a file may bind."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    inside = list(ast.walk(node))
    names = {n.id for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    names |= {n.name for n in inside if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    return names | {(a.asname or a.name).split(".")[0] for n in inside if isinstance(n, _IMPORTS) for a in n.names}


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
    defined = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound |= {(a.asname or a.name).split(".")[0] for n in ast.walk(tree) if isinstance(n, _IMPORTS) for a in n.names}
    if name not in bound | set(defined) and "*" not in bound:
        nested = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        if name not in nested:
            raise UserError(f"function {reference!r}: {name} is not there in {where}.{nearest(name, defined)}")
    return _fingerprint(reference, path)


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
        if path.exists() and not path.is_dir():
            raise UserError(f"function {reference!r}: {path} is no regular file")
        there = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"function {reference!r}: no usable file name ({error})") from error
    raise UserError(f"function {reference!r}: there is no file {path}.{nearest(path.name, there)}")


def _load_file(reference: str, path: Path) -> ModuleType:
    try:
        return Importer(path, source_closure(path)).main()
    except BaseException as error:
        if not isinstance(error, Exception | SystemExit):
            raise
        where = _place(error, path)
        if isinstance(error, SyntaxError):
            of_file = "" if error.filename in (None, str(path)) else f" of {Path(str(error.filename)).name}"
            where = f" in line {error.lineno}{of_file}"
        raise UserError(f"function {reference!r}: loading {path} failed{where}: {_said(error)}") from error


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
