import warnings
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medseqft_kit.errors import ConfigError, DataError, NumericsError
from medseqft_kit.selection.alternatives import herding, highest, kmeans, random_cases
from medseqft_kit.selection.buffer import Buffer, select

SCORES = pd.DataFrame({"case": list("ecadb"), "mean": [5.0, 3.0, 1.0, 3.3, 2.0]})
SCORES = SCORES.assign(low=SCORES["mean"] - 0.1, high=SCORES["mean"] + 0.5, draws=16)

# Three clusters with means 3.2, 1003 and 2003; a case is named after its cluster and its place by distance to the mean.
CLUSTERS = {"a0": 4, "a1": 2, "a2": 1, "a3": 0, "a4": 9}
CLUSTERS |= {"b0": 1003, "b1": 1001, "b2": 1000, "b3": 1008}
CLUSTERS |= {"c0": 2002, "c1": 2000, "c2": 2007}
TURNS = ("a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3", "a4")


def column(values: list[int] | list[float]) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def names(count: int) -> list[str]:
    return [f"case_{index:03d}" for index in range(count)]


def noise(cases: int, features: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((cases, features))


METHODS: dict[str, Callable[[list[str], np.ndarray, int], Buffer]] = {
    "random": lambda cases, _, k: random_cases(cases, k, task="organ", seed=3),
    "kmeans": lambda cases, features, k: kmeans(cases, features, k, task="organ", seed=3, centres=min(3, max(k, 1))),
    "herding": lambda cases, features, k: herding(cases, features, k, task="organ"),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
by_features = pytest.mark.parametrize("method", [METHODS["kmeans"], METHODS["herding"]], ids=["kmeans", "herding"])


@every_method
def test_the_order_of_cases_does_not_matter_and_nothing_given_is_changed(method: Callable[..., Buffer]) -> None:
    cases, features = names(20), noise(20, 4)
    before = features.copy()
    chosen = method(cases, features, 7)
    assert len(set(chosen.cases)) == 7
    orders = [np.random.default_rng(seed).permutation(20) for seed in range(5)]
    assert [method([cases[at] for at in order], features[order], 7) for order in orders] == [chosen] * 5
    assert np.array_equal(features, before)


@every_method
def test_a_buffer_of_all_cases_holds_each_once(method: Callable[..., Buffer]) -> None:
    assert sorted(method(names(9), noise(9, 2), 9).cases) == names(9)
    assert method(["only"], noise(1, 2), 1).cases == ("only",)


@every_method
def test_a_buffer_is_written_as_plain_values(method: Callable[..., Buffer]) -> None:
    chosen = method(names(9), noise(9, 2), 4)
    assert Buffer.from_json(chosen.to_json()) == chosen
    assert (chosen.task, chosen.ties, chosen.settings["k"]) == ("organ", (), 4)
    assert {type(value) for value in chosen.settings.values()} == {int, str}


@every_method
@pytest.mark.parametrize("k", [0, -1, 6])
def test_a_buffer_larger_than_the_task_or_empty_is_refused(method: Callable[..., Buffer], k: int) -> None:
    with pytest.raises(ConfigError, match=rf"found +{k}\n +expected +1 to 5 cases"):
        method(names(5), noise(5, 2), k)


@every_method
def test_a_case_given_twice_is_refused_by_name(method: Callable[..., Buffer]) -> None:
    with pytest.raises(DataError, match=r"1 case\(s\)[\s\S]*found +case_001\n"):
        method([*names(4), "case_001"], noise(5, 2), 2)


@by_features
def test_features_of_other_cases_are_refused(method: Callable[..., Buffer]) -> None:
    with pytest.raises(DataError, match=r"found +4 rows\n +expected +5"):
        method(names(5), noise(4, 2), 2)


@by_features
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_numbers_are_refused_by_name(method: Callable[..., Buffer], value: float) -> None:
    features = noise(5, 2)
    features[3, 1] = value
    with pytest.raises(NumericsError, match=r"1 case\(s\)[\s\S]*found +case_003\n"):
        method(names(5), features, 2)


@by_features
def test_neither_the_scale_of_a_feature_nor_one_that_does_not_vary_has_a_say(method: Callable[..., Buffer]) -> None:
    features = noise(20, 3)
    chosen = method(names(20), features, 7)
    rounding = 0.1 + 1e-9 * noise(20, 1, seed=1)  # as a dead channel looks after fp32
    constant = np.full((20, 1), 0.1)
    others = [features * [1e4, 1.0, 1e-4] + [3, 0, -5], np.hstack([constant, features, rounding])]
    assert [method(names(20), each, 7) for each in others] == [chosen] * 2
    assert method(names(20), features * [1, 1, 0], 7) != chosen


@by_features
def test_cases_that_cannot_be_told_apart_are_taken_in_the_order_of_ids(method: Callable[..., Buffer]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert method(names(9)[::-1], np.full((9, 2), 0.1), 4).cases == tuple(names(4))


def test_random_cases_depend_on_seed_and_task_alone_and_larger_buffers_continue_smaller_ones() -> None:
    chosen = random_cases(names(30), 10, task="organ", seed=1)
    assert chosen == random_cases(names(30), 10, task="organ", seed=1)
    assert (chosen.passes, chosen.settings) == (0, {"k": 10, "selection": "random", "seed": 1})
    assert random_cases(names(30), 20, task="organ", seed=1).cases[:10] == chosen.cases
    others = [random_cases(names(30), 10, task=task, seed=seed).cases for task, seed in [("organ", 2), ("other", 1)]]
    assert len({chosen.cases, *others}) == 3


def test_random_cases_are_drawn_equally_often_at_every_place() -> None:
    draws = [random_cases(list("abcde"), 2, task="organ", seed=seed).cases for seed in range(1000)]
    pairs = Counter(draws)
    assert len(pairs) == 5 * 4
    assert stats.chisquare(list(pairs.values())).pvalue > 1e-3  # the seeds are fixed: this passes always or never


def test_the_highest_scores_are_kept_with_the_least_similar_first() -> None:
    chosen = highest(SCORES, 3, task="organ")
    assert chosen.cases == ("e", "d", "c")
    assert (chosen.task, chosen.passes, chosen.settings) == ("organ", 5 * 16, {"k": 3, "selection": "highest"})


def test_ties_of_the_highest_are_the_cases_whose_own_interval_contains_the_boundary() -> None:
    # k = 2: the boundary is 3.15, in c = [2.9, 3.5] and not in d = [3.2, 3.8]. k = 3: 2.5, in b = [1.9, 2.5].
    assert highest(SCORES, 2).ties == ("c",)
    assert highest(SCORES, 3).ties == ("b",)
    assert highest(SCORES.assign(low=0.0), 2).ties == ("e", "d", "c")
    assert highest(SCORES, 5).ties == ()


def test_equal_scores_are_taken_in_the_order_of_ids_from_either_end() -> None:
    equal = SCORES.assign(mean=1.0)
    assert highest(equal, 3).cases == select(equal, 3).cases == ("a", "b", "c")


def test_highest_and_lowest_part_the_cases_between_them() -> None:
    assert {*highest(SCORES, 2).cases, *select(SCORES, 3).cases} == set("abcde")


def test_the_table_hands_on_its_task_and_settings_and_is_not_changed_by_highest() -> None:
    scores = SCORES.copy()
    scores.attrs = {"task": "organ", "settings": {"selection": "mds", "draws": 16, "seed": 4}}
    before = scores.copy()
    chosen = highest(scores, 2)
    assert (chosen.task, chosen.settings) == ("organ", {"k": 2, "selection": "highest", "draws": 16, "seed": 4})
    pd.testing.assert_frame_equal(scores, before)
    assert scores.attrs == before.attrs


def test_a_race_for_the_lowest_has_no_say_in_the_highest() -> None:
    raced = SCORES.copy()
    raced.attrs = {"race": {"chosen": ["a", "b"], "certificate": {"ties": [("b", "c")]}}}
    assert select(raced, 2).ties == ("b", "c")  # such a table is one that raced
    assert highest(raced, 2) == highest(SCORES, 2)


def test_highest_refuses_what_select_refuses() -> None:
    with pytest.raises(ConfigError, match="1 to 5 cases"):
        highest(SCORES, 6)
    with pytest.raises(DataError, match="no high"):
        highest(SCORES.drop(columns="high"), 2)
    with pytest.raises(NumericsError, match=r"found +e\n"):
        highest(SCORES.assign(low=SCORES["low"].where(SCORES["case"] != "e", np.nan)), 2)


@pytest.mark.parametrize("k", range(3, 13))
def test_kmeans_takes_the_nearest_of_each_cluster_in_turns_the_larger_clusters_first(k: int) -> None:
    chosen = kmeans(list(CLUSTERS), column(list(CLUSTERS.values())), k, task="organ", centres=3, passes=96)
    assert chosen.cases == TURNS[:k]
    assert (chosen.passes, chosen.settings) == (96, {"k": k, "selection": "kmeans", "seed": 0, "centres": 3})


def test_kmeans_with_one_centre_takes_the_cases_nearest_to_the_mean() -> None:
    features = noise(20, 4)
    wanted = np.argsort(np.linalg.norm(stats.zscore(features), axis=1))[:4]
    chosen = kmeans(names(20), features, 4, task="organ")
    assert chosen.settings["centres"] == 1
    assert chosen.cases == tuple(names(20)[at] for at in wanted)


@pytest.mark.parametrize(
    ("k", "centres"), [(1, 1), (4, 1), (7, 1), (8, 2), (10, 2), (12, 2), (13, 3), (20, 4), (40, 8)]
)
def test_one_centre_serves_five_cases(k: int, centres: int) -> None:
    assert kmeans(names(40), noise(40, 3), k, task="organ").settings["centres"] == centres


@pytest.mark.parametrize("seed", range(12))
def test_kmeans_finds_the_tightest_of_all_partitions(seed: int) -> None:
    points = stats.zscore(noise(9, 2, seed))

    def within(labels: np.ndarray) -> np.ndarray:
        """Squared distance of each case to the mean of its cluster."""
        means = np.stack([points[labels == label].mean(axis=0) for label in labels])
        return ((points - means) ** 2).sum(axis=1)

    partitions = [np.array((0, *labels)) for labels in product((0, 1), repeat=8) if any(labels)]
    assert len(partitions) == 255
    best = min(partitions, key=lambda labels: within(labels).sum())
    nearest = [min(np.flatnonzero(best == label), key=within(best).__getitem__) for label in (0, 1)]
    chosen = kmeans(names(9), points, 2, task="organ", seed=seed, centres=2)
    assert sorted(chosen.cases) == sorted(names(9)[at] for at in nearest)


def test_kmeans_is_a_function_of_its_seed_and_leaves_the_global_state_alone(random_state_untouched: None) -> None:
    features = noise(60, 8)  # noise has no clusters: other starts end elsewhere
    chosen = [kmeans(names(60), features, 12, task="organ", seed=seed, centres=6) for seed in (0, 0, 1, 2, 3)]
    assert chosen[0] == chosen[1]
    assert len({buffer.cases for buffer in chosen}) > 1


def test_two_cases_equally_far_from_their_centre_are_taken_in_the_order_of_ids() -> None:
    rng = np.random.default_rng(0)
    chosen = []
    for _ in range(20):  # pairs far apart: each is a cluster, whose centre is its midpoint
        pairs = column([1e3 * cluster + offset for cluster in range(4) for offset in rng.uniform(size=2)])
        chosen.append(kmeans(list("abcdefgh"), pairs, 4, task="organ", centres=4).cases)
    assert [sorted(cases) for cases in chosen] == [["a", "c", "e", "g"]] * 20


def test_there_are_never_more_clusters_than_distinct_cases() -> None:
    chosen = kmeans(list("abcdef"), column([0, 0, 0, 0, 9, 9]), 4, task="organ", centres=4)
    assert (chosen.cases, chosen.settings["centres"]) == (("a", "e", "b", "f"), 2)


@pytest.mark.parametrize("centres", [0, -1, 5])
def test_centres_that_cannot_fill_the_buffer_are_refused(centres: int) -> None:
    with pytest.raises(ConfigError, match=rf"found +{centres}\n +expected +1 to k = 4"):
        kmeans(names(9), noise(9, 2), 4, task="organ", centres=centres)


def test_herding_follows_the_mean_step_by_step() -> None:
    # Mean 3.2. {3}: 0.2 off; {3, 2}: 0.7 (10: 3.3); + 1: 2.0, 1.2 off (10: 1.8, 0: 1.53); + 10: 4.0, 0.8 (0: 1.7).
    values = {"zero": 0, "one": 1, "two": 2, "three": 3, "ten": 10}
    chosen = herding(list(values), column(list(values.values())), 5, task="organ", passes=40)
    assert chosen.cases == ("three", "two", "one", "ten", "zero")
    assert (chosen.passes, chosen.settings) == (40, {"k": 5, "selection": "herding"})


@pytest.mark.parametrize("seed", range(30))
def test_herding_is_the_greedy_choice_in_exact_fractions(seed: int) -> None:
    values = [int(value) for value in np.random.default_rng(seed).integers(0, 12, size=10)]  # with many ties
    if len(set(values)) == 1:
        pytest.fail("these values do not vary")
    mean, wanted = Fraction(sum(values), 10), list[int]()
    for size in range(1, 11):
        gaps = {
            at: abs(mean - Fraction(sum(values[each] for each in (*wanted, at)), size))
            for at in range(10)
            if at not in wanted
        }
        wanted.append(min(gaps, key=lambda at: (gaps[at], at)))
    assert len(wanted) == 10
    assert herding(names(10), column(values), 10, task="organ").cases == tuple(names(10)[at] for at in wanted)


@pytest.mark.parametrize("seed", range(5))
def test_each_step_of_herding_is_the_best_there_is_in_many_dimensions(seed: int) -> None:
    features = noise(12, 6, seed) * np.arange(1, 7)
    points = dict(zip(names(12), stats.zscore(features), strict=True))
    chosen = herding(names(12), features, 8, task="organ").cases
    for size in range(8):
        left = set(points) - set(chosen[:size])
        means = {case: np.mean([points[each] for each in (*chosen[:size], case)], axis=0) for case in left}
        assert min(means, key=lambda case: float(np.linalg.norm(means[case]))) == chosen[size]
    assert len(chosen) == 8


def test_a_larger_herd_begins_with_the_smaller_one() -> None:
    whole = herding(names(20), noise(20, 5), 20, task="organ").cases
    assert [herding(names(20), noise(20, 5), k, task="organ").cases for k in range(1, 21)] == [
        whole[:k] for k in range(1, 21)
    ]


def test_a_herd_represents_the_mean_better_than_random_cases_do() -> None:
    features = noise(100, 8)
    rows = dict(zip(names(100), stats.zscore(features), strict=True))

    def distance(buffer: Buffer) -> float:
        return float(np.linalg.norm(np.mean([rows[case] for case in buffer.cases], axis=0)))

    random = [distance(random_cases(names(100), 10, task="organ", seed=seed)) for seed in range(50)]
    assert distance(herding(names(100), features, 10, task="organ")) < min(random)
