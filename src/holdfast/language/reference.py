"""The reference is data: its token log-probabilities are computed once and kept as an artefact.

The artefact's key names all it depends on (reference weights, tokenised rows, dtype, compute path, environment), so a stale cache cannot be
hit; what is loaded is spot-checked against the reference itself all the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from holdfast.data.ragged import Ragged
from holdfast.errors import IntegrityError
from holdfast.language.policy import Policy
from holdfast.language.tokens import Tokens

VERSION = "holdfast-reference/1"
SPOT_CHECKS = 4  # groups recomputed when an artefact is loaded
TOLERANCE = 1e-4  # per token, relative to max(1, |logp|): float32 sums in another order stay far below it

Group = tuple[int, Sequence[int]]


@dataclass(frozen=True)
class Reference:
    """Token log-probabilities of the reference policy.

    token:  Ragged float32, indexed by the dataset's response number; empty where a response was not asked for.
    digest: SHA-256 of the values, which the ledger commits to.
    key:    SHA-256 of what they depend on.
    """

    token: Ragged
    digest: str
    key: str

    def sums(self, responses: np.ndarray) -> np.ndarray:
        """Summed log-probability of each response, float32, added up in the order in which the policy's are."""
        return np.array([self.token[int(i)].sum(dtype=np.float64) for i in responses], dtype=np.float32)


def cache_folder() -> Path:
    """Where artefacts that can be made again are kept: $HOLDFAST_CACHE, else ~/.cache/holdfast."""
    return Path(os.environ.get("HOLDFAST_CACHE") or Path.home() / ".cache" / "holdfast")


def split_by_tokens(tokens: Tokens, groups: Sequence[Group], budget: int) -> list[list[Group]]:
    """Batches of prompt groups of about `budget` tokens each; a group alone over it is cut between responses."""
    batches: list[list[Group]] = []
    batch: list[Group] = []
    filled = 0
    for prompt, responses in groups:
        head = len(tokens.prompts[prompt])
        part: list[int] = []
        size = head
        for response in responses:
            n = len(tokens.responses[response])
            if part and size + n > budget:
                batches.append([(prompt, part)])
                part, size = [], head
            part.append(response)
            size += n
        if batch and filled + size > budget:
            batches.append(batch)
            batch, filled = [], 0
        batch.append((prompt, part))
        filled += size
    if batch:
        batches.append(batch)
    return batches


def token_logps(policy: Policy, tokens: Tokens, groups: Sequence[Group], budget: int = 8192) -> Ragged:
    """Token log-probabilities under `policy`, by response number. No gradient."""
    lengths = np.zeros(len(tokens.responses), dtype=np.int64)
    for _, responses in groups:
        for response in responses:
            lengths[response] = len(tokens.responses[response])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.zeros(int(offsets[-1]), dtype=np.float32)
    with torch.no_grad():
        for batch in split_by_tokens(tokens, groups, budget):
            packed = policy.batch(tokens, batch)
            out = policy.logps(packed)
            values = out.token_N.float().cpu().numpy()
            at = 0
            for response in packed.response_index.tolist():
                n = int(lengths[response])
                flat[offsets[response] : offsets[response] + n] = values[at : at + n]
                at += n
    return Ragged(flat, offsets)


def reference_logps(
    policy: Policy, weights: str, tokens: Tokens, groups: Sequence[Group], environment: str, folder: Path | None = None
) -> Reference:
    """The artefact for `policy` on `tokens`: read from `folder` where its key stands, computed and written there otherwise.

    weights: the reference's weights digest. environment: what float results depend on (versions, threads), so that a run's bytes do not
    hang on who filled the cache. Raises IntegrityError when a loaded artefact disagrees with the reference on the spot checks.
    """
    dtype = str(next(policy.model.parameters()).dtype)
    wanted = hashlib.sha256(np.array([i for _, rs in groups for i in rs], dtype=np.int64).tobytes()).hexdigest()
    parts = (VERSION, weights, tokens.key, wanted, dtype, policy.compute, environment)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    path = (folder or cache_folder() / "reference") / f"{key}.safetensors"
    if path.exists():
        with safe_open(path, "np") as file:
            token = Ragged(file.get_tensor("flat"), file.get_tensor("offsets"))
        _spot_check(policy, tokens, groups, token, path)
    else:
        token = token_logps(policy, tokens, groups)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({"flat": token.flat, "offsets": token.offsets}, temporary, metadata={"format": VERSION})
        temporary.replace(path)
    digest = hashlib.sha256(token.offsets.tobytes() + token.flat.tobytes()).hexdigest()
    return Reference(token, digest, key)


def _spot_check(policy: Policy, tokens: Tokens, groups: Sequence[Group], token: Ragged, path: Path) -> None:
    some = [(p, list(r)[:2]) for p, r in (groups[i] for i in np.linspace(0, len(groups) - 1, SPOT_CHECKS, dtype=int))]
    again = token_logps(policy, tokens, some)
    for _, responses in some:
        for response in responses:
            kept, now = token[response], again[response]
            if len(kept) != len(now) or np.any(np.abs(kept - now) > TOLERANCE * np.maximum(1, np.abs(now))):
                raise IntegrityError(
                    f"reference artefact {path} disagrees with the reference on response {response}: delete the file and run again"
                )
