"""All figures of an evaluation, computed from its table of comparisons and from nothing else.

A figure is a weighted mean (or ratio) over comparisons with a 95 % interval from a bootstrap over *prompts*:
comparisons of one prompt share its difficulty and often a response, so they are not independent, and resampling them
one by one gives intervals that are too narrow. Every figure of a cell, and every difference between two, is taken from
the same resamples.

Names follow TRL where TRL has one: `rewards/accuracies`, `rewards/margins`, `rewards/chosen`, `rewards/rejected`,
`logps/chosen`, `logps/rejected`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from holdfast.errors import DataError

LEVEL = 0.95
# Of the reliability diagram and the ECE: ten of equal width, over the favoured side's probability.
BINS = np.linspace(0.5, 1.0, 11)
MOST_CELLS = 100  # categories, and annotators, that get figures of their own; the largest
SHORTCUTS = {"longer": "longer", "bag of words": "bow"}  # name in the figures -> column in the table


def figures(table: pa.Table, *, bootstrap: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Figures per part, per part and category, and per part and annotator; JSON-able.

    `table` is `evaluation_table`'s. Result: {"level", "bootstrap", "seed", "parts": {part: {"all": cell, "categories":
    {name: cell}, "annotators": {name: cell}, "not shown": {"categories": n, "annotators": n}}}}. A cell is {"n"
    comparisons, "judgements", "prompts", "ties", "figures": {name: {"value", "lo", "hi"}}}; a part's "all" has
    "margins" (quartiles, histogram) and "reliability" besides.

    For each comparison, `chosen` is the side with p > 1/2. The model's probability that a is preferred is q =
    sigma(reward_a - reward_b).

    rewards/accuracies  the reward's sign agrees with the preference; an exactly zero margin counts half; p = 1/2 is
                        excluded (and counted as "ties"), here and wherever a figure speaks of chosen and rejected
    <shortcut>/accuracies, <shortcut>/gain   the same for a shortcut, and the model's accuracy less the shortcut's
    rewards/margins, rewards/chosen, rewards/rejected, logps/chosen, logps/rejected   means
    drift/chosen, drift/rejected   mean log-probability less the reference's, per response; `.../token`: per token (sum
                                   over sum)
    kl/chosen, kl/rejected, kl     mean exact KL(policy || reference) per token, over the responses of that side, and
                                   of both
    log_loss            -p log q - (1-p) log(1-q): ties and soft labels included
    brier               (q - p)^2
    ece                 sum over bins of |confidence - outcome|, weighed by the bin's share. Of each comparison the
                        side the model favours is looked at: confidence max(q, 1-q), outcome p (or 1-p). Which side
                        is called a does not matter: binning q itself would be meaningless, a being the chosen side
    ece/floor           the ECE a perfectly calibrated model would show on that many comparisons, from chance alone

    Where every prompt is right (or wrong) the bootstrap has nothing to resample, and the accuracy's interval is the
    exact binomial one on the number of prompts. With a single prompt there is no interval: lo and hi are None. A
    figure without any comparison to compute it from is None. Raises DataError for a score that is not finite.
    """
    numbers = [f.name for f in table.schema if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]
    column = {name: table[name].to_numpy().astype(np.float64) for name in numbers}
    for name in ("reward_a", "reward_b", "logp_a", "logp_b", "ref_logp_a", "ref_logp_b", "kl_a", "kl_b", "p", "weight"):
        if name in column and not np.isfinite(column[name]).all():
            bad = int(np.argmin(np.isfinite(column[name])))
            raise DataError(
                f"score {name} of judgement {table['judgement'][bad]} is {column[name][bad]}: the model's output is "
                "broken, so no figure of it would mean anything; look at the training curves"
            )
    names: dict[str, list[str]] = {}
    for name in ("prompt", "judgement", "part", "category", "annotator"):
        # Codes rise with the names, so that the same rows in another order give the same resamples.
        coded = table[name].combine_chunks().dictionary_encode()
        said = np.array(coded.dictionary.to_pylist(), dtype=object)
        order = np.argsort(said, kind="stable")
        rank = np.append(np.argsort(order), -1)
        names[name] = said[order].tolist()
        column[name] = rank[coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]

    def largest(name: str, inside: np.ndarray) -> list[tuple[str, int]]:
        """(name, code) of what a column holds there, the largest first; a null has no name."""
        codes, counts = np.unique(column[name][inside], return_counts=True)
        found = [(-int(n), names[name][code], int(code)) for code, n in zip(codes, counts, strict=True) if code >= 0]
        return [(said, code) for _, said, code in sorted(found)]

    result: dict[str, Any] = {"level": LEVEL, "bootstrap": bootstrap, "seed": seed, "parts": {}}
    for part, part_code in sorted(largest("part", np.full(table.num_rows, True))):
        inside = column["part"] == part_code
        cells: dict[str, Any] = {"all": _cell(column, inside, bootstrap, f"{seed}|{part}", whole=True), "not shown": {}}
        for plural, singular in (("categories", "category"), ("annotators", "annotator")):
            listed = largest(singular, inside)
            cells[plural] = {
                name: _cell(column, inside & (column[singular] == code), bootstrap, f"{seed}|{part}|{singular}|{name}")
                for name, code in sorted(listed[:MOST_CELLS])
            }
            cells["not shown"][plural] = len(listed) - len(listed[:MOST_CELLS])
        result["parts"][part] = cells
    return result


def _cell(
    column: dict[str, np.ndarray], inside: np.ndarray, bootstrap: int, seed: str, whole: bool = False
) -> dict[str, Any]:
    col = {name: values[inside] for name, values in column.items()}
    prompts, prompt_of = np.unique(col["prompt"], return_inverse=True)
    p, weight = col["p"], col["weight"]
    gap = col["reward_a"] - col["reward_b"]
    side = np.sign(p - 0.5)  # +1: a is the chosen one; 0: neither
    decided = weight * (side != 0)
    a_first = side >= 0

    def chosen(name: str) -> np.ndarray:
        return np.where(a_first, col[f"{name}_a"], col[f"{name}_b"])

    def rejected(name: str) -> np.ndarray:
        return np.where(a_first, col[f"{name}_b"], col[f"{name}_a"])

    # Each figure is a function of sums over comparisons. `sums` gathers those sums' terms; a bootstrap resample of
    # prompts is then a weighted sum of per-prompt sums, all resamples at once as one matrix product.
    sums: dict[str, np.ndarray] = {"w": weight, "decided": decided}
    figure: dict[str, Callable[[dict[str, np.ndarray]], np.ndarray]] = {}

    def mean(name: str, terms: np.ndarray, over: str = "decided", weights: np.ndarray = decided) -> None:
        sums[name] = terms * weights
        figure[name] = lambda t: t[name] / t[over]

    def right(margin: np.ndarray) -> np.ndarray:
        return 0.5 + 0.5 * np.sign(margin) * side

    mean("rewards/accuracies", right(gap))
    for name, key in SHORTCUTS.items():
        if key in col and not np.isnan(col[key]).any():
            mean(f"{name}/accuracies", right(col[key]))
            figure[f"{name}/gain"] = lambda t, name=name: (
                (t["rewards/accuracies"] - t[f"{name}/accuracies"]) / t["decided"]
            )  # type: ignore[misc]
    mean("rewards/margins", gap * side)
    mean("rewards/chosen", chosen("reward"))
    mean("rewards/rejected", rejected("reward"))
    if "logp_a" in col:
        for which, of in (("chosen", chosen), ("rejected", rejected)):
            drift = of("logp") - of("ref_logp")
            mean(f"logps/{which}", of("logp"))
            mean(f"drift/{which}", drift)
            sums[f"tokens/{which}"] = of("n") * decided
            figure[f"drift/{which}/token"] = lambda t, which=which: t[f"drift/{which}"] / t[f"tokens/{which}"]  # type: ignore[misc]
    if "kl_a" in col:
        mean("kl/chosen", chosen("kl"))
        mean("kl/rejected", rejected("kl"))
        mean("kl", (col["kl_a"] + col["kl_b"]) / 2, "w", weight)
    mean("log_loss", np.logaddexp(0, -gap) + (1 - p) * gap, "w", weight)
    q = 1 / (1 + np.exp(-np.clip(gap, -700, 700)))
    mean("brier", (q - p) ** 2, "w", weight)
    favoured = np.maximum(q, 1 - q)
    outcome = np.where(gap == 0, 0.5, np.where(gap > 0, p, 1 - p))
    bin_of = np.clip(np.searchsorted(BINS, favoured, side="right") - 1, 0, len(BINS) - 2)
    for b in range(len(BINS) - 1):
        sums[f"bin {b}"] = weight * (favoured - outcome) * (bin_of == b)
    figure["ece"] = lambda t: sum(np.abs(t[f"bin {b}"]) for b in range(len(BINS) - 1)) / t["w"]

    names = list(sums)
    sums_PK = np.stack([np.bincount(prompt_of, weights=sums[name], minlength=len(prompts)) for name in names], axis=1)
    resampled_BK = resample(sums_PK, bootstrap, seed)
    point = dict(zip(names, sums_PK.sum(0), strict=True))
    drawn = dict(zip(names, resampled_BK.T, strict=True))
    tail = (1 - LEVEL) / 2
    found: dict[str, Any] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for name, f in figure.items():
            value, draws = float(f(point)), f(drawn)
            lo = hi = None
            if not np.isfinite(value):
                found[name] = {"value": None, "lo": None, "hi": None}
                continue
            if len(prompts) > 1 and np.isfinite(draws).any():
                lo, hi = (float(x) for x in np.nanquantile(draws, [tail, 1 - tail]))
            if name.endswith("/accuracies") and len(prompts) > 1 and value in (0.0, 1.0):
                n = len(np.unique(prompt_of[side != 0]))
                lo, hi = (tail ** (1 / n), 1.0) if value == 1.0 else (0.0, 1 - tail ** (1 / n))
            found[name] = {"value": value, "lo": lo, "hi": hi}
    spread = np.bincount(bin_of, weights=weight**2 * favoured * (1 - favoured), minlength=len(BINS) - 1)
    found["ece/floor"] = {"value": float(np.sqrt(2 / np.pi * spread).sum() / weight.sum()), "lo": None, "hi": None}

    cell: dict[str, Any] = {
        "n": len(p),
        "judgements": len(np.unique(col["judgement"])),
        "prompts": len(prompts),
        "ties": int((side == 0).sum()),
        "figures": found,
    }
    if whole:
        margin, w = (gap * side)[side != 0], weight[side != 0]
        cell["margins"] = {"quartiles": None, "edges": [], "weights": []}
        if len(margin):
            order = np.argsort(margin, kind="stable")
            reached = np.cumsum(w[order]) / w.sum()
            cell["margins"]["quartiles"] = [
                float(margin[order][np.searchsorted(reached, x)]) for x in (0.25, 0.5, 0.75)
            ]
            # The histogram holds all but the furthest 1 % on each side; those are counted in its end bins.
            far = float(np.quantile(np.abs(margin), 0.99)) or 1.0
            edges = np.linspace(-far, far, 41)
            cell["margins"]["edges"] = edges.tolist()
            cell["margins"]["weights"] = np.histogram(np.clip(margin, -far, far), edges, weights=w)[0].tolist()
        cell["reliability"] = []
        for b in range(len(BINS) - 1):
            here = bin_of == b
            w_here = float(weight[here].sum())
            cell["reliability"].append(
                {
                    "from": float(BINS[b]),
                    "to": float(BINS[b + 1]),
                    "n": int(here.sum()),
                    "weight": w_here,
                    "confidence": float((weight * favoured)[here].sum() / w_here) if w_here else None,
                    "outcome": float((weight * outcome)[here].sum() / w_here) if w_here else None,
                }
            )
    return cell


def resample(sums_PK: np.ndarray, bootstrap: int, seed: str) -> np.ndarray:
    """Totals over `bootstrap` resamples of the P prompts with replacement: (B, K). Memory is bounded: a few resamples
    at a time.
    """
    n = len(sums_PK)
    # The seed takes in the cell's name, so that a cell's interval does not depend on which other cells there are.
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "big"))
    totals = np.empty((bootstrap, sums_PK.shape[1]))
    at_once = max(1, 2_000_000 // n)
    for start in range(0, bootstrap, at_once):
        k = min(at_once, bootstrap - start)
        drawn = rng.integers(0, n, size=(k, n), dtype=np.int32) + np.arange(k, dtype=np.int64)[:, None] * n
        times_kP = np.bincount(drawn.ravel(), minlength=k * n).reshape(k, n).astype(np.float64)
        totals[start : start + k] = times_kP @ sums_PK
    return totals
