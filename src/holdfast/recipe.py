"""What a recipe may say: TOML in, a resolved recipe out.

A recipe is one TOML file that says all of a run. Every table and key is listed here with its default; a key that is not listed is an
error that names the ones that are. Nothing configured is ever silently ignored: a table that belongs to one function (a loss) is bound
to that function's keyword arguments by `bind`, which refuses what the function does not take.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from holdfast.errors import RecipeError

Positive = Annotated[int, Field(gt=0)]
T = typing.TypeVar("T", bound="Table")
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Table(BaseModel):
    """One table of a recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RunTable(Table):
    """[run]: what the run is computed with. Digests are the same on the same machine with the same values."""

    name: str = Field("run", description="the run goes to runs/NAME where no folder is given")
    seed: int = Field(0, description="of the order, dropout and fresh weights")
    threads: int = Field(2, ge=1, le=256, description="CPU threads; sums depend on it, so it is part of the recipe")
    device: str = Field("cpu", description="where tensors lie: cpu, cuda, cuda:1")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the weights in forward and backward; the optimiser learns in float32"
    )
    checkpointing: bool | None = Field(
        None,
        description="layers are computed again in the backward instead of kept: less memory, about a third more time",
    )
    keep_probabilities: bool | None = Field(
        None,
        description="each response token's probabilities over the vocabulary stay in memory for the backward instead of being made again: "
        "one product with the head less, 4 bytes x vocabulary a token more",
    )
    parallel: Literal["replicated", "sharded"] | None = Field(
        None,
        description="several processes: each with all weights (default), or with its share of them (FSDP2)",
    )


class SplitTable(Table):
    """[data.split]: a partition by prompt group. What is in no named part is `train`; held-out categories are the part `ood`."""

    seed: int = 0
    validation: Fraction = Field(0.05, description="share of prompts for held-out figures while training")
    test: Fraction = Field(0.1, description="share of prompts that nothing is chosen on")
    stratify: bool = Field(True, description="keep the shares within every category")
    holdout: tuple[str, ...] = Field((), description="categories held out as a whole")
    group: str | None = Field(
        None,
        description="what no two parts may share beside the prompt: near-duplicates (of prompts), source, annotator, or another "
        "column (category, licence, extra.NAME); prompts that share it stay together",
    )

    @field_validator("group")
    @classmethod
    def _by_prompt(cls, group: str | None) -> str | None:
        return None if group == "prompt" else group

    @model_validator(mode="after")
    def _leave_some_to_train_on(self) -> SplitTable:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation + test is {self.validation + self.test:g}: nothing is left to train on")
        return self


class WeightTable(Table):
    """[data.weights]: what a judgement weighs in the loss: the product of what is named, scaled to a mean of 1 over the rows trained on."""

    reliability: Literal["dawid-skene"] | None = Field(
        None, description="2 q - 1 for an annotator who is right with chance q; coin flips weigh nothing"
    )
    balance: tuple[str, ...] = Field(
        (),
        description="columns whose cells weigh the same in all: category, source, annotator, licence, extra.NAME; length (of the prompt: "
        "short, medium, long), longer (whether the preferred response is the longer one)",
    )
    column: str | None = Field(
        None, description="a column of numbers, such as extra.weight; a row without one weighs 1"
    )

    @model_validator(mode="after")
    def _weigh_something(self) -> WeightTable:
        if self.reliability is None and not self.balance and self.column is None:
            raise ValueError("name what to weigh by: reliability, balance or column")
        return self


class DataTable(Table):
    """[data]: the frozen dataset and its split. `root`, where given, must be the dataset's root."""

    dataset: str = Field(description="the dataset's folder")
    root: str | None = Field(None, description="the root it must have")
    score_margin: float = Field(
        0.0, ge=0, description="scores of one prompt are compared where they differ by more than this"
    )
    split: SplitTable = SplitTable()
    weights: WeightTable | None = None


class TrainTable(Table):
    """[train]: the loop. Counts are optimiser steps; `batch` counts judgements per step, over all micro-batches."""

    batch: Positive = 16
    micro_batch: Positive | None = Field(None, description="judgements per forward; default: the whole batch at once")
    micro_tokens: Positive | None = Field(
        None,
        description="or tokens per forward: prompt groups are put together up to so many; a judgement alone may have more",
    )
    per_prompt: Positive | None = Field(None, description="most judgements of one prompt that a step may take")
    steps: Positive | None = Field(None, description="how long; or say epochs (default: one)")
    epochs: float | None = Field(None, gt=0)
    lr: float = Field(1e-5, gt=0, description="the largest learning rate")
    warmup: int | float = Field(0, ge=0, description="steps of linear warm-up; below 1: a share of all steps")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="after the warm-up")
    lr_end: float = Field(0.0, ge=0, description="the schedule's last rate, as a share of lr")
    weight_decay: float = Field(0.0, ge=0, description="of matrices; not of norms and biases")
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0 for no clipping")
    eval_every: int | None = Field(None, ge=1, description="steps between held-out figures")
    eval_rows: Positive | None = Field(None, description="held-out judgements per evaluation; default: all")
    stop_on: str | None = Field(None, description="held-out figure to stop on; its best weights are the result")
    patience: Positive = Field(3, description="evaluations without a better figure before it stops")
    checkpoint_every: Positive = Field(50, description="steps between checkpoints")
    keep_checkpoints: Positive = Field(2, description="how many stay on disk, beside the best")

    @model_validator(mode="after")
    def _consistent(self) -> TrainTable:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs both say how long to train; give one")
        if isinstance(self.warmup, float) and self.warmup >= 1:
            raise ValueError(f"warmup {self.warmup:g} is neither whole steps nor a share below 1")
        if self.stop_on is not None and self.eval_every is None:
            raise ValueError("stop_on needs eval_every: the figure to stop on must be measured")
        if self.micro_batch is not None and self.micro_batch > self.batch:
            raise ValueError(f"micro_batch {self.micro_batch} is larger than batch {self.batch}")
        if self.micro_batch is not None and self.micro_tokens is not None:
            raise ValueError("micro_batch and micro_tokens both say how much a forward takes; give one")
        return self


class ScratchTable(Table):
    """[model.scratch]: a tokenizer and a small Llama-shaped decoder, trained by `sft` on the dataset's own preferred responses."""

    vocab: int = Field(4096, ge=300)
    hidden: Positive = 256
    layers: Positive = 4
    heads: Positive = 4
    kv_heads: Positive | None = None
    ffn: Positive | None = None
    context: Positive = 1024
    train: TrainTable = TrainTable(epochs=1, lr=1e-3, warmup=20)

    @model_validator(mode="after")
    def _heads_divide(self) -> ScratchTable:
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ValueError(f"hidden {self.hidden} must be an even multiple of heads {self.heads}")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        return self


class ModelTable(Table):
    """[model]: exactly one of a `transformers` folder (or a run folder), a hub name, or a model made from nothing."""

    path: str | None = Field(None, description="a transformers folder, or a run's")
    hub: str | None = Field(None, description="owner/name; needs a network")
    revision: str | None = Field(None, description="of the hub's model")
    scratch: ScratchTable | None = None
    compute: Literal["auto", "packed", "padded"] = Field(
        "auto", description="prompt groups packed, or plain padded sequences"
    )

    @model_validator(mode="after")
    def _one_source(self) -> ModelTable:
        given = [k for k in ("path", "hub", "scratch") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"say exactly one of path, hub, scratch; given: {', '.join(given) or 'none'}")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision goes with hub")
        return self


class ReferenceTable(Table):
    """[reference]: what log-ratios are taken to. Left out, a run has what its loss needs: none, the cached base, or a frozen copy of it."""

    kind: Literal["cached", "frozen", "adapter-off", "none", "moving"] | None = Field(
        None,
        description="numbers computed once; a second copy in memory; the base under the adapter; none; or one that follows the policy",
    )
    path: str | None = Field(None, description="another model than the base: its folder, or a run's (cached, frozen)")
    hub: str | None = Field(None, description="the same by owner/name; needs a network")
    revision: str | None = Field(None, description="of the hub's model")
    alpha: float | None = Field(
        None, gt=0, le=1, description="moving: the policy's share in an update; 1 (default) replaces it"
    )
    tau: Positive | None = Field(None, description="moving: optimiser steps between updates")

    @model_validator(mode="after")
    def _of_this_kind(self) -> ReferenceTable:
        if self.path is not None and self.hub is not None:
            raise ValueError("path and hub both name the reference; give one")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision goes with hub")
        if (self.path or self.hub) and self.kind not in (None, "cached", "frozen"):
            raise ValueError(f"kind = {self.kind!r} starts from the base: path and hub go with 'cached' and 'frozen'")
        if self.kind == "moving" and self.tau is None:
            raise ValueError("kind = 'moving' needs tau, the optimiser steps between updates")
        if self.kind != "moving" and (self.alpha is not None or self.tau is not None):
            raise ValueError("alpha and tau go with kind = 'moving'")
        return self


class TextTable(Table):
    """[text]: how text becomes tokens. What happens to a row that is too long is the user's choice; `refuse` stops and counts them."""

    max_length: Positive = Field(1024, description="tokens of prompt + response")
    too_long: Literal["refuse", "drop", "truncate-prompt-left", "truncate-response-right"] = Field(
        "refuse", description="what happens to a row that is longer"
    )


class DebiasTable(Table):
    """[debias]: surface features with a term of their own beside the reward's margin while training, left out of every score."""

    features: tuple[str, ...] = Field(
        min_length=1,
        description="length, words, lines, bullets, numbered items, headings, bold, code, refusal and more (an unknown one is told "
        "all), position (which was shown first); each as the difference of the two responses",
    )
    share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="how much of their first fit, to the training pairs alone, their weights begin with: below 1 some of what a feature "
        "explains is left for the reward to learn, since longer answers may well be better ones too",
    )
    rate: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of a Newton step the weights take after each step; 0 holds what they begin with",
    )


class EvaluateTable(Table):
    """[evaluate]: what follows training."""

    parts: tuple[str, ...] = Field(("validation", "test", "ood"), description="parts of the split that are scored")
    bootstrap: Positive = Field(1000, description="resamples of prompts per interval")
    examples: int = Field(8, ge=0, description="comparisons shown with each token's contribution")


class TrackTable(Table):
    """[track]: where figures are shown beside the run's own report, under TRL's names. It makes no other run: no digest has it."""

    to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        (), description="written when the run ends, each by its own library: tensorboard, wandb, mlflow"
    )


class Written(Table):
    """A whole recipe: what is written to a run's folder, and named by its digest."""

    def to_toml(self) -> str:
        import tomli_w

        return tomli_w.dumps(_drop_none(self.model_dump(mode="json")))

    def digest(self) -> str:
        """SHA-256 of what the recipe says, less where things lie and are shown: a moved folder is the same recipe."""
        return digest_of(tomllib.loads(self.to_toml()))


class Recipe(Written):
    """All of a run. `objective` and `adapter` hold `kind` and that kind's own keys, bound when it is built."""

    run: RunTable = RunTable()
    data: DataTable
    model: ModelTable
    text: TextTable = TextTable()
    objective: dict[str, Any]
    reference: ReferenceTable | None = None
    adapter: dict[str, Any] | None = Field(
        None,
        description="`kind` (lora, dora, rslora, pissa, olora, loha, lokr, vera, randlora, delora, gralora, ia3, oft, boft, hra, miss, "
        "ln_tuning), the keys that peft gives that kind, and `merge = true` for a merged model beside the adapter",
    )
    debias: DebiasTable | None = None
    train: TrainTable = TrainTable(epochs=1)
    evaluate: EvaluateTable = EvaluateTable()
    track: TrackTable = TrackTable()

    @model_validator(mode="after")
    def _kind(self) -> Recipe:
        if not isinstance(self.objective.get("kind"), str):
            raise ValueError('[objective] needs kind = "sft", "reward", "dpo", ...')
        if self.adapter is not None and not isinstance(self.adapter.get("kind"), str):
            raise ValueError('[adapter] needs kind = "lora", "dora", "vera", ...')
        return self


class ControlSplit(Table):
    """[data.split]: a partition by episode. What is in neither part is `train`."""

    seed: int = 0
    validation: Fraction = Field(0.1, description="share of episodes for held-out figures")
    test: Fraction = Field(0.0, description="share of episodes that nothing is chosen on")


class ControlData(Table):
    """[data] of a control recipe: a frozen log of episodes and its split."""

    dataset: str = Field(description="the log's folder")
    root: str | None = Field(None, description="the root it must have")
    split: ControlSplit = ControlSplit()


class ControlTable(Table):
    """[control]: networks, and how many learn at once. Its presence makes a recipe one of control."""

    replicas: int = Field(1, ge=1, le=1000, description="members trained together: seeds run.seed, run.seed + 1, ...")
    bootstrap: bool = Field(False, description="each member learns from its own resample of the episodes")
    updates: Positive = Field(100, description="gradient updates in one step of the run")
    hidden: tuple[Positive, ...] = Field((256, 256), description="widths of the hidden layers")
    discount: float | tuple[float, ...] = Field(0.99, description="one, or one for each replica")
    standardise: bool = Field(True, description="observations by the training episodes' mean and spread")
    unequal_lengths: bool = Field(
        False, description="whether segments of unequal length may be compared, by their sums"
    )
    start: str | None = Field(None, description="a run whose policy this one starts from")
    reference: str | None = Field(None, description="cpl: a run whose policy the log-ratio is to")
    simulate: str | None = Field(
        None, description="an environment in which held-out figures play the policy; no training data"
    )
    episodes: Positive = Field(10, description="episodes played by each replica per evaluation")

    @model_validator(mode="after")
    def _discounts(self) -> ControlTable:
        many = self.discount if isinstance(self.discount, tuple) else (self.discount,)
        if len(many) not in (1, self.replicas) or not all(0 <= g <= 1 for g in many):
            raise ValueError(
                f"discount {self.discount} should be one number from 0 to 1, or one for each of {self.replicas} replicas"
            )
        return self


class ControlTrain(TrainTable):
    """[train] of a control recipe. `batch` counts rows (steps of the log, or judgements) per update and replica; `steps` counts
    steps of the run, each of `[control] updates` updates."""

    batch: Positive = 256
    steps: Positive | None = 100
    lr: float = Field(3e-4, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    clip: float = Field(0.0, ge=0, le=0, description="0: members must not clip each other")
    checkpoint_every: Positive = 10

    @model_validator(mode="after")
    def _no_text(self) -> ControlTrain:
        for key in ("micro_batch", "micro_tokens", "per_prompt", "epochs"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key} has no effect in control; leave it out")
        if self.weight_decay:
            raise ValueError("weight_decay has no effect in control; leave it out")
        return self


class ControlRecipe(Written):
    """All of a control run. `objective` holds `kind` and that algorithm's own keys."""

    run: RunTable = RunTable()
    data: ControlData
    control: ControlTable
    objective: dict[str, Any]
    train: ControlTrain = ControlTrain()
    track: TrackTable = TrackTable()

    @model_validator(mode="after")
    def _kind(self) -> ControlRecipe:
        if not isinstance(self.objective.get("kind"), str):
            raise ValueError('[objective] needs kind = "cql", "iql", "bc", ...')
        if self.run.device != "cpu" or self.run.dtype != "float32":
            raise ValueError("[run] control computes on the cpu in float32: its networks are small")
        for key in ("checkpointing", "keep_probabilities", "parallel"):
            if getattr(self.run, key) is not None:
                raise ValueError(f"[run] {key} has no effect in control; leave it out")
        return self


def digest_of(said: Mapping[str, Any]) -> str:
    """The digest of a resolved recipe as it is written, so that a key which a later version adds does not change an old run's.

    Paths are left out: the dataset's root and the base model's digest, which the ledger commits to beside this, say what lay there.
    """
    paths = {
        "data": ("dataset", "root"),
        "model": ("path",),
        "reference": ("path",),
        "control": ("start", "reference"),
    }
    said = {t: table for t, table in said.items() if t != "track"}  # where figures are shown
    kept = {t: {k: v for k, v in table.items() if k not in paths.get(t, ())} for t, table in said.items()}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_recipe(source: str | Path | Mapping[str, Any], settings: Sequence[str] = ()) -> Recipe:
    """As `read_recipe`, where text is to be learnt from: a control recipe is a RecipeError."""
    recipe = read_recipe(source, settings)
    if isinstance(recipe, ControlRecipe):
        where = "recipe" if isinstance(source, Mapping) else str(source)
        raise RecipeError(
            f"{where} has a table [control]: it trains on episodes, and what was asked needs prompts and responses"
        )
    return recipe


def read_recipe(source: str | Path | Mapping[str, Any], settings: Sequence[str] = ()) -> Recipe | ControlRecipe:
    """A recipe, of control where it has a table [control], from a TOML file or a mapping.

    `key=value` settings (dotted keys, TOML values) are laid over it.

    Raises RecipeError naming the key, its value and what is allowed.
    """
    if isinstance(source, Mapping):
        said, where = json.loads(json.dumps(source)), "recipe"
    else:
        path = Path(source)
        where = str(path)
        try:
            said = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RecipeError(f"recipe {where} does not exist") from None
        except IsADirectoryError:
            raise RecipeError(f"recipe {where} is a folder; name the TOML file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
            raise RecipeError(f"recipe {where} is not TOML: {problem}") from None
    for setting in settings:
        _lay_over(said, setting)
    return parse(ControlRecipe, said, where) if "control" in said else parse(Recipe, said, where)


def parse(schema: type[T], said: Mapping[str, Any], where: str) -> T:
    """Validate a mapping against a table's schema; one RecipeError with every problem in it."""
    try:
        return schema.model_validate(said)
    except ValidationError as problems:
        lines = [_plain(schema, p) for p in problems.errors()]
        raise RecipeError("\n".join(f"{where}: {line}" for line in lines)) from None


def bind(function: Callable[..., Any], table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keyword arguments of `function` that `table` gives, defaults filled in.

    Only keyword-only parameters can be bound. An unknown key, a wrong type or a missing required key is a RecipeError.
    """
    return bind_all([function], table, where)[0]


def bind_all(functions: Sequence[Callable[..., Any]], table: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """As `bind`, for several functions that share a table: a key goes to each function that has it, and must be one's."""
    signatures = [
        {n: p for n, p in inspect.signature(f).parameters.items() if p.kind is p.KEYWORD_ONLY} for f in functions
    ]
    known = {name: None for parameters in signatures for name in parameters}
    for key in table:
        if key not in known:
            raise RecipeError(f"{where}: {unknown_key(key, list(known))}")
    bound: list[dict[str, Any]] = []
    for function, parameters in zip(functions, signatures, strict=True):
        hints = typing.get_type_hints(function)
        own: dict[str, Any] = {}
        for name, parameter in parameters.items():
            if name in table:
                own[name] = _typed(table[name], hints.get(name, Any), f"{where}: {name}")
            elif parameter.default is parameter.empty:
                raise RecipeError(f"{where}: {name} must be given")
            else:
                own[name] = parameter.default
        bound.append(own)
    return bound


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as `hint` (bool, int, float, str, Literal, or one of those or None), or a RecipeError."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for option in options:
        if typing.get_origin(option) is Literal:
            if value in typing.get_args(option):
                return value
        elif option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        elif option is Any or (isinstance(option, type) and type(value) is option):
            return value
        elif typing.get_origin(option) in (dict, list, tuple) and isinstance(value, dict | list | tuple):
            return value
    named = " or ".join(
        " | ".join(map(repr, typing.get_args(o))) if typing.get_origin(o) is Literal else getattr(o, "__name__", str(o))
        for o in options
    )
    raise RecipeError(f"{where} = {value!r} should be {named}")


def unknown_key(key: str, known: list[str]) -> str:
    """What is said of a key that nobody takes: the nearest one, and all there are."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown key {key!r}{hint} (known: {', '.join(sorted(known)) or 'none'})"


def _plain(schema: type[Table], problem: Any) -> str:
    """One pydantic problem in the words of the recipe."""
    *tables, key = [str(part) for part in problem["loc"]] or [""]
    where = f"[{'.'.join(tables)}] " if tables else ""
    if problem["type"] == "extra_forbidden":
        return where + unknown_key(key, list(_table_at(schema, tables).model_fields))
    if problem["type"] == "missing":
        return f"{where}{key} must be given"
    message = problem["msg"].removeprefix("Value error, ")
    at = ".".join(problem["loc"][:-1] and tables)
    if problem["type"] == "value_error":
        return f"[{'.'.join([*tables, key])}] {message}" if key else message
    return f"{'[' + at + '] ' if at else ''}{key} = {problem['input']!r}: {message}"


def _table_at(schema: type[Table], path: Sequence[str]) -> type[Table]:
    for part in path:
        annotation = schema.model_fields[part].annotation
        options = typing.get_args(annotation) or (annotation,)
        schema = next(o for o in options if isinstance(o, type) and issubclass(o, Table))
    return schema


def _lay_over(said: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals:
        raise RecipeError(f"setting {setting!r} should be key=value, such as train.lr=1e-5")
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *tables, last = key.strip().split(".")
    at = said
    for name in tables:
        at = at.setdefault(name, {})
        if not isinstance(at, dict):
            raise RecipeError(f"setting {setting!r}: {name!r} is a value in the recipe, not a table")
    at[last] = value


def _drop_none(value: Any) -> Any:
    """TOML has no null: an absent key says the same."""
    if isinstance(value, dict):
        return {k: _drop_none(v) for k, v in value.items() if v is not None}
    return value
