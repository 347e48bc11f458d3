"""Adapters by `peft`: few trained weights on a frozen base.

`[adapter]` binds to the dataclass of peft's own configuration, so that its keys are peft's and an unknown one is an error that names those
there are. What is saved is an ordinary adapter folder. peft is imported only where there is an adapter.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from holdfast.errors import HoldfastError, IntegrityError, RecipeError
from holdfast.recipe import unknown_key
from holdfast.training.determinism import derive

CONFIG = "adapter_config.json"
BASE = "holdfast.json"  # beside the adapter: the digest of the base it was trained on

# kind -> peft's type, and the keys that the kind stands for. All of them start as the base (log-ratios are 0 at step 0) and come out of their
# folder as they went in; tests/test_adapters.py goes through the list. Not here: prompt learning, which puts tokens before the prompt's;
# AdaLoRA, whose ranks follow a state that no checkpoint holds; whatever must see data before it can start.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LORA", {}),
    "dora": ("LORA", {"use_dora": True}),
    "rslora": ("LORA", {"use_rslora": True}),
    "pissa": ("LORA", {"init_lora_weights": "pissa"}),
    "olora": ("LORA", {"init_lora_weights": "olora"}),
    "loha": ("LOHA", {}),
    "lokr": ("LOKR", {}),
    "vera": ("VERA", {}),
    "randlora": ("RANDLORA", {}),
    "delora": ("DELORA", {}),
    "gralora": ("GRALORA", {}),
    "ia3": ("IA3", {}),
    "oft": ("OFT", {}),
    "boft": ("BOFT", {}),
    "hra": ("HRA", {}),
    "miss": ("MISS", {}),
    "ln_tuning": ("LN_TUNING", {}),
}
CHANGE_THE_BASE = (
    "pissa",
    "olora",
)  # their start takes a part out of the base's weights: with the adapter off it is not the base

# What is peft's own bookkeeping, needs data or other hardware, or would make another base.
_NOT_KEYS = {
    *(
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    ),
    *(
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "loftq_config",
        "megatron_config",
        "megatron_core",
        "runtime_config",
    ),
    *(
        "velora_config",
        "monteclora_config",
        "arrow_config",
        "kasa_config",
        "use_bdlora",
        "use_qalora",
        "qalora_group_size",
    ),
    *("layer_replication", "alora_invocation_tokens", "target_parameters", "save_projection"),
}
_STARTS = (True, "gaussian")  # what init_lora_weights may say; pissa and olora are kinds of their own


@dataclass(frozen=True)
class Adapter:
    """A bound [adapter] table. keys: what peft's configuration is made with, the kind's own ones included."""

    kind: str
    keys: Mapping[str, Any]
    merge: bool

    @property
    def keeps_base(self) -> bool:
        """With the adapter off the model is the base."""
        return self.kind not in CHANGE_THE_BASE


def bind_adapter(table: Mapping[str, Any]) -> Adapter:
    """Bind [adapter] to its kind's configuration. RecipeError for an unknown kind or key, a value of another type, or one peft refuses."""
    said = dict(table)
    kind, merge = said.pop("kind"), said.pop("merge", False)
    if kind not in KINDS:
        raise RecipeError(f"[adapter] kind = {kind!r} is unknown (known: {', '.join(KINDS)})")
    if not isinstance(merge, bool):
        raise RecipeError(f"[adapter] merge = {merge!r} should be true or false")
    config, preset = _config_class(kind), KINDS[kind][1]
    fields = {f.name: f for f in dataclasses.fields(config) if f.name not in _NOT_KEYS and f.name not in preset}
    for key, value in said.items():
        if key not in fields:
            raise RecipeError(f"[adapter] of {kind}: {unknown_key(key, [*fields, 'merge'])}")
        if key == "init_lora_weights" and value not in _STARTS:
            raise RecipeError(
                f"[adapter] init_lora_weights = {value!r} should be true or 'gaussian'; pissa and olora are kinds of their own"
            )
        if key == "init_weights" and value is not True and value != "lycoris":
            raise RecipeError(
                f"[adapter] init_weights = {value!r}: the adapter would not start as the base; leave it out"
            )
        default = fields[key].default
        right = int | float if isinstance(default, float) else type(default)
        simple = isinstance(default, bool | int | float | str) and key not in ("init_lora_weights", "init_weights")
        if simple and (not isinstance(value, right) or isinstance(value, bool) is not isinstance(default, bool)):
            raise RecipeError(f"[adapter] {key} = {value!r} should be {type(default).__name__}")
    made = Adapter(kind, {**said, **preset}, merge)
    _configuration(made, None)
    return made


def attach(model: Any, adapter: Adapter, *, seed: int, fresh: Sequence[str] = ()) -> Any:
    """`model` under a new adapter, whose first weights come from `seed` alone; only the adapter trains.

    model: a causal language model, or a one-label sequence classifier, whose head trains too and is saved with the adapter.
    fresh: parameters of the model that no pretraining made: their modules train and are saved like the head.
    Raises RecipeError for what peft refuses (no module of that name, a rank larger than a layer).
    """
    import peft

    scores = "ForSequenceClassification" in type(model).__name__
    config = _configuration(adapter, "SEQ_CLS" if scores else "CAUSAL_LM")
    heads = {name.rpartition(".")[0] for name in fresh}
    if scores and "modules_to_save" in {f.name for f in dataclasses.fields(config)}:
        heads |= {n for n in ("score", "classifier") if hasattr(model, n)} | set(config.modules_to_save or ())
        config.modules_to_save = sorted(n for n in heads if not any(n.startswith(f"{outer}.") for outer in heads))
    with _seeded(derive(seed, "adapter")):
        try:
            return peft.get_peft_model(model, config)
        except (ValueError, TypeError, KeyError, RuntimeError) as problem:
            raise RecipeError(
                f"[adapter] kind = {adapter.kind!r} does not fit {type(model).__name__}: {problem}"
            ) from None


def is_adapted(model: Any) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def facts(model: Any, adapter: Adapter) -> dict[str, Any]:
    """What the ledger's first entry says of an adapter: its whole configuration, whoever's defaults it holds."""
    parameters = list(model.parameters())
    return {
        "kind": adapter.kind,
        "config": _plain({k: v for k, v in model.peft_config["default"].to_dict().items() if k not in _NOT_KEYS}),
        "peft": metadata.version("peft"),
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
        "of": sum(p.numel() for p in parameters),
    }


def merged(model: Any) -> Any:
    """A copy of the model with its adapter's weights added into the base: an ordinary model. Memory for a second model."""
    try:
        return copy.deepcopy(model).merge_and_unload()
    except (ValueError, NotImplementedError, AttributeError) as problem:
        raise HoldfastError(f"this adapter cannot be merged: {problem}; leave merge out") from None


def save_adapter(model: Any, folder: Path, base: str, digest: str, revision: str | None = None) -> None:
    """Write an ordinary adapter folder: adapter_model.safetensors and adapter_config.json, the same bytes for the same weights.

    base: where the base lies, as a path (absolute, or from the folder that the adapter will have) or a hub name; digest: its weights digest.
    """
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a form for a model card, to be filled in by hand
    said = {**json.loads((folder / CONFIG).read_bytes()), "base_model_name_or_path": base, "revision": revision}
    sets = {k: v for k, v in model.peft_config["default"].to_dict().items() if isinstance(v, set)}
    (folder / CONFIG).write_text(json.dumps({**said, **_plain(sets)}, indent=2, sort_keys=True), encoding="utf-8")
    (folder / BASE).write_text(json.dumps({"base": digest}), encoding="utf-8")


def adapter_base(folder: Path) -> tuple[str, str | None, str | None]:
    """(where the base of an adapter folder lies, its revision on the hub, the adapter's task type). HoldfastError where the folder does not say."""
    try:
        said = json.loads((folder / CONFIG).read_bytes())
        base = said["base_model_name_or_path"]
        if not isinstance(base, str) or not base:
            raise ValueError("base_model_name_or_path is empty")
    except (ValueError, LookupError, TypeError) as problem:
        raise HoldfastError(
            f"{folder / CONFIG} does not name the adapter's base ({problem}); set base_model_name_or_path in it"
        ) from None
    near = folder / base
    return (str(near.resolve()) if near.is_dir() else base), said.get("revision"), said.get("task_type")


def trained_on(folder: Path) -> str:
    """The weights digest of the base that an adapter of ours was trained on."""
    return str(json.loads((folder / BASE).read_bytes())["base"])


def load_adapter(model: Any, folder: Path, base: str) -> Any:
    """`model`, the adapter's base, under the adapter that `folder` holds, trainable as it was.

    base: the weights digest of what was loaded as the base. IntegrityError where the adapter was trained on another.
    """
    import peft

    right = trained_on(folder) if (folder / BASE).exists() else base
    if right != base:
        raise IntegrityError(
            f"adapter {folder} was trained on a base with the weights digest {right[:16]}, the one it names has {base[:16]}: "
            "put the base back, or name the right one in adapter_config.json"
        )
    with _seeded(0):
        try:
            return peft.PeftModel.from_pretrained(model, folder, is_trainable=True)
        except Exception as problem:
            raise HoldfastError(
                f"adapter {folder} does not load: {type(problem).__name__}: {str(problem)[:200]}"
            ) from None


def _config_class(kind: str) -> Any:
    import peft

    return peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(KINDS[kind][0])]


def _configuration(adapter: Adapter, task: str | None) -> Any:
    try:
        return _config_class(adapter.kind)(task_type=task, **copy.deepcopy(dict(adapter.keys)))
    except (ValueError, TypeError, ImportError) as problem:
        raise RecipeError(f"[adapter] kind = {adapter.kind!r}: {problem}") from None


def _plain(said: Any) -> Any:
    """JSON of one form: a set, whose order hangs on the process, becomes a sorted list."""
    if isinstance(said, Mapping):
        return {str(k): _plain(v) for k, v in said.items()}
    if isinstance(said, set | frozenset):
        return sorted(said)
    if isinstance(said, list | tuple):
        return [_plain(x) for x in said]
    return said if said is None or isinstance(said, bool | int | float) else str(getattr(said, "value", said))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's generators from a seed, and back as they were; without the libraries' warnings to one another."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        yield
