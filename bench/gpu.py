"""What bench/gpu.sh runs: correctness, determinism and throughput of the packed step on a GPU, each part guarded and with its share of the
time, so that one failure does not lose the rest. Writes $OUT/gpu.json after every part.

    correct      packed against padded, float32 and bfloat16: log-probabilities and gradients; FlexAttention against the buckets
    twice        a training step taken twice from the same state, with deterministic kernels: the same bytes, or which tensors differ
    throughput   shapes of Qwen2.5-0.5B, Llama-1B and Llama-7B with LoRA, random weights, bfloat16: tokens/s, share of the device's peak that
                 the model's own operations reach (6 x parameters x tokens, of packed tokens; 4 x for LoRA, whose base has no weight gradient),
                 peak memory; packed, plain padded, and TRL's DPO loss on its own batches where trl is installed
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

try:
    import orjson  # noqa: F401
except ImportError:  # what the modules below use of it when they are read; the bench writes no ledger
    stand_in = types.ModuleType("orjson")
    stand_in.dumps = lambda value, option=0: json.dumps(value, separators=(",", ":")).encode()  # type: ignore[attr-defined]
    stand_in.loads = json.loads  # type: ignore[attr-defined]
    sys.modules["orjson"] = stand_in

import transformers

from holdfast.data.ragged import Ragged
from holdfast.language import attention
from holdfast.language.policy import Policy
from holdfast.training.optimiser import adamw

OUT = Path(os.environ.get("OUT") or Path(__file__).resolve().parent / "results")
# Dense bfloat16 tensor-core peaks, TFLOP/s, by what the device calls itself (NVIDIA data sheets).
PEAKS = {"H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "A10": 125.0, "4090": 165.0}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "kind": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151_936, "tie_word_embeddings": True,
    },
    "llama-1b": {
        "kind": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True,
    },
    "llama-7b-lora": {
        "kind": "llama", "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32_000, "tie_word_embeddings": False, "lora": True,
    },
}  # fmt: skip
TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


class Tokens:
    """Random prompts and responses, lengths log-normal: the packing's source."""

    def __init__(
        self, prompts: int, per_prompt: int, prompt_length: int, response_length: int, vocab: int, seed: int = 0
    ):
        rng = np.random.default_rng(seed)

        def some(n: int, middle: int) -> Ragged:
            lengths = np.clip(np.exp(rng.normal(math.log(middle), 0.5, n)).astype(int), 2, 4 * middle)
            return Ragged.of([rng.integers(3, vocab, size) for size in lengths])

        self.prompts, self.responses = some(prompts, prompt_length), some(prompts * per_prompt, response_length)
        self.groups = [(p, list(range(p * per_prompt, (p + 1) * per_prompt))) for p in range(prompts)]


def model_of(shape: dict[str, Any], device: str, dtype: torch.dtype, seed: int = 0) -> Any:
    said = {k: v for k, v in shape.items() if k not in ("kind", "lora")}
    config = transformers.AutoConfig.for_model(
        shape["kind"], **said, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2
    )
    torch.manual_seed(seed)
    with torch.device(device):
        made = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    if shape.get("lora"):
        import peft

        made = peft.get_peft_model(
            made, peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    return made


def dpo(policy: Policy, batch: Any, groups: list[tuple[int, list[int]]], reference_R: torch.Tensor) -> torch.Tensor:
    """DPO's loss (2305.18290 eq. 7, beta 0.1): of each prompt the first response against every other."""
    out = policy.logps(batch)
    better = batch.where([rs[0] for _, rs in groups for _ in rs[1:]])
    worse = batch.where([r for _, rs in groups for r in rs[1:]])
    reward_R = 0.1 * (out.sum_R - reference_R)
    return -torch.nn.functional.logsigmoid(reward_R[better] - reward_R[worse]).mean()


def gradients(policy: Policy, tokens: Tokens) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    policy.model.zero_grad()
    batch = policy.batch(tokens, tokens.groups)
    out = policy.logps(batch)
    order = torch.as_tensor(np.argsort(batch.response_index), device=out.sum_R.device)
    dpo(policy, batch, tokens.groups, torch.zeros_like(out.sum_R)).backward()
    return out.sum_R.detach()[order].float(), {
        n: p.grad.float() for n, p in policy.model.named_parameters() if p.grad is not None
    }


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    whole = math.sqrt(sum(float(g.double().square().sum()) for g in b.values()))
    return math.sqrt(sum(float((a[n].double() - b[n].double()).square().sum()) for n in b)) / whole


def correct(device: str, tiny: bool) -> dict[str, Any]:
    found = {}
    for kind in ("llama", "qwen2", "gemma2"):
        shape = (
            {**TINY, "kind": kind, "head_dim": 16}
            if tiny
            else {**TINY, "kind": kind, "hidden_size": 512, "num_attention_heads": 8, "head_dim": 64}
        )
        for dtype, limits in ((torch.float32, (1e-4, 1e-3)), (torch.bfloat16, (0.3, 0.05))):
            tokens = Tokens(6, 3, 40, 30, shape["vocab_size"], 1)
            packed = Policy(model_of(shape, device, dtype), "packed")
            padded = Policy(model_of(shape, device, dtype), "padded")
            a, b = gradients(packed, tokens), gradients(padded, tokens)
            ways = {"packed": a}
            if device == "cuda":
                flex, attention._by_flex = attention._by_flex, lambda *said: False
                ways["buckets"] = gradients(packed, tokens)
                attention._by_flex = flex
            for way, got in ways.items():
                figures = (float((got[0] - b[0]).abs().max()), apart(got[1], b[1]))
                found[f"{kind} {str(dtype)[6:]} {way}"] = {
                    "log-probabilities, nats per response": figures[0], "gradients, relative": figures[1],
                    "agree": figures[0] <= limits[0] * (1 if dtype is torch.float32 else 30) and figures[1] <= limits[1],
                }  # fmt: skip
    return {"ok": all(f["agree"] for f in found.values()), **found}


def twice(device: str, tiny: bool) -> dict[str, Any]:
    torch.use_deterministic_algorithms(True)
    try:
        found: dict[str, Any] = {}
        for dtype in (torch.float32, torch.bfloat16):
            shape = (
                {**TINY, "kind": "llama"}
                if tiny
                else {**TINY, "kind": "llama", "hidden_size": 512, "num_attention_heads": 8}
            )
            tokens, states = Tokens(8, 3, 60, 40, shape["vocab_size"], 2), []
            for _ in range(2):
                policy = Policy(model_of(shape, device, dtype), "packed")
                optimiser = adamw([{"params": list(policy.model.parameters())}], lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
                for _ in range(3):
                    optimiser.zero_grad()
                    gradients(policy, tokens)
                    optimiser.step()
                states.append({n: p.detach().clone() for n, p in policy.model.named_parameters()})
            differ = [n for n in states[0] if not torch.equal(states[0][n], states[1][n])]
            found[str(dtype)[6:]] = {"same bytes": not differ, "differ": differ[:20]}
        return {"ok": all(f["same bytes"] for f in found.values()), **found}
    finally:
        torch.use_deterministic_algorithms(False)


def throughput(name: str, device: str, tiny: bool, peak: float | None, seconds: float) -> dict[str, Any]:
    shape = {**SHAPES[name], **TINY} if tiny else SHAPES[name]
    dtype = torch.bfloat16
    tokens = Tokens(*((4, 2, 16, 16) if tiny else (16, 2, 320, 160)), shape["vocab_size"], 3)
    found: dict[str, Any] = {}
    for way in ("packed", "padded"):
        try:
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            policy = Policy(model_of(shape, device, dtype), way)  # type: ignore[arg-type]
            trained = [p for p in policy.model.parameters() if p.requires_grad]
            optimiser = adamw([{"params": trained}], lr=1e-5, betas=(0.9, 0.999), eps=1e-8)
            batch = policy.batch(tokens, tokens.groups)
            with torch.no_grad():
                reference_R = policy.logps(batch).sum_R
            times: list[float] = []
            until = time.perf_counter() + seconds
            while len(times) < 3 or (time.perf_counter() < until and len(times) < 30):
                began = time.perf_counter()
                optimiser.zero_grad()
                loss = dpo(policy, batch, tokens.groups, reference_R)
                loss.backward()
                optimiser.step()
                value = float(loss.detach())  # waits for the device
                times.append(time.perf_counter() - began)
            timed = sorted(times[2:] or times)
            median = timed[len(timed) // 2]
            parameters = sum(p.numel() for p in policy.model.parameters())
            useful = int(sum(len(p) for p in tokens.prompts) + sum(len(r) for r in tokens.responses))
            flops = (4 if shape.get("lora") else 6) * parameters * useful
            found[way] = {
                "seconds a step": median, "steps": len(times), "useful tokens/s": useful / median, "tokens computed": batch.n_tokens,
                "useful tokens": useful, "loss": value, "parameters": parameters,
                "peak memory, GiB": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
                "model FLOPs utilisation": flops / median / (peak * 1e12) if peak else None,
            }  # fmt: skip
            del policy, optimiser, batch
        except Exception as problem:  # out of memory in one way should not lose the other
            found[way] = {"failed": f"{type(problem).__name__}: {str(problem)[:300]}"}
    if all("failed" not in f for f in found.values()):
        found["packed is faster by"] = found["padded"]["seconds a step"] / found["packed"]["seconds a step"]
    found["ok"] = all("failed" not in f for f in found.values() if isinstance(f, dict))
    return found


def beside_trl(device: str, tiny: bool) -> dict[str, Any]:
    """A DPO trainer of TRL on the same token ids, where trl is installed; its own defaults but for bf16 and the batch."""
    try:
        import datasets
        import trl
    except ImportError as problem:
        return {"ok": True, "skipped": f"{problem.name} is not installed"}
    import tempfile

    shape = {**SHAPES["qwen2.5-0.5b"], **TINY} if tiny else SHAPES["qwen2.5-0.5b"]
    tokens = Tokens(*((4, 2, 16, 16) if tiny else (16, 2, 320, 160)), shape["vocab_size"], 3)
    rows = [
        {
            "prompt_ids": tokens.prompts[p].tolist(),
            "chosen_ids": tokens.responses[a].tolist(),
            "rejected_ids": tokens.responses[b].tolist(),
        }
        for p, (a, b) in tokens.groups
    ]
    steps = 6
    with tempfile.TemporaryDirectory() as folder:
        config = trl.DPOConfig(
            output_dir=folder, per_device_train_batch_size=len(rows), max_steps=steps, bf16=device == "cuda", use_cpu=device == "cpu",
            report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True, max_length=None, learning_rate=1e-5,
        )  # fmt: skip
        words = {f"t{i}": i for i in range(shape["vocab_size"])}
        from tokenizers import Tokenizer, models

        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")), eos_token="t2", pad_token="t1"
        )
        trainer = trl.DPOTrainer(
            model_of(shape, device, torch.bfloat16),
            args=config,
            train_dataset=datasets.Dataset.from_list(rows * steps),
            processing_class=fast,
        )
        began = time.perf_counter()
        trainer.train()
        seconds = (time.perf_counter() - began) / steps
    return {
        "ok": True,
        "seconds a step": seconds,
        "version": trl.__version__,
        "note": "its set-up and first step are in the mean",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes")
    parser.add_argument("--seconds", type=float, default=30.0, help="of timed steps per shape and way")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.smoke:
        raise SystemExit("no GPU here: `bash bench/gpu.sh --smoke` tries the script on the CPU")
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    peak = next((tflops for part, tflops in PEAKS.items() if part in name), None) if device == "cuda" else None
    said: dict[str, Any] = {
        "device": name, "peak bfloat16, TFLOP/s": peak, "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__, "smoke": args.smoke, "parts": {},
    }  # fmt: skip
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "correct": lambda: correct(device, args.smoke),
        "twice": lambda: twice(device, args.smoke),
        **{n: lambda n=n: throughput(n, device, args.smoke, peak, 0.1 if args.smoke else args.seconds) for n in SHAPES},  # type: ignore[misc]
        "trl": lambda: beside_trl(device, args.smoke),
    }
    for part, run in parts.items():
        began = time.perf_counter()
        try:
            found = run()
        except Exception as problem:
            found = {
                "ok": False,
                "failed": f"{type(problem).__name__}: {str(problem)[:500]}",
                "where": traceback.format_exc()[-1500:],
            }
        said["parts"][part] = {**found, "took": round(time.perf_counter() - began, 1)}
        (OUT / "gpu.json").write_text(json.dumps(said, indent=1) + "\n")
        print(part, json.dumps(said["parts"][part], indent=1), flush=True)
    raise SystemExit(0 if all(p["ok"] for p in said["parts"].values()) else 1)


if __name__ == "__main__":
    main()
