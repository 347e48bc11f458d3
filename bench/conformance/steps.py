"""Whole training steps: TRL's trainer and a Holdfast run, made of the same arguments, from the same weights, on the same rows.

The recipe is the one that `holdfast recipe --from-trl` makes. Every step takes all rows, so that neither order matters; compared are each
step's loss and gradient norm, and how far apart the weights are in the end, as a share of how far they went.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from holdfast import pipeline
from holdfast.data.freeze import freeze
from holdfast.demo.world import World
from holdfast.language.policy import save_model
from holdfast.language.scratch import make_model, train_tokenizer
from holdfast.moving import from_trl
from holdfast.recipe import ScratchTable, load_recipe
from holdfast.training.ledger import read_ledger
from rows import TOLERANCE

N = 24
WEIGHTS = 1e-3  # AdamW divides by a gradient's own size: where that is near eps, float32's last digit is a visible share of a small step
TRAINERS = {
    "dpo": (DPOConfig, DPOTrainer), "kto": (KTOConfig, KTOTrainer), "reward": (RewardConfig, RewardTrainer),
    "cpo": (CPOConfig, CPOTrainer), "orpo": (ORPOConfig, ORPOTrainer),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    method: str
    said: dict[str, Any] = field(default_factory=dict)
    margin: bool = False
    equal: int | None = None  # how many of the steps should be equal; None: all
    note: str = ""

    @property
    def name(self) -> str:
        shown = [f"{k} = {v}" for k, v in self.said.items()]
        return ", ".join(
            [
                {"dpo": "DPO", "kto": "KTO", "reward": "Reward", "cpo": "CPO", "orpo": "ORPO"}[self.method],
                *shown,
                *["margin column"] * self.margin,
            ]
        )


@dataclass(frozen=True)
class Compared:
    """loss, norm: the largest relative difference over the steps that are compared; weights: share of the way gone."""

    case: Case
    steps: int
    losses: list[tuple[float, float]]
    loss: float
    norm: float
    weights: float

    @property
    def equal(self) -> bool:
        return (
            self.loss <= TOLERANCE
            and self.norm <= TOLERANCE
            and (self.case.equal is not None or self.weights <= WEIGHTS)
        )


CASES = [
    Case("dpo"),
    Case("dpo", {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3}),
    Case("dpo", {"loss_type": ["ipo"], "beta": 0.2}),
    Case("dpo", {"loss_type": ["robust"], "label_smoothing": 0.1}),
    Case("dpo", {"loss_type": ["aot"]}),
    Case("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
    Case("dpo", {"use_weighting": True}),
    Case("dpo", {"ld_alpha": 0.3}),
    Case("dpo", {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3, "learning_rate": 3e-4},
         note="a small rate, since exp(-0.7 r) magnifies the last digit of a large log-ratio r"),
    Case("dpo", {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.6}),
    Case("dpo", {"max_grad_norm": 0.1, "weight_decay": 0.1, "lr_scheduler_type": "cosine"}),
    Case(
        "dpo", {"loss_type": ["bco_pair"]}, equal=1,
        note="equal at the first step; then Holdfast's reward shift moves, as in 2404.04656, and TRL has none",
    ),
    Case("cpo", {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.5}),
    Case("cpo", {"cpo_alpha": 0.5}),
    Case("orpo", equal=0, note="TRL's imitation term includes the prompt's tokens (2403.07691 eq. 6: the response's)"),
    Case("reward"),
    Case("reward", {"center_rewards_coefficient": 0.01}, margin=True),
    Case(
        "kto", {"desirable_weight": 1.2}, equal=1,
        note="equal at the first step, where the KL is 0; after it the two estimate it from other mismatched pairs (ours over the whole step)",
    ),
    Case("dpo", {"warmup_steps": 2}, equal=0, note="TRL's first warm-up step has the rate 0 and moves nothing; ours has lr / 3"),
]  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """N pairs of the built-in world, one for each prompt."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "world.jsonl"
        World(0).write_jsonl(path, 200, seed=0)
        judged = [json.loads(line) for line in path.read_text().splitlines()]
    pairs, seen = [], set()
    for row in judged:
        key = json.dumps(row["prompt"])
        if row["kind"] == "pair" and key not in seen and row["responses"][0] != row["responses"][1]:
            seen.add(key)
            pairs.append({"prompt": row["prompt"], "chosen": row["responses"][0], "rejected": row["responses"][1]})
    return pairs[:N]


def texts(messages: list[dict[str, str]]) -> list[str]:
    return [m["content"] for m in messages]


def prepare(folder: Path) -> None:
    """A tokenizer, a policy and a reward model of random weights."""
    every = [t for row in rows() for part in row.values() for t in texts(part)]
    tokenizer = train_tokenizer(every * 4, 360)
    table = ScratchTable(vocab=360, hidden=48, layers=2, heads=4, kv_heads=2, context=512)
    policy = make_model(table, tokenizer, seed=5)
    with torch.no_grad():  # wider weights than usual, so that rows differ and no gradient is lost in rounding
        for parameter in policy.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    save_model(policy, tokenizer, folder / "policy")
    torch.manual_seed(6)
    scorer = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1, dtype=torch.float32)
    scorer.config.pad_token_id = tokenizer.pad_token_id
    save_model(scorer, tokenizer, folder / "scorer")


def data(case: Case) -> list[dict[str, Any]]:
    pairs = rows()
    if case.margin:
        return [{**row, "margin": 0.1 * (i % 7)} for i, row in enumerate(pairs)]
    if case.method == "kto":  # one response of each prompt, good and bad in turn
        return [
            {"prompt": r["prompt"], "completion": r["rejected" if i % 2 else "chosen"], "label": i % 2 == 0}
            for i, r in enumerate(pairs)
        ]
    return pairs


def arguments(case: Case, folder: Path) -> dict[str, Any]:
    said = {
        "per_device_train_batch_size": N, "max_steps": 4, "learning_rate": 1e-3, "bf16": False, "use_cpu": True,
        "max_grad_norm": 1.0, "seed": 0, "output_dir": str(folder / "trl"),
    }  # fmt: skip
    return {**said, **case.said}


def theirs(case: Case, base: Path, folder: Path) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    config, trainer = TRAINERS[case.method]
    aside = {
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    auto = AutoModelForSequenceClassification if case.method == "reward" else AutoModelForCausalLM
    made = trainer(
        model=auto.from_pretrained(base, dtype=torch.float32),
        args=config(**arguments(case, folder), **aside),
        train_dataset=Dataset.from_list(data(case)),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    made.remove_callback(transformers.PrinterCallback)
    losses: list[list[float]] = []
    compute = made.compute_loss

    def spied(*args: Any, **kwargs: Any) -> Any:
        loss = compute(*args, **kwargs)
        times = made.args.gradient_accumulation_steps
        if not losses or len(losses[-1]) == times:
            losses.append([])
        losses[-1].append(float(loss.detach()))
        return loss

    made.compute_loss = spied
    made.train()
    norms = [float(entry["grad_norm"]) for entry in made.state.log_history if "grad_norm" in entry]
    weights = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    return [sum(parts) / len(parts) for parts in losses], norms, weights


def ours(case: Case, base: Path, folder: Path) -> tuple[list[float], list[float], dict[str, torch.Tensor], int]:
    file, rows_file = folder / "arguments.json", folder / "rows.jsonl"
    file.write_text(json.dumps(arguments(case, folder)))
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in data(case)))
    freeze([rows_file], folder / "data")
    moved = from_trl(file, method=case.method, data=str(folder / "data"), settings=[f"model_name_or_path={base}"])
    recipe = load_recipe(moved.recipe, ["data.split.validation=0.0", "data.split.test=0.0", "run.threads=2"])
    run = pipeline.train(recipe, folder / "run", quiet=True)
    entries = [e for e in read_ledger(run.folder / "ledger.jsonl")[0] if e["kind"] == "step"]
    numbers = [
        [float.fromhex(e[key]) if isinstance(e[key], str) else e[key] for e in entries] for key in ("loss", "grad_norm")
    ]
    return *numbers, load_file(run.folder / "model" / "model.safetensors"), len(entries)  # type: ignore[return-value]


def far(a: float, b: float) -> float:
    return abs(a - b) / max(abs(a), abs(b), 1e-12)


def compare(case: Case, base: Path) -> Compared:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = load_file(base / "model.safetensors")
        their_losses, their_norms, their_weights = theirs(case, base, folder)
        our_losses, our_norms, our_weights, steps = ours(case, base, folder)
        upto = case.equal or steps
        common = [n for n in start if n in our_weights and n in their_weights]
        assert len(common) == len(start), f"weights differ in name: {set(start) ^ set(common)}"
        apart = sum(float((our_weights[n].double() - their_weights[n].double()).square().sum()) for n in common) ** 0.5
        way = sum(float((their_weights[n].double() - start[n].double()).square().sum()) for n in common) ** 0.5
        return Compared(
            case, upto, list(zip(their_losses, our_losses, strict=True)),
            max(map(far, their_losses[:upto], our_losses[:upto])), max(map(far, their_norms[:upto], our_norms[:upto])), apart / way,
        )  # fmt: skip


def all_cases() -> list[Compared]:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepare(Path(name))
        found = []
        for case in CASES:
            found.append(compare(case, Path(name) / ("scorer" if case.method == "reward" else "policy")))
            c = found[-1]
            print(
                f"{'equal' if c.equal else 'apart':6} {case.name}: loss {c.loss:.1e}, norm {c.norm:.1e}, weights {c.weights:.1e}",
                flush=True,
            )
        return found


if __name__ == "__main__":
    all_cases()
