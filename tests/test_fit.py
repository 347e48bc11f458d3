"""The one loop: against a plain loop, its arithmetic, its stops, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from holdfast.errors import HoldfastError, IntegrityError, OfflineError, RecipeError
from holdfast.recipe import RunTable, TrainTable
from holdfast.training.checkpoint import trained_state, weights_digest
from holdfast.training.determinism import derive, deterministic
from holdfast.training.fit import Trainer, held_out_rows, learning_rate
from holdfast.training.ledger import History, figure, read_ledger
from holdfast.training.objective import Rows
from holdfast.training.order import Order
from toy_objective import FACTS, HELD_OUT, Toy, row_id, toy_rows, train_toy


def entries(folder: Path, kind: str) -> list[dict]:
    return [e for e in read_ledger(folder / "ledger.jsonl")[0] if e["kind"] == kind]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("said", "rates"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "constant", "warmup": 3}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ({"schedule": "constant", "warmup": 0.3}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ({"schedule": "linear", "warmup": 4, "lr_end": 0.2}, [0.2, 0.4, 0.6, 0.8, 1, 0.8, 0.6, 0.4]),
        ({"schedule": "cosine", "warmup": 4}, [0.2, 0.4, 0.6, 0.8, 1, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2]),
        ({"schedule": "cosine", "warmup": 6, "lr_end": 0.5}, [1 / 7, 2 / 7, 3 / 7, 4 / 7, 5 / 7, 6 / 7, 1, 0.75]),
    ],
)
def test_learning_rates_by_hand(said, rates):
    settings = TrainTable(lr=2.0, **said)
    assert [learning_rate(settings, s, 8) / 2 for s in range(1, 9)] == pytest.approx(rates, rel=1e-12)


def test_derive_keeps_purposes_apart():
    assert derive(1, "a") == derive(1, "a") and 0 <= derive(1, "a") < 2**63
    assert (
        len({derive(1, "a"), derive(2, "a"), derive(1, "b"), derive(1, "a", 1), derive(1, 1, "a"), derive(11, "a")})
        == 6
    )
    assert derive(1, "a", 2) == int(hashlib.sha256(b'holdfast/derive/1\0[1,"a",2]').hexdigest()[:16], 16) >> 1


def test_against_a_plain_loop(tmp_path):
    """The oracle: the loop anyone would write, with unfused AdamW, for what it shares with `fit`: rows, seeds and
    rates.
    """
    toy = Toy(dtype=torch.float64)
    said = {"weight_decay": 0.1, "clip": 0.05, "lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6}
    train_toy(tmp_path, toy, steps=30, **said)

    plain = Toy(dtype=torch.float64)
    matrices = [p for n, p in plain.model.named_parameters() if p.requires_grad and p.ndim == 2]
    vectors = [p for n, p in plain.model.named_parameters() if p.requires_grad and p.ndim == 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.02, betas=(0.8, 0.95), eps=1e-6, foreach=False,
    )  # fmt: skip
    order = Order(toy_rows(), 0, None, 8)
    losses, norms = [], []
    for step in range(1, 31):
        rate = 0.02 * (step / 4 if step <= 3 else 0.5 * (1 + math.cos(math.pi * (step - 4) / 27)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        rows = order.step(step)
        torch.manual_seed(derive(0, step, "train"))
        optimiser.zero_grad()
        loss = plain.loss(rows)[0] / plain.weight[rows].sum()
        loss.backward()
        losses.append(float(loss.detach()))
        norms.append(float(torch.nn.utils.clip_grad_norm_([*matrices, *vectors], 0.05)))
        optimiser.step()
    steps = entries(tmp_path, "step")
    assert [float.fromhex(e["loss"]) for e in steps] == pytest.approx(losses, rel=1e-9)
    assert [float.fromhex(e["grad_norm"]) for e in steps] == pytest.approx(norms, rel=1e-8)
    assert max(norms) > 0.05, "the clip must have been at work"
    for (name, p), q in zip(toy.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-8, atol=1e-10), name
    assert [e["rows"] for e in steps] == [[row_id(int(i)) for i in order.step(s)] for s in range(1, 31)]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_accumulation_changes_nothing(dtype, bound):
    """8x1 = 4x2 = 1x8: loss and every gradient, relative to the gradient's norm."""
    found = {}
    for micro in (8, 4, 2, 1):
        toy = Toy(dropout=0.0, micro_batch=micro, dtype=dtype)
        toy.load_extra_state({})
        toy.loss = without_coupling(toy)
        settings = TrainTable(batch=8, steps=5, clip=0, lr=1e-3)
        trainer = Trainer(toy, toy_rows(), settings, RunTable(threads=1))
        with deterministic(RunTable(threads=1)):
            recorded, metrics, tokens = trainer.step(1)
        gradient = torch.cat([p.grad.flatten() for _, p in trainer.parameters])
        found[micro] = (recorded["loss"], recorded["grad_norm"], gradient, metrics, tokens)
    loss, norm, gradient, metrics, tokens = found[8]
    assert float(gradient.norm()) > 1e-3
    for micro in (4, 2, 1):
        assert found[micro][0] == pytest.approx(loss, rel=bound) and found[micro][1] == pytest.approx(norm, rel=bound)
        assert float((found[micro][2] - gradient).norm() / gradient.norm()) < bound
        assert found[micro][3] == metrics and found[micro][4] == tokens == 48.0


def without_coupling(toy: Toy):
    """The toy's loss without its running mean, which couples micro-batches on purpose."""

    def loss(batch):
        logit = toy.model(toy.x[batch])
        each = torch.nn.functional.binary_cross_entropy_with_logits(logit, toy.y[batch], reduction="none")
        right = float(((logit > 0) == (toy.y[batch] > 0.5)).sum())
        return (each * toy.weight[batch]).sum(), {"accuracy": (right, len(batch)), "tokens": (6.0 * len(batch), 1.0)}

    return loss


def test_the_same_recipe_twice_gives_the_same_bytes(tmp_path):
    torch.manual_seed(1)
    a = train_toy(tmp_path / "a", eval_every=6)
    torch.manual_seed(2)
    torch.rand(3)
    b = train_toy(tmp_path / "b", eval_every=6)
    assert a == b and a.stopped == "finished" and a.steps == 24
    for name in (
        "ledger.jsonl",
        "metrics.jsonl",
        "rows.parquet",
        "model/model.safetensors",
        "checkpoints/step-000024/optimiser.safetensors",
    ):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert train_toy(tmp_path / "c", seed=1, eval_every=6).weights_digest != a.weights_digest
    text = (tmp_path / "a" / "ledger.jsonl").read_text()
    assert str(tmp_path) not in text and "seconds" not in text


def test_it_learns_and_says_so(tmp_path):
    toy = Toy(dropout=0.0)
    train_toy(tmp_path, toy, steps=150, lr=1e-2, eval_every=150)
    base, end = entries(tmp_path, "figures")
    assert base["step"] == 0 and end["step"] == 150
    # a tenth of the labels is wrong, and 24 rows are few
    assert figure(end, "rewards/accuracies") >= 0.7 > figure(base, "rewards/accuracies")
    metrics = lines(tmp_path / "metrics.jsonl")
    assert [m["step"] for m in metrics] == list(range(1, 151)) and np.mean([m["accuracy"] for m in metrics[-30:]]) > 0.8
    steps = entries(tmp_path, "step")
    assert [m["loss"] for m in metrics] == [float.fromhex(e["loss"]) for e in steps]
    timing = [t for t in lines(tmp_path / "timing.jsonl") if t["what"] == "step"]
    assert len(timing) == 150 and all(t["tokens"] == 48.0 and t["seconds"] > 0 for t in timing)


def test_checkpoints_kept(tmp_path):
    train_toy(tmp_path, steps=23, checkpoint_every=5, keep_checkpoints=3)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000015", "step-000020", "step-000023"]
    assert [e["step"] for e in entries(tmp_path, "checkpoint")] == [5, 10, 15, 20, 23]
    assert not list(tmp_path.rglob("*.tmp"))


class Scripted(Toy):
    """The held-out loss is what a script says, so that early stopping can be known beforehand."""

    def __init__(self, script: dict[int, float]):
        super().__init__()
        self.script, self.step, self.seen = script, 0, {}

    def after_step(self, step):
        self.step = step

    def figures(self, rows):
        self.seen[self.step] = weights_digest(trained_state(self.model))
        return {"loss": self.script[self.step], "rows": float(len(rows))}


def test_early_stop_keeps_the_best_weights(tmp_path):
    script = {0: 1.0, 2: 0.8, 4: 0.9, 6: float("nan"), 8: 0.7, 10: 0.75, 12: 0.7, 14: 0.9, 16: 0.1}
    toy = Scripted(script)
    done = train_toy(tmp_path, toy, eval_every=2, stop_on="loss", patience=3, checkpoint_every=4)
    assert (done.steps, done.stopped) == (14, "early")
    (stop,), (final,) = entries(tmp_path, "stop"), entries(tmp_path, "final")
    assert stop["step"] == 14 and stop["best"] == final["step"] == 8
    assert final["weights"] == done.weights_digest == toy.seen[8] != toy.seen[14]
    assert weights_digest(trained_state(toy.model)) == toy.seen[8], "the objective's model is the result"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["best-000008", "step-000012", "step-000014"]
    assert [e["folder"] for e in entries(tmp_path, "checkpoint") if e["best"]] == [
        "best-000000",
        "best-000002",
        "best-000008",
    ]


def test_without_an_early_stop_the_best_still_wins_and_it_may_be_the_base(tmp_path):
    toy = Scripted({0: 0.5, 8: 0.6, 16: 0.7, 24: 0.8})
    done = train_toy(tmp_path, toy, eval_every=8, stop_on="loss", patience=5)
    assert (done.steps, done.stopped) == (24, "finished")
    assert entries(tmp_path, "final")[0]["step"] == 0 and done.weights_digest == toy.seen[0]
    base = Toy()
    assert done.weights_digest == weights_digest(trained_state(base.model))


def test_evaluation_leaves_training_as_it_was(tmp_path):
    with_it = train_toy(tmp_path / "a", eval_every=1)
    without = train_toy(tmp_path / "b")
    assert with_it.weights_digest == without.weights_digest


def test_eval_rows_draws_the_same_rows_each_time():
    settings = TrainTable(eval_every=1, eval_rows=10)
    drawn = held_out_rows(np.arange(100, 200), settings, 3)
    assert len(set(drawn.tolist())) == 10 and drawn.tolist() == sorted(drawn.tolist()) and drawn.min() >= 100
    assert drawn.tolist() == held_out_rows(np.arange(100, 200), settings, 3).tolist()
    assert drawn.tolist() != held_out_rows(np.arange(100, 200), settings, 4).tolist()
    assert held_out_rows(np.arange(5), settings, 3).tolist() == [0, 1, 2, 3, 4]
    assert held_out_rows(np.arange(5), TrainTable(), 3) is None


def test_settings_that_cannot_be(tmp_path):
    with pytest.raises(RecipeError, match=r"stop_on = 'acuracy' .*there are: loss, rewards/accuracies"):
        train_toy(tmp_path / "a", eval_every=2, stop_on="acuracy")
    assert not (tmp_path / "a" / "ledger.jsonl").exists(), "the recipe can be mended and the folder used"
    assert train_toy(tmp_path / "a", eval_every=2, stop_on="loss").steps == 24
    with pytest.raises(RecipeError, match="eval_every needs held-out rows"):
        train_toy(tmp_path / "b", eval_every=2, held_out=None)
    with pytest.raises(RecipeError, match="warmup 24 is not shorter than the run of 24 steps"):
        train_toy(tmp_path / "c", warmup=24)
    with pytest.raises(RecipeError, match="batch 121 is larger than the 120 rows"):
        train_toy(tmp_path / "d", batch=121)
    toy = Toy()
    toy.model.requires_grad_(False)
    with pytest.raises(RecipeError, match="no parameter to train"):
        train_toy(tmp_path / "e", toy)


class Poisoned(Toy):
    """A row whose features are infinite; with `in_gradient`, only the gradient is not finite."""

    def __init__(self, row: int, in_gradient: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.row, self.in_gradient = row, in_gradient

    def loss(self, batch):
        total, sums = super().loss(batch)
        if self.row in batch:
            w = self.model.last.bias.sum()
            total = total + (torch.sqrt(w - w) if self.in_gradient else w * float("inf"))
        return total, sums


@pytest.mark.parametrize("in_gradient", [False, True])
def test_a_loss_or_gradient_that_is_not_finite_stops_naming_step_and_rows(tmp_path, in_gradient):
    order = Order(toy_rows(), 0, None, 8)
    step = 9
    row = int(order.step(step)[5])
    toy = Poisoned(row, in_gradient, micro_batch=4)
    what = (
        r"step 9: the gradient norm is (nan|inf)"
        if in_gradient
        else r"step 9, micro-batch 2 of 2: the loss is (nan|inf|-inf)"
    )
    with pytest.raises(HoldfastError, match=what) as caught:
        train_toy(tmp_path, toy)
    assert row_id(row)[:12] in str(caught.value)
    assert [e["step"] for e in entries(tmp_path, "step")] == list(range(1, 9))
    assert all(torch.isfinite(p).all() for p in toy.model.parameters())
    # mended, it goes on to the same bytes as a run that never met it
    assert train_toy(tmp_path, Toy(micro_batch=4)) == train_toy(tmp_path / "whole", Toy(micro_batch=4))


def test_a_finished_run_is_not_trained_again(tmp_path):
    done = train_toy(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    class Untouched(Toy):
        def begin(self):
            raise AssertionError("a finished run is not begun")

    assert train_toy(tmp_path, Untouched()) == done
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    with pytest.raises(HoldfastError, match=r"holds another run: settings\.lr is 0\.003 .* there, 0\.004 .* here"):
        train_toy(tmp_path, lr=4e-3)


def interrupted_at(folder: Path, step: int, toy: Toy | None = None, number: int = signal.SIGINT, **kwargs):
    class Interrupting(Toy):
        def after_step(self, s):
            if s == step:
                signal.raise_signal(number)

    return train_toy(folder, toy or Interrupting(), **kwargs)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 1e-3}, r"settings\.lr"),
        ({"seed": 5}, r"run\.seed is 0 there, 5 here"),
        ({"facts": {**FACTS, "recipe": "cd" * 32}}, r"facts\.recipe is abab.* there, cdcd.* here"),
        ({"facts": {**FACTS, "more": 1}}, r"facts\.more is absent there, 1 here"),
        ({"objective": Toy(dropout=0.3)}, r"objective\.dropout is 0\.2 .* 0\.3"),
        ({"held_out": HELD_OUT[:-1], "eval_every": 50}, r"held_out\.count is 24 there, 23 here"),
    ],
)
def test_another_recipe_is_not_gone_on_with(tmp_path, changes, named):
    same = {"eval_every": 50}
    assert interrupted_at(tmp_path, 7, **same).stopped == "interrupted"
    ledger = (tmp_path / "ledger.jsonl").read_bytes()
    with pytest.raises(HoldfastError, match=named):
        train_toy(tmp_path, **{**same, **changes})
    assert (tmp_path / "ledger.jsonl").read_bytes() == ledger


def test_other_rows_are_not_gone_on_with(tmp_path):
    interrupted_at(tmp_path, 7)
    rows = toy_rows()
    for other in (toy_rows(100), Rows(rows.ids, rows.group[::-1].copy(), rows.index)):
        with pytest.raises(IntegrityError, match=r"rows\.parquet does not hold the rows"):
            train_toy(tmp_path, rows=other)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_finishes_the_step_and_goes_on_from_there_to_the_same_bytes(tmp_path, number, capfd):
    before = signal.getsignal(number)  # a shell's background job begins with SIGINT ignored
    whole = train_toy(tmp_path / "whole", eval_every=4, stop_on="loss", patience=9)
    stopped = interrupted_at(tmp_path / "cut", 8, number=number, eval_every=4, stop_on="loss", patience=9)
    assert (stopped.steps, stopped.stopped) == (8, "interrupted")
    assert {e["kind"] for e in read_ledger(tmp_path / "cut" / "ledger.jsonl")[0]} == {
        "open",
        "step",
        "figures",
        "checkpoint",
    }
    assert (tmp_path / "cut" / "checkpoints" / "interrupted").is_dir()
    assert signal.getsignal(number) is before, "the handlers were put back"

    taken = []

    class Counting(Toy):
        def after_step(self, step):
            taken.append(step)

    assert train_toy(tmp_path / "cut", Counting(), eval_every=4, stop_on="loss", patience=9) == whole
    assert taken == list(range(9, 25)), "no step was taken twice, though the last checkpoint in the ledger is step 5"
    for name in ("ledger.jsonl", "metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [t["step"] for t in lines(tmp_path / "cut" / "timing.jsonl") if t["what"] == "step"] == list(range(1, 25))
    assert not list((tmp_path / "cut" / "checkpoints").glob("interrupted*"))
    out, err = capfd.readouterr()
    assert out == "" and err == ""


def test_a_damaged_state_is_passed_over_for_an_older_one(tmp_path):
    whole = train_toy(tmp_path / "whole")
    interrupted_at(tmp_path / "cut", 13)
    for name in ("interrupted", "step-000010"):
        path = tmp_path / "cut" / "checkpoints" / name / "optimiser.safetensors"
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
    assert train_toy(tmp_path / "cut") == whole
    interrupted_at(tmp_path / "none", 13)
    for path in (tmp_path / "none" / "checkpoints").glob("*/model.safetensors"):
        path.unlink()
    assert train_toy(tmp_path / "none") == whole, "from the base, all over again"


def test_steps_that_do_not_come_out_the_same_are_named(tmp_path):
    interrupted_at(tmp_path, 13)
    for name in ("interrupted", "interrupted.json"):
        path = tmp_path / "checkpoints" / name
        path.rename(path.with_name("away.tmp")) if path.is_dir() else path.unlink()

    class Drifting(Toy):
        def loss(self, batch):
            total, sums = super().loss(batch)
            return total * (1 + 1e-6), sums

    with pytest.raises(IntegrityError, match=r"step 11: recomputed, it differs: .*grad_norm.*loss: ledger 0\.\d+ \(0x"):
        train_toy(tmp_path, Drifting())


def test_another_environment_is_refused_unless_allowed_and_then_recorded(tmp_path, monkeypatch):
    from holdfast.training import fit as module

    interrupted_at(tmp_path, 13)
    real = module.environment
    monkeypatch.setattr(module, "environment", lambda run: {**real(run), "torch": "9.9"})
    with pytest.raises(HoldfastError, match=r"another environment.*torch 2\..*, now 9\.9.*allow_environment_change"):
        train_toy(tmp_path)
    done = train_toy(tmp_path, allow_environment_change=True)
    assert done.steps == 24
    (moved,) = entries(tmp_path, "environment")
    assert moved["step"] == 13 and moved["changed"]["torch"][1] == "9.9" and moved["environment"]["torch"] == "9.9"
    history = History.of(read_ledger(tmp_path / "ledger.jsonl")[0])
    assert [e["step"] for e in history.steps] == list(range(1, 25))
    # the same arithmetic in truth, so the weights are those of a run that stayed
    monkeypatch.setattr(module, "environment", real)
    assert done.weights_digest == train_toy(tmp_path / "whole").weights_digest


def test_another_environment_from_an_older_checkpoint_and_then_cut_off_again(tmp_path, monkeypatch):
    from holdfast.training import fit as module

    interrupted_at(tmp_path, 13)
    (tmp_path / "checkpoints" / "interrupted.json").unlink()
    real = module.environment
    monkeypatch.setattr(module, "environment", lambda run: {**real(run), "torch": "9.9"})
    interrupted_at(tmp_path, 12, allow_environment_change=True)  # from 10, so steps 11 to 13 of before are set aside
    (tmp_path / "checkpoints" / "interrupted.json").unlink()
    done = train_toy(tmp_path)
    found, _ = read_ledger(tmp_path / "ledger.jsonl")
    assert [e["step"] for e in found if e["kind"] == "step"] == [*range(1, 14), *range(11, 25)]
    assert [e["step"] for e in History.of(found).steps] == list(range(1, 25)) and done.steps == 24


def test_the_environment_is_in_the_first_entry(tmp_path):
    train_toy(tmp_path, steps=4)
    said = entries(tmp_path, "open")[0]["environment"]
    versions = {"python", "holdfast", "torch", "transformers", "tokenizers", "numpy"}
    assert set(said) == versions | {"threads", "device", "machine", "cpu", "cpu_capability"}
    assert said["torch"] == torch.__version__ and said["threads"] == 1 and all(said[name] for name in versions)


def test_two_processes_do_not_train_one_folder(tmp_path):
    holder = (
        "import fcntl, os, sys, time; h = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(h, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(HoldfastError, match="is being trained by another process"):
            train_toy(tmp_path)
    finally:
        child.kill()
        child.wait()
    assert train_toy(tmp_path).steps == 24, "the lock went with its holder"


def test_training_is_offline(tmp_path):
    class Reaching(Toy):
        def after_step(self, step):
            socket.create_connection(("127.0.0.1", 9), timeout=0.1)

    with pytest.raises(OfflineError):
        train_toy(tmp_path, Reaching())
    socket.socket().close()  # and afterwards it is not


def test_what_stood_before_is_put_back(tmp_path):
    torch.set_num_threads(2)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    train_toy(tmp_path, threads=1)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()


def test_progress_goes_to_standard_error_in_plain_lines(tmp_path, capsys):
    from holdfast.training.progress import Progress

    progress = Progress(every=0)
    progress.start(0, 2)
    progress.step(1, 0.5, 100)
    progress.figures(1, {"loss": 0.25})
    progress.step(2, 0.25, 100)
    progress.close()
    out, err = capsys.readouterr()
    first, held, last = err.splitlines()
    assert out == "" and first.startswith("step 1/2  loss 0.5000  ") and "tokens/s  0:00:00 left" in first
    assert held == "step 1  held out: loss 0.25" and last.startswith("step 2/2  loss 0.2500")
    quiet = Progress(quiet=True, every=0)
    quiet.start(0, 1)
    quiet.step(1, 0.5, None)
    quiet.note("x")
    assert capsys.readouterr() == ("", "")


def test_half_precision_models_keep_their_bytes(tmp_path):
    done = train_toy(tmp_path, Toy(dtype=torch.bfloat16))
    assert done == train_toy(tmp_path / "again", Toy(dtype=torch.bfloat16))
