"""What needs a GPU is tested where there is one; what can be tried without is tried."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parent.parent / "bench"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")


@pytest.mark.slow
def test_the_gpu_bench_tries_every_part_without_a_gpu(tmp_path):
    done = subprocess.run(
        ["sh", BENCH / "gpu.sh", "--smoke"],
        env={**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert done.returncode == 0, {n: p for n, p in parts.items() if not p["ok"]}
    assert set(parts) == {"correct", "twice", "qwen2.5-0.5b", "llama-1b", "llama-7b-lora", "trl"}
    assert parts["twice"]["float32"]["same bytes"] and len(parts["correct"]) == 8


@needs_gpu
@pytest.mark.parametrize("part", ["correct", "twice"])
def test_on_a_gpu(part, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    bench = runpy.run_path(str(BENCH / "gpu.py"))
    found = bench[part]("cuda", False)
    assert found["ok"], found
