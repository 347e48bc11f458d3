"""Makes the pages that are written from the code: docs/cli.md, docs/recipe.md, docs/formulas.md, docs/curation.md, and the tables of docs/moving-from-trl.md. `make docs`;
a test checks they are fresh."""

from __future__ import annotations

import os
import typing
from pathlib import Path

HERE = Path(__file__).resolve().parent


def cli() -> str:
    import typer

    from holdfast.cli import app

    os.environ |= {"COLUMNS": "100", "TERM": "dumb"}
    group = typing.cast(typing.Any, typer.main.get_command(app))
    lines = ["# The command line", "", "Made from the program's own help by `make docs`.", "", _help(group, "holdfast")]
    for name in group.commands:
        lines += [f"## holdfast {name}", "", _help(group.commands[name], f"holdfast {name}")]
        for inner, command in getattr(group.commands[name], "commands", {}).items():
            lines += [f"### holdfast {name} {inner}", "", _help(command, f"holdfast {name} {inner}")]
    lines += [
        "Exit status: 0 done; 1 the thing asked for does not hold (verify, replay); 2 the user's mistake, said on standard error.",
        "With `--json` a verb prints one JSON object on standard output and nothing else there.",
        "",
    ]
    return "\n".join(lines)


def _help(command: typing.Any, name: str) -> str:
    with command.make_context(name, [], resilient_parsing=True, terminal_width=100, max_content_width=100) as context:
        return f"```\n{command.get_help(context).rstrip()}\n```\n"


def recipe() -> str:
    from holdfast.recipe import ControlRecipe, Recipe, Table

    lines = [
        "# Recipes",
        "",
        "One TOML file says all of a run. Every table and key, made from the schema by `make docs`; a key that is not here is an error.",
        "`[objective]` holds `kind` (`sft`, `reward`, `sum`, or a policy loss) and the keys of that kind: see [formulas.md](formulas.md).",
        "A value can be laid over a recipe: `holdfast train recipe.toml --set train.lr=1e-5`.",
        "",
    ]

    def table(schema: type[Table], path: str) -> None:
        lines.extend(
            [f"## [{path}]" if path else "## Top", "", _first(schema), "", "| key | default | |", "|---|---|---|"]
        )
        inner = []
        for name, field in schema.model_fields.items():
            options = typing.get_args(field.annotation) or (field.annotation,)
            nested = [o for o in options if isinstance(o, type) and issubclass(o, Table)]
            if nested:
                inner.append((nested[0], f"{path}.{name}" if path else name))
                continue
            choices = " \\| ".join(f"`{c}`" for c in typing.get_args(field.annotation) if isinstance(c, str))
            default = (
                "must be given" if field.is_required() else f"`{field.default!r}`" if field.default is not None else "-"
            )
            lines.append(f"| `{name}` | {default} | {'; '.join(x for x in (field.description or '', choices) if x)} |")
        lines.append("")
        for schema_, path_ in inner:
            table(schema_, path_)

    table(Recipe, "")
    lines += [
        "# Recipes of control",
        "",
        "A recipe with a table `[control]` learns from a log of episodes. `[objective]` holds `kind` and that algorithm's keys: see",
        "[control.md](control.md). `[run]` and `[track]` are as above; a run of control computes on the CPU in float32.",
        "",
    ]
    for name in ("data", "control", "train"):
        table(typing.cast(type[Table], ControlRecipe.model_fields[name].annotation), name)
    return "\n".join(lines)


def control() -> str:
    import inspect

    from holdfast.control.algorithms import ALGORITHMS

    lines = [
        "# Control",
        "",
        "From logged episodes, and judgements of segments of them, to a policy and what it is worth.",
        "",
        "    holdfast control collect Pendulum5-v1 -o data/pendulum --policy scripted,epsilon=0.5 --policy random --steps 20000",
        "    holdfast control label data/pendulum -o data/judged --queries 500 --length 25       # for study: a simulated annotator",
        "    holdfast train recipes/control-pendulum5-reward.toml -o runs/reward                 # a reward from the judgements",
        "    holdfast control relabel runs/reward data/judged -o data/learned",
        "    holdfast train recipes/control-pendulum5.toml --set data.dataset=data/learned -o runs/policy",
        "    holdfast ope runs/policy --on data/pendulum                                         # what it is worth, from data alone",
        "    holdfast report runs/policy",
        "",
        "How logs are read, collected and labelled: [control-data.md](control-data.md). Off-policy evaluation: [ope.md](ope.md). What was learnt on",
        "which task, with the control rows: [control-study.md](control-study.md). Beside d3rlpy and imitation: [control-speed.md](control-speed.md).",
        "What a run's page says, and when it warns: [control-report.md](control-report.md).",
        "",
        "A run is a run: the same loop, ledger, checkpoints, `resume`, `verify`, `replay` and `trace` as for text. A step of it is `[control] updates`",
        "gradient updates, of all `replicas` at once; its rows are too many to list, so the ledger holds their digest, and `verify` and `trace` derive",
        "them again. `[control] replicas = 10` trains ten seeds in one batched network, each with the result that it would have alone; a",
        "hyper-parameter marked * may be a list with one value for each.",
        "",
        "`hf.load_policy(run)` is a function of an observation; `.probs`, `.sample` and `.log_prob` are the policy as a distribution. `holdfast control export`",
        "writes it as a program that `torch.export.load` runs without Holdfast.",
        "",
        "## Algorithms",
        "",
        "Made from the code by `make docs`. Losses of one algorithm for different networks are stepped at once, each reaching its own network alone.",
        "",
        "| `kind` | actions | reads | keys | |",
        "|---|---|---|---|---|",
    ]
    for name, forms in sorted(ALGORITHMS.items()):
        for cls in dict.fromkeys(forms.values()):
            actions = ", ".join(kind for kind, form in forms.items() if form is cls)
            keys = [p for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY]
            said = ", ".join(
                f"`{k.name}`{'*' if 'Each' in str(k.annotation) else ''} {'-' if k.default is None else k.default}"
                for k in keys
            )
            paper = cls.paper  # type: ignore[attr-defined]
            what = " ".join((cls.__doc__ or "").split())
            lines.append(f"| `{name}` | {actions} | {cls.reads} | {said} | {what} ({paper}) |")
    return "\n".join([*lines, ""])


def _first(schema: type) -> str:
    return " ".join((schema.__doc__ or "").split("\n\n")[0].split())


def formulas() -> str:
    import importlib

    return typing.cast(str, importlib.import_module("holdfast.losses.__main__").page())


MADE = "<!-- From here on made by `make docs` from src/holdfast/moving. -->"
WAYS = {
    "key": "becomes",
    "always": "always so here",
    "aside": "left out: says nothing about what is learnt",
    "refused": "refused",
}


def moving() -> str:
    from holdfast.moving.fields import FIELDS, OLDER, READ_IN, SCRIPT

    head = (HERE / "moving-from-trl.md").read_text(encoding="utf-8").partition(MADE)[0]
    versions = ", ".join(f"{name} {version}" for name, version in READ_IN.items())
    lines = [
        MADE,
        "",
        f"Read in {versions}. An argument that a method of TRL does not have is an error there and here.",
        "",
    ]
    tables = {name: dict(fields) for name, fields in FIELDS.items()}
    shared = {n: f for n, f in tables["dpo"].items() if all(t.get(n) == f for t in tables.values())}
    titles = {
        "dpo": "DPOConfig",
        "kto": "KTOConfig",
        "reward": "RewardConfig",
        "cpo": "CPOConfig",
        "orpo": "ORPOConfig",
    }
    parts = [("In every configuration", shared)]
    parts += [(titles[n], {k: f for k, f in t.items() if k not in shared}) for n, t in tables.items()]
    parts += [("TRL's scripts and command line", dict(SCRIPT))]
    older: dict[str, typing.Any] = {}
    for fields in OLDER.values():
        older |= fields
    parts += [("Older names", {n: f for n, f in older.items() if n not in SCRIPT})]
    for title, fields in parts:
        lines += [f"### {title}", "", "| TRL | its default | here |", "|---|---|---|"]
        for way, words in WAYS.items():
            for field in fields.values():
                if field.way == way:
                    said = (
                        f"`{field.said}`"
                        if way == "key" and "." in field.said and " " not in field.said
                        else field.said
                    )
                    what = said if way == "key" else f"{words.partition(':')[0]}: {said}"
                    lines.append(f"| `{field.name}` | `{field.default}` | {what} |".replace("||", "|"))
        lines.append("")
    return head + "\n".join(lines)


def curation() -> str:
    import inspect

    from holdfast.data.columns import COLUMNS
    from holdfast.data.curate import RULES

    lines = [
        "# Curation",
        "",
        "`holdfast curate DATASET --plan plan.toml -o NEW` applies a plan of rules, one after another, and freezes what is left as another dataset. The",
        "parent is not changed. The new folder keeps `curation.json` (the parent's root, the plan, what each rule did) and `curated.jsonl`: for each",
        "row that a rule touched its digest, the rule, what was done and why. The manifest has the digests of both. The same dataset and plan give the same root.",
        "",
        "```toml",
        "[[rule]]",
        'kind = "drop"',
        'where = {annotator = "quick"}',
        'why = "agrees with the others no more than chance"',
        "",
        "[[rule]]",
        'kind = "deduplicate"',
        'by = "prompt"',
        "```",
        "",
        f'`where` names columns ({", ".join(f"`{c}`" for c in COLUMNS)}, `extra.NAME`) and a value or a list of values; `""` is nothing said. `rows` names a file',
        "with a row's digest, or the first digits of it, on each line, as `inspect.json` lists them. Any rule may say `why`.",
        "",
        "| rule | keys | |",
        "|---|---|---|",
    ]
    for name, rule in RULES.items():
        keys = [p for p in inspect.signature(rule).parameters.values() if p.kind is p.KEYWORD_ONLY]
        said = ", ".join(f"`{k.name}`" + ("" if k.default in (k.empty, None) else f" (`{k.default!r}`)") for k in keys)
        lines.append(f"| `{name}` | {said} | {' '.join((rule.__doc__ or '').split())} |")
    return "\n".join([*lines, ""])


PAGES = {
    "curation.md": curation,
    "cli.md": cli,
    "recipe.md": recipe,
    "control.md": control,
    "moving-from-trl.md": moving,
}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (HERE / name).write_text(make(), encoding="utf-8")
        print(HERE / name)
