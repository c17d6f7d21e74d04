"""The top of the page, for a reader who has not read the paper: five lines, and a glossary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ASKED = (
    "A language model that is shown a few examples of a task in its prompt does the task on a new"
    " question, though no weight of it changes (in-context learning, ICL). What does it keep of the"
    " examples?"
)
TRIED = (
    "The state of the model at one place, the last token of a prompt with examples, is copied after"
    " one layer: the task vector, theta. It is then written over the same place of a prompt that"
    " holds a new question and no example."
)
GLOSSARY = {
    "task": "pairs of an input and an answer, such as a country and its capital",
    "demonstrations": "the pairs that a prompt shows before its query",
    "query": "the input that is asked for at the end of a prompt",
    "zero-shot": "the query alone, without demonstrations and without a vector",
    "ICL": "in-context learning: demonstrations and query in one prompt",
    "theta, task vector": "the residual stream at the prompt's last token after one layer, read"
    " from a prompt whose query is a dummy query, and written over the same token of a zero-shot"
    " prompt after the same layer",
    "dummy query": "an input that is not the one asked for; theta is read from prompts that end in"
    " one, so that it cannot carry the answer",
    "layer": "layer l is the output of block l, counted from 0",
    "dev, test": "two sets of prompts: layers are chosen on dev, scores are on test",
    "rule: whole answers": "the model's answer is generated to its end and has to be an accepted"
    " answer, ended there",
    "rule: first tokens": "the next token has to be the first token of an accepted answer, as the"
    " paper scores; curves over layers are always scored so",
    "n, distinct queries": "test prompts of a task; prompts that ask for the same query are not"
    " independent, so tests count queries",
    "tasks that ICL does": "those where ICL is .20 or more above zero-shot on dev",
    "95 % interval, these tasks": "what other prompts of these tasks could have given",
    "95 % interval, tasks like these": "what other tasks could have given, had these been drawn at"
    " random, which they were not",
    "control": "another way to get an answer, which a task vector has to beat: a constant answer,"
    " a random vector of theta's size, another task's theta, and so on",
    "last-layer replay": "theta written after the last layer, where nothing is computed any more:"
    " the model repeats its answer to the dummy query",
    "wrong labels": "theta of demonstrations whose answers are exchanged: what is left of the gain"
    " does not need the right pairs",
    "verdict": "whether theta is above every control by an exact test, paired by query and"
    " corrected for the number of tasks; “not shown” says that this many prompts do not show it,"
    " not that it is false",
    "function vector": "the sum of the outputs of a few attention heads, added to the state instead"
    " of replacing it",
    "learned vector": "a vector trained to do the task when written there: how much one vector"
    " could do",
}


def five_lines(results: Mapping[str, Any], headline: str, found: Sequence[str]) -> list[str]:
    """What was asked, what was tried, what was found, how sure that is, and what it does not say.

    Args:
      results: of one run, by experiment.
      headline: the main finding, in a sentence.
      found: what else the first section says, used where there are no main results.
    """
    main, sweep = results.get("main_results"), results.get("layer_sweep")
    if main:
        told = [_found(main), _sure(main)]
    elif sweep:
        told = [_found(sweep), _without_controls(sweep)]
    else:
        told = [headline, *found[:1]]
    return [ASKED, TRIED, *told, _limits(results)]


def _found(main: Mapping[str, Any]) -> str:
    able = main["mean"]["icl_able"]
    mean = {name: value["accuracy"] for name, value in (able or main["mean"]["all"]).items()}
    count = len(main["groups"]["icl_able" if able else "all"])
    which = f"{count} tasks that it does with examples" if able else f"{count} tasks"
    return (
        f"Asked without examples the model gets {mean['baseline']:.0%} right, with theta"
        f" {mean['task_vector']:.0%}, with the examples themselves {mean['icl']:.0%} (mean of"
        f" {which}). Theta works best after layer {main['peak']['layer']} of"
        f" 0–{len(next(iter(main['tasks'].values()))['dev_accuracy_by_layer']) - 1}."
    )


def _without_controls(sweep: Mapping[str, Any]) -> str:
    mean = sweep["mean"]["icl_able"] or sweep["mean"]["all"]
    share = sweep["share_of_icl_gain"]["icl_able"]
    had = (
        f"Theta has {share['value']:.0%} of what the examples add (95 % interval {share['low']:.0%}"
        f" to {share['high']:.0%}); a"
        if share
        else "A"
    )
    return (
        f"{had} random vector of its size, written there, gets"
        f" {mean['random']['accuracy']:.0%} right. Other controls were not run here."
    )


def _sure(main: Mapping[str, Any]) -> str:
    tasks, primary = main["tasks"], main["primary"]
    beating = sum(task["beats"] for task in tasks.values())
    words = f"Theta is above every control in {beating} of {len(tasks)} tasks"
    if not primary:
        return f"{words}; there is no task that ICL does, so there is no gain to explain."
    difference = primary["difference"]
    low, high = difference["low_these"], difference["high_these"]
    return (
        f"{words}; over the {primary['num_tasks']} tasks that ICL does its mean is"
        f" {difference['accuracy']:+.2f} against that of the strongest control (95 % interval"
        f" {low:+.2f} to {high:+.2f}, p = {primary['p']:.2g})."
    )


def _limits(results: Mapping[str, Any]) -> str:
    first = next(iter(results.values()))
    settings = first.get("settings", {})
    count, tasks = settings.get("num_prompts"), settings.get("tasks", [])
    asked = f"{count} test prompts for each of {len(tasks)} tasks, " if count else ""
    return (
        f"This is one model, {asked}one seed: an interval says what other prompts could have given,"
        " not what other models or tasks would; a score that is not shown to differ is not shown to"
        " be the same."
    )
