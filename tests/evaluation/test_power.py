"""Planning from a pilot: components by hand and against simulated truths, plans by following them."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medseqft_kit.errors import RunError
from medseqft_kit.evaluation.power import MOST_CASES, Components, components, half_width, needed


def pilot(table):
    table = np.asarray(table, dtype=float)
    seeds, cases = np.indices(table.shape)
    return pd.DataFrame({"seed": seeds.ravel(), "case": cases.ravel(), "difference": table.ravel()})


def simulated(rng, shape, truth):
    seeds, cases = shape
    of_seed, of_case = rng.normal(0, truth.seed**0.5, (seeds, 1)), rng.normal(0, truth.case**0.5, cases)
    return truth.mean + of_seed + of_case + rng.normal(0, truth.rest**0.5, shape)


def exact_pilot(shape, truth):
    """A pilot whose components are exactly `truth`: its noise is no part of the plan that is tested."""
    of_seed, of_case = (np.linspace(-1, 1, size) for size in shape)
    of_seed, of_case = of_seed / of_seed.std(ddof=1), of_case / of_case.std(ddof=1)
    left = truth.rest**0.5 * np.outer(of_seed, of_case)  # sums to 0 either way; mean square truth.rest
    scale_seed, scale_case = (truth.seed + truth.rest / shape[1]) ** 0.5, (truth.case + truth.rest / shape[0]) ** 0.5
    return pilot(truth.mean + scale_seed * of_seed[:, None] + scale_case * of_case + left)


def test_components_by_hand():
    # [[0, 2], [4, 10]]: seed means 1, 7; case means 2, 6; mean 4; what is left ±1, mean square 4.
    # MS seed = 2·18 = 36, MS case = 2·8 = 16: seed (36 − 4)/2 = 16, case (16 − 4)/2 = 6.
    assert components(pilot([[0, 2], [4, 10]])) == Components(4.0, 16.0, 6.0, 4.0)


def test_a_seed_effect_alone_is_all_in_the_seeds():
    found = components(pilot([[0.0] * 4, [1.0] * 4, [2.0] * 4]))
    assert found == Components(1.0, 1.0, 0.0, 0.0)


def test_a_negative_variance_is_zero():
    # No seed or case effect, and a checkerboard: the mean squares of seeds and cases are 0, that of the rest is 4.
    assert components(pilot([[1, -1], [-1, 1]])) == Components(0.0, 0.0, 0.0, 4.0)


def test_components_of_many_simulated_pilots_average_to_the_truth():
    truth, rng = Components(0.03, 0.0006, 0.0025, 0.0016), np.random.default_rng(0)
    found = [components(pilot(simulated(rng, (6, 15), truth))) for _ in range(150)]
    for name in ("mean", "seed", "case", "rest"):
        values = [getattr(each, name) for each in found]
        standard_error = np.std(values) / len(values) ** 0.5
        assert abs(np.mean(values) - getattr(truth, name)) < 3 * standard_error, name


def test_orders_are_averaged_and_cases_that_a_seed_lacks_left_out():
    whole = pilot([[0, 2, 5], [4, 10, 7]])
    twice = pd.concat(
        [whole.assign(difference=whole["difference"] - 1), whole.assign(difference=whole["difference"] + 1)]
    )
    without = twice[~((twice["seed"] == 1) & (twice["case"] == 2))]
    assert components(without) == Components(4.0, 16.0, 6.0, 4.0)
    assert needed(without).pilot_cases == 2


def test_where_seeds_make_all_of_the_variance_the_interval_is_the_t_interval_over_seeds():
    assert half_width(Components(0.0, 1.0, 0.0, 0.0), 5, 20) == pytest.approx(2.776 / 5**0.5, abs=1e-3)


def test_where_cases_make_all_of_the_variance_it_is_the_t_interval_over_cases():
    assert half_width(Components(0.0, 0.0, 1.0, 0.0), 2, 20) == pytest.approx(2.093 / 20**0.5, abs=1e-3)


def test_half_width_by_hand_with_all_three():
    # Mean squares: 2 + 10·1 = 12, 2 + 4·3 = 14, 2; variance of the mean (12 + 14 − 2)/40 = 1/4 + 3/10 + 2/40 = 0.6.
    freedom = 24**2 / (12**2 / 3 + 14**2 / 9 + 2**2 / 27)
    assert half_width(Components(0.0, 1.0, 3.0, 2.0), 4, 10) == pytest.approx(stats.t.ppf(0.975, freedom) * 0.6**0.5)


def test_degrees_of_freedom_are_not_below_one():
    # What is left alone, 2 × 2: Satterthwaite says 1/(1 + 1 + 1). t for 1 degree of freedom is 12.706, √(1/4) = 0.5.
    assert half_width(Components(0.0, 0.0, 0.0, 1.0), 2, 2) == pytest.approx(12.706 * 0.5, abs=1e-3)


def excludes_zero(table):
    fitted = components(pilot(table))
    return abs(fitted.mean) > half_width(fitted, *table.shape)


@pytest.mark.parametrize(
    ("truth", "moved"),
    [
        (Components(0.04, 0.0012, 0.001, 0.0016), "seeds"),
        (Components(0.02, 0.0002, 0.004, 0.0016), "cases"),
        (Components(-0.04, 0.0003, 0.002, 0.0016), "seeds"),
    ],
)
def test_a_plan_followed_excludes_zero_in_four_of_five_comparisons(truth, moved):
    plan = needed(exact_pilot((3, 20), truth))
    assert vars(plan.components) == pytest.approx(vars(truth))
    assert (plan.seeds is None, plan.cases is None) == (moved == "cases", moved == "seeds")
    size = (10, plan.cases) if plan.seeds is None else (plan.seeds, 20)
    rng, trials = np.random.default_rng(1), 400
    shown = np.mean([excludes_zero(simulated(rng, size, truth)) for _ in range(trials)])
    assert shown == pytest.approx(0.8, abs=0.08)  # 2 standard errors, whole seeds, Satterthwaite's approximation


def test_one_seed_fewer_would_not_have_done():
    truth = Components(0.04, 0.0012, 0.001, 0.0016)
    seeds = needed(exact_pilot((3, 20), truth)).seeds
    half, freedom_at_least = half_width(truth, seeds - 1, 20), seeds - 2
    error = half / stats.t.ppf(0.975, freedom_at_least)
    assert half + stats.t.ppf(0.8, freedom_at_least) * error > 0.04 > half_width(truth, seeds, 20)


def test_more_seeds_are_needed_for_a_smaller_effect_and_its_sign_does_not_matter():
    table = exact_pilot((4, 20), Components(0.05, 0.0006, 0.0002, 0.0016))
    fewer, more = needed(table, 0.05).seeds, needed(table, 0.02).seeds
    assert fewer < more == needed(table, -0.02).seeds
    assert needed(table).seeds == fewer


def test_where_cases_limit_no_seeds_help_and_cases_are_asked_for():
    # Seeds agree; cases vary with variance 1, so 20 cases leave 1/√20 = 0.22 however many seeds there are.
    plan = needed(exact_pilot((3, 20), Components(0.1, 0.0, 1.0, 0.0)))
    assert plan.seeds is None
    # (t.975 + t.8)·√(1/C) < 0.1 with normal quantiles: C > (1.960 + 0.842)²·100 = 785, a few more for t.
    assert 785 < plan.cases < 795


def test_no_effect_is_shown_by_nothing():
    plan = needed(exact_pilot((3, 20), Components(0.1, 0.001, 0.01, 0.001)), effect=0.0)
    assert (plan.seeds, plan.cases) == (None, None)
    assert f"{MOST_CASES:,} cases with 10 seeds" in plan.sentence


def test_differences_that_never_vary_need_the_least_there_is():
    assert needed(pilot(np.full((2, 2), 0.01))).seeds == 2


def test_the_sentence_says_what_was_found_and_what_is_needed():
    plan = needed(exact_pilot((3, 20), Components(0.05, 0.0003, 0.0004, 0.0004)))
    assert plan.half_width == pytest.approx(half_width(plan.components, 3, 20))
    assert plan.sentence == (
        f"+5.0 ± {100 * plan.half_width:.1f} Dice points over 3 seeds and 20 cases in the pilot. For an interval that "
        f"excludes zero in four of five comparisons, if the difference is +5.0, {plan.seeds} seeds are needed with 20 "
        "cases" + ("; the pilot's own are enough." if plan.seeds <= 3 else ".")
    )


def test_a_pilot_of_one_seed_or_without_common_cases_is_refused():
    with pytest.raises(RunError, match="1 seed and 3 cases"):
        needed(pilot([[0.1, 0.2, 0.3]]))
    apart = pd.DataFrame({"seed": [0, 0, 1, 1], "case": list("abcd"), "difference": [0.1] * 4})
    with pytest.raises(RunError, match="2 seeds and 0 cases"):
        needed(apart)


def test_an_effect_that_is_no_number_is_refused():
    with pytest.raises(RunError, match="no number"):
        needed(pilot([[0, 2], [4, 10]]), effect=float("nan"))
