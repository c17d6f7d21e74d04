"""The certificate passes what is equal and fails what is not; the look at every load too."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from slow import SLOW, slow

from convert.verify import goldens, report
from convert.verify.certificate import Certificate, Run, Site, compare
from taskvec_jax.errors import TaskVecError
from taskvec_jax.models.loading import load_model
from taskvec_jax.models.model import Model
from taskvec_jax.models.soundness import check_model
from taskvec_jax.transformer.decoder import Params


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf.save(hf.random_model(hf.llama()), tmp_path_factory.mktemp("model"))


def changed(params: Params, path: str, change: Any) -> Params:
    leaves = flatten_dict(params["params"], sep="/")
    leaves[path] = change(leaves[path])
    return {"params": unflatten_dict(leaves, sep="/")}


FAMILIES = ["llama-rope-llama3", "neox", "gptj"]


@pytest.mark.parametrize("name", FAMILIES if SLOW else FAMILIES[1:2])
def test_the_certificate_of_every_family_is_clean_down_to_float64(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = hf.save(hf.random_model(hf.CONFIGS[name]()), tmp_path)
    report.report(str(directory), "bfloat16")
    out = capsys.readouterr().out
    assert "float32: KL" in out
    assert "first diverging site: none (beyond 0.0001)" in out
    assert "the differences above are rounding" in out


def test_a_wrong_port_fails_and_its_first_site_is_named(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = load_model(directory)

    def double(leaf: jax.Array) -> jax.Array:
        return leaf.at[1].multiply(1.01)

    wrong = dataclasses.replace(
        right, params=changed(right.params, "layers/mlp/down/kernel", double)
    )
    monkeypatch.setattr(report, "load_model", lambda *a, **k: wrong)
    with pytest.raises(TaskVecError, match="differs from Hugging Face from layer 1 on"):
        report.report(str(directory), "bfloat16")
    assert "A REAL DIFFERENCE, first at layer 1" in capsys.readouterr().out


def test_equal_runs_have_no_distance() -> None:
    rng = np.random.default_rng(0)
    run = Run([rng.normal(size=(3, 4, 5))], [rng.normal(size=(4, 17))])
    same = compare(run, run)
    assert (same.kl, same.top10, same.argmax, same.worst) == (0.0, 1.0, 1.0, 0.0)
    other = Run(run.sites, [run.logits[0] + rng.normal(size=(4, 17))])
    assert compare(other, run).first_diverging(1e-4) == "logits"
    assert compare(other, run).kl > 0


@pytest.mark.parametrize("place", ["layer 1", "logits"])
@pytest.mark.parametrize("text", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_run_that_is_not_finite_anywhere_is_refused_by_its_site(
    place: str, text: int, bad: float
) -> None:
    rng = np.random.default_rng(0)

    def run() -> Run:
        return Run(
            [rng.normal(size=(3, 4, 5)) for _ in range(2)],
            [rng.normal(size=(4, 17)) for _ in range(2)],
        )

    broken = run()
    array = broken.logits[text] if place == "logits" else broken.sites[text][2]
    array[-1, 3] = bad
    with pytest.raises(
        TaskVecError, match=f"mine is not finite from {place} on, in text {text + 1}"
    ):
        compare(broken, run(), "mine")
    with pytest.raises(TaskVecError, match=f"the reference is not finite from {place} on"):
        compare(run(), broken)


def test_the_largest_difference_keeps_what_is_not_a_number() -> None:
    sites = (Site("embedding", 0.0, 0.0), Site("layer 0", np.nan, np.nan))
    certificate = Certificate(sites, 0.0, 1.0, 1.0)
    assert np.isnan(certificate.worst)
    assert certificate.first_diverging(1.0) == "layer 0"


def test_a_certificate_holds_the_hand_computed_values() -> None:
    """Two positions, three tokens: the first equal, the second with its best two exchanged."""
    theirs = np.log([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])
    mine = np.log([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])
    site = np.array([[3.0, -4.0], [1.0, 2.0]])
    reference = Run([site[None]], [theirs])
    found = compare(Run([site[None] + [[0.0, 1.0], [0.5, 0.0]]], [mine]), reference)
    assert found.kl == pytest.approx((0 + np.log(2) / 4) / 2)
    assert found.argmax == 0.5
    assert found.top10 == 1.0  # all three tokens there are
    assert (found.sites[0].difference, found.sites[0].relative) == (1.0, 0.25)
    wide = np.arange(20.0)[None]
    moved = np.where(np.arange(20) >= 17, 0.0, wide)  # its best three are not among ours
    apart = compare(Run([site[None]], [moved]), Run([site[None]], [wide]))
    assert apart.top10 == pytest.approx(0.7)


@slow  # the test without torch compares with them too
def test_the_default_model_equals_the_goldens_shipped_for_it(
    default_model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    assert goldens.check_goldens(default_model) < 1e-4
    assert "equals Hugging Face's numbers on 3 texts, 31 sites" in capsys.readouterr().out


def test_without_torch_the_default_model_is_held_against_goldens(
    default_model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    monkeypatch.setattr(report, "load_model", lambda *a, **k: default_model)
    report.report(default_model.name, "bfloat16")
    assert "torch is not here, so this is all" in capsys.readouterr().out


def test_a_model_that_differs_from_its_goldens_is_named(default_model: Model) -> None:
    wrong = dataclasses.replace(
        default_model,
        params=changed(
            default_model.params,
            "layers/mlp_norm/scale",
            lambda leaf: leaf.at[7].multiply(1.01),
        ),
    )
    with pytest.raises(TaskVecError, match="differs from Hugging Face's numbers from layer 7 on"):
        goldens.check_goldens(wrong)


def test_a_model_that_is_not_finite_does_not_equal_its_goldens(
    default_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = goldens.run_ours

    def broken(model: Model, dtype: str, rows: Any) -> Run:
        run = right(model, dtype, rows[:1])
        filled = Run(run.sites * len(rows), run.logits * len(rows))
        filled.logits[1] = np.full_like(run.logits[0], np.nan)
        return filled

    monkeypatch.setattr(goldens, "run_ours", broken)
    with pytest.raises(TaskVecError, match="not finite from logits on, in text 2"):
        goldens.check_goldens(default_model)


def test_goldens_of_other_weights_do_not_count(directory: Path) -> None:
    with pytest.raises(TaskVecError, match="comparing with Hugging Face needs torch"):
        goldens.check_goldens(load_model(directory))


def test_goldens_are_small() -> None:
    assert sum(path.stat().st_size for path in goldens.GOLDENS.iterdir()) < 50_000


def test_parameters_that_are_not_what_was_converted_are_named(
    directory: Path, tmp_path: Path
) -> None:
    from taskvec_jax.models.converting import convert_model

    convert_model(directory, tmp_path / "out")
    model = load_model(tmp_path / "out")
    report.check_hashes(tmp_path / "out", model)
    wrong = changed(model.params, "final_norm/scale", lambda leaf: leaf.at[3].add(1e-6))
    with pytest.raises(TaskVecError, match="final_norm/scale are not what was converted"):
        report.check_hashes(tmp_path / "out", dataclasses.replace(model, params=wrong))


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        ("layers/mlp/up/kernel", lambda x: x.at[1].set(jnp.nan), "not finite after layer 1"),
        ("unembed/kernel", lambda x: x.at[0, 0].set(jnp.inf), "not finite at the logits"),
        ("layers/attn/out/kernel", lambda x: x.at[0].set(jnp.inf), "not finite after layer 0"),
        ("unembed/kernel", lambda x: x * 0, "changes nothing"),
    ],
)
def test_the_look_at_every_load_refuses_a_broken_model(
    directory: Path, path: str, change: Any, message: str
) -> None:
    model = load_model(directory)
    with pytest.raises(TaskVecError, match=message):
        check_model("broken", model.decoder, changed(model.params, path, change))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_look_at_every_load_passes_in_every_dtype(directory: Path, dtype: str) -> None:
    assert load_model(directory, dtype).config.dtype == dtype
