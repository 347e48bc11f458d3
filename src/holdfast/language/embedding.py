"""Embeddings of texts by any sentence-transformers folder: its encoder, its pooling, unit length. No download, no other code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from holdfast.errors import HoldfastError

BATCH = 32
POOLINGS = ("mean", "cls", "max", "lasttoken")


def load_embedder(folder: str | Path) -> tuple[Callable[[Sequence[str]], np.ndarray], str]:
    """A function from n texts to (n, d) float32 unit vectors, and its name: the folder's, and a digest of its weights.

    folder: as sentence-transformers saves it (modules.json: an encoder, pooling, normalisation) or a plain encoder's, of
    which tokens are averaged. Weights from safetensors. HoldfastError for a folder that holds no such model, or a module
    that is not one of these.
    """
    import torch
    import torch.nn.functional as F
    from transformers import AutoModel, AutoTokenizer

    from holdfast.language.policy import quiet

    folder = Path(folder)
    encoder, pooling, most, lower, before = folder, "mean", None, False, ""
    if (folder / "modules.json").is_file():
        for module in _read(folder / "modules.json"):
            kind, path = str(module["type"]).rpartition(".")[2], folder / module["path"]
            if kind == "Transformer":
                encoder = path
                said = _read(path / "sentence_bert_config.json")
                most, lower = said.get("max_seq_length"), bool(said.get("do_lower_case"))
            elif kind == "Pooling":
                said = _read(path / "config.json")  # before version 6 a flag per kind of pooling, since then its name
                flags = [
                    k.removeprefix("pooling_mode_") for k, v in said.items() if k.startswith("pooling_mode_") and v
                ]
                asked = [str(said["pooling_mode"])] if "pooling_mode" in said else flags
                short = [k.removesuffix("_tokens").removesuffix("_token") for k in asked]
                if len(short) != 1 or short[0] not in POOLINGS:
                    raise HoldfastError(f"{path} pools by {', '.join(asked)}; one of {', '.join(POOLINGS)} can be used")
                pooling = short[0]
            elif kind != "Normalize":
                raise HoldfastError(f"{folder} has a module {kind}; Transformer, Pooling and Normalize can be used")
        said = _read(folder / "config_sentence_transformers.json")
        before = (said.get("prompts") or {}).get(said.get("default_prompt_name") or "", "")
    elif not (folder / "config.json").is_file():
        raise HoldfastError(f"{folder} holds no encoder: neither modules.json nor config.json is there")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(encoder, local_files_only=True, trust_remote_code=False)
            model = AutoModel.from_pretrained(
                encoder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            ).eval()
    except (OSError, ValueError) as problem:
        raise HoldfastError(f"{encoder} cannot be read as an encoder: {str(problem).splitlines()[0]}") from None
    limits = (most, getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length)
    length = min(x for x in (*limits, 8192) if x)
    tokenizer.padding_side = "right"

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> np.ndarray:
        out = np.zeros((len(texts), model.config.hidden_size), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of about a length together
        for start in range(0, len(order), BATCH):
            at = order[start : start + BATCH]
            batch = tokenizer(
                [before + (texts[i].lower() if lower else texts[i]) for i in at],
                padding=True,
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None].to(hidden.dtype)
            if pooling == "cls":
                pooled = hidden[:, 0]
            elif pooling == "lasttoken":
                pooled = hidden[torch.arange(len(at)), batch["attention_mask"].sum(dim=1) - 1]
            elif pooling == "max":
                pooled = hidden.masked_fill(mask == 0, -torch.inf).max(dim=1).values
            else:
                pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            out[at] = F.normalize(pooled, dim=-1).numpy()
        return out

    weights = sha256()
    for file in sorted(encoder.glob("*.safetensors")):
        weights.update(file.read_bytes())
    return embed, f"{folder.resolve().name} {weights.hexdigest()[:16]} {pooling}"


def _read(path: Path) -> Any:
    """A JSON file; {} where it is not there."""
    return orjson.loads(path.read_bytes()) if path.is_file() else {}
