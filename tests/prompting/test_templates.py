"""Templates: any way to write a pair, and where theta is then read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation.reading import draw_prompts
from taskvec_jax.evaluation.results import Settings
from taskvec_jax.prompting.chats import parts_of
from taskvec_jax.prompting.prompts import Prompt, fit
from taskvec_jax.prompting.templates import NAMED, PAPER, Template
from taskvec_jax.tasks import TASKS, Pair, Task

NUMBER: Any = 3
QA = Template("Q: {x}\nA: {y}.", separator="\n--\n", header="Opposites.\n")
SHOWN = (Pair("hot", " cold"), Pair("up", " down"))
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_prompt_is_written_as_the_template_says():
    prompt = Prompt(SHOWN, Pair("big", " small"), (Pair("wet", " dry"),), QA)
    shown = "Opposites.\nQ: hot\nA: cold.\n--\nQ: up\nA: down.\n--\n"
    assert prompt.icl() == f"{shown}Q: big\nA:"
    assert prompt.dummies() == [f"{shown}Q: wet\nA:"]
    assert prompt.zero_shot() == "Opposites.\nQ: big\nA:"


def test_the_papers_template_is_what_it_was():
    assert Template() == PAPER == Template.of("paper")
    prompt = Prompt((Pair("Lime", "Green"),), Pair("Corn", "Yellow"), (Pair("Plum", "Purple"),))
    assert prompt.icl() == "example:Lime->Green\nexample:Corn->"
    assert Settings().template == PAPER


def test_spaces_before_the_answer_belong_to_it_and_other_braces_stay():
    assert (QA.cue, QA.answer_space, QA.after) == ("\nA:", " ", ".")
    assert Template("{a} {x} => {y}").zero_shot("b{y}") == "{a} b{y} =>"


@pytest.mark.parametrize("name", sorted({*NAMED} - {"llama3"}))
def test_every_named_template_reads_at_a_token_of_its_own(name, tokenizer):
    template = NAMED[name]
    fitted = fit(TASKS["linguistic_antonyms"], tokenizer, template)
    assert len(fitted.pairs) > 300
    for pair in fitted.pairs[::97]:
        query = template.zero_shot(pair.input)
        ids = tokenizer.encode(query)
        assert tokenizer.encode(query + pair.output)[:-1] == ids  # one token, and it follows
        start, end = tokenizer.pieces(query)[-1][2]
        assert len(query) - len(template.cue) <= start < end == len(query)
        assert pair.output.startswith(" ") is fitted.leading_space


def test_a_chat_of_another_models_tokens_is_refused_with_the_reason(tokenizer):
    # This tokenizer cuts the empty line before an answer in two once the answer follows.
    with pytest.raises(TaskVecError, match="868 because the answer changes the tokens before it"):
        fit(TASKS["linguistic_antonyms"], tokenizer, NAMED["llama3"])


def test_demonstrations_of_a_chat_are_turns_of_its_special_tokens(tokenizer):
    template = Template.of("chatml", header="Give the opposite.")
    fitted = fit(TASKS["linguistic_antonyms"], tokenizer, template)
    (prompt,) = draw_prompts(fitted, Settings(num_prompts=1, template=template), "test")
    text = prompt.icl()
    assert text.startswith("<|im_start|>system\nGive the opposite.<|im_end|>\n<|im_start|>user\n")
    names = [token for _, token, _ in tokenizer.pieces(text)]
    assert names.count("<|im_start|>") == 1 + 5 * 2 + 2
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert not fitted.leading_space  # answers begin a line


def test_a_models_own_chat_template_gives_the_same_turns(tmp_path):
    pair, separator, header = parts_of(CHATML, "here", "Be brief.")
    assert (pair, separator) == (
        "{x}<|im_end|>\n<|im_start|>assistant\n{y}",
        "<|im_end|>\n<|im_start|>user\n",
    )
    ours = Template(pair, separator, header)
    named = Template.of("chatml", header="Be brief.")
    for prompts in (SHOWN, SHOWN[:1]):
        texts = [Prompt(prompts, Pair("big", ""), (), t).icl() for t in (ours, named)]
        assert texts[0] == texts[1]
    assert ours.zero_shot("big") == named.zero_shot("big")
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"chat_template": CHATML, "eos_token": "</s>"}))
    assert Template.of(str(path)).header == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    )
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    jinja = Template.of(str(tmp_path / "chat_template.jinja"), header="Be brief.")
    assert jinja == ours


def test_a_chat_template_that_cannot_be_taken_apart_is_refused(tmp_path):
    for source, message in (
        ("{{ messages[0]['content'] }}", "leaves out"),
        ("{% if", "not a chat template"),
        ("{{ raise_exception('no system') }}", "refuses such a conversation .no system"),
        (
            "{% for m in messages %}[{{ m['content'] }}]{% endfor %}<think>",
            "several ways",
        ),
    ):
        with pytest.raises(TaskVecError, match=message):
            parts_of(source, "here")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(TaskVecError, match="holds no chat template"):
        Template.of(str(tmp_path / "tokenizer_config.json"))
    with pytest.raises(TaskVecError, match=r"none\.jinja: cannot be read"):
        Template.of(str(tmp_path / "none.jinja"))


def test_a_command_line_writes_line_breaks_as_two_characters():
    assert Template.of(r"Q: {x}\nA: {y}", separator=r"\n\n", header=r"Do.\n") == Template(
        "Q: {x}\nA: {y}", "\n\n", "Do.\n"
    )
    given: Any = r"{x}\t{y}"
    assert Settings(template=given).template.cue == "\t"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Template("{x}{y}"), "something else than spaces"),
        (lambda: Template("{x}   {y}"), "something else than spaces"),
        (lambda: Template("{y} of {x}"), "and then"),
        (lambda: Template("{x} is {x}, {y}"), "once each"),
        (lambda: Template("{x}:{y}", separator=""), "separator is empty"),
        (lambda: Template.of("chatmll"), "allowed: a pair.*chatml"),
        (lambda: Template("{x}:{y}", header=NUMBER), "header is 3"),
        (lambda: Settings(template=NUMBER), "template is 3"),
    ],
)
def test_what_is_no_template_is_refused(make, message):
    with pytest.raises(TaskVecError, match=message):
        make()


def test_prompts_of_another_template_than_the_settings_say_are_refused(tokenizer):
    fitted = fit(TASKS["linguistic_antonyms"], tokenizer)
    with pytest.raises(TaskVecError, match=r"fitted to the template paper.*settings say qa"):
        draw_prompts(fitted, Settings(template=Template.of("qa")), "dev")


def test_a_cue_that_merges_with_the_query_is_said_of_each_pair(tokenizer):
    pairs = tuple(Pair(x, y) for x, y in (("cat", "dog"), ("book", "page")))
    with pytest.raises(TaskVecError, match=r"'s' is not a token of its own.*--template"):
        fit(Task("own", "x", pairs), tokenizer, Template("{x}s{y}"))
