"""One row per comparison, written before any figure is computed.

Averages over batches hide their denominators and cannot be taken apart again. So an evaluation is a table first,
`rows.parquet`; every figure is computed from that file and can be recomputed by anyone who has it. The folder of an
evaluation:

    rows.parquet    the table
    examples.json   a few comparisons with their texts and each token's contribution (optional)
    metrics.json    the figures, what was evaluated (facts), and the digests of the other two; written last, so a
                    folder without it is not an evaluation
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.data.dataset import Problem
from holdfast.errors import DataError, IntegrityError
from holdfast.evaluation.figures import figures

if TYPE_CHECKING:
    from holdfast.data.dataset import Dataset
    from holdfast.data.views import Comparisons

FORMAT = "holdfast-evaluation/1"
SCORES = ("reward_a", "reward_b", "n_a", "n_b")
POLICY_SCORES = ("logp_a", "logp_b", "ref_logp_a", "ref_logp_b")
KL_SCORES = ("kl_a", "kl_b")
TOLERANCE = 1e-9  # of a recomputed figure, relative: sums may be ordered otherwise on another machine


def evaluation_table(
    ds: Dataset,
    comparisons: Comparisons,
    parts: Mapping[str, np.ndarray],
    scores: Mapping[str, np.ndarray],
    *,
    longer: np.ndarray | None = None,
    bow: np.ndarray | None = None,
) -> pa.Table:
    """The evaluation's table: one row per comparison (edge), in the order of `comparisons`.

    parts:  part name -> dataset rows; a comparison whose row is in none is a DataError.
    scores: (E,) arrays. Always `reward_a`, `reward_b` (the score; for a policy, beta times the log-ratio) and `n_a`,
            `n_b` (response tokens); for a policy also `logp_a`, `logp_b`, `ref_logp_a`, `ref_logp_b` (summed
            log-probabilities), and optionally `kl_a`, `kl_b` (mean over the response's tokens of the exact KL(policy
            || reference)).
    longer, bow: the shortcuts' answers (E,), from `shortcuts`; null columns where not given or NaN.

    Columns: judgement, edge (number within the judgement), prompt, chosen (side a), rejected (side b): digests in hex;
    p, weight; kind, part, category, annotator, source_a, source_b; the scores; longer (+1 a, -1 b, 0 equal), bow.
    """
    n = len(comparisons.row)
    unknown = sorted(set(scores) - {*SCORES, *POLICY_SCORES, *KL_SCORES})
    wanted = [
        *SCORES,
        *(POLICY_SCORES if POLICY_SCORES[0] in scores else ()),
        *(KL_SCORES if KL_SCORES[0] in scores else ()),
    ]
    missing = [name for name in wanted if name not in scores]
    if unknown or missing:
        raise DataError(
            f"scores of an evaluation: unknown {unknown or 'none'}, missing {missing or 'none'}; known are {wanted}"
        )
    for name, values in {**scores, "longer": longer, "bow": bow}.items():
        if values is not None and len(values) != n:
            raise DataError(f"score {name} has {len(values)} values for {n} comparisons")

    part_of = np.full(ds.n_judgements, -1, np.int32)
    names = list(parts)
    for i, name in enumerate(names):
        part_of[parts[name]] = i
    row = np.asarray(comparisons.row)
    if n and part_of[row].min() < 0:
        stray = int(row[np.argmin(part_of[row])])
        raise DataError(f"judgement {ds.row_id(stray)} is in none of the parts {names}")

    # Where in its judgement's list of responses does each side of a comparison stand? Response indices differ within a
    # judgement, so (judgement, response) is a key. (Scores are judgements of one response each.)
    offsets = np.asarray(ds.responses_of.offsets, np.int64)
    flat = np.asarray(ds.responses_of.flat, np.int64)
    judgement_of_flat = np.repeat(np.arange(ds.n_judgements, dtype=np.int64), np.diff(offsets))
    span = int(flat.max(initial=0)) + 1
    key = judgement_of_flat * span + flat
    by_key = np.argsort(key, kind="stable")

    def place(judgement: np.ndarray, response: np.ndarray) -> np.ndarray:
        return by_key[np.searchsorted(key[by_key], judgement.astype(np.int64) * span + response.astype(np.int64))]

    at_a, at_b = place(comparisons.from_a, comparisons.a), place(comparisons.from_b, comparisons.b)
    judgements, prompt_ids, response_ids = ds.judgements, ds.prompt_ids, ds.response_ids
    sources_of = judgements["sources"].to_pylist()
    sources = [s for own, size in zip(sources_of, np.diff(offsets), strict=True) for s in (own or [None] * int(size))]
    # A judgement's comparisons may stand anywhere in the list; number them in the order in which they come.
    order = np.argsort(row, kind="stable")
    first = np.r_[True, np.diff(row[order]) != 0] if n else np.zeros(0, bool)
    edge = np.empty(n, np.int32)
    edge[order] = np.arange(n) - np.maximum.accumulate(np.where(first, np.arange(n), 0))

    taken = judgements.take(pa.array(row))
    columns: dict[str, Any] = {
        "judgement": pa.array([ds.row_id(i) for i in row.tolist()], pa.string()),
        "edge": pa.array(edge),
        "prompt": pa.array([prompt_ids[i] for i in ds.prompt_of[row]], pa.string()),
        "chosen": pa.array([response_ids[i] for i in comparisons.a], pa.string()),
        "rejected": pa.array([response_ids[i] for i in comparisons.b], pa.string()),
        "p": pa.array(comparisons.p, pa.float64()),
        "weight": pa.array(comparisons.weight, pa.float64()),
        "kind": taken["kind"].cast(pa.string()),
        "part": pa.array([names[i] for i in part_of[row]], pa.string()),
        "category": taken["category"].cast(pa.string()),
        "annotator": taken["annotator"].cast(pa.string()),
        "source_a": pa.array([sources[i] for i in at_a], pa.string()),
        "source_b": pa.array([sources[i] for i in at_b], pa.string()),
    }
    for name in wanted:
        kind = pa.int32() if name in ("n_a", "n_b") else pa.float64()
        columns[name] = pa.array(np.asarray(scores[name]), kind)
    columns["longer"] = pa.nulls(n, pa.int8()) if longer is None else pa.array(np.asarray(longer), pa.int8())
    columns["bow"] = pa.nulls(n, pa.float64()) if bow is None else pa.array(bow, pa.float64(), from_pandas=True)
    return pa.table(columns)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation folder, read. `metrics` is metrics.json: {"format", "figures", "facts", "files", "digest"}."""

    path: Path
    metrics: dict[str, Any]
    examples: list[dict[str, Any]]

    @property
    def figures(self) -> dict[str, Any]:
        return self.metrics["figures"]

    @property
    def facts(self) -> dict[str, Any]:
        return self.metrics["facts"]

    def table(self) -> pa.Table:
        return pq.read_table(self.path / "rows.parquet")


def write_evaluation(
    folder: str | Path,
    table: pa.Table,
    facts: Mapping[str, Any],
    *,
    examples: Sequence[Mapping[str, Any]] = (),
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Write an evaluation folder and return its metrics: the table first, the figures from the file that was written.

    facts: what was evaluated: `dataset_root`, `split_digest`, `ledger_head`, `weights_digest`, and what else
    identifies it (JSON-able).

    examples: a list of
        {"judgement": hex, "part": str, "prompt_text": str, "category": str | None, "p": float, "chosen": side,
        "rejected": side}
    with side = {"text": str, "reward": float, "tokens": [{"piece": str, "value": float}, ...]}. A token's `value` is
    its contribution to
    the reward: for a policy its log-ratio (times beta); for a reward model the score of the response up to and with
    it, less the score up to the token before. `choose_examples` says which comparisons to show.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").unlink(missing_ok=True)  # until the new one is complete the folder is not an evaluation
    parquet = pa.BufferOutputStream()
    pq.write_table(table, parquet, compression="zstd")
    _write(folder / "rows.parquet", parquet.getvalue().to_pybytes())
    _write(folder / "examples.json", _pretty(list(examples)))
    metrics: dict[str, Any] = {
        "format": FORMAT,
        "figures": figures(pq.read_table(folder / "rows.parquet"), bootstrap=bootstrap, seed=seed),
        "facts": dict(facts),
        "files": {name: _sha256(folder / name) for name in ("rows.parquet", "examples.json")},
    }
    metrics["digest"] = _digest(metrics)
    _write(folder / "metrics.json", _pretty(metrics))
    return metrics


def read_evaluation(folder: str | Path) -> Evaluation:
    """Open an evaluation folder. Raises IntegrityError where it is incomplete or cannot be read."""
    folder = Path(folder)
    said: dict[str, Any] = {}
    for name in ("metrics.json", "examples.json"):
        try:
            said[name] = orjson.loads((folder / name).read_bytes())
        except FileNotFoundError:
            raise IntegrityError(f"{folder} is not a complete evaluation: {name} is missing; evaluate again") from None
        except orjson.JSONDecodeError as problem:
            raise IntegrityError(f"{folder / name} is damaged: not JSON ({problem}); evaluate again") from None
    metrics = said["metrics.json"]
    if not isinstance(metrics, dict) or metrics.get("format") != FORMAT:
        found = metrics.get("format") if isinstance(metrics, dict) else type(metrics).__name__
        raise IntegrityError(f"evaluation {folder} has format {found!r}; this Holdfast reads {FORMAT!r}")
    return Evaluation(folder, metrics, said["examples.json"])


def verify_evaluation(folder: str | Path) -> list[Problem]:
    """Does the evaluation say what its table says? Digests of the files, then every figure recomputed from the rows."""
    folder = Path(folder)
    where = str(folder)
    try:
        metrics = read_evaluation(folder).metrics
    except IntegrityError as problem:
        return [Problem("the evaluation cannot be read", where, str(problem), "a complete evaluation")]
    problems = []
    found, expected = _digest(metrics), metrics.get("digest")
    if found != expected:
        problems.append(
            Problem("the metrics do not hash to their digest", f"{where}/metrics.json", found, str(expected))
        )
    elif _pretty(metrics) != (folder / "metrics.json").read_bytes():
        problems.append(
            Problem("the file's bytes have changed", f"{where}/metrics.json", "other spacing", "as written")
        )
    for name, expected in metrics.get("files", {}).items():
        found = _sha256(folder / name) if (folder / name).exists() else "no such file"
        if found != expected:
            problems.append(Problem("the file's bytes have changed", f"{where}/{name}", found, expected))
    try:
        said = metrics["figures"]
        again = figures(pq.read_table(folder / "rows.parquet"), bootstrap=said["bootstrap"], seed=said["seed"])
    except Exception as problem:  # whatever damage makes of parquet's decoder, or of the arithmetic
        found = " ".join(str(problem).split())
        return [*problems, Problem("the figures cannot be recomputed", where, found, "figures from rows.parquet")]
    problems += _differences(said, orjson.loads(orjson.dumps(again)), f"{where}/metrics.json figures")
    return problems


def choose_examples(table: pa.Table, n: int) -> list[int]:
    """Which rows of the table to show: half of them those the model has most clearly wrong, the others most clearly
    right, and one it cannot decide; from held-out parts where there are any, one per prompt. Deterministic.
    """
    part = np.array(table["part"].to_pylist(), dtype=object)
    p, prompt = table["p"].to_numpy(), table["prompt"].to_pylist()
    margin = (table["reward_a"].to_numpy() - table["reward_b"].to_numpy()) * np.sign(p - 0.5)
    allowed = (p != 0.5) & (part != "train")
    if not allowed.any():
        allowed = p != 0.5
    wrong_first = [int(i) for i in np.argsort(margin, kind="stable") if allowed[i]]
    wrong = [i for i in wrong_first if margin[i] < 0]
    right = [i for i in reversed(wrong_first) if margin[i] > 0]
    close = sorted(wrong_first, key=lambda i: (abs(margin[i]), i))
    chosen: list[int] = []
    seen: set[str] = set()
    for most, candidates in ((n // 2, wrong), (n - 1, right), (n, close), (n, right), (n, wrong)):
        for i in candidates:
            if len(chosen) >= most:
                break
            if prompt[i] not in seen:
                seen.add(prompt[i])
                chosen.append(i)
    return chosen


def _differences(said: Any, again: Any, where: str) -> list[Problem]:
    if isinstance(said, dict) and isinstance(again, dict):
        keys = sorted({*said, *again})
        return [d for k in keys for d in _differences(said.get(k), again.get(k), f"{where} > {k}")]
    if isinstance(said, list) and isinstance(again, list) and len(said) == len(again):
        return [
            d for i, (x, y) in enumerate(zip(said, again, strict=True)) for d in _differences(x, y, f"{where} > {i}")
        ]
    if (
        isinstance(said, float)
        and isinstance(again, float)
        and abs(said - again) <= TOLERANCE * max(1.0, abs(said), abs(again))
    ):
        return []
    return [] if said == again else [Problem("a figure is not what the rows give", where, str(said), str(again))]


def _pretty(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _digest(metrics: Mapping[str, Any]) -> str:
    said = {k: v for k, v in metrics.items() if k != "digest"}
    return hashlib.sha256(b"holdfast/evaluation/1\0" + orjson.dumps(said, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: bytes) -> None:
    """All of the file or none of it: a temporary file, synced, renamed."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
