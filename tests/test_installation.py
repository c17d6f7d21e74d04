"""Installed from a wheel, and used beside modules of the user's that are named as ours are."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import types
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from slow import QUICK, slow

from taskvec_jax.errors import TaskVecError
from taskvec_jax.models import checkpoint, foreign, names
from taskvec_jax.models.registry import SMALL_MODEL

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("taskvec_jax", "convert", "experiments")
SHIPPED = Path("checkpoints") / SMALL_MODEL
PLAN = ["layer_sweep", f"--model={SMALL_MODEL}", "--plan"]

# A script beside the user's own convert.py and experiments/, which uses the shipped model and
# foreign weights before and after it imports its own modules.
SCRIPT = """
import sys
from taskvec_jax import load_model
from taskvec_jax.models.converting import convert_model
from taskvec_jax.models.names import checkpoint_path
from taskvec_jax.models.names import describe

load_model("pythia-icl-small")
_, config = describe(sys.argv[1])
import convert, experiments.mine
convert_model(sys.argv[1], checkpoint_path("ORG/converted"))
assert describe("ORG/converted") == ("ORG/converted", config)
assert convert.WHOSE == experiments.mine.WHOSE == "the user's", (convert, experiments)
import taskvec_jax
print(taskvec_jax.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this project, built from a copy so that the checkout stays as it is."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copytree(ROOT / SHIPPED, source / SHIPPED)
    (source / "checkpoints" / "another").mkdir()
    (source / "checkpoints" / "another" / "config.json").write_text("{}")  # the user's own model
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, out], cwd=source, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a plain `pip install` puts into site-packages."""
    directory = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return directory


@pytest.fixture(scope="module")
def hf_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Foreign weights: the shipped model as a Hugging Face directory."""
    from convert.export import export

    restored, directory = (
        checkpoint.restore(ROOT / SHIPPED, "float32"),
        tmp_path_factory.mktemp("hf"),
    )
    export(restored.config, restored.params, restored.tokenizer, directory / "grown")
    return directory / "grown"


@pytest.fixture
def user_directory(tmp_path: Path) -> Path:
    """A working directory with modules named as packages of this project are."""
    directory = tmp_path / "work"
    (directory / "experiments").mkdir(parents=True)
    (directory / "convert.py").write_text('WHOSE = "the user\'s"\n')
    (directory / "experiments" / "__init__.py").touch()
    (directory / "experiments" / "mine.py").write_text('WHOSE = "the user\'s"\n')
    (directory / "script.py").write_text(SCRIPT)
    return directory


def run(
    command: list[str], where: Path, installed: Path | None, cache: Path
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TASKVEC_", "PYTHON"))}
    env = {**kept, "XDG_CACHE_HOME": str(cache), "PYTHONDONTWRITEBYTECODE": "1", "XLA_FLAGS": QUICK}
    if installed:
        env["PYTHONPATH"] = str(installed)
    done = subprocess.run(
        command, cwd=where, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def files(directory: Path) -> set[Path]:
    return {path.relative_to(directory) for path in directory.rglob("*") if path.is_file()}


def test_the_wheel_holds_the_shipped_model_and_all_data_and_no_model_of_the_user(installed):
    held = files(installed)
    shipped = {SHIPPED / path for path in files(ROOT / SHIPPED)}
    assert {path for path in held if path.parts[0] == "checkpoints"} == shipped
    data = {
        path.relative_to(ROOT)
        for package in PACKAGES
        for suffix in ("*.json", "*.npz", "*.j2", "*.py")
        for path in (ROOT / package).rglob(suffix)
    }
    assert data <= held
    tops = {path.parts[0] for path in held if not path.parts[0].endswith(".dist-info")}
    assert tops == {*PACKAGES, "checkpoints"}


def test_a_script_beside_its_own_convert_and_experiments_loads_and_converts_models(
    installed: Path, hf_directory: Path, user_directory: Path, tmp_path: Path
):
    before = files(installed)
    command = [sys.executable, "script.py", str(hf_directory)]
    printed = run(command, user_directory, installed, tmp_path / "cache").stdout
    assert Path(printed.strip()).is_relative_to(installed)
    converted = tmp_path / "cache" / "taskvec_jax" / "checkpoints" / "ORG--converted"
    assert (converted / "manifest.json").is_file()
    assert files(installed) == before  # nothing is written beside the installed library


def test_programs_run_from_a_directory_with_a_convert_and_experiments_of_its_own(
    installed: Path, user_directory: Path, tmp_path: Path
):
    command = [sys.executable, "-m", "taskvec_jax", *PLAN]
    assert SMALL_MODEL in run(command, user_directory, installed, tmp_path / "cache").stdout


@slow  # much like the one above
def test_an_experiment_is_run_by_its_module_beside_a_convert_of_the_users(
    installed: Path, user_directory: Path, tmp_path: Path
):
    shutil.rmtree(user_directory / "experiments")  # that name Python looks up there first
    command = [sys.executable, "-m", "experiments." + PLAN[0], *PLAN[1:]]
    assert SMALL_MODEL in run(command, user_directory, installed, tmp_path / "cache").stdout


def test_the_library_leaves_the_name_convert_to_the_user(
    hf_directory: Path, monkeypatch: pytest.MonkeyPatch
):
    theirs = types.ModuleType("convert")
    monkeypatch.setitem(sys.modules, "convert", theirs)
    assert foreign.read_config(hf_directory).family == "pythia"
    assert sys.modules["convert"] is theirs
    with pytest.raises(TaskVecError, match="the name convert is taken"):
        foreign.claim("convert")


def test_a_program_that_imported_convert_has_it_once(monkeypatch: pytest.MonkeyPatch):
    hub = importlib.import_module("convert.fetch.hub")
    monkeypatch.setattr(hub, "fetch", lambda repository, revision: Path(repository))
    assert foreign.fetch_from_hub("ORG/NAME", None) == Path("ORG/NAME")


def test_modules_of_convert_import_one_another_relatively():
    # `convert` by name may be a module of the user's.
    for path in sorted((ROOT / "convert").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            found = (
                [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            )
            found += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [n for n in found if n.split(".")[0] == "convert"], f"{path}: {found}"


def test_converted_models_are_kept_in_a_checkout_or_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("TASKVEC_CHECKPOINTS", "TASKVEC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert names.checkpoints_directory() == ROOT / "checkpoints"
    monkeypatch.setattr(foreign, "PROJECT", tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    default = tmp_path / "home" / ".cache" / "taskvec_jax" / "checkpoints"
    assert names.checkpoints_directory() == default
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert names.checkpoints_directory() == default
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert names.checkpoints_directory() == tmp_path / "xdg" / "taskvec_jax" / "checkpoints"
    monkeypatch.setenv("TASKVEC_CACHE", str(tmp_path / "ours"))
    assert names.checkpoints_directory() == tmp_path / "ours" / "checkpoints"
    monkeypatch.setenv("TASKVEC_CHECKPOINTS", str(tmp_path / "disk"))
    assert names.checkpoints_directory() == tmp_path / "disk"
    assert names.checkpoint_path(SMALL_MODEL) == tmp_path / "checkpoints" / SMALL_MODEL


def test_without_a_home_the_variable_that_helps_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("TASKVEC_CHECKPOINTS", "TASKVEC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(foreign, "PROJECT", tmp_path)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(TaskVecError, match="TASKVEC_CHECKPOINTS"):
        names.checkpoints_directory()


def test_the_command_lists_programs_and_refuses_what_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from taskvec_jax import __main__ as command

    monkeypatch.setattr(sys, "argv", ["taskvec"])
    command.main()
    listed = capsys.readouterr().out
    for name in ("layer_sweep", "main_results", "convert", "convert.verify", "convert.export"):
        assert re.search(rf"^  {re.escape(name)}  +\S", listed, re.MULTILINE), name
    monkeypatch.setattr(sys, "argv", ["taskvec", "layer_swep"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    assert "did you mean layer_sweep?" in capsys.readouterr().err


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def named(requirements: list[str]) -> list[str]:
        return [_normal(re.match(r"[\w.-]+", line)[0]) for line in requirements]  # type: ignore[index]

    declared, extras = named(project["dependencies"]), project["optional-dependencies"]
    assert len(declared) == len(set(declared)), "a dependency stands twice"
    imported: set[str] = set()
    distributions = packages_distributions()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for top in _foreign_tops(path):
                assert top in distributions, f"{path} imports {top}, which no package here brings"
                imported |= {_normal(name) for name in distributions[top]}
    assert imported - set(declared) == set(named(extras["torch"]))
    assert set(declared) <= imported


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _foreign_tops(path: Path) -> set[str]:
    """Top-level names that a file imports, of neither Python nor this project."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - set(PACKAGES)


@slow  # installs a wheel
def test_the_wheel_in_a_fresh_environment(
    wheel: Path, hf_directory: Path, user_directory: Path, tmp_path: Path
):
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    # The libraries of this environment, so that the wheel alone is new.
    site = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    (site / "others.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)]
    run(command, tmp_path, None, tmp_path / "cache")
    printed = run([python, "script.py", str(hf_directory)], user_directory, None, tmp_path / "c")
    assert Path(printed.stdout.strip()).is_relative_to(site)
    taskvec = str(tmp_path / "venv" / "bin" / "taskvec")
    run([taskvec, "convert", f"--model={hf_directory}"], user_directory, None, tmp_path / "cache")
    kept = tmp_path / "cache" / "taskvec_jax" / "checkpoints"
    (converted,) = kept.glob(f"{hf_directory.name}-*")  # and a hash of where it comes from
    assert (converted / "manifest.json").is_file()
    command = [taskvec, "layer_sweep", f"--model={SMALL_MODEL}", "--num_prompts=5", "--out=here"]
    run([*command, "--tasks=algorithmic_to_upper"], user_directory, None, tmp_path / "cache")
    assert (user_directory / "here" / "layer_sweep.json").is_file()
