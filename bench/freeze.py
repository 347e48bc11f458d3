"""Freezing against `datasets`: the same JSON lines in, a folder of judgements out. `python bench/freeze.py`

    holdfast     read, validate, hash, sort, freeze: an immutable dataset with its root; in two processes, as it decides
    datasets     load_dataset("json"), map to prompt, responses and probability, save_to_disk; one process, and two

Each measurement is a process of its own on two cores, its time that of the work alone (imports are before it), its
memory the peak of it and its children; the two take turns for several rounds. Then memory over ten times the input.
Prints a table and writes bench/results/freeze.json. Needs no network; needs ../shared/data/alpaca-eval.parquet.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent.parent / "shared" / "data" / "alpaca-eval.parquet"
ROUNDS = 5

HOLDFAST = """
import json, resource, sys, time
from holdfast.data.freeze import freeze
import holdfast.data.read
began = time.perf_counter()
frozen = freeze(sys.argv[1], sys.argv[2] + "/out", on_error="skip")
took = time.perf_counter() - began
peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
print(json.dumps({"seconds": took, "peak_mib": peak, "rows": frozen.accepted + frozen.rejected, "root": frozen.root}))
"""

DATASETS = """
import json, os, resource, sys, time
os.environ |= {"HF_HOME": sys.argv[2] + "/home", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
import datasets
def judged(row):
    p = 2 - (row["preference"] or 1.5)
    a, b = row["output_1"], row["output_2"]
    return {"prompt": row["instruction"], "chosen": a if p >= 0.5 else b, "rejected": b if p >= 0.5 else a,
            "probability": max(p, 1 - p), "category": row["dataset"]}
workers = int(sys.argv[3])
began = time.perf_counter()
rows = datasets.load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2] + "/cache")
kept = rows.map(judged, remove_columns=rows.column_names, num_proc=workers if workers > 1 else None)
kept.save_to_disk(sys.argv[2] + "/out")
took = time.perf_counter() - began
peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
print(json.dumps({"seconds": took, "peak_mib": peak, "rows": len(kept)}))
"""

CONTENDERS = {"holdfast": (HOLDFAST, "1"), "datasets": (DATASETS, "1"), "datasets, 2 processes": (DATASETS, "2")}


def write_lines(path: Path, copies: int) -> float:
    """The real rows as JSON lines, `copies` times with other prompts; the size in MB."""
    import pyarrow.parquet as pq

    rows = pq.read_table(SOURCE).to_pylist()
    with path.open("w", encoding="utf-8") as file:
        for n in range(copies):
            for row in rows:
                said = row if copies == 1 else {**row, "instruction": f"{n}. {row['instruction']}"}
                file.write(json.dumps(said, ensure_ascii=False) + "\n")
    return path.stat().st_size / 1e6


def measure(name: str, source: Path) -> dict[str, Any]:
    program, workers = CONTENDERS[name]
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        done = subprocess.run(
            [sys.executable, "-c", program, str(source), folder, workers],
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    if not SOURCE.is_file():
        raise SystemExit(f"{SOURCE} is not there")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "alpaca-eval.jsonl"
        size = write_lines(source, 1)
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
        for n in range(ROUNDS + 1):
            for name in list(CONTENDERS)[:: 1 if n % 2 else -1]:
                found = measure(name, source)
                if n:  # the first round warms the file cache
                    rounds[name].append(found)
        assert len({r["root"] for r in rounds["holdfast"]}) == 1
        assert len({r["rows"] for found in rounds.values() for r in found}) == 1
        print(f"{size:.1f} MB of JSON text, {rounds['holdfast'][0]['rows']:,} rows, {ROUNDS} rounds, medians\n")
        print(f"{'':24}{'s':>8}{'MB/s':>8}{'peak MiB':>10}")
        seconds = {}
        for name, found in rounds.items():
            seconds[name] = statistics.median(r["seconds"] for r in found)
            peak = statistics.median(r["peak_mib"] for r in found)
            print(f"{name:24}{seconds[name]:8.2f}{size / seconds[name]:8.1f}{peak:10.0f}")
        ratio = min(v for name, v in seconds.items() if name != "holdfast") / seconds["holdfast"]
        small = statistics.median(r["peak_mib"] for r in rounds["holdfast"])
        ten_size = write_lines(source, 10)
        ten = measure("holdfast", source)
        ours = size / seconds["holdfast"]
        print(f"\nagainst the better of datasets   {ratio:6.2f}x  (bar: 3)")
        print(f"speed                            {ours:6.1f} MB/s  (bar: 60)")
        print(
            f"ten times the input              {ten_size / ten['seconds']:6.1f} MB/s, {ten['peak_mib']:.0f} MiB: "
            f"{ten['peak_mib'] / small:.2f}x the memory  (bar: 1.5)"
        )
    said = {
        "bars": {"mb_per_s": ours, "ratio": ratio, "memory_ratio_at_10x": ten["peak_mib"] / small},
        "page": [
            f"{size:.0f} MB of alpaca-eval as JSON lines on two cores: {ours:.0f} MB/s, {ratio:.2f} times as fast as the better of `datasets` in one "
            f"process and in two (load, map, save); the bars are 60 MB/s ({'met' if ours >= 60 else 'missed'}) and 3 times "
            f"({'met' if ratio >= 3 else 'missed'}).",
            f"Ten times the input takes {ten['peak_mib'] / small:.2f} times the memory; the bar is 1.5.",
        ],
        "met": ours >= 60 and ratio >= 3 and ten["peak_mib"] / small <= 1.5,
        "megabytes": size,
        "rounds": rounds,
        "ten_times": ten,
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": 2, "load": os.getloadavg()},
        "versions": {p: version(p) for p in ("holdfast", "datasets", "pyarrow", "orjson")} | {"python": sys.version},
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "freeze.json").write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
