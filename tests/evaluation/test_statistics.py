"""Tests and intervals agree with scipy or with a count by hand, and cover what they say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from taskvec_jax.errors import TaskVecError
from taskvec_jax.evaluation import intervals
from taskvec_jax.evaluation.intervals import (
    given,
    mean_difference,
    means,
    peak_layer,
    share_of_gain,
)
from taskvec_jax.evaluation.statistics import (
    Outcomes,
    beats_all,
    compare,
    decide,
    holm,
    icl_able,
    prompts_for,
    sign_flip_p,
    wilson,
)


def outcomes(queries: object = None, **columns: object) -> Outcomes:
    made = {name: np.asarray(values) for name, values in columns.items()}
    length = len(next(iter(made.values())))
    return Outcomes(list(queries) if queries is not None else list(range(length)), made)  # type: ignore[call-overload]


def test_where_all_queries_differ_the_paired_test_is_mcnemars():
    rng = np.random.RandomState(0)
    for _ in range(50):
        n = rng.randint(1, 90)
        a, b = (rng.rand(n) < rng.rand() for _ in range(2))
        got = compare([outcomes(a=a * 1, b=b * 1)], "a", "b")
        first, second = int((a & ~b).sum()), int((b & ~a).sum())
        expected = 1.0
        if first + second:
            expected = scipy.stats.binomtest(first, first + second, 0.5).pvalue
        assert got.p == pytest.approx(expected, abs=1e-12)
        assert got[2:] == (first, second, n, n)
        assert got.difference == pytest.approx(a.mean() - b.mean(), abs=1e-12)


def test_nine_discordant_prompts_of_fifty_are_shown_to_differ():
    # .50 against .32: an unpaired interval of the difference reaches below 0.
    a, b = np.arange(50) < 25, np.arange(50) < 16
    got = compare([outcomes(a=a * 1, b=b * 1)], "a", "b")
    assert got.p == 2 / 2**9
    assert decide(got.difference, got.p) == "above"
    assert decide(-got.difference, got.p) == "below"
    assert decide(0.4, 0.125) == "not shown"  # 4 to 0 of ten


def test_sign_flips_are_counted_as_trying_all_of_them_does():
    rng = np.random.RandomState(1)
    for _ in range(20):
        d = rng.randint(-4, 5, size=rng.randint(1, 9))
        flips = np.array(list(itertools.product((-1, 1), repeat=len(d)))) @ d
        assert sign_flip_p(d) == pytest.approx(np.mean(np.abs(flips) >= abs(d.sum())), abs=1e-12)
    d = np.array([3, 2, -1, 2, 0, 4, 1, -2])
    theirs = scipy.stats.permutation_test((d,), np.sum, permutation_type="samples")
    assert sign_flip_p(d) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_repetitions_of_a_query_are_one_unit():
    a, b, queries = np.repeat([1, 1, 1, 0], 10), np.zeros(40, int), np.repeat(list("wxyz"), 10)
    got = compare([outcomes(queries, a=a, b=b)], "a", "b")
    assert got.p == 2 / 2**3  # three queries tell them apart, not thirty prompts
    assert (got.num_prompts, got.num_queries) == (40, 4)
    # Two tasks that pose the same words do not share units.
    assert compare([outcomes(queries, a=a, b=b)] * 2, "a", "b").p == 2 / 2**6


def test_columns_that_never_differ_have_p_1():
    assert compare([outcomes(a=[1, 0], b=[1, 0])], "a", "b").p == 1
    assert sign_flip_p([]) == 1


def test_a_thousand_queries_need_no_drawing():
    d = np.r_[np.ones(540, int), -np.ones(460, int)]
    expected = scipy.stats.binomtest(540, 1000, 0.5).pvalue
    assert sign_flip_p(d) == pytest.approx(expected, rel=1e-9)


def test_holms_adjustment_is_the_hand_computed_one():
    # .01 x 4, .02 x 3, then .03 x 2 = .06 and .04 x 1, raised to .06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06], abs=1e-15)
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_wilsons_interval_is_the_published_example():
    # Newcombe 1998, table I: 81 of 263.
    assert wilson(81, 263)[1:] == pytest.approx((0.2553, 0.3662), abs=5e-5)
    z = scipy.stats.norm.ppf(0.975)
    for right, n in ((0, 7), (7, 7), (3, 50)):
        _, low, high = wilson(right, n)
        for end in {low, high} - {0.0, 1.0}:  # the ends are where the score test just rejects
            assert abs(right / n - end) == pytest.approx(
                z * np.sqrt(end * (1 - end) / n), abs=1e-12
            )
    for right, n in ((0, 1), (1, 1), (0, 50), (27, 50), (50, 50), (81, 263)):
        theirs = scipy.stats.binomtest(right, n).proportion_ci(0.95, "wilson")
        assert wilson(right, n)[1:] == pytest.approx(theirs, abs=1e-14)
    with pytest.raises(TaskVecError, match="3 right answers of 2"):
        wilson(3, 2)


def test_the_fewest_prompts_for_a_width_are_found():
    for width in (0.05, 0.1, 0.2):
        n = prompts_for(width)

        def half(n: int) -> float:
            return max((wilson(k, n).high - wilson(k, n).low) / 2 for k in (n // 2, (n + 1) // 2))

        assert half(n) <= width
        assert half(n - 1) > width or half(n - 2) > width
    # Newcombe's n for a share of one half: (z / w)^2 / 4 - z^2, a little less than Wald's 385.
    assert abs(prompts_for(0.05) - (1.959964**2 / (4 * 0.05**2) - 1.959964**2)) <= 2
    with pytest.raises(TaskVecError, match="half_width is 0; allowed: above 0"):
        prompts_for(0)


def test_a_task_is_icl_able_from_a_gain_of_a_fifth_on():
    assert icl_able([1, 1, 1, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0])  # .3 - .1
    assert not icl_able([1, 0, 0, 0, 0], [1, 0, 0, 0, 0])
    assert not icl_able(np.arange(50) < 10, np.arange(50) < 1)


def test_the_interval_over_tasks_is_the_t_interval():
    tasks = [outcomes(a=np.arange(10) < k) for k in (1, 4, 6, 9)]
    got = means(tasks, ["a"])["a"]
    shares = [0.1, 0.4, 0.6, 0.9]
    expected = scipy.stats.t.interval(0.95, 3, np.mean(shares), scipy.stats.sem(shares))
    assert got.accuracy == pytest.approx(0.5, abs=1e-12)
    assert (got.low, got.high) == pytest.approx(np.clip(expected, 0, 1), abs=1e-12)
    assert means(tasks[:1], ["a"])["a"].low is None


def test_the_interval_for_these_tasks_has_the_width_of_its_standard_error():
    rng = np.random.RandomState(2)
    queries = np.repeat(np.arange(30), 3)  # every query three times, answered the same way
    tasks = [outcomes(queries, a=np.repeat(rng.rand(30) < p, 3)) for p in (0.2, 0.5, 0.8)]
    got = means(tasks, ["a"])["a"]
    shares = np.array([np.mean(task.correct["a"]) for task in tasks])
    error = np.sqrt((shares * (1 - shares) / 29).sum()) / 3  # of 30 units, not of 90
    assert got.high_these - got.low_these == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert (got.high_these + got.low_these) / 2 == pytest.approx(
        shares.mean(), abs=0.15 * error * 4
    )


@pytest.mark.parametrize(("count", "repeated"), [(6, 1), (12, 1), (18, 1), (6, 4)])
def test_intervals_of_means_cover_what_they_say(
    count: int, repeated: int, monkeypatch: pytest.MonkeyPatch
):
    # 2,000 data sets, as columns of the same tasks. A task's true share is drawn from a wide
    # distribution; an interval for tasks like these has to hold its mean, one for these tasks the
    # mean of the shares that were drawn. Every query is answered `repeated` times alike.
    sets, units = 2_000, 48 // repeated
    monkeypatch.setattr(intervals, "DRAWS", 1_000)
    rng = np.random.RandomState(count)
    shares = rng.beta(1.2, 1.5, size=(count, sets))
    names = [str(i) for i in range(sets)]
    tasks = []
    for row in shares:
        right = np.repeat(rng.rand(sets, units) < row[:, None], repeated, axis=1)
        queries = np.repeat(np.arange(units), repeated).tolist()
        tasks.append(Outcomes(queries, dict(zip(names, right, strict=True))))
    got = np.array(list(means(tasks, names).values()), float)
    population = 1.2 / 2.7
    assert np.mean((got[:, 1] <= population) & (population <= got[:, 2])) >= 0.93
    these = shares.mean(axis=0)
    assert np.mean((got[:, 3] <= these) & (these <= got[:, 4])) >= 0.93


def test_the_difference_of_means_is_paired():
    rng = np.random.RandomState(3)
    tasks = []
    for p in (0.3, 0.5, 0.7, 0.6):
        b = rng.rand(50) < p
        tasks.append(outcomes(a=b | (rng.rand(50) < 0.12), b=b))
    paired, single = mean_difference(tasks, "a", "b"), means(tasks, ["a", "b"])
    assert paired.accuracy == pytest.approx(single["a"].accuracy - single["b"].accuracy, abs=1e-12)
    assert paired.low_these > 0
    assert single["a"].low_these < single["b"].high_these  # apart, they overlap
    theirs = [task.correct["a"].mean() - task.correct["b"].mean() for task in tasks]
    expected = scipy.stats.t.interval(0.95, 3, np.mean(theirs), scipy.stats.sem(theirs))
    assert (paired.low, paired.high) == pytest.approx(expected, abs=1e-12)


def test_the_share_of_the_gain_is_a_ratio_of_means():
    right = np.arange(50) < 40
    tasks = [
        outcomes(vector=right, half=np.arange(50) < 25, zero=np.arange(50) < 10, same=right)
        for _ in range(4)
    ]
    got = share_of_gain(tasks, "vector", "half", "zero")
    assert got is not None
    assert got.value == pytest.approx((40 - 25) / (40 - 10), abs=1e-12)
    assert got.low < got.value < got.high
    # A learner that does not look at labels: nothing of its gain needs them.
    assert share_of_gain(tasks, "vector", "same", "zero") == (0, 0, 0)
    # Labels are everything: what is left without them is the baseline.
    assert share_of_gain(tasks, "vector", "zero", "zero") == (1, 1, 1)
    # No gain, no share.
    assert share_of_gain(tasks, "vector", "half", "same") is None


def test_conditional_shares_are_those_of_the_prompts_counted():
    a = outcomes(icl=[1, 1, 1, 1, 0, 0, 0, 0], theta=[1, 1, 1, 0, 1, 0, 0, 0])
    b = outcomes(icl=[1, 1, 0, 0, 0, 0, 0, 0], theta=[1, 1, 0, 0, 0, 0, 0, 0])
    met, unmet = given([a, b], "theta", "icl")
    assert met is not None
    assert unmet is not None
    assert met.value == pytest.approx(5 / 6, abs=1e-12)
    assert unmet.value == pytest.approx(1 / 10, abs=1e-12)
    assert met.low < met.value <= met.high
    met, unmet = given([outcomes(icl=[1, 1], theta=[1, 0])], "theta", "icl")
    assert met is not None
    assert unmet is None


def test_the_peak_is_as_sure_as_the_tasks_agree():
    sure = peak_layer([[0, 0.9, 0.1], [0.1, 0.8, 0], [0, 1, 0.2]])
    assert sure == (1, 1.0, {})
    # Two of three tasks peak at layer 0 by as much as the third at layer 2, which therefore wins
    # where it is drawn at least twice: 1/27 + 6/27 of all draws.
    peak = peak_layer([[1, 0, 0], [1, 0, 0], [0, 0, 1]])
    assert peak.layer == 0
    assert peak.share == pytest.approx(20 / 27, abs=0.03)
    assert peak.others == {2: pytest.approx(7 / 27, abs=0.03)}
    assert peak_layer([[0.2, 0.5, 0.5]]) == (1, None, {})
    with pytest.raises(TaskVecError, match="shape"):
        peak_layer([])


def test_a_vector_beats_all_controls_or_is_not_shown_to():
    perfect, nothing, some = np.ones(50, int), np.zeros(50, int), np.arange(50) < 45
    columns = {"theta": perfect, "random": nothing, "other": nothing, "copy": perfect, "near": some}
    tasks = {name: outcomes(**columns) for name in ("one", "two", "three")}
    controls = {"one": ["random", "other"], "two": ["random", "copy"], "three": ["near", "random"]}
    got = beats_all(tasks, "theta", controls)
    assert {name: verdict.beats for name, verdict in got.items()} == {
        "one": True,
        "two": False,
        "three": False,  # five discordant prompts: p = .0625
    }
    assert got["two"].p == 1
    assert got["two"].hardest == "copy"
    assert got["three"].hardest == "near"
    assert got["three"].against.p == 2 / 2**5
    assert got["one"].p == pytest.approx(3 * 2 / 2**50)
    # A vector below a control is not above it, however surely it differs.
    assert not beats_all({"one": tasks["one"]}, "random", {"one": ["theta"]})["one"].beats
    with pytest.raises(TaskVecError, match="task one has no controls"):
        beats_all(tasks, "theta", {})


def test_the_number_of_tasks_is_corrected_for():
    # Six to nothing: p = .031 alone, .062 beside a task that shows nothing.
    six = outcomes(theta=np.arange(20) < 6, random=np.zeros(20, int))
    none = outcomes(theta=np.arange(20) < 2, random=np.zeros(20, int))
    controls = {"six": ["random"], "none": ["random"]}
    assert beats_all({"six": six}, "theta", controls)["six"].beats
    assert not beats_all({"six": six, "none": none}, "theta", controls)["six"].beats


def test_the_same_seed_gives_the_same_intervals_and_another_gives_others():
    tasks = [outcomes(np.arange(n) // 2, a=np.arange(n) % 3 == 0) for n in (57, 71, 99)]
    assert means(tasks, ["a"], seed=5) == means(tasks, ["a"], seed=5)
    assert means(tasks, ["a"], seed=5) != means(tasks, ["a"], seed=6)


def test_what_is_no_answer_is_refused():
    with pytest.raises(TaskVecError, match="allowed: one of 0 or 1 for each"):
        outcomes(a=[0.5, 1])
    with pytest.raises(TaskVecError, match="2 queries"):
        outcomes("xy", a=[1])
    with pytest.raises(TaskVecError, match="no answers"):
        Outcomes([], {})
    with pytest.raises(TaskVecError, match="no column 'c'; there are a"):
        means([outcomes(a=[1])], ["c"])
    for empty in (lambda: means([], ["a"]), lambda: compare([], "a", "b")):
        with pytest.raises(TaskVecError, match="no task"):
            empty()
