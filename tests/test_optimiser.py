"""AdamW on float32 copies: the same steps as torch's, also where bfloat16 alone would stand still; runs in bfloat16 are exact."""

import json

import pytest
import torch

from holdfast import pipeline
from holdfast.proof import verify
from holdfast.training import fit
from holdfast.training.optimiser import Wide, adamw
from test_adapters import LORA, head_of, place, recipe  # noqa: F401

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8}


def test_the_same_steps_as_torchs():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4)) for _ in range(2))
    one = Wide([{"params": [ours], "weight_decay": 0.1}], **SETTINGS)
    two = torch.optim.AdamW([{"params": [theirs], "weight_decay": 0.1}], **SETTINGS)
    for _ in range(20):
        ours.grad = torch.randn(3, 4)
        theirs.grad = ours.grad.clone()
        one.step()
        two.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_small_updates_add_up():
    narrow, alone = (torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16)) for _ in range(2))
    one, two = Wide([narrow], **{**SETTINGS, "lr": 1e-3}), torch.optim.AdamW([alone], weight_decay=0.0, lr=1e-3)
    for _ in range(100):
        narrow.grad = alone.grad = torch.ones(1, dtype=torch.bfloat16)
        one.step()
        two.step()
    assert one.state[narrow]["master"].item() == pytest.approx(
        0.9, abs=1e-4
    )  # 100 steps of 1e-3: gradients are constant
    assert narrow.item() == pytest.approx(0.9, abs=2**-9)
    assert alone.item() == 1.0  # what this is for: 1 - 1e-3 rounds to 1


def test_wide_weights_get_torchs_own():
    wide, narrow = (torch.nn.Parameter(torch.ones(2, dtype=t)) for t in (torch.float32, torch.bfloat16))
    assert type(adamw([{"params": [wide]}], **SETTINGS)) is torch.optim.AdamW
    assert type(adamw([{"params": [wide]}, {"params": [narrow]}], **SETTINGS)) is Wide


@pytest.mark.slow
@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"adapter": LORA},
        {"adapter": LORA, "objective": {"kind": "reward"}},
        {"reference": {"kind": "moving", "tau": 2}},
    ],
    ids=["dpo", "lora", "lora-reward", "moving"],
)
def test_a_run_in_bfloat16_is_exact(place, tmp_path, monkeypatch, tables):  # noqa: F811
    asked = recipe(place, "run.dtype='bfloat16'", **tables)
    whole = pipeline.train(asked, tmp_path / "whole", quiet=True)
    assert verify(whole.folder) == []
    step = fit.Trainer.step

    def dies(self, n):
        if n == 4:
            raise MemoryError
        return step(self, n)

    monkeypatch.setattr(fit.Trainer, "step", dies)
    with pytest.raises(MemoryError):
        pipeline.train(asked, tmp_path / "cut", quiet=True)
    monkeypatch.undo()
    assert head_of(pipeline.resume(tmp_path / "cut", quiet=True)) == head_of(whole)
    assert pipeline.replay(whole.folder, 5, 6)["ok"]
    metrics = json.loads((whole.folder / "evaluations" / "held-out" / "metrics.json").read_bytes())
    assert metrics["facts"]["weights_digest"] == whole.weights_digest
    state = json.loads((whole.folder / "checkpoints" / "step-000006" / "state.json").read_bytes())["tensors"]
    masters = [name for name in state["optimiser.safetensors"] if name.startswith("master/")]
    assert bool(masters) is (tables.keys() != {"adapter"})  # an adapter is float32 itself
