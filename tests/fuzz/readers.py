"""What the fuzzers ask of every reader: a UserError or a correct read, and every row used or rejected by name.

``python tests/fuzz/readers.py [SECONDS]`` runs it coverage-guided under atheris; the tests use the same functions.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

EXTENSIONS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".jsonl.gz", ".csv.gz")
KINDS = ("demonstrations", "rankings", "prompts", "documents")


def read_everything(content: bytes, suffix: str, folder: Path) -> None:
    """Read a file as every kind of record, split it and check it; only a UserError may come out."""
    from data.checks import check_files
    from data.common.errors import UserError
    from data.sources import DataConfig, load_records, parse_file
    from data.splits import load_corpus

    path = folder / f"file{suffix}"
    path.write_bytes(content)
    try:
        parsed = list(parse_file(path, path.name))
    except UserError:
        return
    assert all(p.row is not None or p.reason for p in parsed), "a row is neither used nor rejected"
    for p in parsed:
        f"{p.place} {p.reason} {p.columns}".encode(errors="backslashreplace")
    for kind in KINDS:
        try:
            loaded = load_records([path.name], kind, DataConfig(), seed=0, base_dir=folder)
        except UserError:
            continue
        places = {p.place for p in parsed} if suffix != ".txt" else set()
        seen = {r.source for r in loaded.rejected} | {getattr(r, "prompt", r).source for r in loaded.records}
        assert suffix == ".txt" or seen >= places or kind == "documents", "a row was lost without a word"
    for make in (lambda: check_files([path]), lambda: load_corpus(_config(path.name), seed=0, base_dir=folder)):
        try:
            made = make()
        except UserError:
            continue
        if hasattr(made, "fingerprint"):
            made.fingerprint("prompts")


def _config(name: str):
    from data.sources import DataConfig

    return DataConfig(prompts=(name,), held_out=0.3)


def read_recipe(content: bytes, folder: Path) -> None:
    """A recipe loads, or is refused by a UserError."""
    from data.common.errors import UserError
    from pipelines.loading.load import load_recipe
    from pipelines.recipe.schema import resolved_yaml

    path = folder / "recipe.yaml"
    path.write_bytes(content)
    try:
        made = load_recipe(path)
    except UserError as error:
        assert str(error)
        return
    text = resolved_yaml(made)
    path.write_text(text, encoding="utf-8")
    assert resolved_yaml(load_recipe(path)) == text


def seeds(folder: Path) -> None:
    """A corpus to start from: one good file of every format, and the examples' recipes."""
    import json

    rows = [
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "responses": ["a", "b"], "ranks": [0, 1]},
        {"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b", "margin": 1},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "input": "i", "output": "o", "history": [["a", "b"]]},
        {"instruction": "q", "instances": [{"input": "i", "output": "o"}]},
        {"prompt": "q", "answers": [{"text": "a", "score": 1}, {"text": "b", "score": 0.5}]},
        {"text": "some text"},
    ]
    for i, row in enumerate(rows):
        (folder / f"row{i}").write_bytes(b"\x00" + json.dumps(row).encode())
    (folder / "csv").write_bytes(b'\x02prompt,completion\n"a\nb",c\n')
    (folder / "tsv").write_bytes(b"\x03prompt\tchosen\trejected\nq\ta\tb\n")
    (folder / "txt").write_bytes(b"\x04one\n\ntwo\r\nthree\n")
    for kind in range(64):
        (folder / f"file{kind}").write_bytes(bytes([64 + kind]) + bytes(7) + bytes([kind]))
    for path in (Path(__file__).parents[2] / "examples").glob("*.yaml"):
        (folder / path.name).write_bytes(b"\xff" + path.read_bytes())


def main(seconds: int) -> None:
    """The first byte says what the rest is."""
    import atheris

    os.chdir(Path(__file__).parents[2])
    sys.path.insert(0, str(Path.cwd()))
    from tests.fuzz.artifacts import KINDS_OF_FILE, read_any

    with atheris.instrument_imports(include=["data", "pipelines", "models.backbone.artifacts", "models.hub.validate"]):
        import data.checks  # noqa: F401
        import data.splits  # noqa: F401
        import pipelines.loading.load  # noqa: F401
    folder = Path(tempfile.mkdtemp(prefix="trivet-fuzz-"))
    corpus = folder / "corpus"
    corpus.mkdir()
    seeds(corpus)

    for kind in range(KINDS_OF_FILE):  # imports and the made-up run, before the clock runs
        with tempfile.TemporaryDirectory() as place:
            read_any(bytes(8), kind, Path(place))

    def one(content: bytes) -> None:
        if not content:
            return
        if 64 <= content[0] < 128:
            with tempfile.TemporaryDirectory() as place:
                read_any(content[1:], content[0] % KINDS_OF_FILE, Path(place))
        elif content[0] >= 128:
            read_recipe(content[1:], folder)
        else:
            read_everything(content[1:], EXTENSIONS[content[0] % len(EXTENSIONS)], folder)

    flags = [f"-max_total_time={seconds}", "-timeout=60", "-rss_limit_mb=3000", "-max_len=4096", str(corpus)]
    atheris.Setup([sys.argv[0], *flags, f"-artifact_prefix={folder}/"], one)
    print(f"inputs that fail are kept in {folder}", flush=True)
    atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 600)
