"""A user's own ``models.py`` or ``data/`` beside a script: the command works, Python says what is in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLASHES = ("data", "models", "reward", "stages", "evaluation")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment in which this checkout's packages are installed, with what this interpreter has besides."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True, env={},
        ).stdout.strip()
    )  # fmt: skip
    for name in (*CLASHES, "pipelines", "trivet_names.py"):
        (site / name).symlink_to(ROOT / name)
    others = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    (site / "others.pth").write_text("".join(f"{p}\n" for p in others))
    script = folder / "bin" / "trivet"
    script.write_text(f"#!{python}\nimport sys\nfrom pipelines.cli.main import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return folder / "bin"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of a user's with modules and folders that are called as ours are."""
    for name in (*CLASHES, "pipelines"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the user was imported')\n")
    for name in (*CLASHES, "pipelines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('a package of the user was imported')\n")
    return tmp_path


def run(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, timeout=120)


def test_the_command_is_not_disturbed(installed: Path, home: Path) -> None:
    done = run([installed / "trivet", "models", "qwen2.5-0.5b"], home)
    assert done.returncode == 0 and "Qwen/Qwen2.5-0.5B" in done.stdout, done.stderr
    planned = run([installed / "trivet", "plan", ROOT / "examples" / "tiny.yaml", "--run-dir", "here"], home)
    assert planned.returncode == 0 and "evaluate" in planned.stdout, planned.stderr


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "module") for name in CLASHES), ("data", "package"), ("data", "files")]
)
def test_python_says_which_name_is_in_the_way(name: str, kind: str, installed: Path, tmp_path: Path) -> None:
    clash = tmp_path / name if kind != "module" else tmp_path / f"{name}.py"
    if kind == "module":
        clash.write_text("x = 1\n")
    else:
        clash.mkdir()
        (clash / ("__init__.py" if kind == "package" else "rows.jsonl")).write_text("")
    (tmp_path / "script.py").write_text("import pipelines\nprint(pipelines.__all__)\n")
    done = run([installed / "python", "script.py"], tmp_path)
    if kind == "files":  # a folder without code gives way to an installed package
        assert (done.returncode, done.stdout) == (0, "['Pipeline']\n"), done.stderr
        return
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith(f"ImportError: {clash}") and f"package '{name}'" in last
    assert "Rename it" in last and "`trivet`" in last
    assert done.stderr.count("File ") <= 3  # the script and our check, nothing deep inside
    if name != "models":
        return
    started = run([installed / "python", "-m", "pipelines", "models"], tmp_path)
    assert started.returncode != 0 and str(clash) in started.stderr and "Traceback" not in started.stderr


def test_a_folder_of_data_before_a_checkout_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "script.py").write_text(
        "import sys, importlib.machinery as m\n"
        f"class Checkout:\n    def find_spec(name, path=None, target=None):\n"
        f"        return m.PathFinder.find_spec(name, [{str(ROOT)!r}]) if '.' not in name else None\n"
        "sys.meta_path.append(Checkout)\n"  # as an editable installation does
        "from pipelines import Pipeline\n"
    )
    done = run([sys.executable, "-S", "script.py"], tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {tmp_path / 'data'}") and "package 'data'" in last


@pytest.mark.parametrize(
    ("wanted", "clash"),
    [
        ("models import SharedBase", "data"),
        ("reward.losses import ranking_loss", "data"),
        ("reward.losses import ranking_loss", "models"),
        ("stages import ppo_math", "reward"),
        ("stages.ppo_math import gae", "data"),
        ("evaluation.results import assemble", "stages"),
    ],
)
def test_each_package_names_what_hides_one_below_it(wanted: str, clash: str, installed: Path, tmp_path: Path) -> None:
    (tmp_path / f"{clash}.py").write_text("")
    (tmp_path / "script.py").write_text(f"from {wanted}\n")
    done = run([installed / "python", "script.py"], tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {tmp_path / clash}.py hides") and done.stderr.count("File ") <= 4


def test_a_module_that_is_loaded_already_is_named_too(installed: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "models.py").write_text("")
    (tmp_path / "script.py").write_text(
        f"import sys\nsys.path.insert(0, {str(own)!r})\nimport models\nsys.path.pop(0)\n"
        "from pipelines import Pipeline\n"
    )
    last = run([installed / "python", "script.py"], tmp_path).stderr.strip().splitlines()[-1]
    assert last.startswith(f"ImportError: {own / 'models.py'}")


@pytest.mark.parametrize("clash", ["pipelines.py", "pipelines/__init__.py"])
def test_a_users_own_pipelines_is_named_by_python(clash: str, installed: Path, tmp_path: Path) -> None:
    (tmp_path / clash).parent.mkdir(exist_ok=True)
    (tmp_path / clash).write_text("")
    (tmp_path / "script.py").write_text("from pipelines import Pipeline\n")
    last = run([installed / "python", "script.py"], tmp_path).stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: cannot import name 'Pipeline'") and str(tmp_path / clash) in last
