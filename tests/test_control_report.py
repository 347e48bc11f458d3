"""The page of a control run: figures of a hand-made one, each warning by a planted fault, what stands for what is missing;
and the verbs beside it."""

import html
import json
import re
import shutil
import struct
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
import tomli_w
import torch

from control_world import frozen, recipe
from holdfast import cli, pipeline
from holdfast.control.episodes import Episodes
from holdfast.control.flow import relabel_log
from holdfast.control.policy import load_policy
from holdfast.control.steps import Scale
from holdfast.control.store import freeze_episodes, open_log, relabel
from holdfast.errors import HoldfastError
from holdfast.report import control_charts as charts
from holdfast.report import control_look, plots
from holdfast.report.control import CHECKS, calibration, render
from holdfast.report.control_look import Look, Mean, Near, Preferred, differences, look
from holdfast.report.page import write_report
from holdfast.report.plots import Line, Mark
from holdfast.report.read import RunData, Series, read_run
from holdfast.training.ledger import Ledger


def text(page: str) -> str:
    """What a reader sees, titles to hover over included."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))).replace("\N{NO-BREAK SPACE}", " ")


def steps_of(returns, n=2, end=(True,), facts=None, behaviour=None, n_actions=2):
    """Episodes of n steps whose rewards are equal shares of these returns."""
    E = len(returns)
    rng = np.random.default_rng(0)
    ended = np.resize(np.array(end), E)
    return Episodes(
        observations=rng.normal(0, 1, (E * n, 2)).astype(np.float32),
        actions=np.resize(np.arange(n_actions), E * n).astype(np.int64),
        rewards=np.repeat(np.array(returns, np.float64) / n, n),
        offsets=np.arange(E + 1) * n,
        last=np.zeros((E, 2), np.float32),
        terminated=ended,
        truncated=~ended,
        behaviour=None if behaviour is None else np.array(behaviour, np.int32),
        n_actions=n_actions,
        facts=facts or {},
    )


def write_run(folder, name="<b>odd</b>"):
    """Two members of 4 steps as training leaves them, without a policy; a log by two behaviours beside it."""
    facts = {
        "environment": "Made-v0",
        "behaviours": [
            {"name": name, "episodes": 2, "steps": 4, "return": 3.0},
            {"name": "bold", "episodes": 2, "steps": 4, "return": 15.0},
        ],
    }
    log = freeze_episodes(steps_of([2, 4, 10, 20], behaviour=[0, 0, 1, 1], facts=facts), folder.parent / "log")
    folder.mkdir()
    said = {
        "run": {"threads": 1},
        "data": {"dataset": str(log.path), "split": {"validation": 0.0}},
        "control": {"replicas": 2, "simulate": "Made-v0", "episodes": 2},
        "objective": {"kind": "cql"},
        "train": {"steps": 4},
    }
    (folder / "recipe.toml").write_text(tomli_w.dumps(said))
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append(
        "open", format="holdfast-ledger/1", facts={"dataset": log.root, "left_out": {}}, settings={}, run={}, steps=4,
        rows={"count": 8, "root": "4d" * 32}, held_out=None,
    )  # fmt: skip
    metrics = []
    for step in range(5):
        if step % 2 == 0:
            ledger.append(
                "figures", step=step, rows=3,
                figures={"loss": 8.0 - step, "return/mean": 10.0 + step, "return/0": 8.0 + step, "return/1": 12.0 + step},
            )  # fmt: skip
        if step:
            ledger.append("step", step=step, rows=[], rows_root="", loss=9.0 - step, grad_norm=1.0, lr=1e-3, weights="")
            metrics.append(
                {"step": step, "loss": 9.0 - step, "loss/td": 5.0, "loss/td/0": 4.0, "loss/td/1": 6.0 + step}
            )
    ledger.append("final", step=4, weights="8a" * 32, files={}, tensors={})
    ledger.close()
    (folder / "metrics.jsonl").write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in metrics))
    evaluated = folder / "evaluations" / "held-out"
    evaluated.mkdir(parents=True)
    played = {"environment": "Made-v0", "returns": [[10.0, 14.0], [16.0, 16.0]]}
    figures = {"validation": {"rows": 3, "loss/td": 1.25}, "played": played}
    (evaluated / "metrics.json").write_bytes(orjson.dumps(figures))
    return folder


def test_figures_of_a_hand_made_run(tmp_path):
    run = write_run(tmp_path / "run")
    page = write_report(run).read_text(encoding="utf-8")
    said = text(page)
    # Member 0 played 10 and 14: mean 12, deviation sqrt 8, Student's 97.5 % with 1 degree 12.706, half 25.41.
    assert "member 0 · played: 12.0 (−13.4 to 37.4)" in said
    assert "member 1 · played: 16.0 (16.0 to 16.0)" in said
    # The log's four episodes returned 2, 4, 10, 20; by behaviour 2, 4 and 10, 20. Student's with 3 degrees 3.1824.
    half = 3.182446 * np.std([2, 4, 10, 20], ddof=1) / 2
    assert f"the log: all · logged: 9.00 ({9 - half:.2f} to {9 + half:.1f})".replace("-", "−") in said
    assert "the log: <b>odd</b> · logged: 3.00" in said and "the log: bold · logged: 15.0" in said
    assert "<b>odd</b>" not in page  # a name is text
    assert "best episode of the log: 20.0" in said
    assert "Return in the environment 14.0 members 12.0 to 16.0 the log: 9.00" in said  # the tile
    # Curves with their bands: return/0 and return/1, loss/td/0 and loss/td/1.
    assert "step 2 played: 12.00 (10.00 to 14.00)" in said
    assert "step 3 training: 6.000 (4.000 to 9.000)" in said  # the only loss there is, so the band is on it
    assert "validation" in said and "1.250" in said
    assert "8 steps of log" in said and "train 4, validation 0, test 0" in said
    assert "The policy was not held against the log" not in said  # nothing was tried, so nothing is excused
    assert "default-src 'none'; img-src data:; style-src" in page


def test_the_same_folder_gives_the_same_bytes_whatever_is_lost(tmp_path):
    """Nothing of a run but its recipe or its ledger is needed for a page."""
    run = write_run(tmp_path / "run")
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    whole = (run / "ledger.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (run / "ledger.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:20])  # killed within a line
    page = text(write_report(run).read_text(encoding="utf-8"))
    assert "not finished: step 2 of 4" in page and "cut off in the middle" in page
    (run / "evaluations" / "held-out" / "metrics.json").write_text("{")
    assert "evaluations/held-out" in text(write_report(run).read_text(encoding="utf-8"))
    shutil.rmtree(run / "evaluations")
    shutil.rmtree(tmp_path / "log")
    page = text(write_report(run).read_text(encoding="utf-8"))
    assert "The log could not be read: " in page and "12.00 (10.00 to 14.00)" in page
    (run / "metrics.jsonl").unlink()
    (run / "ledger.jsonl").unlink()
    assert "0 steps of 100 updates" in text(write_report(run).read_text(encoding="utf-8"))
    (run / "recipe.toml").write_text("[control]\nnothing = 1\n")
    (run / "ledger.jsonl").write_bytes(whole)
    assert "12.00 (10.00 to 14.00)" not in text(
        write_report(run).read_text(encoding="utf-8")
    )  # of one member, for all it says


def test_another_log_in_its_place_is_seen(tmp_path):
    run = write_run(tmp_path / "run")
    shutil.rmtree(tmp_path / "log")
    freeze_episodes(steps_of([1, 2, 3]), tmp_path / "log")
    page = text(write_report(run).read_text(encoding="utf-8"))
    assert "now; the run was made from" in page and "the log: all" not in page


# Warnings: each by a planted fault, and none without it.


def made_look(returns=(2.0, 4.0, 10.0, 20.0), kind="cql", discount=0.5, end=(True,), **found):
    run = RunData(None)
    run.recipe = {"objective": {"kind": kind}, "control": {"replicas": 2, "simulate": "Made-v0"}}
    episodes = steps_of(list(returns), end=end)
    log = SimpleNamespace(episodes=episodes, facts={}, segments=None)
    task = SimpleNamespace(discount=(discount,), members=2, seeds=(0, 1))
    algorithm = SimpleNamespace(task=task, needs_reward=True, acts=True, settings={})
    said = {"algorithm": algorithm, "log": log, "true_T": episodes.rewards} | found
    return Look(run, **said)


def warned(found):
    return {w.title: w for _, check in CHECKS for w in check(found) or ()}


def near(log=0.9, policy=(0.9, 0.9), differ=0.0, visited=0.05):
    return Near(100, log, np.array(policy), differ, visited, np.zeros((3, 2)), None, ("", ""))


def test_a_healthy_run_has_no_warning():
    healthy = made_look(start_K=np.array([3.0, 3.0]), returns_KE=np.array([[19.0, 21.0], [20.0, 18.0]]), near=near())
    assert warned(healthy) == {}


def test_values_above_what_the_log_shows():
    """Rewards 1 and 10 a step, discount 1/2: the best episode is worth 10 + 5 = 15, and nothing more than 10 / (1 - 1/2) = 20.
    The spread of the four is 1.5 and 3, 7.5, 15: above 15 by less than it nothing is said."""
    spread = np.std([1.5, 3.0, 7.5, 15.0])
    title = "Values far above the best return in the log"
    assert title not in warned(made_look(start_K=np.array([15 + 0.99 * spread, 0.0])))
    over = warned(made_look(start_K=np.array([15 + 1.01 * spread, 0.0])))[title]
    assert over.severity == "warning" and "worth 20.3" in over.detail and "returned 15.0" in over.detail
    most = warned(made_look(start_K=np.array([30.0, 40.0])))[title]
    assert most.severity == "serious" and "Member 1" in most.detail and "more than 20.0" in most.detail
    assert warned(made_look(start_K=np.array([float("nan"), 0.0])))[title].severity == "serious"
    # A cut episode could have gone on at the log's best reward: 15 + 10 / 4 / (1 - 1/2) = 20
    assert title not in warned(made_look(start_K=np.array([20.0, 0.0]), end=(False,)))
    # Without a discount a cut log has no best
    assert dict(CHECKS)["values against the log"](made_look(start_K=np.ones(2), discount=1.0, end=(False,))) is None


def test_members_that_disagree():
    played = np.array([[20.0, 20.0], [10.0, 11.0]])  # the log's mean is 9: the worst makes 14 % of the best one's way
    assert "member 0 returns 20.0 and member 1 10.5" in warned(made_look(returns_KE=played))["Members disagree"].detail
    noisy = np.array([[0.0, 40.0], [0.0, 21.0]])
    assert "Members disagree" not in warned(made_look(returns_KE=noisy))
    assert "26 % of logged states" in warned(made_look(near=near(differ=0.26)))["Members disagree"].detail


def test_actions_and_states_outside_of_the_data():
    assert "Actions outside of the data" not in warned(made_look(near=near(policy=(0.68, 0.68))))
    mild = warned(made_look(near=near(policy=(0.7, 0.6))))["Actions outside of the data"]
    assert mild.severity == "warning" and "In 35 % of 100 logged states" in mild.detail
    assert warned(made_look(near=near(policy=(0.1, 0.1))))["Actions outside of the data"].severity == "serious"
    assert "The policy leaves the states of the log" in warned(made_look(near=near(visited=0.31)))


def test_rewards_that_never_change_and_play_below_the_log():
    title = "A reward that never changes"
    assert warned(made_look(returns=(4, 4, 4)))[title].severity == "note"  # episodes end: that can be learnt
    assert warned(made_look(returns=(4, 4, 4), end=(False,)))[title].severity == "serious"
    assert warned(made_look(returns=(0, 0, 0)))[title].severity == "serious"
    flat = made_look(kind="segment_reward", said={"facts": {"reward_std": [0.3, 0.0]}})
    assert "2 members 1" in warned(flat)["A learned reward that never changes"].detail
    title = "Worse than the behaviour that made the log"
    assert title in warned(made_look(returns_KE=np.array([[5.0, 5.1], [5.0, 5.1]])))
    assert title not in warned(made_look(returns_KE=np.array([[-10.0, 20.0], [-10.0, 20.0]])))  # too few to tell


def predicted(right, p=None, label=None):
    right = np.array(right, bool)
    label = np.ones(right.shape[1]) if label is None else label
    return Preferred(right.shape[1], right, p, label)


def test_judgements_that_were_not_learnt():
    chance = predicted([[True, False] * 50] * 2)
    title = "Judgements predicted no better than by chance"
    assert warned(made_look(kind="segment_reward", preferred={"validation": chance}))[title].severity == "serious"
    good = predicted([[True] * 9 + [False]] * 2, np.full(100, 0.9), np.resize([1.0] * 9 + [0.0], 100))
    assert warned(made_look(kind="segment_reward", preferred={"validation": good})) == {}
    sure = predicted([[True] * 9 + [False]] * 2, np.full(100, 0.999), np.resize([1.0] * 7 + [0.0] * 3, 100))
    assert (
        "by 29.9 points"
        in warned(made_look(kind="segment_reward", preferred={"test": sure}))["Poorly calibrated on judgements"].detail
    )
    assert (
        warned(made_look(kind="segment_reward", preferred={"train": chance})) == {}
    )  # what was learnt from tells nothing

    fitted = made_look(kind="bc")
    fitted.run.held_out = {"loss": Series([0, 1, 2, 3], [1.0, 0.5, 0.7, 0.9])}
    fitted.run.loss, fitted.run.steps = Series([1, 2, 3], [1.0, 0.5, 0.2]), 3
    assert "0.500 at step 1 and is 0.900" in warned(fitted)["Over-fitted"].detail
    fitted.run.recipe["objective"]["kind"] = "dqn"  # whose targets move: its loss says nothing of the kind
    assert warned(fitted) == {}

    lost = made_look(kind="segment_reward")
    lost.run.opened = {"facts": {"left_out": {"apart": 40}}, "rows": {"count": 50}, "held_out": {"count": 10}}
    assert "40 of 100 judgements" in warned(lost)["Many judgements were left out"].detail


# Measures.


def test_means_and_accuracies_have_their_intervals():
    m = Mean.of(np.array([1.0, 2.0, 3.0]))
    assert (round(m.value, 6), round(m.hi - 2, 4)) == (2.0, 2.4841)  # 4.30265 x 1 / sqrt 3
    assert Mean.of(np.array([5.0])) == Mean(5.0, None, None)
    a = predicted([[True] * 8 + [False] * 2]).accuracy  # Wilson's of 8 in 10, as tables have it
    assert (round(a.lo, 3), round(a.hi, 3)) == (0.490, 0.943)


def test_calibration_by_hand():
    p, label = np.array([0.9, 0.1, 0.6, 0.6]), np.array([1.0, 1.0, 1.0, 0.5])
    bins, ece, floor = calibration(p, label)
    # Sure of 0.9 twice and right once; of 0.6 twice and right 1.5 times: (|0.9 - 0.5| x 2 + |0.6 - 0.75| x 2) / 4
    found = sorted((round(c, 6), o, n) for c, o, _, n in bins)
    assert found == [(0.6, 0.75, 2), (0.9, 0.5, 2)] and ece == pytest.approx(0.275)
    assert 0 < floor < 0.4
    assert calibration(np.ones(50), np.ones(50))[1:] == (0.0, 0.0)


def test_how_far_members_differ():
    three = np.array([[0, 1, 2], [0, 1, 2], [0, 1, 0]])
    assert differences(three, True) == pytest.approx(2 / 9)  # of nine pairs of members and states two differ
    assert differences(three[:1], True) is None
    two = np.array([[[-1.0], [0.0]], [[1.0], [0.0]]])
    assert differences(two, False) == pytest.approx(np.sqrt(2) / 2 / 2)


class Always(torch.nn.Module):
    """Two members: the first does what the log does in its state, the second the other thing."""

    def __init__(self):
        super().__init__()
        self.task = SimpleNamespace(members=2, n_actions=2, seeds=(0, 1))

    def probs(self, obs):
        right = (obs[..., 0] > 0).long()
        right[1] = 1 - right[1]
        return torch.nn.functional.one_hot(right, 2).float()


def test_actions_are_held_against_the_nearest_of_other_episodes():
    rng = np.random.default_rng(0)
    side = rng.integers(0, 2, 600)
    seen = (np.where(side == 1, 5.0, -5.0)[:, None] + rng.normal(0, 1, (600, 2))).astype(np.float32)
    episodes = Episodes(
        seen, side.astype(np.int64), None, np.arange(0, 601, 20), np.zeros((30, 2), np.float32),
        np.ones(30, bool), np.zeros(30, bool), n_actions=2,
    )  # fmt: skip
    far = SimpleNamespace(observations=np.full((10, 2), 60.0, np.float32))
    found = Look(
        RunData(None),
        log=SimpleNamespace(episodes=episodes),
        algorithm=Always(),
        scale=Scale(np.zeros(2, np.float32), np.ones(2, np.float32), None, None),
        parts={"train": np.arange(25), "validation": np.arange(25, 30), "test": np.zeros(0, np.int64)},
        played=[[far, SimpleNamespace(observations=seen[:30])]],
    )
    control_look._near(found)
    n = found.near
    assert n.states == 100 and n.log == 1.0 and n.policy_K.tolist() == [1.0, 0.0] and n.differ == 1.0
    assert 0.25 <= n.visited <= 0.3  # the ten far away of forty, and at most few of the log's own
    assert n.plane.shape == (500, 2) and "99 % of the spread" not in n.axes[1]
    # Nothing held out: the last tenth of the episodes asks the others
    found.parts = {"train": np.arange(30)}
    control_look._near(found)
    assert found.near.states == 60
    found.parts = {"train": np.arange(1)}
    control_look._near(found)
    assert "no neighbours" in found.missing["near"]


def test_a_learned_reward_finds_the_true_one_beside_it(tmp_path):
    """A log relabelled twice: the truth is that of the first, found by its root; its correlations are known."""
    log = freeze_episodes(steps_of([2.0, 4.0, 10.0, 20.0, 1.0], n=3), tmp_path / "log")
    true = log.episodes.rewards
    facts = {"reward": {"model": "x"}}
    middle = relabel(log, -true, tmp_path / "middle", facts=facts)
    made = relabel(middle, 3 - 2 * true, tmp_path / "made", facts=facts)
    said = recipe(made.path, "dqn")
    pipeline.train(said, tmp_path / "run", quiet=True)
    found = look(read_run(tmp_path / "run"))
    g = found.agreement
    assert found.truth == "the rewards of log" and np.array_equal(found.true_T, true)
    assert (g.pearson, g.spearman, g.episodes) == pytest.approx((-1, -1, -1))
    assert "the rewards of log" in text(render(read_run(tmp_path / "run")))
    shutil.move(tmp_path / "log", tmp_path / "gone")
    (tmp_path / "gone" / "manifest.json").unlink()
    page = text(render(read_run(tmp_path / "run")))
    assert "does not lie beside it" in page and "−1.00" not in page


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return frozen(tmp_path_factory.mktemp("logs") / "log").path


def test_training_ends_with_a_page(logs, tmp_path):
    """Of a policy and of a reward model, whose figures here are computed by other means."""
    pipeline.train(recipe(logs, "bc", control={"replicas": 2}), tmp_path / "bc", quiet=True)
    page = (tmp_path / "bc" / "report.html").read_text(encoding="utf-8")
    assert write_report(tmp_path / "bc").read_text(encoding="utf-8") == page
    found = look(read_run(tmp_path / "bc"))
    assert found.missing == {"play": "the recipe names no environment ([control] simulate)"}
    assert found.near.log == 1.0 and len(found.values) == 2  # four states, all actions at random: all are near
    log = open_log(logs)
    held = found.held_out
    discounts = 0.9 ** np.arange(20)
    returns = [r @ discounts[: len(r)] for r in np.split(log.episodes.rewards, log.episodes.offsets[1:-1])]
    assert found.values[0].baselines["value of the behaviour policy"].value == pytest.approx(
        np.mean([returns[e] for e in held])
    )
    assert f"estimated from {len(held)} episodes that nothing was learnt from" in text(page)
    assert "No pictures" not in text(page) and "The policy was not played: the recipe names no environment" in text(
        page
    )

    pipeline.train(recipe(logs, "segment_reward", 20, control={"replicas": 2}), tmp_path / "reward", quiet=True)
    found = look(read_run(tmp_path / "reward"))
    metrics = json.loads((tmp_path / "reward/evaluations/held-out/metrics.json").read_bytes())
    assert found.preferred["validation"].accuracy.value == pytest.approx(metrics["validation"]["preference/accuracy"])
    steps = np.concatenate([np.arange(log.episodes.offsets[e], log.episodes.offsets[e + 1]) for e in found.held_out])
    relabelled = relabel_log(tmp_path / "reward", logs, tmp_path / "again")
    learned = np.load(relabelled.path / "ensemble.npy")
    k = [np.corrcoef(r[steps], log.episodes.rewards[steps])[0, 1] for r in learned]
    assert found.agreement.pearson_K == pytest.approx(k) and found.agreement.pearson > 0.7
    page = text((tmp_path / "reward" / "report.html").read_text(encoding="utf-8"))
    assert "Correlation with the true reward" in page and "Calibration on validation" in page


@pytest.mark.slow
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_page_of_a_run_that_was_played(tmp_path, env, monkeypatch, capsys):
    """Play again is the play that evaluation saw; the pictures are there, or the reason why not."""
    pytest.importorskip("gymnasium")
    from holdfast.control.collect import collect

    freeze_episodes(collect(env, epsilon=0.3, episodes=10, seed=1), tmp_path / "log")
    said = recipe(tmp_path / "log", "iql", control={"simulate": env, "episodes": 2, "replicas": 2, "standardise": True})
    said["data"]["split"] = {"validation": 0.6}
    pipeline.train(said, tmp_path / "run", quiet=True)
    found = look(read_run(tmp_path / "run"))
    metrics = json.loads((tmp_path / "run/evaluations/held-out/metrics.json").read_bytes())
    assert found.returns_KE.tolist() == metrics["played"]["returns"]
    rewards = found.played[1][0].rewards
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    mean = np.mean(
        [
            r.rewards[: found.values[1].horizon] @ 0.9 ** np.arange(min(len(r.rewards), found.values[1].horizon))
            for r in found.played[1]
        ]
    )
    assert len(rewards) and f"member 1 · played: the truth: {plots.number(float(mean))}" in text(page)
    assert found.near.visited is not None and 'class="visit"' in page
    assert page.count("data:image/png;base64,") == 8 or "No pictures of play: " in text(page)
    assert capsys.readouterr().out == ""  # pygame greets, if it is let
    monkeypatch.setitem(sys.modules, "pygame", None)
    if env == "CartPole-v1":
        assert "No pictures of play: " in text(render(read_run(tmp_path / "run")))


# Pictures.


def test_a_picture_is_the_pixels_it_was_made_of():
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    data = charts.png(rgb)
    chunks, at = {}, 8
    while at < len(data):
        n = struct.unpack(">I", data[at : at + 4])[0]
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + n]
        assert struct.unpack(">I", data[at + 8 + n : at + 12 + n])[0] == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + n
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and chunks[b"IHDR"] == struct.pack(">IIBBBBB", 7, 5, 8, 2, 0, 0, 0)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(5, 22)
    assert (rows[:, 0] == 0).all() and np.array_equal(rows[:, 1:].reshape(5, 7, 3), rgb)
    wide = np.zeros((4, 401, 3), np.uint8)
    wide[:3, :3] = 90  # a block of nine
    small = charts.smaller(wide)
    assert small.shape == (1, 133, 3) and small[0, 0].tolist() == [90, 90, 90] and small[0, 1:].sum() == 0


def test_values_and_bands_lie_where_they_should():
    marks = [Mark("a", 0.0, -1.0, 1.0, "model"), Mark("b", 10.0, None, None, "longer", points=[5.0])]
    drawn = str(plots.values("V", [("row", "", marks)]))
    # The axis runs from -1 to 10, and 4 % of that further on both sides.
    places = {v: round(100 * (v + 1 + 0.44) / (11 + 0.88), 2) for v in (0.0, -1.0, 1.0, 10.0, 5.0)}
    assert f'x1="{places[-1.0]}%" x2="{places[1.0]}%"' in drawn and f'cx="{places[5.0]}%"' in drawn
    assert f'<svg x="{places[0.0]}%"' in drawn and f'<svg x="{places[10.0]}%"' in drawn
    wild = str(
        plots.values(
            "V", [("row", "", [Mark("a", 0.0, -1e30, float("inf"), "model"), Mark("b", 1.0, None, None, "bow")])]
        )
    )
    assert 'x1="0.0%" x2="100.0%"' in wild and "<span>−∞ … ∞</span>" in wild
    assert plots.values("V", [("row", "", [Mark("a", None, None, None, "model")])]) == ""
    drawn = str(plots.lines("L", [Line("l", [0, 1], [1.0, 1.0], "train", lo=[0.0, 0.5], hi=[2.0, 1.5])]))
    # From 0 to 2 with 6 % more: hi 2.12, lo -0.12
    y = {v: f"{round(100 * (2.12 - v) / 2.24, 2):g}" for v in (0.0, 0.5, 1.5, 2.0)}
    assert f'd="M0 {y[2.0]}L100 {y[1.5]}L100 {y[0.5]}L0 {y[0.0]}Z"' in drawn


def test_a_plane_counts_its_points():
    xy = np.array([[0.0, 0.0]] * 3 + [[1.0, 1.0]])
    drawn = str(charts.plane("P", xy, np.array([[1.0, 1.0]]), "x", "y"))
    assert "75.00 % of the log" in drawn and "25.00 % of the log" in drawn and "100.00 % of the policy" in drawn
    assert drawn.count("heat-cell") == 2 and drawn.count("visit") == 1


# The command line.


def holdfast(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["holdfast", *map(str, args)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    said = capsys.readouterr()
    return done.value.code or 0, said.out, said.err


def test_evaluate_relabel_and_export_by_command(logs, tmp_path, monkeypatch, capsys):
    pipeline.train(recipe(logs, "segment_reward", control={"replicas": 2}), tmp_path / "reward", quiet=True)
    pipeline.train(recipe(logs, "dqn", control={"replicas": 2}), tmp_path / "dqn", quiet=True)
    metrics = json.loads((tmp_path / "dqn/evaluations/held-out/metrics.json").read_bytes())["validation"]
    status, out, _ = holdfast(monkeypatch, capsys, "evaluate", tmp_path / "dqn")
    assert status == 0 and f"{metrics['loss/td']:.5g}" in out and f"{metrics['rows']:,}" in out and "validation" in out

    args = ("control", "relabel", tmp_path / "reward", logs, "-o", tmp_path / "made", "--pessimism", "1", "--json")
    status, out, _ = holdfast(monkeypatch, capsys, *args)
    made, expected = open_log(tmp_path / "made"), relabel_log(tmp_path / "reward", logs, tmp_path / "by-hand", 1.0)
    assert status == 0 and json.loads(out)["root"] == made.root == expected.root
    status, _, err = holdfast(monkeypatch, capsys, "control", "relabel", tmp_path / "dqn", logs, "-o", tmp_path / "no")
    assert status == 2 and "segment_reward" in err and not (tmp_path / "no").exists()

    args = ("control", "export", tmp_path / "dqn", "-o", tmp_path / "out" / "p.pt2", "--member", "1")
    assert holdfast(monkeypatch, capsys, *args)[0] == 0
    obs = np.eye(4, dtype=np.float32)
    acts = torch.export.load(tmp_path / "out" / "p.pt2").module()(torch.from_numpy(obs))
    assert acts.tolist() == load_policy(tmp_path / "dqn", 1)(obs).tolist()
    status, _, err = holdfast(monkeypatch, capsys, *args)
    assert status == 2 and "exists" in err
    status, _, err = holdfast(monkeypatch, capsys, "control", "export", tmp_path / "reward", "-o", tmp_path / "r.pt2")
    assert status == 2 and "reward model" in err


def test_play_by_command(tmp_path, logs, monkeypatch, capsys):
    pytest.importorskip("gymnasium")
    from holdfast.control.collect import collect

    freeze_episodes(collect("CartPole-v1", "random", episodes=5, seed=1), tmp_path / "log")
    said = recipe(tmp_path / "log", "bc", 2, control={"replicas": 2})
    pipeline.train(said, tmp_path / "run", quiet=True)
    args = ("control", "play", tmp_path / "run", "--env", "CartPole-v1", "--episodes", "3", "--json")
    status, out, _ = holdfast(monkeypatch, capsys, *args)
    told = json.loads(out)
    assert (
        status == 0
        and np.shape(told["returns"]) == (2, 3)
        and told["mean"] == pytest.approx(np.mean(told["returns"], 1))
    )
    status, out, _ = holdfast(monkeypatch, capsys, *args[:-1])
    assert status == 0 and f"{told['mean'][1]:.5g}" in out
    status, _, err = holdfast(monkeypatch, capsys, "control", "play", tmp_path / "run", "--env", "Pendulum-v1")
    assert status == 2 and "actions of 1 numbers; the policy learnt on observations of 4 numbers and 2 actions" in err


def test_returns_are_told_in_the_table():
    table = cli.returns_table("Made-v0", [[1.0, 3.0], [5.0, 5.0]])
    cells = list(zip(*(list(c.cells) for c in table.columns), strict=True))
    assert cells == [("0", "2", "1", "1", "3"), ("1", "5", "0", "5", "5"), ("all", "3.5", "1.6583", "1", "5")]


def test_a_page_of_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(HoldfastError, match="not a run folder"):
        write_report(tmp_path)
