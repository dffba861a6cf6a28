"""Effects and their intervals, against formulas written out, SciPy, and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from svag.analysis import contrasts
from svag.analysis.contrasts import (
    ADAPTATION,
    BOTH_OR_NEITHER,
    CLAIMED,
    INTERACTION,
    SIGN,
    SIGN_OR_ADAPTATION,
    WEIGHTS,
    Candidate,
    Effect,
    Sample,
    choice_variance,
    critical,
    simultaneous,
    single,
)

FAMILY = {name: WEIGHTS[name] for name in CLAIMED}


def samples(rng, means=(0.0, 0.0, 0.0, 0.0), n=5, sd=1.0):
    return [Sample(rng.normal(mean, sd, n)) for mean in means]


def test_the_weights_are_the_factorial_design():
    y = np.array([1.0, 2.0, 4.0, 9.0])  # M-SGD, M-SVAG, M-SSD, Adam
    found = {name: weights @ y for name, weights in WEIGHTS.items()}
    assert found[SIGN] == (4 + 9) / 2 - (1 + 2) / 2
    assert found[ADAPTATION] == (2 + 9) / 2 - (1 + 4) / 2
    assert found[INTERACTION] == ((9 - 4) - (2 - 1)) / 2
    assert found[SIGN_OR_ADAPTATION] == 4 - 2 == found[SIGN] - found[ADAPTATION]
    assert found[BOTH_OR_NEITHER] == 9 - 1 == found[SIGN] + found[ADAPTATION]


def test_a_single_interval_of_two_methods_is_welchs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 4), rng.normal(1, 3, 7)
    effect = single([Sample(a), Sample(b)], np.array([-1.0, 1.0]))
    expected = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert effect.estimate == pytest.approx(b.mean() - a.mean())
    assert effect.interval == pytest.approx((expected.low, expected.high))


def test_what_has_no_weight_has_no_part():
    a, b = np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0, 5.0])
    two = single([Sample(a), Sample(b)], np.array([1.0, -1.0]))
    four = single(
        [Sample(a), Sample(np.array([9.0])), Sample(b), Sample(np.array([np.nan]))],
        np.array([1.0, 0.0, -1.0, 0.0]),
    )
    assert four == two


def test_one_run_has_no_interval():
    made = [Sample(np.array([1.0]))] * 4
    effect = single(made, WEIGHTS[SIGN])
    assert (effect.estimate, effect.interval) == (0.0, None)
    assert all(effect.interval is None for effect in simultaneous(made, FAMILY).values())


def test_without_choice_and_one_contrast_the_critical_value_is_students():
    """Up to the error of its simulation: 20,000 draws give the quantile within 2 %."""
    for freedom in (4, 16, 60):
        value = critical(WEIGHTS[SIGN][None], np.ones(4), freedom, 0.05)
        assert value == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.02)


def test_the_critical_value_of_independent_contrasts_is_the_studentised_maximum():
    """Sign, adaptation and interaction are orthogonal: P(max |t| < c) is an integral over s."""
    table = np.stack([WEIGHTS[name] for name in (SIGN, ADAPTATION, INTERACTION)])
    freedom = 16
    value = critical(table, np.ones(4), freedom, 0.05)

    def inside(scale):
        return (2 * stats.norm.cdf(value * scale) - 1) ** 3

    rng = np.random.default_rng(5)
    draws = np.sqrt(rng.chisquare(freedom, 400_000) / freedom)
    assert inside(draws).mean() == pytest.approx(0.95, abs=0.004)


def test_simultaneous_intervals_are_wider_than_single_ones_and_share_their_centre():
    made = samples(np.random.default_rng(1))
    together = simultaneous(made, FAMILY)
    for name, weights in FAMILY.items():
        alone = single(made, weights)
        assert together[name].estimate == pytest.approx(alone.estimate)
        assert together[name].interval[0] < alone.interval[0] < alone.interval[1]


def test_one_noisy_method_widens_what_it_takes_part_in():
    rng = np.random.default_rng(2)
    calm = [Sample(rng.normal(0, 0.1, 5)) for _ in range(3)]
    noisy = Sample(np.array([-4.0, -2.0, 0.0, 2.0, 4.0]))
    effects = simultaneous([noisy, *calm], FAMILY)
    own = noisy.values.var(ddof=1) / 5
    assert effects[BOTH_OR_NEITHER].error >= math.sqrt(own)
    assert effects[SIGN_OR_ADAPTATION].error < effects[BOTH_OR_NEITHER].error


def test_equal_values_everywhere():
    made = [Sample(np.full(3, 0.5))] * 4
    for effect in (*simultaneous(made, FAMILY).values(), single(made, WEIGHTS[SIGN])):
        assert effect.estimate == 0.0
        assert effect.interval == (0.0, 0.0)
        assert effect.direction == 0


def test_rounding_alone_is_no_effect():
    values = np.array([0.1, 0.2, 0.3])
    made = [Sample(values), Sample(values[::-1] + 1e-16), Sample(values), Sample(values)]
    assert single(made, WEIGHTS[SIGN_OR_ADAPTATION]).estimate == 0.0


class TestChoice:
    def candidates(self, *means, n=4, spread=1.0, survival=1.0):
        offsets = np.linspace(-spread, spread, n)
        return [Candidate(m + offsets, m + offsets, survival) for m in means]

    def test_no_choice_adds_nothing(self):
        values = np.zeros(3)
        assert choice_variance(Sample(values)) == 0.0
        assert choice_variance(Sample(values, self.candidates(1.0))) == 0.0

    def test_a_clear_choice_adds_next_to_nothing(self):
        assert choice_variance(Sample(np.zeros(3), self.candidates(0.0, 50.0, 0.0), 1)) < 1e-12

    def test_two_equal_candidates(self):
        """Regret is max(0, d) with d normal: its variance is (1/2 - 1/(2 pi)) var(d)."""
        made = self.candidates(0.0, 0.0, n=5)
        variance = made[0].merits.var(ddof=1) * 2 / 5
        expected = (0.5 - 1 / (2 * math.pi)) * variance
        assert choice_variance(Sample(np.zeros(3), made)) == pytest.approx(expected, rel=0.12)

    def test_more_selection_runs_leave_less(self):
        few, many = (
            choice_variance(Sample(np.zeros(3), self.candidates(0.0, 0.1, n=n))) for n in (3, 30)
        )
        assert many < few / 5

    def test_a_figure_that_the_choice_does_not_change(self):
        made = [Candidate(c.merits, np.full(4, 2.0)) for c in self.candidates(0.0, 0.0)]
        assert choice_variance(Sample(np.zeros(3), made)) == 0.0

    def test_a_better_step_size_that_may_survive_another_time_counts(self):
        stable, unstable = self.candidates(0.0)[0], self.candidates(5.0, survival=0.5)[0]
        value = choice_variance(Sample(np.zeros(3), [stable, unstable], 0))
        assert value == pytest.approx(0.25 * 5.0**2, rel=0.15)
        gone = Candidate(unstable.merits, unstable.values, 0.0)
        assert choice_variance(Sample(np.zeros(3), [stable, gone], 0)) == 0.0


class TestEquality:
    def test_within_is_two_one_sided_tests(self):
        effect = Effect(0.3, (-1.0, 1.0), error=0.2, freedom=10)
        edge = 0.3 + stats.t.ppf(0.95, 10) * 0.2
        assert effect.within(edge + 1e-9)
        assert not effect.within(edge - 1e-9)
        assert Effect(-0.3, (-1.0, 1.0), 0.2, 10).within(edge + 1e-9)

    def test_power_is_what_simulation_gives(self):
        rng = np.random.default_rng(3)
        found = np.abs(rng.normal(0, 0.3, 100_000)) + stats.t.ppf(0.95, 20) * 0.3 < 0.8
        power = Effect(0.0, (-1.0, 1.0), error=0.3, freedom=20).power_within(0.8)
        assert power == pytest.approx(found.mean(), abs=0.01)
        assert Effect(0.0, (-1.0, 1.0), error=0.6, freedom=20).power_within(0.8) == 0.0

    def test_without_an_interval_nothing_is_equal(self):
        assert not Effect(0.0, None).within(1.0)


@pytest.mark.parametrize("n", [3, 10])
def test_families_hold_together_as_often_as_they_say(n):
    """Without a choice, normal, equal variances: joint coverage 95 % of 2,000, +- 3 errors."""
    rng = np.random.default_rng(4)
    truth = (0.0, 1.0, -1.0, 0.5)
    held = 0
    for _ in range(2000):
        effects = simultaneous(samples(rng, truth, n), FAMILY)
        held += all(
            e.interval[0] <= WEIGHTS[name] @ np.array(truth) <= e.interval[1]
            for name, e in effects.items()
        )
    assert held / 2000 == pytest.approx(0.955, abs=0.02)


def test_single_intervals_hold_as_often_as_they_say():
    rng = np.random.default_rng(6)
    held = [
        e.interval[0] <= 0 <= e.interval[1]
        for e in (
            single([Sample(rng.normal(0, sd, 4)) for sd in (0.2, 1, 1, 3)], WEIGHTS[SIGN])
            for _ in range(2000)
        )
    ]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_the_difference_of_two_methods():
    a, b = Sample(np.array([1.0, 2.0])), Sample(np.array([0.0, 0.5]))
    assert contrasts.difference(a, b).estimate == 1.25
