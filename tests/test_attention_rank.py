"""Spectra of attention products against numpy's SVD of the whole product; measures; program."""

import io
import json
import re

import jax
import numpy as np
import programs
import pytest
import tiny
from rich.console import Console

from wd_plasticity.analysis import attention_rank as ar
from wd_plasticity.errors import UserError
from wd_plasticity.evals import attention_rank as rank_program
from wd_plasticity.evals import attention_rank_plot, attention_rank_summary, program
from wd_plasticity.evals.config import attention_rank_config
from wd_plasticity.interop import transformers_weights
from wd_plasticity.models import decoder
from wd_plasticity.models.config import ModelConfig, preset_section


@pytest.fixture(autouse=True)
def one_lapack_thread():
  with ar.one_lapack_thread():
    yield


def model(family="llama2", **sizes):
  section = preset_section(family, "0.3m") | dict(
      vocab_size=16, compute_dtype="float32", attention="auto", document_mask=False,
      scan_layers=True, remat="none", num_layers=2, width=48, num_heads=4, num_kv_heads=4,
      head_dim=8, ffn_width=8) | sizes
  return ModelConfig.from_section(section, 16)


def random_params(config, seed=0):
  """Weights with spectra that fall over three orders of magnitude, and gains that are not 1."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(lambda: decoder.init_params(config, jax.random.key(0)))
  params = jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)
  for part in params["layers"]["attention"].values():
    if "kernel" in part:
      part["kernel"] *= rng.permutation(np.geomspace(1, 1e-3, part["kernel"].shape[-1]))
  return params


def full_products(params, config, fold=False):
  """numpy, float64, the whole product of every head: {"qk", "vp"} [N, H, min(K, D)]."""
  attention = params["layers"]["attention"]
  w = {n: np.asarray(attention[n]["kernel"], np.float64)
       for n in ("query", "key", "value", "output")}
  size, group = config.head_dim, config.num_heads // config.num_kv_heads
  found = {"qk": [], "vp": []}
  for n in range(config.num_layers):
    for h in range(config.num_heads):
      q, kv = slice(h * size, (h + 1) * size), slice(h // group * size, (h // group + 1) * size)
      query, key = w["query"][n][:, q], w["key"][n][:, kv]
      if fold:
        query = query @ np.diag(attention["query_norm"]["scale"][n][q].astype(np.float64))
        key = key @ np.diag(attention["key_norm"]["scale"][n][kv].astype(np.float64))
      products = {"qk": query @ key.T, "vp": w["value"][n][:, kv] @ w["output"][n][q]}
      for name, product in products.items():
        found[name].append(np.linalg.svd(product, compute_uv=False)[:min(size, config.width)])
  shape = config.num_layers, config.num_heads, -1
  return {name: np.reshape(values, shape) for name, values in found.items()}


def assert_close(found, expected):
  for name in expected:
    largest = expected[name].max(axis=-1, keepdims=True)
    assert found[name].shape == expected[name].shape
    assert np.abs(found[name] - expected[name]).max() > 0  # float32 against float64
    assert (np.abs(found[name] - expected[name]) / largest).max() < 1e-5


@pytest.mark.parametrize("sizes", [
    dict(), dict(num_kv_heads=2), dict(num_kv_heads=1), dict(width=6, head_dim=8),
    dict(width=200, head_dim=64, num_heads=2, num_kv_heads=1, num_layers=1)],
    ids=["mha", "gqa", "mqa", "heads wider than the model", "wide"])
def test_equals_svd_of_the_whole_product(sizes):
  config = model(**sizes)
  params = random_params(config)
  found = jax.jit(ar.attention_spectra, static_argnums=1)(params, config)
  assert_close(found, full_products(params, config))


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_gains_of_the_qk_norm(fold, num_kv_heads):
  config = model("olmo2", num_kv_heads=num_kv_heads)
  params = random_params(config)
  found = ar.attention_spectra(params, config, fold)
  assert_close(found, full_products(params, config, fold))
  other = ar.attention_spectra(params, config, not fold)
  assert not np.allclose(found["qk"], other["qk"], rtol=0.01)
  np.testing.assert_array_equal(found["vp"], other["vp"])


def test_trailing_values_of_a_nearly_singular_product():
  config = model(width=64, head_dim=16, num_heads=1, num_kv_heads=1, num_layers=1)
  params = random_params(config)
  rng = np.random.default_rng(1)
  u = np.linalg.qr(rng.standard_normal((16, 16)))[0]
  for name in ("query", "key"):  # values of the product from 1 to 1e-12
    q = np.linalg.qr(rng.standard_normal((64, 16)))[0]
    params["layers"]["attention"][name]["kernel"][0] = q * np.geomspace(1, 1e-6, 16) @ u.T
  found = np.asarray(ar.query_key_spectra(params, config))[0, 0]
  np.testing.assert_allclose(found, np.geomspace(1, 1e-12, 16), atol=1e-6)


def test_stacked_members_equal_single_ones():
  config = model("olmo2", num_kv_heads=2)
  members = [random_params(config, seed) for seed in (1, 2, 3)]
  stacked = jax.tree.map(lambda *x: np.stack(x), *members)
  fn = lambda p: ar.attention_spectra(p, config, True)
  axes, mapped = fn(stacked), jax.vmap(fn)(stacked)
  for m, params in enumerate(members):
    single = fn(params)
    for name in single:
      np.testing.assert_allclose(axes[name][m], single[name], rtol=2e-6, atol=1e-7)
      np.testing.assert_allclose(mapped[name][m], single[name], rtol=2e-6, atol=1e-7)


def test_zero_weights():
  config = model()
  params = jax.tree.map(np.zeros_like, random_params(config))
  for s in ar.attention_spectra(params, config).values():
    found = ar.measures(s)
    assert set(found) == {"pseudo_rank", "effective_rank", "stable_rank", "participation_ratio",
                          "spectral_norm", "frobenius_norm", "nuclear_norm"}
    for value in found.values():
      np.testing.assert_array_equal(value, np.zeros((2, 4)))


@pytest.mark.parametrize("family", ["llama2", "olmo2"])
def test_imported_weights(family):
  config = model(family)
  params = random_params(config)
  tensors = transformers_weights.to_transformers(params, config)
  imported = transformers_weights.from_transformers(tensors, config)
  # Heads and gains as transformers cuts them: a weight is [outputs, inputs].
  heads = tensors["model.layers.1.self_attn.q_proj.weight"].reshape(4, 8, 48)
  keys = tensors["model.layers.1.self_attn.k_proj.weight"].reshape(4, 8, 48)
  product = heads[2].T.astype(np.float64) @ keys[2]
  expected = np.linalg.svd(product, compute_uv=False)[:8]
  found = np.asarray(ar.attention_spectra(imported, config)["qk"])[1, 2]
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected[0])


# Measures.

def test_measures_of_known_spectra():
  s = np.array([8.0, 4.0, 2.0, 1.0, 1.0])
  found = ar.measures(s)
  p = s / 16
  assert found["pseudo_rank"] == 5  # 15/16 is 93.75 %
  assert found["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))
  assert found["effective_rank"] == pytest.approx(2**1.875)  # by hand: entropy of 1.875 bits
  assert found["stable_rank"] == pytest.approx(86 / 64)
  assert found["participation_ratio"] == pytest.approx(86**2 / (4096 + 256 + 16 + 2))
  assert found["spectral_norm"] == 8
  assert found["frobenius_norm"] == pytest.approx(np.sqrt(86))
  assert found["nuclear_norm"] == 16


def test_measures_of_matrices():
  rng = np.random.default_rng(0)
  rank_one = np.outer(rng.standard_normal(9), rng.standard_normal(9))
  matrices = np.stack([np.eye(9), rank_one, 1e-30 * np.eye(9), 1e30 * rank_one])
  s = np.linalg.svd(matrices, compute_uv=False)
  found = ar.measures(s)
  for name in ("pseudo_rank", "effective_rank", "stable_rank", "participation_ratio"):
    np.testing.assert_allclose(found[name], [9, 1, 9, 1], rtol=1e-9)
  np.testing.assert_allclose(found["frobenius_norm"], np.linalg.norm(matrices, axis=(1, 2)))
  np.testing.assert_allclose(found["spectral_norm"], np.linalg.norm(matrices, 2, axis=(1, 2)))
  np.testing.assert_allclose(found["nuclear_norm"], np.linalg.norm(matrices, "nuc", axis=(1, 2)))


@pytest.mark.parametrize("threshold, power, expected", [
    (0.5, 1, 1), (0.75, 1, 2), (0.7500001, 1, 2), (0.751, 1, 3), (0.95, 1, 5), (1.0, 1, 5),
    (0.95, 2, 3), (0.90, 2, 2)])
def test_pseudo_rank(threshold, power, expected):
  # 8, 12, 14, 15, 16 of 16; squares 64, 80, 84, 85, 86 of 86.
  s = np.array([1.0, 8.0, 2.0, 1.0, 4.0])  # any order
  assert ar.pseudo_rank(s, threshold, power) == expected
  assert ar.pseudo_rank(1e-25 * s, threshold, power) == expected


def test_a_tie_is_not_decided_by_rounding():
  rng = np.random.default_rng(0)
  s = 1 + 2e-7 * rng.standard_normal((100, 20))  # equal values as float32 knows them
  np.testing.assert_array_equal(ar.pseudo_rank(s, 0.95), np.full(100, 19))
  assert ar.pseudo_rank(np.ones(20), 1.0) == 20


def test_measures_agree_with_a_loop():
  s = np.sort(np.random.default_rng(3).lognormal(size=(2, 3, 16)))[..., ::-1]
  found = ar.pseudo_rank(s, 0.9, 2)
  for index in np.ndindex(2, 3):
    squares, total, k = s[index]**2, 0.0, 0
    while total < 0.9 * squares.sum():
      total, k = total + squares[k], k + 1
    assert found[index] == k


def test_what_is_not_finite_has_no_rank():
  found = ar.measures(np.array([[1.0, np.nan], [np.inf, 1.0], [2.0, 1.0]]))
  for value in found.values():
    np.testing.assert_array_equal(np.isnan(value), [True, True, False])


# The program.


def run(trained, workdir, mesh=None, **fields):
  """Runs the program on all stored steps; returns the session and its results by name."""
  config = attention_rank_config()
  config.steps = "all"
  config.update(fields)
  session = tiny.session("attention_rank", config, [trained], workdir, **(mesh or {}))
  program.execute(session, rank_program.main)
  return session, {t.name: session.results.load(t, "spectra")["values"] for t in session.targets}


def arrays(session, target):
  return dict(np.load(session.results.path(target, "spectra", ".npz")))


@pytest.fixture(scope="module")
def ranked(trained, tmp_path_factory):
  return run(trained, tmp_path_factory.mktemp("ranked"))


def test_results_of_every_stored_step(ranked):
  session, values = ranked
  assert list(values) == ["wd0-seed0/6", "wd0-seed0/12", "wd3-seed0/6", "wd3-seed0/12"]
  for target in session.targets:
    expected = full_products(target.stored.load_params(), target.model)
    spectra, found = arrays(session, target), values[target.name]
    assert_close(spectra, expected)
    for name in ("qk", "vp"):
      of = found[name]
      assert np.shape(of["heads"]["pseudo_rank"]) == (1, 2)
      assert of["heads"]["pseudo_rank"] == ar.pseudo_rank(spectra[name]).tolist()
      norms = expected[name].max(axis=-1)
      np.testing.assert_allclose(of["heads"]["spectral_norm"], norms, rtol=1e-5)
      np.testing.assert_allclose(of["layers"]["spectral_norm"], norms.mean(axis=1), rtol=1e-5)
      np.testing.assert_allclose(of["mean"]["spectral_norm"], norms.mean(), rtol=1e-5)
      share = of["mean"]["pseudo_rank"] / target.model.head_dim
      assert found["pseudo_rank"][name] == of["mean"]["pseudo_rank_share"] == pytest.approx(share)
  assert values["wd0-seed0/12"] != values["wd0-seed0/6"] != values["wd3-seed0/6"]
  lines = (session.results.directory / "results.jsonl").read_text().splitlines()
  assert [json.loads(line)["item"] for line in lines] == ["spectra"] * 4
  picture = (session.results.directory / "attention_rank.png").read_bytes()
  assert picture.startswith(b"\x89PNG") and len(picture) > 20_000


def test_again_does_nothing_and_other_settings_are_refused(ranked, trained, monkeypatch, capsys):
  session, values = ranked
  monkeypatch.setattr(rank_program, "_compute", lambda *_: pytest.fail("computed again"))
  assert run(trained, session.workdir, compute_dtype="bfloat16")[1] == values
  assert "wd3-seed0" in capsys.readouterr().out
  # There is no QK-norm to fold in.
  run(trained, session.workdir, fold_qk_norm=True)
  with pytest.raises(UserError, match="made with threshold=0.95 and now it is 0.9"):
    run(trained, session.workdir, threshold=0.9)


@pytest.mark.parametrize("fields, words", [
    ({"threshold": 0.0}, "threshold=0.0 must be above 0"), ({"threshold": 1.5}, "at most 1"),
    ({"power": 3}, "power=3 must be at least 1 and at most 2")])
def test_wrong_fields(trained, tmp_path, fields, words):
  with pytest.raises(UserError, match=words):
    run(trained, tmp_path, **fields)


def test_members_together_on_a_divided_mesh(ranked, trained, tmp_path):
  session = ranked[0]
  together = run(trained, tmp_path, dict(sweep=2, data=1, fsdp=2, tensor=2), members_at_once=4)[0]
  for target in session.targets:
    alone, divided = arrays(session, target), arrays(together, target)
    for name in alone:
      np.testing.assert_allclose(divided[name], alone[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("fold", [False, True])
def test_both_kinds_with_a_qk_norm(tmp_path, fold):
  config = model("olmo2")
  results = []
  for m, decay in enumerate((0.0, 0.1, 1.0)):
    params = random_params(config, m)
    spectra = jax.device_get(rank_program._spectra(params, config))
    for folded, name in ((False, "qk"), (True, "qk_folded")):
      assert_close({name: spectra[name]}, {name: full_products(params, config, folded)["qk"]})
    settings = {"threshold": 0.9, "power": 2, "fold_qk_norm": fold}
    values = rank_program.summarise(spectra, config, **settings)
    name = "qk_folded" if fold else "qk"
    assert values["pseudo_rank"]["qk"] == values[name]["mean"]["pseudo_rank_share"]
    pretraining = {"seed": 0, "optim": {"weight_decay": decay}}
    results.append({"values": json.loads(json.dumps(values)), "settings": settings, "checkpoint": {
        "member": f"wd{decay:g}", "weight_decay": decay, "step": 5, "tokens": 5000,
        "data_fingerprint": "", "pretraining": pretraining}})
  expected = ["qk_folded", "qk", "vp"] if fold else ["qk", "qk_folded", "vp"]
  assert attention_rank_summary.products(results) == expected
  text = io.StringIO()
  attention_rank_summary.print_table(results, Console(file=text, width=200))
  lines = text.getvalue().splitlines()
  assert "90% of the sum of squared singular values" in lines[0]
  row = next(line.split() for line in lines if line.split()[:1] == ["wd0.1"])
  means = [results[1]["values"][name]["mean"] for name in expected]
  assert row[4:10] == ([f"{m['pseudo_rank_share']:.3f}" for m in means]
                       + [f"{m['effective_rank']:.2f}" for m in means])
  attention_rank_plot.save(results, tmp_path / "a.png", "title")
  assert (tmp_path / "a.png").stat().st_size > 20_000


def test_what_is_not_finite_is_null_in_json():
  config = model()
  spectra = {name: np.ones((2, 4, 8), np.float32) for name in ("qk", "vp")}
  spectra["qk"][0, 1, 3] = np.nan
  values = rank_program.summarise(spectra, config, threshold=0.95, power=1)
  json.dumps(values, allow_nan=False)
  assert values["qk"]["heads"]["stable_rank"][0] == [8, None, 8, 8]
  assert values["qk"]["layers"]["stable_rank"] == [None, 8]
  assert values["pseudo_rank"] == {"qk": None, "vp": 1.0}


def test_bench_runs():
  said = programs.run("wd_plasticity.bench.attention_rank", "--size=0.3m", "--heads=2")
  assert re.search(r"[\d,]+ times faster", said)
  difference = re.search(r"on these heads: (\S+) of the largest", said)
  assert float(difference.group(1)) < 1e-5
