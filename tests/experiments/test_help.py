"""--help of every program, and the lists of what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import in_process
import pytest
from absl import flags

from convert import help as helping
from taskvec_jax.distributed.plan import parameter_count
from taskvec_jax.models.registry import NAMED_MODELS
from taskvec_jax.programs import about, listing, module_of, programs
from taskvec_jax.transformer.config import FAMILIES

ROOT = Path(__file__).resolve().parent.parent.parent
EXPERIMENTS = programs("experiments")
# Each way in which flags are defined; the others are like these.
SHOWN = (
    "layer_sweep main_results paper learned_task_vector steer tasks compare cross_models emergence"
    " small_pythia.train bench.sweep bench.mesh_plan"
).split()
OF_ABSL = {"helpfull", "helpxml", "flagfile", "undefok", "logtostderr", "verbosity", "pdb"}


def printed(name: str, *words: str, status: int = 0) -> str:
    done = in_process.experiment(name, *words)
    assert done.returncode == status, done.printed
    return done.printed


@pytest.mark.parametrize("name", SHOWN)
def test_help_shows_every_flag_with_its_default_and_none_of_absl(name):
    shown = printed(name, "--help")
    assert about(EXPERIMENTS[name])[0][:20] in shown, "the docstring comes first"
    listed = re.findall(r"^  --(?:\[no\])?(\w+)", shown, re.MULTILINE)
    assert len(set(listed)) == len(listed) > 0
    defined = re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', EXPERIMENTS[name].read_text())
    assert set(defined) <= set(listed)
    assert not set(listed) & OF_ABSL
    assert "helpfull" not in shown
    if name in ("layer_sweep", "main_results", "paper"):
        assert {"model", "dtype", "tasks", "num_prompts", "template", "out", "mesh"} <= set(listed)
        groups = re.findall(r"^(\w[\w ]*):$", shown, re.MULTILINE)
        assert groups[-5:] == [
            "Model",
            "Devices and processes",
            "Prompts and scoring",
            "Tasks",
            "Memory and results",
        ]
        assert re.search(r"--num_prompts=N .*\n(?: {30}.*\n)*.*\(default: 50\)", shown)
        assert re.search(r"--seed=N .*\(default: 0\)", shown)
    flags_part = shown[shown.index("\nModel:" if "\nModel:" in shown else "\nFlags of this") :]
    assert max(map(len, flags_part.splitlines())) <= 100


def test_a_flag_says_what_it_takes_and_whether_it_is_needed(monkeypatch):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(helping, "_groups", {})
    with helping.group("Outer"):
        flags.DEFINE_enum("kind", "a", ["a", "b"], "which kind.", flag_values=values)
        with helping.group("Inner"):
            flags.DEFINE_bool("quick", True, "Fast.", flag_values=values)
    flags.DEFINE_list("names", None, "names of things", flag_values=values, required=True)
    flags.DEFINE_list("some", ["x", "y"], "Words.", flag_values=values)
    assert helping.text("About.\n").split("\n") == [
        "About.",
        "",
        "Flags of this command:",
        "  --names=A,B,...             Names of things. (needed)",
        "  --some=A,B,...              Words. (default: x,y)",
        "",
        "Outer:",
        "  --kind=a|b                  Which kind. (default: a)",
        "",
        "Inner:",
        "  --[no]quick                 Fast. (on)",
    ]
    for words, said in (
        ([], "--names is needed: names of things; --help lists the flags"),
        (["--nams=1"], "unknown flag --nams (did you mean --names?); --help lists the flags"),
        (["--zzz"], "unknown flag --zzz; --help lists the flags"),
    ):
        with pytest.raises(flags.Error) as caught:
            values(["command", *words])
        assert helping.explain(caught.value) == said


def test_every_program_says_what_it_does_and_how_long_it_takes():
    lines = listing()
    for name, path in programs().items():
        what, time = about(path)
        assert what, name
        assert time, f"{name}: its docstring has no line that begins with Time:"
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert what in line
        assert f"  {time}  " in line


def test_the_packages_list_what_there_is():
    for module, names in (
        ("experiments", EXPERIMENTS),
        ("convert", [*programs("convert"), *NAMED_MODELS]),
    ):
        done = subprocess.run(
            [sys.executable, "-m", module], cwd=ROOT, capture_output=True, text=True, check=True
        )
        first = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
        assert first == list(names)
    assert re.search(r"llama-7b +6,738 M +13\.48 GB +hub, huggyllama/llama-7b", done.stdout)


@pytest.mark.parametrize(
    "words",
    [
        ["experiments"],
        ["taskvec_jax"],
        ["experiments.layer_sweep", "--help"],
        ["convert.families.read_keys", "--help"],
    ],
    ids=" ".join,
)
def test_a_program_ends_quietly_when_nobody_reads_what_it_prints(words):
    """As in `--help | head`, when head has read enough."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_sizes_of_models_are_right_within_a_hundredth():
    """One model of each family, and whatever the table is not sure of."""
    from convert.__main__ import about_parameters

    of_family = {model.config.family: model.config for model in NAMED_MODELS.values()}
    assert set(of_family) <= set(FAMILIES)
    for family, config in of_family.items():
        assert about_parameters(config) == pytest.approx(parameter_count(config), rel=0.01), family


def test_a_program_named_beside_the_package_is_told_how_to_be_run():
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "steer"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "error: unexpected argument 'steer'; run python -m experiments.steer\n"


def test_the_reader_of_keys_has_no_flags_and_says_what_it_is_given(monkeypatch, capsys):
    from convert.families import read_keys

    before = read_keys.OUT.read_bytes()
    monkeypatch.setattr(sys, "argv", ["read_keys", "--help"])
    read_keys.main()
    assert "python -m convert.families.read_keys qwen2" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["read_keys", "qwen2nd"])
    with pytest.raises(SystemExit) as ended:
        read_keys.main()
    assert ended.value.code == 2
    assert "'qwen2nd' is no model_type of the installed transformers" in capsys.readouterr().err
    assert read_keys.OUT.read_bytes() == before


def test_modules_of_programs_are_what_python_runs():
    assert module_of(programs()["convert"]) == "convert"
    assert module_of(programs()["bench.sweep"]) == "experiments.bench.sweep"
