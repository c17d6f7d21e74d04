"""Results of every experiment for any number of tasks, made up without a model.

Their form is that of real results: means, comparisons and what follows from the tasks is computed
by the experiments' own functions, and a test holds the names in them against those of a real run.
"""

# Long because: one function for each experiment's result.

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments import (
    bijections,
    cross_models,
    function_vectors,
    main_results,
    necessity,
    several_vectors,
    task_geometry,
)
from experiments.positions import CONDITIONS, UNTOUCHED
from experiments.published.claims import FILE, claims_about
from taskvec_jax.evaluation.controls import CONTROLS
from taskvec_jax.evaluation.intervals import means
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.evaluation.statistics import Outcomes, accuracy, compare
from taskvec_jax.evaluation.summary import summarise
from taskvec_jax.tasks import TASKS

PROMPTS, LAYERS, HEADS = 6, 30, 9
MODEL = "smollm2-135m-instruct"
WORDS = "red blue green black white brown".split()


def names_of(count: int) -> dict[str, str]:
    """Tasks and their categories: the project's own, then invented ones with long names."""
    found = {name: task.category for name, task in TASKS.items()}
    for i in range(len(found), count):
        category = ("abstractive", "extractive")[i % 2]
        found[f"{category}_adjective_or_verb_{i}_alphabetically_first"] = category
    return dict(list(found.items())[:count])


class Maker:
    """Makes results; the same ones for the same number of tasks."""

    def __init__(self, count: int, model: str = MODEL, seed: int = 0) -> None:
        self.rng = np.random.RandomState(count)
        self.categories = names_of(count)
        self.model, self.seed = model, seed

    def hits(self, share: float) -> list[int]:
        return (self.rng.rand(PROMPTS) < share).astype(int).tolist()

    def score(self, share: float, **more: Any) -> dict[str, Any]:
        return vars(accuracy(self.hits(share), WORDS)) | more

    def condition(self, share: float) -> dict[str, Any]:
        """A score with its answers and its layer."""
        correct = self.hits(share)
        chosen = {"layer": int(self.rng.randint(LAYERS)), "dev_accuracy": share}
        return vars(accuracy(correct, WORDS)) | {"correct": correct} | chosen

    def curve(self, best: float) -> list[float]:
        """A peak after two thirds of the layers, up to `best`."""
        at = np.arange(LAYERS)
        peak = np.exp(-(((at - 20 - self.rng.randint(-3, 3)) / 3) ** 2))
        return np.round(np.clip(0.05 + (best - 0.05) * peak, 0, 1), 2).tolist()

    def result(self, experiment: str, payload: dict[str, Any], **settings: Any) -> dict[str, Any]:
        """As `Study.result` puts it together."""
        plain = dataclasses.asdict(Settings(num_prompts=50, seed=self.seed))
        run = {k: v for k, v in plain.items() if k != "batch_size"} | {"template": "paper"}
        about = {
            "versions": {"python": "3.11", "jax": "0.10"},
            "device": {"platform": "cpu", "kind": "cpu", "count": 1, "mesh": "data:1,model:1"},
            "source": {"source": "synthetic"},
            "dtype": "float32",
            "matmul_precision": "default",
            "seed": self.seed,
            "weights_sha256": "0" * 64,
            "tokenizer_sha256": "1" * 64,
            "command": f"python -m experiments.{experiment} --out=/home/someone/results/run",
            "date": "2026-11-26",
            "commit": "0123456789ab",
            "seconds": 1.5,
        }
        return json.loads(
            json.dumps(
                {
                    "experiment": experiment,
                    "model": self.model,
                    "revision": None,
                    "dtype": "float32",
                    "quantization": "none",
                    "weights_sha256": "0" * 64,
                    "run": {"model_key": self.model, "short_num_demonstrations": 4}
                    | {"task_data": None, "task_file": None}
                    | run,
                    "categories": self.categories,
                    "settings": {**plain, "tasks": list(self.categories), **settings}
                    | {"task_data": None, "task_file": None, "left_out": {}},
                    "provenance": about,
                    "vectors": {},
                    **payload,
                },
                default=int,
            )
        )

    def task(self, name: str) -> dict[str, Any]:
        """`ControlledResult.to_dict` of a task."""
        able = self.rng.rand() < 0.7
        icl = self.rng.uniform(0.6, 1) if able else 0.05
        vector = icl * self.rng.uniform(0.6, 1)
        shares = {"baseline": 0.05, "icl": icl, "task_vector": vector}
        shares |= dict.fromkeys(CONTROLS, 0.1) | {"wrong_labels": vector / 2}
        columns, scores = {}, {}
        for column, share in shares.items():
            correct = self.hits(share)
            columns[column] = {
                "correct": correct,
                "correct_full": correct,
                "correct_paper": correct,
                "predicted": [
                    w if right else "something else"
                    for w, right in zip(WORDS, correct, strict=True)
                ],
                "layer": 20 if column not in ("baseline", "icl", "best_constant", "copy") else None,
            }
            if column not in ("best_constant", "copy"):
                columns[column] |= {
                    "logprob": (-self.rng.rand(PROMPTS)).tolist(),
                    "rank": self.rng.randint(0, 9, PROMPTS).tolist(),
                    "logit_difference": self.rng.randn(PROMPTS).tolist(),
                }
            scores[column] = vars(accuracy(correct, WORDS))
        curve = self.curve(vector)
        return {
            "category": self.categories[name],
            "match": "exact",
            "rule": "full",
            **{column: scores[column] for column in ("baseline", "icl", "task_vector", "random")},
            "best_layer": int(np.argmax(curve)),
            "dev_accuracy": max(curve),
            "dev_accuracy_by_layer": curve,
            "dev_graded_by_layer": {"logprob": curve, "logit_difference": curve},
            "dev_icl": icl,
            "dev_baseline": 0.05,
            "icl_able": able,
            "num_pairs": 90,
            "num_all_pairs": 100,
            "leading_space": True,
            "shared_queries": False,
            "outcomes": {
                "queries": WORDS,
                "answers": [[word] for word in WORDS],
                "prompts": [f"example:{word}->" for word in WORDS],
                **columns,
            },
            "warnings": [],
            "controls": {control: scores[control] for control in CONTROLS},
            "icl_wrong_labels": scores["wrong_labels"],
            "wrong_label_share": 0.95,
            "test_accuracy_by_layer": curve,
            "test_graded_by_layer": {"logprob": curve, "logit_difference": curve},
            "other_tasks": {
                other: {"dev_accuracy": 0.2, "layer": 20, "related": False}
                for other in list(self.categories)[:3]
                if other != name
            },
        }

    def main_results(self) -> dict[str, Any]:
        tasks = {name: self.task(name) for name in self.categories}
        found = main_results.assemble(self.model, tasks, self.seed)
        return self.result("main_results", {**found, "data": {}})

    def layer_sweep(self) -> dict[str, Any]:
        kept = [name for name in self.task(next(iter(self.categories))) if name != "controls"]
        every = {name: self.task(name) for name in self.categories}
        tasks = {name: {k: task[k] for k in kept[:20]} for name, task in every.items()}
        found = summarise(tasks, (), seed=self.seed)
        return self.result("layer_sweep", {"tasks": tasks, "data": {}, **found})

    def conflicting_tasks(self) -> dict[str, Any]:
        names = list(self.categories)
        first = [(a, b) for a, b in zip(names[::2], names[1::2], strict=False)]
        every = (
            [(a, b) for a in names for b in names[:4] if a != b] if len(names) > 18 else first[:5]
        )
        pairs = {f"{a}-{b}": self.pair(a, b) for a, b in every}
        notes = [f"x{i} / y{i} is left out: no task x{i} in this run" for i in range(6)]
        payload = {"pairs": pairs, "notes": notes, "published_model": "LLaMA 13B"}
        return self.result("conflicting_tasks", payload, num_demonstrations=4)

    def pair(self, a: str, b: str) -> dict[str, Any]:
        def rates(of_a: float) -> dict[str, Any]:
            drawn = self.rng.rand(PROMPTS)
            right_a, right_b = drawn < of_a, drawn > of_a + 0.15
            split = {"a": right_a, "b": right_b, "neither": ~(right_a | right_b)}
            return {kind: vars(accuracy(values)) for kind, values in split.items()}

        return {
            "a": a,
            "b": b,
            "third": None,
            "plain": rates(0.8),
            **{kind: rates(0.3) for kind in ("theta", "random", "theta_of_a")},
            "b_rate_above": {"against": "random", "difference": 0.3, "p": 0.01},
            "examples": [
                {"query": "o", "answer_a": "p", "answer_b": "O", "said": "O"} for _ in range(4)
            ],
            "layer": 20,
            "num_queries": 4,
            "num_shared_queries": 25,
            "published": None,
        }

    def task_geometry(self) -> dict[str, Any]:
        centres = self.rng.randn(len(self.categories), 1, 8, 6)
        thetas = [centre + 0.4 * self.rng.randn(5, 8, 6) for centre in centres]
        layer, names = 5, list(self.categories)
        texts = [f"{name} {i}" for name in names for i in range(5)]
        found = task_geometry.describe(
            self.categories, thetas, layer, self.seed, texts, [names[:3]]
        )
        shared = {"layer": layer, "num_layers": 8, "thetas_of_each_task": 5, "tasks": names}
        return self.result("task_geometry", shared | found)

    def vocabulary_projection(self) -> dict[str, Any]:
        ranks = (10 ** (4.5 - 4 * np.arange(LAYERS) / LAYERS)).tolist()
        task = {
            "best_layer": 20,
            "layers": [20, 21, 22, 23, 24],
            "words": [[*WORDS, "unbelievable", "constitutional", "Übersetzung"]] * 5,
            "dummy_answer_rank": ranks,
            "query_answer_rank": ranks,
        }
        payload = {
            "tasks": dict.fromkeys(self.categories, task),
            "num_layers": LAYERS,
            "vocab_size": 49152,
            "published_model": None,
            "published": {"LLaMA 13B": {"algorithmic_prev_letter": WORDS}},
        }
        return self.result("vocabulary_projection", payload)

    def bijections(self) -> dict[str, Any]:
        pairs = {}
        for name in [*bijections.SOURCES][: max(2, len(self.categories) // 3)]:
            ways = {
                w: self.task(next(iter(self.categories))) for w in ("forward", "backward", "both")
            }
            ways["both"]["by_direction"] = {
                way: {"icl": self.score(0.7), "task_vector": self.score(0.3)}
                for way in ("forward", "backward")
            }
            pairs[name] = ways
        notes = [f"{name} is left out: no task {name} in this run" for name in "pqrstu"]
        return self.result("bijections", {"pairs": pairs, "notes": notes})

    def dose(self) -> dict[str, Any]:
        def task() -> dict[str, Any]:
            return {
                "demonstrations": {
                    str(count): {
                        "baseline": self.condition(0.1),
                        "icl": self.score(0.8),
                        "task_vector": self.condition(0.2 + 0.03 * count),
                    }
                    for count in (1, 2, 3, 5, 10, 20)
                },
                "dummy_queries": {str(c): self.condition(0.6) for c in (1, 2, 4, 8)},
                "added": {str(c): self.condition(0.5) for c in (0.25, 0.5, 1.0, 2.0, 4.0)},
                "averaged_over_prompts": {str(c): self.condition(0.7) for c in (1, 2, 5, 10, 50)},
                "replaced": self.condition(0.6),
            }

        payload = {"tasks": {name: task() for name in self.categories}, "notes": []}
        return self.result("dose", payload)

    def patch_map(self) -> dict[str, Any]:
        places = (
            *("prefix:prefix", "query last:query last", "arrow:arrow"),
            *("last arrow:arrow", "last answer:arrow"),
        )

        def task() -> dict[str, Any]:
            return {
                "positions": {
                    place: {
                        "accuracy": self.curve(0.9 - 0.15 * i),
                        "kl": self.curve(0.9 - 0.1 * i),
                        "layer": 20,
                        "test": self.score(0.6),
                    }
                    for i, place in enumerate(places)
                },
                "layers": {
                    "accuracy": [self.curve(0.1 * i) for i in range(8)],
                    "read_layers": list(range(0, LAYERS, 4)),
                    "best": [20, 20],
                    "test": self.score(0.6),
                },
            }

        payload = {"tasks": {name: task() for name in self.categories}, "num_layers": LAYERS}
        return self.result("patch_map", payload)

    def portability(self) -> dict[str, Any]:
        templates = ["example:x->y", "x=y", "Q:x A:y", "Input:x Output:y"]

        def task() -> dict[str, Any]:
            return {
                "task_vector": [
                    [self.condition(0.8 if i == j else 0.4) for j in range(4)] for i in range(4)
                ],
                "icl": [self.score(0.9) for _ in templates],
                "icl_able": [True] * 4,
                "zero_shot": [self.condition(0.1) for _ in templates],
                "num_pairs": 90,
            }

        tasks = {name: task() for name in self.categories}
        return self.result("portability", {"templates": templates, "tasks": tasks, "notes": []})

    def necessity(self) -> dict[str, Any]:
        def task() -> dict[str, Any]:
            falling = [self.hits(0.8 - 0.02 * layer) for layer in range(LAYERS)]
            rising = falling[::-1]
            correct = {
                "baseline": self.hits(0.1),
                "icl": self.hits(0.8),
                "other_icl": self.hits(0.1),
            }
            correct |= {"no_attention": rising, "other_state": falling, "both": falling}
            found = {"icl_able": True, "queries": WORDS, "correct": correct}
            return found | {"crossings": necessity.crossings(necessity.curves_of(found))}

        tasks = {name: task() for name in self.categories}
        every = necessity.summary(list(tasks.values()), self.seed)
        payload = {"tasks": tasks, "mean": {"icl_able": every, "all": every}}
        return self.result("necessity", {**payload, "num_layers": LAYERS, "notes": []})

    def scored(self, columns: dict[str, float]) -> dict[str, Any]:
        """Scores and outcomes of a task."""
        correct = {name: self.hits(share) for name, share in columns.items()}
        return {
            "scores": {
                name: {**vars(accuracy(values)), "layer": 12} for name, values in correct.items()
            },
            "outcomes": {"queries": WORDS, "correct": correct},
        }

    def function_vectors(self) -> dict[str, Any]:
        columns = {
            "baseline": 0.1,
            "icl": 0.9,
            "shuffled_icl": 0.3,
            "function_vector": 0.6,
            "random_heads": 0.1,
            "random": 0.1,
            "other_tasks": 0.2,
            "task_vector": 0.7,
            "function_vector_replaced": 0.2,
            "function_vector_shuffled": 0.6,
            "task_vector_shuffled": 0.5,
        }

        def task() -> dict[str, Any]:
            return {
                "aie": (0.02 * self.rng.randn(LAYERS, HEADS)).tolist(),
                "shuffled_probability": 0.2,
                "shared_queries": False,
                "flops": {"one_pass": 1e12, "loop": 2e14},
                "heads": [[20, 3], [18, 2]],
                "dev_accuracy_by_size": {"1": 0.4, "3": 0.5},
                "accuracy_by_layer": {
                    k: self.curve(0.6) for k in ("added", "replaced", "shuffled")
                },
                "cosine_to_theta": self.curve(0.6),
                **self.scored(columns),
            }

        tasks = {name: task() for name in self.categories}
        outcomes = {
            name: Outcomes(t["outcomes"]["queries"], t["outcomes"]["correct"])
            for name, t in tasks.items()
        }
        payload = {
            "tasks": tasks,
            **function_vectors.summary(outcomes, self.seed),
            "shared_heads": function_vectors.shared_heads({k: t["aie"] for k, t in tasks.items()}),
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "notes": [],
        }
        return self.result("function_vectors", payload)

    def head_ablation(self) -> dict[str, Any]:
        sizes, sets = [3, 14, 54], ("function_vector", "induction", "induction_only", "random")
        columns = {"icl": 0.9} | {
            f"{name} {size}": 0.8 - 0.01 * size * (name != "random")
            for size in sizes
            for name in sets
        }
        tasks = {
            name: self.scored(columns)["outcomes"] | {"common": [1, 4, 20]}
            for name in self.categories
        }
        outcomes = [Outcomes(t["queries"], t["correct"]) for t in tasks.values()]
        payload = {
            "tasks": tasks,
            "sizes": sizes,
            "induction_scores": self.rng.rand(LAYERS, HEADS).tolist(),
            "mean": {k: v._asdict() for k, v in means(outcomes, list(columns), 0).items()},
            "against_function_vector": {
                name: compare(outcomes, f"{name} 54", "function_vector 54")._asdict()
                for name in sets[1:]
            },
            "num_heads": LAYERS * HEADS,
            "notes": [],
        }
        return self.result("head_ablation", payload)

    def positions(self) -> dict[str, Any]:
        names = [condition.name for condition in CONDITIONS]
        columns = dict.fromkeys(names, 0.5) | {"icl": 0.9}
        columns |= dict.fromkeys(UNTOUCHED.values(), 0.2)
        tasks: dict[str, dict[str, Any]] = {
            name: self.scored(columns)
            | {"dev_accuracy_by_layer": {k: self.curve(0.7) for k in names}}
            for name in self.categories
        }
        outcomes = [
            Outcomes(t["outcomes"]["queries"], t["outcomes"]["correct"]) for t in tasks.values()
        ]
        payload = {
            "tasks": tasks,
            "mean": {k: v._asdict() for k, v in means(outcomes, list(columns), 0).items()},
            "one_against_outputs": compare(
                outcomes, "arrow, shuffled", "outputs, shuffled"
            )._asdict(),
            "num_layers": LAYERS,
            "window": 9,
            "notes": [],
        }
        return self.result("positions", payload)

    def several_vectors(self) -> dict[str, Any]:
        columns = {
            several_vectors.column(way, count): 0.3 + 0.1 * count
            for count in range(4)
            for way in ("base", "one", "many")
            if count or way != "many"
        }
        tasks = {name: self.scored(columns) for name in [*self.categories, "mixed_a_b"]}
        plain = [task for name, task in tasks.items() if name != "mixed_a_b"]
        payload = {
            "tasks": tasks,
            "mixes": ["mixed_a_b"],
            "mean": several_vectors.summary(plain, 0),
            "mean_of_mixes": several_vectors.summary([tasks["mixed_a_b"]], 0),
            "counts": [0, 1, 2, 3],
            "notes": [],
        }
        return self.result("several_vectors", payload)

    def learned_task_vector(self, every: int = 3) -> dict[str, Any]:
        def task() -> dict[str, Any]:
            layers = list(range(0, LAYERS, every))
            return {
                "layers": layers,
                "dealt": False,
                **{
                    key: [self.score(share) for _ in layers]
                    for key, share in (
                        *(("extracted", 0.4), ("mean_theta", 0.3)),
                        *(("learned", 0.9), ("control", 0.2)),
                    )
                },
                "selectivity": [0.7] * len(layers),
                "baseline": self.score(0.1),
                "icl": self.score(0.9),
                "cosine": self.rng.rand(len(layers)).tolist(),
                "norm_ratio": self.rng.rand(len(layers)).tolist(),
                "learned_layer": 12,
                "extracted_layer": 20,
            }

        payload = {
            "recipe": {"num_positions": 1},
            "num_layers": LAYERS,
            "tasks": {name: task() for name in self.categories},
            "notes": [],
        }
        return self.result("learned_task_vector", payload)

    def emergence(self) -> dict[str, Any]:
        steps = [
            {
                "step": step,
                "baseline": 0.1,
                "icl": min(0.9, step / 1000),
                "task_vector": min(0.7, step / 1500),
                "best_layer": 20,
                "dev_accuracy_by_layer": self.curve(min(0.9, step / 1000)),
                "tasks": {},
            }
            for step in (0, 1, 100, 200, 400, 800, 1600, 143000)
        ]
        appears = {"icl": 800, "task_vector": 800}
        return self.result("emergence", {"steps": steps, "appears": appears})

    def claims(self) -> dict[str, Any]:
        claims = claims_about("llama-7b", FILE)[:6]
        ours = {"value": 0.5, "low": 0.4, "high": 0.6}
        verdicts = ("agrees", "disagrees", "undecided", "not comparable")
        found = [
            {
                "claim": dataclasses.asdict(claim),
                "ours": ours,
                "num_tasks": len(claim.tasks),
                "difference": ours,
                "reasons": [],
                "verdict": verdicts[i % 4],
            }
            for i, claim in enumerate(claims)
        ]
        payload = {"claims": found, "pairs": "taskvec_jax", "half_width": 0.15}
        return self.result("claims", payload)


EXPERIMENTS: tuple[str, ...] = (
    *("main_results", "layer_sweep", "conflicting_tasks", "task_geometry"),
    *("vocabulary_projection", "bijections", "dose", "patch_map", "portability"),
    *("function_vectors", "head_ablation", "necessity", "positions", "several_vectors"),
    *("learned_task_vector", "emergence", "claims"),
)


def make(name: str, count: int, **more: Any) -> dict[str, Any]:
    """The result of an experiment on so many tasks."""
    maker: Callable[[], dict[str, Any]] = getattr(Maker(count, **more), name)
    return maker()


def write(directory: Path, count: int, names: tuple[str, ...] = EXPERIMENTS, **more: Any) -> Path:
    """A directory of results, as a run leaves it."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = directory / f"{name}.json"
        path.write_text(json.dumps(make(name, count, **more)), encoding="utf-8")
    return directory


def compared(directories: list[Path]) -> dict[str, Any]:
    """`experiments.cross_models` of some directories."""
    return cross_models.compare(directories)
