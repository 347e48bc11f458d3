"""What a reader must know before any figure: each check is a small function of the run's data; a newcomer adds one to
CHECKS.

A check returns its warnings (none: it looked and found nothing), or None where the run holds nothing to look at. The
page says which
checks could not be made: silence about a fault is worth only as much as the looking.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from holdfast.data.views import READ_WITH
from holdfast.report.read import RunData, Series

# Where a finding becomes a warning. An interval that excludes zero is always asked for as well, where there is one.
CHOSEN_FALL = 0.02  # nats per token below the reference: each token about 2 % less likely
CHOSEN_COLLAPSE = 0.2
LEFT_OUT = 0.05  # share of the judgements
ECE = 0.1  # and twice what chance alone gives on that many comparisons
OOD_DROP = 0.03  # in accuracy
GOT_WORSE_LOSS = 0.03  # held-out loss above its best, relative
GOT_WORSE_ACCURACY = 0.03

SHORTCUTS_IN_WORDS = {
    "longer": "the longer response wins",
    "bag of words": "a bag of words that never sees the prompt",
}


@dataclass(frozen=True)
class Warning:
    """One finding: what it is, the numbers, what to do, and how much it matters."""

    title: str
    detail: str
    remedy: str
    severity: Literal["serious", "warning", "note"]


def warnings(run: RunData) -> list[Warning]:
    """All findings, the serious first. Pure: the same run data gives the same list."""
    found = [w for _, check in CHECKS for w in check(run) or ()]
    return sorted(found, key=lambda w: ("serious", "warning", "note").index(w.severity))


def unchecked(run: RunData) -> list[str]:
    """Names of the checks for which the run holds no data."""
    return [name for name, check in CHECKS if check(run) is None]


def chosen_falls(run: RunData) -> list[Warning] | None:
    remedy = (
        "Raise beta or lower the learning rate; stop earlier on a held-out figure; or add a likelihood term (rpo), a "
        "penalty on the fall (dpop), or an sft pass on the preferred responses first. Look at samples before using it."
    )
    looked = False
    found = []
    for name, part in run.parts:
        whole = part["all"]["figures"]
        per_token, whole_response = whole.get("drift/chosen/token"), whole.get("drift/chosen")
        if per_token is None or per_token["value"] is None or name == "train":
            continue
        looked = True
        if per_token["value"] <= -CHOSEN_FALL and (per_token["hi"] is None or per_token["hi"] < 0):
            found.append((per_token["value"], name, whole_response["value"], whole["drift/rejected"]["value"]))
    if not looked:
        series = run.held_out.get("logps/chosen")
        if series is None or len(series.step) < 2:
            return None
        fall = series.at(run.kept_step) - series.value[0]
        if fall > -max(1.0, 0.02 * abs(series.value[0])):
            return []
        detail = (
            f"Held-out chosen responses had log-probability {series.value[0]:.1f} at step {series.step[0]}, and "
            f"{-fall:.1f} nats less at step {run.kept_step}."
        )
        return [Warning("Chosen responses become less likely", detail, remedy, "warning")]
    if not found:
        return []
    value, name, chosen, rejected = min(found)
    detail = (
        f"On {name}, responses that people preferred are {-chosen:.1f} nats less likely than under the reference "
        f"({-value:.2f} per token); "
        f"rejected ones moved by {_nats(rejected)}. The margin can grow while both fall: the probability went to "
        "responses nobody wrote."
    )
    severity: Any = "serious" if value <= -CHOSEN_COLLAPSE else "warning"
    return [Warning("Chosen responses became less likely", detail, remedy, severity)]


def shortcut_not_beaten(run: RunData) -> list[Warning] | None:
    if run.kind == "sft":  # it was not taught to prefer
        return None
    looked, found = False, []
    for shortcut, plain in SHORTCUTS_IN_WORDS.items():
        told, worse = [], False
        for name, part in run.parts:
            f = part["all"]["figures"]
            gain = f.get(f"{shortcut}/gain")
            if name == "train" or gain is None or gain["value"] is None:
                continue
            looked = True
            if gain["lo"] is not None and gain["lo"] > 0:
                continue
            interval = "" if gain["lo"] is None else f" (95 %: {_signed(gain['lo'])} to {_signed(gain['hi'])})"
            right, theirs = _percent(f["rewards/accuracies"]), _percent(f[f"{shortcut}/accuracies"])
            told.append(f"on {name} {right} against {theirs}, {_signed(gain['value'])} points{interval}")
            worse |= gain["hi"] is not None and gain["hi"] < 0
        if told:
            remedy = (
                "What was learned may be no more than this shortcut. Compare the accuracy on pairs where it is wrong. "
            )
            if shortcut == "longer":
                remedy += "Balance or filter the data by length, or control for length in the objective."
            else:
                remedy += "Train longer or start from a better base; look for words that give the preferred side away."
            title = f"Accuracy {'below' if worse else 'not shown to be above'} a shortcut: {plain}"
            found.append(Warning(title, _sentence(told), remedy, "serious" if worse else "warning"))
    return found if looked else None


def out_of_distribution_drop(run: RunData) -> list[Warning] | None:
    if run.kind == "sft":  # it was not taught to prefer
        return None
    headline = run.headline
    if headline is None:
        return None
    inside_name, inside = headline
    looked, found = False, []
    for name, part in run.parts:
        if name in ("train", "validation", inside_name):
            continue
        here, there = inside["all"]["figures"]["rewards/accuracies"], part["all"]["figures"]["rewards/accuracies"]
        if here["lo"] is None or there["lo"] is None:
            continue
        looked = True
        drop = here["value"] - there["value"]
        # The two parts share no prompt, so their errors are independent; half the interval's width is about two
        # standard errors.
        error = (((here["hi"] - here["lo"]) / 2) ** 2 + ((there["hi"] - there["lo"]) / 2) ** 2) ** 0.5
        if drop < OOD_DROP or drop < error:
            continue
        weak = sorted(
            (c["figures"]["rewards/accuracies"]["value"], category)
            for category, c in part["categories"].items()
            if c["figures"]["rewards/accuracies"]["value"] is not None
        )
        worst = f" Weakest: {', '.join(f'{c} ({100 * v:.0f} %)' for v, c in weak[:3])}." if weak else ""
        detail = (
            f"Accuracy is {_percent(here)} on {inside_name} and {_percent(there)} on {name}: "
            f"{100 * drop:.1f} points lower (± {100 * error:.1f}).{worst}"
        )
        remedy = (
            "Do not rely on the model for prompts unlike the training data. Collect judgements in those categories, "
            "or train fewer steps; "
            "judge the next model by this part, not by the test part alone."
        )
        at_chance = there["lo"] <= 0.5
        found.append(
            Warning("Accuracy drops out of distribution", detail, remedy, "serious" if at_chance else "warning")
        )
    return found if looked else None


def rows_left_out(run: RunData) -> list[Warning] | None:
    # A response that another judgement already gave to sft loses nothing, nor does a score that is read with the best of its prompt.
    read = ("same response", READ_WITH)
    lost = {line.get("row") for line in run.left_out if line.get("reason") not in read}
    if run.trained_on is None:
        return None
    total = run.trained_on + int((run.opened.get("held_out") or {}).get("count", 0)) + len(lost)
    share = len(lost) / total
    if share <= LEFT_OUT:
        return []
    reason, times = run.reasons.most_common(1)[0]
    detail = (
        f"{len(lost):,} of {total:,} judgements ({100 * share:.1f} %) were not used. Most often: {reason} ({times:,})."
    )
    remedy = (
        "What is left may differ from what was collected: look at the list below. For rows that are too long, raise "
        "[text] max_length or choose another too_long; for rows of another kind, choose an objective that uses them."
    )
    return [Warning("Many rows were left out", detail, remedy, "serious" if share > 0.25 else "warning")]


def poorly_calibrated(run: RunData) -> list[Warning] | None:
    if run.kind == "sft":  # it was not taught to prefer
        return None
    looked, told, lean = False, [], 0.0
    for name, part in run.parts:
        f = part["all"]["figures"]
        ece, floor = f["ece"]["value"], f["ece/floor"]["value"]
        if name == "train" or ece is None:
            continue
        looked = True
        if ece <= ECE or ece <= 2 * floor:
            continue
        bins = [b for b in part["all"]["reliability"] if b["weight"]]
        total = sum(b["weight"] for b in bins)
        confidence = sum(b["confidence"] * b["weight"] for b in bins) / total
        outcome = sum(b["outcome"] * b["weight"] for b in bins) / total
        lean += confidence - outcome
        told.append(
            f"on {name} its probabilities miss the outcomes by {100 * ece:.1f} points (chance alone: "
            f"{100 * floor:.1f}), {100 * confidence:.0f} % sure of its choice and right for {100 * outcome:.0f} %"
        )
    if not looked:
        return None
    if not told:
        return []
    remedy = (
        "The ranking may still be good, but do not read margins as probabilities or average such rewards with others. "
        + ("Train fewer steps, or at a lower rate; use soft labels" if lean > 0 else "Train longer, or raise beta")
        + "; or rescale the reward by one temperature fitted on the validation part."
    )
    title = f"Poorly calibrated: {'over' if lean > 0 else 'under'}-confident"
    return [Warning(title, _sentence(told), remedy, "warning")]


def held_out_got_worse(run: RunData) -> list[Warning] | None:
    """Over-optimisation: the kept weights are worse on held-out data than earlier ones were, while the training loss
    went on falling.
    """
    looked, told = False, []
    begun = 0
    for name, better, margin in (("loss", -1, GOT_WORSE_LOSS), ("rewards/accuracies", 1, GOT_WORSE_ACCURACY)):
        series = run.held_out.get(name)
        if series is None or len(series.step) < 3 or len(run.loss.step) < 3:
            continue
        looked = True
        best = max(range(len(series.step)), key=lambda i: (better * series.value[i], -i))
        step, value, kept = series.step[best], series.value[best], series.at(run.kept_step)
        allowed = margin * abs(value) if name == "loss" else margin
        if step >= run.kept_step or better * (value - kept) <= allowed or not _fell(run.loss, step, run.kept_step):
            continue
        begun = max(begun, step)
        told.append(
            f"held-out loss was {value:.3f} at step {step} and is {kept:.3f} in the kept weights (step {run.kept_step})"
            if name == "loss"
            else f"held-out accuracy was {100 * value:.1f} % at step {step} and is {100 * kept:.1f} % in them"
        )
    if not looked:
        return None
    if not told:
        return []
    detail = "The training loss went on falling while " + "; ".join(told) + "."
    remedy = (
        f'Set stop_on = "loss" in [train], so that the best weights are kept (here those of about step {begun}); '
        "lower the learning rate or raise beta; or train for fewer epochs."
    )
    return [Warning("Over-optimised: it got worse while the training loss fell", detail, remedy, "serious")]


def gold_got_worse(run: RunData) -> list[Warning] | None:
    """Where the true reward is known: did learning raise it?"""
    rows = (run.gold or {}).get("rows") or []
    base = {r["part"]: r for r in rows if r.get("name") == "base"}
    learned = [r for r in rows if r.get("name") != "base" and r.get("part") in base and r.get("win_rate") is not None]
    curve = [c for c in (run.gold or {}).get("curve") or [] if c.get("gold") is not None]
    if not learned and len(curve) < 3:
        return None
    found = []
    for row in learned:
        lost = row["win_hi"] if row.get("win_hi") is not None else row["win_rate"]
        if lost < 0.5:
            detail = (
                f"On {row['part']}, samples of {row['name']} beat the base's for {100 * row['win_rate']:.0f} % of "
                "the prompts (ties half); "
                f"mean gold reward {row['gold_mean']:.3f} against {base[row['part']]['gold_mean']:.3f}."
            )
            remedy = (
                "The preferences were fitted and the goal was missed. Lower the rate, raise beta, stop on a held-out "
                "figure; read samples."
            )
            found.append(Warning("The model is worse than its base by the true reward", detail, remedy, "serious"))
    if len(curve) >= 3:
        peak = max(curve, key=lambda c: c["gold"])
        last = curve[-1]
        noise = (peak["hi"] - peak["lo"]) / 2 if peak.get("hi") is not None and peak.get("lo") is not None else 0.0
        if last["step"] > peak["step"] and peak["gold"] - last["gold"] > max(0.02, noise):
            detail = (
                f"The gold reward was {peak['gold']:.3f} at step {peak['step']} and {last['gold']:.3f} at step "
                f"{last['step']}."
            )
            remedy = (
                "The learned reward was optimised past the point where it agrees with the goal: keep the weights of "
                "the peak, and look for a held-out figure that turns there."
            )
            found.append(
                Warning(
                    "Past its peak by the true reward",
                    detail,
                    remedy,
                    "warning" if last["step"] > run.kept_step else "serious",
                )
            )
    return found


CHECKS: list[tuple[str, Callable[[RunData], list[Warning] | None]]] = [
    ("chosen log-probability", chosen_falls),
    ("shortcuts", shortcut_not_beaten),
    ("out of distribution", out_of_distribution_drop),
    ("over-optimisation", held_out_got_worse),
    ("calibration", poorly_calibrated),
    ("rows left out", rows_left_out),
    ("gold reward", gold_got_worse),
]


def _fell(loss: Series, since: int, until: int) -> bool:
    """Is the mean training loss of the last fifth of the steps up to `until` below that of as many steps up to
    `since`?
    """
    upto = [v for s, v in zip(loss.step, loss.value, strict=True) if s <= until]
    before = [v for s, v in zip(loss.step, loss.value, strict=True) if s <= since]
    window = max(1, len(upto) // 5)
    if not before:
        before = loss.value[:window]
    return sum(upto[-window:]) / len(upto[-window:]) < sum(before[-window:]) / len(before[-window:])


def _sentence(told: list[str]) -> str:
    said = "; ".join(told) + "."
    return said[0].upper() + said[1:]


def _nats(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _percent(figure: dict[str, Any]) -> str:
    return "–" if figure["value"] is None else f"{100 * figure['value']:.1f} %"
