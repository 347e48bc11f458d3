"""Checkpoints: written to a temporary folder, synced, renamed, entered in the ledger; only then is an older one
deleted.

A checkpoint is a folder of `model.safetensors` (what training changes: trainable parameters and persistent buffers),
`optimiser.safetensors`, `extra.safetensors` where the objective keeps state, and `state.json` with the digest of every
tensor, so that damage can be named.

Reading and hashing need no torch (a safetensors file is a JSON header and raw bytes); it is imported only where tensors
are.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from holdfast.data.merkle import merkle_root
from holdfast.errors import IntegrityError
from holdfast.training.determinism import derive
from holdfast.training.ledger import sync_path, sync_tree

if TYPE_CHECKING:
    import torch

    from holdfast.training.objective import Trained
    from holdfast.training.ranks import Ranks

FORMAT = "holdfast-checkpoint/1"
_CHUNK = 1 << 22


def trained_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: trainable parameters and persistent buffers, tied ones once under their first name."""
    state = model.state_dict(keep_vars=True)
    parameters = {id(p) for p in model.parameters()}
    return _once({n: t for n, t in state.items() if t.requires_grad or id(t) not in parameters})


def weights_digest(model_or_state: torch.nn.Module | Mapping[str, torch.Tensor]) -> str:
    """The Merkle root over a model's tensors, sorted by name; a leaf is the SHA-256 of (name, dtype, shape, bytes).

    A model stands for its state dict, tied tensors once under their first name. `file_digests` computes the same from a
    safetensors file.
    """
    state = model_or_state if isinstance(model_or_state, Mapping) else model_or_state.state_dict()
    digests = {}
    for name, tensor in _once(state).items():
        leaf = _leaf(name, _dtype_name(tensor.dtype), list(tensor.shape))
        if tensor.numel():
            leaf.update(_bytes(tensor))
        digests[name] = leaf.hexdigest()
    return tensors_root(digests)


def fingerprint(parameters: Sequence[tuple[str, torch.Tensor]], seed: int, step: int) -> str:
    """A cheap witness of the weights after a step: SHA-256 over the bytes of some tens of thousands of elements.

    Each step looks at the next 16 tensors in rotation, and in each at 2,048 to 4,095 elements evenly spread from a
    start that derives from the step: any change of a whole tensor shows at its next turn, and small tensors are looked
    at whole.
    """
    import torch

    from holdfast.training.ranks import here

    n, ranks = len(parameters), here()
    hashed = hashlib.sha256(b"holdfast/fingerprint/1\0")
    pieces = []
    for k in range(min(n, 16)):
        name, tensor = parameters[((step - 1) * 16 + k) % n]
        hashed.update(name.encode() + b"\0")
        stride = max(1, tensor.numel() // 2048)
        piece = ranks.sample(tensor, derive(seed, step, "fingerprint", name) % stride, stride)
        pieces.append(piece.contiguous().view(torch.uint8))
    sampled = torch.cat(pieces)
    hashed.update((ranks.merge(sampled) if ranks.sharded else sampled).cpu().numpy().tobytes())
    return hashed.hexdigest()


def tensors_root(digests: Mapping[str, str]) -> str:
    """The weights digest from the digests of the tensors."""
    return merkle_root(bytes.fromhex(digests[name]) for name in sorted(digests)).hex()


def file_digests(path: Path) -> tuple[str, dict[str, str]]:
    """SHA-256 of a safetensors file, and of each tensor in it by name, in one reading and without torch.

    Raises IntegrityError when the header cannot be read.
    """
    whole = hashlib.sha256()
    digests: dict[str, str] = {}
    with path.open("rb") as file:
        size = path.stat().st_size
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8:
            raise IntegrityError(f"{path}: the safetensors header is damaged")
        raw = file.read(length)
        whole.update(prefix + raw)
        try:
            header = orjson.loads(raw)
            header.pop("__metadata__", None)
            tensors = sorted(
                (int(t["data_offsets"][0]), int(t["data_offsets"][1]), name, str(t["dtype"]), list(t["shape"]))
                for name, t in header.items()
            )
        except (ValueError, AttributeError, LookupError, TypeError):
            raise IntegrityError(f"{path}: the safetensors header is damaged") from None
        at = 0
        for start, end, name, dtype, shape in tensors:
            if not at == start <= end <= size - 8 - length:
                raise IntegrityError(
                    f"{path}: the safetensors header gives tensor {name} bytes {start} to {end}, which cannot be"
                )
            leaf = _leaf(name, dtype, shape)
            for at in range(start, end, _CHUNK):
                part = file.read(min(_CHUNK, end - at))
                whole.update(part)
                leaf.update(part)
            at = end
            digests[name] = leaf.hexdigest()
        for part in iter(lambda: file.read(_CHUNK), b""):
            whole.update(part)
    return whole.hexdigest(), digests


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checkpoint(
    folder: Path, step: int, objective: Trained, optimiser: torch.optim.Optimizer | None, ranks: Ranks
) -> tuple[Path, dict[str, Any]]:
    """Write a checkpoint beside `folder` under a temporary name, synced, and say what the ledger records of it.

    The caller renames it with `publish`. Without an optimiser it holds weights only, which is all that a best-so-far
    needs. Of several ranks the first writes, whole tensors whatever their number; all must call.
    """
    files = {
        "model": _detached(trained_state(objective.model), ranks),
        "extra": _detached(_once(objective.extra_state()), ranks),
    }
    if optimiser is not None:
        files["optimiser"] = {
            name: _kept(value, parameter, ranks)
            for name, value, parameter in _optimiser_state(objective.model, optimiser, ranks)
        }
    temporary = folder.with_name(folder.name + ".tmp")
    return temporary, ranks.first(lambda: {"folder": folder.name, **_write(temporary, step, files)})


def _write(temporary: Path, step: int, files: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, Any]:
    from safetensors.torch import save_file

    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    sums, tensors = {}, {}
    for name, state in files.items():
        if not state and name == "extra":
            continue
        path = temporary / f"{name}.safetensors"
        save_file(dict(state), path, metadata={"format": "pt"})
        sums[path.name], tensors[path.name] = file_digests(path)
    weights = tensors_root(tensors["model.safetensors"])
    said = {"format": FORMAT, "step": step, "weights": weights, "tensors": tensors}
    state_file = temporary / "state.json"
    state_file.write_bytes(orjson.dumps(said, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2))
    sums[state_file.name] = file_sha256(state_file)
    sync_tree(temporary)
    return {"step": step, "files": sums, "weights": weights}


def publish(temporary: Path, folder: Path) -> None:
    """Give a written folder its name. What had the name before goes."""
    remove(folder)
    temporary.rename(folder)
    sync_path(folder.parent)


def remove(folder: Path) -> None:
    """Delete a folder so that no half of it is ever seen under its name."""
    if folder.exists():
        going = folder.with_name(folder.name + ".gone.tmp")
        shutil.rmtree(going, ignore_errors=True)
        folder.rename(going)
        shutil.rmtree(going)


def intact(folder: Path, files: Mapping[str, str]) -> bool:
    """Whether a folder holds every file with the digest that was recorded."""
    return all((folder / name).is_file() and file_sha256(folder / name) == digest for name, digest in files.items())


def load_checkpoint(folder: Path, objective: Trained, optimiser: torch.optim.Optimizer | None) -> None:
    """Put a checkpoint's state into the model, the objective and the optimiser, to the bit. Raises IntegrityError where
    they do not fit.
    """
    import torch
    from safetensors.torch import load_file

    from holdfast.training.ranks import here

    ranks = here()
    saved = load_file(folder / "model.safetensors")
    state = trained_state(objective.model)
    for name in sorted(saved.keys() ^ state.keys()):
        raise IntegrityError(
            f"{folder}: tensor {name} is {'not in the model' if name in saved else 'not in the checkpoint'}; build the same model"
        )
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.shape != saved[name].shape or tensor.dtype != saved[name].dtype:
                raise IntegrityError(
                    f"{folder}: tensor {name} is {tuple(saved[name].shape)} {saved[name].dtype}, the model's {tuple(tensor.shape)} {tensor.dtype}"
                )
            ranks.mine(tensor).copy_(ranks.part(tensor, saved[name]))
    extra = folder / "extra.safetensors"
    objective.load_extra_state(load_file(extra) if extra.exists() else {})
    if optimiser is not None:
        at = dict(objective.model.named_parameters())
        optimiser.state.clear()
        for name, tensor in load_file(folder / "optimiser.safetensors").items():
            key, _, parameter = name.partition("/")
            p = ranks.mine(at[parameter])
            # Fused AdamW keeps its step count where the parameter is; the checkpoint was read to the CPU.
            optimiser.state[p][key] = ranks.part(at[parameter], tensor).to(p.device)


def _optimiser_state(
    model: torch.nn.Module, optimiser: torch.optim.Optimizer, ranks: Ranks
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, value, the model's parameter that it belongs to)."""
    names = {id(ranks.mine(p)): (name, p) for name, p in model.named_parameters()}
    for held, state in optimiser.state.items():
        name, parameter = names[id(held)]
        for key, value in state.items():
            yield f"{key}/{name}", value, parameter


def _once(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors that share their memory, once, under the first name."""
    seen: set[tuple[Any, ...]] = set()
    once = {}
    for name, tensor in state.items():
        # A parameter that is divided among ranks has no memory of its own; tied ones are one object.
        at = id(tensor) if hasattr(tensor, "to_local") else tensor.data_ptr()
        where = (at, tuple(tensor.shape), tensor.stride(), tensor.device)
        if tensor.numel() and where in seen:
            continue
        seen.add(where)
        once[name] = tensor
    return once


def _detached(state: Mapping[str, torch.Tensor], ranks: Ranks) -> dict[str, torch.Tensor]:
    return {name: _kept(ranks.mine(tensor), tensor, ranks) for name, tensor in state.items()}


def _kept(value: torch.Tensor, parameter: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """The whole of what belongs to a parameter, on the CPU; nothing of it on ranks that do not write."""
    value = ranks.full(parameter, value.detach())
    return value.cpu().contiguous() if ranks.writes else value.new_empty(0)


def _leaf(name: str, dtype: str, shape: list[int]) -> Any:
    return hashlib.sha256(b"holdfast/tensor/1\0" + orjson.dumps([name, dtype, shape]) + b"\0")


def _bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's raw little-endian bytes."""
    import torch

    from holdfast.training.ranks import here

    ranks = here()
    tensor = ranks.full(tensor, ranks.mine(tensor))
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _dtype_name(dtype: torch.dtype) -> str:
    """The name that safetensors gives a dtype."""
    import torch

    names = {torch.bool: "BOOL", torch.bfloat16: "BF16"}
    if dtype in names:
        return names[dtype]
    kind = "F" if dtype.is_floating_point else "I" if dtype.is_signed else "U"
    return f"{kind}{dtype.itemsize * 8}"
