"""Every field of TRL's configuration classes with its default, as JSON: `python bench/conformance/fields.py > tests/trl_fields.json`.

Run in TRL's own environment. The ordinary tests compare holdfast.moving with the stored list; `--check` compares the stored list with
the installed TRL.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

STORED = Path(__file__).resolve().parents[2] / "tests" / "trl_fields.json"


def default(field: Any) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def listed() -> dict[str, Any]:
    from trl import DPOConfig, KTOConfig, ModelConfig, RewardConfig, ScriptArguments
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.orpo import ORPOConfig
    from trl.scripts.utils import DatasetMixtureConfig

    groups = {
        "dpo": [DPOConfig],
        "kto": [KTOConfig],
        "reward": [RewardConfig],
        "cpo": [CPOConfig],
        "orpo": [ORPOConfig],
        "script": [ModelConfig, ScriptArguments, DatasetMixtureConfig],
    }
    fields = {
        group: {f.name: default(f) for config in configs for f in dataclasses.fields(config)}
        for group, configs in groups.items()
    }
    return {
        "trl": version("trl"),
        "transformers": version("transformers"),
        "fields": json.loads(json.dumps(fields, default=str)),
    }


if __name__ == "__main__":
    found = listed()
    if "--check" in sys.argv:
        stored = json.loads(STORED.read_text())
        for group, fields in found["fields"].items():
            for name in sorted(set(fields) ^ set(stored["fields"][group])):
                print(f"{group}: {name} is {'new' if name in fields else 'gone'} in TRL {found['trl']}")
            for name in sorted(
                n for n in set(fields) & set(stored["fields"][group]) if fields[n] != stored["fields"][group][n]
            ):
                print(f"{group}: {name} = {fields[name]!r}, was {stored['fields'][group][name]!r}")
        sys.exit(found["fields"] != stored["fields"])
    print(json.dumps(found, indent=1))
