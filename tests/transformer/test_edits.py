"""Edits: the same write by a torch hook, finite differences, and what an edit must leave alone."""

# Long because: every kind of edit is held against one torch hook.

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import hooks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import LLAMA, PYTHIA, TINY, random_params
from slow import SLOW

from taskvec_jax.errors import TaskVecError
from taskvec_jax.transformer import edits
from taskvec_jax.transformer.context import attention_context, plain_layout
from taskvec_jax.transformer.decoder import FAMILY_MODULES, Decoder, Override
from taskvec_jax.transformer.edits import SITES
from taskvec_jax.transformer.linear import project

TOKENS = np.array([[3, 17, 88, 5, 29, 64, 8], [90, 2, 2, 41, 77, 13, 99]], np.int32)
LENGTHS = np.array([7, 5], np.int32)
B, T = TOKENS.shape


class Case(NamedTuple):
    """An edit, and in plain words which values it changes: [(row, position)], layers, heads."""

    operation: str
    site: str
    layer: Any
    position: Any
    layers: list[list[int]]  # of each row
    positions: list[list[int]]  # of each row
    head: Any = None
    vector: str = "shared"  # or "row"


ROW_LAYERS, ROW_PLACES = np.array([0, 1]), np.array([6, 2])
CASES = [
    Case("replace", "resid", 1, -1, [[1], [1]], [[6], [4]]),
    Case("add", "resid", ROW_LAYERS, ROW_PLACES, [[0], [1]], [[6], [2]], vector="row"),
    Case("scale", "attn_out", [0, 1], "all", [[0, 1]] * 2, [[*range(T)]] * 2),
    Case("add", "mlp_out", 0, [0, -2], [[0], [0]], [[0, 5], [0, 3]]),
    Case("ablate", "head", 1, "all", [[1], [1]], [[*range(T)]] * 2, head=2),
    Case("replace", "head", 0, ROW_PLACES, [[0], [0]], [[6], [2]], head=[0, 1], vector="row"),
    Case("replace", "attn_out", 1, [1, 3], [[1], [1]], [[1, 3]] * 2),
    Case("ablate", "mlp_out", [1], -1, [[1], [1]], [[6], [4]]),
]


def vector_of(case: Case, config: Any) -> np.ndarray:
    size = config.head_dim if case.site == "head" else config.width
    shape = (size,) if case.vector == "shared" else (B, size)
    return np.random.RandomState(len(case.site)).standard_normal(shape).astype(np.float32)


def edit_of(case: Case, config: Any) -> edits.Edit:
    places = {"layer": case.layer, "position": case.position, "site": case.site, "head": case.head}
    vector = vector_of(case, config)
    if case.operation == "ablate":
        return edits.ablate(**places)
    if case.operation == "scale":
        return edits.scale(-0.7, **places)
    if case.operation == "add":
        return edits.add(vector, scale=1.7, **places)
    return edits.replace(vector, **places)


def by_hand(cases: list[Case], config: Any) -> hooks.Write:
    """The edits of cases, a value at a time."""

    def write(site: str, layer: int, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        for case in (case for case in cases if case.site == site):
            given = vector_of(case, config)
            vector = torch.tensor(np.broadcast_to(given, (B, given.shape[-1])).copy())
            heads = np.ravel(case.head).tolist() if site == "head" else [...]
            for row in range(B):
                if layer not in case.layers[row]:
                    continue
                for position in case.positions[row]:
                    for head in heads:
                        old = value[row, position, head]
                        value[row, position, head] = {
                            "replace": vector[row],
                            "add": old + 1.7 * vector[row],
                            "scale": -0.7 * old,
                            "ablate": 0 * old,
                        }[case.operation]
        return value

    return write


@functools.partial(jax.jit, static_argnums=0)
def edited(decoder: Decoder, params: Any, given: Any) -> jax.Array:
    return decoder.apply(params, TOKENS, given, lengths=LENGTHS)


@pytest.mark.parametrize("family", hooks.BLOCKS)
def test_each_edit_is_what_a_torch_hook_does_alone_and_all_are_together(family):
    reference, model = hooks.pair(family)
    c = model.config
    plain = np.asarray(edited(model.decoder, model.params, ()))
    # Alone: each compiles a program, so some of them only, unless slow tests are asked for.
    for chosen in ([case] for case in (CASES if SLOW else CASES[2::3])):
        want = hooks.logits(reference, c.num_heads, TOKENS, by_hand(chosen, c))
        got = edited(model.decoder, model.params, tuple(edit_of(case, c) for case in chosen))
        hooks.assert_close(got, want)
        assert np.abs(np.asarray(got) - plain).max() > 1e-2  # it does something
    for chosen in (CASES, CASES[::-1])[: 2 if family == "llama" else 1]:
        want = hooks.logits(reference, c.num_heads, TOKENS, by_hand(chosen, c))
        got = edited(model.decoder, model.params, tuple(edit_of(case, c) for case in chosen))
        hooks.assert_close(got, want)


@functools.cache
def small(family: str = "llama") -> tuple[Decoder, Any]:
    config = {"llama": LLAMA, "pythia": PYTHIA}[family]
    return Decoder(config), random_params(config)


def vector(rows: int | None = None, seed: int = 5) -> np.ndarray:
    shape = (LLAMA.width,) if rows is None else (rows, LLAMA.width)
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def test_overrides_and_bare_triples_equal_replace_bit_for_bit():
    decoder, params = small()
    layers, places, vectors = np.array([0, 3]), np.array([5, 1]), vector(B)
    want = decoder.apply(params, TOKENS, edits.replace(vectors, layer=layers, position=places))
    for same in (Override(layers, places, vectors), (layers, places, vectors)):
        np.testing.assert_array_equal(decoder.apply(params, TOKENS, same), want)
        np.testing.assert_array_equal(decoder.apply(params, TOKENS, [same]), want)


def test_edits_are_applied_in_the_order_given():
    decoder, params = small()
    place: dict[str, Any] = {"layer": 2, "position": 3}
    first, second = edits.replace(vector(), **place), edits.scale(2.0, **place)
    doubled = edits.replace(2 * vector(), **place)
    np.testing.assert_allclose(
        decoder.apply(params, TOKENS, [first, second]),
        decoder.apply(params, TOKENS, doubled),
        rtol=1e-5,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        decoder.apply(params, TOKENS, [second, first]),
        decoder.apply(params, TOKENS, first),
        rtol=1e-5,
        atol=1e-5,
    )


class Plain(nn.Module):
    """The decoder with nothing to edit or to read, written anew."""

    config: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        c, family = self.config, FAMILY_MODULES[self.config.family]
        embed = nn.Embed(
            c.vocab_size, c.width, dtype=c.dtype, param_dtype=jnp.dtype(c.dtype), name="embed"
        )
        block, norm = family.Block(c, name="layers"), family.Norm(c, name="final_norm")
        contexts = attention_context(c, plain_layout(tokens.shape[1]))
        x = embed(tokens).astype(c.stream_dtype)
        x = jnp.where(((tokens >= 0) & (tokens < c.vocab_size))[..., None], x, jnp.nan)
        scan = nn.scan(
            lambda block, x, i: (block(x, contexts.of_layer(i)), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=c.num_layers,
        )
        x = norm(scan(block, x, jnp.arange(c.num_layers))[0])
        if not c.tied_unembed:
            return project(c, c.vocab_size, c.unembed_bias)(name="unembed")(x)
        stream = jnp.dtype(c.stream_dtype)
        weights = embed.embedding
        return jnp.einsum(
            "...d,vd->...v", x.astype(c.dtype), weights, preferred_element_type=stream
        )


@pytest.mark.parametrize("name", TINY)
def test_without_an_edit_the_program_is_the_plain_decoders(name):
    config = TINY[name]
    decoder = Decoder(config)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), TOKENS)
    plain = jax.make_jaxpr(Plain(config).apply)(shapes, TOKENS)
    for nothing in (None, (), []):
        mine = jax.make_jaxpr(lambda p, t, none=nothing: decoder.apply(p, t, none))(shapes, TOKENS)
        assert primitives(mine.jaxpr) == primitives(plain.jaxpr)
    written = jax.make_jaxpr(lambda p, t: decoder.apply(p, t, (0, 0, np.zeros(config.width))))
    assert primitives(written(shapes, TOKENS).jaxpr) != primitives(plain.jaxpr)


def primitives(jaxpr: Any) -> list[str]:
    """What a program does, in order, with the shapes of the results; inner programs included."""
    out = []
    for equation in jaxpr.eqns:
        out.append(f"{equation.primitive.name} {[str(v.aval) for v in equation.outvars]}")
        for inner in _inner(equation.params):
            out += primitives(inner)
    return out


def _inner(params: Any) -> list[Any]:
    found = []
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else [value]:
            if hasattr(one, "jaxpr"):
                found.append(one.jaxpr)
            elif hasattr(one, "eqns"):
                found.append(one)
    return found


def test_vmap_over_layers_positions_heads_and_vectors_equals_a_loop():
    decoder, params = small()
    layers, places, heads = jnp.array([0, 4, 2]), jnp.array([-1, 0, 3]), jnp.array([5, 0, 2])
    vectors = {site: jax.random.normal(jax.random.key(1), (3, size_of(site))) for site in SITES}

    @jax.jit
    def run(layer, place, head, vectors):
        given = [
            edits.replace(
                vectors[site],
                layer=layer,
                position=place,
                site=site,
                head=head if site == "head" else None,
            )
            for site in ("head", "mlp_out")
        ]
        given += [
            edits.add(vectors[site], layer=layer, position=place, site=site)
            for site in ("resid", "attn_out")
        ]
        return decoder.apply(params, TOKENS, given, lengths=LENGTHS)

    swept = jax.vmap(run)(layers, places, heads, vectors)
    for i in range(3):
        alone = run(layers[i], places[i], heads[i], {s: v[i] for s, v in vectors.items()})
        np.testing.assert_allclose(swept[i], alone, rtol=1e-5, atol=1e-5)


def size_of(site: str) -> int:
    return LLAMA.head_dim if site == "head" else LLAMA.width


def test_gradients_to_vectors_and_scales_match_finite_differences():
    """At each site on its own, in float64."""
    with jax.enable_x64(True):
        config = dataclasses.replace(LLAMA, dtype="float64", num_layers=2)
        decoder = Decoder(config)
        shapes = jax.eval_shape(decoder.init, jax.random.key(0), TOKENS)
        rng = np.random.RandomState(1)
        params = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape), shapes)
        at = {site: (rng.standard_normal(size_of(site)), np.float64(0.8)) for site in SITES}

        @jax.jit
        def loss(at):
            given = []
            for site, (vector, scale) in at.items():
                where = {"site": site, "head": 3 if site == "head" else None}
                given.append(edits.add(vector, scale=scale, layer=0, position=[2, -1], **where))
                given.append(edits.scale(scale, layer=1, position="all", **where))
            logits = decoder.apply(params, TOKENS[:1], given)
            return jax.nn.logsumexp(logits[0, -1]) - logits[0, -1, 7]

        slopes, step = jax.jit(jax.grad(loss))(at), 1e-5
        for site in SITES:
            vector, scale = at[site]
            for along in ((rng.standard_normal(vector.shape), 0.0), (0 * vector, 1.0)):
                sides = [
                    loss(at | {site: (vector + s * along[0], scale + s * along[1])})
                    for s in (step, -step)
                ]
                slope = jnp.vdot(slopes[site][0], along[0]) + slopes[site][1] * along[1]
                np.testing.assert_allclose(
                    slope, (sides[0] - sides[1]) / (2 * step), rtol=1e-6, atol=1e-9
                )


def test_padding_moves_no_position_that_is_counted_from_the_end():
    decoder, params = small()
    edit = edits.add(vector(), layer=1, position=-1)
    ragged = decoder.apply(params, TOKENS, edit, lengths=LENGTHS)
    for row in range(B):
        alone = decoder.apply(params, TOKENS[row : row + 1, : LENGTHS[row]], edit)
        np.testing.assert_allclose(ragged[row, : LENGTHS[row]], alone[0], rtol=1e-5, atol=1e-5)


BAD = [
    ({"layer": 5}, "edit layer 5 is out of range; allowed: 0 to 4"),
    ({"layer": -1}, "edit layer -1 is out of range"),
    ({"layer": np.array([0, 9])}, "edit layer 9"),
    ({"position": 7}, "edit position 7 is out of range in row 0, which has 7 tokens"),
    ({"position": 5}, "edit position 5 is out of range in row 1, which has 5 tokens"),
    ({"position": -6}, "edit position -6 is out of range in row 1"),
    ({"position": [0, 99]}, "edit position 99"),
    ({"position": np.array([1, 2, 3])}, "one a row"),
    ({"position": "last"}, "whole number"),
    ({"layer": 0.5}, "whole number"),
    ({"layer": []}, "empty"),
    ({"site": "mlp"}, "site is 'mlp'; allowed: resid, attn_out, mlp_out, head"),
    ({"site": "head"}, "takes head="),
    ({"head": 1}, "takes head="),
    ({"site": "head", "head": 6, "vector": np.zeros(14)}, "edit head 6 is out of range"),
    ({"site": "head", "head": 1}, "the size of a head"),
    ({"vector": np.zeros(41)}, "edit vector has shape .41,.; allowed: .42,., .2, 42."),
    ({"vector": np.zeros((3, 42))}, "width of this model"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_bad_edit_is_refused_by_name(change, message):
    decoder, params = small()
    choice = {"vector": vector(), "layer": 0, "position": 0} | change
    if change == {"site": "head", "head": 1}:
        choice["vector"] = np.zeros(13)
    with pytest.raises(TaskVecError, match=message):
        decoder.apply(params, TOKENS, edits.replace(**choice), lengths=LENGTHS)


def test_a_traced_edit_out_of_range_turns_its_row_into_nan():
    decoder, params = small()

    @jax.jit
    def run(layer, position, head):
        edit = edits.ablate(layer=layer, position=position, site="head", head=head)
        return decoder.apply(params, TOKENS, edit, lengths=LENGTHS)

    assert np.isfinite(run(4, -5, 5)).all()
    for bad in ((5, 0, 0), (-1, 0, 0), (0, 7, 0), (0, -8, 0), (0, 0, 6), (0, 0, -1)):
        assert np.isnan(run(*bad)).all(), bad
    beyond = run(0, 5, 0)  # past the end of row 1 alone
    assert np.isfinite(beyond[0]).all()
    assert np.isnan(beyond[1]).all()


def test_edits_are_pytrees_whose_operation_and_site_are_static():
    edit = edits.add(vector(), layer=[1, 2], position="all", scale=3.0, site="attn_out")
    leaves, structure = jax.tree.flatten(edit)
    assert len(leaves) == 3  # layer, vector, scale
    assert jax.tree.unflatten(structure, leaves).site == "attn_out"
    assert structure != jax.tree.structure(dataclasses.replace(edit, site="mlp_out"))


def test_a_decoder_outside_of_jit_traces_once_for_each_shape(monkeypatch):
    decoder, params = small()
    traced = []
    run = Decoder._run
    monkeypatch.setattr(Decoder, "_run", lambda *a, **k: traced.append(1) or run(*a, **k))
    tokens = TOKENS[:, :3]
    for layer in range(3):
        decoder.apply(params, tokens, edits.replace(vector(), layer=layer, position=layer - 1))
        decoder.apply(params, tokens, np.array([2, layer]), method="read")
        decoder.apply(params, tokens, np.array([2, 1]), Override(layer, 0, vector()), method="read")
    assert len(traced) == 3
