"""TRL's arguments -> a recipe, and a line for every argument: what it became, or why it became nothing.

A value that TRL's file does not say is TRL's default, and stands in the recipe where Holdfast's default is another. So
the recipe says what TRL would have done, and each place where it cannot say it is a line or an error.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tomli_w

from holdfast.errors import RecipeError
from holdfast.losses import LOSSES, dry_run
from holdfast.moving.fields import FIELDS, METHODS, Field, known
from holdfast.moving.read import NotKnown, Said, method_of, read_arguments
from holdfast.recipe import Recipe, Table, TrackTable, bind, load_recipe
from holdfast.recipe import unknown_key as unknown

Kind = Literal["same", "differs", "default", "always", "no effect", "left out"]
MEANINGS: dict[Kind, str] = {
    "same": "means the same",
    "differs": "is carried over, with a difference",
    "default": "is not in the file: TRL's default",
    "always": "is always so here",
    "no effect": "had no effect in TRL",
    "left out": "says nothing about what is learnt, and is left out",
}
SINGLE = {
    "sigmoid": "dpo",
    "hinge": "hinge",
    "ipo": "ipo_avg",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "robust": "rdpo",
    "bco_pair": "bco",
    "sppo_hard": "sppo",
    "aot": "aot",
    "aot_unpaired": "aot_unpaired",
    "aot_pair": "aot_unpaired",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
    "discopop": "discopop",
    "sft": "sft",
    "sigmoid_norm": "ln_dpo",
}
DIVERGENCES = {"forward_kl": "forward_kl", "js_divergence": "js", "alpha_divergence": "alpha"}
NOTES = {
    "bco_pair": "TRL 1.16's bco_pair has no reward shift; the paper's loss, and ours, has a running one",
    "aot": "gaps are sorted over the whole step, TRL's over a micro-batch",
    "aot_unpaired": "ratios are sorted over the whole step, TRL's over a micro-batch",
    "aot_pair": "TRL's older name of aot_unpaired; ratios are sorted over the whole step, TRL's over a micro-batch",
    "sft": "one mean over all response tokens of a step, TRL's over a micro-batch's",
}
FOREVER = 1_000_000  # evaluations without a better figure: the best weights are the result, and nothing stops early


@dataclass(frozen=True)
class Line:
    """What became of one argument."""

    kind: Kind
    trl: str  # the argument, or several that are one thing here
    value: Any
    holdfast: str  # the recipe's keys, or ""
    note: str = ""

    def __str__(self) -> str:
        becomes = f" -> {self.holdfast}" if self.holdfast else ""
        return f"{self.trl} = {_short(self.value)}{becomes}" + (f"  ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Moved:
    """A recipe made of TRL's arguments. `toml` is its text, with the argument beside each key."""

    method: str
    recipe: dict[str, Any]
    toml: str
    lines: list[Line]


def from_trl(
    path: str | Path,
    *,
    method: str | None = None,
    data: str | None = None,
    processes: int | None = None,
    settings: Sequence[str] = (),
    without: Sequence[str] = (),
) -> Moved:
    """The recipe for the TRL arguments in a file: YAML, JSON, a shell script or command line, or a Python script.

    method:    dpo, kto, reward, cpo or orpo, where the file does not show it.
    data:      the frozen dataset's folder; default: data/ and the last part of dataset_name.
    processes: how many processes TRL was launched with, where the file does not show it: they multiply the batch.
    settings:  `key=value`, TRL's arguments laid over the file's.
    without:   arguments to leave out although they change what is learnt.

    Raises RecipeError naming every argument that is unknown, or that no recipe can say.
    """
    said = read_arguments(path)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set {setting!r} should be KEY=VALUE, such as learning_rate=5e-7")
        said.values[key.strip().replace("-", "_")] = value
    if method is not None and method not in METHODS:
        raise RecipeError(f"--method {method!r} is unknown (known: {', '.join(METHODS)})")
    if method is not None and said.method not in (None, method):
        raise RecipeError(f"{path} is for {said.method}, not for {method}")
    method = method or method_of(said, str(path))
    if processes is not None:
        said.processes = processes
    if said.processes is None:
        raise RecipeError(
            f"{path} leaves the number of processes to the launcher ({' '.join(said.launch)}); they multiply the batch: say --processes N"
        )
    return _Move(said, method, str(path), without).moved(data)


class _Move:
    """One translation: takes arguments one by one, and refuses what nothing took."""

    def __init__(self, said: Said, method: str, where: str, without: Sequence[str]):
        self.method, self.where, self.processes, self.launch = method, where, said.processes or 1, said.launch
        self.fields = known(method)
        self.problems: list[str] = []
        self.lines: list[Line] = []
        self.recipe: dict[str, Any] = {}
        self.why: dict[tuple[str, ...], str] = {}  # the argument beside each key of the recipe
        self.taken: set[str] = set()
        self.given: dict[str, Any] = {}
        for name, value in said.values.items():
            name, value = _affirmed(name, value, self.fields)
            if name in without:
                self.lines.append(Line("left out", name, value, "", "you asked for it"))
            elif name not in self.fields:
                near = difflib.get_close_matches(name, list(self.fields), n=3)
                hint = f"; did you mean {' or '.join(near)}?" if near else ""
                self.problems.append(f"unknown argument {name!r}{hint} (those of {method}: docs/moving-from-trl.md)")
            elif isinstance(value, NotKnown):
                self.problems.append(value.why)
            else:
                try:
                    self.given[name] = _typed(value, self.fields[name])
                except ValueError as problem:
                    self.problems.append(str(problem))
        for name in set(without) - set(said.values):
            self.problems.append(f"--without {name}: {where} does not say it")

    def moved(self, data: str | None) -> Moved:
        if not self.problems:
            self._what(data)
            self._model()
            self._loss()
            self._length()
            self._batch()
            self._rate()
            self._figures()
            self._machine()
            self._rest()
        if self.problems:
            raise RecipeError("\n".join(f"{self.where}: {problem}" for problem in self.problems))
        load_recipe(self.recipe)  # refuses what is out of range
        for said in self.recipe["objective"].get("terms", [self.recipe["objective"]]):
            loss = LOSSES[{"reward": "bradley_terry", "sft": "sft_nll"}.get(said["kind"], said["kind"])]
            dry_run(loss, **bind(loss, {k: v for k, v in said.items() if k not in ("kind", "weight")}, "[objective]"))
        order = list(MEANINGS)
        self.lines.sort(key=lambda line: order.index(line.kind))
        return Moved(self.method, self.recipe, self._toml(), self.lines)

    # --- taking arguments, and saying what became of them

    def take(self, name: str) -> Any:
        """The value of an argument: given, or TRL's default."""
        self.taken.add(name)
        return self.given.get(name, self.fields[name].default)

    def has(self, name: str) -> bool:
        return name in self.given

    def put(self, key: str, value: Any, names: str, note: str = "", kind: Kind | None = None) -> None:
        """A key of the recipe, from one argument or several. Left away where nothing was given and the defaults agree."""
        *tables, last = key.split(".")
        given = [n for n in names.split(", ") if self.has(n)]
        if not given and _default(key) == value and not note:
            return
        at = self.recipe
        for table in tables:
            at = at.setdefault(table, {})
        at[last] = value
        kind = kind or ("differs" if note else "same") if given else "default"
        self.why[(*tables, last)] = names if given else f"{names}: TRL's default"
        shown = ", ".join(given) or names
        self.lines.append(Line(kind, shown, self._value(shown), f"{key} = {_toml(value)}", note))

    def note(self, kind: Kind, name: str, note: str) -> None:
        if self.has(name):
            self.lines.append(Line(kind, name, self.given[name], "", note))

    def refuse(self, name: str, why: str) -> None:
        remedy = (
            f"change it, or leave it out with --without {name}" if self.has(name) else f"say it with --set {name}=VALUE"
        )
        self.problems.append(f"{name} = {self._value(name)!r}: {why}; {remedy}")

    def _value(self, names: str) -> Any:
        values = [self.given.get(n, self.fields[n].default) for n in names.split(", ")]
        return values[0] if len(values) == 1 else values

    # --- the recipe, table by table

    def _what(self, data: str | None) -> None:
        """[run], [data] and [model]: names and places."""
        folder = self.take("output_dir")
        name = self.take("run_name") or (Path(folder).name if folder else None)
        if name:
            names = "run_name" if self.has("run_name") and self.given["run_name"] else "output_dir"
            self.put("run.name", re.sub(r"[^\w.-]+", "-", str(name)), names, kind="same")
            other = {"run_name": "output_dir", "output_dir": "run_name"}[names]
            self.note("left out", other, "the run's folder is `holdfast train -o`, else runs/NAME")
        source = self.take("dataset_name")
        place = data or (f"data/{Path(str(source)).stem}" if source else None)
        if place is None:
            self.problems.append("no dataset: freeze your files (holdfast freeze FILES -o DIR) and say --data DIR")
            return
        self.recipe["data"] = {"dataset": place}
        self.why[("data", "dataset")] = f"holdfast freeze FILES -o {place}"
        if source:
            self.lines.append(
                Line(
                    "differs",
                    "dataset_name",
                    source,
                    f"data.dataset = {_toml(place)}",
                    f"a frozen dataset: freeze the file first: holdfast freeze FILES -o {place}",
                )
            )
        share = self.take("test_split_size")
        if share is not None:
            self.put(
                "data.split.validation",
                float(share),
                "test_split_size",
                "the share is of prompts, and no prompt is on two sides",
            )

    def _model(self) -> None:
        name, options = self.take("model_name_or_path"), dict(self.take("model_init_kwargs") or {})
        if name is None:
            self.problems.append("no model: say --set model_name_or_path=FOLDER (or owner/name of a hub)")
            return
        local = name.startswith((".", "/", "~")) or Path(name).is_dir() or name.count("/") != 1
        self.put("model.path" if local else "model.hub", name, "model_name_or_path")
        revision = self.take("model_revision")
        if "revision" in options:
            revision = options.pop("revision")
        if revision != "main" and local:
            self.note("no effect", "model_revision", "a folder has no revision")
        elif revision != "main":
            self.put(
                "model.revision", revision, "model_revision" if self.has("model_revision") else "model_init_kwargs"
            )
        elif self.has("model_revision"):
            self.note("same", "model_revision", "the default")
        self._precision(options)
        for key in ("attn_implementation", "use_cache", "device_map", "low_cpu_mem_usage", "use_kernels"):
            if options.pop(key, None) is not None:
                self.lines.append(
                    Line("left out", f"model_init_kwargs.{key}", "", "", "speed or memory of the same computation")
                )
        if options:
            self.refuse("model_init_kwargs", f"{', '.join(sorted(options))} cannot be said in a recipe")
        self._adapter()

    def _precision(self, options: dict[str, Any]) -> None:
        """[run] device and dtype."""
        cpu = self.take("use_cpu") or (self.take("no_cuda") if self.has("no_cuda") else False)
        name = "no_cuda" if self.has("no_cuda") else "use_cpu"
        self.put(
            "run.device",
            "cpu" if cpu else "cuda",
            name,
            "" if self.has(name) else "TRL takes the accelerator that it finds",
        )

        said = {n: self.take(n) for n in ("dtype", "torch_dtype") if self.has(n)}
        weights = next((v for v in said.values() if v is not None), self.take("dtype"))
        for key in ("dtype", "torch_dtype"):
            weights = options.pop(key, weights)
        weights = str(weights).removeprefix("torch.")
        names = next(iter(said), "model_init_kwargs" if self.has("model_init_kwargs") else "dtype")
        bf16, fp16 = self.take("bf16"), self.take("fp16")
        if weights not in ("float32", "bfloat16"):
            return self.refuse(names, "weights are float32 or bfloat16; say --set dtype=float32")
        if weights == "bfloat16":
            for flag in ("bf16", "fp16"):
                self.note("no effect", flag, "the weights have 16 bits already")
            why = "TRL updates bfloat16 weights in place, where small updates round to nothing; here the optimiser learns in float32"
            return self.put("run.dtype", "bfloat16", names, why)
        for key in said:
            self.note("same", key, "the optimiser learns in float32")
        if fp16:
            self.note("no effect", "bf16", "fp16 decides")
            return self.put("run.dtype", "bfloat16", "fp16", "16 bits are bfloat16 here, which needs no loss scaling")
        if bf16 is False:
            self.note("same", "fp16", "off")
            return self.put("run.dtype", "float32", "bf16")
        self.note("same", "fp16", "off")
        if bf16 is None and cpu:
            note = "TRL would multiply in bfloat16 on a CPU as well, which is slower there and less exact"
            return self.put("run.dtype", "float32", "bf16", note)
        note = "TRL multiplies in bfloat16 and keeps float32 weights; here forward and backward have bfloat16 weights, and the optimiser float32 ones"
        return self.put("run.dtype", "bfloat16", "bf16", note)

    def _adapter(self) -> None:
        names = (
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
            "lora_target_parameters",
            "lora_modules_to_save",
            "use_rslora",
            "use_dora",
        )
        said = {name: self.take(name) for name in names}
        if not self.take("use_peft"):
            for name in names:
                self.note("no effect", name, "without use_peft")
            self.note("same", "use_peft", "every weight is trained")
            return
        self.lines.append(Line("same", "use_peft", True, 'adapter.kind = "lora"'))
        self.recipe["adapter"] = {"kind": "dora" if said["use_dora"] else "lora"}
        self.why[("adapter", "kind")] = "use_peft, use_dora" if said["use_dora"] else "use_peft"
        self.note("same", "use_dora", "")
        for name in names[:-1]:
            if said[name] not in (None, False):
                value = said[name]
                if name == "lora_target_modules" and value == ["all-linear"]:
                    value = "all-linear"
                key = {"lora_r": "r"}.get(
                    name, name.removeprefix("lora_") if name not in ("lora_alpha", "lora_dropout") else name
                )
                self.put(f"adapter.{key}", value, name)
            else:
                self.note("same", name, "the default")

    def _loss(self) -> None:
        """[objective] and [reference]."""
        {"dpo": self._dpo, "kto": self._kto, "reward": self._reward, "cpo": self._cpo, "orpo": self._orpo}[
            self.method
        ]()
        if "objective" not in self.recipe or "sync_ref_model" not in self.fields:
            return
        moving, alpha, tau = (self.take(n) for n in ("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"))
        if moving:
            self.recipe["reference"] = {"kind": "moving"}
            self.why[("reference", "kind")] = "sync_ref_model"
            self.lines.append(Line("same", "sync_ref_model", True, 'reference.kind = "moving"'))
            self.put("reference.alpha", alpha, "ref_model_mixup_alpha")
            self.put("reference.tau", tau, "ref_model_sync_steps")
        else:
            for name in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
                self.note("no effect", name, "without sync_ref_model")
            self.note("same", "sync_ref_model", "the reference is the model that training starts from")

    def _objective(self, kind: str, names: str, keys: Mapping[str, tuple[Any, str]], note: str = "") -> None:
        self.recipe["objective"] = {"kind": kind}
        self.why[("objective", "kind")] = names
        given = [n for n in names.split(", ") if self.has(n)]
        line: Kind = "differs" if note else "same" if given else "default"
        shown = ", ".join(given) or names
        self.lines.append(Line(line, shown, self._value(shown), f"objective.kind = {_toml(kind)}", note))
        for key, (value, name) in keys.items():
            self.put(f"objective.{key}", value, name)

    def _dpo(self) -> None:
        losses = list(self.take("loss_type"))
        weights = self.take("loss_weights") or [1.0] * len(losses)
        e, ld, weighting = self.take("label_smoothing"), self.take("ld_alpha"), self.take("use_weighting")
        divergence, alpha = self.take("f_divergence_type"), self.take("f_alpha_divergence_coef")
        rpo = self.take("rpo_alpha") if self.has("rpo_alpha") else None
        beta = {"beta": (self.take("beta"), "beta")}
        tau = self.take("discopop_tau")
        for name in losses:
            if name not in SINGLE:
                return self.refuse("loss_type", unknown(str(name), list(SINGLE)))
        if len(weights) != len(losses) or len(set(losses)) != len(losses):
            return self.refuse("loss_weights", f"TRL wants one weight for each of {', '.join(losses)}")

        # What TRL reads for none of these losses.
        if not {"robust", "exo_pair", "aot", "aot_unpaired", "aot_pair"} & set(losses):
            why = f"TRL 1.16 reads it for robust, exo_pair and aot alone; for {', '.join(losses)} it does nothing"
            self.note("no effect", "label_smoothing", f"{why}. kind = cdpo is the loss that it names")
        if "discopop" not in losses:
            self.note("no effect", "discopop_tau", "it belongs to loss_type discopop")
        if divergence != "alpha_divergence":
            self.note("no effect", "f_alpha_divergence_coef", "it belongs to f_divergence_type alpha_divergence")

        # What changes another loss.
        special = {
            "ld_alpha": ld is not None,
            "use_weighting": bool(weighting),
            "f_divergence_type": divergence != "reverse_kl",
        }
        asked = [name for name, on in special.items() if on]
        for name in special:
            if name not in asked:
                self.note("same", name, "the default")
        if asked and (len(asked) > 1 or losses != ["sigmoid"] or rpo):
            return self.refuse(asked[0], f"together with {', '.join([*asked[1:], *losses])} it is no loss of Holdfast")
        if asked == ["ld_alpha"]:
            return self._objective("ld_dpo", "ld_alpha", {**beta, "alpha": (ld, "ld_alpha")})
        if asked == ["use_weighting"]:
            return self._objective("wpo", "use_weighting", {**beta, "cap": (float("inf"), "use_weighting")})
        if asked == ["f_divergence_type"]:
            if divergence not in DIVERGENCES:
                return self.refuse("f_divergence_type", unknown(str(divergence), ["reverse_kl", *DIVERGENCES]))
            keys = {**beta, "divergence": (DIVERGENCES[divergence], "f_divergence_type")}
            if divergence == "alpha_divergence":
                if not 0 <= alpha <= 1:
                    return self.refuse("f_alpha_divergence_coef", "Holdfast's alpha is 1 - this, and lies in [0, 1]")
                keys["alpha"] = (1 - alpha, "f_alpha_divergence_coef")
            return self._objective("f_dpo", "f_divergence_type", keys)

        terms: list[tuple[str, float, Mapping[str, tuple[Any, str]], str]] = []
        for name, weight in zip(losses, weights, strict=True):
            keys, note = dict(beta), NOTES.get(name, "")
            if name == "ipo":
                keys = {"tau": beta["beta"]}
            elif name == "exo_pair" and not e:
                return self.refuse("label_smoothing", "exo_pair needs it above 0, in TRL as here; the paper has 1e-3")
            elif name in ("robust", "exo_pair"):
                keys["e"] = (e, "label_smoothing")
            elif name.startswith("aot") and e:
                return self.refuse("label_smoothing", "aot compares whole batches, in which a row's label has no place")
            elif name == "discopop":
                keys["tau"] = (tau, "discopop_tau")
            elif name == "sft":
                keys = {}
            terms.append((SINGLE[name], weight, keys, note))
        if rpo:
            terms.append(("sft", rpo, {}, ""))
        if losses == ["sft"]:
            self.note("no effect", "beta", "sft has no beta")
        return self._terms(terms, "loss_type" if not rpo else "loss_type, rpo_alpha")

    def _terms(self, terms: Sequence[tuple[str, float, Mapping[str, tuple[Any, str]], str]], names: str) -> None:
        """One loss, or the weighted sum of several; a weight of 0 is no term."""
        terms = [term for term in terms if term[1] != 0]
        if len(terms) == 1 and terms[0][1] == 1:
            kind, _, keys, note = terms[0]
            self._objective(kind, names, keys, note)
            self.note("same", "loss_weights", "one loss with weight 1")
            return
        self.recipe["objective"] = {"kind": "sum", "terms": []}
        self.why[("objective", "kind")] = names
        for n, (kind, weight, keys, note) in enumerate(terms):
            term = {"kind": kind, "weight": float(weight)}
            for key, (value, name) in keys.items():
                term[key] = value
                self.why[("objective", "terms", str(n), key)] = name
            self.recipe["objective"]["terms"].append(term)
            shown = ", ".join(n for n in names.split(", ") if self.has(n)) or names
            self.lines.append(
                Line("differs" if note else "same", shown, self._value(shown), f"objective.terms: {_toml(term)}", note)
            )
        self.note("same", "loss_weights", "the terms' weights")
        for name in dict.fromkeys(name for _, _, keys, _ in terms for _, name in keys.values()):
            self.note("same", name, "in the terms")

    def _kto(self) -> None:
        name = self.take("loss_type")
        if name != "kto":
            for other in ("beta", "desirable_weight", "undesirable_weight"):
                self.take(other)
            return self.refuse("loss_type", "of TRL's losses on good and bad labels, kto is the one here")
        note = "the estimate of the KL is over the whole step, TRL's over a micro-batch; good and bad rows are mixed"
        ours = {"beta": "beta", "lam_good": "desirable_weight", "lam_bad": "undesirable_weight"}
        return self._objective("kto", "loss_type", {key: (self.take(name), name) for key, name in ours.items()}, note)

    def _reward(self) -> None:
        self.recipe["objective"] = {"kind": "reward"}
        self.why[("objective", "kind")] = "RewardConfig"
        self.put(
            "objective.centre", float(self.take("center_rewards_coefficient") or 0.0), "center_rewards_coefficient"
        )

    def _cpo(self) -> None:
        name, e = self.take("loss_type"), self.take("label_smoothing")
        beta, nll, gamma = self.take("beta"), self.take("cpo_alpha"), self.take("simpo_gamma")
        if name in ("hinge", "ipo"):
            return self.refuse(
                "loss_type", "without a reference a recipe has sigmoid (cpo) and simpo; near it: kind = slic"
            )
        if name not in ("sigmoid", "simpo"):
            why = "AlphaPO is not here" if name == "alphapo" else unknown(str(name), ["sigmoid", "simpo"])
            return self.refuse("loss_type", why)
        if e:
            return self.refuse(
                "label_smoothing", "cpo and simpo take a probability from each row's label, not one for all"
            )
        self.note("same", "label_smoothing", "none")
        keys = {"beta": (beta, "beta")}
        if name == "simpo":
            keys["gamma"] = (gamma, "simpo_gamma")
            if nll:
                default = "" if self.has("cpo_alpha") else "TRL's default, "
                self.lines.append(
                    Line("differs", "cpo_alpha", nll, "a term sft", f"{default}imitation beside SimPO; the paper has none: --set cpo_alpha=0")
                )  # fmt: skip
        else:
            keys["lam"] = (0.0, "cpo_alpha")
            self.note("no effect", "simpo_gamma", "it belongs to loss_type simpo")
        kind = {"sigmoid": "cpo", "simpo": "simpo"}[name]
        return self._terms([(kind, 1.0, keys, ""), ("sft", nll, {}, "")], "loss_type, cpo_alpha")

    def _orpo(self) -> None:
        self.recipe["objective"] = {"kind": "orpo"}
        self.why[("objective", "kind")] = "ORPOConfig"
        note = "the imitation term is of the response, a mean per response; TRL's includes the prompt's tokens"
        self.put("objective.lam", self.take("beta"), "beta", note)

    def _length(self) -> None:
        """[text]."""
        length = self.take("max_length")
        newer = "truncation_mode" in FIELDS[self.method]
        mode = self.take("truncation_mode") if newer or self.has("truncation_mode") else "keep_start"
        if self.has("truncation_mode") and (length is None or self.method == "reward"):
            self.note("no effect", "truncation_mode", "without max_length")
        if length is None:
            return self.put(
                "text.max_length", 2**20, "max_length", "no limit but the model's own; a row beyond it is an error"
            )
        self.put("text.max_length", length, "max_length")
        if self.method == "reward":
            return self.put(
                "text.too_long",
                "drop",
                "max_length",
                "a row that is too long is left out, as in TRL, and listed in left_out.jsonl",
                "same",
            )
        if mode == "keep_end":
            return self.put(
                "text.too_long",
                "truncate-prompt-left",
                "truncation_mode",
                "the prompt is cut from its left, never the response; every cut row is listed",
            )
        note = "responses are cut at their end, as in TRL; a pair that the cut makes equal is left out, and every cut row is listed"
        return self.put(
            "text.too_long",
            "truncate-response-right",
            "truncation_mode" if self.has("truncation_mode") else "max_length",
            note,
        )

    def _batch(self) -> None:
        """[train] batch, steps, epochs."""
        name = "per_device_train_batch_size"
        if self.has("per_gpu_train_batch_size"):
            name = "per_gpu_train_batch_size"
            self.take("per_device_train_batch_size")
        micro, times = self.take(name), self.take("gradient_accumulation_steps")
        names = f"{name}, gradient_accumulation_steps"
        of = f"{micro} x {times} x {self.processes} process{'es' * (self.processes > 1)}"
        self.put(
            "train.batch",
            micro * times * self.processes,
            names,
            f"{of}; one mean over the step, TRL's is a mean of micro-batch means",
        )
        if micro * times * self.processes != micro:
            self.put("train.micro_batch", micro, name)
        most, epochs = self.take("max_steps"), self.take("num_train_epochs")
        if most > 0:
            self.put("train.steps", most, "max_steps")
            self.note("no effect", "num_train_epochs", "max_steps decides")
        else:
            self.note("same", "max_steps", "epochs decide")
            self.put(
                "train.epochs",
                float(epochs),
                "num_train_epochs",
                "epochs follow without a gap; TRL ends each with a smaller step",
            )
        sampling = self.take("train_sampling_strategy")
        if sampling == "group_by_length":
            self.refuse(
                "train_sampling_strategy",
                "an order by length is another training; rows are shuffled, and padding costs nothing when packed",
            )
        elif self.has("train_sampling_strategy") or self.method == "kto":
            said: Kind = (
                "same" if sampling == "random" else "differs" if self.has("train_sampling_strategy") else "default"
            )
            self.lines.append(
                Line(
                    said,
                    "train_sampling_strategy",
                    sampling,
                    "",
                    "rows are always shuffled, by the seed; good and bad rows are mixed",
                )
            )

    def _rate(self) -> None:
        """[train] the optimiser and its rate."""
        self.put("train.lr", self.take("learning_rate"), "learning_rate")
        schedule, options = self.take("lr_scheduler_type"), dict(self.take("lr_scheduler_kwargs") or {})
        steps, share = self.take("warmup_steps"), self.take("warmup_ratio") if self.has("warmup_ratio") else 0.0
        warmup: int | float = int(steps) if steps >= 1 or not steps else steps
        names = "warmup_steps"
        if not warmup and share:
            warmup, names = (share if share < 1 else int(share)), "warmup_ratio"
        else:
            self.note("no effect", "warmup_ratio", "warmup_steps decides" if warmup else "0")
        ours = {"constant_with_warmup": "constant", "cosine_with_min_lr": "cosine"}.get(schedule, schedule)
        if ours not in ("linear", "cosine", "constant"):
            self.refuse(
                "lr_scheduler_type", "known: linear, cosine, cosine_with_min_lr, constant, constant_with_warmup"
            )
        elif schedule == "constant" and warmup:
            self.put("train.schedule", "constant", "lr_scheduler_type")
            self.note(
                "no effect", names, "lr_scheduler_type = constant has no warm-up in TRL; constant_with_warmup has"
            )
            warmup, names = 0, ""
        else:
            self.put("train.schedule", ours, "lr_scheduler_type")
        if schedule == "cosine_with_min_lr":
            end = options.pop("min_lr_rate", None)
            least = options.pop("min_lr", None)
            end = least / self.take("learning_rate") if end is None and least is not None else end
            if end is None:
                self.refuse("lr_scheduler_kwargs", "cosine_with_min_lr needs min_lr or min_lr_rate")
            else:
                self.put("train.lr_end", float(end), "lr_scheduler_kwargs")
        elif ours == "cosine" and options.get("num_cycles") == 0.5:
            options.pop("num_cycles")
            self.note("same", "lr_scheduler_kwargs", "half a cosine, the default")
        if options:
            self.refuse("lr_scheduler_kwargs", f"{', '.join(sorted(options))} cannot be said in a recipe")
        elif self.has("lr_scheduler_kwargs") and not self.given["lr_scheduler_kwargs"]:
            self.note("same", "lr_scheduler_kwargs", "none")
        self.put(
            "train.warmup",
            warmup,
            names,
            "step s of w has s/(w+1) of the rate, TRL's (s-1)/w: its first step moves nothing" if warmup else "",
        )
        optimiser = self.take("optim")
        if optimiser not in ("adamw_torch", "adamw_torch_fused", "adamw_hf"):
            self.refuse("optim", "AdamW is the optimiser: adamw_torch, adamw_torch_fused")
        self.note("same", "optim", "AdamW")
        self.put("train.weight_decay", self.take("weight_decay"), "weight_decay")
        betas = [self.take("adam_beta1"), self.take("adam_beta2")]
        self.put("train.betas", betas, "adam_beta1, adam_beta2")
        self.put("train.eps", self.take("adam_epsilon"), "adam_epsilon")
        self.put("train.clip", self.take("max_grad_norm"), "max_grad_norm")

    def _figures(self) -> None:
        """[train] held-out figures, what stops, checkpoints."""
        strategy = self.take("eval_strategy")
        strategy = self.take("evaluation_strategy") if self.has("evaluation_strategy") else strategy
        name = "evaluation_strategy" if self.has("evaluation_strategy") else "eval_strategy"
        every = self.take("eval_steps")
        every = every if every is not None else self.given.get("logging_steps", 10)
        every = self._steps("eval_steps", every) if strategy == "steps" else None
        best, metric, greater = (
            self.take(n) for n in ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")
        )
        measured = strategy == "steps" and every is not None
        if strategy == "epoch":
            self.note(
                "differs",
                name,
                "say [train] eval_every in steps, or the run has no held-out figures before its end: an epoch is the judgements trained on / batch",
            )
        elif strategy == "steps" and every is not None:
            self.put("train.eval_every", every, "eval_steps" if self.has("eval_steps") else name)
            if self.has("eval_steps"):
                self.note("same", name, "eval_every")
        elif strategy == "no":
            self.note("same", name, "no held-out figures while training; the finished run is evaluated")
            self.note("no effect", "eval_steps", f"without {name} = steps")
        elif strategy != "steps":
            self.refuse(name, "it is none of no, steps, epoch")
        if best and not measured:
            self.refuse(
                "load_best_model_at_end",
                "the figure to choose by must be measured: --set eval_strategy=steps --set eval_steps=N",
            )
        elif best:
            figure = str(metric or "loss").removeprefix("eval_")
            figure = {"accuracy": "rewards/accuracies", "margin": "rewards/margins"}.get(figure, figure)
            up = greater if greater is not None else not figure.endswith("loss")
            if up == (figure == "loss"):
                self.refuse("greater_is_better", f"of {figure!r} the {'lower' if up else 'higher'} is better here")
            self.put(
                "train.stop_on",
                figure,
                "load_best_model_at_end, metric_for_best_model",
                "the weights with the best held-out figure are the result",
            )
            self.put(
                "train.patience",
                FOREVER,
                "load_best_model_at_end",
                "nothing stops early, as in TRL without its EarlyStoppingCallback",
                "same",
            )
            self.note("same", "greater_is_better", "as Holdfast has it")
        else:
            for other in ("metric_for_best_model", "greater_is_better"):
                self.note("no effect", other, "without load_best_model_at_end")
            self.note("same", "load_best_model_at_end", "the last weights are the result")
        saving, steps, limit = self.take("save_strategy"), self.take("save_steps"), self.take("save_total_limit")
        if saving == "steps" and self.has("save_steps"):
            count = self._steps("save_steps", steps)
            if count is not None:
                self.put("train.checkpoint_every", count, "save_steps")
        elif self.has("save_steps"):
            self.note("no effect", "save_steps", f"save_strategy = {saving}")
        self.note(
            "same" if saving == "steps" else "left out",
            "save_strategy",
            "" if saving == "steps" else "[train] checkpoint_every, in steps, says how much a cut-off run loses",
        )
        if limit is not None:
            self.put("train.keep_checkpoints", max(1, limit), "save_total_limit")
        tools = self.take("report_to")
        tools = (
            [] if tools in (None, "none", ["none"], "all", ["all"]) else [tools] if isinstance(tools, str) else tools
        )
        here = get_args(get_args(TrackTable.model_fields["to"].annotation)[0])
        ours = [t for t in tools if t in here]
        if ours:
            self.put(
                "track.to",
                ours,
                "report_to",
                f"{', '.join(sorted(set(tools) - set(ours)))} left out" if set(tools) - set(ours) else "",
            )
        else:
            self.note("left out", "report_to", f"[track] to takes {', '.join(here)}")

    def _steps(self, name: str, value: float) -> int | None:
        """A number of steps; TRL takes a share of them as well, which is known where max_steps is."""
        if value >= 1:
            return int(value)
        most = self.given.get("max_steps", -1)
        if most > 0:
            return max(1, -int(-most * value // 1))
        self.refuse(name, "a share of all steps; say whole steps")
        return None

    def _machine(self) -> None:
        """[run] seed; dropout."""
        seed, other = self.take("seed"), self.take("data_seed")
        self.put("run.seed", seed, "seed", "of other random numbers: the order of rows is another than TRL's")
        if other is not None:
            self.note("differs", "data_seed", "run.seed is of the order as well")
        if not self.take("disable_dropout"):
            self.refuse("disable_dropout", "dropout is off, as it is in TRL unless asked for")
        self.note("always", "disable_dropout", "dropout is off")

    def _rest(self) -> None:
        """Every argument that no rule took: what its table says."""
        spoken = {name for line in self.lines for name in line.trl.split(", ")}
        for name, value in self.given.items():
            field = self.fields[name]
            if name in spoken:
                continue
            if field.way == "refused":
                if value not in (None, False, [], {}, ""):
                    self.refuse(name, field.said)
                else:
                    self.lines.append(Line("same", name, value, "", "not in use"))
            elif field.way == "aside":
                kind: Kind = "no effect" if field.said.startswith("no effect in TRL") else "left out"
                self.lines.append(
                    Line(kind, name, value, "", field.said.removeprefix("no effect in TRL").lstrip(":, "))
                )
            elif field.way == "always":
                self.lines.append(Line("always", name, value, "", field.said))
            elif name in self.taken:
                self.lines.append(Line("same", name, value, "", "the default"))
            elif not self.problems:
                raise AssertionError(f"{name} is to become {field.said}, and no rule took it")
        if self.launch:
            self.lines.append(
                Line(
                    "left out",
                    " ".join(self.launch),
                    "",
                    "",
                    "the launcher; [run] device and threads say what computes",
                )
            )

    # --- text

    def _toml(self) -> str:
        """The recipe's text: tables in the recipe's order, TRL's argument beside each key."""
        lines = [f"# Made from TRL's arguments ({self.method}) in {self.where}", ""]

        def table(path: tuple[str, ...], said: Mapping[str, Any], head: str = "") -> None:
            plain = {k: v for k, v in said.items() if not isinstance(v, dict) and not _tables(v)}
            if path and plain:
                lines.append(head)
            texts = {k: f"{k} = {_toml(v)}" for k, v in plain.items()}
            width = max((len(t) for t in texts.values()), default=0)
            for key, text in texts.items():
                why = self.why.get((*path, key), "")
                lines.append(f"{text:<{width}}  # {why}" if why else text)
            if path and plain:
                lines.append("")
            for key, value in said.items():
                name = ".".join((*path, key))
                for n, inner in enumerate(value) if _tables(value) else ():
                    table((*path, key, str(n)), inner, f"[[{name}]]")
                if isinstance(value, dict):
                    table((*path, key), value, f"[{name}]")

        known_tables = [name for name in Recipe.model_fields if name in self.recipe]
        table((), {name: self.recipe[name] for name in known_tables})
        return "\n".join(lines).rstrip() + "\n"


def _affirmed(name: str, value: Any, fields: Mapping[str, Field]) -> tuple[str, Any]:
    """`--no_X` is X = false."""
    if (
        name not in fields
        and name.startswith("no_")
        and name[3:] in fields
        and fields[name[3:]].type == "bool"
        and value is True
    ):
        return name[3:], False
    return name, value


def _typed(value: Any, field: Field) -> Any:
    """A value as TRL's own parser would have it. Raises ValueError."""
    wrong = ValueError(f"{field.name} = {value!r} should be {field.type}")
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null") and field.name != "report_to"):
        return field.default if field.type in ("int", "float") and field.default is not None else None
    if field.name.endswith("strategy") and value is False:
        return "no"  # YAML reads a bare `no` so
    match field.type:
        case "bool":
            word = {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else str(value).lower()
            if word in ("yes", "true", "t", "y", "1"):
                return True
            if word in ("no", "false", "f", "n", "0"):
                return False
            raise wrong
        case "int" | "float":
            try:
                number = float(value)
            except (TypeError, ValueError):
                raise wrong from None
            if isinstance(value, bool) or (field.type == "int" and number != int(number)):
                raise wrong
            return int(number) if field.type == "int" else number
        case "str":
            if not isinstance(value, str | int | float) or isinstance(value, bool):
                raise wrong
            return str(value)
        case "list":
            return value if isinstance(value, str) and field.name == "report_to" else [str(v) for v in _listed(value)]
        case "floats":
            try:
                return [float(v) for v in _listed(value)]
            except (TypeError, ValueError):
                raise wrong from None
        case "dict":
            try:
                value = json.loads(value) if isinstance(value, str) else value
            except json.JSONDecodeError:
                raise wrong from None
            if not isinstance(value, dict):
                raise wrong
            return value
        case _:
            return value


def _listed(value: Any) -> Sequence[Any]:
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return [value]
    return list(value) if isinstance(value, list | tuple) else [value]


def _tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _toml(value: Any) -> str:
    """A TOML value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


def _default(key: str) -> Any:
    """Holdfast's own default of a recipe key; None where it has none."""
    *tables, last = key.split(".")
    if tables == ["objective"] or tables == ["adapter"]:
        return None
    schema: type[Table] = Recipe
    for name in tables:
        annotation = schema.model_fields[name].annotation
        schema = next(o for o in (annotation, *get_args(annotation)) if isinstance(o, type) and issubclass(o, Table))
    value = schema.model_fields[last].default
    return list(value) if isinstance(value, tuple) else value


def table_of(method: str) -> list[Field]:
    """Every argument of TRL's configuration for `method`, as docs/moving-from-trl.md lists them."""
    return list(FIELDS[method].values())
