"""Choosing a weight decay: intervals against t tables and brute force, and their coverage."""

import numpy as np
import pytest
from scipy import stats

from wd_plasticity.analysis import decay_choice, two_way
from wd_plasticity.bench import coverage


def _normal(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape)


def test_mean_over_seeds_without_items_has_the_interval_of_student():
  x_DxSxI = _normal(0, 1, 4, 1)
  fit = two_way.draws([x_DxSxI], num_draws=400_000)
  low_D, high_D = decay_choice.intervals(fit.draws_BxD)
  values = x_DxSxI.ravel()
  expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
  np.testing.assert_allclose([low_D[0], high_D[0]], expected, atol=0.02)


def test_difference_of_two_decays_has_the_interval_of_the_paired_t_test():
  x_DxSxI = _normal(1, 2, 4, 1)
  fit = two_way.draws([x_DxSxI], num_draws=400_000)
  low, high = np.quantile(fit.draws_BxD[:, 1] - fit.draws_BxD[:, 0], (0.025, 0.975))
  expected = stats.ttest_rel(x_DxSxI[1, :, 0], x_DxSxI[0, :, 0]).confidence_interval(0.95)
  np.testing.assert_allclose([low, high], [expected.low, expected.high], atol=0.04)


def test_one_seed_has_the_standard_error_of_its_items_paired_between_decays():
  x_DxSxI = _normal(2, 2, 1, 500)
  fit = two_way.draws([x_DxSxI])
  assert fit.own is None and fit.shared is None and fit.known
  np.testing.assert_allclose(fit.draws_BxD.std(0), stats.sem(x_DxSxI[:, 0], axis=1), rtol=0.05)
  paired = stats.sem(x_DxSxI[1, 0] - x_DxSxI[0, 0])
  np.testing.assert_allclose((fit.draws_BxD[:, 1] - fit.draws_BxD[:, 0]).std(), paired, rtol=0.05)


def test_items_shared_by_all_cancel_in_differences():
  difficulty_I = 10 * _normal(3, 300)
  x_DxSxI = difficulty_I + np.array([0.0, 1.0])[:, None, None] + np.zeros((2, 3, 300))
  fit = two_way.draws([x_DxSxI])
  assert fit.draws_BxD[:, 0].std() > 0.5
  np.testing.assert_allclose(fit.draws_BxD[:, 1] - fit.draws_BxD[:, 0], 1.0, atol=1e-4)


def test_many_items_are_drawn_from_the_limit_of_the_bootstrap():
  x_DxSxI = _normal(4, 3, 1, 2500) + _normal(5, 2500)
  fit = two_way.draws([x_DxSxI])
  np.testing.assert_allclose(np.cov(fit.draws_BxD.T), np.cov(x_DxSxI[:, 0]) / 2500, rtol=0.12)


def test_strata_are_the_mean_squares_of_an_analysis_of_variance_by_hand():
  x = _normal(6, 3, 2, 5)  # [D, S, I]
  fit = two_way.draws([x])
  m, grand = x.mean(2), x.mean()
  own = sum((m[d, s] - m[d].mean() - m[:, s].mean() + grand) ** 2
            for d in range(3) for s in range(2)) / (2 * 1)
  rest = 0.0
  for d in range(3):
    for s in range(2):
      for i in range(5):
        rest += (x[d, s, i] - x[d, s].mean() - x[d, :, i].mean() - x[:, s, i].mean()
                 + x[d].mean() + x[:, s].mean() + x[:, :, i].mean() - grand) ** 2
  assert fit.own.mean_square == pytest.approx(own)
  assert fit.own.rest == pytest.approx(rest / (2 * 1 * 4) / 5)
  assert (fit.own.freedom, fit.shared.freedom) == (2, 1)
  assert fit.shared.mean_square == pytest.approx((m[:, 0].mean() - m[:, 1].mean()) ** 2 / 2)


def test_noise_of_seed_and_item_counts_once():
  """The mean of independent scores has variance 1 / (S I), not twice that."""
  total, n = 0.0, 60
  for seed in range(n):
    fit = two_way.draws([_normal([7, seed], 6, 12, 80)], num_draws=1000)
    total += np.var(fit.draws_BxD[:, 1] - fit.draws_BxD[:, 0]) / n
  # twice 1 / (S I), and what the tails of 55 degrees of freedom add to one part of it
  assert total == pytest.approx(2 / (12 * 80), rel=0.08)


def test_missing_members_nest_seeds_in_decays():
  x = _normal(8, 3, 3, 1)
  x[1, 2] = np.nan
  fit = two_way.draws([x])
  within = [x[0, :, 0], x[1, :2, 0], x[2, :, 0]]
  assert fit.shared is None and fit.own.freedom == 5
  assert fit.own.mean_square == pytest.approx(sum(v.var(ddof=1) * (len(v) - 1) for v in within) / 5)
  assert list(fit.seeds_D) == [3, 2, 3]
  np.testing.assert_allclose(fit.mean_D, [v.mean() for v in within])


def test_items_that_do_not_count_for_a_member_are_left_out_for_all():
  x = _normal(9, 2, 2, 6)
  y = x.copy()
  y[0, 1, 3] = np.nan
  fit = two_way.draws([y])
  np.testing.assert_allclose(fit.mean_D, np.delete(x, 3, axis=2).mean((1, 2)))
  assert fit.items == 5


def test_tasks_weigh_equally_and_given_errors_are_used():
  a, b = np.zeros((2, 1, 100)), np.ones((2, 1, 1))
  fit = two_way.draws([a, b], [None, np.full((2, 1), 0.2)])
  np.testing.assert_allclose(fit.mean_D, 0.5)
  np.testing.assert_allclose(fit.draws_BxD.std(0), 0.1, rtol=0.05)
  with pytest.raises(ValueError, match="needs a member"):
    two_way.draws([np.full((2, 1, 3), np.nan)])


def test_best_is_probable_and_ties_are_the_ones_that_are_close():
  mean_D = np.array([0.0, 3.0, 2.9, -3.0])
  draws_BxD = mean_D + 0.2 * _normal(10, 20_000, 4)
  best_D = decay_choice.probability_best(draws_BxD)
  difference = stats.norm.cdf(0.1 / (0.2 * 2**0.5))
  np.testing.assert_allclose(best_D, [0, difference, 1 - difference, 0], atol=0.01)
  assert decay_choice.ties(mean_D, draws_BxD) == [2]
  # Dunnett's one-sided critical value for three others is what the best has to exceed
  expected = 2.0621  # of 3 normal comparisons with a control, correlation 1/2
  for factor, tied in ((0.96, True), (1.04, False)):
    centre_D = np.array([0.0, expected * factor * 0.2 * 2**0.5, 0.0, 0.0])
    found = decay_choice.ties(centre_D, centre_D + draws_BxD - mean_D)
    assert (0 in found) == tied


def test_cost_has_the_interval_of_a_difference_for_one_clear_winner_and_0_for_the_best():
  noise_BxD = 0.1 * _normal(11, 100_000, 3)
  mean_D = np.array([0.0, 5.0, -5.0])
  value, low, high = decay_choice.cost(mean_D, mean_D + noise_BxD, 0)
  half = 1.96 * 0.1 * 2**0.5
  np.testing.assert_allclose([value, low, high], [5, 5 - half, 5 + half], atol=0.005)
  assert decay_choice.cost(mean_D, mean_D + noise_BxD, 1) == (0.0, 0.0, 0.0)


def test_correlation_is_that_of_scipy_and_needs_four_decays():
  x, y = _normal(12, 6), _normal(13, 6)
  r = stats.pearsonr(x, y)
  interval = r.confidence_interval(0.95)
  np.testing.assert_allclose(decay_choice.correlation(x, y),
                             [r.statistic, interval.low, interval.high], rtol=1e-5)
  assert decay_choice.correlation(x[:3], y[:3]) is None
  assert decay_choice.correlation(np.ones(5), y[:5]) is None
  without = decay_choice.leave_one_out(x, y)
  assert without[2] == pytest.approx(stats.pearsonr(np.delete(x, 2), np.delete(y, 2)).statistic)


def test_folds_are_halves_that_depend_on_the_keys_alone():
  keys = [f"p{i}" for i in range(101)]
  fold_I = decay_choice.folds(keys)
  assert fold_I.sum() == 50
  order = np.random.default_rng(0).permutation(101)
  np.testing.assert_array_equal(decay_choice.folds([keys[i] for i in order]), fold_I[order])


def test_choosing_rates_on_the_same_items_is_biased_and_crossing_is_not():
  """Eight rates that are all alike: the truth is 0 whichever is chosen."""
  fold_I = decay_choice.folds([str(i) for i in range(60)])
  naive, crossed = [], []
  for seed in range(300):
    x_RxDxSxI = _normal([14, seed], 8, 1, 2, 60)
    naive.append(x_RxDxSxI.mean((2, 3)).max())
    made, chosen = decay_choice.cross_fit(x_RxDxSxI, fold_I)
    assert len(chosen[0]) == 2
    crossed.append(made.mean())
  assert np.mean(naive) > 10 * stats.sem(naive)
  assert abs(np.mean(crossed)) < 3 * stats.sem(crossed)


def test_cross_fit_takes_the_better_rate_and_drops_members_that_lack_it():
  x = np.zeros((2, 2, 2, 8))
  x[1, 0], x[0, 1] = 1.0, 1.0
  x[0, 1, 1] = np.nan  # decay 1 has one seed at rate 0, so that rate 1 is all it can choose
  made, chosen = decay_choice.cross_fit(x, np.arange(8) % 2)
  assert chosen == [[1, 1], [1, 1]]
  np.testing.assert_array_equal(made.mean(2), [[1, 1], [0, 0]])
  x[:, 1] = np.nan
  made, chosen = decay_choice.cross_fit(x, np.arange(8) % 2)
  assert chosen[1] == [] and np.isnan(made[1]).all()


def test_needed_is_what_would_make_the_interval_as_small_as_the_gap():
  x = _normal(15, 2, 1, 400)
  x[1] += 0.02 - x[1].mean() + x[0].mean()
  items, seeds, both = two_way.needed(two_way.draws([x]), 0, 1)
  se = stats.sem(x[1, 0] - x[0, 0])
  assert items == pytest.approx((1.96 * se / 0.02) ** 2, rel=1e-3)
  assert seeds == np.inf and both == pytest.approx(items)


def test_intervals_cover_in_simulated_studies():
  rows = coverage.simulate(100, 1, ((2, 1), (3, 1)))
  for name, low in (("mean", 0.91), ("difference", 0.91), ("cost", 0.92), ("best or tied", 0.92)):
    assert np.mean([row[3][name] for row in rows]) >= low, name
  assert np.mean([row[3]["difference"] for row in rows]) <= 0.99
