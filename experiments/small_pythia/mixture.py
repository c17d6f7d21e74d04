"""The tasks that `train_small` grows a model on, its vocabulary, and its training rows.

    python -m experiments.layer_sweep --model=pythia-icl-small \\
        --task_file=experiments/small_pythia/mixture.py --tasks=bijection_1,algorithmic_next_letter

A model of a million parameters can know a task only by having seen it, so the mixture is of fixed
tasks that share their inputs: what is asked for must be read off the demonstrations. No two of
them share both their inputs' kind and their answers' kind, as `next_letter` and `prev_letter` do:
telling such tasks apart takes the pair, not the answer alone, and much longer to learn. Four are
rules that every experiment has; the others are of this model:

* `bijection_1` to `_4`: from the numbers 00 to 19 to those of another twenty, each a fixed
  permutation; `bijection_held_out` is one more within 20 to 39, which training never shows;
* `successor_next`: counting;
* `lookup_letter`, `lookup_number`: fixed tables from numbers to letters and from letters to
  numbers, in which two inputs may share an answer;
* `list_last_upper`: the last letter of a list, in upper case.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

import numpy as np
import tokenizers

from experiments.small_pythia.training import Batch
from taskvec_jax.prompting.templates import PAPER
from taskvec_jax.prompting.tokenizer import ARROW, Tokenizer
from taskvec_jax.tasks import TASKS as HOUSE_TASKS
from taskvec_jax.tasks import Pair, Task
from taskvec_jax.tasks.sampling import draw, seeded

TWENTY = 20  # numbers of one kind
NUM_BIJECTIONS = 4
NUM_LINES = 6  # of a row: demonstrations, each asked in its turn
LISTS_EVERY = 6  # one batch in so many is of lists, which are longer
UNKNOWN = "<unk>"
NUMBERS = tuple(f"{i:02d}" for i in range(TWENTY * (NUM_BIJECTIONS + 1)))
FIRST = NUMBERS[:TWENTY]
LETTERS = string.ascii_lowercase
HOUSE = ("next_letter", "to_upper", "to_lower", "list_first")


def _bijection(name: str, kind: int) -> Task:
    """A fixed map from the first twenty numbers to another twenty, drawn from its name."""
    images = draw(seeded("mixture", name), NUMBERS[TWENTY * kind :][:TWENTY], TWENTY)
    return Task("bijection", name, tuple(map(Pair, FIRST, images)))


def _lookup(name: str, inputs: Sequence[str], answers: Sequence[str]) -> Task:
    """A fixed table, each answer drawn alone."""
    rng = seeded("mixture", name)
    return Task("lookup", name, tuple(Pair(x, draw(rng, answers, 1)[0]) for x in inputs))


def _own_tasks() -> list[Task]:
    lists = HOUSE_TASKS["algorithmic_list_last"].pairs
    return [
        *(_bijection(str(kind), kind) for kind in range(1, NUM_BIJECTIONS + 1)),
        Task("successor", "next", tuple(map(Pair, FIRST, FIRST[1:]))),
        _lookup("letter", FIRST, LETTERS),
        _lookup("number", LETTERS, FIRST),
        Task("list", "last_upper", tuple(Pair(x, y.upper()) for x, y, _ in lists)),
    ]


HELD_OUT = _bijection("held_out", 1)
TRAINING_TASKS = [*(HOUSE_TASKS[f"algorithmic_{name}"] for name in HOUSE), *_own_tasks()]
LIST_TASKS = [task for task in TRAINING_TASKS if "list" in task.name]
SHORT_TASKS = [task for task in TRAINING_TASKS if task not in LIST_TASKS]
TASKS = [*_own_tasks(), HELD_OUT]  # what --task_file adds to those every experiment has


def build_tokenizer() -> Tokenizer:
    """One token for `example:`, the arrow, a newline, a comma, each number and each letter.

    Whatever else a prompt holds is cut into characters, unknown ones among them, so that a word is
    never one token and the filter of `prompts.fit` leaves word lists out.
    """
    words = [PAPER.before, ARROW, PAPER.separator, ",", *NUMBERS, *LETTERS, *LETTERS.upper()]
    vocab = {word: i for i, word in enumerate([UNKNOWN, *words])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token=UNKNOWN))
    pattern = rf"{PAPER.before}|{ARROW}|[0-9][0-9]|[\s\S]"
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    return Tokenizer(backend)


class Mixture:
    """Training rows; those of a step depend on the seed and the step alone.

    Attributes:
      tokenizer: the vocabulary they are written in.
    """

    def __init__(self, tokenizer: Tokenizer, seed: int, batch_size: int) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        self.batch_size = batch_size
        self._lines = {
            task.name: [self._line(pair) for pair in task.pairs] for task in TRAINING_TASKS
        }
        self._longest = {
            kind: max(len(line) for task in tasks for line in self._lines[task.name])
            for kind, tasks in (("lists", LIST_TASKS), ("short", SHORT_TASKS))
        }

    def _line(self, pair: Pair) -> list[int]:
        """`example:x->y` and a newline; the answer is the last token but one."""
        return self.tokenizer.encode(PAPER.show(pair.input, pair.output) + PAPER.separator)

    def tokens_of(self, step: int) -> int:
        """Tokens of the rows of one step, padding included."""
        kind = "lists" if self._is_of_lists(step) else "short"
        return self.batch_size * (NUM_LINES * self._longest[kind] - 2)

    def _is_of_lists(self, step: int) -> bool:
        return step % LISTS_EVERY == LISTS_EVERY - 1

    def batch(self, step: int) -> Batch:
        """The rows of one step."""
        rng = seeded("mixture", self.seed, "step", step)
        lists = self._is_of_lists(step)
        tasks = LIST_TASKS if lists else SHORT_TASKS
        rows, others = [], []
        for _ in range(self.batch_size):
            task = tasks[int(rng.random() * len(tasks))]
            *shown, other = draw(rng, self._lines[task.name], NUM_LINES + 1)
            rows.append(shown)
            others.append(other)
        return pack(rows, others, self._longest["lists" if lists else "short"])


def pack(
    rows: Sequence[Sequence[Sequence[int]]], others: Sequence[Sequence[int]], longest: int
) -> Batch:
    """Lines of token ids as arrays of one shape.

    Args:
      rows: for each row, its lines; each ends in arrow, answer, newline. The first answer does not
        count: nothing has said yet what the task is.
      others: for each row, one more line of the same task.
      longest: tokens of the longest line there is.
    """
    count = len(rows)
    tokens = np.zeros((count, NUM_LINES * longest - 2), np.int32)
    answers = np.zeros_like(tokens)
    weights = np.zeros(tokens.shape, np.float32)
    last = np.zeros(count, np.int32)
    query = np.zeros((count, longest - 2), np.int32)
    query_last, query_answer = np.zeros(count, np.int32), np.zeros(count, np.int32)
    for i, (lines, other) in enumerate(zip(rows, others, strict=True)):
        place = 0
        for j, line in enumerate(lines):
            kept = len(line) - 2 if j == len(lines) - 1 else len(line)
            tokens[i, place : place + kept] = line[:kept]
            arrow = place + len(line) - 3
            answers[i, arrow] = line[-2]
            weights[i, arrow] = j > 0
            last[i] = arrow
            place += kept
        query[i, : len(other) - 2] = other[:-2]
        query_last[i], query_answer[i] = len(other) - 3, other[-2]
    return Batch(tokens, answers, weights, last, query, query_last, query_answer)


def summary(accuracies: Mapping[str, float]) -> str:
    """Task names and their accuracy, in one line."""
    return ", ".join(f"{name} {share:.2f}" for name, share in accuracies.items())
