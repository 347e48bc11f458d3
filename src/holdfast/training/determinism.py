"""What makes a step a pure function: seeds that derive from a purpose, deterministic kernels, and a record of the
environment.

torch is imported only where it is used, so that `verify` works without it.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson

from holdfast.recipe import RunTable

# Packages whose version changes the bytes that a run computes.
PACKAGES = ("holdfast", "torch", "transformers", "tokenizers", "numpy")


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose: the first 8 bytes of SHA-256 over (seed, purpose), less the lowest bit.

    Two purposes never share a stream, and no stream has a state that a checkpoint would have to keep.
    """
    said = b"holdfast/derive/1\0" + orjson.dumps([seed, *purpose])
    return int.from_bytes(hashlib.sha256(said).digest()[:8], "big") >> 1


@contextmanager
def deterministic(run: RunTable) -> Iterator[None]:
    """Deterministic kernels and the recipe's thread count; what stood before is put back, the generator's state too."""
    import torch

    if run.device.startswith(
        "cuda"
    ):  # read by cuBLAS when its first handle is made; without it, matrix products may vary
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark,
        torch.get_num_threads(),
        torch.random.get_rng_state(),
    )
    torch.use_deterministic_algorithms(True)
    # Filling what `torch.empty` returns costs time and only hides a read of memory that was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.set_num_threads(run.threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = before[2]  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = before[3]
        torch.set_num_threads(before[4])
        torch.random.set_rng_state(before[5])


def environment(run: RunTable) -> dict[str, Any]:
    """What the bytes of a run depend on beside its recipe and data: versions, threads, device and processor."""
    import torch

    record: dict[str, Any] = {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "threads": run.threads,
        "device": run.device,
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    record["torch"] = torch.__version__  # with the build's suffix, which the package's metadata may lack
    if run.device.startswith("cuda") and torch.cuda.is_available():
        record["device_name"] = torch.cuda.get_device_name(run.device)
        record["cuda"] = torch.version.cuda
        record["cudnn"] = torch.backends.cudnn.version()
    return record


def environment_digest(run: RunTable) -> str:
    """One name for `environment(run)`, for artefacts whose floats depend on it."""
    return hashlib.sha256(orjson.dumps(environment(run), option=orjson.OPT_SORT_KEYS)).hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or "unknown"
