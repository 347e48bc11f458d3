"""A dataset's card (a README in the hub's form) and its Croissant metadata, from what an inspection measured.

Every number is one of the dataset's manifest or of one inspection, and both files carry that inspection's digest: who has
inspect.json can check each of them. What was not said (a licence, an author, a language) is left out, never made up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from holdfast.data.dataset import CONTENT, SCHEMAS, Dataset
from holdfast.errors import DataError

SEVERITIES = ("serious", "warning", "note", "good")
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
COLUMNS = {
    "prompts": {"id": "SHA-256 of the prompt", "content": "the prompt, as JSON: a text or chat messages"},
    "responses": {
        "id": "SHA-256 of the response under its prompt", "prompt": "the prompt's id",
        "content": "the response, as JSON: a text or chat messages",
    },
    "judgements": {
        "id": "SHA-256 of the judgement", "kind": "pair, tie, soft, ranking, scores or label", "prompt": "the prompt's id",
        "responses": "the responses' ids, of a pair the preferred one first", "value": "a probability, a score or a label",
        "ranks": "of a ranking: lower is better", "margin": "how much better, where it was said", "annotator": "who judged",
        "annotator_kind": "human, ai or rule", "shown": "the place each response was shown at", "rubric": "by what standard",
        "category": "kind of prompt", "licence": "the row's licence", "sources": "who wrote each response",
        "extra": "whatever else the row said, as JSON", "copy": "0, or the number of an equal judgement",
    },
}  # fmt: skip
READ = {"judgements": "; read it with pyarrow, polars or holdfast: pandas holds no lists of digests"}
TYPES = {"string": "sc:Text", "int32": "sc:Integer", "int64": "sc:Integer", "double": "sc:Float"}
RAI = "http://mlcommons.org/croissant/RAI/1.0"
CONTEXT: dict[str, Any] = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column",
    "conformsTo": "dct:conformsTo", "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/", "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract", "field": "cr:field",
    "fileProperty": "cr:fileProperty", "fileObject": "cr:fileObject", "fileSet": "cr:fileSet", "format": "cr:format",
    "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath", "key": "cr:key",
    "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path", "recordSet": "cr:recordSet",
    "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace",
    "samplingRate": "cr:samplingRate", "sc": "https://schema.org/", "separator": "cr:separator", "source": "cr:source",
    "subField": "cr:subField", "transform": "cr:transform",
}  # fmt: skip


@dataclass(frozen=True)
class About:
    """What only a person can say of a dataset; None where it was not said. license: an SPDX or hub id (default: the one that
    all rows name); language: two-letter codes; url: where it is published; date: YYYY-MM-DD.
    """

    name: str | None = None
    description: str | None = None
    license: str | None = None
    language: tuple[str, ...] = ()
    creator: str | None = None
    url: str | None = None
    date: str | None = None
    citation: str | None = None


@dataclass(frozen=True)
class Card:
    """readme: the card; croissant: the metadata; unsaid: what a reader will miss, with the option that says it."""

    readme: str
    croissant: dict[str, Any]
    unsaid: list[str]

    def save(self, folder: str | Path) -> list[Path]:
        """Write README.md and croissant.json; the same card is the same bytes."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(self.readme, encoding="utf-8", newline="\n")
        said = orjson.dumps(self.croissant, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        (folder / "croissant.json").write_bytes(said)
        return [folder / "README.md", folder / "croissant.json"]


def make_card(ds: Dataset, inspection: Mapping[str, Any], about: About | None = None) -> Card:
    """The card of a dataset from an inspection of it (`Inspection.as_json()` or `read_inspection`).

    Raises DataError where the inspection is of another dataset.
    """
    about = about or About()
    if inspection["dataset"] != ds.root:
        raise DataError(
            f"the inspection is of dataset {inspection['dataset'][:12]}, {ds.path} is {ds.root[:12]}: inspect it again"
        )
    licences = Counter(x for x in ds.column("licence") if x)
    everywhere = len(licences) == 1 and sum(licences.values()) == ds.n_judgements
    licence = about.license or (next(iter(licences)) if everywhere else None)
    name = about.name or ds.path.resolve().name
    unsaid = [
        f"{what} (--{option})"
        for what, option, there in (
            ("licence", "license", licence), ("description", "description", about.description),
            ("language", "language", about.language), ("creator", "creator", about.creator), ("address", "url", about.url),
            ("date of publication", "date", about.date),
        )
        if not there
    ]  # fmt: skip
    said = _Said(ds, inspection, about, name, licence, licences)
    return Card(_readme(said), _croissant(said), unsaid)


@dataclass(frozen=True)
class _Said:
    ds: Dataset
    inspection: Mapping[str, Any]
    about: About
    name: str
    licence: str | None
    licences: Counter[str]

    @property
    def description(self) -> str:
        facts = self.inspection["facts"]
        measured = (
            f"{facts['judgements']:,} judgements of {facts['responses']:,} responses to {facts['prompts']:,} prompts, frozen "
            f"under root {self.ds.root}."
        )
        return f"{self.about.description.rstrip()} {measured}" if self.about.description else measured

    @property
    def alarms(self) -> list[dict[str, Any]]:
        found = [f for f in self.inspection["findings"] if f["severity"] in ("serious", "warning")]
        return sorted(found, key=lambda f: SEVERITIES.index(f["severity"]))

    @property
    def tags(self) -> list[str]:
        kinds = sorted({f"{k}s" if k in ("pair", "tie", "ranking", "label") else k for k in self.ds.column("kind")})
        return ["preference", "human-feedback" if "human" in self.annotators else "preferences", "holdfast", *kinds]

    @property
    def annotators(self) -> Counter[str]:
        return Counter(k or "kind not said" for k in self.ds.column("annotator_kind"))


def _figure(f: Mapping[str, Any]) -> str:
    def one(x: float | None) -> str:
        return "-" if x is None else f"{100 * x:.1f} %" if f["unit"] == "share" else f"{x:,.3g}"

    return one(f["value"]) + (
        f" ({one(f['lo'])} to {one(f['hi'])})" if f["lo"] is not None and f["hi"] is not None else ""
    )


def _cell(text: str) -> str:
    """Text that may stand in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _readme(s: _Said) -> str:
    facts, inspection = s.inspection["facts"], s.inspection
    front: dict[str, Any] = {
        "pretty_name": s.name,
        **({"license": s.licence} if s.licence else {}),
        **({"language": list(s.about.language)} if s.about.language else {}),
        "task_categories": ["text-generation"] if s.ds.kind == "text" else ["reinforcement-learning"],
        "size_categories": [next((word for most, word in SIZES if facts["judgements"] < most), "n>10M")],
        "tags": s.tags,
        "configs": [{"config_name": t, "data_files": f"{t}.parquet", **({"default": True} if t == "judgements" else {})}
                    for t in ("judgements", "prompts", "responses")],
        "holdfast": {"root": s.ds.root, "inspection": inspection["digest"]},
    }  # fmt: skip
    out = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {s.name}",
        "",
        s.description,
        "",
    ]
    out += [
        f"All figures below are from inspection `{inspection['digest']}` of this root, with 95 % intervals from a bootstrap over",
        "prompts; its `inspect.json` lists the rows behind each. `holdfast verify` checks that the files are what the root says,",
        "`holdfast inspect` makes the figures again.",
        "",
        "## What it holds",
        "",
        "| | |",
        "|---|---|",
        *(f"| {_cell(k)} | {v:,} |" for k, v in facts.items() if isinstance(v, int)),
        *(f"| judged by {_cell(k)} | {n:,} |" for k, n in sorted(s.annotators.items())),
        *(f"| licence {_cell(k)} | {n:,} |" for k, n in sorted(s.licences.items())),
        "",
        "## What it teaches beside what was meant",
        "",
    ]
    if not s.alarms:
        out += [
            "No detector alarms. What each could have seen is another question: see the power figures, if there are any.",
            "",
        ]
    for f in s.alarms:
        out += [
            f"- **{f['title']}** ({f['severity']}, `{f['name']}`). {_cell(f['verdict'])} {_cell(f['remedy'])}".rstrip()
        ]
    out += ["", "## Every figure", "", "| finding | | figure | what it is |", "|---|---|---|---|"]
    out += [
        f"| `{_cell(f['name'])}` | {f['severity']} | {_figure(f)} | {_cell(f['verdict'])} |"
        for f in inspection["findings"]
    ]
    if inspection["skipped"]:
        skipped = "; ".join(f"{k} ({why})" for k, why in inspection["skipped"].items())
        out += ["", f"Not looked at: {_cell(skipped)}."]
    if "power" in inspection:
        out += ["", "## What inspection would have found", ""]
        out += [
            f"Faults planted in {inspection['power']['copies']} copies of this dataset each, at rising strengths.",
            "",
        ]
        out += ["| planted | found nine times in ten from | false alarms on clean copies |", "|---|---|---|"]
        for p in inspection["power"]["faults"]:
            false = p["false alarms"]
            alarms = "-" if p["not measured"] else f"{false['alarms']} of {false['copies']}"
            out.append(f"| {_cell(p['fault'])} | {_cell(p['verdict'])} | {alarms} |")
    out += ["", "## Where it comes from", ""]
    for file in s.ds.manifest["files"]:
        out.append(f"- `{Path(file['name']).name}`, {file['rows']:,} rows, SHA-256 `{file['sha256']}`")
    if s.ds.manifest.get("rejects"):
        out.append(f"- {s.ds.manifest['rejects']:,} rows could not be read; rejects.jsonl lists them with the reason.")
    if (trail := s.ds.path / "curation.json").is_file():
        parent = orjson.loads(trail.read_bytes())["parent"]
        out.append(
            f"- Made from dataset `{parent}` by the rules in curation.json; curated.jsonl lists every row they touched."
        )
    out += ["", "## Files", "", "| table | column | what |", "|---|---|---|"]
    out += [f"| {t} | `{c}` | {what} |" for t, columns in COLUMNS.items() for c, what in columns.items()]
    if s.about.citation:
        out += ["", "## Citation", "", "```", s.about.citation.strip(), "```"]
    return "\n".join([*out, ""])


def _croissant(s: _Said) -> dict[str, Any]:
    """Croissant 1.0 with the terms of its RAI extension."""
    digest, facts = s.inspection["digest"], s.inspection["facts"]
    tables = s.ds.manifest["tables"]
    files = [
        {
            "@type": "cr:FileObject",
            "@id": f"{t}.parquet",
            "name": f"{t}.parquet",
            "description": f"the {t}",
            "contentSize": f"{tables[t]['bytes']} B",
            "contentUrl": f"{t}.parquet",
            "encodingFormat": "application/x-parquet",
            "sha256": tables[t]["sha256"],
        }
        for t in CONTENT
    ]
    records = []
    for t in CONTENT:
        fields = []
        for column, what in COLUMNS[t].items():
            kind = str(SCHEMAS[t].field(column).type)
            inner = kind.removeprefix("list<element: ").removesuffix(" not null>").removesuffix(">")
            field: dict[str, Any] = {
                "@type": "cr:Field",
                "@id": f"{t}/{column}",
                "name": column,
                "description": what,
                "dataType": TYPES.get(inner, "sc:Text"),
                "source": {"fileObject": {"@id": f"{t}.parquet"}, "extract": {"column": column}},
            }
            if kind.startswith("list"):
                field["repeated"] = True
            fields.append(field)
        records.append(
            {"@type": "cr:RecordSet", "@id": t, "name": t, "description": f"one record per row of {t}.parquet{READ.get(t, '')}",
             "key": {"@id": f"{t}/id"}, "field": fields}
        )  # fmt: skip
    measured = [
        {
            "@type": "PropertyValue",
            "name": f["name"],
            "description": f["definition"],
            "value": f["value"],
            **({"minValue": f["lo"], "maxValue": f["hi"]} if f["lo"] is not None else {}),
            "measurementTechnique": f"holdfast inspection {digest}",
        }
        for f in s.inspection["findings"]
        if f["value"] is not None
    ]
    personal = next((f["verdict"] for f in s.inspection["findings"] if f["name"] == "validity/personal"), None)
    about = s.about
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.0", RAI],
        "name": s.name,
        "description": s.description,
        **({"license": s.licence} if s.licence else {}),
        **({"url": about.url} if about.url else {}),
        **({"creator": {"@type": "sc:Person", "name": about.creator}} if about.creator else {}),
        **({"datePublished": about.date} if about.date else {}),
        **({"inLanguage": list(about.language)} if about.language else {}),
        **({"citeAs": about.citation} if about.citation else {}),
        "keywords": s.tags,
        "version": f"1.0.0+{s.ds.root[:12]}",
        "identifier": [f"holdfast:dataset/{s.ds.root}", f"holdfast:inspection/{digest}"],
        "rai:dataBiases": [f"{f['verdict']} ({f['name']}, inspection {digest[:12]})" for f in s.alarms],
        "rai:dataLimitations": [f"{name} was not looked at: {why}" for name, why in s.inspection["skipped"].items()],
        **({"rai:personalSensitiveInformation": [f"{personal} (inspection {digest[:12]})"]} if personal else {}),
        "rai:annotationsPerItem": f"{facts['judgements'] / max(facts['prompts'], 1):.2f} judgements per prompt",
        "additionalProperty": measured,
        "distribution": files,
        "recordSet": records,
    }
