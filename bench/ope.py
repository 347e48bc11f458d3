"""Off-policy estimators on random processes whose truth is known. `python bench/ope.py [--reps 300] [--processes 2]`

    grid        10 processes, horizon 4, 16, 64, 64 and 512 episodes: error of every estimator, coverage of every 95 % interval,
                where its assumptions hold and where not, and by the verdict that a user sees
    aliased     the same with states that look alike
    unlogged    the same with propensities left out of the log
    learned     the same with the reward known only by five guesses
    selection   eight candidates: the regret of choosing among them from the log

The verdicts' limits were chosen on other processes than these. Writes bench/results/ope.json and the tables of docs/ope.md.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from holdfast.control.mdp import TablePolicy, TabularMDP, random_mdp
from holdfast.control.ope import evaluate_policy, select
from holdfast.control.ope.formulas import ESTIMATORS
from holdfast.control.ope.weights import enough

HERE = Path(__file__).resolve().parent
MDPS, HORIZONS, SIZES = range(10), (4, 16, 64), (64, 512)
TOWARDS = (
    0.02,
    0.04,
    0.07,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    0.75,
    1.0,
)  # how far the policy is from the behaviour to the best
RESAMPLES = 119  # so that 2.5 % is a resample: the 3rd of 120
BAR = 0.93
MADE = "<!-- From here on made by `python bench/ope.py`. -->"
BEHAVIOUR = "value of the behaviour policy"
Job = tuple[str, int, int, int, int]  # part, process, horizon, episodes, repetitions


def world(i: int, horizon: int, alias: int | None = None) -> tuple[TabularMDP, np.ndarray, np.ndarray]:
    """The i-th process, its behaviour (each action at least 5 %), and a policy part of the way from there to the best:
    from all but the behaviour to certain."""
    m, draw = random_mdp(i + 300, alias=alias), np.random.default_rng([i, 300])
    mu = 0.85 * draw.dirichlet(np.ones(3), size=m.n_observations) + 0.05
    best = random_mdp(i + 300).optimal(horizon)[: m.n_observations]
    return m, mu, mu + TOWARDS[i] * (best - mu)


def held(m: TabularMDP, mu: np.ndarray, pi: np.ndarray, horizon: int, n: int) -> tuple[bool, bool]:
    """Whether the assumptions hold, from the process itself: of the weights, by the true E w^2 of whole episodes; of the
    model, by how often policy and behaviour truly come by each pair, and whether what is observed is the state."""
    P, M = pi[m.alias_S], mu[m.alias_S]
    square_S = np.ones(len(m.start_S))
    for _ in range(horizon):
        square_S = (P**2 / M * (m.end_SA + (1 - m.end_SA) * (m.next_SAS @ square_S))).sum(axis=1)
    ess = n / float(m.start_S @ square_S)
    visits = []
    for policy in (P, M):
        come_SA, come_S = np.zeros_like(P), m.start_S
        for _ in range(horizon):
            come_SA = come_SA + come_S[:, None] * policy
            come_S = np.einsum("sa,sap->p", come_S[:, None] * policy * (1 - m.end_SA), m.next_SAS)
        visits.append(come_SA)
    reach = n * visits[0].sum() ** 2 / ((visits[0] ** 2 / visits[1]).sum() * visits[1].sum())
    markov = m.n_observations == len(m.start_S)
    return bool(enough(n, ess)), bool(markov and reach >= 20)


def run(job: Job) -> dict[str, Any]:
    part, i, horizon, n, reps = job
    m, mu, pi = world(i, horizon, 2 if part == "aliased" else None)
    if part == "selection":
        return {"job": job, "rows": [choose(m, mu, horizon, n, 1000 * i + rep) for rep in range(reps)]}
    truth, behaves = m.value(pi, horizon), m.value(mu, horizon)
    weights, model = held(m, mu, pi, horizon, n)
    rows = []
    for rep in range(reps):
        log, asked = m.log(mu, n, horizon, 1000 * i + rep), dict[str, Any]()
        if part == "grid":
            asked = {"return_range": (-m.noise * horizon, (1 + m.noise) * horizon)}
        if part == "unlogged":
            log = replace(log, propensities=None)
        if part == "learned":
            draw = np.random.default_rng([i, rep, 5])
            off = 0.2 * draw.standard_normal((6, *m.reward_SA.shape))  # of all together, and of each
            guess_KSA = m.reward_SA + off[0] + off[1:]
            asked = {"rewards": guess_KSA[:, log.observations.argmax(axis=1), log.actions]}
        found = evaluate_policy(TablePolicy(pi), log, horizon=horizon, resamples=RESAMPLES, seed=rep, **asked)
        assert found.reach is not None
        covered = {
            f"{x} {kind}": bool(low <= truth <= high)
            for x, v in found.values.items()
            for kind, (low, high) in v.intervals.items()
        }
        for kind, (low, high) in found.baselines[BEHAVIOUR].intervals.items():
            covered[f"{BEHAVIOUR} {kind}"] = bool(low <= behaves <= high)
        low, high = found.gain.intervals["bootstrap"]
        covered["gain bootstrap"] = bool(low <= truth - behaves <= high)
        head = found.values[found.headline].intervals["bootstrap"]
        error = {x: v.value - truth for x, v in found.values.items()}
        error[BEHAVIOUR] = found.baselines[BEHAVIOUR].value - truth
        widths = {f"{x} {k}": (b - a) / horizon for x, v in found.values.items() for k, (a, b) in v.intervals.items()}
        narrow = None
        if part == "learned":  # the same without the guesses' disagreement
            mean = evaluate_policy(
                TablePolicy(pi), log, horizon=horizon, resamples=RESAMPLES, seed=rep, estimators=["fqe"],
                rewards=asked["rewards"].mean(axis=0),
            )  # fmt: skip
            low, high = mean.values["fqe"].intervals["bootstrap"]
            narrow = bool(low <= truth <= high)
        rows.append(
            {
                "covered": covered,
                "error": error,
                "width": widths,
                "weights": found.support.verdict,
                "model": found.reach.verdict,
                "headline": found.headline,
                "head covered": bool(head[0] <= truth <= head[1]),
                "disagree": any("disagree" in note for note in found.notes),
                "narrow": narrow,
            }
        )
    return {"job": job, "holds": {"weights": weights, "model": model}, "truth": truth, "rows": rows}


def choose(m: TabularMDP, mu: np.ndarray, horizon: int, n: int, seed: int) -> dict[str, float]:
    """Regret of each rule, as a part of what lies between the best candidate and the worst."""
    best, worst = m.optimal(horizon), replace(m, reward_SA=-m.reward_SA).optimal(horizon)
    table = {f"best {d}": mu + d * (best - mu) for d in (0.1, 0.3, 0.6, 1.0)}
    table |= {f"worst {d}": mu + d * (worst - mu) for d in (0.3, 1.0)}
    draw = np.random.default_rng([seed, 9])
    table |= {f"random {k}": draw.dirichlet(np.ones(3), size=len(mu)) for k in range(2)}
    truth = {name: m.value(p, horizon) for name, p in table.items()}
    log = m.log(mu, n, horizon, seed)
    found = select(
        {k: TablePolicy(p) for k, p in table.items()}, log, truth=truth, horizon=horizon, resamples=RESAMPLES
    )
    span, top = max(truth.values()) - min(truth.values()), max(truth.values())
    picked = {"the headline's lower end": found.chosen}
    picked["the headline"] = max(found.found, key=lambda k: found.found[k].values[found.found[k].headline].value)
    for x in ("is", "wis", "dr", "wdr", "magic", "fqe"):
        picked[x] = max(found.found, key=lambda k, x=x: np.nan_to_num(found.found[k].values[x].value, nan=-np.inf))  # type: ignore[misc]
    regret = {rule: (top - truth[name]) / span for rule, name in picked.items()}
    regret["one at random"] = (top - float(np.mean(list(truth.values())))) / span
    regret["the behaviour itself"] = (top - m.value(mu, horizon)) / span
    return regret


def rate(rows: list[dict[str, Any]], key: str) -> tuple[float, int]:
    hits = [r["head covered"] if key.startswith("headline") else r["covered"][key] for r in rows]
    return (float(np.mean(hits)) if hits else np.nan), len(hits)


def shown(x: float, n: int) -> str:
    if not n:
        return "-"
    return f"**{x:.1%}**" if x < BAR else f"{x:.1%}"


def needs(key: str) -> Callable[[dict[str, bool]], bool]:
    """What an interval assumes of the process."""
    name = key.split()[0]
    if key.endswith(("hoeffding", "bernstein")) or key.startswith(BEHAVIOUR):
        return lambda holds: True
    if name == "fqe":
        return lambda holds: holds["model"]
    if name == "magic":
        return lambda holds: holds["model"]
    if name == "gain":
        return lambda holds: holds["model"] or holds["weights"]
    return lambda holds: holds["weights"]


ASSUMES = {
    "is": "weights",
    "wis": "weights",
    "pdis": "weights",
    "wpdis": "weights",
    "dr": "weights",
    "wdr": "weights",
    "magic": "model",
    "fqe": "model",
}


def page(said: dict[str, Any]) -> str:
    parts: dict[str, list[dict[str, Any]]] = {}
    for r in said["results"]:
        parts.setdefault(r["job"][0], []).append(r)
    grid = parts["grid"]
    cells = [(h, n) for h in HORIZONS for n in SIZES]

    def rows(
        results: list[dict[str, Any]], keep: Callable[[dict[str, Any]], bool] = lambda r: True
    ) -> list[dict[str, Any]]:
        return [row for r in results if keep(r) for row in r["rows"]]

    def at(h: int, n: int) -> Callable[[dict[str, Any]], bool]:
        return lambda r: tuple(r["job"][2:4]) == (h, n)

    out = [
        (HERE.parent / "docs" / "ope.md").read_text(encoding="utf-8").partition(MADE)[0] + MADE,
        "",
        "## How well it works",
        "",
    ]
    reps = {p: r[0]["job"][4] for p, r in parts.items()}
    out += [
        f"Made by `python bench/ope.py` ({said['seconds'] / 60:.0f} minutes in {said['processes']} processes on a shared machine): "
        "random processes of 8 states and 3 actions, rewards",
        "from 0 to 1 and noise of up to half a reward, each step ending the episode with 2 % on average. The behaviour takes each",
        "action with at least 5 %. The policies of the ten processes lie at 2, 4, 7, 10, 15, 20, 30, 50, 75 and 100 % of the way",
        "from the behaviour to the best policy, which is certain of its action: the first is near, the last is far. No discount.",
        f"{said['reps']} logs for each process, horizon and number of episodes, {RESAMPLES} resamples of each. The limits of the verdicts and the",
        "kinds of interval were chosen on other processes.",
        "",
        "### Error",
        "",
        "Root of the mean squared error, and in brackets the median error, per step of the horizon (rewards are from 0 to 1). Last row: taking the",
        "behaviour's value for the policy's.",
        "",
        "| | " + " | ".join(f"H {h}, n {n}" for h, n in cells) + " |",
        "|---|" + "---|" * len(cells),
    ]
    for x in (*ESTIMATORS, BEHAVIOUR):
        line = []
        for h, n in cells:
            e = np.array([row["error"][x] for row in rows(grid, at(h, n))]) / h
            e = e[np.isfinite(e)]
            line.append(f"{np.sqrt((e**2).mean()):.3f} ({np.median(np.abs(e)):.3f})")
        out.append(f"| {x} | " + " | ".join(line) + " |")

    out += [
        "",
        "### Coverage of 95 % intervals, where what they assume holds",
        "",
        "Whether it holds is decided by the process, not by the log. Weights: the true `n / E w^2` of whole episodes meets the verdict's rule for",
        '"good". Model: observations are the states, and the true effective episodes where the policy goes are 20 or more. The exact intervals',
        "assume the propensities and the range, which are true here. Below the bar of 93 % is bold. In brackets the number of logs.",
        "",
        "| estimator, interval | assumes | all | " + " | ".join(f"H {h}, n {n}" for h, n in cells) + " |",
        "|---|---|---|" + "---|" * len(cells),
    ]
    keys = list(dict.fromkeys(k for row in rows(grid) for k in row["covered"]))
    short, low, cells_of = list[str](), list[str](), list[tuple[float, int, str]]()
    for key in keys:
        ok = needs(key)
        x, n_all = rate(rows(grid, lambda r, ok=ok: ok(r["holds"])), key)  # type: ignore[misc]
        line = []
        for h, n in cells:
            y, k = rate(rows(grid, lambda r, h=h, n=n, ok=ok: at(h, n)(r) and ok(r["holds"])), key)  # type: ignore[misc]
            line.append(f"{shown(y, k)} ({k})" if k else "-")
            if k and not key.endswith(("hoeffding", "bernstein")):
                cells_of.append((y, k, f"`{key}` at H {h}, n {n}"))
                if y < BAR:
                    low.append(f"`{key}` at H {h}, n {n}: {(BAR - y) / np.sqrt(BAR * (1 - BAR) / k):.1f}")
        assumes = ASSUMES.get(key.split()[0], "either" if key.startswith("gain") else "-")
        if key.endswith(("hoeffding", "bernstein")) or key.startswith(BEHAVIOUR):
            assumes = "-"
        out.append(f"| {key} | {assumes} | {shown(x, n_all)} ({n_all}) | " + " | ".join(line) + " |")
        if x < BAR:
            short.append(key)
    said["below the bar"] = short

    pooled = "None is below the bar" if not short else f"Below the bar: {', '.join(short)}"
    sizes = [k for _, k, _ in cells_of]
    few, many, least = min(sizes), max(sizes), min(cells_of)
    chance = sum(float(binom.cdf(np.ceil(BAR * k) - 1, k, 0.95)) for k in sizes)
    out += [
        "",
        f"{pooled} where all horizons and sizes are taken together. A single cell of {few} logs has a standard error of "
        f"{np.sqrt(0.95 * 0.05 / few):.1%},",
        f"one of {many} of {np.sqrt(0.95 * 0.05 / many):.1%}, and the estimators share their logs. Of the {len(cells_of)} cells of intervals "
        f"that are not exact, {len(low) or 'none'} lie{'s' if len(low) < 2 else ''} below the",
        f"bar; {chance:.1f} would if every interval covered 95 %. The lowest is {least[2]}: {least[0]:.1%} of {least[1]}, with a",
        f"standard error of {np.sqrt(BAR * (1 - BAR) / least[1]):.1%}: its truth may lie below."
        + (f" By how many standard errors below 93 %: {'; '.join(low)}." if low else ""),
        "",
        "### And where it does not hold",
        "",
        "The same logs, the other processes: how wrong an interval is whose assumption fails.",
        "",
        "| estimator, interval | all | " + " | ".join(f"H {h}, n {n}" for h, n in cells) + " |",
        "|---|---|" + "---|" * len(cells),
    ]
    for key in keys:
        ok = needs(key)
        x, n_all = rate(rows(grid, lambda r, ok=ok: not ok(r["holds"])), key)  # type: ignore[misc]
        if not n_all:
            continue
        line = []
        for h, n in cells:
            y, k = rate(rows(grid, lambda r, h=h, n=n, ok=ok: at(h, n)(r) and not ok(r["holds"])), key)  # type: ignore[misc]
            line.append(f"{shown(y, k)} ({k})" if k else "-")
        out.append(f"| {key} | {shown(x, n_all)} ({n_all}) | " + " | ".join(line) + " |")

    out += [
        "",
        "### By the verdict, which is what a user sees",
        "",
        "The verdict is read off the same log as the interval. The headline is the estimator that the verdict on the weights picks.",
        "",
        "| estimator, interval | weights good | weights thin | weights none | model good | model thin | model none |",
        "|---|---|---|---|---|---|---|",
    ]
    everything = rows(grid)
    for key in [*keys, "headline bootstrap"]:
        if key.startswith(BEHAVIOUR):
            continue
        line = []
        for of in ("weights", "model"):
            for verdict in ("good", "thin", "none"):
                y, k = rate([r for r in everything if r[of] == verdict], key)
                line.append(f"{shown(y, k)} ({k})")
        out.append(f"| {key} | " + " | ".join(line) + " |")

    aliased = parts["aliased"]
    plain = [r["disagree"] for r in everything if r["weights"] != "none"]
    seen = [r["disagree"] for r in rows(aliased) if r["weights"] != "none"]
    out += [
        "",
        "### States that look alike",
        "",
        f"Eight states seen as two, 512 episodes, {reps['aliased']} logs for each process. The policy and the behaviour act on what is",
        "seen, so weights are right; the model takes what is seen for the state, and its interval is around the wrong figure. Where",
        f"the weights reach at all, the note that model and weights disagree comes in {np.mean(seen):.0%} of the logs; on the processes",
        f"above, where there is nothing to find, in {np.mean(plain):.1%}. `magic` and `fqe` stand here although what they assume fails.",
        "",
        f"| | {' | '.join(f'error, H {h}' for h in HORIZONS)} | "
        f"{' | '.join(f'covers where weights hold, H {h}' for h in HORIZONS)} | covers, all |",
        "|---|" + "---|" * (2 * len(HORIZONS) + 1),
    ]  # fmt: skip
    for x in ESTIMATORS:
        errors, hits = [], []
        for h in HORIZONS:
            e = np.array([r["error"][x] for r in rows(aliased, at(h, 512))]) / h
            e = e[np.isfinite(e)]
            errors.append(f"{np.sqrt((e**2).mean()):.3f}")
            y, k = rate(rows(aliased, lambda r, h=h: r["job"][2] == h and r["holds"]["weights"]), f"{x} bootstrap")  # type: ignore[misc]
            hits.append(f"{shown(y, k)} ({k})" if k else "-")
        y, k = rate(rows(aliased), f"{x} bootstrap")
        out.append(f"| {x} | " + " | ".join((*errors, *hits)) + f" | {shown(y, k)} ({k}) |")

    unlogged = parts["unlogged"]
    out += [
        "",
        "### Propensities that nobody logged",
        "",
        f"Estimated from the same log by frequencies, 512 episodes, {reps['unlogged']} logs for each process; coverage where weights hold.",
        "",
        "| | error, H 4 | error, H 16 | the same with true ones, H 4 | H 16 | coverage (bootstrap) |",
        "|---|---|---|---|---|---|",
    ]
    for x in (x for x in ESTIMATORS if x != "fqe"):
        errors = []
        for results in (unlogged, grid):
            for h in (4, 16):
                e = np.array([r["error"][x] for r in rows(results, at(h, 512))]) / h
                errors.append(f"{np.sqrt((e[np.isfinite(e)] ** 2).mean()):.3f}")
        assumes = ASSUMES[x]
        y, k = rate(rows(unlogged, lambda r, a=assumes: r["holds"][a]), f"{x} bootstrap")  # type: ignore[misc]
        out.append(f"| {x} | " + " | ".join(errors) + f" | {shown(y, k)} ({k}) |")

    learned = rows(parts["learned"], lambda r: r["holds"]["model"])
    y, k = rate(learned, "fqe bootstrap")
    out += [
        "",
        "### A reward known by five guesses",
        "",
        "The guesses and the truth lie alike around a common centre, each off by its own error of standard deviation 0.2 in every",
        "state and action, which is what the interval assumes; horizon 16,",
        f"512 episodes. The interval of fqe covers {y:.1%} of {k}; made from the guesses' mean alone, as if it were the reward,",
        f"{np.mean([r['narrow'] for r in learned]):.1%}.",
        "",
        "### Choosing among eight policies",
        "",
        "Four towards the best (0.1, 0.3, 0.6 and all of the way), two towards the worst, two random; horizon 16. The mean regret, as a part of what",
        f"lies between the best candidate and the worst, over {reps['selection']} logs for each process.",
        "",
        "| chosen by | n 64 | n 512 |",
        "|---|---|---|",
    ]
    for rule in parts["selection"][0]["rows"][0]:
        means = [np.mean([row[rule] for row in rows(parts["selection"], at(16, n))]) for n in SIZES]
        out.append(f"| {rule} | {means[0]:.3f} | {means[1]:.3f} |")
    return "\n".join([*out, ""])


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--reps", type=int, default=300)
    asked.add_argument("--processes", type=int, default=2)
    asked.add_argument("--page", action="store_true", help="only write the page again from bench/results/ope.json")
    args = asked.parse_args()
    at = HERE / "results" / "ope.json"
    if args.page:
        said = json.loads(at.read_text())
    else:
        few = max(args.reps // 5, 2)
        jobs: list[Job] = [("grid", i, h, n, args.reps) for h in HORIZONS for n in SIZES for i in MDPS]
        jobs += [("aliased", i, h, 512, few) for h in HORIZONS for i in MDPS]
        jobs += [("unlogged", i, h, 512, few) for h in (4, 16) for i in MDPS]
        jobs += [("learned", i, 16, 512, few) for i in MDPS]
        jobs += [("selection", i, 16, n, max(few // 2, 2)) for n in SIZES for i in MDPS]
        jobs.sort(key=lambda j: -j[2] * j[3] * j[4])
        began = time.perf_counter()
        with Pool(args.processes) as pool:
            results = pool.map(run, jobs, chunksize=1)
        said = {
            "seconds": time.perf_counter() - began,
            "processes": args.processes,
            "reps": args.reps,
            "resamples": RESAMPLES,
            "results": results,
        }
        at.parent.mkdir(exist_ok=True)
        at.write_text(json.dumps(said) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = page(said)
    (HERE.parent / "docs" / "ope.md").write_text(text, encoding="utf-8")
    print(
        f"{said['seconds']:.0f} s; below the bar where the assumptions hold: {', '.join(said['below the bar']) or 'none'}"
    )


if __name__ == "__main__":
    main()
