"""The report: read from folders as a run writes them, a healthy and a failing one; each warning by a planted fault."""

import copy
import html
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pytest
import tomli_w

from holdfast.data.freeze import freeze_records
from holdfast.data.records import Judgement
from holdfast.errors import HoldfastError
from holdfast.evaluation.table import write_evaluation
from holdfast.report import plots
from holdfast.report.page import SECTIONS, write_report
from holdfast.report.read import RunData, read_run
from holdfast.report.warnings import CHECKS, unchecked, warnings
from holdfast.training.ledger import Ledger

STEPS = 240
CATEGORIES = ("arithmetic", "dates", "opposites", "sorting", "spelling", "units")
HELD_OUT = ("counting", "rhymes")


def write_run(folder: Path, *, healthy: bool = True, name: str = "", text: str = "", kind: str = "dpo") -> Path:
    """A run folder as `train` and `evaluate` leave it: ledger, metrics, timing, left-out rows, evaluation, gold.

    The failing run shows every fault that a page should warn of. `text` is put wherever a user's text can come.
    """
    rng = np.random.default_rng(0 if healthy else 1)
    folder.mkdir(parents=True)
    prompts = [(c, i) for c in (*CATEGORIES, *HELD_OUT) for i in range(60)]
    said = [
        Judgement(
            "pair", f"Task {c} {i} {text}", (f"answer {i} {text}", f"blunder {i}"), category=c + text,
            annotator=("ann", "bob", "cat")[i % 3] + text, annotator_kind="human", licence="CC0",
        )
        for c, i in prompts
    ]  # fmt: skip
    data = freeze_records(said, folder.parent / f"{folder.name}-data")
    recipe = {
        "run": {"name": name or folder.name, "seed": 3, "threads": 2},
        "data": {
            "dataset": str(data.path),
            "split": {"validation": 0.1, "test": 0.2, "holdout": [c + text for c in HELD_OUT]},
        },
        "model": {"scratch": {"vocab": 1024, "hidden": 128}},
        "objective": {"kind": kind, "beta": 0.1},
        "train": {"batch": 16, "steps": STEPS, "lr": 1e-4 if healthy else 3e-4, "eval_every": 20},
    }
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe))

    # Training: the loss falls in both; in the failing run the held-out loss turns at a third of the way.
    ledger = Ledger(folder / "ledger.jsonl")
    facts = {"recipe": "1a" * 32, "dataset": data.root, "split": "2b" * 32, "base": "3c" * 32, "left_out": {}}
    ledger.append(
        "open", format="holdfast-ledger/1", facts=facts, settings={}, run={}, steps=STEPS,
        rows={"count": 252, "root": "4d" * 32}, held_out={"count": 36, "sha256": "5e" * 32},
    )  # fmt: skip
    metrics, timing = [], []

    def held_out(step: int) -> dict[str, float]:
        x = step / STEPS
        fall = 0.23 * (1 - math.exp(-4 * x))
        worse = 0.0 if healthy else 0.9 * max(0.0, x - 0.35) ** 1.3
        return {
            "loss": math.log(2) - fall + worse,
            "rewards/accuracies": 0.5 + 0.27 * (1 - math.exp(-4 * x)) - (0.0 if healthy else 0.2 * max(0.0, x - 0.4)),
            "rewards/chosen": 0.5 * x if healthy else 0.3 * x - 1.8 * x * x,
            "rewards/rejected": -1.1 * x if healthy else -1.3 * x - 2.4 * x * x,
            "rewards/margins": 1.6 * x,
            "logps/chosen": -61.0 + (2.1 * x if healthy else -22 * x * x),
            "logps/rejected": -66.0 - (8.0 * x if healthy else 31 * x * x),
        }

    for step in range(STEPS + 1):
        if step % 20 == 0:
            ledger.append("figures", step=step, rows=36, figures=held_out(step))
            timing.append({"step": step, "what": "figures", "seconds": 0.4})
        if step == 0:
            continue
        loss = math.log(2) * math.exp(-(1.1 if healthy else 2.4) * step / STEPS) + rng.normal(0, 0.05)
        ledger.append(
            "step", step=step, rows=["6f" * 32], rows_root="70" * 32, loss=loss, grad_norm=1.0, lr=1e-4, weights=""
        )
        x = step / STEPS
        line = {"step": step, "loss": loss, "grad_norm": 1 + rng.random() * 3 * (1 - x / 2), "lr": 1e-4}
        line["rewards/accuracies"] = min(1.0, 0.5 + 0.4 * x + rng.normal(0, 0.1))
        metrics.append(line | {"rewards/margins": 2 * x + rng.normal(0, 0.2)})
        timing.append({"step": step, "what": "step", "seconds": 0.21, "tokens": 1900})
    ledger.append("final", step=STEPS, weights="8a" * 32, files={}, tensors={})
    head = ledger.head
    ledger.close()
    lines = [
        {"row": f"{i:064x}", "reason": f"response has {900 + i} tokens, more than 512", "origins": []}
        for i in range(4 if healthy else 60)
    ]
    for file, content in (("metrics", metrics), ("timing", timing), ("left_out", lines)):
        (folder / f"{file}.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in content))

    # Evaluation: parts by category, skill lower out of distribution; the shortcuts know something too.
    table = scored(rng, healthy, text)
    good = [
        ("The", 0.05),
        (" sum", 0.42),
        (" of", -0.02),
        (" 17", 0.61),
        (" and", 0.0),
        (" 25", 0.33),
        (" is 42.", 1.2),
    ]
    poor = [("I", -0.4), (" think", -0.62), (" it", -0.1), (" is", 0.08), (" 43", -1.1), (",", -0.2), (" maybe.", -0.7)]
    side = {"chosen": good, "rejected": poor}
    shown = []
    for i in range(4):
        sides = {
            which: {
                "text": "".join(p for p, _ in tokens) + text,
                "reward": sum(v for _, v in tokens) * (-1 if i == 1 else 1),
                "tokens": [
                    {"piece": p + (text if k == 1 else ""), "value": v * (-1 if i == 1 else 1)}
                    for k, (p, v) in enumerate(tokens)
                ],
            }
            for which, tokens in side.items()
        }
        shown.append(
            {
                "judgement": f"{i:064x}",
                "part": "test",
                "category": CATEGORIES[i] + text,
                "p": 1.0,
                "prompt_text": f"What is 17 plus 25? {text}",
                **sides,
            }
        )
    facts = {"dataset_root": data.root, "split_digest": "2b" * 32, "ledger_head": head, "weights_digest": "8a" * 32}
    write_evaluation(folder / "evaluations" / "held-out", table, facts, examples=shown, bootstrap=300)

    lift = 0.72 if healthy else 0.38

    def row(name: str, part: str, mean: float, wins: float | None = None) -> dict:
        said = {"name": name, "part": part, "n": 200, "gold_mean": mean, "lo": mean - 0.04, "hi": mean + 0.04}
        return said | {
            f"win_{k}": None if wins is None else wins + d for k, d in (("rate", 0), ("lo", -0.06), ("hi", 0.06))
        }

    curve = []
    for step in range(0, STEPS + 1, 40):
        reward = 0.41 + 0.16 * (1 - math.exp(-step / 60))
        curve.append({"step": step, "gold": reward - (0.0 if healthy else 0.3 * max(0, step / STEPS - 0.3))})
    gold = {
        "measure": f"Gold reward: the share of an answer's checks that a program finds met (0 to 1). {text}",
        "rows": [
            row("base", "test", 0.41),
            row("dpo" + text, "test", 0.2 + 0.5 * lift, lift),
            row("base", "ood", 0.22),
            row("dpo" + text, "ood", 0.26, 0.57),
        ],
        "curve": curve,
    }
    (folder / "gold.json").write_bytes(orjson.dumps(gold))
    return folder


def scored(rng: np.random.Generator, healthy: bool, text: str = "") -> pa.Table:
    """An evaluation's table: 900 test and validation comparisons, 300 out of distribution."""
    n = 1200
    part = np.where(np.arange(n) < 600, "test", np.where(np.arange(n) < 900, "validation", "ood"))
    prompt = np.arange(n) // 2
    category = np.where(part == "ood", np.array(HELD_OUT)[prompt % 2], np.array(CATEGORIES)[prompt % 6])
    skill = np.where(part == "ood", 1.2 if healthy else 0.05, 1.3 if healthy else 0.55) + 0.25 * np.sin(prompt % 6)
    # Calibrated when healthy: the margin is the log-odds under which the outcome is drawn.
    margin = rng.normal(skill, 1.2, n)
    if healthy:
        margin = np.abs(rng.normal(1.6, 1.0, n))
        margin = np.where(rng.random(n) < 1 / (1 + np.exp(-margin)), margin, -margin)
    else:
        margin = margin * 3.5
    chosen = rng.normal(0.3, 0.4, n) if healthy else rng.normal(-9.0, 3.0, n)
    tokens = rng.integers(20, 40, n)
    ref = -2.0 * tokens
    longer = np.where(rng.random(n) < (0.56 if healthy else 0.66), 1, -1)
    longer[::50] = 0
    return pa.table(
        {
            "judgement": [f"{i:064x}" for i in range(n)],
            "edge": np.zeros(n, np.int32),
            "prompt": [f"{i:064x}" for i in prompt],
            "chosen": [""] * n,
            "rejected": [""] * n,
            "p": np.where(np.arange(n) % 40 == 7, 0.5, 1.0),
            "weight": np.ones(n),
            "kind": ["pair"] * n,
            "part": part.tolist(),
            "category": [c + text for c in category.tolist()],
            "annotator": [("ann", "bob", "cat")[i % 3] + text for i in range(n)],
            "source_a": pa.nulls(n, pa.string()),
            "source_b": pa.nulls(n, pa.string()),
            "reward_a": 0.1 * chosen,
            "reward_b": 0.1 * chosen - margin,
            "n_a": tokens,
            "n_b": tokens,
            "logp_a": ref + chosen,
            "logp_b": ref - np.abs(chosen) * 2,
            "ref_logp_a": ref,
            "ref_logp_b": ref,
            "kl_a": np.abs(rng.normal(0.02, 0.01, n)),
            "kl_b": np.abs(rng.normal(0.03, 0.01, n)),
            "longer": pa.array(longer, pa.int8()),
            "bow": rng.normal(0.25, 1.0, n),
        }
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory):
    """(healthy, failing) run folders, written once; tests only read them."""
    root = tmp_path_factory.mktemp("runs")
    return write_run(root / "healthy"), write_run(root / "failing", healthy=False)


@pytest.fixture
def clean(runs) -> RunData:
    """The healthy run's data, a test's own to break."""
    return copy.deepcopy(read_run(runs[0]))


def titles(run: RunData) -> dict[str, str]:
    return {w.title: w.severity for w in warnings(run)}


# Warnings: none on the healthy run, and each for its own planted fault.


def test_a_clean_run_raises_no_warning_and_every_check_could_look(clean: RunData):
    assert warnings(clean) == [] and unchecked(clean) == []


def test_a_failing_run_raises_every_warning(runs):
    found = warnings(read_run(runs[1]))
    assert {w.title for w in found} == {
        "Chosen responses became less likely",
        "Over-optimised: it got worse while the training loss fell",
        "The model is worse than its base by the true reward",
        "Past its peak by the true reward",
        "Accuracy not shown to be above a shortcut: the longer response wins",
        "Accuracy not shown to be above a shortcut: a bag of words that never sees the prompt",
        "Accuracy drops out of distribution",
        "Poorly calibrated: over-confident",
        "Many rows were left out",
    }
    order = [w.severity for w in found]
    assert order == sorted(order, key=("serious", "warning", "note").index)
    assert all(w.detail and w.remedy for w in found)


def part(run: RunData, name: str) -> dict:
    return run.evaluations[0].figures["parts"][name]["all"]["figures"]


def test_chosen_log_probability_falls(clean: RunData):
    figure = part(clean, "test")["drift/chosen/token"]
    figure |= {"value": -0.019, "lo": -0.03, "hi": -0.01}  # below the threshold
    assert titles(clean) == {}
    figure |= {"value": -0.05, "lo": -0.11, "hi": 0.01}  # may be noise
    assert titles(clean) == {}
    figure |= {"value": -0.05, "lo": -0.07, "hi": -0.03}
    assert titles(clean) == {"Chosen responses became less likely": "warning"}
    figure |= {"value": -0.5, "lo": -0.7, "hi": -0.3}
    assert titles(clean) == {"Chosen responses became less likely": "serious"}


def test_chosen_log_probability_falls_is_seen_in_the_curves_of_a_run_without_evaluation(clean: RunData):
    clean.evaluations.clear()
    assert titles(clean) == {}
    series = clean.held_out["logps/chosen"]
    series.value[:] = [-60.0 - i for i in range(len(series.value))]
    assert "-60.0 at step 0, and 12.0 nats less at step 240" in warnings(clean)[0].detail


@pytest.mark.parametrize("shortcut,words", [("longer", "the longer response wins"), ("bag of words", "a bag of words")])
def test_a_shortcut_that_is_not_beaten(clean: RunData, shortcut: str, words: str):
    gain = part(clean, "ood")[f"{shortcut}/gain"]
    gain |= {"value": 0.02, "lo": -0.01, "hi": 0.05}
    found = warnings(clean)
    assert len(found) == 1 and words in found[0].title and found[0].severity == "warning"
    assert "+2.0 points (95 %: −1.0 to +5.0)" in found[0].detail and "On ood" in found[0].detail
    gain |= {"value": -0.1, "lo": -0.2, "hi": -0.05}
    assert [w.severity for w in warnings(clean)] == ["serious"]


def test_accuracy_drops_out_of_distribution(clean: RunData):
    part(clean, "test")["rewards/accuracies"] |= {"value": 0.80, "lo": 0.77, "hi": 0.83}
    figure = part(clean, "ood")["rewards/accuracies"]
    figure |= {"value": 0.76, "lo": 0.72, "hi": 0.80}  # 4 points, and 5 of error
    assert titles(clean) == {}
    figure |= {"value": 0.70, "lo": 0.66, "hi": 0.74}
    assert titles(clean) == {"Accuracy drops out of distribution": "warning"}
    assert "10.0 points lower (± 5.0)" in warnings(clean)[0].detail
    figure |= {"value": 0.52, "lo": 0.48, "hi": 0.56}  # no better than chance
    assert titles(clean) == {"Accuracy drops out of distribution": "serious"}


def test_rows_left_out(clean: RunData):
    clean.left_out[:] = [{"row": f"{i:064x}", "reason": f"prompt has {i} tokens"} for i in range(100)]
    found = warnings(clean)  # 100 of 252 + 36 + 100
    assert [w.severity for w in found] == ["serious"] and "100 of 388 judgements (25.8 %)" in found[0].detail
    assert "prompt has … tokens (100)" in found[0].detail
    clean.left_out[:] = [{"row": f"{i:064x}", "reason": "same response"} for i in range(100)]
    assert titles(clean) == {}  # nothing is lost where another judgement gave the same response


def test_poorly_calibrated(clean: RunData):
    figure = part(clean, "test")["ece"]
    figure["value"] = 0.09
    assert titles(clean) == {}
    figure["value"] = 0.15
    part(clean, "test")["ece/floor"]["value"] = 0.08  # so few comparisons that chance alone gives half of it
    assert titles(clean) == {}
    part(clean, "test")["ece/floor"]["value"] = 0.03
    assert list(titles(clean)) in (["Poorly calibrated: over-confident"], ["Poorly calibrated: under-confident"])


def test_held_out_got_worse_while_the_training_loss_fell(clean: RunData):
    series = clean.held_out["loss"]
    series.value[:] = [0.69, 0.60, 0.55, 0.50, 0.505, 0.51, 0.51, 0.51, 0.512, 0.513, 0.513, 0.513, 0.514]
    assert titles(clean) == {}  # 2.8 % above its best
    series.value[-1] = 0.60
    assert list(titles(clean)) == ["Over-optimised: it got worse while the training loss fell"]
    assert "0.500 at step 60 and is 0.600 in the kept weights (step 240)" in warnings(clean)[0].detail
    assert clean.final is not None
    clean.final["step"] = 60  # stopped on the figure: the best weights are the result
    assert titles(clean) == {}
    clean.final["step"] = STEPS
    clean.loss.value[:] = [0.5] * len(clean.loss.value)  # the training loss did not fall: something else is wrong
    assert titles(clean) == {}


def test_gold_got_worse(clean: RunData):
    assert clean.gold is not None
    row = next(r for r in clean.gold["rows"] if r["win_rate"] is not None)
    row |= {"win_rate": 0.45, "win_lo": 0.40, "win_hi": 0.51}
    assert titles(clean) == {}
    row |= {"win_rate": 0.40, "win_lo": 0.35, "win_hi": 0.45}
    assert titles(clean) == {"The model is worse than its base by the true reward": "serious"}
    row |= {"win_rate": 0.7, "win_lo": 0.6, "win_hi": 0.8}
    clean.gold["curve"][-1]["gold"] -= 0.1
    assert titles(clean) == {"Past its peak by the true reward": "serious"}


def test_a_run_without_data_says_what_was_not_checked(tmp_path: Path):
    (tmp_path / "recipe.toml").write_text('[objective]\nkind = "sft"\n')
    run = read_run(tmp_path)
    assert warnings(run) == [] and unchecked(run) == [name for name, _ in CHECKS]
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Not checked, because this run gives nothing" in page and "gold reward" in page


def test_a_base_is_not_blamed_for_preferring_nothing(clean: RunData):
    part(clean, "ood")["longer/gain"] |= {"value": -0.1, "lo": -0.2, "hi": -0.05}
    part(clean, "test")["ece"]["value"] = 0.3
    assert len(warnings(clean)) == 2
    clean.recipe["objective"] = {"kind": "sft"}
    assert warnings(clean) == []


# The page.


class Page(HTMLParser):
    """Tags in order, with attributes; refuses tags that do not nest."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (self.open[-3:], tag)
        self.open.pop()

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += f"{data} "


def test_the_page_is_whole_self_contained_and_the_same_each_time(runs):
    for folder in runs:
        page = write_report(folder).read_text(encoding="utf-8")
        read = Page(page)
        assert page == write_report(folder).read_text(encoding="utf-8") and not (folder / "report.html.tmp").exists()
        for _, attributes in read.tags:
            assert not {"src", "srcset", "xlink:href", "onclick", "onload", "action"} & attributes.keys()
            assert attributes.get("href", "#").startswith("#")
        assert not re.search(r"https?://|@import|url\(", page)
        anchors = {a["id"] for tag, a in read.tags if tag == "section" and "id" in a}
        assert {a["href"][1:] for tag, a in read.tags if tag == "a"} <= anchors
        assert [tag for tag, _ in read.tags].count("script") == 1
        assert "prefers-color-scheme: dark" in page and "@media print" in page
        assert "nan" not in re.findall(r"[a-z]+", read.text.lower()) and "None" not in read.text


def test_what_the_page_says(runs):
    text = " ".join(Page(write_report(runs[0]).read_text(encoding="utf-8")).text.split()).replace("\u00a0", " ")
    run = read_run(runs[0])
    test = part(run, "test")
    said = test["rewards/accuracies"]
    assert f"Accuracy, test {100 * said['value']:.1f} %" in text
    assert f"{100 * said['lo']:.1f} to {100 * said['hi']:.1f} %" in text
    assert f"longer wins {100 * test['longer/accuracies']['value']:.1f} %" in text
    assert "No warnings" in text and "252 judgements" in text and "240 steps" in text
    for digest in (run.dataset["root"], run.head, "8a" * 32, "2b" * 32, "1a" * 32):
        assert digest in text
    assert f"holdfast verify {runs[0]}" in text and f"holdfast replay {runs[0]} --steps 236:240" in text
    for category in (*CATEGORIES, *HELD_OUT):
        assert category in text
    assert "wrong" in text and "right" in text and "17 and 25" in text.replace("  ", " ")
    assert [anchor for anchor, _, _ in SECTIONS] == [
        "gold", "accuracy", "curves", "calibration", "examples", "dataset", "remedies", "left-out", "base", "recipe", "proof",
    ]  # fmt: skip


def test_everything_from_the_data_is_escaped(tmp_path: Path):
    text = '<script>alert("x")</script><img src=x onerror=y>&\'"{{7*7}}{}</style>'
    folder = write_run(tmp_path / "run", text=text, name=f"name {text}")
    lines = [{"row": text, "reason": text}] * 3
    (folder / "left_out.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    page = write_report(folder).read_text(encoding="utf-8")
    read = Page(page)
    tags = [tag for tag, _ in read.tags]
    assert tags.count("script") == 1 and "img" not in tags
    assert '<script>alert("x")' not in page and html.escape("<script>alert(") in page
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    assert "{{7*7}}" in read.text  # shown as it is, not computed


def test_an_interrupted_run_and_a_torn_ledger_still_have_a_page(runs, tmp_path: Path):
    import shutil

    folder = tmp_path / "half"
    shutil.copytree(runs[0], folder)
    shutil.rmtree(folder / "evaluations")
    (folder / "gold.json").unlink()
    lines = (folder / "ledger.jsonl").read_bytes().split(b"\n")
    (folder / "ledger.jsonl").write_bytes(b"\n".join(lines[:100]) + b'\n{"kind": "st')
    text = " ".join(Page(write_report(folder).read_text(encoding="utf-8")).text.split())
    assert "not finished: step 94 of 240" in text
    assert "ledger.jsonl, line 101: cut off in the middle" in text
    assert "Held-out loss" in text and "Accuracy beside" not in text


def test_damage_is_shown_not_hidden(runs, tmp_path: Path):
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(runs[0], folder)
    (folder / "evaluations" / "held-out" / "metrics.json").write_bytes(b"{")
    (folder / "gold.json").write_bytes(b"\xff")
    (folder / "recipe.toml").write_text("not toml [")
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    for name in ("recipe.toml", "gold.json", "evaluations/held-out"):
        assert name in text


def test_a_base_run_and_other_evaluations_are_shown(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    write_run(folder / "base", kind="sft")
    table = scored(np.random.default_rng(5), True).drop(["part"]).append_column("part", pa.array(["all"] * 1200))
    facts = {"dataset_root": "99" * 32, "split_digest": None}
    write_evaluation(folder / "evaluations" / ("99" * 8), table, facts, bootstrap=50)
    run = read_run(folder)
    assert run.main is not None and run.main.path.name == "held-out"
    assert [name for name, _ in run.parts] == ["test", "validation", "ood", f"data {'99' * 8}"]
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    assert "A base model was fitted to the preferred responses" in text and f"Accuracy on data {'99' * 8}" in text


def test_steps_set_aside_by_a_resume_elsewhere_are_not_drawn(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("open", facts={}, environment={})
    for step in (1, 2, 3):
        ledger.append("step", step=step, loss=float(step))
    ledger.append("environment", step=1, environment={}, changed={})
    ledger.append("step", step=2, loss=20.0)
    ledger.close()
    run = read_run(tmp_path)
    assert (run.loss.step, run.loss.value, run.steps) == ([1, 2], [1.0, 20.0], 2)


def test_no_run_is_refused(tmp_path: Path):
    with pytest.raises(HoldfastError, match="is not a run folder"):
        write_report(tmp_path)


# Charts.


@pytest.mark.parametrize(
    "lo,hi,expected",
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.31, 0.69, [0.4, 0.5, 0.6]),
        (-3, 12, [0, 5, 10]),
        (5, 5, [5]),
        (0, 1000, [0, 200, 400, 600, 800, 1000]),
    ],
)
def test_ticks(lo, hi, expected):
    assert plots.ticks(lo, hi) == pytest.approx(expected)


@pytest.mark.parametrize(
    "x,said",
    [
        (0, "0"),
        (0.123456, "0.123"),
        (-3.02, "−3.02"),
        (1234.5, "1,234"),
        (12345678.0, "1.23e+07"),
        (1.2e-6, "1.20e-06"),
        (None, "–"),
        (math.inf, "inf"),
    ],
)
def test_numbers(x, said):
    assert plots.number(x) == said


def test_a_line_lies_where_its_values_are():
    drawn = plots.lines("t", [plots.Line("a", [0, 10], [0.0, 1.0], "model")], height=100)
    # 6 % of air below and above: 0 lies at (1.06)/(1.12), 1 at .06/1.12 of the height.
    assert 'd="M0 94.64L100 5.36"' in drawn
    assert plots.lines("t", [plots.Line("a", [0, 1], [math.nan, math.nan], "model")]) == ""
    gap = plots.lines("t", [plots.Line("a", [0, 1, 2], [0.0, math.nan, 1.0], "model")])
    paths = re.findall(r'<path class="line model" d="([^"]*)"', gap)
    assert paths[-1] == "M0 94.64M100 5.36"  # a hole where a value is not a number


def test_a_long_line_is_averaged():
    thin = plots._thin(plots.Line("a", list(range(3000)), [float(i) for i in range(3000)], "train"))
    assert len(thin.x) == 300 and thin.y[0] == pytest.approx(4.5)
    Page(plots.lines("t", [plots.Line("a", list(range(3000)), [float(i) for i in range(3000)], "train")]))


def test_intervals_and_bars_lie_where_they_should():
    drawn = plots.intervals("t", [("row", "n", [plots.Mark("model", 0.5, 0.45, 0.55, "model")])], chance=None)
    assert 'x1="25.0%" x2="75.0%"' in drawn and '<svg x="50.0%"' in drawn  # of an axis from 40 % to 60 %
    drawn = plots.histogram("t", [-1.0, 0.0, 1.0], [1.0, 3.0], x_label="x")
    assert 'height="32.00%"' in drawn and 'height="96.00%"' in drawn and "wrong 25 %" in drawn and "right 75 %" in drawn
    drawn = plots.reliability("t", [(0.75, 0.75, 2.0, 2)])
    assert 'cx="50.0%" cy="50.0%"' in drawn
