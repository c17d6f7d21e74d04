"""What tests/test_sharding.py runs in a process of its own, because devices are simulated there.

    python tests/mesh_cases.py          prints one JSON object: what was measured

Every family on a (data, model) layout of 8 simulated CPU devices, against one device, and with
TASKVEC_SLOW_TESTS=1 on every layout; the collectives of compiled programs; restored and converted
shards; training and learned vectors.
"""

# Long because: all cases run in one process with 8 simulated devices, which is slow to start.
from __future__ import annotations

import os

from slow import QUICK, SLOW

DEVICES = 8
if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = (  # what is looked at is decided before LLVM: let it be quick
        f"--xla_force_host_platform_device_count={DEVICES} {QUICK}"
    )

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from conftest import LLAMA, PYTHIA, logits_of, random_params

from convert import export
from experiments.bench.mesh_plan import compile_sweep
from experiments.small_pythia import training
from taskvec_jax.distributed import plan, sharding
from taskvec_jax.distributed.processes import to_host
from taskvec_jax.distributed.sharding import MeshShape
from taskvec_jax.models import checkpoint, generating, hashing, loading
from taskvec_jax.models.model import Model
from taskvec_jax.prompting.tokenizer import Tokenizer
from taskvec_jax.transformer import edits
from taskvec_jax.transformer.config import DecoderConfig
from taskvec_jax.transformer.decoder import Decoder, flatten, unflatten
from taskvec_jax.transformer.quantization import quantize
from taskvec_jax.vectors import examples as examples_of
from taskvec_jax.vectors import (
    head_ablation,
    head_map,
    learning,
    necessity,
    position_patching,
    sweep,
)

LAYOUTS = tuple(MeshShape(DEVICES // m, m) for m in (1, 2, 4, 8))
_EVEN = {"vocab_size": 136, "mlp_width": 56, "num_layers": 2, "width": 40, "num_heads": 8}
CONFIGS: dict[str, DecoderConfig] = {
    "llama": dataclasses.replace(LLAMA, **_EVEN, num_kv_heads=8, tied_unembed=False),
    # Fewer key/value heads than devices on some layouts.
    "llama grouped": dataclasses.replace(LLAMA, **_EVEN, num_kv_heads=2),
    # Like LLaMA 30B's 52 over 8: heads lie on 4 devices, key/value heads on 2, the MLP on 8.
    "llama halved": dataclasses.replace(
        LLAMA, **_EVEN | {"num_heads": 12, "vocab_size": 132}, num_kv_heads=2
    ),
    # Heads would lie on 2 of 8, which is too few, and the vocabulary on none: D is split instead.
    "llama uneven": dataclasses.replace(
        LLAMA, **_EVEN | {"num_heads": 6, "vocab_size": 131}, num_kv_heads=3
    ),
    "pythia": dataclasses.replace(PYTHIA, **_EVEN, num_kv_heads=8),
    "gptj": dataclasses.replace(
        PYTHIA, **_EVEN, num_kv_heads=8, family="gptj", attention_bias=False, unembed_bias=True
    ),
}
if SLOW:
    CONFIGS |= {
        "qwen2": dataclasses.replace(CONFIGS["llama grouped"], family="qwen2"),
        "olmo2": dataclasses.replace(CONFIGS["llama"], family="olmo2"),  # norms over all heads
        "gemma3": dataclasses.replace(
            CONFIGS["llama grouped"],
            family="gemma3",
            sliding_window=4,
            window_layers=(True, False),
            window_rope_base=500.0,
        ),
        "gpt2": dataclasses.replace(
            CONFIGS["pythia"], family="gpt2", rope_dim=0, learned_positions=True
        ),
    }
# The layouts that each is tried on; usually few, because a program is compiled for each.
MESHES = {
    "llama": LAYOUTS if SLOW else (),
    "llama grouped": LAYOUTS if SLOW else (MeshShape(2, 4),),
    "llama halved": (MeshShape(1, 8),),
    "llama uneven": (MeshShape(1, 8),) if SLOW else (),
    "pythia": LAYOUTS if SLOW else (MeshShape(4, 2),),
    "gptj": LAYOUTS if SLOW else (),
    **dict.fromkeys(("qwen2", "olmo2", "gemma3", "gpt2"), LAYOUTS),
}
COMPILED = (  # the programs whose collectives are counted
    ("llama", MeshShape(1, 8)),
    ("pythia", MeshShape(2, 4)),
    *(
        [
            ("llama uneven", MeshShape(1, 8)),
            ("llama", MeshShape(8, 1)),
            ("llama grouped", MeshShape(2, 4)),
            ("llama halved", MeshShape(1, 8)),
            ("gptj", MeshShape(4, 2)),
        ]
        if SLOW
        else []
    ),
)
COMPILED_LAYERS = 3
ROWS, TOKENS = 8, 8


def place(config: DecoderConfig, params: Any, mesh: Any) -> Any:
    """Parameters on a mesh."""
    leaves = flatten(params)
    shardings = sharding.placement(config, {p: leaf.shape for p, leaf in leaves.items()}, mesh)
    return unflatten({p: jax.device_put(leaf, shardings[p]) for p, leaf in leaves.items()})


def measured(config: DecoderConfig, params: Any, mesh: Any) -> dict[str, np.ndarray]:
    """The decoder and both programs of the sweep, on prompts that are the same everywhere."""
    decoder = Decoder(config)
    model = Model("m", decoder, place(config, params, mesh), None, config, "", mesh)  # type: ignore
    rng = np.random.RandomState(1)
    tokens = rng.randint(0, config.vocab_size, (ROWS, TOKENS)).astype(np.int32)
    rows = [[text.tolist(), [*text.tolist()[:-2], 3]] for text in tokens]
    residuals, answers = sweep.read_texts(model, rows, ROWS)
    # All copies from the first layer on: one loop to compile; compile_sweep has the wavefront.
    queries, layers = [text[:3].tolist() for text in tokens], np.arange(config.num_layers)
    swept = sweep.inject_vectors(model, queries, residuals[:, 0], layers, ROWS)
    return {
        "logits": full_logits(model, tokens),  # [B, T, V]
        "residuals": residuals,
        "read tokens": answers.tokens,
        "read logits": answers.logits,
        "swept tokens": swept.tokens,
        "swept logits": swept.logits,
    }


def full_logits(model: Model, tokens: np.ndarray) -> np.ndarray:
    """[B, T, V], from the decoder itself."""
    placed = sharding.put_rows(model.mesh, tokens)
    return to_host(logits_of(model.decoder, model.params, placed))


def int8() -> dict[str, float]:
    """Config -> how far its int8 form on a mesh is from that on one device: logits, relative."""
    out = {}
    tokens = np.random.RandomState(2).randint(0, 131, (ROWS, TOKENS)).astype(np.int32)
    tried = [("pythia", MeshShape(2, 4)), *[("llama halved", MeshShape(1, 8))] * SLOW]
    for name, shape in tried:
        config, params = quantize(CONFIGS[name], random_params(CONFIGS[name]))
        logits = {}
        for mesh in (None, sharding.make_mesh(shape)):
            placed = place(config, params, mesh)
            model = Model("m", Decoder(config), placed, None, config, "", mesh)  # type: ignore
            logits[mesh] = full_logits(model, tokens)
        alone, split = logits.values()
        out[name] = difference({"": split}, {"": alone})[""]
    return out


def difference(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest difference, relative to the largest value; of tokens, how many differ."""
    return {
        name: float(np.sum(got[name] != want[name]))
        if name.endswith("tokens")
        else float(np.max(np.abs(got[name] - want[name])) / np.max(np.abs(want[name])))
        for name in want
    }


def agreement() -> dict[str, dict[str, dict[str, float]]]:
    """Config -> layout -> how far it is from one device."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for name, config in CONFIGS.items():
        if not MESHES[name]:
            continue
        params = random_params(config)
        alone = measured(config, params, None)
        out[name] = {
            str(shape): difference(measured(config, params, sharding.make_mesh(shape)), alone)
            for shape in MESHES[name]
        }
    return out


def layer_collectives() -> dict[str, dict[str, Any]]:
    """Config -> layout -> the two programs' collectives."""
    return {
        f"{name} {shape}": {
            kind: [program.loops, program.outside]
            for kind, program in compile_sweep(
                dataclasses.replace(CONFIGS[name], num_layers=COMPILED_LAYERS),
                sharding.make_mesh(shape),
                DEVICES,
            ).items()
        }
        for name, shape in COMPILED
    }


def shards() -> dict[str, Any]:
    """What is restored and converted straight to shards, against what was saved."""
    out: dict[str, Any] = {}
    config = CONFIGS["llama halved"]
    params = random_params(config)
    mesh = sharding.make_mesh(MeshShape(1, 8))
    placed = place(config, params, mesh)
    out["hash"] = [hashing.hash_params(params), hashing.hash_params(placed)]
    usual, hashing.SLICE_BYTES = hashing.SLICE_BYTES, 600  # so that every leaf is cut
    out["hash"].append(hashing.hash_params(placed))
    hashing.SLICE_BYTES = usual
    out["share"] = [
        sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed)),
        plan.share_bytes(config, config.dtype, 8),
    ]
    vocab = {f"w{i}": i for i in range(config.vocab_size)}
    tokenizer = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, "w0")))
    with tempfile.TemporaryDirectory() as scratch:
        restored, converted = Path(scratch, "restored"), Path(scratch, "converted")
        checkpoint.save(restored, config, placed, tokenizer, {"weights_sha256": out["hash"][0]})
        export.export(config, params, tokenizer, converted)
        for path in (restored, converted):
            model = loading.load_model(path, mesh=mesh)
            leaves, wanted = flatten(model.params), flatten(placed)
            out[path.name] = {
                "same": hashing.hash_params(model.params) == model.weights_sha256 == out["hash"][0],
                "specs": all(
                    leaf.sharding.is_equivalent_to(wanted[name].sharding, leaf.ndim)
                    for name, leaf in leaves.items()
                ),
            }
            small = loading.load_model(path, mesh=mesh, quantization="int8")
            out[path.name]["int8"] = hashing.hash_params(small.params)
    out["int8"] = hashing.hash_params(quantize(config, params)[1])
    return out


def train_batch(step: int) -> training.Batch:
    """Random rows, each with an answer after its last token."""
    rng = np.random.RandomState(step)
    tokens, query = (rng.randint(0, 131, (ROWS, n)).astype(np.int32) for n in (TOKENS, 3))
    weights = np.zeros(tokens.shape, np.float32)
    weights[:, -1] = 1
    ends = [np.full(ROWS, n - 1, np.int32) for n in (TOKENS, 3)]
    answers = np.roll(tokens, -1, axis=1)
    return training.Batch(tokens, answers, weights, ends[0], query, ends[1], tokens[:, 0])


def trained(config: DecoderConfig, mesh: Any, scratch: Path) -> tuple[dict[str, np.ndarray], bool]:
    """Losses of four steps, and of the last two again from a state that was saved; and whether
    all parameters lie where they should after that."""
    settings = training.Training(steps=4, warmup=1, vector_loss=0.5, vector_layer=0)
    fresh = training.initial_state(config, settings)
    losses: list[float] = []

    def done(state: training.State, measures: training.Measures) -> None:
        losses.append(float(measures.loss))
        if state.step == 2:
            training.save_state(scratch, state)

    training.run(config, settings, fresh, train_batch, done, mesh)
    like = training.initial_state(config, settings)
    restored = training.restore_state(scratch, like)
    last = training.run(config, settings, restored, train_batch, done, mesh)
    wanted = flatten(place(config, like.params, mesh))
    kept = all(
        leaf.sharding.is_equivalent_to(wanted[path].sharding, leaf.ndim)
        for path, leaf in flatten(last.params).items()
    )
    return {"losses": np.array(losses)}, kept


def learned(config: DecoderConfig, mesh: Any) -> dict[str, np.ndarray]:
    """Vectors learned at two positions by steps of 5 rows, which no number of devices divides."""
    params = place(config, random_params(config), mesh)
    model = Model("m", Decoder(config), params, None, config, "", mesh)  # type: ignore
    rng = np.random.RandomState(2)
    queries = [rng.randint(0, 131, n).tolist() for n in (3, 4, 2, 3, 4, 2, 3)]
    examples = examples_of.make_examples(queries, [[i] for i in range(7)])
    found = learning.learn_vector(
        model,
        examples,
        examples,
        lambda said: said == np.arange(7)[:, None],
        rng.standard_normal((2, 2, config.width)).astype(np.float32),
        np.ones((2, 2), np.float32),
        [0, 1],
        learning.Recipe(steps=3, batch_size=5, check_every=3),
    )
    return {"train losses": found.losses, "dev losses": found.dev_losses}


def gradients() -> dict[str, Any]:
    """How far losses of training and of learned vectors are from one device's."""
    config = dataclasses.replace(CONFIGS["pythia"], num_heads=6, num_kv_heads=6)  # on 2 of 4
    mesh = sharding.make_mesh(MeshShape(2, 4))
    with tempfile.TemporaryDirectory() as scratch:
        alone, _ = trained(config, None, Path(scratch, "state"))
        losses, kept = trained(config, mesh, Path(scratch, "state"))
    differences = difference(losses, alone)
    differences |= difference(learned(config, mesh), learned(config, None))
    return {"differences": differences, "placed": kept}


def generated() -> dict[str, float]:
    """Config -> how many tokens that are generated on a mesh are not those of one device."""
    out = {}
    prompts = [[5, 9, 2], [7], [11, 3, 8, 20, 4], [2, 2]]
    edit = edits.add(np.ones(40, np.float32), layer=1, position=-1, site="attn_out")
    for name, shape in (("llama grouped", MeshShape(2, 4)),):
        config = CONFIGS[name]
        params, ids = random_params(config), {}
        for mesh in (None, sharding.make_mesh(shape)):
            ids[mesh] = generating.generate(
                config,
                place(config, params, mesh),
                prompts,
                max_new_tokens=6,
                edits=edit,
                mesh=mesh,
            )
        alone, split = ids.values()
        out[name] = float(np.sum(np.array(alone) != np.array(split)))
    return out


def interventions() -> dict[str, float]:
    """The map of heads, their ablation, the task cut from the query, and states at positions: how
    far a mesh is from one device."""
    config = CONFIGS["llama grouped"]
    params, rng = random_params(config), np.random.RandomState(6)
    texts = [rng.randint(0, config.vocab_size, TOKENS).tolist() for _ in range(ROWS)]
    outputs = rng.standard_normal((2, config.num_heads, config.head_dim)).astype(np.float32)
    states = rng.standard_normal((ROWS, 2, config.width)).astype(np.float32)
    sets = np.ones((1, 2, config.num_heads), bool)
    found = []
    for mesh in (None, sharding.make_mesh(MeshShape(2, 4))):
        placed = place(config, params, mesh)
        model = Model("m", Decoder(config), placed, None, config, "", mesh)  # type: ignore
        heads = head_map.map_heads(model, texts, [3] * ROWS, outputs, ROWS)
        cut = necessity.cut_task(model, texts, [5] * ROWS, states, ROWS)
        at = [states[:2]] * ROWS  # of two positions, two layers each
        patched = position_patching.patch_windows(
            model, texts, [[2, 6]] * ROWS, at, [(0, 1), (0, 2)], ROWS
        )
        found.append(
            {
                "heads": heads.patched,
                "cut tokens": np.concatenate([cut.no_attention, cut.other_state, cut.both]),
                "patched tokens": patched,
                "ablated tokens": head_ablation.ablate_heads(model, texts, sets, outputs, ROWS),
            }
        )
    return difference(found[1], found[0])


if __name__ == "__main__":
    parts = {
        "generated": generated,
        "interventions": interventions,
        "agreement": agreement,
        "int8": int8,
        "collectives": layer_collectives,
        "shards": shards,
        **({"gradients": gradients} if SLOW else {}),
    }
    found = {}
    for name, part in parts.items():
        started = time.monotonic()
        found[name] = part()
        print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    print(json.dumps(found))
