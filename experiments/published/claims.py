"""Published claims as data: what a paper says of a model, and what is needed to run it again.

claims.json holds facts, figures of papers and of the result files released with them, with where
each is from; no code and no sentence of theirs. A file of one's own has the same form: a list of
objects with the fields of `Claim`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from experiments.published import bare
from taskvec_jax.errors import TaskVecError

FILE = Path(__file__).parent / "claims.json"
OURS = "taskvec_jax"  # the pairs of this project's own tasks
TEMPLATE = "example:{input}->{output}"  # one line each, as prompts are written here
LAYER_RULES = ("none", "dev", "best_on_test", "third", "fixed", "other")


@dataclasses.dataclass(frozen=True)
class Claim:
    """One number of a paper.

    Attributes:
      paper: arXiv number, or another name.
      where: table, figure or file.
      model: the name by which `load_model` knows it, or would; `their_model`: the paper's.
      quantity: what is claimed (see `experiments.claims`), such as "icl" or "task_vector".
      value: the number, a share from 0 to 1.
      n: answers that it is a share of; None where the source does not say.
      tasks: names of this project's tasks, over which it is a mean.
      other_tasks: tasks of the source that this project does not have.
      pairs: whose pairs were asked: a paper's, or "taskvec_jax" for this project's.
      template: how a demonstration is written.
      num_demonstrations: in a prompt; None where the source does not say.
      layer_rule: how the layer was chosen: "none", there is none; "dev", for each task on other
        prompts; "best_on_test", for each task on the scored prompts; "third", a third of the depth;
        "fixed", after block `layer`; "other", in a way that is not followed here.
      layer: of the rule "fixed".
      verified: read in the source itself, not quoted second hand.
      note: what else a reader should know.
    """

    paper: str
    where: str
    model: str
    their_model: str
    quantity: str
    value: float
    n: int | None
    tasks: tuple[str, ...]
    pairs: str
    layer_rule: str
    other_tasks: tuple[str, ...] = ()
    template: str = TEMPLATE
    num_demonstrations: int | None = None
    layer: int | None = None
    verified: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "other_tasks", tuple(self.other_tasks))
        faults = {
            f"value is {self.value!r}; allowed: 0 to 1": not _is_share(self.value),
            f"n is {self.n!r}; allowed: a whole number from 1, or null": not (
                self.n is None or _is_count(self.n)
            ),
            f"layer_rule is {self.layer_rule!r}; allowed: {', '.join(LAYER_RULES)}": (
                self.layer_rule not in LAYER_RULES
            ),
            "layer_rule 'fixed' and layer belong together": (self.layer_rule == "fixed")
            != (self.layer is not None),
            "there are no tasks": not (self.tasks or self.other_tasks),
        }
        for fault, is_so in faults.items():
            if is_so:
                raise TaskVecError(f"claim {self.title()}: {fault}")

    def title(self) -> str:
        """What tells it from others."""
        return f"{self.paper}, {self.their_model}, {self.quantity}"


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@functools.cache
def read_claims(path: Path = FILE) -> tuple[Claim, ...]:
    """The claims of a file.

    Raises:
      TaskVecError: it cannot be read, or a claim has unknown, missing or impossible fields.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskVecError(f"{path}: no claims can be read from it ({error})") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise TaskVecError(f"{path}: it must be a list of objects, one for each claim")
    fields = {field.name for field in dataclasses.fields(Claim)}
    claims = []
    for number, entry in enumerate(entries, start=1):
        if unknown := sorted(set(entry) - fields):
            raise TaskVecError(
                f"{path}, claim {number}: unknown fields {', '.join(unknown)}; allowed:"
                f" {', '.join(sorted(fields))}"
            )
        try:
            claims.append(Claim(**entry))
        except TypeError as error:  # a field is missing
            raise TaskVecError(f"{path}, claim {number}: {error}") from None
    return tuple(claims)


def claims_about(model: str, path: Path = FILE) -> list[Claim]:
    """The claims about a model, given our name for it or a path; letters and digits count."""
    wanted = bare(Path(model).name)
    return [claim for claim in read_claims(path) if bare(claim.model) == wanted]
