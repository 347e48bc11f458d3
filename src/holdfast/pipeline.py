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
from holdfast.data.views import Comparisons, comparisons
from holdfast.data.weights import ZERO, judgement_weights
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
from holdfast.language.adapters import attach, bind_adapter, is_adapted, merged, save_adapter, trained_on
from holdfast.language.adapters import facts as adapter_facts
from holdfast.language.debias import Nuisance, leaning, nuisance
from holdfast.language.objectives import LanguageObjective
from holdfast.language.planning import by_prompt
from holdfast.language.policy import (
    Policy,
    RewardModel,
    base_digest,
    fresh_weights,
    load_base,
    longest_input,
    model_folder,
    reads_pairs,
    save_model,
    scorer_on,
)
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
from holdfast.language.scoring import PolicyScorer, RewardScorer
from holdfast.language.scratch import dataset_texts, make_model, train_tokenizer
from holdfast.language.terms import Asked, Fed, View, apart, fed, feed, read_objective, refuse_weights
from holdfast.language.tokens import Tokens, decode_pieces, tokenise, tokenizer_digest, tokens_of
from holdfast.recipe import ControlRecipe, Recipe, ReferenceTable, TrackTable, read_recipe
from holdfast.report.page import write_report
from holdfast.report.trackers import require, track
from holdfast.training.checkpoint import trained_state, weights_digest
from holdfast.training.determinism import deterministic, environment_digest
from holdfast.training.fit import fit
from holdfast.training.ledger import read_head
from holdfast.training.objective import Rows
from holdfast.training.ranks import here, together
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
    objective: LanguageObjective
    rows: Rows
    held_out: np.ndarray | None
    facts: dict[str, Any]
    left_out: list[tuple[int, str]]


def train(
    recipe: Recipe | ControlRecipe | str | Path | Mapping[str, Any],
    out: str | Path,
    settings: Sequence[str] = (),
    quiet: bool = False,
    allow_environment_change: bool = False,
) -> Run:
    """Train what `recipe` says into the folder `out`; a folder that was interrupted goes on where its last checkpoint stands.

    Raises RecipeError, DataError or IntegrityError naming what is wrong, before the first step wherever it can be known by then.
    """
    recipe = recipe if isinstance(recipe, Recipe | ControlRecipe) else read_recipe(recipe, settings)
    folder = Path(out)
    require(recipe.track.to)
    if isinstance(recipe, ControlRecipe):
        return _train_control(recipe, folder, quiet, allow_environment_change)
    with together(recipe.run) as ranks, deterministic(recipe.run):
        prepared = prepare(recipe, folder, quiet)
        ranks.first(lambda: _write_left_out(folder, prepared))
        done = fit(
            prepared.objective,
            prepared.rows,
            recipe.train,
            recipe.run,
            folder,
            facts=prepared.facts,
            held_out=prepared.held_out,
            on_final=lambda temporary: _save(prepared, temporary),
            quiet=quiet,
            allow_environment_change=allow_environment_change,
        )
        evaluated = folder / "evaluations" / HELD_OUT / "metrics.json"
        if done.stopped != "interrupted" and not ranks.first(evaluated.exists):
            if _compares_held_out(recipe, prepared.dataset, folder):
                evaluate(folder)
            ranks.first(lambda: _shown(folder, recipe))
    return Run(folder, done.steps, done.ledger_head, done.weights_digest, done.stopped)


def _train_control(recipe: ControlRecipe, folder: Path, quiet: bool, allow_environment_change: bool) -> Run:
    """The same for episodes: `control.flow` says what is trained on what."""
    from holdfast.control import flow

    prepared = flow.prepare(recipe)
    _write_recipe(recipe, folder)
    done = flow.train(prepared, folder, quiet, allow_environment_change)
    if done.stopped != "interrupted" and not (folder / "evaluations" / HELD_OUT / "metrics.json").exists():
        evaluate(folder)
        write_report(folder)
        track(folder, recipe.track.to)
    return Run(folder, done.steps, done.ledger_head, done.weights_digest, done.stopped)


def _shown(folder: Path, recipe: Recipe) -> None:
    write_report(folder)
    track(folder, recipe.track.to)


def _save(prepared: Prepared, folder: Path) -> None:
    """The result as an ordinary folder: a model's, or an adapter's, with the merged model in `merged` where that is asked for."""
    recipe, model, tokenizer = prepared.recipe, prepared.objective.model, prepared.tokenizer
    if recipe.adapter is None:
        wrapped = prepared.objective.wrapped
        if isinstance(wrapped, RewardModel) and wrapped.heads > 1:
            return wrapped.save(tokenizer, folder)
        return save_model(model, tokenizer, folder)
    # A base that the run made itself lies at a fixed place beside the adapter, so that the same run elsewhere has the same bytes.
    path = recipe.model.path
    where = recipe.model.hub or (str(model_folder(Path(path)).resolve()) if path else "../base/model")
    base, revision = prepared.facts["base"], recipe.model.revision
    save_model(model, tokenizer, folder, write=lambda inside: save_adapter(model, inside, where, base, revision))
    if bind_adapter(recipe.adapter).merge:
        save_model(merged(model), tokenizer, folder / "merged")


def _compares_held_out(recipe: Recipe, dataset: Dataset, folder: Path) -> bool:
    """Whether there is anything to evaluate on: labels alone compare no responses, and a split may hold nothing out."""
    split = load_split(folder, dataset)
    rows = [split.parts.get(part, np.zeros(0, dtype=np.int64)) for part in recipe.evaluate.parts]
    return len(comparisons(dataset, np.concatenate(rows), recipe.data.score_margin)) > 0 if rows else False


def resume(run: str | Path, quiet: bool = False, allow_environment_change: bool = False) -> Run:
    """Go on with an interrupted run. The bytes are those of a run that was never interrupted."""
    return train(_any_recipe_of(Path(run)), run, quiet=quiet, allow_environment_change=allow_environment_change)


def prepare(recipe: Recipe, folder: Path, quiet: bool) -> Prepared:
    """Everything before the first step: data, split, base, tokens, objective. Writes the resolved recipe and the split."""
    asked = read_objective(recipe.objective)
    if recipe.data.weights is not None:
        refuse_weights(asked.terms)
    leant = leaning(asked) if recipe.debias is not None else None
    dataset = open_dataset(recipe.data.dataset)
    if recipe.data.root not in (None, dataset.root):
        raise IntegrityError(f"dataset {dataset.path} has root {dataset.root}, the recipe wants {recipe.data.root}")
    split = make_split(dataset, recipe.data.split)
    ranks = here()
    ranks.first(lambda: _write_recipe(recipe, folder))
    ranks.first(lambda: split.save(folder))
    model, tokenizer = _base(recipe, dataset, split, folder, quiet)
    base = base_digest(model)
    adapter = bind_adapter(recipe.adapter) if recipe.adapter is not None else None
    if adapter is not None and asked.ensemble.heads > 1:
        raise RecipeError(
            f"[objective] heads = {asked.ensemble.heads}: under an [adapter] a reward model has one head; leave one of them out"
        )

    held_out = split.parts.get("validation", np.zeros(0, dtype=np.int64))
    wanted = np.concatenate([split.parts["train"], held_out])
    margin = recipe.data.score_margin
    if margin and (not _has_scores(dataset, wanted) or all(t.function.family in ("sft", "label") for t in asked.terms)):
        raise RecipeError(
            f"[data] score_margin = {margin:g} has no effect: the objective compares no scores; leave it out"
        )
    views = [feed(term, dataset, wanted, margin) for term in asked.terms]
    reads = np.unique(np.concatenate([v.reads for v in views]))
    if not len(reads):
        raise _nothing_left(dataset, asked, _unused(wanted, views))
    with ranks.in_turn():  # what rank 0 has made the others find
        tokens = tokens_of(dataset, reads, tokenizer, recipe.text, **_reading(model))
    final = [feed(term, dataset, tokens.rows, margin, tokens) for term in asked.terms]
    left_out = _unused(wanted, views, tokens, final)
    used = np.unique(np.concatenate([v.row for v in final]))
    train_rows = split.parts["train"][np.isin(split.parts["train"], used)]
    held_out = held_out[np.isin(held_out, used)]
    if not len(train_rows):
        raise _nothing_left(dataset, asked, left_out)
    weights = judgement_weights(dataset, train_rows, recipe.data.weights) if recipe.data.weights is not None else None
    if weights is not None:
        light = weights.of[train_rows] == 0
        left_out += [(int(row), ZERO) for row in train_rows[light]]
        train_rows = train_rows[~light]
    longest = longest_input(model)
    if longest is not None and tokens.facts["longest"] > longest:
        raise DataError(
            f"the longest prompt + response has {tokens.facts['longest']} tokens, {type(model).__name__} reads at most {longest}: "
            f"set text.max_length = {longest}, and text.too_long for what is longer"
        )
    _settle(model, recipe)
    if asked.kind == "reward":
        model = scorer_on(model, tokenizer, seed=recipe.run.seed, heads=asked.ensemble.heads)
    if adapter is not None and asked.ensemble.heads > 1:
        raise RecipeError(
            f"[objective] heads = {asked.ensemble.heads}: an adapter is kept with one score head; leave one out"
        )
    if adapter is not None:
        model = attach(model, adapter, seed=recipe.run.seed, fresh=fresh_weights(model))
    if recipe.run.checkpointing:
        # transformers' newer name first
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    row_weight = weights.of if weights is not None else None
    terms = [fed(term, view, tokens, row_weight) for term, view in zip(asked.terms, final, strict=True)]
    beside = None
    if recipe.debias is not None and leant is not None:
        view, own = final[leant], terms[leant].weights(np.arange(len(final[leant])))
        assert isinstance(view, Comparisons)
        beside = leant, nuisance(recipe.debias, dataset, view, own, train_rows)
    objective = _objective(recipe, asked, model, tokenizer, tokens, terms, base, dataset, beside)
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
        **({"weights": weights.facts} if weights is not None else {}),
        **({"adapter": adapter_facts(model, adapter)} if adapter is not None else {}),
    }
    return Prepared(recipe, dataset, tokenizer, objective, rows, held_out if len(held_out) else None, facts, left_out)


def _base(
    recipe: Recipe, dataset: Dataset, split: Split, folder: Path, quiet: bool
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model that training starts from. From scratch it is made by a run of its own, `sft` in the folder `base`."""
    scratch = recipe.model.scratch
    if scratch is not None and recipe.objective["kind"] == "sft":
        if recipe.adapter is not None:
            raise RecipeError(
                "[adapter] needs a base that has learnt something: sft on model.scratch makes one, without an adapter"
            )
        tokenizer = train_tokenizer(dataset_texts(dataset, split.parts["train"]), scratch.vocab)
        return make_model(scratch, tokenizer, recipe.run.seed), tokenizer
    if scratch is not None:
        train(
            recipe.model_copy(
                update={
                    "data": recipe.data.model_copy(update={"score_margin": 0.0, "weights": None}),
                    "objective": {"kind": "sft"},
                    "train": scratch.train,
                    "reference": None,
                    "adapter": None,
                    "debias": None,
                    "track": TrackTable(),
                }
            ),
            folder / "base",
            quiet=quiet,
        )
    return _start(recipe, folder)


def _start(recipe: Recipe, folder: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """The base where it lies: the folder or hub name of the recipe, or the run in `base` that made it."""
    seed = recipe.run.seed
    if recipe.model.hub is not None:
        return load_base(recipe.model.hub, hub=True, revision=recipe.model.revision, seed=seed)
    return load_base(recipe.model.path or folder / "base", seed=seed)


def _has_scores(dataset: Dataset, rows: np.ndarray) -> bool:
    return "score" in set(dataset.judgements["kind"].take(rows).to_pylist())


def _unused(
    wanted: np.ndarray, views: Sequence[View], tokens: Tokens | None = None, final: Sequence[View] = ()
) -> list[tuple[int, str]]:
    """(row, reason) of each judgement that no term uses, in the order of `wanted`."""
    reasons: dict[int, str] = {}
    for view in views:
        reasons |= dict(view.left_out)
    if tokens is not None:
        reasons |= dict(tokens.left_out)
    for view in final:
        reasons |= dict(view.left_out)
    used = {int(r) for view in final for r in view.row}
    return [(int(r), reasons[int(r)]) for r in wanted if int(r) in reasons and int(r) not in used]


def _nothing_left(dataset: Dataset, asked: Asked, left_out: Sequence[tuple[int, str]]) -> DataError:
    return DataError(f"no judgement of {dataset.path} is left to train {asked.kind} on: {_counts(left_out)}")


def _objective(
    recipe: Recipe,
    asked: Asked,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Tokens,
    terms: Sequence[Fed],
    base: str,
    dataset: Dataset,
    beside: tuple[int, Nuisance] | None = None,
) -> LanguageObjective:
    """The objective that [objective] names, over its fed terms."""
    micro = recipe.train.micro_batch or recipe.train.batch
    judge: RewardScorer | PolicyScorer
    if asked.kind == "reward":
        _reference_kind(recipe, asked)
        scorer = RewardModel.on(model, tokenizer, seed=recipe.run.seed, compute=recipe.model.compute)
        scorer.divide()
        judge = RewardScorer(scorer, tokens, asked.judges, micro, asked.ensemble)
    else:
        keep, direct = bool(recipe.run.keep_probabilities), not here().sharded
        policy = Policy(model, recipe.model.compute, keep=keep, direct=direct)
        mentions = [term.mentions(np.arange(len(term.view))) for term in terms]
        prompts, responses = (np.concatenate(each).tolist() for each in zip(*mentions, strict=True))
        table = recipe.reference
        elsewhere = table is not None and (table.path or table.hub)
        in_it = recipe.adapter is not None and bind_adapter(recipe.adapter).keeps_base
        copied = _reference_kind(recipe, asked) == "frozen" and not elsewhere and not in_it
        twin = frozen(policy) if copied else None  # while its weights are still in one place
        policy.divide()
        reference = _reference(recipe, asked, policy, twin, base, tokens, by_prompt(prompts, responses))
        judge = PolicyScorer(policy, tokens, asked.judges, reference, micro)
    return LanguageObjective(
        judge,
        terms,
        micro,
        micro_tokens=recipe.train.micro_tokens,
        seed=recipe.run.seed,
        row_ids=dataset.row_ids if asked.ensemble.heads > 1 else None,
        beside=beside,
    )


def _groups(view: Comparisons) -> Sequence[Group]:
    return by_prompt(np.repeat(view.prompt, 2).tolist(), np.stack([view.a, view.b], axis=1).ravel().tolist())


def _reference_kind(recipe: Recipe, asked: Asked) -> str:
    """Which reference a run of this objective has. RecipeError where [reference] says one that it cannot use."""
    return choose(
        recipe.reference,
        asked.kind,
        ratio=asked.needs_reference,
        distribution=asked.needs_distribution,
        adapter=recipe.adapter is not None,
    )


def _reference(
    recipe: Recipe,
    asked: Asked,
    policy: Policy,
    twin: Policy | None,
    base: str,
    tokens: Tokens,
    groups: Sequence[Group],
) -> Reference | None:
    """The reference of a run that is about to start: `policy` is still what training starts from, on the base `base`; `twin` stays that."""
    kind, table = _reference_kind(recipe, asked), recipe.reference
    if kind == "none":
        return None
    if kind == "moving":
        assert table is not None and table.tau is not None
        if here().sharded:
            raise RecipeError(
                "[reference] kind = 'moving' follows whole weights, and [run] parallel = 'sharded' divides them: take 'replicated'"
            )
        return Moving(policy, base, alpha=table.alpha or 1.0, tau=table.tau)
    adapter = bind_adapter(recipe.adapter) if recipe.adapter is not None else None
    if kind == "adapter-off":
        if adapter is not None and not adapter.keeps_base:
            raise RecipeError(
                f"[reference] kind = 'adapter-off': an adapter of kind {adapter.kind!r} changes the base's weights when it starts, so the base "
                "is not what is left without it; take 'cached' or 'frozen'"
            )
        return Live(without_adapter(policy), base, kind=kind)
    if table is not None and (table.path or table.hub):
        other, weights = _other_reference(table, recipe, tokens)
        if kind == "frozen" and other.compute != policy.compute:
            raise RecipeError(
                f"[reference] kind = 'frozen' shares its batches with the policy, which is computed {policy.compute}; the reference cannot "
                f"({other.why}): set model.compute = 'padded', or take kind = 'cached'"
            )
    elif adapter is not None and adapter.keeps_base:
        other, weights = without_adapter(policy), base
    elif kind == "frozen":
        assert twin is not None
        other, weights = twin, base
    else:  # an adapter that changed the base gives it back to float error; its artefact goes under a name of its own
        other, weights = (
            policy,
            base if adapter is None else f"{base} {adapter.kind} {weights_digest(trained_state(policy.model))}",
        )
    if kind == "frozen":
        return Live(other, weights, weights == base)
    environment = environment_digest(recipe.run)
    return reference_logps(other, weights, tokens, groups, environment, is_start=weights.startswith(base))


def _other_reference(table: ReferenceTable, recipe: Recipe, tokens: Tokens) -> tuple[Policy, str]:
    """The policy that [reference] names by path or hub, and its weights digest. Its tokens must be the policy's."""
    name = str(table.path or table.hub)
    model, tokenizer = load_base(name, hub=table.hub is not None, revision=table.revision)
    weights = weights_digest(model)
    if tokenizer_digest(tokenizer) != tokens.facts["tokenizer"]:
        raise RecipeError(
            f"[reference] {name} has another tokenizer than the model: log-probabilities of other tokens cannot be compared"
        )
    _settle(model, recipe).requires_grad_(False).eval()
    policy = Policy(model, recipe.model.compute)
    policy.divide()
    return policy, weights


def _settle(model: Any, recipe: Recipe) -> Any:
    """The model where [run] says and its weights in their type; an adapter's stay in float32, a head beside it does not.

    Buffers stay as they are: the frequencies of rotary positions, in eight bits, would put words in wrong places.
    """
    model.to("cpu" if here().sharded else recipe.run.device)  # where weights are divided no device need hold them all
    adapted, dtype = is_adapted(model), getattr(torch, recipe.run.dtype)
    for name, tensor in model.named_parameters():
        if not (adapted and tensor.requires_grad and "modules_to_save" not in name):
            tensor.data = tensor.data.to(dtype)
    return model


def replay(run: str | Path, first: int, last: int) -> dict[str, Any]:
    """Recompute steps `first` to `last` (both included) and compare every ledger entry to the byte."""
    folder = Path(run)
    recipe = _any_recipe_of(folder)
    if isinstance(recipe, ControlRecipe):
        from holdfast.control import flow

        return flow.replay(recipe, folder, first, last)
    with together(recipe.run), deterministic(recipe.run):
        p = prepare(recipe, folder, quiet=True)
        return recompute(
            p.objective, p.rows, recipe.train, recipe.run, folder, first, last, facts=p.facts, held_out=p.held_out
        )


def evaluate(run: str | Path, on: str | Path | None = None) -> dict[str, Any]:
    """Score every held-out judgement of a run (or every one of another dataset) into a table; all figures are derived from it.

    Writes RUN/evaluations/NAME/ (rows.parquet, metrics.json, examples.json); NAME is `held-out`, or the other dataset's root.
    """
    folder = Path(run)
    recipe = _any_recipe_of(folder)
    if isinstance(recipe, ControlRecipe):
        from holdfast.control import flow

        return flow.evaluate(recipe, folder, on)
    with together(recipe.run) as ranks, deterministic(recipe.run):
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
        model, tokenizer = load_base(folder, keep_adapter=True)
        margin, wanted = recipe.data.score_margin, np.concatenate(list(parts.values()))
        view = comparisons(dataset, wanted, margin)
        if not len(view.row):
            raise DataError(f"nothing in {dataset.path} compares two responses: {_counts(view.left_out)}")
        tokens = tokens_of(dataset, view.reads, tokenizer, recipe.text, **_reading(model))
        before, view = view, apart(comparisons(dataset, tokens.rows, margin), tokens)
        left_out = _unused(wanted, [before], tokens, [view])
        scorer, reference = _scorer(recipe, folder, model, tokenizer, tokens, _groups(view))
        scores = scorer.scores(view, reference)

        words = BagOfWords.fit(own, comparisons(own, split.parts["train"], margin))
        table = evaluation_table(
            dataset,
            view,
            parts,
            {
                k: scores[k]
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
            "weights_digest": weights_digest(trained_state(model)),
            "objective": recipe.objective,
            "left_out": _counts(left_out),
            "bag of words": words.facts,
        }
        shown = [
            _example(dataset, view, i, scorer, tokenizer, str(table["part"][i]), table["category"][i].as_py())
            for i in choose_examples(table, recipe.evaluate.examples)
        ]
        to, draws, seed = folder / "evaluations" / name, recipe.evaluate.bootstrap, recipe.run.seed
        return ranks.first(lambda: write_evaluation(to, table, facts, examples=shown, bootstrap=draws, seed=seed))


def _scorer(
    recipe: Recipe,
    folder: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Tokens,
    groups: Sequence[Group],
) -> tuple[RewardScorer | PolicyScorer, Policy | None]:
    """A finished run's model as what scores responses, and the reference policy where the run has one."""
    asked = read_objective(recipe.objective)
    micro = recipe.train.micro_batch or recipe.train.batch
    _settle(model, recipe)
    if asked.kind == "reward":
        scorer = RewardModel.on(model, tokenizer, seed=recipe.run.seed, compute=recipe.model.compute)
        if asked.ensemble.heads > 1:
            scorer.load_heads(folder / "model")
        scorer.divide()
        return RewardScorer(scorer, tokens, asked.judges, micro, asked.ensemble), None
    policy = Policy(model, recipe.model.compute)
    policy.divide()
    if not asked.needs_reference:
        return PolicyScorer(policy, tokens, asked.judges, None, micro), None
    table_of = recipe.reference
    if table_of is not None and (table_of.path or table_of.hub):
        reference, weights = _other_reference(table_of, recipe, tokens)
    elif recipe.adapter is not None and bind_adapter(recipe.adapter).keeps_base:  # no second copy: its base is in it
        reference, weights = without_adapter(policy), trained_on(folder / "model")
    else:  # also where the reference moved: what a run has learnt is told from where it began
        base, _ = _start(recipe, folder)
        weights = weights_digest(base)
        reference = Policy(_settle(base, recipe), recipe.model.compute)
        reference.divide()
    artefact = reference_logps(reference, weights, tokens, groups, environment_digest(recipe.run))
    return PolicyScorer(policy, tokens, asked.judges, artefact, micro), reference


def _example(
    dataset: Dataset,
    view: Comparisons,
    edge: int,
    scorer: RewardScorer | PolicyScorer,
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
    with together(recipe.run) as ranks, deterministic(recipe.run), tempfile.TemporaryDirectory() as scratch:
        dataset = freeze_records(
            (
                Judgement("score", prompt, (response,), value=0.0, extra={"n": n})
                for n, (_, prompt, response) in enumerate(wanted)
            ),
            Path(scratch) / "dataset",
        )
        model, tokenizer = load_base(folder, keep_adapter=True)
        tokens = tokenise(dataset, np.arange(dataset.n_judgements), tokenizer, recipe.text, **_reading(model))
        asked = by_prompt(dataset.prompt_of[tokens.rows].tolist(), dataset.responses_of.take(tokens.rows).flat.tolist())
        scorer, _ = _scorer(recipe, folder, model, tokenizer, tokens, asked)
        place = {orjson.loads(extra)["n"]: i for i, extra in enumerate(dataset.column("extra"))}
        kept = set(tokens.rows.tolist())
        reasons = dict(tokens.left_out)
        mine: list[tuple[int, dict[str, Any]]] = []
        for n, counts in ranks.deal([n for n in range(len(wanted)) if place[n] in kept]):
            p, r = int(dataset.prompt_of[place[n]]), int(dataset.responses_of[place[n]][0])
            reward = scorer.reward_of(p, r)
            unsure = scorer.uncertainty(p, r) if isinstance(scorer, RewardScorer) else {}
            if counts:
                mine.append((n, {"reward": reward, "tokens": len(tokens.responses[r]), **unsure}))
        rewards = {n: said for theirs in ranks.tell(mine) for n, said in theirs}
        scored: list[dict[str, Any]] = []
        for n, (row, _, response) in enumerate(wanted):
            said = rewards.get(n) or {"reward": None, "reason": reasons[place[n]]}
            scored.append({"file": row.file, "row": row.row, "response": plain_text(response), **said})
    return scored + bad


def _reading(model: Any) -> dict[str, Any]:
    """How a model reads text: as a pair, if it is an encoder; else up to a token that its generation config says ends a turn."""
    if reads_pairs(model):
        return {"pair": True}
    return {"stops": getattr(getattr(model, "generation_config", None), "eos_token_id", None)}


def _any_recipe_of(folder: Path) -> Recipe | ControlRecipe:
    if not (folder / "recipe.toml").exists():
        raise DataError(f"{folder} is not a run folder: it has no recipe.toml")
    return read_recipe(folder / "recipe.toml")


def _recipe_of(folder: Path) -> Recipe:
    recipe = _any_recipe_of(folder)
    if isinstance(recipe, ControlRecipe):
        raise DataError(f"{folder} is a run of control: it learnt from episodes, and scores no responses")
    return recipe


def _write_recipe(recipe: Recipe | ControlRecipe, folder: Path) -> None:
    """The resolved recipe, with full paths, so that the run can be taken up from anywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "recipe.toml"
    if written.exists():
        if read_recipe(written).digest() != recipe.digest():
            raise RecipeError(f"{folder} holds a run of another recipe; choose another folder with -o, or delete it")
        return
    places = {"data": ("dataset",), "model": ("path",), "reference": ("path",), "control": ("start", "reference")}
    full: dict[str, Any] = {}
    for name, keys in places.items():
        if (table := getattr(recipe, name, None)) is not None:
            given = {k: str(Path(v).resolve()) for k in keys if (v := getattr(table, k, None)) is not None}
            full[name] = table.model_copy(update=given)
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
