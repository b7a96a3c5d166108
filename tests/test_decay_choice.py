"""Choosing a weight decay: intervals against t tables and brute force, and their coverage."""

import numpy as np
import pytest
from scipy import stats

from wd_plasticity.analysis import decay_choice, seed_variance, two_way
from wd_plasticity.bench import coverage, simulated_study


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


def test_items_are_drawn_with_their_covariance():
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
  assert (round(fit.own.freedom), fit.shared.freedom) == (2, 1)
  # Decays weigh by how sure they are: (1 seed - 1) of its own and two degrees of the pooled one.
  residual = m - m.mean(1, keepdims=True) - m.mean(0) + m.mean()
  square = (residual**2).sum(1)  # E[square_d] = v_d (1 - 2 / 3) + sum(v) / 9, times (2 - 1)
  each = np.linalg.solve(np.eye(3) / 3 + 1 / 9, square)
  moderated = (np.maximum(each, 0) + 2 * own) / 3
  np.testing.assert_allclose(fit.own.each_D, moderated)
  weighted = np.average(m, axis=0, weights=1 / moderated)
  assert fit.shared.mean_square == pytest.approx((weighted[0] - weighted[1]) ** 2 / 2)


def test_noise_of_seed_and_item_counts_once():
  """The mean of independent scores has variance 1 / (S I), not twice that."""
  total, n = 0.0, 60
  for seed in range(n):
    fit = two_way.draws([_normal([7, seed], 6, 12, 80)], num_draws=1000)
    difference = fit.draws_BxD[:, 1] - fit.draws_BxD[:, 0]
    total += np.subtract(*np.quantile(difference, (0.84134, 0.15866))) ** 2 / 4 / n
  # 2 / (S I), and what the tails of the seeds' few degrees of freedom add
  assert 0.95 < total / (2 / (12 * 80)) < 1.2


def test_missing_members_leave_the_others_paired():
  """Least squares by hand: residuals of decay and seed; large shared effects of seeds cancel."""
  x = _normal(8, 4, 3, 1) + 50 * _normal(88, 3, 1)
  x[1, 2] = np.nan
  fit = two_way.draws([x])
  there = ~np.isnan(x[..., 0])
  d, s = np.nonzero(there)
  design = np.concatenate([np.eye(4)[d], np.eye(3)[s]], 1)
  residual = x[there][:, 0] - design @ np.linalg.lstsq(design, x[there][:, 0], rcond=None)[0]
  assert round(fit.own.freedom) == 11 - 6 and list(fit.seeds_D) == [3, 2, 3, 3]
  assert fit.own.mean_square == pytest.approx(np.sum(residual**2) / 5)
  np.testing.assert_allclose(fit.mean_D, [np.nanmean(v) for v in x])
  low, high = np.quantile(fit.draws_BxD[:, 3] - fit.draws_BxD[:, 0], (0.025, 0.975))
  assert high - low < 15  # unpaired it would be more than 100


def test_decays_that_share_no_seeds_have_the_variance_within_decays():
  x = np.full((2, 4, 1), np.nan)
  x[0, :2], x[1, 2:] = _normal(18, 2, 1), _normal(19, 2, 1)
  fit = two_way.draws([x], num_draws=400_000)
  within = [x[0, :2, 0], x[1, 2:, 0]]
  assert fit.shared is None and fit.own.mean_square == pytest.approx(
      sum(v.var(ddof=1) for v in within) / 2)
  low, high = np.quantile(fit.draws_BxD[:, 1] - fit.draws_BxD[:, 0], (0.025, 0.975))
  expected = stats.ttest_ind(within[1], within[0]).confidence_interval(0.95)
  np.testing.assert_allclose([low, high], [expected.low, expected.high], atol=0.05)


def test_the_noise_of_a_decay_is_told_from_that_of_others():
  """With enough seeds each decay has its own variance, as of Welch's test."""
  x = _normal(20, 3, 400, 1) * np.array([3.0, 1.0, 1.0])[:, None, None]
  own = two_way.draws([x]).own
  np.testing.assert_allclose(own.each_D, [9.0, 1.0, 1.0], rtol=0.2)
  assert own.mean_square == pytest.approx(11 / 3, rel=0.2)


def test_errors_of_means_do_not_fall_with_seeds_that_saw_the_same_problems():
  """Problems always or never solved: five seeds say what one does."""
  x, errors = np.full((2, 5, 1), 0.5), np.full((2, 5), 0.02)
  fit = two_way.draws([x], [errors])
  np.testing.assert_allclose(fit.draws_BxD.std(0), 0.02, rtol=0.05)
  solved_I = (np.random.default_rng(21).random(600) < 0.5).astype(float)
  by_item = two_way.draws([np.broadcast_to(solved_I, (2, 5, 600)).copy()])
  of_means = two_way.draws([np.full((2, 5, 1), solved_I.mean())],
                           [np.full((2, 5), stats.sem(solved_I))])
  np.testing.assert_allclose(of_means.draws_BxD.std(0), by_item.draws_BxD.std(0), rtol=0.07)


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
  best_D = decay_choice.probability_best(mean_D, draws_BxD, np.full_like(draws_BxD, 0.2))
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


def _chosen_of_level_rates(num_seeds, noise_of_items):
  """Means that are chosen naively, on other items alone, and by `cross_fit`; the truth is 0."""
  fold_I = np.arange(60) % 2
  naive, items, crossed = [], [], []
  for seed in range(400):
    x_RxDxSxI = noise_of_items * _normal([14, seed], 8, 1, num_seeds, 60) + (
        _normal([15, seed], 8, 1, num_seeds, 1))  # the luck of each run
    naive.append(x_RxDxSxI.mean((2, 3)).max())
    alone, _ = decay_choice.cross_fit(x_RxDxSxI.mean(2, keepdims=True), fold_I)
    made, picked_DxSx2 = decay_choice.cross_fit(x_RxDxSxI, fold_I)
    assert picked_DxSx2.shape == (1, num_seeds, 2) and picked_DxSx2.min() >= 0
    items.append(alone.mean())
    crossed.append(made.mean())
  return naive, items, crossed


@pytest.mark.parametrize("num_seeds", [2, 4])
def test_choosing_rates_by_the_luck_of_runs_is_biased_and_crossing_seeds_is_not(num_seeds):
  naive, items, crossed = _chosen_of_level_rates(num_seeds, 0.3)
  assert np.mean(naive) > 10 * stats.sem(naive)
  assert np.mean(items) > 10 * stats.sem(items)  # other problems alone do not help
  assert abs(np.mean(crossed)) < 3 * stats.sem(crossed)


def test_one_seed_chooses_on_other_items():
  made, picked_DxSx2 = decay_choice.cross_fit(
      np.array([[1.0, 0, 1, 0], [0, 1, 0, 1]])[:, None, None], np.arange(4) % 2)
  # Each half is judged at what was best on the other half, here the worse one.
  np.testing.assert_array_equal(picked_DxSx2, [[[1, 0]]])
  np.testing.assert_array_equal(made, np.zeros((1, 1, 4)))


def test_cross_fit_takes_the_better_rate_and_drops_members_that_lack_it():
  x = np.zeros((2, 2, 3, 8))
  x[1, 0], x[0, 1] = 1.0, 1.0
  x[0, 1, 1] = np.nan  # seed 1 of decay 1 was not run at its best rate
  made, picked_DxSx2 = decay_choice.cross_fit(x, np.arange(8) % 2)
  np.testing.assert_array_equal(picked_DxSx2[0], np.ones((3, 2)))
  np.testing.assert_array_equal(picked_DxSx2[1], [[0, 0], [-1, -1], [0, 0]])
  assert np.nanmin(made) == 1.0 and np.isnan(made[1, 1]).all() and not np.isnan(made[1, 0]).any()
  x[:, 1] = np.nan
  made, picked_DxSx2 = decay_choice.cross_fit(x, np.arange(8) % 2)
  assert picked_DxSx2[1].max() == -1 and np.isnan(made[1]).all()


def test_rates_are_compared_on_the_seeds_that_they_share():
  """A rate that only the better seed has does not win by that seed."""
  x = np.zeros((2, 1, 3, 4))
  x[:, 0, 0] += 5.0  # a good seed
  x[1] -= 1.0  # a worse rate
  x[1, 0, 1] = np.nan
  _, picked_DxSx2 = decay_choice.cross_fit(x, np.arange(4) % 2)
  np.testing.assert_array_equal(picked_DxSx2, np.zeros((1, 3, 2)))


def test_choosing_on_each_other_widens_the_error():
  """Two seeds that choose from four equal rates: the mean's variance is 1.35 times as large."""
  x = _normal(22, 100_000, 4, 2)
  first, second = x[..., 0].argmax(1), x[..., 1].argmax(1)
  n = np.arange(len(x))
  mean = (x[n, second, 0] + x[n, first, 1]) / 2
  assert seed_variance._inflation(4, 2) == pytest.approx(2 * mean.var(), rel=0.03)
  assert seed_variance._inflation(1, 2) == 1.0


def test_the_interval_of_the_largest_is_its_own_when_it_is_alone_and_lower_among_equals():
  noise_BxD = _normal(23, 200_000, 5)
  mean_D = np.array([0.0, 9.0, 0.0, 0.0, 0.0])
  np.testing.assert_allclose(decay_choice.best_interval(mean_D, mean_D + noise_BxD),
                             [9 - 1.96, 9 + 1.96], atol=0.03)
  level_D = np.zeros(5)
  low, high = decay_choice.best_interval(level_D, noise_BxD)
  assert low == pytest.approx(-stats.norm.ppf(0.95 ** (1 / 5)), abs=0.03)  # of five
  assert high == pytest.approx(1.96, abs=0.03)


@pytest.mark.parametrize("decays", [5, 9])
def test_the_interval_of_the_decay_that_is_named_best_covers(decays):
  marginal, after = [], []
  for seed in range(600):
    truth_D = np.zeros(decays)
    mean_D = _normal([24, decays, seed], decays)
    draws_BxD = mean_D + _normal([25, seed], 1000, decays)
    best = int(np.argmax(mean_D))
    low_D, high_D = decay_choice.intervals(draws_BxD)
    marginal.append(low_D[best] <= truth_D[best] <= high_D[best])
    low, high = decay_choice.best_interval(mean_D, draws_BxD)
    after.append(low <= truth_D[best] <= high)
  assert np.mean(marginal) < 0.91 and 0.925 < np.mean(after) < 0.98


def test_probabilities_shrink_by_as_much_as_errors_explain():
  """Means no further apart than their errors make the best less sure than flat draws do."""
  mean_D = np.array([1.0, 0.3, 0.0, -0.4, -0.9])
  draws_BxD = mean_D + _normal(26, 20_000, 5)
  flat = np.mean(draws_BxD.argmax(1) == 0)
  ones_BxD = np.ones_like(draws_BxD)
  assert 0.2 < decay_choice.probability_best(mean_D, draws_BxD, ones_BxD)[0] < flat - 0.03
  for times in (50, 1e5):
    far_BxD = draws_BxD + (times - 1) * mean_D
    assert decay_choice.probability_best(times * mean_D, far_BxD, ones_BxD)[0] > 0.999


def test_probabilities_are_those_of_a_bayesian_who_knows_the_errors(monkeypatch):
  """Against integration on a grid: two decays, errors of 1 or 3 with equal odds, spread 2."""
  monkeypatch.setattr(decay_choice, "_SPREADS", 1)
  monkeypatch.setattr(decay_choice, "_PRIOR", 2.0)  # tan 45 degrees: the one spread
  monkeypatch.setattr(decay_choice, "_NOISE", 1.0)
  rng = np.random.default_rng(28)
  mean_D = np.array([2.0, 0.0])
  scale_BxD = np.where(rng.random((200_000, 2)) < 0.5, 1.0, 3.0)
  draws_BxD = mean_D + scale_BxD * rng.standard_normal(scale_BxD.shape)
  # in units of the typical error, that of the median
  typical = np.sqrt(np.mean(np.median(scale_BxD, axis=0) ** 2))
  made = decay_choice.probability_best(mean_D, draws_BxD, scale_BxD)
  grid = np.linspace(-60, 60, 4001)  # mu_0 - mu_1, normal around 0
  prior = stats.norm.pdf(grid, 0, 2.0 * typical * 2**0.5)
  likelihood = np.mean([stats.norm.pdf(2.0, grid, np.hypot(a, b))
                        for a in (1.0, 3.0) for b in (1.0, 3.0)], axis=0)
  posterior = prior * likelihood
  assert made[0] == pytest.approx(posterior[grid > 0].sum() / posterior.sum(), abs=0.01)


def test_what_is_learnt_is_above_its_base_and_away_from_chance():
  rng = np.random.default_rng(27)
  def solved(*p):
    return (rng.random((len(p), 2, 400)) < np.array(p)[:, None, None]).astype(float)
  guessing, learnt, one = solved(0.25, 0.25, 0.25), solved(0.6, 0.6, 0.6), solved(0.25, 0.5, 0.25)
  assert decay_choice.is_learnt(learnt, guessing, 0.25)
  assert decay_choice.is_learnt(one, guessing, 0.25)  # one decay is enough
  assert not decay_choice.is_learnt(solved(0.25, 0.25, 0.25), guessing, None)
  assert not decay_choice.is_learnt(learnt, learnt + 0.01, 0.25)  # the base model knew it before
  # Better than its base model, and still guessing.
  assert not decay_choice.is_learnt(solved(0.5, 0.5, 0.5), guessing, 0.5)
  assert decay_choice.is_learnt(learnt, None, None)  # nothing is known against it


def test_needed_is_what_would_make_the_interval_as_small_as_the_gap():
  x = _normal(15, 2, 1, 400)
  x[1] += 0.02 - x[1].mean() + x[0].mean()
  items, seeds, both = two_way.needed(two_way.draws([x]), 0, 1)
  se = stats.sem(x[1, 0] - x[0, 0])
  assert items == pytest.approx((1.96 * se / 0.02) ** 2, rel=1e-3)
  assert seeds == np.inf and both == pytest.approx(items)


@pytest.mark.parametrize("setting", [
    simulated_study.Setting(2), simulated_study.Setting(3, noise=3.0),
    simulated_study.Setting(2, rates=4, noise=3.0), simulated_study.Setting(3, missing=0.2),
    simulated_study.Setting(2, tasks=2, unlearnt=1)], ids=lambda s: s.name)
def test_intervals_cover_in_simulated_studies(setting):
  """Of 60 studies, so with an error of two points or three; bench/coverage.py has the figures."""
  rows = coverage.simulate(setting, 60, 1)
  for name, low in (("mean", 0.91), ("difference", 0.91), ("difference to 0", 0.88),
                    ("best mean", 0.88), ("cost", 0.88), ("best or tied", 0.9)):
    assert np.mean([rows[t][name] for t in simulated_study.TRUTHS]) >= low, name


def test_simulated_problems_are_solved_as_often_as_their_truth_says():
  rng = np.random.default_rng(3)
  mu_D = np.array([0.01, -0.01, 0.03])
  for setting in (simulated_study.Setting(40, rates=3, peaked=True),
                  simulated_study.Setting(40, extreme=True),
                  simulated_study.Setting(40, unlearnt=1)):
    tasks = [simulated_study.make(rng, setting, mu_D).tasks[0] for _ in range(40)]
    mean_RxD = np.mean([t.scores_RxDxSxI.mean((2, 3)) for t in tasks], axis=0)
    np.testing.assert_allclose(mean_RxD, tasks[0].truth_RxD, atol=0.015)
