"""Inspection: each detector finds its planted fault, with the rows, and is silent on the clean copy; statistics against oracles."""

import json
import random
import re
from dataclasses import replace
from functools import cache

import numpy as np
import orjson
import pytest
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.data.freeze import freeze_records
from holdfast.data.inspect.budget import read_budget
from holdfast.data.inspect.inspection import inspect_dataset, read_inspection
from holdfast.data.inspect.material import Texts
from holdfast.data.inspect.near import SIMILAR, near, shingles
from holdfast.data.inspect.stats import SignedAUC, TwoClassAUC, davidson, dawid_skene, krippendorff
from holdfast.data.records import Judgement
from holdfast.data.splits import make_split
from holdfast.errors import DataError, RecipeError
from holdfast.recipe import SplitTable
from holdfast.report.inspection import write_inspection

N = 400
WORDS = [
    a + b
    for a in ("ka", "lo", "mi", "nu", "pe", "ro", "sa", "tu")
    for b in ("bel", "dan", "fin", "gor", "hul", "jat", "kes", "lim")
]


@cache
def clean() -> tuple[Judgement, ...]:
    """Three annotators on each of N pairs. What is better does not hang on length, words, place or source."""
    draw, said = random.Random(7), []
    for n in range(N):
        prompt = f"Question {n}: " + " ".join(draw.choices(WORDS, k=9)) + "?"
        two = tuple(" ".join(draw.choices(WORDS, k=draw.randint(12, 18))) + "." for _ in range(2))
        better = draw.random() < 0.5
        for name in ("ann", "bob", "eve"):
            right = better if draw.random() < 0.99 else not better
            responses = two if right else two[::-1]
            shown = (0, 1) if draw.random() < 0.5 else (1, 0)
            said.append(
                Judgement("pair", prompt, responses, annotator=name, category=("x", "y", "z")[n % 3], shown=shown)
            )  # fmt: skip
    return tuple(said)


def look(folder, said, **more):
    ds = freeze_records(said, folder / "data")
    return ds, inspect_dataset(ds, times=100, **more)


def names(ds, found, top=None):
    """The ids of a finding's rows."""
    return {ds.row_id(int(i)) for i in found.rows.number[:top]}


def ids(ds, wanted):
    """The ids of the judgements for which `wanted` says so, of (prompt, annotator, chosen, rejected)."""
    prompts, responses = ds.prompt_contents(), ds.response_contents()
    return {
        ds.row_id(i)
        for i, (p, who, rs) in enumerate(zip(ds.prompt_of, ds.column("annotator"), ds.responses_of, strict=True))
        if wanted(prompts[p], who, *(responses[r] for r in rs))
    }


def test_no_alarm_where_nothing_is_wrong(tmp_path):
    _, found = look(tmp_path, clean())
    assert [f.name for f in found.alarms] == []
    assert {"length/longer-wins", "noise/flipped", "agreement/alpha", "position/first-wins"} <= {
        f.name for f in found.findings
    }


def test_the_longer_one_wins(tmp_path):
    said = [
        j if len(j.responses[0]) > len(j.responses[1]) or n % 3 else replace(j, responses=j.responses[::-1])
        for n, j in enumerate(clean())
    ]
    ds, found = look(tmp_path, said, only=["length"])
    wins = found["length/longer-wins"]
    assert wins.alarmed and 0.6 < wins.figure.lo < wins.figure.value < wins.figure.hi < 0.75
    assert names(ds, wins) == ids(ds, lambda p, who, a, b: len(a) > len(b))
    assert {c.name for c in wins.cells["annotator"]} == {"ann", "bob", "eve"}


def test_the_first_shown_wins(tmp_path):
    draw = random.Random(1)
    said = [replace(j, shown=(0, 1)) if draw.random() < 0.5 else j for j in clean()]
    _ds, found = look(tmp_path, said, only=["position"])
    assert found["position/first-wins"].alarmed and found["position/first-wins"].figure.value == pytest.approx(
        0.75, abs=0.05
    )


def test_contradictions(tmp_path):
    some = [replace(j, annotator=None) for j in clean()[::3]]
    planted = [replace(j, responses=j.responses[::-1]) for j in some[:20]]
    ds, found = look(tmp_path, [*some, *planted], only=["contradictions"])
    exact = found["contradictions/exact"]
    assert exact.alarmed
    asked = {j.prompt for j in planted}
    assert names(ds, exact) == ids(ds, lambda p, *_: p in asked)  # both sides of each, and no other


def test_an_annotator_who_answers_at_random(tmp_path):
    draw = random.Random(2)
    said = [
        replace(j, responses=j.responses[::-1]) if j.annotator == "eve" and draw.random() < 0.5 else j for j in clean()
    ]
    _, found = look(tmp_path, said, only=["agreement"])
    one = found["agreement/annotators"]
    assert one.alarmed and "eve" in one.verdict and "bob" not in one.verdict


def test_flipped_labels_are_ranked_first(tmp_path):
    """What is better can be learned from the words here; 10 % are turned round."""
    draw, said, turned = random.Random(3), [], set()
    for n, j in enumerate(clean()[::3]):
        good, bad = j.responses[0] + " moreover thus", j.responses[1] + " perhaps maybe"
        flip = draw.random() < 0.1
        if flip:
            turned.add(j.prompt)
        said.append(replace(j, responses=(bad, good) if flip else (good, bad), annotator=f"a{n}"))
    ds, found = look(tmp_path, said, only=["noise"])
    flipped = found["noise/flipped"]
    assert flipped.alarmed and flipped.figure.lo < len(turned) / len(said) < flipped.figure.hi
    planted = ids(ds, lambda p, *_: p in turned)
    top = names(ds, flipped, top=len(planted))
    assert len(top & planted) / len(planted) > 0.9


def test_near_duplicates_across_a_split(tmp_path):
    some = [replace(j, annotator=None) for j in clean()[::3]]
    copies = [
        replace(
            j, prompt=j.prompt.replace("Question", "A question"), responses=(f"{j.responses[0]} indeed", j.responses[1])
        )
        for j in some[:120]
    ]
    ds = freeze_records([*some, *copies], tmp_path / "data")
    split = make_split(ds, SplitTable(validation=0.2, test=0.2))
    split.save(tmp_path)
    found = inspect_dataset(ds, split=tmp_path, only=["leakage", "duplicates"], times=50)
    assert found["duplicates/prompts"].alarmed and found["leakage/split"].alarmed
    part = {i: name for name, rows in split.parts.items() for i in rows.tolist()}
    prompts = ds.prompt_contents()
    by_text = {prompts[p].removeprefix("A question").removeprefix("Question"): [] for p in ds.prompt_of}
    for i, p in enumerate(ds.prompt_of):
        by_text[prompts[p].removeprefix("A question").removeprefix("Question")].append(i)
    crossing = {
        ds.row_id(i)
        for two in by_text.values()
        if len({part[i] == "train" for i in two}) > 1
        for i in two
        if part[i] != "train"
    }
    found_ids = names(ds, found["leakage/split"])
    assert crossing and crossing <= found_ids | {ds.row_id(int(i)) for i in found["leakage/split"].rows.other}
    clean_ds = freeze_records(some, tmp_path / "clean")
    make_split(clean_ds, SplitTable(validation=0.2, test=0.2)).save(tmp_path / "clean-split")
    assert not inspect_dataset(clean_ds, split=tmp_path / "clean-split", only=["leakage"], times=50).alarms


def test_rows_of_an_evaluation_set(tmp_path):
    held = [j.prompt for j in clean()[:150:3]]  # 50 prompts
    other = [f"Nothing alike {n} " + " ".join(random.Random(n).choices(WORDS[::-1], k=12)) for n in range(100)]
    for name, prompts in (("eval.jsonl", [*held, *other]), ("other.jsonl", other)):
        (tmp_path / name).write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    ds, found = look(tmp_path, clean(), against=[tmp_path / "eval.jsonl", tmp_path / "other.jsonl"], only=["against"])
    planted = ids(ds, lambda p, *_: p in held)
    assert len(planted) == 150 and names(ds, found["against/prompts:eval.jsonl"]) == planted  # every row of the 50
    assert not [f for f in found.alarms if "other.jsonl" in f.name]


def test_cells_by_a_column_of_the_users(tmp_path):
    """No German prompt of category x is long; lengths, languages and categories are else independent of each other."""
    said = []
    for n, j in enumerate(clean()):
        k = n // 3
        language, long = ("en", "de")[k // 3 % 2], k // 6 % 3
        if language == "de" and j.category == "x" and long == 2:
            language = "en"
        prompt = j.prompt + " And some more of it, if you please." * long
        said.append(replace(j, prompt=prompt, extra={"lang": language, "stars": k % 2}, annotator=None))
    ds, found = look(tmp_path, said, only=["length", "coverage"], columns=["lang", "stars", "kind"])
    cells = {(c["category"], c["length"]): c for c in found["coverage/cells:lang"].facts["cells"]}
    gone = cells["x / de", "long"]
    assert (
        gone["prompts"] == 0
        and found["coverage/cells:lang"].alarmed
        and "x / de, long prompts (0" in found["coverage/cells:lang"].verdict
    )
    # Independence: each cell's expected count is N times the three shares.
    part = {w: sum(c["prompts"] for (k, _), c in cells.items() if w in k.split(" / ")) / N for w in ("x", "de")}
    third = sum(c["prompts"] for (_, size), c in cells.items() if size == "long") / N
    assert gone["expected"] == pytest.approx(N * part["x"] * part["de"] * third)
    assert not found["coverage/cells:stars"].alarmed and "coverage/cells:kind" not in {f.name for f in found.findings}
    wins = found["length/longer-wins"].cells
    assert {c.name for c in wins["lang"]} == {"en", "de"} and {c.name for c in wins["stars"]} == {"0", "1"}
    assert sum(c.n for c in wins["lang"]) == sum(c.n for c in wins["category"])
    with pytest.raises(DataError, match="says 'tongue'; there are: kind, .*lang, stars"):
        inspect_dataset(ds, columns=["tongue"])


def test_the_policys_own_samples_are_told_from_the_data(tmp_path):
    draw = random.Random(5)
    same, other = (
        [{"prompt": j.prompt, "response": " ".join(draw.choices(vocabulary, k=15)) + "."} for j in clean()[: 3 * N : 3]]
        for vocabulary in (WORDS, [w[::-1] for w in WORDS] + WORDS[:4])
    )
    for name, rows in (("same", same), ("other", other)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    ds, found = look(tmp_path, clean(), only=["samples"], samples=tmp_path / "same.jsonl")
    near = found["samples/told-apart"]
    assert near.figure.lo < 0.5 < near.figure.hi and not near.alarmed
    found = inspect_dataset(ds, only=["samples"], samples=tmp_path / "other.jsonl", times=50)
    far = found["samples/told-apart"]
    assert far.alarmed and far.figure.lo > 0.99 and far.facts["responses that pass for the policy's"] < 0.02
    assert set(far.facts["words of the policy"]) <= {w[::-1] for w in WORDS} and set(
        far.facts["words of the data"]
    ) <= {*WORDS}
    (tmp_path / "none.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(DataError, match="no rows with a prompt"):
        inspect_dataset(ds, samples=tmp_path / "none.jsonl")


def test_the_same_inspection_is_the_same_bytes_and_a_changed_one_is_refused(tmp_path):
    _, found = look(tmp_path, clean()[:300])
    ds, again = look(tmp_path, clean()[:300])
    assert found.save(tmp_path / "a.json").read_bytes() == again.save(tmp_path / "b.json").read_bytes()
    assert read_inspection(tmp_path / "a.json")["digest"] == found.digest
    said = orjson.loads((tmp_path / "a.json").read_bytes())
    said["findings"][0]["value"] = 0.5
    (tmp_path / "a.json").write_bytes(orjson.dumps(said))
    with pytest.raises(DataError, match="was changed"):
        read_inspection(tmp_path / "a.json")
    with pytest.raises(DataError, match="no detector 'nosie'"):
        inspect_dataset(ds, only=["nosie"])


def test_the_command(tmp_path):
    freeze_records(clean()[:120], tmp_path / "data")
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "data"), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0 and "length/longer-wins" in done.output and "not looked at: leakage" in done.output
    assert read_inspection(tmp_path / "out" / "inspect.json")["facts"]["judgements"] == 120


def test_the_page_shows_what_alarms_and_loads_nothing(tmp_path):
    said = [
        j if len(j.responses[0]) > len(j.responses[1]) or n % 3 else replace(j, responses=j.responses[::-1])
        for n, j in enumerate(clean()[:600])
    ]
    said[0] = replace(said[0], responses=("<script>alert(1)</script> <system>" + "x " * 40, "short"))
    ds = freeze_records(said, tmp_path / "data")
    found = inspect_dataset(ds, times=50)
    pages = [write_inspection(found, ds, tmp_path / name).read_bytes() for name in ("a", "b")]
    page = pages[0].decode()
    assert pages[0] == pages[1] and "The longer response is preferred" in page and found.digest in page
    assert page.count("<script>") == 1 and "&lt;script&gt;alert(1)" in page
    assert not re.search(r"(src|href)=[\"'](?!#)", page)
    assert all(f.title in page for f in found.findings)


def test_a_budget_is_a_gate(tmp_path):
    said = [
        j if len(j.responses[0]) > len(j.responses[1]) or n % 3 else replace(j, responses=j.responses[::-1])
        for n, j in enumerate(clean())
    ]
    freeze_records(said, tmp_path / "biased")
    freeze_records(clean(), tmp_path / "clean")
    (tmp_path / "budget.toml").write_text(
        """
        [limits."length/longer-wins"]
        at_most = 0.6
        [limits."contradictions/*"]
        severity = "note"
        [limits."agreement/alpha"]
        at_least = 0.5
        """
    )

    def check(name, *more):
        return CliRunner().invoke(
            app, ["check", str(tmp_path / name), "--budget", str(tmp_path / "budget.toml"), *more]
        )

    assert check("clean").exit_code == 0 and "3 limits, all hold" in check("clean").output
    done = check("biased", "--json", "--sarif", str(tmp_path / "out.sarif"))
    over = json.loads(done.output)["exceeded"]
    assert done.exit_code == 1 and "length/longer-wins" in [e["finding"] for e in over]
    log = json.loads((tmp_path / "out.sarif").read_text())
    results = log["runs"][0]["results"]
    assert log["version"] == "2.1.0" and len(results) == len(over)
    assert {r["ruleId"] for r in results} == {r["id"] for r in log["runs"][0]["tool"]["driver"]["rules"]}
    (tmp_path / "budget.toml").write_text('[limits."leakage/split"]\nat_most = 0.0\n')
    done = check("clean")
    assert done.exit_code == 1 and "not measured: no split was given" in done.output
    for text, words in (
        ("", "has no limits"),
        ("[limits.x]\nat_mots = 1", "did you mean 'at_most'"),
        ('[limits.x]\nseverity = "bad"', "should be one of"),
        ('[limits.x]\nat_most = "a"', "should be a number"),
    ):
        (tmp_path / "budget.toml").write_text(text)
        with pytest.raises(RecipeError, match=words):
            read_budget(tmp_path / "budget.toml")


# Statistics.


def test_auc_is_scikit_learns():
    rng = np.random.default_rng(0)
    margin, p, weight = (
        rng.normal(size=80).round(1),
        rng.choice([0.0, 0.25, 1.0], 80),
        rng.integers(0, 4, 80).astype(float),
    )
    both = np.r_[margin, -margin]
    oracle = roc_auc_score(
        np.r_[np.ones(160), np.zeros(160)],
        np.r_[both, both],
        sample_weight=np.r_[weight * p, weight * (1 - p), weight * (1 - p), weight * p],
    )
    assert SignedAUC(margin, p)(weight) == pytest.approx(oracle, abs=1e-12)


def test_auc_of_two_classes_is_scikit_learns():
    rng = np.random.default_rng(3)
    margin, label, weight = rng.normal(size=90).round(1), rng.random(90) < 0.4, rng.integers(0, 3, 90).astype(float)
    assert TwoClassAUC(margin, label)(weight) == pytest.approx(roc_auc_score(label, margin, sample_weight=weight))


def test_alpha_of_krippendorffs_own_example():
    """Krippendorff 2011, section E: four observers, twelve units, nominal alpha 0.743."""
    rows = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    values, unit = zip(*[(int(c) - 1, u) for row in rows for u, c in enumerate(row) if c != "."], strict=True)
    assert krippendorff(np.array(values), np.array(unit), 5) == pytest.approx(0.743, abs=0.0005)


def test_strengths_with_ties_are_the_likelihoods_optimum():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 4, 300), rng.integers(0, 4, 300)
    a, b = a[a != b], b[a != b]
    tie, p = rng.random(len(a)) < 0.2, (rng.random(len(a)) < 0.5 + 0.1 * np.sign(b - a)).astype(float)

    def nll(x):
        s = np.r_[x[:3], -x[:3].sum()]
        d = s[a] - s[b]
        z = np.log(np.exp(d / 2) + np.exp(-d / 2) + np.exp(x[3]))
        return -np.where(tie, x[3], np.where(p == 1, d / 2, -d / 2)).sum() + z.sum()

    best = minimize(nll, np.zeros(4), method="BFGS", options={"gtol": 1e-8})
    found = davidson(a, b, p, tie, np.ones(len(a)), 4, ridge=1e-9)
    assert found.strength == pytest.approx(np.r_[best.x[:3], -best.x[:3].sum()], abs=1e-3)
    assert found.tie == pytest.approx(best.x[3], abs=1e-3)


def test_error_rates_of_annotators_are_found():
    rng = np.random.default_rng(2)
    truth, right = rng.integers(0, 2, 1500), [0.95, 0.8, 0.6, 0.9]
    item, who = np.repeat(np.arange(1500), 4), np.tile(np.arange(4), 1500)
    value = np.where(rng.random(6000) < np.array(right)[who], truth[item], 1 - truth[item])
    found = dawid_skene(item, who, value, 2)
    assert [float(np.diag(c).mean()) for c in found.confusion] == pytest.approx(right, abs=0.03)
    assert float((found.truth.argmax(1) == truth).mean()) > 0.95


def test_near_duplicates_against_all_pairs():
    draw = random.Random(4)
    texts = [" ".join(draw.choices(WORDS, k=20)) for _ in range(60)]
    for n in range(40):
        words = texts[n].split()
        for _ in range(draw.randint(0, 3)):
            words[draw.randrange(20)] = draw.choice(WORDS)
        texts.append(" ".join(words))
    sets = [set(shingles(t).tolist()) for t in texts]
    truth = {
        (i, j): len(sets[i] & sets[j]) / len(sets[i] | sets[j])
        for i in range(100)
        for j in range(i)
        if len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= SIMILAR
    }
    found = near(Texts.of(texts))
    got = {(int(j), int(i)): float(s) for i, j, s in zip(found.one, found.other, found.similarity, strict=True)}
    assert len(truth) > 10 and set(got) <= set(truth)
    assert len(set(got) & set(truth)) >= 0.98 * len(truth)
    assert all(got[k] == pytest.approx(truth[k]) for k in got)
