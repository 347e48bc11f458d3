"""TRL as a worker of the speed bench: its own trainer and loop, stopped before every step until the conductor says go.

    python bench/peers/trl_worker.py STEPS.json BASE dpo|reward|kto [--best] [--threads 2]

It is given the same token ids as we are (its own tokenisation is passed over), in the same order; everything else is TRL's own code with
its own defaults, except float32 (our bench's type) and, with --best, what makes it fastest on a CPU: reference log-probabilities computed
before, no gradient checkpointing, and no padding where that works.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import meter  # noqa: I001
import torch


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("steps")
    parser.add_argument("base")
    parser.add_argument("objective", choices=["dpo", "reward", "kto"])
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--max-length", type=int, default=512)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    import trl
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )

    began = time.perf_counter()
    steps = json.loads(Path(args.steps).read_text())
    if (
        args.objective == "kto"
    ):  # a pair is one good and one bad row, and the KL is estimated from the next pair's responses
        for step in steps:
            halves = [
                (r["prompt_ids"], r[f"{side}_ids"], side == "chosen") for r in step for side in ("chosen", "rejected")
            ]
            others = halves[2:] + halves[:2]
            step[:] = [
                {"prompt_ids": p, "completion_ids": c, "KL_completion_ids": other, "label": label}
                for (p, c, label), (_, other, _) in zip(halves, others, strict=True)
            ]
    rows = [row for step in steps for row in step]
    batch = len(steps[0])
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    kind, config = {
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
        "reward": (trl.RewardTrainer, trl.RewardConfig),
        "kto": (trl.KTOTrainer, trl.KTOConfig),
    }[args.objective]
    load = AutoModelForSequenceClassification if args.objective == "reward" else AutoModelForCausalLM
    model = load.from_pretrained(args.base, dtype=torch.float32)
    if args.objective == "reward":
        rows = [{f"{s}_ids": r["prompt_ids"] + r[f"{s}_ids"] for s in ("chosen", "rejected")} for r in rows]

    class Given(kind):
        """The trainer on rows that are token ids already."""

        def _prepare_dataset(self, dataset, *rest, **more):
            return dataset

    folder = tempfile.mkdtemp(prefix="trl-speed-")
    settings = dict(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=batch,
        max_steps=len(steps),
        learning_rate=args.lr,
        lr_scheduler_type="constant",
        max_length=args.max_length,
        train_sampling_strategy="sequential",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    if args.objective != "reward":
        settings |= {"beta": args.beta}
    if args.best:
        settings |= {"gradient_checkpointing": False}
        if args.objective != "reward":
            settings |= {"precompute_ref_log_probs": True}
    trainer = Given(
        model=model, args=config(**settings), train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )

    class Conducted(TrainerCallback):
        meter = None
        loss = None

        def on_train_begin(self, args, state, control, **more):
            # The optimiser takes threads of its own choice otherwise.
            torch.set_num_threads(threads)
            self.meter = meter.Meter(trainer.model)
            if getattr(trainer, "ref_model", None) is not None:
                trainer.ref_model.base_model.register_forward_pre_hook(self.meter._see, with_kwargs=True)
            meter.say(ready=time.perf_counter() - began, peak=meter.peak())
            self.go()

        def on_step_end(self, args, state, control, **more):
            self.meter.end(loss=float(self.loss))
            if state.global_step < len(steps):
                self.go()

        def go(self):
            if self.meter.begin() == "end":
                os._exit(0)

    conducted, threads = Conducted(), args.threads
    trainer.add_callback(conducted)
    own = trainer.training_step

    def training_step(*a, **k):
        conducted.loss = own(*a, **k)
        return conducted.loss

    trainer.training_step = training_step
    trainer.train()


if __name__ == "__main__":
    main()
