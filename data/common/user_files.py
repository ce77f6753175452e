"""The user's own files: which of them a file imports, what they hash to, and how they are loaded.

A file imports what lies next to it (``helpers.py``, ``helpers/text.py``) as it would when run by itself. Its modules
get private names and an ``__import__`` of their own, so neither the import path nor a module of trivet's that has the
same name is touched. Python's own modules are never replaced by a file of the user's.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

OWN = Path(__file__).resolve().parent.parent
Dotted = tuple[str, ...]


def find_sibling(root: Path, dotted: Dotted) -> Path | None:
    """The file that ``import a.b`` means for a file in ``root``, or None where none lies there.

    A folder without ``__init__.py`` holds modules but is no file of its own.
    """
    if not dotted or dotted[0] in sys.stdlib_module_names:
        return None
    path = root.joinpath(*dotted)
    for found in (path / "__init__.py", path.with_name(path.name + ".py")):
        if found.is_file() and found.resolve().parent.parent != OWN:
            return found
    return None


def source_closure(path: Path, root: Path | None = None) -> dict[str, bytes]:
    """The sources of a file and of all files next to it that it imports, directly or through others.

    Imports inside functions count; a module named by a computed text does not.

    Args:
        path: the file.
        root: the folder that imports start from and that names are relative to; by default the file's own.
    """
    root = root or path.parent
    own = path.relative_to(root)
    found: dict[str, bytes] = {own.as_posix(): path.read_bytes()}
    waiting: list[tuple[Dotted, bytes]] = [(own.parent.parts, found[own.as_posix()])]
    while waiting:
        package, source = waiting.pop()
        for dotted in imported(source, package):
            for file, inside in _files_of(root, dotted):
                name = file.relative_to(root).as_posix()
                if name not in found:
                    found[name] = file.read_bytes()
                    waiting.append((inside, found[name]))
    return found


def closure_digest(sources: Mapping[str, bytes]) -> str:
    """sha256 of a file that stands alone, or of the names and hashes of all files where there are several."""
    if len(sources) == 1:
        return hashlib.sha256(*sources.values()).hexdigest()
    lines = (f"{name} {hashlib.sha256(source).hexdigest()}\n" for name, source in sorted(sources.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def imported(source: bytes, package: Dotted = ()) -> Iterator[Dotted]:
    """Dotted names that a source may import, wherever the import stands; nothing where it cannot be parsed."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolved(node.module or "", node.level, package)
            if base is not None:
                yield base
                yield from ((*base, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and _calls_import(node.func):
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            yield from (tuple(text.split(".")) for text in texts[:1])


def resolved(name: str, level: int, package: Dotted) -> Dotted | None:
    """The absolute dotted name of an import, from the package of the module that it stands in; None if beyond it."""
    own = tuple(name.split(".")) if name else ()
    if level == 0:
        return own
    if level - 1 > len(package):
        return None
    return (*package[: len(package) - (level - 1)], *own)


def _calls_import(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id in ("__import__", "import_module")
    return isinstance(function, ast.Attribute) and function.attr == "import_module"


def _files_of(root: Path, dotted: Dotted) -> Iterator[tuple[Path, Dotted]]:
    """Files that importing ``dotted`` runs, each with the package that its relative imports start from."""
    if find_sibling(root, dotted) is None:  # perhaps a name in a module: that module comes by itself
        return
    for n in range(1, len(dotted) + 1):
        file = find_sibling(root, dotted[:n])
        if file is not None:
            yield file, dotted[:n] if file.name == "__init__.py" else dotted[: n - 1]


class Source(importlib.abc.SourceLoader):
    """Runs exactly these bytes: no ``__pycache__`` is read (its bytes are not what was hashed) or written."""

    def __init__(self, path: Path, source: bytes) -> None:
        self.path, self.source = str(path), source

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str | bytes) -> bytes:
        if str(path) != self.path:
            raise OSError(f"{path!r} is not this module's source")
        return self.source


class Importer:
    """Loads a user's file and, under private names, the files next to it that it imports.

    Args:
        path: the file.
        sources: ``source_closure(path)``: what was hashed is what runs.
    """

    def __init__(self, path: Path, sources: Mapping[str, bytes]) -> None:
        self.path, self.root, self.sources = path, path.parent, sources
        identity = str(path.resolve()) + closure_digest(sources)
        # A name by content: another version of the files is another module, and the same one is loaded once.
        self.private = f"_trivet_user_{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        self.loaded: dict[Dotted, ModuleType] = {}

    def main(self) -> ModuleType:
        """The file's own module; whatever its code raises is passed on, and nothing half-loaded stays behind."""
        if self.private in sys.modules:
            return sys.modules[self.private]
        try:
            return self._run((), self.path, ())
        except BaseException:
            for dotted in [*self.loaded]:
                self._forget(dotted)
            raise

    def _name(self, dotted: Dotted) -> str:
        return ".".join((self.private, *dotted))

    def _forget(self, dotted: Dotted) -> None:
        self.loaded.pop(dotted, None)
        sys.modules.pop(self._name(dotted), None)

    def _run(self, dotted: Dotted, path: Path, package: Dotted) -> ModuleType:
        name = path.relative_to(self.root).as_posix()
        loader = Source(path, self.sources[name] if name in self.sources else path.read_bytes())
        spec = importlib.util.spec_from_loader(self._name(dotted), loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        module.__file__ = str(path)
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": self._import_for(package)}
        self.loaded[dotted] = sys.modules[self._name(dotted)] = module  # dataclasses look their module up there
        try:
            loader.exec_module(module)
        except BaseException:
            self._forget(dotted)
            raise
        return module

    def _import_for(self, package: Dotted) -> Any:
        """``__import__`` of a module whose relative imports start from ``package``."""

        def import_sibling(
            name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] | None = (), level: int = 0
        ) -> ModuleType:
            dotted = resolved(name, level, package)
            if dotted is None or not self._is_sibling(dotted, fromlist or ()):
                if level:
                    raise ImportError(f"no file next to {self.path.name} for the import of {'.' * level}{name}")
                return builtins.__import__(name, globals, locals, fromlist or (), level)
            modules = [self._load(dotted[:n]) for n in range(1, len(dotted) + 1)]
            if not fromlist:
                return modules[0]
            last = modules[-1] if modules else self.main()
            for item in fromlist:
                if not hasattr(last, item) and find_sibling(self.root, (*dotted, item)) is not None:
                    setattr(last, item, self._load((*dotted, item)))
            return last

        return import_sibling

    def _is_sibling(self, dotted: Dotted, fromlist: Sequence[str]) -> bool:
        if find_sibling(self.root, dotted) is not None:
            return True
        return any(find_sibling(self.root, (*dotted, item)) is not None for item in fromlist)

    def _load(self, dotted: Dotted) -> ModuleType:
        if dotted in self.loaded:
            return self.loaded[dotted]
        file = find_sibling(self.root, dotted)
        if file is None:  # a folder that only holds modules
            module = self.loaded[dotted] = ModuleType(self._name(dotted))
            sys.modules[self._name(dotted)] = module
        else:
            module = self._run(dotted, file, dotted if file.name == "__init__.py" else dotted[:-1])
        if len(dotted) > 1:
            setattr(self.loaded[dotted[:-1]], dotted[-1], module)
        return module
