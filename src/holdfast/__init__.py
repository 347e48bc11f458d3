"""Holdfast: offline preference learning that can prove what it did.

import holdfast as hf

frozen = hf.freeze("pairs.jsonl", "data/mine")
run = hf.train("recipe.toml", "runs/mine")
run.evaluate()
assert not hf.verify("runs/mine")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Names are looked up when they are used: reading and freezing data does not wait for torch.
_WHERE = {
    "freeze": "holdfast.data.freeze",
    "freeze_records": "holdfast.data.freeze",
    "export": "holdfast.data.export",
    "open_dataset": "holdfast.data.dataset",
    "make_split": "holdfast.data.splits",
    "inspect_dataset": "holdfast.data.inspect.inspection",
    "curate": "holdfast.data.curate",
    "diff": "holdfast.data.diff",
    "Judgement": "holdfast.data.records",
    "collect": "holdfast.control.collect",
    "label": "holdfast.control.label",
    "freeze_episodes": "holdfast.control.store",
    "open_log": "holdfast.control.store",
    "load_policy": "holdfast.control.policy",
    "relabel_log": "holdfast.control.flow",
    "load_recipe": "holdfast.recipe",
    "train": "holdfast.pipeline",
    "resume": "holdfast.pipeline",
    "evaluate": "holdfast.pipeline",
    "score": "holdfast.pipeline",
    "replay": "holdfast.pipeline",
    "verify": "holdfast.proof",
    "evaluate_policy": "holdfast.control.ope",
    "HoldfastError": "holdfast.errors",
}
__all__ = [
    "HoldfastError",
    "Judgement",
    "collect",
    "curate",
    "diff",
    "evaluate",
    "evaluate_policy",
    "export",
    "freeze",
    "freeze_episodes",
    "freeze_records",
    "inspect_dataset",
    "label",
    "load_policy",
    "load_recipe",
    "make_split",
    "open_dataset",
    "open_log",
    "relabel_log",
    "replay",
    "resume",
    "score",
    "train",
    "verify",
]

if TYPE_CHECKING:
    from holdfast.control.collect import collect
    from holdfast.control.flow import relabel_log
    from holdfast.control.label import label
    from holdfast.control.ope import evaluate_policy
    from holdfast.control.policy import load_policy
    from holdfast.control.store import freeze_episodes, open_log
    from holdfast.data.curate import curate
    from holdfast.data.dataset import open_dataset
    from holdfast.data.diff import diff
    from holdfast.data.export import export
    from holdfast.data.freeze import freeze, freeze_records
    from holdfast.data.inspect.inspection import inspect_dataset
    from holdfast.data.records import Judgement
    from holdfast.data.splits import make_split
    from holdfast.errors import HoldfastError
    from holdfast.pipeline import evaluate, replay, resume, score, train
    from holdfast.proof import verify
    from holdfast.recipe import load_recipe


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(import_module(_WHERE[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'holdfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
