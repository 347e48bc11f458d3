"""Does DPO push the preferred responses of alike pairs down? `python bench/displacement.py [SEEDS] [FOLDER]`

For each seed a demo world and a base model trained on it (FOLDER keeps them). By each measure of how alike the two responses of a
pair are, the lowest, the middle and the highest pairs (one per prompt) are trained on, each alone, as the paper does (Razin et al.,
2410.08847, section 5), and the preferred responses' log-probabilities taken before and after. Last all of the pairs together. Prints
the tables of docs/remedies.md: of all pairs, and of those of about the same length.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from holdfast import pipeline
from holdfast.data.dataset import open_dataset
from holdfast.data.freeze import freeze
from holdfast.data.inspect.similarity import edit_similarity
from holdfast.data.text import plain_text
from holdfast.data.views import comparisons
from holdfast.demo.main import JUDGEMENTS, PROMPTS, RESPONSES, recipes
from holdfast.demo.world import World
from holdfast.language.displacement import ches
from holdfast.language.planning import by_prompt
from holdfast.language.policy import Policy, load_base
from holdfast.language.tokens import tokens_of
from holdfast.losses.pairs import dpo

STEPS, MOST, GROUP = 700, 3000, 256  # of the base's training; prompts that pairs are taken of; pairs of a group
LR, EPOCHS, BATCH, BETA = 3e-4, 3, 32, 0.1
MEASURES = ("CHES by length", "CHES over all tokens", "edit similarity", "rejected longer, tokens")


def main(seeds: int, folder: Path) -> None:
    worlds = [world(seed, folder / str(seed)) for seed in range(seeds)]
    for most in (None, 2):
        tables(worlds, most)


def world(seed: int, out: Path) -> Pairs:
    if not (out / "base" / "report.html").exists():
        out.mkdir(parents=True, exist_ok=True)
        World(seed).write_jsonl(
            out / "world.jsonl", PROMPTS, seed=seed, responses_per_prompt=RESPONSES, judgements_per_prompt=JUDGEMENTS
        )
        freeze(out / "world.jsonl", out / "data")
        said = recipes(out / "data", out, seed)["base"]
        said = said.model_copy(update={"train": said.train.model_copy(update={"steps": STEPS})})
        pipeline.train(said, out / "base", quiet=True)
    return Pairs(out, seed)


def tables(worlds: list[Pairs], most: int | None) -> None:
    """most: only the pairs whose lengths differ by so many tokens at most."""
    moved: dict[tuple[str, str], list[np.ndarray]] = {}
    orders: dict[str, list[float]] = {}
    fell, used = [], []
    for pairs in worlds:
        measures = pairs.measures()
        near = np.arange(len(pairs)) if most is None else np.flatnonzero(np.abs(measures[-1]) <= most)
        together = pairs.moved(near)
        fell.append(float((together < 0).mean()))
        used.append(len(near))
        for name, values in zip(MEASURES, measures, strict=True):
            order = near[np.argsort(values[near], kind="stable")]
            for where, start in (("lowest", 0), ("middle", (len(order) - GROUP) // 2), ("highest", len(order) - GROUP)):
                moved.setdefault((name, where), []).append(pairs.moved(order[start : start + GROUP]))
            orders.setdefault(name, []).append(float(spearmanr(values[near], together).statistic))
    print(
        f"{', '.join(map(str, used))} pairs" + ("" if most is None else f", lengths within {most} tokens"), end="\n\n"
    )
    print("| pairs trained on, by | lowest | middle | highest | all: rank correlation |\n|---|---|---|---|---|")
    for name in MEASURES[: None if most is None else -1]:
        cells = []
        for where in ("lowest", "middle", "highest"):
            every = np.concatenate(moved[name, where])
            each = ", ".join(f"{100 * (m < 0).mean():.0f}" for m in moved[name, where])
            cells.append(f"{100 * (every < 0).mean():.0f} % fall ({each}), {every.mean():+.1f} nats")
        print(f"| {name} | {' | '.join(cells)} | {', '.join(f'{r:+.2f}' for r in orders[name])} |")
    print(
        "\nall of the pairs together: of the preferred responses fall",
        ", ".join(f"{100 * f:.0f} %" for f in fell),
        end="\n\n",
    )


class Pairs:
    """A decided pair of each of many prompts of a demo world, and its base model."""

    def __init__(self, folder: Path, seed: int):
        self.seed = seed
        self.ds = open_dataset(folder / "data")
        self.model, tokenizer = load_base(folder / "base")
        self.base = Policy(self.model.eval())
        drawn = np.random.default_rng(seed).permutation(self.ds.n_prompts)[:MOST]
        text = recipes(folder / "data", folder, seed)["base"].text
        rows = np.flatnonzero(np.isin(self.ds.prompt_of, drawn))
        self.tokens = tokens_of(self.ds, rows, tokenizer, text, stops=self.model.generation_config.eos_token_id)
        view = comparisons(self.ds, self.tokens.rows)
        at = np.flatnonzero(view.p != 0.5)
        at = at[np.unique(view.prompt[at], return_index=True)[1]]
        first = view.p[at] > 0.5
        self.prompt = view.prompt[at].astype(np.int64)
        self.preferred = np.where(first, view.a[at], view.b[at]).astype(np.int64)
        self.other = np.where(first, view.b[at], view.a[at]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.prompt)

    def measures(self) -> list[np.ndarray]:
        """Each of MEASURES, (n,)."""
        by_length, plain = ches(self.base, self.tokens, self.prompt, self.preferred, self.other).T
        a, b = ([plain_text(c) or "" for c in self.ds.response_contents(r)] for r in (self.preferred, self.other))
        length = self.tokens.responses.lengths
        edit = np.array([edit_similarity(x, y) for x, y in zip(a, b, strict=True)])
        return [by_length, plain, edit, (length[self.other] - length[self.preferred]).astype(float)]

    def logps(self, policy: Policy, some: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the preferred and of the other responses of these pairs, (n,) each."""
        p, a, b = self.prompt[some], self.preferred[some], self.other[some]
        groups = by_prompt(np.repeat(p, 2).tolist(), np.stack([a, b], axis=1).ravel().tolist())
        batch = policy.batch(self.tokens, groups)
        sum_R = policy.logps(batch).sum_R
        return sum_R[batch.where(a)], sum_R[batch.where(b)]

    def moved(self, pairs: np.ndarray) -> np.ndarray:
        """How far the log-probabilities of these pairs' preferred responses moved by DPO on them, (n,)."""
        policy = Policy(copy.deepcopy(self.model))
        optimiser = torch.optim.AdamW(policy.model.parameters(), lr=LR, weight_decay=0.0)
        rng = np.random.default_rng(self.seed)
        for _ in range(EPOCHS):
            order = rng.permutation(pairs)
            for some in (order[i : i + BATCH] for i in range(0, len(order), BATCH)):
                with torch.no_grad():
                    reference_a, reference_b = self.logps(self.base, some)
                a, b = self.logps(policy, some)
                optimiser.zero_grad()
                dpo(a - reference_a, b - reference_b, beta=BETA).mean().backward()
                torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
                optimiser.step()
        with torch.no_grad():
            parts = [pairs[i : i + 256] for i in range(0, len(pairs), 256)]
            return np.concatenate([(self.logps(policy, s)[0] - self.logps(self.base, s)[0]).numpy() for s in parts])


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    main(wanted, Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp(prefix="displacement-")))
