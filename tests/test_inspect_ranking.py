"""Ranking sources at equal length: the likelihood's optimum, and a talker who falls back."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import spearmanr
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.data.dataset import open_dataset
from holdfast.data.freeze import freeze, freeze_records
from holdfast.data.inspect.material import material
from holdfast.data.inspect.ranking import POOL, RIDGE, rank_sources
from holdfast.data.records import Judgement
from holdfast.errors import DataError

DATA = Path(__file__).parents[2] / "shared" / "data"
QUALITY = {"base": 0.0, "talker": -1.0, "brief": 0.5, "plain": -0.2}
LENGTH = {"base": 40, "talker": 60, "brief": 20, "plain": 40}


def judged(n=400, against=("base",), names=("talker", "brief", "plain")):
    """Judges who like quality, and 2 in log-odds for the much longer side."""
    draw, said = random.Random(0), []
    for k in range(n):
        for name in names:
            other = against[k % len(against)]
            if other == name:
                continue
            one, two = (max(1, round(draw.gauss(LENGTH[s], 12))) for s in (name, other))
            odds = QUALITY[name] - QUALITY[other] + 2 * np.tanh((one - two) / 17)
            responses = ("a" * one + f"{name}{k}", "b" * two + f"{other}{k}")
            win = draw.random() < expit(odds)
            two_ways = (responses, (name, other)) if win else (responses[::-1], (other, name))
            said.append(Judgement("pair", f"Question {k}?", two_ways[0], sources=two_ways[1]))
    return said


def test_a_talker_falls_back_at_equal_length(tmp_path):
    ds = freeze_records(judged(), tmp_path / "data")
    found = rank_sources(material(ds, times=50))
    assert found.baseline == "base" and {p.source for p in found.places} == {"talker", "brief", "plain"}
    by = {p.source: p for p in found.places}
    assert (
        by["talker"].rank < by["brief"].rank and by["talker"].controlled_rank == 3 and by["brief"].controlled_rank == 1
    )
    for name, p in by.items():
        assert p.controlled.lo < expit(QUALITY[name]) < p.controlled.hi  # the rate that the judges were made with
        assert p.comparisons == 400
    won = [j for j in judged() if j.sources[0] == "brief"]
    assert by["brief"].wins.value == pytest.approx(len(won) / 400)
    assert found.slope > 0


def test_the_fit_is_the_likelihoods_optimum(tmp_path):
    """Without a baseline: by another optimiser on the likelihood as it is written down."""
    said = judged(60, against=("base", "plain", "brief"))
    ds = freeze_records(said, tmp_path / "data")
    found = rank_sources(material(ds, times=10))
    assert found.baseline is None and len(found.places) == 4
    names = sorted(QUALITY)
    a, b = (np.array([names.index(j.sources[k]) for j in said]) for k in (0, 1))
    size = np.array([[len(r) for r in j.responses] for j in said], float)
    gap = size[:, 0] - size[:, 1]
    t = np.zeros(len(said))
    for x in range(4):
        for y in range(x):
            mine = ((a == x) & (b == y)) | ((a == y) & (b == x))
            if mine.any():
                t[mine] = np.tanh(gap[mine] / np.std(np.where(a[mine] == x, gap[mine], -gap[mine])))

    def loss(w):
        s, c, d = w[:4], w[4], w[5:]
        z = s[a] - s[b] + (c + d[a] + d[b]) * t
        return np.logaddexp(0, -z).sum() + 0.5 * (RIDGE * (s @ s + c * c) + POOL * d @ d)

    best = minimize(loss, np.zeros(9), method="BFGS", options={"gtol": 1e-7}).x
    assert found.slope == pytest.approx(best[4], abs=1e-3)
    for p in found.places:
        k = names.index(p.source)
        rate = np.mean([expit(best[k] - best[o]) for o in range(4) if o != k])
        assert p.controlled.value == pytest.approx(rate, abs=1e-3)


def test_what_cannot_be_ranked_is_refused(tmp_path):
    nobody = [Judgement("pair", f"q{k}", ("x", "y")) for k in range(5)]
    with pytest.raises(DataError, match="names the sources"):
        rank_sources(material(freeze_records(nobody, tmp_path / "a")))
    apart = [Judgement("pair", f"q{k}", ("x", "yy"), sources=("c", "d") if k % 2 else ("a", "b")) for k in range(8)]
    with pytest.raises(DataError, match="never compared"):
        rank_sources(material(freeze_records(apart, tmp_path / "b")))


def test_the_command(tmp_path):
    ds = freeze_records(judged(60), tmp_path / "data")
    done = CliRunner().invoke(app, ["rank", str(ds.path), "--json"])
    said = json.loads(done.output)
    assert said["root"] == ds.root and said["baseline"] == "base"
    assert [s["rank at equal length"] for s in said["sources"]] == [1, 2, 3]
    done = CliRunner().invoke(app, ["rank", str(ds.path)])
    assert done.exit_code == 0 and "talker" in done.output and "against base" in done.output


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data is not at {DATA}")
def test_alpaca_evals_models_come_in_the_published_order(tmp_path):
    """The length-controlled rates that AlpacaEval publishes for eight of the models (leaderboard of its repository)."""
    published = {
        "claude": 27.29, "claude-2.1": 25.25, "humpback-llama2-70b": 16.25, "Qwen-14B-Chat": 12.38, "vicuna-13b-v1.5": 10.48,
        "vicuna-7b-v1.3": 7.16, "minichat-3b": 5.73, "falcon-7b-instruct": 4.04,
    }  # fmt: skip
    freeze(DATA / "alpaca-eval.parquet", tmp_path / "data", on_error="skip")
    found = rank_sources(material(open_dataset(tmp_path / "data"), times=10))
    rates = {p.source: p.controlled.value for p in found.places}
    assert spearmanr([published[n] for n in published], [rates[n] for n in published]).statistic > 0.95
