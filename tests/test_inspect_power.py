"""What inspection could not have seen: copies that are clean where they should be, faults planted as told, power as computed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, binomtest
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.data.freeze import freeze_records
from holdfast.data.inspect.faults import FAULTS, smaller
from holdfast.data.inspect.finding import DETECTORS
from holdfast.data.inspect.inspection import inspect_dataset
from holdfast.data.inspect.material import material
from holdfast.data.inspect.power import BLIND, COPIES, exact_share, measure, probe_curve, reach
from holdfast.errors import DataError
from test_inspect import clean

BY_FINDING = {f.finding: f for f in FAULTS}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """400 prompts, each judged by three annotators, with orders and categories."""
    said = [replace(j, prompt=j.prompt + " And so on." * (n // 9 % 3)) for n, j in enumerate(clean())]
    return freeze_records(said, tmp_path_factory.mktemp("power") / "data")


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """400 prompts, each judged once by nobody named."""
    said = [replace(j, annotator=None, shown=None, category=None) for j in clean()[::3]]
    return freeze_records(said, tmp_path_factory.mktemp("power") / "single")


def test_the_interval_is_clopper_and_pearsons():
    for k, n in ((0, 20), (18, 20), (20, 20), (3, 7)):
        ci = binomtest(k, n).proportion_ci(method="exact")
        assert (exact_share(k, n).lo, exact_share(k, n).hi) == pytest.approx((ci.low, ci.high))


def test_the_smallest_bias_found_is_the_one_that_theory_gives(single):
    """400 independent pairs: an alarm asks for 1.96 errors above 52 %. The chance of that at each strength is a binomial tail."""
    fault = BY_FINDING["length/longer-wins"]
    n = 398  # two pairs have responses of equal length
    need = next(k for k in range(n) if k / n - 1.96 * np.sqrt(k / n * (1 - k / n) / n) > 0.52)
    # A clean copy's longer side wins Binomial(n, 1/2) times; the fault turns a fixed number of the others.
    chance = {s: float(binom.sf(need - 1 - max(1, round(s * n)), n, 0.5)) for s in fault.strengths}
    found = measure(fault, material(single), copies=40)
    tried = {t["strength"]: t for t in found.strengths}
    assert chance[0.04] < 0.5 and chance[0.15] > 0.99  # what the bounds below rest on
    assert found.above in (0.06, 0.08) or found.above == 0.1
    assert 0.08 <= found.smallest <= 0.15
    for strength, t in tried.items():
        if t["copies"] == 40:
            assert t["found"] / 40 == pytest.approx(chance[strength], abs=0.2)
    assert found.alarms <= 3 and found.clean == 40  # coins are called biased in one copy of twenty at most
    assert found.recall == 1.0


def test_what_a_dataset_does_not_say_cannot_be_seen(single):
    for finding, why in (
        ("position/first-wins", "no row says in which order"),
        ("agreement/annotators", "fewer than two annotators"),
        ("coverage/cells", "no two categories"),
        ("cycles/triples", "no three responses"),
    ):
        found = measure(BY_FINDING[finding], material(single), copies=2)
        assert why in found.why and why in found.said() and not found.strengths


@pytest.mark.parametrize("finding", [f.finding for f in FAULTS if f.finding not in ("cycles/triples", "noise/flipped")])
def test_clean_copies_are_clean_and_faults_are_planted(data, finding):
    """Of every fault the strongest is found with its rows, and two clean copies are silent."""
    fault = BY_FINDING[finding]
    weak = {"target/uncovered": 0.02, "coverage/cells": 30}
    strong = replace(fault, strengths=(weak.get(finding, fault.strengths[-1]),))
    found = measure(strong, material(data), copies=2)
    assert found.alarms == 0 and found.why is None
    if finding in ("target/uncovered", "shortcut/surface", "agreement/foretold"):
        assert found.strengths  # what is found there depends on the texts, and these are words at random
    else:
        assert found.smallest == strong.strengths[0]
        assert found.recall is None or found.recall > 0.6


def test_a_fault_is_planted_as_often_as_it_says(data):
    looked_at = material(data)
    fault = BY_FINDING["contradictions/exact"]
    made, rows = fault.plant(fault.clean(looked_at, np.random.default_rng(0)), 0.05, np.random.default_rng(1))
    n = round(0.05 * (len(made) - len(rows) // 2))
    assert len(rows) == len(set(rows.tolist())) == 2 * n
    pairs = {}
    for e in range(len(made)):
        up, down = (made.a[e], made.b[e]) if made.p[e] > 0.5 else (made.b[e], made.a[e])
        pairs.setdefault((min(up, down), max(up, down), int(made.annotator[e])), set()).add(up < down)
    torn = {k for k, ways in pairs.items() if len(ways) == 2}
    assert len(torn) == n
    fault = BY_FINDING["leakage/split"]
    base = fault.clean(looked_at, np.random.default_rng(2))
    made, rows = fault.plant(base, 0.1, np.random.default_rng(3))
    assert len(rows) == round(0.1 * (base.prompt_part == 1).sum())
    new = made.prompts.at(made.row_prompt[rows].astype(np.int64))
    old = set(looked_at.prompts.at(np.flatnonzero(base.prompt_part == 0)))
    assert (made.prompt_part[made.row_prompt[rows]] == 1).all()
    for t in (t.split() for t in new):  # one word of eleven to seventeen is another
        assert min(sum(x != y for x, y in zip(t, o.split(), strict=False)) for o in old) == 1


def test_a_sample_is_whole_prompts_with_their_own_texts(data):
    looked_at = material(data)
    part = smaller(looked_at, 300)
    assert 200 < len(part.live) <= 300 and len(part.live) == 3 * len(part.live_prompts)
    for k in range(0, len(part), 50):
        j = data.find_row(part.row_id(int(part.row[k])))
        prompt, responses = data.prompt_contents()[data.prompt_of[j]], data.response_contents(data.responses_of[j])
        assert part.prompts.at(part.prompt[[k]]) == [prompt]
        assert part.responses.at(np.array([part.a[k], part.b[k]])) == list(responses)
        assert part.annotators[part.annotator[k]] == data.column("annotator")[j]
    one = smaller(looked_at, 300, alone=True)
    assert len(one.live) == 300 == len(one.live_prompts)
    assert smaller(looked_at, 5000) is looked_at


def test_rewording_is_recognised_up_to_a_share(data):
    seen = {r["words replaced"]: r["recognised"] for r in reach(material(data), most=100)}
    assert seen[0.0] == 1.0 and seen[0.05] > 0.5 and seen[0.3] == 0.0


def test_a_probe_gets_worse_with_every_flip(tmp_path):
    """Where a word tells every label, a share e turned round leaves 1 - e of them foretold; where nothing does, half."""
    told = [
        replace(j, responses=(f"{j.responses[0]} moreover", f"{j.responses[1]} perhaps"), annotator=None)
        for j in clean()[::3]
    ]
    curve = {c["flipped"]: c["accuracy"] for c in probe_curve(material(freeze_records(told, tmp_path / "told")))}
    assert curve[0.0] > 0.97 and list(curve.values()) == sorted(curve.values(), reverse=True)
    for share, accuracy in curve.items():  # the more is turned round, the less of the rule is learned
        assert 1 - share - 0.03 - share / 4 < accuracy < 1 - share + 0.03
    untold = freeze_records([replace(j, annotator=None) for j in clean()[::3]], tmp_path / "untold")
    assert all(c["accuracy"] == pytest.approx(0.5, abs=0.09) for c in probe_curve(material(untold)))


def test_the_inspection_says_it_and_the_command_prints_it(data, tmp_path):
    assert set(BLIND) == set(DETECTORS)
    with pytest.raises(DataError, match="power -1"):
        inspect_dataset(data, power=-1)
    only = ["length", "position"]
    found = inspect_dataset(data, only=only, times=50, power=3)
    again = inspect_dataset(data, only=only, times=50, power=3)
    plain = inspect_dataset(data, only=only, times=50)
    assert found.digest == again.digest != plain.digest and "power" not in plain.as_json()
    said = found.as_json()["power"]
    assert [f["finding"] for f in said["faults"]] == ["length/longer-wins", "position/first-wins"]
    assert said["copies"] == 3 and set(said["cannot see"]) == set(only)
    done = CliRunner().invoke(app, ["inspect", str(data.path), "--power", "--only", "position", "--json"])
    said = json.loads(done.output)["power"]["faults"][0]
    assert said["false alarms"]["copies"] == COPIES and said["smallest"] <= 0.1
    done = CliRunner().invoke(app, ["inspect", str(data.path), "--power", "--only", "position"])
    assert "the first shown wins" in done.output and "position cannot see" in done.output
