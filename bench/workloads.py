"""The speed bench's workloads: datasets frozen from real texts, one tokenizer, one random model, the recipe of each, and the steps as
token ids for the peers. All is made once, in a cache folder, and is the same every time.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
VERSION = 4  # of what is made here: raise it when that changes

VOCAB, MAX_LENGTH, BATCH, THREADS, LR, BETA = 49_152, 512, 8, 2, 1e-4, 0.1
SHAPE = {"hidden": 576, "layers": 8, "heads": 9, "kv_heads": 3, "ffn": 1536, "context": 1024}
STEPS = 12  # a run's steps; a round takes one of each contender


@dataclass(frozen=True)
class Workload:
    """objective: dpo, reward or kto. per_prompt: judgements of one prompt that a step takes. source: the dataset's name."""

    name: str
    source: str
    says: str
    objective: str = "dpo"
    per_prompt: int | None = None


WORKLOADS = {
    w.name: w
    for w in (
        Workload("hh", "hh", "hh-harmless: human pairs, long shared prompts"),
        Workload("alpaca", "alpaca", "alpaca-eval: 8 judgements of one prompt, which share the baseline's response", per_prompt=8),
        Workload("pandalm", "pandalm", "PandaLM: short, three annotators of a pair", per_prompt=3),
        Workload("unshared", "unshared", "generated: one-word prompts, real responses, nothing to share"),
        Workload("unshared-even", "even", "generated: as before, and all responses 256 tokens: nothing to share, nothing padded"),
        Workload("reward", "hh", "hh-harmless, reward model", objective="reward"),
        Workload("kto", "hh", "hh-harmless, good and bad labels", objective="kto"),
    )
}  # fmt: skip


def home() -> Path:
    """Where all of the bench that can be made again is kept."""
    cache = Path(os.environ.get("HOLDFAST_CACHE") or Path.home() / ".cache" / "holdfast")
    return cache / "bench" / f"v{VERSION}"


def pairs(source: str, seed: int = 0) -> Iterator[tuple[str, str, str]]:
    """(prompt, better, worse) of a source, ties and soft halves left out; drawn so that a bench's steps find what they need."""
    draw = random.Random(f"{source} {seed}")
    need = BATCH * STEPS
    if source == "hh":
        from holdfast.data.read import read_files

        found = [
            (j.prompt, *j.responses)
            for row in read_files([DATA / "hh-harmless.jsonl.gz"])
            for j in row.judgements
            if j.kind == "pair"
        ]
        yield from draw.sample(found, need)
    elif source == "alpaca":
        import pyarrow.parquet as pq

        rows = pq.read_table(DATA / "alpaca-eval.parquet").to_pylist()
        by_prompt: dict[str, list[tuple[str, str, str]]] = {}
        for r in rows:
            a, b, p = r["output_1"], r["output_2"], r["preference"]
            if a.strip() and b.strip() and a != b and p != 1.5:
                by_prompt.setdefault(r["instruction"], []).append((r["instruction"], *((a, b) if p < 1.5 else (b, a))))
        whole = sorted(prompt for prompt, found in by_prompt.items() if len(found) >= 2 * BATCH)
        for prompt in draw.sample(whole, STEPS // 2):
            yield from by_prompt[prompt][: 2 * BATCH]
    elif source == "pandalm":
        with gzip.open(DATA / "pandalm.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        for r in draw.sample(rows, need // 3 + 40):
            prompt = r["instruction"] + ("\n\n" + r["input"] if r["input"] else "")
            a, b = r["response1"], r["response2"]
            for n in (1, 2, 3):
                said = r[f"annotator{n}"]
                if said in (1, 2) and a.strip() and b.strip() and a != b:
                    yield prompt, *((a, b) if said == 1 else (b, a))
    else:
        raise ValueError(source)


def texts() -> Iterator[str]:
    """All the real texts, for the tokenizer."""
    import pyarrow.parquet as pq

    with gzip.open(DATA / "hh-harmless.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["chosen"]
    with gzip.open(DATA / "pandalm.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            r = json.loads(line)
            yield from (r["instruction"], r["response1"], r["response2"])
    table = pq.read_table(DATA / "alpaca-eval.parquet", columns=["instruction", "output_1", "output_2"])
    seen = set()
    for column in table.columns:
        for text in column.to_pylist():
            if text not in seen:
                seen.add(text)
                yield text


def words(seed: int = 0) -> list[str]:
    """Distinct one-word prompts."""
    draw = random.Random(f"words {seed}")
    return [f"{draw.randrange(36**6):x}" for _ in range(BATCH * STEPS)]


def make_base(folder: Path) -> None:
    """The tokenizer of all texts and the 57M-parameter model with random weights, as an ordinary folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from holdfast.language.scratch import train_tokenizer

    tokenizer = train_tokenizer(texts(), VOCAB)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=SHAPE["hidden"],
            intermediate_size=SHAPE["ffn"],
            num_hidden_layers=SHAPE["layers"],
            num_attention_heads=SHAPE["heads"],
            num_key_value_heads=SHAPE["kv_heads"],
            max_position_embeddings=SHAPE["context"],
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_scorer(base: Path, folder: Path) -> None:
    """A reward model on the base, its fresh head drawn from seed 0, as an ordinary folder."""
    from holdfast.language.policy import load_base, save_model, scorer_on

    model, tokenizer = load_base(str(base))
    save_model(scorer_on(model, tokenizer, seed=0), tokenizer, folder)


def make_dataset(source: str, base: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    from holdfast.data.freeze import freeze_records
    from holdfast.data.records import Judgement

    if source in ("unshared", "even"):
        real = [r for _, a, b in itertools.chain(pairs("alpaca", 1), pairs("alpaca", 2)) for r in (a, b)]
        real = list(dict.fromkeys(real))
        random.Random("unshared").shuffle(real)
        tokenizer = AutoTokenizer.from_pretrained(base)
        if source == "even":
            ids = [tokenizer(r, add_special_tokens=False)["input_ids"][:255] for r in real]
            real = [tokenizer.decode(i) for i in ids if len(i) == 255]
            real = [r for r in real if len(tokenizer(r, add_special_tokens=False)["input_ids"]) == 255]
        prompts = words()
        found: Iterable[tuple[str, str, str]] = list(zip(prompts, real[0::2], real[1::2], strict=False))
    else:
        found = pairs(source)
    # Every judgement has an annotator of its own: what three people say alike stays three judgements.
    freeze_records((Judgement("pair", p, (a, b), annotator=str(n)) for n, (p, a, b) in enumerate(found)), folder)


def recipe(w: Workload, threads: int = THREADS) -> dict[str, Any]:
    """The recipe of a workload; the same settings are given to the peers."""
    place = home()
    said: dict[str, Any] = {
        "run": {"threads": threads},
        "data": {"dataset": str(place / w.source), "split": {"validation": 0.0, "test": 0.0}},
        "model": {"path": str(place / ("scorer" if w.objective == "reward" else "base"))},
        "text": {"max_length": MAX_LENGTH, "too_long": "truncate-prompt-left"},
        "objective": {"kind": "reward"} if w.objective == "reward" else {"kind": w.objective, "beta": BETA},
        "train": {"batch": BATCH, "steps": STEPS, "lr": LR, "schedule": "constant", "checkpoint_every": 10_000},
    }
    if w.per_prompt:
        said["train"]["per_prompt"] = w.per_prompt
    return said


def prepare(name: str) -> Path:
    """Make what a workload needs, where it is missing; the file of its steps as token ids."""
    w, place = WORKLOADS[name], home()
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "base" / "config.json").exists():
        make_base(place / "base")
    if w.objective == "reward" and not (place / "scorer" / "config.json").exists():
        make_scorer(place / "base", place / "scorer")
    if not (place / w.source).exists():
        make_dataset(w.source, place / "base", place / w.source)
    path = place / f"{name}.steps.json"
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(_steps(w)))
        temporary.replace(path)
    return path


def _steps(w: Workload) -> list[list[dict[str, Any]]]:
    """Every step's rows as token ids, in the order in which our own run takes them."""
    import numpy as np
    from transformers import AutoTokenizer

    from holdfast.data.dataset import open_dataset
    from holdfast.data.views import comparisons
    from holdfast.language.tokens import tokenise
    from holdfast.recipe import load_recipe
    from holdfast.training.objective import Rows
    from holdfast.training.order import Order

    said = load_recipe(recipe(w))
    ds = open_dataset(said.data.dataset)
    view = comparisons(ds, np.arange(len(ds.judgements)))
    tokens = tokenise(ds, np.unique(view.row), AutoTokenizer.from_pretrained(home() / "base"), said.text)
    kept = tokens.rows
    order = Order(
        Rows([ds.row_id(int(i)) for i in kept], np.asarray(ds.prompt_of)[kept].astype(np.int64), kept),
        said.run.seed,
        said.train.per_prompt,
        said.train.batch,
    )
    at = {int(row): i for i, row in enumerate(view.row)}
    steps = []
    for s in range(1, STEPS + 1):
        edges = [at[int(kept[i])] for i in order.step(s)]
        rows = []
        for e in edges:
            better, worse = (view.a[e], view.b[e]) if view.p[e] > 0.5 else (view.b[e], view.a[e])
            rows.append(
                {
                    "prompt_ids": tokens.prompts[int(view.prompt[e])].tolist(),
                    "chosen_ids": tokens.responses[int(better)].tolist(),
                    "rejected_ids": tokens.responses[int(worse)].tolist(),
                }
            )
        steps.append(rows)
    return steps


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
