"""Every known name has its published shape, says what it needs, and finds its weights."""

# Long because: published parameter counts of all names are a table.

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hf
import huggingface_hub
import pytest
import torch
import transformers
from slow import SLOW, slow

import convert
from convert.export import FAMILIES
from convert.fetch import hub
from taskvec_jax.distributed.plan import (
    parameter_count,
    plan_lines,
    share_bytes,
    sweep_bytes,
    weight_bytes,
)
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models import checkpoint, names
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.names import describe
from taskvec_jax.models.registry import DEFAULT_MODEL, NAMED_MODELS, SMALL_MODEL, NamedModel
from taskvec_jax.models.registry_families import named_configs
from taskvec_jax.models.registry_types import JoinedFile

ROOT = Path(__file__).resolve().parent.parent.parent
PUBLISHED = {  # parameters, from the models' own pages
    "smollm2-135m-instruct": 134_515_008,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "open-llama-3b": 3_426_473_600,
    "open-llama-7b": 6_738_415_616,
    "open-llama-13b": 13_015_864_320,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "mistral-7b-v0.1": 7_241_732_096,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "pythia-14m": 14_067_712,
    "pythia-31m": 30_494_720,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "gpt-neox-20b": 20_554_567_680,
    "gpt-j-6b": 6_050_882_784,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen2.5-coder-1.5b-instruct": 1_777_088_000,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "olmo-1b": 1_176_764_416,
    "olmo-7b": 6_888_095_744,
    "olmo-2-1b": 1_484_916_736,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "olmo-2-32b": 32_234_279_936,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    # Their pages count 416,866,032 of a vision tower, and of what leads from it, too.
    "gemma-3-4b": 4_300_079_472 - 416_866_032 - 1152 * 2561,
    "gemma-3-12b": 12_187_325_040 - 416_866_032 - 1152 * 3841,
    "gemma-3-27b": 27_432_406_640 - 416_866_032 - 1152 * 5377,
    "phi-3-mini": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "granite-3-2b": 2_533_531_648,
    "granite-3-8b": 8_170_848_256,
    "falcon3-1b": 1_669_408_768,
    "falcon3-7b": 7_455_550_464,
    "falcon3-10b": 10_305_653_760,
    "yi-6b": 6_061_035_520,
    "yi-34b": 34_388_917_248,
    "deepseek-llm-7b": 6_910_365_696,
}
OURS = {SMALL_MODEL: 1_230_080}  # no publisher but us


@pytest.mark.parametrize("name", PUBLISHED | OURS)
def test_every_name_has_the_published_parameter_count(name: str) -> None:
    assert parameter_count(NAMED_MODELS[name].config) == (PUBLISHED | OURS)[name]


def test_other_trainings_of_a_model_have_its_shapes() -> None:
    for name, model in NAMED_MODELS.items():
        if name in PUBLISHED | OURS:
            continue
        base = name
        for end in ("-deduped", "-instruct", "-base", "-it"):
            base = base.removesuffix(end)
        assert base in PUBLISHED, name
        known, own = NAMED_MODELS[base].config, model.config
        same = {"max_length": known.max_length, "norm_eps": known.norm_eps}
        assert dataclasses.replace(own, **same) == known


# Those that take long to build are left to the slow tests.
COUNTED = [
    name
    for name in PUBLISHED
    if name not in named_configs()
    or name in ("qwen2.5-0.5b", "qwen3-0.6b", "gpt2", "olmo-1b", "olmo-2-1b", "gemma-2b")
    or name in ("gemma-2-2b", "gemma-3-270m", "phi-3-mini", "granite-3-2b")
    or SLOW
]


@slow  # the published counts are tested of every name
@pytest.mark.parametrize("name", COUNTED)
def test_transformers_counts_the_same_parameters(name: str) -> None:
    """The config we would export, built by transformers without any memory."""
    config = NAMED_MODELS[name].config
    raw = FAMILIES[config.family].config_to_hf(config)
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**raw)
        )
    assert theirs.num_parameters() == parameter_count(config)


def test_every_name_says_where_its_weights_are() -> None:
    for name, model in NAMED_MODELS.items():
        if isinstance(model.source, JoinedFile):
            assert len({part.sha256 for part in model.source.parts}) == len(model.source.parts)
            assert model.source.terms
        elif name not in (DEFAULT_MODEL, SMALL_MODEL):
            assert isinstance(model.source, str)
            assert names.HUB_NAME.fullmatch(model.source), name


def test_llama_30b_on_the_machines_people_rent() -> None:
    lines = plan_lines(*describe("llama-30b"))
    verdicts = {line.split(" (")[0]: line for line in lines if " x " in line.split(" (")[0]}
    assert "32,528,943,616 parameters" in lines[0]
    assert "130.12 GB as float32, 65.06 GB as bfloat16, 32.76 GB as int8" in lines[1]

    def fits(mesh: str) -> list[bool]:
        return ["DOES NOT FIT" not in part for part in verdicts[mesh].split("; ")]

    assert fits("1 x 16 GB") == [False, False, False]
    assert fits("1 x 80 GB") == [False, True, True]
    assert fits("4 x 80 GB") == [True, True, True]
    assert fits("8 x 80 GB") == [True, True, True]
    assert fits("8 x 16 GB") == [False, True, True]


def test_shares_add_up_to_the_model_and_a_little_more() -> None:
    for name in ("llama-7b", "llama-30b", "llama-2-70b", "pythia-12b", "gpt-j-6b"):
        config = NAMED_MODELS[name].config
        assert share_bytes(config, "bfloat16", 1) == weight_bytes(config, "bfloat16")
        for devices in (2, 4, 8):
            total = devices * share_bytes(config, "bfloat16", devices)
            twice = (name, devices) == ("llama-30b", 8)  # attention: 52 heads on 4 of 8 devices
            assert 1.0 <= total / weight_bytes(config, "bfloat16") < (4 / 3 if twice else 1.01)


def test_a_sweep_needs_more_memory_with_more_prompts() -> None:
    config = NAMED_MODELS[DEFAULT_MODEL].config
    assert sweep_bytes(config, 100) == 2 * sweep_bytes(config, 50)


def test_the_plan_of_a_directory_is_read_from_its_config(tmp_path: Path) -> None:
    directory = hf.save(hf.random_model(hf.gptj()), tmp_path / "gptj")
    (directory / "model.safetensors").unlink()
    name, config = describe(str(directory))
    assert (name, config.family, config.rope_dim) == ("gptj", "gptj", 6)
    with pytest.raises(TaskVecError, match=r"unknown model 'lama-7b' \(did you mean llama-7b"):
        describe("lama-7b")


def test_the_plan_of_a_repository_needs_its_config_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKVEC_CHECKPOINTS", str(tmp_path / "checkpoints"))
    files = hf.save(hf.random_model(hf.neox()), tmp_path / "files")
    asked = []

    def download(repository: str, file: str, revision: str | None = None) -> str:
        asked.append((repository, file, revision))
        return str(files / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert describe("EleutherAI/pythia-1b", "step8")[1] == NAMED_MODELS["pythia-1b"].config
    assert asked == []
    name, config = describe("SomeOrg/pythia-tiny", "step1000")
    assert (name, config) == ("SomeOrg/pythia-tiny", convert.read_config(files))
    assert asked == [("SomeOrg/pythia-tiny", "config.json", "step1000")]

    def fails(*args: Any, **kwargs: Any) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
    with pytest.raises(TaskVecError, match=r"SomeOrg/pythia-tiny is not on this machine.*PATH"):
        describe("SomeOrg/pythia-tiny")


def test_a_mistyped_path_is_told_so_with_what_is_nearest_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "llama-7b").mkdir(parents=True)
    for name, said in (
        (f"{tmp_path}/models/lama-7b", f"{tmp_path}/models has no lama-7b (did you mean"),
        (f"{tmp_path}/modles/x", f"{tmp_path} has no modles (did you mean {tmp_path}/models?)"),
        ("./gone", f"{tmp_path} has no gone"),
        ("mine.gguf", f"{tmp_path} has no mine.gguf"),
        ("a/b/c", f"{tmp_path} has no a"),
        ("~/models/x", "the shell does not read ~ after =, write $HOME"),
    ):
        with pytest.raises(TaskVecError, match="there is no such file or directory") as caught:
            describe(name)
        assert said in str(caught.value), name
        assert "pythia" not in str(caught.value), "no list of names, where a path is meant"
    for name in ("lama-7b", "", "qwerty"):
        with pytest.raises(TaskVecError, match=r"unknown model .*`python -m convert` lists"):
            describe(name)


@pytest.mark.parametrize("module", ["convert", "experiments.layer_sweep"])
def test_every_command_plans_without_weights_and_network(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--model=llama-65b", "--plan"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TASKVEC_CHECKPOINTS": "/nowhere", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("llama-65b: 65,285,660,672 parameters")
    assert "this machine" in done.stdout


class FakeHub:
    """The hub's two functions that we call, over a local directory."""

    def __init__(self, files: Path, cached: bool) -> None:
        self.files, self.cached = files, cached
        self.asked: list[tuple[str, Any]] = []

    def snapshot_download(self, repository: str, revision: str | None = None, **how: Any) -> str:
        self.asked.append((repository, revision))
        if how.get("local_files_only") and not self.cached:
            raise FileNotFoundError("not in the cache")
        if not how.get("local_files_only"):
            assert "model.safetensors" in how["allow_patterns"]
            assert "flax_model.msgpack" not in how["allow_patterns"]
        return str(self.files)

    def HfApi(self) -> FakeHub:  # noqa: N802 (the hub's name)
        return self

    def list_repo_files(self, repository: str, revision: str | None = None) -> list[str]:
        self.asked.append((repository, revision))
        if self.cached:
            raise AssertionError("the network was asked for what is here")
        return [path.name for path in self.files.iterdir()] + ["flax_model.msgpack", "README.md"]


@pytest.fixture
def fake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> FakeHub:
    files = hf.save(hf.random_model(hf.neox()), tmp_path / "files")
    made = FakeHub(files, cached=getattr(request, "param", False))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", made.HfApi)
    monkeypatch.setenv("TASKVEC_CHECKPOINTS", str(tmp_path / "checkpoints"))
    return made


@pytest.mark.parametrize("fake", [False, True], indirect=True)
def test_a_model_of_the_hub_is_fetched_once_and_kept(fake: FakeHub) -> None:
    model = load_model("SomeOrg/pythia-tiny", revision="step1000")
    assert set(fake.asked) == {("SomeOrg/pythia-tiny", "step1000")}
    kept = names.checkpoint_path("SomeOrg/pythia-tiny", "step1000")
    assert kept.name == "SomeOrg--pythia-tiny@step1000"
    manifest = checkpoint.read_manifest(kept)
    assert manifest["source"] == "SomeOrg/pythia-tiny"
    assert manifest["revision"] == "step1000"
    fake.asked.clear()
    again = load_model("SomeOrg/pythia-tiny", revision="step1000")
    assert fake.asked == []
    assert again.weights_sha256 == model.weights_sha256


def test_a_known_name_is_fetched_from_its_repository(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = convert.read_config(fake.files)
    monkeypatch.setitem(NAMED_MODELS, "pythia-14m", NamedModel(config, "EleutherAI/pythia-14m"))
    assert load_model("pythia-14m").config.family == "pythia"
    assert fake.asked[0] == ("EleutherAI/pythia-14m", None)


def test_weights_of_another_shape_than_the_registry_says_are_refused(fake: FakeHub) -> None:
    with pytest.raises(TaskVecError, match=r"pythia-14m: the weights say .* the registry"):
        load_model("pythia-14m")


def test_without_a_network_the_way_out_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKVEC_CHECKPOINTS", str(tmp_path / "checkpoints"))

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", fails)
    with pytest.raises(TaskVecError) as raised:
        load_model("llama-7b")
    message = str(raised.value)
    assert "huggyllama/llama-7b is not on this machine and cannot be fetched" in message
    assert "--model=PATH" in message
    assert "\n" not in message
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_only_files_that_a_conversion_needs_are_fetched() -> None:
    small = ["config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = ["model.safetensors.index.json"]
    old = ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"]
    other = ["README.md", "original/consolidated.00.pth", "consolidated.safetensors", "tf_model.h5"]
    assert hub.wanted_files(small + shards + index + old + other) == small + shards + index
    assert hub.wanted_files(small + old + other) == small + old[:1]  # as transformers chooses
    both = ["model.safetensors", *shards, *index]
    assert hub.wanted_files(small + both) == [*small, "model.safetensors"]
    assert hub.wanted_files(small + other) == []


@pytest.mark.parametrize("revision", ["../escape", "", "a b"])
def test_revisions_that_are_none_are_refused(revision: str) -> None:
    with pytest.raises(TaskVecError, match="allowed are a branch, tag or commit"):
        load_model("EleutherAI/pythia-70m", revision=revision)


def test_a_revision_of_what_has_none_is_refused(tmp_path: Path) -> None:
    for name in (DEFAULT_MODEL, str(tmp_path)):
        with pytest.raises(TaskVecError, match="allowed are a branch, tag or commit"):
            load_model(name, revision="step1000")
