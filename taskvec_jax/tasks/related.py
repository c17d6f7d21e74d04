"""Which tasks are related: a theta of one may carry part of the other.

Such a task is no fair control for the other: its theta is shown beside the result, and left out of
the verdict. Tasks of one's own say so themselves (`Task.related`).
"""

from __future__ import annotations

from taskvec_jax.tasks.task import Task

GROUPS = (
    frozenset({"translation_fr_en", "translation_es_en"}),  # into the same language
    frozenset({"translation_en_fr", "translation_en_es"}),  # of the same words
    frozenset({"linguistic_present_simple_gerund", "linguistic_present_simple_past_simple"}),
    frozenset(
        {
            "algorithmic_next_letter",
            "algorithmic_prev_letter",
            "algorithmic_to_upper",
            "algorithmic_to_lower",
        }
    ),
    frozenset({"algorithmic_list_first", "algorithmic_list_last"}),
    frozenset({"knowledge_location_continent", "knowledge_country_capital"}),  # of places
)


def are_related(one: Task, other: Task) -> bool:
    """Whether two tasks are declared related, by `GROUPS` or by either of them."""
    names = {one.name, other.name}
    declared = other.name in one.related or one.name in other.related
    return declared or any(names <= group for group in GROUPS)
