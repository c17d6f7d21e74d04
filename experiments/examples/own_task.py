"""Tasks of your own, made in Python.

    python -m experiments.tasks own_task.py
    python -m experiments.layer_sweep --task_file=own_task.py --tasks=past_tense,reversed

The file is run, and TASKS is read. A prompt needs 8 different pairs.
"""

from taskvec_jax.tasks import Task

VERBS = "walked talked jumped played looked opened closed helped called worked turned asked"
WORDS = "stop live draw evil deer part tips star keep reward drawer stressed"

TASKS = [
    Task.from_pairs(
        "past_tense",
        # (input, answer, any number of other right answers), or {input: answer}
        [(verb.removesuffix("ed"), verb) for verb in VERBS.split()],
        category="own",  # any word; the task is then own_past_tense
    ),
    Task.from_pairs(
        "reversed",
        {word: word[::-1] for word in WORDS.split()},
        # "exact": an answer is one token unless --filter=none. "prefix": it may be several, and the
        # first token decides by --rule=paper; --rule=full compares whole answers either way.
        match="exact",
        # " x-> y" instead of "x->y": True, False, or "auto", which asks the tokenizer.
        leading_space="auto",
        # True: "paris" is as right as "Paris".
        ignore_case=False,
    ),
]
