"""What inspection could not have seen: faults planted in copies of this dataset, at rising strengths.

For each fault, copies are first made in which the null holds (a *clean* copy: which side wins decided by coins, a split
by clusters, annotators dealt anew), so that what is measured is the detector and not what the dataset already has. On
clean copies an alarm is false. Into clean copies the fault is planted, and the smallest strength at which the detector
alarms in nine copies of ten is reported. A dataset larger than a fault's bound is measured on whole prompts at random
up to that bound; the whole dataset shows smaller faults than that.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
from scipy.stats import beta

from holdfast.data.inspect.faults import FAULTS, Draw, Fault, first_finding, reworded, smaller, turned
from holdfast.data.inspect.finding import DETECTORS, Finding, missing
from holdfast.data.inspect.material import Material
from holdfast.data.inspect.near import near
from holdfast.data.inspect.outside import Outside
from holdfast.data.inspect.probe import best_margin
from holdfast.data.inspect.stats import Interval

COPIES = 20  # of each strength, and clean ones
OFTEN = 0.9  # of the copies in which a fault must be found
TIMES = 100  # resamples of the bootstrap within a copy
FLIPS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)
REACH = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)

BLIND = {
    "validity": "Patterns that it does not name; text that is well-formed and wrong.",
    "tokens": "Another tokenizer, another chat template.",
    "length": "A wish for length in some comparisons that a wish for brevity in others cancels out; look at the cells.",
    "shortcut": "Shortcuts that no word and none of its surface features carries: tone, the order of arguments, layout.",
    "position": "Rows that do not say in which order the responses were shown.",
    "contradictions": "A pair that was judged once, and pairs reworded beyond a Jaccard similarity of 0.7.",
    "cycles": "Prompts with fewer than three responses compared with each other.",
    "sources": "Which source wrote a response that names none; a style that several sources share.",
    "agreement": "Annotators who err in the same way; one who shares no pair and no habit with others.",
    "noise": "Flips where nothing foretells the label: a hard pair and a wrong label look the same there.",
    "duplicates": "The same request in other words, in another language, or inside a longer text.",
    "leakage": "Held-out prompts that paraphrase training prompts; responses copied under other prompts.",
    "against": "Paraphrases and translations of an evaluation set, and sets that were not named.",
    "coverage": "Kinds of prompts that no category names and no wording tells apart.",
    "target": "What target prompts ask for in words that the data uses for something else.",
    "similarity": "Responses that mean the same in other words.",
    "displacement": "What the loss, its step size and the other pairs make of a pair; pairs that only another model finds alike.",
    "samples": "Differences that no single word or mark shows: what is said, and in which order.",
}


@dataclass(frozen=True)
class Power:
    """How well one fault is seen.

    strengths: for each one tried `{strength, found, copies}`, rising until it is found nine times in ten; a strength is
    given up once it cannot reach that. smallest: the first so found, None if none was; above: the one before it, which
    was not. recall, precision: of the planted rows among those listed, at `smallest`. alarms of `clean` copies are
    false. judgements: how many were measured, of `of` (prompts, where one judgement of each is enough). why: nothing was measured, for this reason.
    """

    fault: Fault
    judgements: int
    of: int
    strengths: list[dict[str, Any]] = field(default_factory=list)
    smallest: float | None = None
    above: float | None = None
    recall: float | None = None
    precision: float | None = None
    alarms: int = 0
    clean: int = 0
    why: str | None = None

    @property
    def false_alarms(self) -> Interval:
        """The share of clean copies that alarm, with Clopper and Pearson's interval."""
        return exact_share(self.alarms, self.clean)

    def said(self) -> str:
        """In words: the smallest strength that is found nine times in ten."""
        if self.why is not None:
            return f"could not be seen at all: {self.why}"
        counted = "prompts" if self.fault.alone else "judgements"
        some = "" if self.judgements == self.of else f"; on {self.judgements:,} of {self.of:,} {counted}"
        if self.smallest is not None:
            last = self.strengths[-1]
            below = f", not at {self.number(self.above)}" if self.above is not None else ""
            return f"{self.at(self.smallest)} ({last['found']} of {last['copies']}){below}{some}"
        if not self.strengths:
            return f"nothing could be planted{some}"
        best = max(self.strengths, key=lambda t: t["found"] / t["copies"])
        return (
            f"none up to {self.at(self.strengths[-1]['strength'])} (at best {best['found']} of {best['copies']}, at "
            f"{self.number(best['strength'])}){some}"
        )

    def number(self, strength: float) -> str:
        """A strength without its unit's words."""
        if self.fault.strengths[-1] > 1:
            return f"{strength:g}"
        return f"{100 * strength:g}" + (" %" if "%" in self.fault.unit else "")

    def at(self, strength: float) -> str:
        """A strength in words."""
        return self.fault.unit.replace("#", self.number(strength).removesuffix(" %"))

    def as_json(self) -> dict[str, Any]:
        false = self.false_alarms
        return {
            "fault": self.fault.name,
            "finding": self.fault.finding,
            "unit": self.fault.unit,
            "smallest": self.smallest,
            "not at": self.above,
            "strengths": [
                {**s, "lo": exact_share(s["found"], s["copies"]).lo, "hi": exact_share(s["found"], s["copies"]).hi}
                for s in self.strengths
            ],
            "recall": self.recall,
            "precision": self.precision,
            "false alarms": {"alarms": self.alarms, "copies": self.clean, "lo": false.lo, "hi": false.hi},
            "clean copies": self.fault.how,
            "judgements": self.judgements,
            "of": self.of,
            "not measured": self.why,
            "verdict": self.said(),
        }


def exact_share(k: int, n: int) -> Interval:
    """k of n with Clopper and Pearson's 95 % interval."""
    if not n:
        return Interval(None)
    lo = 0.0 if k == 0 else float(beta.ppf(0.025, k, n - k + 1))
    hi = 1.0 if k == n else float(beta.ppf(0.975, k + 1, n - k))
    return Interval(k / n, lo, hi)


def measure(
    fault: Fault, looked_at: Material, *, copies: int = COPIES, clean: int | None = None, seed: int = 0
) -> Power:
    """Plant one fault in copies of a material. clean: how many clean copies to look at (default: `copies`).

    The same material and seed give the same figures. Nothing is read or written.
    """
    whole = len(looked_at.live_prompts if fault.alone else looked_at.live)
    base = smaller(looked_at, fault.most, seed, alone=fault.alone).edit(times=TIMES, columns=())
    n = len(base.live)
    needs = [why for why in (_need(fault, base), fault.without(base)) if why]
    if needs:
        return Power(fault, n, whole, why=needs[0])

    def draw(strength: float, k: int) -> Draw:
        return np.random.default_rng([seed, crc32(fault.name.encode()), round(strength * 1e6), k])

    alarms = 0
    clean = copies if clean is None else clean
    for k in range(clean):
        found = first_finding(fault.clean(base, draw(-0.0, k)), fault.finding)
        alarms += found is not None and found.alarmed
    misses_allowed = copies - math.ceil(OFTEN * copies)
    tried: list[dict[str, Any]] = []
    smallest = recall = precision = None
    for strength in fault.strengths:
        hits, rates, k = 0, [], 0
        while k < copies and k - hits <= misses_allowed:
            k += 1
            chance = draw(strength, k)
            planted = fault.plant(fault.clean(base, chance), strength, chance)
            if planted is None:
                break
            made, rows = planted
            found = first_finding(made, fault.finding)
            if found is not None and found.alarmed:
                hits += 1
                if len(rows) and len(found.rows):
                    rates.append(_rates(found, rows))
        else:
            tried.append({"strength": strength, "found": hits, "copies": k})
            if k - hits <= misses_allowed:
                smallest = strength
                if rates:
                    recall, precision = (float(x) for x in np.mean(rates, axis=0))
                break
            continue
        break
    above = tried[-2]["strength"] if smallest is not None and len(tried) > 1 else None
    return Power(fault, n, whole, tried, smallest, above, recall, precision, alarms, clean)


def _need(fault: Fault, m: Material) -> str | None:
    """What the detector lacks here beyond what a copy brings along (a split, an evaluation set, target prompts)."""
    brought = m.edit(parts=["a", "b"], against=(Outside("", [""]),), target=Outside("", [""]))
    return missing(DETECTORS[fault.detector], brought)


def _rates(found: Finding, rows: np.ndarray) -> tuple[float, float]:
    """Recall and precision of planted rows among those listed (of near-duplicates the later one, and the other for
    recall alone); of a ranking by chance, the first as many as there are.
    """
    listed = np.unique(found.rows.number[: len(rows)] if found.name == "noise/flipped" else found.rows.number)
    either = np.union1d(listed, found.rows.other)
    recall = len(np.intersect1d(either, rows)) / len(np.unique(rows))
    return recall, len(np.intersect1d(listed, rows)) / max(len(listed), 1)


def reach(looked_at: Material, *, most: int = 400, seed: int = 0) -> list[dict[str, float]]:
    """Of copies of this dataset's prompts with a share of the words replaced: how many are recognised as near-duplicates.

    [{"words replaced", "recognised", "# prompts"}], for the shares in REACH.
    """
    asked = np.random.default_rng(seed).permutation(looked_at.live_prompts)[:most]
    out = []
    for share in REACH:
        words = random.Random(f"{seed} {share}")
        texts = [reworded(t, share, words) for t in looked_at.prompts.at(asked)]
        both = looked_at.prompts.copy(asked, texts)
        cluster = near(both).cluster
        seen = cluster[: len(asked)] == cluster[len(asked) :]
        out.append({"words replaced": share, "recognised": float(seen.mean()), "prompts": float(len(asked))})
    return out


def probe_curve(looked_at: Material, *, most: int = 2000, copies: int = 3, seed: int = 0) -> list[dict[str, float]]:
    """How well a small model foretells labels that it has not seen, as more of all labels are turned round at random.

    [{"flipped", "accuracy"}]: share of decided comparisons right, ties of the model half, mean over copies. The steeper it
    falls, the more a model here learns from each label; a flat curve says that there was nothing to learn.
    """
    base = smaller(looked_at, most, seed)
    decided = np.flatnonzero(base.decided)
    if len(decided) < 100:
        return []
    out = []
    for share in FLIPS:
        rates = []
        for k in range(copies if share else 1):
            which = np.zeros(len(base), bool)
            draw = np.random.default_rng([seed, round(share * 1e6), k])
            which[draw.permutation(decided)[: round(share * len(decided))]] = True
            made = turned(base, which)
            at = made.sampled
            use = made.decided[at]
            toward = np.sign(best_margin(made)[use]) * np.sign(made.p[at][use] - 0.5)
            rates.append(float(np.mean((toward + 1) / 2)))
        out.append({"flipped": share, "accuracy": float(np.mean(rates))})
    return out


@dataclass(frozen=True)
class Sight:
    """The whole account: each fault's power, how far near-duplicates may be reworded, how a probe's accuracy falls with planted
    flips, and what each detector cannot see.
    """

    faults: list[Power]
    near: list[dict[str, float]]
    probe: list[dict[str, float]]
    blind: dict[str, str]
    copies: int

    def as_json(self) -> dict[str, Any]:
        return {
            "copies": self.copies,
            "often": OFTEN,
            "faults": [p.as_json() for p in self.faults],
            "near-duplicates recognised": self.near,
            "probe accuracy by flips": self.probe,
            "cannot see": self.blind,
        }


def power(
    looked_at: Material,
    only: Iterable[str] | None = None,
    *,
    copies: int = COPIES,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Sight:
    """Plant every fault whose detector is among `only` (default: all) in copies of a dataset."""
    wanted = set(DETECTORS if only is None else only)
    measured = []
    for fault in FAULTS:
        if fault.detector in wanted:
            if progress is not None:
                progress(f"{fault.name}, planted")
            measured.append(measure(fault, looked_at, copies=copies, seed=seed))
    asks = wanted & {"duplicates", "leakage", "against", "contradictions"}
    near_by = reach(looked_at, seed=seed) if looked_at.text and asks else []
    curve = probe_curve(looked_at, seed=seed) if "noise" in wanted else []
    return Sight(measured, near_by, curve, {name: what for name, what in BLIND.items() if name in wanted}, copies)
