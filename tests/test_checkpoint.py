"""Checkpoints and weights digests: to the bit, and with or without torch the same."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from holdfast.data.merkle import merkle_root
from holdfast.errors import IntegrityError
from holdfast.training.checkpoint import (
    file_digests,
    file_sha256,
    fingerprint,
    intact,
    load_checkpoint,
    publish,
    remove,
    tensors_root,
    trained_state,
    weights_digest,
    write_checkpoint,
)
from holdfast.training.ranks import Ranks
from toy_objective import Toy

STATE = {
    "z.f32": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a.f64": torch.linspace(0, 1, 5, dtype=torch.float64),
    "b.bf16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "c.f16": torch.tensor([1.5], dtype=torch.float16),
    "d.i64": torch.tensor(7),
    "e.u8": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "f.bool": torch.tensor([True, False]),
    "g.empty": torch.zeros(0, 4),
    "h.i32": torch.tensor([[1], [2]], dtype=torch.int32).T,  # not contiguous in memory
}


def test_weights_digest_is_what_its_definition_says():
    state = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor(3, dtype=torch.int64)}
    a = hashlib.sha256(b'holdfast/tensor/1\0["a","I64",[]]\0' + (3).to_bytes(8, "little")).digest()
    b = hashlib.sha256(b'holdfast/tensor/1\0["b","F32",[1,2]]\0' + bytes.fromhex("0000803f00000040")).digest()
    assert weights_digest(state) == merkle_root([a, b]).hex()


def test_a_file_gives_the_same_digest_without_torch(tmp_path):
    path = tmp_path / "all.safetensors"
    save_file({name: t.contiguous() for name, t in STATE.items()}, path, metadata={"format": "pt"})
    whole, tensors = file_digests(path)
    assert whole == hashlib.sha256(path.read_bytes()).hexdigest() == file_sha256(path)
    assert tensors_root(tensors) == weights_digest(STATE)
    changed = {**STATE, "b.bf16": torch.tensor([1.5, -2.0625], dtype=torch.bfloat16)}
    assert weights_digest(changed) != weights_digest(STATE)
    assert weights_digest({**STATE, "z.f32": STATE["z.f32"].reshape(3, 2)}) != weights_digest(STATE)


def test_tied_tensors_count_once_and_frozen_ones_are_not_trained():
    model = Toy().model
    state = trained_state(model)
    assert "middle.weight" in state and "tied.weight" not in state and "tied.bias" in state
    assert "seen" in state and not any(name.startswith("frozen") for name in state)
    head = nn.Linear(3, 5, bias=False)
    tied = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": head})
    head.weight = tied["embed"].weight
    assert weights_digest(tied) == weights_digest({"embed.weight": head.weight.detach()})


def test_every_tensor_of_a_damaged_file_is_told_apart(tmp_path):
    path = tmp_path / "all.safetensors"
    save_file({name: t.contiguous() for name, t in STATE.items()}, path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, whole = json.loads(raw[8 : 8 + length]), file_digests(path)[1]
    for name, said in header.items():
        for at in range(*said["data_offsets"]):
            path.write_bytes(raw[: 8 + length + at] + bytes([raw[8 + length + at] ^ 1]) + raw[9 + length + at :])
            found = file_digests(path)[1]
            assert {n for n in found if found[n] != whole[n]} == {name}


@pytest.mark.parametrize(
    "raw", [b"", b"\5", b"\xff" * 8, b"\2\0\0\0\0\0\0\0{", b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0{x"]
)
def test_a_damaged_header_is_said(tmp_path, raw):
    (tmp_path / "x.safetensors").write_bytes(raw)
    with pytest.raises(IntegrityError, match=r"x\.safetensors.*header"):
        file_digests(tmp_path / "x.safetensors")


def test_a_header_that_points_outside_the_file_is_said(tmp_path):
    for offsets in ([0, 400], [4, 8], [8, 4], [-4, 0], [0], ["a", 4]):
        header = json.dumps({"t": {"dtype": "F32", "shape": [1], "data_offsets": offsets}}).encode()
        (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
        with pytest.raises(IntegrityError, match="header"):
            file_digests(tmp_path / "x")


def a_few_steps(toy: Toy, optimiser: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        torch.manual_seed(seed)
        optimiser.zero_grad()
        toy.loss(torch.arange(8).numpy())[0].backward()
        optimiser.step()


def test_a_checkpoint_brings_everything_back_to_the_bit(tmp_path):
    def fresh(seed: int) -> tuple[Toy, torch.optim.AdamW]:
        toy = Toy(seed)
        return toy, torch.optim.AdamW([p for p in toy.model.parameters() if p.requires_grad], lr=1e-2, fused=True)

    toy, optimiser = fresh(0)
    a_few_steps(toy, optimiser, range(3))
    temporary, said = write_checkpoint(tmp_path / "step-000003", 3, toy, optimiser, Ranks())
    assert temporary.name == "step-000003.tmp"
    publish(temporary, tmp_path / "step-000003")
    assert said["weights"] == weights_digest(trained_state(toy.model)) and intact(
        tmp_path / "step-000003", said["files"]
    )
    assert set(said["files"]) == {"model.safetensors", "optimiser.safetensors", "extra.safetensors", "state.json"}
    a_few_steps(toy, optimiser, range(3, 6))

    other, its_optimiser = fresh(1)
    load_checkpoint(tmp_path / "step-000003", other, its_optimiser)
    with torch.no_grad():  # what is frozen is not in the checkpoint: the base brings it
        other.model.frozen.load_state_dict(toy.model.frozen.state_dict())
    a_few_steps(other, its_optimiser, range(3, 6))
    assert weights_digest(other.model) == weights_digest(toy.model) and other.mean == toy.mean
    for p, q in zip(optimiser.param_groups[0]["params"], its_optimiser.param_groups[0]["params"], strict=True):
        for key, value in optimiser.state[p].items():
            assert torch.equal(value, its_optimiser.state[q][key]) and value.dtype == its_optimiser.state[q][key].dtype


def test_the_same_state_gives_the_same_files(tmp_path):
    sums = []
    for name in ("a", "b"):
        toy = Toy()
        optimiser = torch.optim.AdamW([p for p in toy.model.parameters() if p.requires_grad])
        a_few_steps(toy, optimiser, range(2))
        sums.append(write_checkpoint(tmp_path / name, 2, toy, optimiser, Ranks())[1]["files"])
    assert sums[0] == sums[1]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    toy = Toy()
    write_checkpoint(tmp_path / "c", 1, toy, None, Ranks())
    (tmp_path / "c.tmp").rename(tmp_path / "c")
    with pytest.raises(IntegrityError, match=r"tensor first\.weight is \(16, 6\) torch\.float32, the model's \(8, 6\)"):
        load_checkpoint(tmp_path / "c", Toy(width=8), None)
    deeper = Toy()
    deeper.model.more = nn.Linear(2, 2)
    with pytest.raises(IntegrityError, match=r"tensor more\.bias is not in the checkpoint"):
        load_checkpoint(tmp_path / "c", deeper, None)


def test_intact_sees_missing_and_changed_files(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    good = {"a": hashlib.sha256(b"a").hexdigest()}
    assert (
        intact(tmp_path, good)
        and not intact(tmp_path, {**good, "b": good["a"]})
        and not intact(tmp_path, {"a": "0" * 64})
    )


def test_publish_takes_the_place_of_what_was_there_and_remove_leaves_no_half(tmp_path):
    for name in ("x", "x.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    publish(tmp_path / "x.tmp", tmp_path / "x")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["x.tmp"]
    remove(tmp_path / "x")
    remove(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_turns_over_every_tensor():
    torch.manual_seed(0)
    parameters = [(f"p{i}", torch.randn(5000 if i == 3 else 7)) for i in range(40)]
    before = [fingerprint(parameters, 1, step) for step in range(1, 4)]
    assert len(set(before)) == 3 and before == [fingerprint(parameters, 1, step) for step in range(1, 4)]
    for i in range(40):
        kept = parameters[i][1].clone()
        parameters[i][1].add_(1e-3)
        now = [fingerprint(parameters, 1, step) for step in range(1, 4)]
        assert sum(a != b for a, b in zip(now, before, strict=True)) >= 1, (
            f"a change of tensor {i} was not seen in 3 steps"
        )
        parameters[i][1].copy_(kept)
    large = [("large", torch.randn(100_000))]
    assert fingerprint(large, 1, 1) != fingerprint(large, 2, 1), "where it looks derives from the seed"
