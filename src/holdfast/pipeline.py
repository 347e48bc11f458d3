"""The main flow, top to bottom: open, split, build, fit, evaluate, write.

dataset -> split -> base -> tokens -> objective -> fit -> run -> evaluate -> results -> report
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from transformers import PreTrainedTokenizerBase

from holdfast.data.dataset import Dataset, open_dataset
from holdfast.data.freeze import freeze_records
from holdfast.data.read import read_files
from holdfast.data.records import Judgement
from holdfast.data.splits import Split, load_split, make_split
from holdfast.data.views import Comparisons, comparisons, preferred
from holdfast.errors import DataError, IntegrityError, RecipeError
from holdfast.evaluation.shortcuts import BagOfWords, longer, plain_text, transcript
from holdfast.evaluation.table import (
    KL_SCORES,
    POLICY_SCORES,
    SCORES,
    choose_examples,
    evaluation_table,
    write_evaluation,
)
from holdfast.language.adapters import is_adapted
from holdfast.language.objectives import Preference, Reward, Sft, needs_reference, pair_losses
from holdfast.language.planning import by_prompt
from holdfast.language.policy import Policy, RewardModel, load_base, save_model
from holdfast.language.reference import (
    Group,
    Live,
    Moving,
    Reference,
    choose,
    frozen,
    reference_logps,
    without_adapter,
)
from holdfast.language.scratch import dataset_texts, make_model, train_tokenizer
from holdfast.language.tokens import Tokens, decode_pieces, tokenise, tokenizer_digest
from holdfast.losses import LOSSES
from holdfast.recipe import Recipe, ReferenceTable, bind, load_recipe
from holdfast.report.page import write_report
from holdfast.training.checkpoint import weights_digest
from holdfast.training.determinism import deterministic, environment_digest
from holdfast.training.fit import fit
from holdfast.training.ledger import read_head
from holdfast.training.objective import Rows
from holdfast.training.replay import replay as recompute

HELD_OUT = "held-out"  # the evaluation on the run's own held-out parts


@dataclass(frozen=True)
class Run:
    """A run folder: resolved recipe, ledger, checkpoints, model, results, report."""

    folder: Path
    steps: int
    ledger_head: str
    weights_digest: str | None
    stopped: str

    def evaluate(self, on: str | Path | None = None) -> dict[str, Any]:
        """The metrics of `holdfast.evaluate` for this run."""
        return evaluate(self.folder, on)


@dataclass(frozen=True)
class Prepared:
    """All that `fit` takes: what `train` and `replay` share."""

    recipe: Recipe
    dataset: Dataset
    tokenizer: PreTrainedTokenizerBase
    objective: Sft | Reward | Preference
    rows: Rows
    held_out: np.ndarray | None
    facts: dict[str, Any]
    left_out: list[tuple[int, str]]


def train(
    recipe: Recipe | str | Path | Mapping[str, Any],
    out: str | Path,
    settings: Sequence[str] = (),
    quiet: bool = False,
    allow_environment_change: bool = False,
) -> Run:
    """Train what `recipe` says into the folder `out`; a folder that was interrupted goes on where its last checkpoint stands.

    Raises RecipeError, DataError or IntegrityError naming what is wrong, before the first step wherever it can be known by then.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, settings)
    folder = Path(out)
    with deterministic(recipe.run):
        prepared = prepare(recipe, folder, quiet)
        _write_left_out(folder, prepared)
        done = fit(
            prepared.objective,
            prepared.rows,
            recipe.train,
            recipe.run,
            folder,
            facts=prepared.facts,
            held_out=prepared.held_out,
            on_final=lambda temporary: save_model(prepared.objective.model, prepared.tokenizer, temporary),
            quiet=quiet,
            allow_environment_change=allow_environment_change,
        )
    if done.stopped != "interrupted" and not (folder / "evaluations" / HELD_OUT / "metrics.json").exists():
        evaluate(folder)
        write_report(folder)
    return Run(folder, done.steps, done.ledger_head, done.weights_digest, done.stopped)


def resume(run: str | Path, quiet: bool = False, allow_environment_change: bool = False) -> Run:
    """Go on with an interrupted run. The bytes are those of a run that was never interrupted."""
    return train(_recipe_of(Path(run)), run, quiet=quiet, allow_environment_change=allow_environment_change)


def prepare(recipe: Recipe, folder: Path, quiet: bool) -> Prepared:
    """Everything before the first step: data, split, base, tokens, objective. Writes the resolved recipe and the split."""
    dataset = open_dataset(recipe.data.dataset)
    if recipe.data.root not in (None, dataset.root):
        raise IntegrityError(f"dataset {dataset.path} has root {dataset.root}, the recipe wants {recipe.data.root}")
    split = make_split(dataset, recipe.data.split)
    _write_recipe(recipe, folder)
    split.save(folder)
    model, tokenizer = _base(recipe, dataset, split, folder, quiet)
    base = weights_digest(model)

    held_out = split.parts.get("validation", np.zeros(0, dtype=np.int64))
    wanted = np.concatenate([split.parts["train"], held_out])
    kind, table = recipe.objective["kind"], {k: v for k, v in recipe.objective.items() if k != "kind"}
    view: Any = preferred(dataset, wanted) if kind == "sft" else comparisons(dataset, wanted)
    tokens = tokenise(dataset, np.unique(view.row), tokenizer, recipe.text, stops=_stops(model))
    left_out = [*view.left_out, *tokens.left_out]
    view = preferred(dataset, tokens.rows) if kind == "sft" else comparisons(dataset, tokens.rows)
    objective = _objective(recipe, kind, table, model, tokenizer, tokens, view, base)

    train_rows = split.parts["train"][np.isin(split.parts["train"], view.row)]
    held_out = held_out[np.isin(held_out, view.row)]
    if not len(train_rows):
        raise DataError(f"no judgement of {dataset.path} is left to train on: {_counts(left_out)}")
    rows = Rows(
        [dataset.row_id(i) for i in train_rows.tolist()], dataset.prompt_of[train_rows].astype(np.int64), train_rows
    )
    facts = {
        "recipe": recipe.digest(),
        "dataset": dataset.root,
        "split": split.digest,
        "base": base,
        "tokens": {"key": tokens.key, **tokens.facts},
        "compute": {"path": objective.wrapped.compute, "why": objective.wrapped.why},
        "left_out": _counts(left_out),
    }
    return Prepared(recipe, dataset, tokenizer, objective, rows, held_out if len(held_out) else None, facts, left_out)


def _base(
    recipe: Recipe, dataset: Dataset, split: Split, folder: Path, quiet: bool
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model that training starts from. From scratch it is made by a run of its own, `sft` in the folder `base`."""
    scratch = recipe.model.scratch
    if scratch is not None and recipe.objective["kind"] == "sft":
        tokenizer = train_tokenizer(dataset_texts(dataset, split.parts["train"]), scratch.vocab)
        return make_model(scratch, tokenizer, recipe.run.seed), tokenizer
    if scratch is not None:
        train(
            recipe.model_copy(
                update={"objective": {"kind": "sft"}, "train": scratch.train, "reference": None, "adapter": None}
            ),
            folder / "base",
            quiet=quiet,
        )
    return _start(recipe, folder)


def _start(recipe: Recipe, folder: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """The base where it lies: the folder or hub name of the recipe, or the run in `base` that made it."""
    if recipe.model.hub is not None:
        return load_base(recipe.model.hub, hub=True, revision=recipe.model.revision)
    return load_base(recipe.model.path or folder / "base")


def _objective(
    recipe: Recipe,
    kind: str,
    table: Mapping[str, Any],
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Tokens,
    view: Any,
    base: str,
) -> Sft | Reward | Preference:
    """The objective that [objective] names, with the rest of the table bound to its loss."""
    micro = recipe.train.micro_batch or recipe.train.batch
    model.to(recipe.run.device, getattr(torch, recipe.run.dtype))
    if kind == "sft":
        bind(lambda: None, table, "[objective] of sft")
        _reference_kind(recipe, kind)
        return Sft(Policy(model, recipe.model.compute), tokens, view, micro)
    if kind == "reward":
        _reference_kind(recipe, kind)
        scorer = RewardModel.on(model, tokenizer, seed=recipe.run.seed, compute=recipe.model.compute)
        return Reward(scorer, tokens, view, table=table, micro_batch=micro)
    if kind in pair_losses():
        policy = Policy(model, recipe.model.compute)
        reference = _reference(recipe, kind, policy, base, tokens, _groups(view))
        return Preference(policy, tokens, view, reference, loss=kind, table=table, micro_batch=micro)
    raise RecipeError(f"[objective] kind = {kind!r} is unknown (known: sft, reward, {', '.join(pair_losses())})")


def _groups(view: Comparisons) -> Sequence[Group]:
    return by_prompt(np.repeat(view.prompt, 2).tolist(), np.stack([view.a, view.b], axis=1).ravel().tolist())


def _reference_kind(recipe: Recipe, loss: str) -> str:
    """Which reference a run of this loss has. RecipeError where [reference] says one that it cannot use."""
    return choose(
        recipe.reference,
        loss,
        ratio=loss in LOSSES and LOSSES[loss].needs_reference,
        distribution=loss in LOSSES and any(name.startswith("kl_") for name in LOSSES[loss].needs),
        adapter=recipe.adapter is not None,
    )


def _reference(
    recipe: Recipe, loss: str, policy: Policy, base: str, tokens: Tokens, groups: Sequence[Group]
) -> Reference | None:
    """The reference of a run that is about to start: `policy` is still what training starts from, on the base `base`."""
    kind, table = _reference_kind(recipe, loss), recipe.reference
    if kind == "none":
        return None
    if kind == "moving":
        assert table is not None and table.tau is not None
        return Moving(policy, base, alpha=table.alpha or 1.0, tau=table.tau)
    adapted = is_adapted(policy.model)
    if kind == "adapter-off":
        return Live(without_adapter(policy), base, kind=kind)
    if table is not None and (table.path or table.hub):
        other, weights = _other_reference(table, recipe, tokens)
        if kind == "frozen" and other.compute != policy.compute:
            raise RecipeError(
                f"[reference] kind = 'frozen' shares its batches with the policy, which is computed {policy.compute}; the reference cannot "
                f"({other.why}): set model.compute = 'padded', or take kind = 'cached'"
            )
    else:
        other, weights = (without_adapter(policy) if adapted else frozen(policy) if kind == "frozen" else policy), base
    if kind == "frozen":
        return Live(other, weights, weights == base)
    environment = environment_digest(recipe.run)
    return reference_logps(other, weights, tokens, groups, environment, is_start=weights == base)


def _other_reference(table: ReferenceTable, recipe: Recipe, tokens: Tokens) -> tuple[Policy, str]:
    """The policy that [reference] names by path or hub, and its weights digest. Its tokens must be the policy's."""
    name = str(table.path or table.hub)
    model, tokenizer = load_base(name, hub=table.hub is not None, revision=table.revision)
    weights = weights_digest(model)
    if tokenizer_digest(tokenizer) != tokens.facts["tokenizer"]:
        raise RecipeError(
            f"[reference] {name} has another tokenizer than the model: log-probabilities of other tokens cannot be compared"
        )
    model.to(recipe.run.device, getattr(torch, recipe.run.dtype)).requires_grad_(False).eval()
    return Policy(model, recipe.model.compute), weights


def replay(run: str | Path, first: int, last: int) -> dict[str, Any]:
    """Recompute steps `first` to `last` (both included) and compare every ledger entry to the byte."""
    folder = Path(run)
    recipe = _recipe_of(folder)
    with deterministic(recipe.run):
        p = prepare(recipe, folder, quiet=True)
        return recompute(
            p.objective, p.rows, recipe.train, recipe.run, folder, first, last, facts=p.facts, held_out=p.held_out
        )


def evaluate(run: str | Path, on: str | Path | None = None) -> dict[str, Any]:
    """Score every held-out judgement of a run (or every one of another dataset) into a table; all figures are derived from it.

    Writes RUN/evaluations/NAME/ (rows.parquet, metrics.json, examples.json); NAME is `held-out`, or the other dataset's root.
    """
    folder = Path(run)
    recipe = _recipe_of(folder)
    with deterministic(recipe.run):
        own = open_dataset(recipe.data.dataset)
        split = load_split(folder, own)
        if on is None:
            dataset, name = own, HELD_OUT
            parts = {part: split.parts[part] for part in recipe.evaluate.parts if len(split.parts.get(part, ()))}
            if not parts:
                raise DataError(
                    f"run {folder} has nothing held out in {', '.join(recipe.evaluate.parts)}; evaluate it --on a dataset"
                )
        else:
            dataset = open_dataset(on)
            name, parts = dataset.root[:16], {"all": np.arange(dataset.n_judgements)}
        model, tokenizer = load_base(folder)
        view = comparisons(dataset, np.concatenate(list(parts.values())))
        if not len(view.row):
            raise DataError(f"nothing in {dataset.path} compares two responses: {_counts(view.left_out)}")
        tokens = tokenise(dataset, np.unique(view.row), tokenizer, recipe.text, stops=_stops(model))
        left_out = [*view.left_out, *tokens.left_out]
        view = comparisons(dataset, tokens.rows)
        scorer, reference = _scorer(recipe, folder, model, tokenizer, tokens, view, _groups(view))
        scores = scorer.scores(tokens.rows, reference)
        order = np.argsort(scores["edge"])

        words = BagOfWords.fit(own, comparisons(own, split.parts["train"]))
        table = evaluation_table(
            dataset,
            view,
            parts,
            {
                k: scores[k][order]
                for k in (*SCORES, *(POLICY_SCORES if "ref_logp_a" in scores else ()), *KL_SCORES)
                if k in scores
            },
            longer=longer(dataset, view),
            bow=words.margins(dataset, view),
        )
        facts = {
            "dataset_root": dataset.root,
            "split_digest": split.digest if on is None else None,
            "ledger_head": read_head(folder),
            "weights_digest": weights_digest(model),
            "objective": recipe.objective,
            "left_out": _counts(left_out),
            "bag of words": words.facts,
        }
        shown = [
            _example(dataset, view, i, scorer, tokenizer, str(table["part"][i]), table["category"][i].as_py())
            for i in choose_examples(table, recipe.evaluate.examples)
        ]
    return write_evaluation(
        folder / "evaluations" / name,
        table,
        facts,
        examples=shown,
        bootstrap=recipe.evaluate.bootstrap,
        seed=recipe.run.seed,
    )


def _scorer(
    recipe: Recipe,
    folder: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Tokens,
    view: Comparisons,
    groups: Sequence[Group],
) -> tuple[Reward | Preference, Policy | None]:
    """A finished run's model as what scores comparisons, and the reference policy where the run has one."""
    kind, table = recipe.objective["kind"], {k: v for k, v in recipe.objective.items() if k != "kind"}
    micro = recipe.train.micro_batch or recipe.train.batch
    model.to(recipe.run.device, getattr(torch, recipe.run.dtype))
    if kind == "reward":
        scorer = RewardModel.on(model, tokenizer, seed=recipe.run.seed, compute=recipe.model.compute)
        return Reward(scorer, tokens, view, table=table, micro_batch=micro), None
    policy = Policy(model, recipe.model.compute)
    if kind == "sft":  # no preference was trained: a response's score is its mean log-probability per token
        return Preference(
            policy, tokens, view, None, loss="simpo", table={"beta": 1.0, "gamma": 0.0}, micro_batch=micro
        ), None
    if not needs_reference(kind):
        return Preference(policy, tokens, view, None, loss=kind, table=table, micro_batch=micro), None
    table_of = recipe.reference
    if table_of is not None and (table_of.path or table_of.hub):
        reference, weights = _other_reference(table_of, recipe, tokens)
    else:  # also where the reference moved: what a run has learnt is told from where it began
        base, _ = _start(recipe, folder)
        weights = weights_digest(base)
        reference = Policy(base.to(recipe.run.device, getattr(torch, recipe.run.dtype)), recipe.model.compute)
    artefact = reference_logps(reference, weights, tokens, groups, environment_digest(recipe.run))
    return Preference(policy, tokens, view, artefact, loss=kind, table=table, micro_batch=micro), reference


def _example(
    dataset: Dataset,
    view: Comparisons,
    edge: int,
    scorer: Reward | Preference,
    tokenizer: PreTrainedTokenizerBase,
    part: str,
    category: str | None,
) -> dict[str, Any]:
    """One comparison as the report shows it: texts, rewards, and what each token adds."""
    a_first = view.p[edge] >= 0.5
    sides = {"chosen": view.a[edge] if a_first else view.b[edge], "rejected": view.b[edge] if a_first else view.a[edge]}
    said: dict[str, Any] = {
        "judgement": dataset.row_id(int(view.row[edge])),
        "part": part,
        "category": category,
        "p": float(max(view.p[edge], 1 - view.p[edge])),
        "prompt_text": transcript(dataset.prompt_contents([int(view.prompt[edge])])[0]) or "",
    }
    for side, response in sides.items():
        values = scorer.contributions(int(view.prompt[edge]), int(response))
        pieces = decode_pieces(tokenizer, scorer.tokens.responses[int(response)])
        said[side] = {
            "text": plain_text(dataset.response_contents([int(response)])[0]) or "",
            "reward": float(values.sum()),
            "tokens": [{"piece": piece, "value": float(value)} for piece, value in zip(pieces, values, strict=True)],
        }
    return said


def score(run: str | Path, file: str | Path) -> list[dict[str, Any]]:
    """Rewards (a reward model's) or implicit rewards (a policy's) for the responses in `file`, in its order.

    A row is {"prompt": ..., "response": ...}, or anything that `freeze` reads. Returns one {"file", "row", "response", "reward",
    "tokens"} per response; a row that cannot be scored has "reward": None and its reason.
    """
    folder = Path(run)
    recipe = _recipe_of(folder)
    read = list(read_files([file], unjudged=True))
    wanted: list[tuple[Any, Any, Any]] = []
    for row in read:
        for judgement in row.judgements:
            wanted += [(row, judgement.prompt, response) for response in judgement.responses]
    bad = [
        {"file": r.file, "row": r.row, "response": None, "reward": None, "reason": r.reason} for r in read if r.reason
    ]
    if not wanted:
        raise DataError(
            f"{file} holds no response to score" + (f"; row {bad[0]['row']}: {bad[0]['reason']}" if bad else "")
        )
    with deterministic(recipe.run), tempfile.TemporaryDirectory() as scratch:
        dataset = freeze_records(
            (
                Judgement("score", prompt, (response,), value=0.0, extra={"n": n})
                for n, (_, prompt, response) in enumerate(wanted)
            ),
            Path(scratch) / "dataset",
        )
        model, tokenizer = load_base(folder)
        tokens = tokenise(dataset, np.arange(dataset.n_judgements), tokenizer, recipe.text, stops=_stops(model))
        nothing = comparisons(dataset, np.zeros(0, dtype=np.int64))
        asked = by_prompt(dataset.prompt_of[tokens.rows].tolist(), dataset.responses_of.take(tokens.rows).flat.tolist())
        scorer, _ = _scorer(recipe, folder, model, tokenizer, tokens, nothing, asked)
        place = {orjson.loads(extra)["n"]: i for i, extra in enumerate(dataset.column("extra"))}
        kept = set(tokens.rows.tolist())
        reasons = dict(tokens.left_out)
        scored: list[dict[str, Any]] = []
        for n, (row, _, response) in enumerate(wanted):
            i = place[n]
            said = {"file": row.file, "row": row.row, "response": plain_text(response)}
            if i in kept:
                r = int(dataset.responses_of[i][0])
                values = scorer.contributions(int(dataset.prompt_of[i]), r)
                scored.append({**said, "reward": float(values.sum()), "tokens": len(tokens.responses[r])})
            else:
                scored.append({**said, "reward": None, "reason": reasons[i]})
    return scored + bad


def _stops(model: Any) -> int | list[int] | None:
    """The tokens that end a turn, as the model's generation config says; a reward model has none."""
    return getattr(getattr(model, "generation_config", None), "eos_token_id", None)


def _recipe_of(folder: Path) -> Recipe:
    if not (folder / "recipe.toml").exists():
        raise DataError(f"{folder} is not a run folder: it has no recipe.toml")
    return load_recipe(folder / "recipe.toml")


def _write_recipe(recipe: Recipe, folder: Path) -> None:
    """The resolved recipe, with full paths, so that the run can be taken up from anywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "recipe.toml"
    if written.exists():
        if load_recipe(written).digest() != recipe.digest():
            raise RecipeError(f"{folder} holds a run of another recipe; choose another folder with -o, or delete it")
        return
    data = recipe.data.model_copy(update={"dataset": str(Path(recipe.data.dataset).resolve())})
    full: dict[str, Any] = {"data": data}
    for name, table in (("model", recipe.model), ("reference", recipe.reference)):
        if table is not None and table.path is not None:
            full[name] = table.model_copy(update={"path": str(Path(table.path).resolve())})
    temporary = written.with_suffix(".tmp")
    temporary.write_text(recipe.model_copy(update=full).to_toml(), encoding="utf-8")
    temporary.replace(written)


def _write_left_out(folder: Path, prepared: Prepared) -> None:
    """Every judgement that training leaves out, with its reason and where it stood in the input."""
    lines = [
        {"row": prepared.dataset.row_id(row), "reason": reason, "origins": prepared.dataset.origins(row)}
        for row, reason in prepared.left_out
    ]
    (folder / "left_out.jsonl").write_bytes(
        b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines)
    )


def _counts(left_out: Sequence[tuple[int, str]]) -> dict[str, int]:
    return dict(Counter(reason for _, reason in left_out).most_common())
