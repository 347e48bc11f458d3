"""Two million pairs, made of the real texts: freeze, open, split and plan, each in a process of its own. `python bench/large.py`

    make     pairs of real prompts and responses put together anew, as JSON lines (deterministic; removed in the end)
    freeze   read, validate, hash, sort, write
    open     hash every file and compare with the manifest, then read the judgements
    split    by prompt group, normalised
    plan     the comparisons, and every step of an epoch: its rows and its prompt groups

Prints seconds per million and the peak memory of each; the bar: 4 GB. Writes bench/results/large.json. Needs ../shared/data and 8 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import workloads
from speed import RESULTS, machine

BAR = 4e9
PHASES = {
    "freeze": """
from holdfast.data.freeze import freeze
frozen = freeze(where / "pairs.jsonl", where / "data", on_error="skip")
said = {"rows": frozen.accepted, "rejected": frozen.rejected, "root": frozen.root}
""",
    "open": """
from holdfast.data.dataset import open_dataset
ds = open_dataset(where / "data")
said = {"rows": ds.judgements.num_rows, "prompts": ds.n_prompts, "responses": len(ds.response_prompt), "named": len(ds.responses_of.flat)}
""",
    "split": """
from holdfast.data.dataset import open_dataset
from holdfast.data.splits import make_split
from holdfast.recipe import SplitTable
ds = open_dataset(where / "data", check=False)
split = make_split(ds, SplitTable(validation=0.01, test=0.02))
split.save(where / "split")
said = {"rows": sum(map(len, split.parts.values())), "digest": split.digest}
""",
    "plan": """
from holdfast.data.dataset import open_dataset
from holdfast.data.splits import load_split
from holdfast.data.views import comparisons
from holdfast.language.planning import by_prompt
from holdfast.training.objective import Rows
from holdfast.training.order import Order
import numpy as np
ds = open_dataset(where / "data", check=False)
mine = load_split(where / "split", ds).parts["train"]
view = comparisons(ds, mine)
ids = ds.row_ids
rows = Rows([ids[i] for i in mine.tolist()], ds.prompt_of[mine].astype(np.int64), mine)
del ids
order = Order(rows, 0, 4, 64)
steps = groups = 0
for step in range(1, len(rows) // 64 + 1):
    at = order.step(step)
    e = np.searchsorted(view.row, rows.index[at])
    two = np.stack([view.a[e], view.b[e]], axis=1).ravel()
    groups += len(by_prompt(np.repeat(view.prompt[e], 2).tolist(), two.tolist()))
    steps += 1
said = {"rows": len(rows), "steps": steps, "prompt groups per step": groups / steps}
""",
}
RUN = """
import json, os, resource, sys, time
from pathlib import Path
where = Path(sys.argv[1])
began = time.perf_counter()
{}
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
helpers = min(len(os.sched_getaffinity(0)), 4) - 1  # that freezing forks; the largest is known
peak += helpers * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps({{"seconds": time.perf_counter() - began, "peak": peak, **said}}))
"""


def make(path: Path, pairs: int) -> int:
    """Write the pairs; how many bytes. A prompt has four judgements at most, and responses of its own."""
    real = list(workloads.texts())
    draw = random.Random("large")
    with path.open("w", encoding="utf-8") as file:
        for n in range(pairs):
            prompt = n // draw.choice((1, 2, 4)) if n else 0
            asked = random.Random(prompt)
            said = {
                "prompt": f"{prompt}. {asked.choice(real)[:400]}",
                "chosen": f"{draw.choice(real)[:400]} ({n})",
                "rejected": f"{draw.choice(real)[:400]} ({n}.)",
            }
            file.write(json.dumps(said, ensure_ascii=False) + "\n")
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2_000_000)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        size = make(Path(folder) / "pairs.jsonl", args.pairs)
        print(f"{args.pairs:,} pairs, {size / 1e9:.2f} GB of JSON", flush=True)
        for name, program in PHASES.items():
            done = subprocess.run([sys.executable, "-c", RUN.format(program), folder], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-2000:]}")
            found[name] = json.loads(done.stdout.splitlines()[-1])
            per = found[name]["seconds"] / args.pairs * 1e6
            print(
                f"  {name:7} {per:7.1f} s per million, peak {found[name]['peak'] / 1e9:.2f} GB  {found[name]}",
                flush=True,
            )
            if name == "freeze":
                (Path(folder) / "pairs.jsonl").unlink()
    most = max(f["peak"] for f in found.values())
    assert found["freeze"]["rows"] + found["freeze"]["rejected"] == args.pairs
    page = [f"{args.pairs:,} pairs, {size / 1e9:.1f} GB of JSON."]
    page += [
        f"{name}: {f['seconds'] / args.pairs * 1e6:.0f} s per million, peak memory {f['peak'] / 1e9:.2f} GB."
        for name, f in found.items()
    ]
    page += [f"The bar is {BAR / 1e9:g} GB: {'met' if most <= BAR else 'missed'}."]
    said = {
        "met": most <= BAR,
        "pairs": args.pairs,
        "bytes": size,
        "phases": found,
        "page": page,
        "python": platform.python_version(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "large.json").write_text(json.dumps({**said, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
