"""The command line: a verb each. Parse, call, print; no logic.

Exit status: 0 done; 1 the thing asked for does not hold (verify, replay); 2 the user's mistake, said on standard error without a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from holdfast.errors import HoldfastError

app = typer.Typer(
    name="holdfast",
    help="Learn from preferences that are already collected, and prove which rows made which step.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out, err = Console(), Console(stderr=True)
TOGETHER = ("train", "resume", "evaluate", "score", "replay")  # what several processes can do as one

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on standard error.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Lay a value over the recipe, such as train.lr=1e-5."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


class OnError(Enum):
    stop = "stop"
    skip = "skip"


class AnnotatorKind(Enum):
    human = "human"
    ai = "ai"
    rule = "rule"


def _say(as_json: bool, said: dict[str, Any], *lines: str) -> None:
    """One JSON object, or lines for a person."""
    if as_json:
        sys.stdout.write(orjson.dumps(said, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode() + "\n")
    else:
        for line in lines:
            out.print(line, highlight=False, soft_wrap=True)


@app.command()
def freeze(
    files: Annotated[
        list[Path], typer.Argument(help="jsonl, json, csv or parquet, also .gz or .zst; or a `datasets` folder.")
    ],
    output: Annotated[Path, typer.Option("--out", "-o", help="The dataset folder to make.")],
    format: Annotated[
        str | None, typer.Option(help="The input's format; detected from the columns where not given.")
    ] = None,
    map: Annotated[
        list[str] | None, typer.Option("--map", metavar="FIELD=COLUMN", help="Read FIELD from COLUMN.")
    ] = None,
    annotator: Annotated[str | None, typer.Option(help="Who judged, for rows that do not say.")] = None,
    annotator_kind: Annotated[
        AnnotatorKind | None, typer.Option(help="What kind of annotator, for rows that do not say.")
    ] = None,
    category: Annotated[str | None, typer.Option(help="The category, for rows that do not say.")] = None,
    licence: Annotated[str | None, typer.Option(help="The licence, for rows that do not say.")] = None,
    on_error: Annotated[
        OnError, typer.Option(help="stop: freeze nothing if a row is rejected. skip: freeze the rest.")
    ] = OnError.stop,
    json: Json = False,
) -> None:
    """Read, validate and freeze files into an immutable dataset named by its root digest."""
    from holdfast.data.freeze import RowsRejected
    from holdfast.data.freeze import freeze as run

    try:
        frozen = run(
            files,
            output,
            format=format,
            mapping=_mapping(map or []),
            on_error=on_error.value,
            annotator=annotator,
            annotator_kind=annotator_kind and annotator_kind.value,
            category=category,
            licence=licence,
        )
    except RowsRejected as stopped:
        if json:
            said = {"root": None, "accepted": stopped.accepted, "rejected": len(stopped.rejects)}
            _say(True, {**said, "rejects": list(stopped.rejects)})
        raise
    d = frozen.dataset
    _say(
        json,
        {
            "root": frozen.root,
            "accepted": frozen.accepted,
            "rejected": frozen.rejected,
            "rejects": list(frozen.rejects),
        },
        f"[bold]{escape(str(output))}[/]  root {frozen.root}",
        f"  {frozen.accepted:,} rows accepted, {frozen.rejected:,} rejected"
        + (f" (listed in {output / 'rejects.jsonl'})" if frozen.rejected else ""),
        f"  {d.n_prompts:,} prompts, {d.n_responses:,} responses, {d.n_judgements:,} judgements",
    )


def _mapping(pairs: Sequence[str]) -> dict[str, str] | None:
    mapping = {}
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not (field and equals and column):
            raise HoldfastError(f"--map {pair!r} should be FIELD=COLUMN, such as prompt=question")
        mapping[field] = column
    return mapping or None


@app.command()
def split(
    dataset: Annotated[Path, typer.Argument(help="A frozen dataset.")],
    output: Annotated[Path, typer.Option("--out", "-o", help="The folder to write the split into.")],
    seed: Annotated[int, typer.Option()] = 0,
    validation: Annotated[float, typer.Option(help="Share of prompts for validation.")] = 0.05,
    test: Annotated[float, typer.Option(help="Share of prompts for the test.")] = 0.1,
    stratify: Annotated[bool, typer.Option(help="Keep the shares within every category.")] = True,
    holdout: Annotated[
        list[str] | None, typer.Option(metavar="CATEGORY", help="Hold a whole category out, as `ood`.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="What no two parts share: near-duplicates, source, annotator, extra.NAME."),
    ] = None,
    json: Json = False,
) -> None:
    """Partition a dataset by prompt group; hold out categories."""
    from holdfast.data.dataset import open_dataset
    from holdfast.data.splits import make_split
    from holdfast.recipe import SplitTable, parse

    table: dict[str, Any] = {"seed": seed, "validation": validation, "test": test, "stratify": stratify}
    table |= {"holdout": holdout or [], "group": group}
    made = make_split(open_dataset(dataset), parse(SplitTable, table, "split"))
    made.save(output)
    sizes = {name: len(rows) for name, rows in made.parts.items()}
    _say(
        json,
        {"digest": made.digest, "dataset": made.dataset_root, "parts": sizes},
        f"[bold]{escape(str(output))}[/]  split {made.digest}",
        "  " + ", ".join(f"{name} {n:,}" for name, n in sizes.items()) + " judgements",
    )


@app.command()
def recipe(
    from_trl: Annotated[
        Path,
        typer.Option(
            "--from-trl",
            metavar="FILE",
            help="TRL's arguments: YAML, JSON, a command line or shell script, or a Python script.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="The recipe to write; default: standard output.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="The frozen dataset; default: data/ and dataset_name.")] = None,
    method: Annotated[
        str | None, typer.Option(help="dpo, kto, reward, cpo or orpo, where the file does not show it.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes TRL was launched with: they multiply the batch.")
    ] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Lay one of TRL's arguments over the file.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Leave out an argument that no recipe can say.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a recipe of another trainer's arguments, and say what became of each."""
    from holdfast.moving import MEANINGS
    from holdfast.moving import from_trl as run

    made = run(from_trl, method=method, data=data, processes=processes, settings=set or [], without=without or [])
    if output is not None:
        if output.exists():
            raise HoldfastError(f"{output} exists; choose another file with -o, or delete it")
        output.write_text(made.toml, encoding="utf-8")
    if json:
        _say(True, {"method": made.method, "recipe": made.recipe, "lines": [asdict(line) for line in made.lines]})
        return
    if output is None:
        sys.stdout.write(made.toml)
    to = out if output is not None else err
    for kind, meaning in MEANINGS.items():
        lines = [line for line in made.lines if line.kind == kind]
        if lines:
            to.print(f"\n[bold]{meaning}[/]", highlight=False)
        for line in lines:
            to.print(escape(f"  {line}"), highlight=False, soft_wrap=True)
    if output is not None:
        to.print(f"\n[bold]{escape(str(output))}[/]  go on with  holdfast train {output}", highlight=False)


@app.command()
def export(
    dataset: Annotated[Path, typer.Argument(help="A frozen dataset.")],
    output: Annotated[
        Path, typer.Option("--out", "-o", help="The file to write: .jsonl or .parquet, each also with .gz or .zst.")
    ],
    format: Annotated[str, typer.Option(help="The format to write.")] = "trl",
    split: Annotated[
        Path | None, typer.Option(help="A folder with a split of this dataset, as `holdfast split` writes it.")
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="Only this part of the split: train, validation, test or ood.")
    ] = None,
    lossy: Annotated[
        bool, typer.Option(help="Leave out, and list beside the file, what the format cannot say.")
    ] = False,
    json: Json = False,
) -> None:
    """Write a dataset in another format; freezing the file gives the same root."""
    from holdfast.data.dataset import open_dataset
    from holdfast.data.export import export as run
    from holdfast.data.splits import part_rows

    ds = open_dataset(dataset)
    done = run(ds, output, format=format, rows=part_rows(ds, split, part), lossy=lossy)
    lines = [f"[bold]{escape(str(output))}[/]  {done.rows:,} rows say {done.judgements:,} judgements"]
    lines += [f"  left out: {n:,} x {escape(what)}" for what, n in done.left_out.most_common()]
    lines += [f"  lost: {n:,} x {escape(what)}" for what, n in done.lost.most_common()]
    if not done.detected:
        lines.append(f"  its columns fit another format as well: read it with --format {done.format}")
    _say(
        json,
        {
            "file": str(output),
            "format": done.format,
            "rows": done.rows,
            "judgements": done.judgements,
            "left_out": dict(done.left_out),
            "lost": dict(done.lost),
            "root": done.root,
            "detected": done.detected,
        },
        *lines,
    )


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe (TOML).")],
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run folder; default: runs/NAME, by the recipe.")
    ] = None,
    set: Set = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train what a recipe says: sft, reward, dpo and its family; on episodes, cql, bcq, iql, cpl and theirs."""
    from holdfast import pipeline
    from holdfast.recipe import read_recipe

    said = read_recipe(recipe, set or [])
    _trained(pipeline.train(said, output or Path("runs") / said.run.name, quiet=quiet or json), json)


@app.command()
def resume(
    run: RunFolder,
    allow_environment_change: Annotated[
        bool, typer.Option(help="Go on under other versions, threads or hardware; the ledger then says so.")
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Go on with an interrupted run, to the same bytes as if nothing had happened."""
    from holdfast import pipeline

    _trained(pipeline.resume(run, quiet or json, allow_environment_change), json)


def _trained(run: Any, json: bool) -> None:
    _say(
        json,
        {
            "run": str(run.folder),
            "steps": run.steps,
            "ledger_head": run.ledger_head,
            "weights_digest": run.weights_digest,
            "stopped": run.stopped,
        },
        f"[bold]{escape(str(run.folder))}[/]  {run.steps} steps, stopped: {run.stopped}",
        f"  ledger head     {run.ledger_head}",
        f"  weights digest  {run.weights_digest}",
        f"  go on with      holdfast resume {run.folder}"
        if run.stopped == "interrupted"
        else f"  report          {run.folder / 'report.html'}",
    )


@app.command()
def evaluate(
    run: RunFolder,
    on: Annotated[
        Path | None,
        typer.Option("--on", metavar="DATASET", help="Another frozen dataset; default: the run's own held-out parts."),
    ] = None,
    json: Json = False,
) -> None:
    """Score every row into a table, and derive all figures from that table; of control, figures by part."""
    from holdfast import pipeline

    metrics = pipeline.evaluate(run, on)
    if json:
        _say(True, {"metrics": metrics})
    elif "figures" in metrics:
        out.print(figures_table(metrics))
    else:
        out.print(*control_tables(metrics), sep="\n")


def figures_table(metrics: dict[str, Any]) -> Table:
    """Accuracy with interval per part, the two shortcuts beside it."""
    table = Table(title="Held-out accuracy, 95 % interval over prompts", title_justify="left", header_style="bold")
    for column in ("part", "judgements", "accuracy", "longer wins", "bag of words"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, cells in metrics["figures"]["parts"].items():
        found = cells["all"]["figures"]
        shown = (interval(found.get(f"{name}/accuracies")) for name in ("rewards", "longer", "bag of words"))
        table.add_row(part, f"{cells['all']['judgements']:,}", *shown)
    return table


def control_tables(metrics: dict[str, Any]) -> list[Table]:
    """A control run's figures, a column for each part; and what its members' episodes returned, where they were played."""
    parts = {name: said for name, said in metrics.items() if name != "played"}
    tables = []
    if parts:
        table = Table(title="Figures, means over members", title_justify="left", header_style="bold")
        for column in ("", *parts):
            table.add_column(column, justify="right" if column else "left")
        for name in dict.fromkeys(name for said in parts.values() for name in said):
            cells = (said.get(name) for said in parts.values())
            table.add_row(name, *("-" if c is None else f"{c:,}" if name == "rows" else f"{c:.5g}" for c in cells))
        tables.append(table)
    if "played" in metrics:
        tables.append(returns_table(metrics["played"]["environment"], metrics["played"]["returns"]))
    return tables


def returns_table(environment: str, returns: Sequence[Sequence[float]]) -> Table:
    """Returns of each member's episodes: mean, spread, least and most."""
    title = f"{escape(environment)}, {len(returns[0])} episodes each"
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in ("member", "mean return", "spread", "least", "most"):
        table.add_column(column, justify="right")
    together = [("all", [r for those in returns for r in those])] if len(returns) > 1 else []
    for name, those in (*enumerate(returns), *together):
        mean = sum(those) / len(those)
        spread = (sum((r - mean) ** 2 for r in those) / len(those)) ** 0.5
        table.add_row(str(name), *(f"{x:.5g}" for x in (mean, spread, min(those), max(those))))
    return table


def interval(figure: dict[str, float | None] | None) -> str:
    """A figure with its interval; a dash where there is none."""
    if figure is None or figure["value"] is None:
        return "-"
    if figure["lo"] is None or figure["hi"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} [{figure['lo']:.3f}, {figure['hi']:.3f}]"


@app.command()
def score(
    run: RunFolder,
    file: Annotated[Path, typer.Argument(help="Rows with a prompt and a response (or any format that freeze reads).")],
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write JSON lines here instead of printing them.")
    ] = None,
    json: Json = False,
) -> None:
    """Rewards, or implicit rewards, for given responses."""
    from holdfast import pipeline

    rows = pipeline.score(run, file)
    lines = b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    if output is not None:
        output.write_bytes(lines)
        _say(json, {"scores": str(output), "rows": len(rows)}, f"{len(rows):,} responses scored into {output}")
    elif json:
        _say(True, {"scores": rows})
    else:
        sys.stdout.write(lines.decode())


@app.command()
def verify(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|DATASET", help="A run folder, a dataset folder or a log of episodes.")
    ],
    head: Annotated[str | None, typer.Option(help="The published ledger head: also shows a ledger cut short.")] = None,
    json: Json = False,
) -> None:
    """Check that everything hashes to what it says. Needs no model code; takes seconds."""
    from holdfast.proof import verified

    found = verified(path, head)
    problems = [asdict(p) for p in found.problems]
    ok = not problems
    lines = [f"[red]{escape(str(problem))}[/]" for problem in found.problems]
    lines += [f"[dim]note: {escape(note)}[/]" for note in found.notes]
    _say(
        json,
        {"ok": ok, "problems": problems, "notes": found.notes},
        *lines,
        f"[bold]{escape(str(path))}[/] " + ("[green]holds[/]" if ok else f"[red]{len(problems)} problems[/]"),
    )
    if not ok:
        raise typer.Exit(1)


@app.command()
def replay(
    run: RunFolder,
    steps: Annotated[str, typer.Option(metavar="A:B", help="Steps A to B, both included.")],
    json: Json = False,
) -> None:
    """Recompute a window of steps and compare it with the ledger to the byte."""
    from holdfast import pipeline

    first, colon, last = steps.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise HoldfastError(f"--steps {steps!r} should be A:B, such as 10:20")
    done = pipeline.replay(run, int(first), int(last))
    _say(
        json,
        done,
        *(f"[red]{escape(p)}[/]" for p in done["problems"]),
        f"steps {first} to {last}: " + ("[green]same bytes[/]" if done["ok"] else "[red]not the same[/]"),
    )
    if not done["ok"]:
        raise typer.Exit(1)


@app.command()
def trace(
    run: RunFolder,
    row: Annotated[
        str | None, typer.Option(help="A judgement's id, or its first characters: the steps that used it.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="A step: its rows, annotators and lines of the original files.")
    ] = None,
    json: Json = False,
) -> None:
    """Which steps used a row; which rows, annotators and files made a step."""
    from holdfast.training.trace import trace_row, trace_step

    if (row is None) == (step is None):
        raise HoldfastError("trace needs one of --row ID and --step N")
    if row is not None:
        said = trace_row(run, row)
        _say(json, said, f"row {said['row']}", *(f"  step {s['step']}  loss {s['loss']:.6g}" for s in said["steps"]))
    if step is not None:
        said = trace_step(run, step)
        _say(
            json,
            said,
            f"step {step}",
            *(
                f"  {r['id'][:16]}  {r.get('annotator') or '-':<14} {escape('; '.join(f'{f}:{n}' for f, n in r.get('origins', [])))}"
                for r in said["rows"]
            ),
        )


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUNS...", help="Two or more evaluated runs; the first is the one compared with."),
    ],
    json: Json = False,
) -> None:
    """Paired comparison of runs on the rows that all of them were evaluated on, with intervals."""
    from holdfast.evaluation.compare import compare as pair

    said = pair(runs)
    table = Table(
        title=f"Accuracy against {runs[0]}, same rows, 95 % interval over prompts",
        title_justify="left",
        header_style="bold",
    )
    for column in ("run", "part", "judgements", "accuracy", "difference"):
        table.add_column(column)
    for line in said["comparisons"]:
        table.add_row(
            line["run"], line["part"], f"{line['n']:,}", f"{line['accuracy']:.3f}", interval(line["difference"])
        )
    if json:
        _say(True, said)
    else:
        out.print(table)


@app.command()
def inspect(
    dataset: Annotated[Path, typer.Argument(help="A frozen dataset's folder.")],
    output: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write inspect.html, and inspect.json with the rows behind findings, here."),
    ] = None,
    split: Annotated[
        Path | None, typer.Option(help="A run's folder, or another with a split of the dataset: look for leaks.")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="An evaluation set that it must not overlap; may be given again.")
    ] = None,
    target: Annotated[Path | None, typer.Option(help="Prompts that the model is meant for.")] = None,
    samples: Annotated[
        Path | None, typer.Option(help="What the policy itself wrote, with columns prompt and response.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json or a model's folder, for lengths in tokens.")
    ] = None,
    max_length: Annotated[int, typer.Option(help="Tokens at which training will cut prompt and response.")] = 2048,
    only: Annotated[list[str] | None, typer.Option(help="A detector to run; may be given again.")] = None,
    embedder: Annotated[
        Path | None, typer.Option(help="A sentence-transformers folder, for meanings in place of words.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A language model's folder, or a run's: which pairs does it find alike (CHES)?"),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Count by this, too: licence, rubric, or a key of the rows; may be given again."),
    ] = None,
    power: Annotated[
        bool, typer.Option("--power", help="Plant each fault in copies of the dataset: what would have been found?")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of resamples, folds and samples.")] = 0,
    json: Json = False,
) -> None:
    """What a dataset can and cannot teach: shortcuts, contradictions, noise, duplicates, leaks, coverage, agreement."""
    from holdfast.data.dataset import open_dataset
    from holdfast.data.inspect.finding import between
    from holdfast.data.inspect.inspection import inspect_dataset

    ds = open_dataset(dataset)
    embed, named = None, None
    if embedder is not None:
        from holdfast.language.embedding import load_embedder

        embed, named = load_embedder(embedder)
    ches, policy = None, None
    if model is not None:
        from holdfast.language.displacement import load_ches

        ches, policy = load_ches(model)
    found = inspect_dataset(
        ds,
        split=split,
        against=against or (),
        target=target,
        embed=embed,
        embedder=named,
        ches=ches,
        model=policy,
        tokenizer=tokenizer,
        max_length=max_length,
        columns=column or (),
        samples=samples,
        only=only or None,
        power=power,
        seed=seed,
        progress=None if json or not err.is_terminal else lambda name: err.print(f"looking at {name}", style="dim"),
    )
    if output is not None:
        from holdfast.report.inspection import write_inspection

        found.save(output / "inspect.json")
        write_inspection(found, ds, output)
    if json:
        _say(True, found.as_json())
        return
    table = Table(title=f"{dataset}, {found.facts['judgements']:,} judgements", title_justify="left", show_lines=True)
    for name in ("", "finding", "figure, 95 %", "what it means"):
        table.add_column(name)
    styles = {"serious": "bold red", "warning": "yellow", "note": "", "good": "green"}
    for f in sorted(found.findings, key=lambda f: list(styles).index(f.severity)):
        rows = f"\n{len(f.rows):,} rows" if len(f.rows) and f.alarmed else ""
        mark = f"[{styles[f.severity]}]{f.severity}[/]" if styles[f.severity] else f.severity
        table.add_row(mark, escape(f.name), between(f.figure, f.unit), escape(f.verdict) + rows)
    out.print(table)
    for name, why in found.skipped.items():
        out.print(f"not looked at: {name}: {escape(why)}", style="dim")
    if found.power is not None:
        _print_power(found.power)
    if output is not None:
        out.print(f"{escape(str(output / 'inspect.html'))}", soft_wrap=True)


def _print_power(power: Any) -> None:
    table = Table(title=f"Faults planted in {power.copies} copies each", title_justify="left")
    for name in ("planted", "found nine times in ten from", "false alarms"):
        table.add_column(name)
    for p in power.faults:
        table.add_row(escape(p.fault.name), escape(p.said()), "-" if p.why else f"{p.alarms} of {p.clean}")
    out.print(table)
    if power.near:
        some = ", ".join(f"{100 * n['words replaced']:g} %: {100 * n['recognised']:.0f} %" for n in power.near)
        out.print(f"near-duplicates recognised by the share of words replaced: {some}", soft_wrap=True)
    if power.probe:
        some = ", ".join(f"{100 * n['flipped']:g} %: {100 * n['accuracy']:.0f} %" for n in power.probe)
        out.print(f"unseen labels that a small model foretells, by the share turned round: {some}", soft_wrap=True)
    for name, what in power.blind.items():
        out.print(f"{name} cannot see: {escape(what)}", style="dim", soft_wrap=True)


@app.command()
def rank(
    dataset: Annotated[Path, typer.Argument(help="A frozen dataset's folder, with the sources of its responses.")],
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    json: Json = False,
) -> None:
    """The sources of the responses, by how often they win and by how often they would at equal length."""
    from holdfast.data.dataset import open_dataset
    from holdfast.data.inspect.finding import between
    from holdfast.data.inspect.material import material
    from holdfast.data.inspect.ranking import rank_sources

    ds = open_dataset(dataset)
    found = rank_sources(material(ds, seed=seed))
    if json:
        _say(True, {"root": ds.root, **found.as_json()})
        return
    against = f"against {found.baseline}" if found.baseline else "against the others"
    table = Table(title=f"{dataset}, {found.comparisons:,} comparisons, {against}", title_justify="left")
    for name in ("", "source", "wins at equal length", "wins", "place by wins", "characters"):
        table.add_column(name, justify="left" if name == "source" else "right")
    for p in found.places:
        wins, even = between(p.wins), between(p.controlled)
        table.add_row(str(p.controlled_rank), escape(p.source), even, wins, str(p.rank), f"{p.characters:,.0f}")
    out.print(table)


@app.command()
def card(
    dataset: Annotated[Path, typer.Argument(help="A frozen dataset's folder.")],
    output: Annotated[Path, typer.Option("--out", "-o", help="Write README.md, croissant.json and inspect.json here.")],
    inspection: Annotated[
        Path | None,
        typer.Option(help="An inspect.json of this dataset to take the figures from, instead of measuring."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call it.  [default: the folder's name]")] = None,
    description: Annotated[str | None, typer.Option(help="What it is and what it is for, in a sentence.")] = None,
    license: Annotated[
        str | None, typer.Option(help="SPDX or hub id.  [default: the one that every row names]")
    ] = None,
    language: Annotated[list[str] | None, typer.Option(help="Two letters; may be given again.")] = None,
    creator: Annotated[str | None, typer.Option(help="Who made it.")] = None,
    url: Annotated[str | None, typer.Option(help="Where it is published.")] = None,
    date: Annotated[str | None, typer.Option(help="When it was published, YYYY-MM-DD.")] = None,
    citation: Annotated[str | None, typer.Option(help="How to cite it.")] = None,
    json: Json = False,
) -> None:
    """A dataset's card and Croissant metadata, every number tied to an inspection's digest."""
    from holdfast.data.card import About, make_card
    from holdfast.data.dataset import open_dataset
    from holdfast.data.inspect.inspection import inspect_dataset, read_inspection

    ds = open_dataset(dataset)
    about = About(name, description, license, tuple(language or ()), creator, url, date, citation)
    if inspection is None:
        found = inspect_dataset(ds)
        made = make_card(ds, found.as_json(), about)
        written = [found.save(output / "inspect.json"), *made.save(output)]
        digest = found.digest
    else:
        said = read_inspection(inspection)
        made, digest = make_card(ds, said, about), said["digest"]
        written = made.save(output)
    if json:
        paths = [str(p) for p in written]
        _say(True, {"root": ds.root, "inspection": digest, "written": paths, "unsaid": made.unsaid})
        return
    for path in written:
        out.print(escape(str(path)), soft_wrap=True)
    if made.unsaid:
        out.print(f"not said, and left out: {', '.join(made.unsaid)}", style="dim", soft_wrap=True)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="A frozen dataset's folder.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
    json: Json = False,
) -> None:
    """Two datasets side by side: rows, strata, biases, agreement."""
    from holdfast.data.dataset import open_dataset
    from holdfast.data.diff import diff as run
    from holdfast.data.diff import moved

    found = run(open_dataset(a), open_dataset(b))
    if json:
        _say(True, found.as_json())
        return

    def shown(x: tuple[float | None, ...] | None) -> str:
        if x is None or x[0] is None:
            return "-"
        return f"{x[0]:.3f}" + (f" [{x[1]:.3f}, {x[2]:.3f}]" if x[1] is not None and x[2] is not None else "")

    table = Table()
    for name in ("", "in both", f"only in {a}", f"only in {b}"):
        table.add_column(escape(name), justify="left" if not name else "right")
    for name, n in (("judgements", found.rows), ("prompts", found.prompts), ("responses", found.responses)):
        table.add_row(name, *(f"{n[k]:,}" for k in ("both", "only a", "only b")))
    out.print(table)
    table = Table()
    for name in ("", str(a), str(b)):
        table.add_column(escape(name), justify="left" if not name else "right")
    for column, values in found.strata.items():
        for value, (in_a, in_b) in sorted(values.items(), key=lambda x: (-max(x[1]), x[0]))[:12]:
            table.add_row(f"{column} {escape(value) or '(nothing said)'}", f"{in_a:,}", f"{in_b:,}")
        table.add_section()
    for name, (x, y) in found.findings.items():
        table.add_row(escape(name) + ("  [yellow]moved[/]" if moved(x, y) else ""), shown(x), shown(y))
    out.print(table)


@app.command()
def check(
    dataset: Annotated[Path, typer.Argument(help="A frozen dataset's folder.")],
    budget: Annotated[Path, typer.Option(help="A TOML file of limits on what inspection may find.")],
    split: Annotated[Path | None, typer.Option(help="A folder with a split of the dataset.")] = None,
    against: Annotated[list[Path] | None, typer.Option(help="An evaluation set; may be given again.")] = None,
    sarif: Annotated[Path | None, typer.Option(help="Write a SARIF 2.1.0 file, too.")] = None,
    json: Json = False,
) -> None:
    """Whether a dataset is within a budget of bias, leaks and contradictions: exit status 1 where it is not."""
    from importlib.metadata import version

    from holdfast.data.dataset import open_dataset
    from holdfast.data.inspect.budget import exceeded, read_budget
    from holdfast.data.inspect.budget import sarif as as_sarif
    from holdfast.data.inspect.inspection import inspect_dataset

    limits = read_budget(budget)
    found = inspect_dataset(open_dataset(dataset), split=split, against=against or ())
    over = exceeded(found, limits)
    if sarif is not None:
        log = as_sarif(dataset.as_posix(), found, over, version("holdfast"))
        sarif.write_bytes(orjson.dumps(log, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    if json:
        listed = [
            {"limit": e.limit, "asked": e.asked, "finding": e.finding and e.finding.name, "why": e.why} for e in over
        ]
        _say(True, {"ok": not over, "root": found.root, "inspection": found.digest, "exceeded": listed})
    else:
        for e in over:
            out.print(f"[red]over[/]  {escape(str(e))}", soft_wrap=True)
        said = "all hold" if not over else f"{len(over)} findings over"
        out.print(f"{escape(str(dataset))}: {len(limits)} limits, {said}", soft_wrap=True)
    if over:
        raise typer.Exit(1)


@app.command()
def curate(
    dataset: Annotated[Path, typer.Argument(help="A frozen dataset's folder; it is not changed.")],
    plan: Annotated[Path, typer.Option(help="A TOML file of rules: docs/curation.md.")],
    output: Annotated[Path, typer.Option("--out", "-o", help="The folder of the new dataset.")],
    json: Json = False,
) -> None:
    """Drop, relabel, deduplicate, balance, cap or decontaminate rows by a plan, into a new dataset that lists every one."""
    from holdfast.data.curate import curate as run

    made = run(dataset, plan, output)
    said = [
        {"kind": s.rule["kind"], "rows": s.rows, "dropped": s.dropped, "changed": s.changed, "made": s.made}
        for s in made.steps
    ]
    if json:
        _say(True, {"root": made.root, "parent": made.parent, "rules": said, "rows": made.dataset.n_judgements})
        return
    table = Table()
    for name in ("rule", "rows before", "dropped", "changed", "made", "why"):
        table.add_column(name, justify="left" if name in ("rule", "why") else "right")
    for s in made.steps:
        why = escape(str(s.rule.get("why", "")))
        table.add_row(s.rule["kind"], f"{s.rows:,}", f"{s.dropped:,}", f"{s.changed:,}", f"{s.made:,}", why)
    out.print(table)
    out.print(f"{escape(str(output))}  {made.dataset.n_judgements:,} rows  root {made.root}", soft_wrap=True)
    out.print(f"  every row that a rule touched: {escape(str(output / 'curated.jsonl'))}", soft_wrap=True)


@app.command()
def report(run: RunFolder, json: Json = False) -> None:
    """One self-contained HTML page for a run."""
    from holdfast.report.page import write_report

    page = write_report(run)
    _say(json, {"report": str(page)}, f"{page}")


@app.command()
def track(
    run: RunFolder,
    to: Annotated[list[str], typer.Option(metavar="TOOL", help="tensorboard, wandb or mlflow; may be given again.")],
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run has ended.")] = False,
    json: Json = False,
) -> None:
    """Show a run's figures in TensorBoard, Weights & Biases or MLflow, under TRL's names."""
    from holdfast.report.trackers import track as write

    said = write(run, to, follow)
    _say(json, {"run": str(run), "tracked": said}, *(f"{tool}: {escape(where)}" for tool, where in said.items()))


control = typer.Typer(
    help="Logged episodes: freeze, collect, label, relabel; play and export what was learnt.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(control, name="control")


class Jumps(Enum):
    refuse = "refuse"
    cut = "cut"


class Draw(Enum):
    random = "random"
    apart = "apart"


class Short(Enum):
    refuse = "refuse"
    drop = "drop"
    whole = "whole"


LogOut = Annotated[Path, typer.Option("--out", "-o", help="The log's folder to make.")]


@control.command("freeze")
def control_freeze(
    source: Annotated[
        Path, typer.Argument(help="A Minari dataset (folder or local id), .hdf5, .npz, .parquet, or a log's folder.")
    ],
    output: LogOut,
    format: Annotated[
        str | None, typer.Option(help="log, minari, hdf5, npz or parquet; recognised if not given.")
    ] = None,
    map: Annotated[
        list[str] | None, typer.Option("--map", metavar="FIELD=COLUMN", help="Read FIELD from COLUMN.")
    ] = None,
    horizon: Annotated[
        int | None, typer.Option(help="The time limit that cut episodes, where no column shows where.")
    ] = None,
    jumps: Annotated[
        Jumps | None,
        typer.Option(help="What an observation is that does not follow the step before: refused, or a cut."),
    ] = None,
    n_actions: Annotated[
        int | None, typer.Option(help="How many discrete actions there are, where not all were met.")
    ] = None,
    judgements: Annotated[
        Path | None, typer.Option(help="Judgements of segments: JSON lines, or another log's folder.")
    ] = None,
    json: Json = False,
) -> None:
    """Read logged episodes, and judgements of their segments, and freeze them as a log named by its root digest."""
    from holdfast.control.segments import attach, named, read_judgements
    from holdfast.control.sources import read_episodes
    from holdfast.control.store import freeze_episodes, is_log, open_log

    options = {
        "mapping": _mapping(map or []),
        "horizon": horizon,
        "jumps": jumps and jumps.value,
        "n_actions": n_actions,
    }
    episodes = read_episodes(source, format, **options)
    segments = None
    if judgements is not None:
        if is_log(judgements):
            other = open_log(judgements)
            rows = named(other.segments, other.episode_ids) if other.segments is not None else []
        else:
            rows = read_judgements(judgements)
        segments = attach(rows, [episodes.digest(e) for e in range(len(episodes))], str(judgements))
    parent = open_log(source, check=False).root if is_log(source) else None
    _log(freeze_episodes(episodes, output, segments=segments, parent=parent), json)


@control.command("collect")
def control_collect(
    environment: Annotated[str, typer.Argument(help="A Gymnasium environment's id, or Pendulum5-v1.")],
    output: LogOut,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="POLICY[,KEY=VALUE...]",
            help="scripted, random, or a trained policy's folder, with epsilon=, noise=, share=, member=, name=. "
            "Given again, each episode draws one by its share.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps in all; the last episode is cut there.")] = None,
    episodes: Annotated[int | None, typer.Option(help="Episodes in all.")] = None,
    seed: Annotated[int, typer.Option(help="The same call gives the same bytes.")] = 0,
    json: Json = False,
) -> None:
    """Log episodes from an environment, with the probability of every action; freeze them as a log."""
    from holdfast.control.collect import Behaviour, collect
    from holdfast.control.store import freeze_episodes

    behaviours = [Behaviour.parse(text) for text in policy or ["scripted"]]
    _log(freeze_episodes(collect(environment, behaviours, steps=steps, episodes=episodes, seed=seed), output), json)


@control.command("label")
def control_label(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A frozen log of episodes; it is not changed.")],
    output: LogOut,
    queries: Annotated[int, typer.Option(help="How many pairs of segments are judged.")],
    length: Annotated[int, typer.Option(help="Steps of each segment.")],
    seed: Annotated[int, typer.Option(help="Fewer queries of one seed are the first of more.")] = 0,
    temperature: Annotated[
        float, typer.Option(help="The annotator's noise, in units of a segment's return; 0 judges without fault.")
    ] = 1.0,
    ties: Annotated[float, typer.Option(help="Rao and Kupper's nu: 1 has no ties; of even pairs 3 ties half.")] = 1.0,
    discount: Annotated[float, typer.Option(help="Within a segment.")] = 1.0,
    reward: Annotated[
        str | None, typer.Option(help="acrobot-height or mountaincar-energy; default: the log's own rewards.")
    ] = None,
    draw: Annotated[
        Draw, typer.Option(help="Pairs at random, or such as differ in what is seen and done.")
    ] = Draw.random,
    short: Annotated[Short, typer.Option(help="What becomes of episodes shorter than a segment.")] = Short.refuse,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Let segments differ in length, as --short whole makes them.")
    ] = False,
    annotator: Annotated[str, typer.Option(help="The annotator's name.")] = "simulated",
    json: Json = False,
) -> None:
    """Judge segments by a known reward through a noisy simulated annotator, into a new log whose parent is LOG."""
    from holdfast.control.label import label
    from holdfast.control.store import freeze_episodes, open_log

    parent = open_log(log)
    if parent.segments is not None:
        raise HoldfastError(f"{log} has judgements already; label the log it was made from ({str(parent.parent)[:12]})")
    judged = label(
        parent,
        queries=queries,
        length=length,
        seed=seed,
        temperature=temperature,
        ties=ties,
        discount=discount,
        reward=reward,
        draw=draw.value,
        short=short.value,
        mixed=mixed,
        annotator=annotator,
    )
    _log(freeze_episodes(parent.episodes, output, segments=judged, parent=parent.root), json)


@control.command("relabel")
def control_relabel(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run of kind = 'segment_reward'.")],
    log: Annotated[Path, typer.Argument(metavar="LOG", help="A frozen log of episodes; it is not changed.")],
    output: LogOut,
    pessimism: Annotated[
        float, typer.Option(help="Standard deviations between members that are taken off their mean.")
    ] = 0.0,
    json: Json = False,
) -> None:
    """Put a learnt reward in place of a log's own, into a new log whose parent is LOG."""
    from holdfast.control.flow import relabel_log

    made = relabel_log(run, log, output, pessimism)
    _log(made, json)


@control.command("export")
def control_export(
    run: RunFolder,
    output: Annotated[Path, typer.Option("--out", "-o", help="The file to write: a torch.export program, .pt2.")],
    member: Annotated[int, typer.Option(help="Which of the run's members.")] = 0,
    json: Json = False,
) -> None:
    """Write a policy as a program that runs without Holdfast: observations in, best actions out."""
    from holdfast.control.policy import load_policy

    if output.exists():
        raise HoldfastError(f"{output} exists; choose another file with -o, or delete it")
    policy = load_policy(run, member)
    output.parent.mkdir(parents=True, exist_ok=True)
    policy.export(output)
    numbers = policy.algorithm.task.observation
    _say(
        json,
        {"program": str(output), "member": member, "bytes": output.stat().st_size},
        f"[bold]{escape(str(output))}[/]  member {member}, {output.stat().st_size:,} bytes",
        f"  torch.export.load({str(output)!r}).module()(observations)   observations: (N, {numbers}) float32",
    )


@control.command("play")
def control_play(
    run: RunFolder,
    env: Annotated[str, typer.Option(metavar="ID", help="A Gymnasium environment's id, or Pendulum5-v1.")],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of each member; all play the same starts.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the starts.")] = 0,
    json: Json = False,
) -> None:
    """Play a policy's best actions in an environment: what each member's episodes return."""
    from holdfast.control.policy import load_algorithm
    from holdfast.control.simulate import play

    algorithm, scale, _ = load_algorithm(run)
    if not algorithm.acts:
        raise HoldfastError(f"{run} is a reward model: it has no policy to play")
    returns = play(algorithm, scale, env, episodes, seed).tolist()
    if json:
        means = [sum(those) / len(those) for those in returns]
        _say(True, {"environment": env, "mean": means, "returns": returns})
    else:
        out.print(returns_table(env, returns))


def _log(log: Any, json: bool) -> None:
    """What a frozen log holds."""
    e, facts = log.episodes, log.facts
    ended = int(e.terminated.sum())
    judged = 0 if log.segments is None else len(log.segments)
    said = {
        "root": log.root,
        "parent": log.parent,
        "episodes": len(e),
        "steps": len(e.observations),
        "terminated": ended,
        "judgements": judged,
        "facts": facts,
    }
    actions = f"{e.n_actions} actions" if e.n_actions is not None else f"actions of {e.actions.shape[1]} numbers"
    lines = [
        f"[bold]{escape(str(log.path))}[/]  root {log.root}",
        f"  {len(e):,} episodes, {len(e.observations):,} steps; {ended:,} ended, {len(e) - ended:,} were cut",
        f"  observations of {int(e.observations[0].size)} numbers, {actions}; propensities "
        + ("logged" if e.propensities is not None else "not logged"),
    ]
    if e.rewards is not None:
        lines.append(f"  mean return {e.rewards.sum() / len(e):,.4g}")
    for b in facts.get("behaviours", []):
        mean = "-" if b["return"] is None else f"{b['return']:,.4g}"
        before = " by the rewards it was collected with" if "reward" in facts else ""
        lines.append(
            f"  by {escape(b['name'])}: {b['episodes']:,} episodes, {b['steps']:,} steps, mean return {mean}{before}"
        )
    if "dropped" in facts:
        lines.append(f"  dropped {facts['dropped']['steps']:,} steps: {escape(facts['dropped']['why'])}")
    if judged:
        told = facts.get("judgements", {})
        right = told.get("agrees")
        lines.append(
            f"  {judged:,} judgements"
            + (f", {told['tied']:.1%} ties" if "tied" in told else "")
            + (f"; of the others {right:.1%} agree with the reward" if right is not None else "")
        )
    _say(json, said, *lines)


@app.command()
def ope(
    policies: Annotated[
        list[str],
        typer.Argument(
            metavar="POLICY...",
            help="A run or policy folder, a .npz of observations and probs, or `behaviour`: the clone.",
        ),
    ],
    on: Annotated[Path, typer.Option("--on", metavar="DATASET", help="The frozen log to judge by.")],
    discount: Annotated[float, typer.Option(help="Of rewards, by step.")] = 1.0,
    horizon: Annotated[
        int | None, typer.Option(help="Steps that the value is of; default: the longest episode's.")
    ] = None,
    estimator: Annotated[
        list[str] | None, typer.Option(help="is, wis, pdis, wpdis, dr, wdr, magic or fqe; may be given again.")
    ] = None,
    model: Annotated[str, typer.Option(help="Of values: auto, tabular or linear.")] = "auto",
    propensities: Annotated[str, typer.Option(help="auto, logged or estimated.")] = "auto",
    returns: Annotated[
        tuple[float, float] | None,
        typer.Option("--range", metavar="LOW HIGH", help="What a return can be at least and at most: exact intervals."),
    ] = None,
    cap: Annotated[
        float | None, typer.Option(help="Where exact intervals cut weights; not to be chosen by them.")
    ] = None,
    rewards: Annotated[
        Path | None, typer.Option(help="A .npy of (T,), or (K, T) guesses, in place of the log's rewards.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Judge by episodes that a policy learnt from, too.")
    ] = False,
    by: Annotated[str, typer.Option(help="Choose among policies by the lower end or by the value.")] = "lower",
    member: Annotated[int, typer.Option(help="Which replica of the run.")] = 0,
    greedy: Annotated[bool, typer.Option(help="The policy's best action, not its distribution.")] = False,
    confidence: Annotated[float, typer.Option(help="Of intervals.")] = 0.95,
    resamples: Annotated[int | None, typer.Option(help="Of episodes, each with its own fit of the model.")] = None,
    seed: Annotated[int, typer.Option(help="Of resamples and folds.")] = 0,
    json: Json = False,
) -> None:
    """What policies are worth, from a log that others made: eight estimators, intervals, and what the log supports."""
    from holdfast.control.ope.sources import judge

    chosen, notes = judge(
        policies,
        on,
        everything=everything,
        member=member,
        greedy=greedy,
        rewards=rewards,
        by=by,
        discount=discount,
        horizon=horizon,
        estimators=estimator or None,
        model=model,
        propensities=propensities,
        return_range=returns,
        cap=cap,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    if json:
        found = {name: v.as_json() for name, v in chosen.found.items()}
        several = {"chosen": chosen.chosen, "by": chosen.by, "better_than_behaviour": chosen.better}
        _say(True, {"policies": found, **several, "notes": notes})
        return

    def between(x: tuple[float, float]) -> str:
        return f"[{x[0]:.4g}, {x[1]:.4g}]"

    for name, v in chosen.found.items():
        kinds = list(dict.fromkeys(k for row in (*v.values.values(), *v.baselines.values()) for k in row.intervals))
        title = (
            f"{escape(name)}: value of at most {v.horizon} steps, discount {v.discount:g}, {v.confidence:.0%} intervals"
        )
        table = Table(title=title, title_justify="left", header_style="bold")
        for column in ("", "value", *kinds):
            table.add_column(column, justify="left" if not column else "right")
        for x, row in (*v.values.items(), *v.baselines.items(), (f"{v.headline} less the behaviour's", v.gain)):
            shown = (between(row.intervals[k]).replace("[", "\\[") if k in row.intervals else "-" for k in kinds)
            mark = f"[bold]{x}[/]" if x == v.headline else x
            table.add_row(mark + (f" by {v.headline}" if x == "behaviour cloning" else ""), f"{row.value:.4g}", *shown)
            if x == list(v.values)[-1]:
                table.add_section()
        out.print(table)
        for line in (*v.verdict.splitlines(), f"propensities: {v.propensities}; model: {v.model}", *v.notes):
            out.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
    for line in notes:
        out.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
    if len(chosen.found) > 1:
        surely = "" if chosen.better else ", but not surely above the behaviour"
        out.print(f"chosen by {chosen.by}: [bold]{escape(chosen.chosen)}[/]{surely}", highlight=False, soft_wrap=True)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--out", "-o", help="Where the demonstration's dataset and runs go.")] = Path(
        "demo-out"
    ),
    seed: Annotated[int, typer.Option(help="Another seed is another world, another dataset and another run.")] = 0,
    json: Json = False,
) -> None:
    """The whole main job on the built-in world: freeze, train, evaluate, and score samples by the known gold reward."""
    from holdfast.demo.main import demo as run

    said = run(output, seed=seed, quiet=json)
    table = said.pop("table")
    _say(True, said) if json else out.print(table)


def main() -> None:
    """The `holdfast` command. Of the processes that torchrun starts, the first alone prints results."""
    rank = int(os.environ.get("RANK", "0"))
    name = f"holdfast, process {rank + 1} of {os.environ.get('WORLD_SIZE')}" if rank else "holdfast"
    if rank:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ and sys.argv[1:2] and sys.argv[1] not in TOGETHER:
            raise HoldfastError(
                f"{sys.argv[1]} runs in one process: start it without torchrun ({', '.join(TOGETHER)} run in several)"
            )
        app(standalone_mode=True)
    except HoldfastError as problem:
        err.print(f"{name}: {problem}", style="red", highlight=False, markup=False, soft_wrap=True)
        if "RANK" in os.environ:  # a lost process leaves connections that can neither be closed nor waited for
            sys.stderr.flush()
            os._exit(2)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as problem:
        err.print(f"{name}: {problem}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
