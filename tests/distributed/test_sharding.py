"""Many devices give the numbers of one: simulated ones, and real processes on this machine."""

# Long because: one run on 8 simulated devices is compared with many expectations.
from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hf
import numpy as np
import pytest
import tiny_checkpoint
from mesh_cases import COMPILED_LAYERS
from safetensors.numpy import load_file, save_file
from slow import QUICK, SLOW, slow

from convert import cli as command
from experiments.small_pythia import training
from taskvec_jax.distributed import sharding
from taskvec_jax.distributed.plan import choose_mesh, device_bytes, mesh_line, share_bytes
from taskvec_jax.distributed.sharding import MeshShape
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models import checkpoint
from taskvec_jax.models.converting import convert_model
from taskvec_jax.models.hashing import hash_params
from taskvec_jax.models.model import Model
from taskvec_jax.models.registry import NAMED_MODELS
from taskvec_jax.transformer.decoder import leaf_shapes

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = ("--num_prompts=2", "--batch_size=3", "--tasks=algorithmic_to_upper")


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    """What mesh_cases.py measured."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "tests" / "mesh_cases.py")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_layout_of_8_devices_gives_the_numbers_of_one(cases):
    assert len(cases["agreement"]) == (10 if SLOW else 3)
    for config, layouts in cases["agreement"].items():
        for layout, differences in layouts.items():
            for name, value in differences.items():
                allowed = 0 if name.endswith("tokens") else 1e-5
                assert value <= allowed, (config, layout, name, value)


def test_generation_on_many_devices_gives_the_tokens_of_one(cases):
    assert cases["generated"] == {"llama grouped": 0}


def test_heads_and_positions_on_many_devices_have_the_effects_of_one(cases):
    for name, value in cases["interventions"].items():
        assert value <= (0 if name.endswith("tokens") else 1e-5), (name, value)


def test_int8_on_many_devices_gives_the_numbers_of_one(cases):
    assert all(moved <= 1e-5 for moved in cases["int8"].values()), cases["int8"]
    for way in ("restored", "converted"):
        assert cases["shards"][way]["int8"] == cases["shards"]["int8"], way


def test_a_layer_sums_over_devices_as_often_as_its_block_is_sequential(cases):
    """LLaMA's MLP reads what attention left, so two sums; parallel blocks add both up first.

    So it is if half of the devices divide the heads. If fewer do, queries, keys and values are a
    sum each, and what attention gives is gathered.
    """
    uneven = ["all-gather", *["all-reduce"] * 4]
    fewest = {"llama": 2, "llama grouped": 2, "llama halved": 2, "pythia": 1, "gptj": 1}
    for case, programs in cases["collectives"].items():
        name, layout = case.rsplit(" ", 1)
        split = MeshShape.parse(layout).model > 1
        a_layer = uneven if name == "llama uneven" else ["all-reduce"] * (split * fewest[name])
        for kind, (loops, outside) in programs.items():
            assert all(sorted(layer) == a_layer for layer in loops), case
            assert len(loops) == (kind == "read"), case
            # The last block of reading; or groups of one layer, whose loops are written out.
            outside = outside[len(a_layer) * (1 if loops else COMPILED_LAYERS) :]
            # The embedding; the vocabulary's maximum, its place (two numbers), and what is there.
            assert len(outside) <= (5 if split else 0), case


def test_shards_hold_what_the_plan_says_and_hash_like_the_whole(cases):
    assert len(set(cases["shards"]["hash"])) == 1
    held, planned = cases["shards"]["share"]
    assert held == planned


def test_a_restored_or_converted_model_lies_in_its_shards_and_is_the_same(cases):
    for way in ("restored", "converted"):
        assert cases["shards"][way]["same"], way
        assert cases["shards"][way]["specs"], way


def test_mesh_flags_are_read_and_nonsense_is_refused():
    assert MeshShape.parse("data:2,model:4") == MeshShape(2, 4)
    assert MeshShape.parse("model:8") == MeshShape(1, 8)
    assert str(MeshShape.parse("data:3")) == "data:3,model:1"
    for bad in ("", "2,4", "data:2,data:4", "heads:2", "data:-1", "data:0", "data:2.5", "data"):
        with pytest.raises(TaskVecError, match="mesh"):
            MeshShape.parse(bad)
    with pytest.raises(TaskVecError, match="is 4096 devices, there are"):
        sharding.make_mesh(MeshShape(64, 64))


def test_every_matrix_is_split_and_no_norm_is():
    for name in ("llama-30b", "llama-2-70b", "smollm2-360m", "pythia-12b", "gpt-j-6b"):
        model = NAMED_MODELS[name]
        for path, shape in leaf_shapes(model.config).items():
            split = sharding.split_of(model.config, path, shape, 2)
            heads = model.config.num_heads, model.config.num_kv_heads
            few = path.startswith(("layers/attn/key", "layers/attn/value")) and heads[1] % 2
            if path.endswith(("kernel", "embedding")) and not (few and heads[0] % 2 == 0):
                assert split is not None, (name, path)
                assert split.shards == 2, (name, path)
            if "norm" in path:
                assert split is None, (name, path)


def attention_splits(name: str, devices: int) -> list[tuple[int, int] | None]:
    """Axis and number of shards of the kernels of queries, keys, values and outputs."""
    config = NAMED_MODELS[name].config
    shapes = leaf_shapes(config)
    paths = [f"layers/attn/{part}/kernel" for part in ("query", "key", "value", "out")]
    splits = [sharding.split_of(config, path, shapes[path], devices) for path in paths]
    return [split and (split.axis, split.shards) for split in splits]


def test_few_key_value_heads_are_copied_to_the_devices_that_share_them():
    assert attention_splits("llama-2-70b", 8) == [(2, 8), (2, 8), (2, 8), (1, 8)]  # 64 heads in 8
    assert attention_splits("llama-2-70b", 16) == [(2, 16), (2, 8), (2, 8), (1, 16)]
    assert attention_splits("llama-3.2-3b", 3) == [(2, 3), None, None, (1, 3)]  # 24 heads in 8


def test_heads_lie_on_half_of_the_devices_or_else_attention_on_the_width():
    assert attention_splits("llama-30b", 4) == [(2, 4), (2, 4), (2, 4), (1, 4)]  # 52 heads
    assert attention_splits("llama-30b", 8) == [(2, 4), (2, 4), (2, 4), (1, 4)]
    assert attention_splits("llama-30b", 16) == [(1, 16), (1, 16), (1, 16), (3, 16)]
    assert attention_splits("smollm2-135m", 2) == [(1, 2), (1, 2), (1, 2), (3, 2)]  # 9 heads
    config = NAMED_MODELS["llama-30b"].config
    whole = share_bytes(config, "bfloat16", 1)
    assert 1.32 < share_bytes(config, "bfloat16", 8) * 8 / whole < 4 / 3
    assert share_bytes(config, "bfloat16", 16) * 16 / whole < 1.01


def test_heads_lie_on_the_most_devices_that_divide_them_with_those_of_keys_outside():
    base = NAMED_MODELS["llama-7b"].config
    for devices in range(1, 33):
        axes = sharding.model_axes(devices)
        assert math.prod(axes.values()) == devices
        assert all(size % n for size in axes.values() for n in range(2, size))
        for groups, each in itertools.product((1, 2, 3, 4, 6, 8), (1, 2, 3, 4, 13)):
            config = dataclasses.replace(base, num_heads=groups * each, num_kv_heads=groups)
            heads, few = sharding.head_axes(config, devices)
            most = math.gcd(groups * each, devices)  # every divisor is a product of its factors
            wanted = most if most > 1 and 2 * most >= devices else 1
            assert math.prod(heads.values()) == wanted
            assert math.prod(few.values()) == (math.gcd(groups, devices) if heads else 1)
            assert list(heads)[: len(few)] == list(few)
            assert heads.items() <= axes.items()


def test_the_choice_of_a_mesh_is_said_with_what_it_needs(monkeypatch):
    from taskvec_jax.distributed import plan

    config = NAMED_MODELS["llama-7b"].config
    monkeypatch.setattr(plan.jax, "device_count", lambda: 8)
    for memory, chosen in ((80, MeshShape(8, 1)), (16, MeshShape(1, 8))):
        machine = plan.Mesh("m", 8, memory * plan.GB)
        monkeypatch.setattr(plan, "this_machine", lambda machine=machine: machine)
        assert choose_mesh(config, 50) == chosen
        assert device_bytes(config, "float32", 50, chosen) <= machine.device_bytes
        assert mesh_line(config, chosen, 50).startswith(f"mesh {chosen}: each device holds")


def test_processes_that_cannot_meet_are_refused_in_one_line():
    for flags, message in (
        (["--num_processes=2"], "need --coordinator=HOST:PORT"),
        (["--coordinator=localhost:1", "--num_processes=2"], "an id from 0 below it"),
        (["--mesh=rows:2"], "allowed: data:N,model:M"),
    ):
        done = tiny_checkpoint.run("layer_sweep", "--model=smollm2-135m-instruct", *SMALL, *flags)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def at_once(
    count: int, command: Callable[[int, int], list[str]], stderr: int | None = subprocess.STDOUT
) -> list[str]:
    """Runs (port, id) -> command in several processes; what each printed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            command(port, i),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": QUICK},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        for i in range(count)
    ]
    try:
        printed = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, "\n".join(printed)
    return printed


def run_processes(count: int, model: Path, out: Path, *flags: str) -> str:
    """Runs the layer sweep in several processes at once; what process 0 printed."""
    printed = at_once(
        count,
        lambda port, i: tiny_checkpoint.command_line(
            "layer_sweep",
            f"--model={model}",
            f"--out={out}",
            *SMALL,
            *flags,
            f"--coordinator=localhost:{port}",
            f"--num_processes={count}",
            f"--process_id={i}",
        ),
    )
    assert all("baseline" not in text for text in printed[1:])  # only the first one speaks
    return printed[0]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory, default_model: Model) -> tuple[Path, Path]:
    """A tiny model, and the layer sweep's result file of one process."""
    directory = tmp_path_factory.mktemp("mesh")
    model = tiny_checkpoint.save_tiny(directory / "tiny", default_model.tokenizer)
    done = tiny_checkpoint.run("layer_sweep", f"--model={model}", f"--out={directory}/1", *SMALL)
    assert done.returncode == 0, done.stderr
    return model, directory / "1" / "layer_sweep.json"


@pytest.mark.parametrize(
    ("count", "mesh"),
    [
        pytest.param(2, "data:2", marks=slow),
        pytest.param(
            4,
            "data:2,model:2",
            marks=slow,
        ),
    ],
)
def test_several_processes_write_the_results_of_one(tiny_model, tmp_path, count, mesh):
    model, alone = tiny_model
    printed = run_processes(count, model, tmp_path / "out", f"--mesh={mesh}")
    assert f"mesh {MeshShape.parse(mesh)}: each device holds" in printed
    tiny_checkpoint.assert_same_but_for_noise(tmp_path / "out" / "layer_sweep.json", alone)
    result = json.loads((tmp_path / "out" / "layer_sweep.json").read_text())
    assert result["provenance"]["device"]["processes"] == count
    left = {path.stem for path in (tmp_path / "out").iterdir()}
    assert left == {"arrays", "vectors", "journal", "layer_sweep", "layer_sweep_tasks"}


@slow  # compiles training for 8 devices
def test_training_and_learned_vectors_lose_on_8_devices_what_they_lose_on_one(cases):
    found = cases["gradients"]
    assert found["placed"]
    assert sorted(found["differences"]) == ["dev losses", "losses", "train losses"]
    for name, value in found["differences"].items():
        assert value <= 1e-5, (name, value)


def test_rows_that_devices_cannot_share_are_refused():
    mesh = sharding.make_mesh(MeshShape(1, 1))
    training.check_rows(mesh, 3)
    training.check_rows(None, 3)
    shape = MeshShape(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "shape_of", lambda mesh: shape)
        training.check_rows(mesh, 8)
        with pytest.raises(TaskVecError, match="30 rows a step over data:4; allowed: a batch_size"):
            training.check_rows(mesh, 30)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    """What process_cases.py tells from two processes, and the directory they worked in."""
    scratch = tmp_path_factory.mktemp("two")
    cached = scratch / "hub" / "models--some--model"
    source = cached / "snapshots" / "abc"
    source.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    damaged = scratch / "damaged"
    shutil.copytree(hf.save(hf.random_model(hf.llama()), source), damaged)
    weights = load_file(damaged / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["model.embed_tokens.weight"][3, -1] = np.nan  # of [101, 42], split along the width
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    script = str(ROOT / "tests" / "process_cases.py")
    printed = at_once(
        2,
        lambda port, i: [sys.executable, script, str(port), "2", str(i), str(scratch)],
        stderr=None,
    )
    told = [line for text in printed for line in text.splitlines() if line.startswith("{")]
    return scratch, [json.loads(line) for line in told]  # gloo speaks too


@slow  # starts several processes
def test_several_processes_convert_a_model_each_its_shards(two):
    scratch, told = two
    convert_model(scratch / "hub/models--some--model/snapshots/abc", scratch / "alone")
    alone, made = (scratch / name for name in ("alone", "checkpoints/some--model"))
    manifests = [checkpoint.read_manifest(path) for path in (alone, made)]
    for key in ("leaves_sha256", "weights_sha256", "files"):
        assert manifests[0][key] == manifests[1][key]
    assert manifests[1]["source"] == "some/model"
    assert hash_params(checkpoint.restore(made).params) == manifests[1]["weights_sha256"]
    assert [one["sha256"] for one in told] == [manifests[1]["weights_sha256"]] * 2
    assert all(one["held"] == one["share"] for one in told)


def test_what_stops_one_process_stops_all_with_its_message(two):
    scratch, told = two
    refusals = {said for one in told for said in one["refusals"]}
    assert len(refusals) == 1
    (said,) = refusals
    assert "embed_tokens.weight has values that are not finite" in said
    assert said.endswith("(process 1)")
    assert [path.name for path in (scratch / "checkpoints").iterdir()] == ["some--model"]


def test_processes_halve_and_stop_together(two):
    for one in two[1]:
        assert one["halving"]["calls"] == [6, 4, 2, 2, 2]  # rounded up to a row a process
        assert one["halving"]["moved"] < 1e-5
        assert one["stopping"] == ["goes on", "exits 0"]
        assert one["least"] == 6


class Flags(SimpleNamespace):
    """Parsed flags."""

    def __contains__(self, name: str) -> bool:
        return hasattr(self, name)


def test_a_model_that_is_converted_first_says_its_mesh_once(monkeypatch, capsys):
    flags = Flags(mesh="data:1,model:1", dtype="bfloat16", quantization="int8")
    monkeypatch.setattr(command, "FLAGS", flags)
    choose = command.mesh_from_flags(50)
    run = dataclasses.replace(
        NAMED_MODELS["smollm2-135m-instruct"].config, dtype="bfloat16", quantization="int8"
    )
    for config in (dataclasses.replace(run, dtype="float32", quantization="none"), run, run):
        assert sharding.shape_of(choose(config)) == MeshShape()
    assert capsys.readouterr().out == mesh_line(run, MeshShape(), 50) + "\n"
