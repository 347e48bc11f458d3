"""The one loop. `fit` trains any objective on rows, records every step, and goes on where it was cut off, to the same
bytes.

A step is a pure function of (state, rows, settings, step number): its rows come from `Order`, its random numbers from
`derive`, its rate from `learning_rate`. So a run can be resumed from a number and a checkpoint, and `replay` can
recompute any window alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import torch

from holdfast.data.offline import offline
from holdfast.errors import HoldfastError, IntegrityError, RecipeError
from holdfast.recipe import RunTable, TrainTable
from holdfast.training.checkpoint import (
    file_digests,
    file_sha256,
    fingerprint,
    intact,
    load_checkpoint,
    publish,
    remove,
    trained_state,
    weights_digest,
    write_checkpoint,
)
from holdfast.training.determinism import derive, deterministic, environment
from holdfast.training.ledger import FORMAT, Entry, History, Ledger, differences, exact, read_ledger, rewrite, sync_tree
from holdfast.training.memory import give_back
from holdfast.training.objective import Learner, Objective, Rows, Sums, Trained
from holdfast.training.optimiser import adamw
from holdfast.training.order import mix, order_of, read_rows, rows_root, total_steps, write_rows
from holdfast.training.progress import Progress
from holdfast.training.ranks import Ranks, agreed, here


@dataclass(frozen=True)
class Fitted:
    """How a run stands. `steps` were taken; `stopped` says why no more: all done, `stop_on` no longer improved, or a
    signal came.
    """

    steps: int
    ledger_head: str
    weights_digest: str
    stopped: Literal["finished", "early", "interrupted"]


def warmup_steps(settings: TrainTable, total: int) -> int:
    """The steps of warm-up in a run of `total`: `warmup`, or that share of all steps, rounded up."""
    w = settings.warmup
    return w if isinstance(w, int) else math.ceil(Fraction(repr(w)) * total)


def learning_rate(settings: TrainTable, step: int, total: int) -> float:
    """The rate of step `step` (from 1) of `total`: linear warm-up over the first `warmup` steps, the full rate at the
    step after, then the schedule down to `lr * lr_end`, which it reaches as the run ends. No step has the rate 0 unless
    lr_end is 0 and the run is over.
    """
    w = warmup_steps(settings, total)
    if step <= w:
        return settings.lr * step / (w + 1)
    done = (step - 1 - w) / (total - w)
    if settings.schedule == "constant":
        share = 1.0
    elif settings.schedule == "linear":
        share = 1.0 - done
    else:
        share = 0.5 * (1.0 + math.cos(math.pi * done))
    return settings.lr * (settings.lr_end + (1.0 - settings.lr_end) * share)


class Trainer:
    """What a step needs: `fit` takes them one after another, `replay` takes some of them again."""

    def __init__(self, objective: Objective | Learner, rows: Rows, settings: TrainTable, run: RunTable):
        self.objective, self.rows, self.settings, self.run = objective, rows, settings, run
        self.ranks = here()
        if self.ranks.world > 1 and getattr(objective, "ranks", None) is not self.ranks:
            raise HoldfastError(
                f"{type(objective).__name__} does not divide a step among processes; train it in one process"
            )
        self.total = total_steps(settings, len(rows))
        self.order = order_of(rows, run.seed, settings.per_prompt, settings.batch, getattr(objective, "draws", None))
        if warmup_steps(settings, self.total) >= self.total:
            raise RecipeError(
                f"[train] warmup {settings.warmup} is not shorter than the run of {self.total} steps: the full rate is never reached"
            )
        self.parameters = [(name, p) for name, p in objective.model.named_parameters() if p.requires_grad]
        self.mine = [self.ranks.mine(p) for _, p in self.parameters]
        self.optimiser: torch.optim.Optimizer | None = None
        if not self.parameters:
            if isinstance(objective, Learner):  # trees: what is learnt has no gradient
                return
            raise RecipeError("the model has no parameter to train: all are frozen")
        # Weight decay pulls matrices to zero; norms, biases and other 1-d tensors are left out of it.
        decayed = [p for p in self.mine if p.ndim >= 2]
        others = [p for p in self.mine if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = adamw(
            [g for g in groups if g["params"]], lr=settings.lr, betas=settings.betas, eps=settings.eps
        )

    def step(self, step: int) -> tuple[dict[str, Any], dict[str, float], float | None]:
        """Take one step: what the ledger records of it, the objective's training metrics, and the tokens it computed
        where it says so.

        Raises HoldfastError, with nothing changed, when the loss or a gradient is not finite.
        """
        positions = self.order.step(step)
        index = self.rows.index[positions]
        rate = learning_rate(self.settings, step, self.total)
        torch.manual_seed(derive(self.run.seed, step, "train", *self.ranks.purpose))
        self.objective.model.train()
        if isinstance(self.objective, Learner):
            loss, norm, sums = self.objective.take(step, index, rate, self.optimiser)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise HoldfastError(
                    f"step {step}: the loss is {loss} and the gradient norm {norm}; the run can be resumed from its last checkpoint, "
                    "and will stop here again unless the cause goes (a lower lr, another target, rewards of another scale)"
                )
        else:
            loss, norm, sums = self._descend(step, index, [self.rows.ids[i] for i in positions.tolist()], rate)
        after = self.objective.after_step(step)
        recorded = {
            "step": step,
            **self.order.record(positions),
            "loss": loss,
            "grad_norm": norm,
            "lr": rate,
            "weights": fingerprint(self.parameters, self.run.seed, step) if self.parameters else None,
            **({"after": dict(after)} if after else {}),
        }
        tokens = float(sums["tokens"][0]) if "tokens" in sums else None
        return (
            recorded,
            {
                name: float(v) / float(weight)
                for name, (v, weight) in sums.items()
                if float(weight) and name != "tokens"
            },
            tokens,
        )

    def _descend(self, step: int, index: np.ndarray, ids: list[str], rate: float) -> tuple[float, float, Sums]:
        """One optimiser step on the rows: their loss, the gradient norm, and metrics."""
        assert self.optimiser is not None and not isinstance(self.objective, Learner)
        self.objective.model.zero_grad(set_to_none=True)
        normaliser = self.objective.normaliser(index)
        if not normaliser > 0:
            raise HoldfastError(
                f"step {step}: the rows weigh {normaliser} together, so their loss has no mean (rows {_some(ids)})"
            )
        losses: list[torch.Tensor] = []
        sums: dict[str, tuple[float, float]] = {}
        for batch in self.objective.batches(index):
            loss, metrics = self.objective.loss(batch)
            (loss / normaliser).backward()
            losses.append(loss.detach())
            for name, (value, weight) in metrics.items():
                so_far = sums.get(name, (0.0, 0.0))
                sums[name] = (so_far[0] + value, so_far[1] + weight)
            if self.run.checkpointing:  # memory is short
                give_back()
        total = float(torch.stack(losses).double().sum()) if losses else 0.0
        sums = self.ranks.sums({"": (total, 1.0), **sums})
        loss_value = sums.pop("")[0] / normaliser
        self.ranks.add([p for _, p in self.parameters])
        gradients = [p.grad for p in self.mine if p.grad is not None]
        # bf16 has 8 bits: the norm of a large gradient is added up in float32.
        half = (torch.bfloat16, torch.float16)
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32 if g.dtype in half else None) for g in gradients]
        norm = torch.linalg.vector_norm(self.ranks.norms(torch.stack(norms))) if norms else torch.zeros(())
        norm_value = float(norm)
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            bad = [i for i, part in enumerate(losses, 1) if not bool(torch.isfinite(part))]
            what = (
                f"the loss is {loss_value}"
                if bad
                else f"the gradient norm is {norm_value} (the loss, {loss_value:.6g}, is finite)"
            )
            at = f", micro-batch {bad[0]} of {len(losses)}" if bad and len(losses) > 1 else ""
            raise HoldfastError(
                f"step {step}{at}: {what}; rows {_some(ids)}. The step was not taken, and the run can be resumed from its last checkpoint: "
                "it will stop here again unless the cause goes (a lower lr, clip, float32, or without these rows)"
            )
        if self.settings.clip and norm_value > self.settings.clip:
            torch.nn.utils.clip_grads_with_norm_(self.mine, self.settings.clip, norm)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        return loss_value, norm_value, sums

    def figures(self, step: int, held_out: np.ndarray) -> dict[str, float]:
        """Held-out figures of the weights after `step` steps. Leaves nothing behind."""
        torch.manual_seed(derive(self.run.seed, step, "figures"))
        self.objective.model.eval()
        with torch.no_grad():
            return {name: float(value) for name, value in self.objective.figures(held_out).items()}


def open_record(trainer: Trainer, facts: dict[str, Any], held_out: np.ndarray | None) -> dict[str, Any]:
    """What the first entry commits to, but for the digest of rows.parquet, the objective's facts and the environment."""
    return {
        "format": FORMAT,
        "facts": facts,
        "settings": trainer.settings.model_dump(mode="json"),
        "run": trainer.run.model_dump(mode="json", exclude_none=True),
        "steps": trainer.total,
        "rows": {"count": len(trainer.rows), "root": rows_root(trainer.rows.ids)},
        **({"draws": dict(trainer.objective.draws)} if isinstance(trainer.objective, Learner) else {}),
        "held_out": None
        if held_out is None
        else {"count": len(held_out), "sha256": hashlib.sha256(held_out.astype("<i8").tobytes()).hexdigest()},
    }


def held_out_rows(held_out: np.ndarray | None, settings: TrainTable, seed: int) -> np.ndarray | None:
    """The rows of each evaluation: all of `held_out`, or the `eval_rows` of them that a seeded hash draws."""
    if settings.eval_every is None:
        return None
    if held_out is None or not len(held_out):
        raise RecipeError(
            "[train] eval_every needs held-out rows, and there are none: make [data.split] validation larger, or leave it out"
        )
    if settings.eval_rows is None or settings.eval_rows >= len(held_out):
        return np.asarray(held_out, dtype=np.int64)
    drawn = np.argsort(mix(np.asarray(held_out).astype(np.uint64), derive(seed, "eval_rows")), kind="stable")[
        : settings.eval_rows
    ]
    return np.asarray(held_out, dtype=np.int64)[np.sort(drawn)]


def fit(
    objective: Objective | Learner,
    rows: Rows,
    settings: TrainTable,
    run: RunTable,
    folder: Path,
    *,
    facts: dict[str, Any],
    held_out: np.ndarray | None,
    on_final: Callable[[Path], None],
    quiet: bool = False,
    allow_environment_change: bool = False,
) -> Fitted:
    """Train `objective` on `rows` into the run folder, or go on with the run that the folder holds.

    objective: its model holds the base weights, also when a run goes on.
    facts:    what the first ledger entry commits to beside this loop's own record (digests of recipe, dataset, split,
    base, tokens, ...);
              JSON-able, and the same on every start of the run.
    held_out: dataset rows for the figures of `eval_every` and `stop_on`.
    on_final: saves the final model into the (empty) folder that it is given.
    allow_environment_change: go on under other versions, threads or hardware; the ledger then says so, and where.

    With `stop_on`, the weights of the best evaluation are the result, the base's among them. Raises RecipeError for
    settings that cannot be, IntegrityError where files are not what the ledger says, HoldfastError when the folder is
    in use or holds another run, or when a loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(objective, rows, settings, run)
    held = held_out_rows(held_out, settings, run.seed)
    ranks = trainer.ranks
    quiet = quiet or not ranks.writes
    progress = Progress(quiet)
    roots = [facts["dataset"]] if isinstance(facts.get("dataset"), str) else []
    lock = _locked(folder) if ranks.writes else nullcontext()
    with lock, deterministic(run), offline(*roots), _signals(quiet) as interrupted:
        # Is there a run already, and is it this one?
        path, checkpoints = folder / "ledger.jsonl", folder / "checkpoints"
        entries = read_ledger(path)[0] if path.exists() else []
        agreed(ranks, entries[-1]["hash"] if entries else None, f"the head of {path}")
        before = History.of(entries) if entries else None
        record = open_record(trainer, facts, held)
        if ranks.first(lambda: before is None or not (folder / "rows.parquet").exists()):
            ranks.first(lambda: write_rows(rows, folder / "rows.parquet"))
        elif not _same_rows(read_rows(folder / "rows.parquet"), rows):
            raise IntegrityError(f"{folder / 'rows.parquet'} does not hold the rows that this run was started with")
        record["rows"]["sha256"] = file_sha256(folder / "rows.parquet")
        if before is not None and before.final is not None:
            _refuse_other_run(folder, before.open, record)
            return Fitted(
                len(before.steps), entries[-1]["hash"], before.final["weights"], "early" if before.stop else "finished"
            )
        torch.manual_seed(derive(run.seed, "begin"))
        record["objective"] = objective.begin()
        now = exact({**environment(run), **ranks.facts})
        changed = differences(before.environment, now) if before is not None else []
        if before is not None:
            _refuse_other_run(folder, before.open, record)
            # Another number of processes adds up in another order; the ledger says so, and that is all.
            if [name for name, _, _ in changed if name != "processes"] and not allow_environment_change:
                raise HoldfastError(
                    f"{folder} was begun in another environment, in which the bytes may differ: "
                    + "; ".join(f"{name} {old}, now {new}" for name, old, new in changed)
                    + ". Restore it, or resume with allow_environment_change, which the ledger will say"
                )

        # Where to go on: the furthest intact state. What the ledger holds past it is computed again and must come out
        # the same.
        checkpoints.mkdir(exist_ok=True)
        step, at, name = ranks.first(lambda: _resume_point(checkpoints, entries, bool(changed)))
        if name is not None:
            load_checkpoint(checkpoints / name, objective, trainer.optimiser)
        base_figures = trainer.figures(0, held) if step == 0 and held is not None else {}
        if step == 0 and settings.stop_on is not None and settings.stop_on not in base_figures:
            raise RecipeError(
                f"[train] stop_on = {settings.stop_on!r} is no held-out figure of this objective; there are: {', '.join(base_figures)}"
            )
        ledger = Ledger(path, entries, at, writes=ranks.writes)
        if not entries:
            opened = ledger.append("open", **record, environment=now)
            ledger.sync()
            history = History.of([opened])
        else:
            history = History.of(entries[:at])
            if changed:
                said = {name: [old, new] for name, old, new in changed}
                history.add(ledger.append("environment", step=step, environment=now, changed=said))
            progress.note(f"going on from step {step}" + (f" (a run of {trainer.total})" if step else ""))
        named = {e["folder"] for e in entries if e["kind"] == "checkpoint"} | {"interrupted"}
        if ranks.writes:
            for orphan in [p for p in checkpoints.iterdir() if p.is_dir() and p.name not in named]:
                remove(orphan)
            remove(folder / "model.tmp")
        metrics_file, timing_file = (
            _cut_back(folder / name if ranks.writes else None, step) for name in ("metrics.jsonl", "timing.jsonl")
        )

        def timed(began: float, **what: Any) -> None:
            os.write(timing_file, orjson.dumps({**what, "seconds": round(time.perf_counter() - began, 6)}) + b"\n")

        def delete_needless(but: str | None = None) -> None:
            if not ranks.writes:
                return
            wanted = {e["folder"] for e in history.kept(settings.keep_checkpoints)} | {but}
            for old in sorted(p for p in checkpoints.iterdir() if p.is_dir() and p.name not in wanted):
                if old.name == "interrupted":
                    (checkpoints / "interrupted.json").unlink(missing_ok=True)
                remove(old)

        def keep(best: bool) -> None:
            """Write, publish and enter a checkpoint, then delete those that it makes needless."""
            began = time.perf_counter()
            target = checkpoints / f"{'best' if best else 'step'}-{step:06d}"
            temporary, said = write_checkpoint(target, step, objective, None if best else trainer.optimiser, ranks)
            agreed(ranks, ledger.head, f"the ledger's head after step {step}")
            repeated = ledger.repeating  # then it must be what it was, before it may take its place
            if ranks.writes and not repeated:
                publish(temporary, target)
            entry = ledger.append("checkpoint", **said, best=best)
            if ranks.writes and repeated:
                publish(temporary, target)
            if ranks.writes:
                os.fsync(metrics_file)
            ledger.sync()
            history.add(entry)
            delete_needless(but=None if not best else "interrupted")  # a best has no optimiser state to go on from
            timed(began, step=step, what="best" if best else "checkpoint")

        first_step = step
        progress.start(step, trainer.total)
        try:
            while True:
                # After a step: figures, the best so far, whether to stop, a checkpoint. What the ledger holds of it
                # already is done.
                if any(ranks.tell(interrupted.is_set())):
                    if step > first_step:
                        _put_aside(checkpoints, step, objective, trainer.optimiser, ledger, ranks)
                    progress.close()
                    progress.note(f"stopped after step {step} of {trainer.total}; to go on: holdfast resume {folder}")
                    return Fitted(step, ledger.head, weights_digest(trained_state(objective.model)), "interrupted")
                last = step == trainer.total
                due = settings.eval_every is not None and (step % settings.eval_every == 0 or last)
                if due and held is not None and not any(e["step"] == step for e in history.figures):
                    began = time.perf_counter()
                    figures = trainer.figures(step, held) if step else base_figures
                    history.add(ledger.append("figures", step=step, rows=len(held), figures=figures))
                    timed(began, step=step, what="figures")
                    progress.figures(step, figures)
                best = history.best(settings.stop_on)
                if best is not None and best["step"] == step and not history.has_checkpoint(step, best=True):
                    keep(best=True)
                worse = [e for e in history.figures if best is not None and e["step"] > best["step"]]
                stop = len(worse) >= settings.patience and not last
                due = step > 0 and (step % settings.checkpoint_every == 0 or last or stop)
                if due and not history.has_checkpoint(step, best=False):
                    keep(best=False)
                if last or stop:
                    break

                step += 1
                began = time.perf_counter()
                recorded, metrics, tokens = trainer.step(step)
                line = {"step": step, **{k: recorded[k] for k in ("loss", "grad_norm", "lr")}, **metrics}
                os.write(metrics_file, orjson.dumps(line) + b"\n")
                ledger.append("step", **recorded)
                timed(began, step=step, what="step", **({"tokens": tokens} if tokens is not None else {}))
                progress.step(step, recorded["loss"], tokens)

            # The result: the best weights where a figure decides, else the last.
            delete_needless()  # again: the process may have died between an entry and its deletions
            if stop and best is not None:
                why = f"{settings.stop_on} did not improve in {settings.patience} evaluations"
                history.add(ledger.append("stop", step=step, why=why, best=best["step"]))
                progress.note(f"step {step}: stopping, {why}; the best was step {best['step']}")
            if best is not None and best["step"] != step:
                load_checkpoint(checkpoints / f"best-{best['step']:06d}", objective, None)

            def final() -> Any:
                temporary = folder / "model.tmp"
                temporary.mkdir()
                on_final(temporary)
                sync_tree(temporary)
                files = {p.relative_to(temporary).as_posix(): p for p in sorted(temporary.rglob("*")) if p.is_file()}
                sums = {name: file_sha256(p) for name, p in files.items()}
                tensors = {name: file_digests(p)[1] for name, p in files.items() if p.suffix == ".safetensors"}
                publish(temporary, folder / "model")
                return {"weights": weights_digest(trained_state(objective.model)), "files": sums, "tensors": tensors}

            ranks.whole(objective.model)
            result = ranks.first(final)
            ledger.append("final", step=best["step"] if best is not None else step, **result)
            ledger.sync()
            agreed(ranks, ledger.head, "the ledger's last head")
            return Fitted(step, ledger.head, result["weights"], "early" if stop else "finished")
        finally:
            progress.close()
            ledger.close()
            os.close(metrics_file)
            os.close(timing_file)


def _resume_point(checkpoints: Path, entries: list[Entry], changed: bool) -> tuple[int, int, str | None]:
    """(step, entries that stand before going on, folder) of the furthest state that is whole; (0, 1, None) is the base.

    Under another environment than before, steps taken in that one cannot be taken again, so only states from its time
    on will do.
    """
    if not entries:
        return 0, 0, None
    history = History.of(entries)
    states = [
        (e["step"], e["n"] + 1, checkpoints / e["folder"], e["files"]) for e in history.checkpoints if not e["best"]
    ]
    try:
        aside = orjson.loads((checkpoints / "interrupted.json").read_bytes())
        if entries[aside["entries"] - 1]["hash"] == aside["head"]:
            states.append((aside["step"], aside["entries"], checkpoints / "interrupted", aside["files"]))
    except (OSError, ValueError, LookupError, TypeError):
        pass  # none, or one that does not belong to this ledger
    moves = [e for e in entries if e["kind"] == "environment"]
    best = max((e for e in history.checkpoints if e["best"]), key=lambda e: e["n"], default=None)
    for step, at, folder, files in sorted([*states, (0, 1, None, {})], key=lambda s: s[:2], reverse=True):
        if moves and not changed and at <= moves[-1]["n"]:
            if step != moves[-1]["step"]:
                continue
            at = moves[-1]["n"] + 1
        if folder is not None and not intact(folder, files):
            continue
        # A best that lies ahead will be found again; one that lies behind must be there.
        if best is not None and best["n"] < at and not intact(checkpoints / best["folder"], best["files"]):
            continue
        return step, len(entries) if changed else at, None if folder is None else folder.name
    raise IntegrityError(
        f"{checkpoints}: no checkpoint since the environment changed at step {moves[-1]['step']} is whole, and steps before it cannot be "
        "taken again here; restore a checkpoint, or resume with allow_environment_change in another environment"
    )


def _put_aside(
    checkpoints: Path,
    step: int,
    objective: Trained,
    optimiser: torch.optim.Optimizer | None,
    ledger: Ledger,
    ranks: Ranks,
) -> None:
    """Keep the state at an interruption, off the ledger: an uninterrupted run has no such entry, and must have the same
    head.
    """
    side, target = checkpoints / "interrupted.json", checkpoints / "interrupted"
    if ranks.writes:
        side.unlink(missing_ok=True)
    temporary, said = write_checkpoint(target, step, objective, optimiser, ranks)
    if ranks.writes:
        publish(temporary, target)
        ledger.sync()
        rewrite(side, [orjson.dumps({"step": step, "entries": ledger.n, "head": ledger.head, "files": said["files"]})])


def _refuse_other_run(folder: Path, opened: Entry, record: dict[str, Any]) -> None:
    now = exact(record)
    differ = differences({name: opened.get(name) for name in now}, now)
    if differ:
        raise HoldfastError(
            f"{folder} holds another run: "
            + "; ".join(f"{name} is {old} there, {new} here" for name, old, new in differ[:8])
            + (f" and {len(differ) - 8} more" if len(differ) > 8 else "")
            + ". Choose another folder, or go back to what it was begun with"
        )


def _same_rows(a: Rows, b: Rows) -> bool:
    return list(a.ids) == list(b.ids) and np.array_equal(a.group, b.group) and np.array_equal(a.index, b.index)


def _cut_back(path: Path | None, step: int) -> int:
    """A file of lines per step, open for appending, with what goes past `step` taken off: those steps will be taken
    again. None: lines that nobody keeps.
    """
    if path is None:
        return os.open(os.devnull, os.O_WRONLY)
    kept = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
        try:
            if orjson.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, LookupError, TypeError):
            continue  # torn by a power cut
    rewrite(path, kept)
    return os.open(path, os.O_WRONLY | os.O_APPEND)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process trains one folder. The lock is on the folder itself and goes with the process, however that ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HoldfastError(
                f"{folder} is being trained by another process; wait for it, or stop it first"
            ) from None
        yield
    finally:
        os.close(handle)


@contextmanager
def _signals(quiet: bool) -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM ask the loop to stop after the step; a second one stops at once, which loses no more than a
    kill would.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        if not quiet:
            os.write(
                sys.__stderr__.fileno() if sys.__stderr__ else 2, b"\nfinishing the step; once more to stop at once\n"
            )

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _some(ids: list[str]) -> str:
    return ", ".join(row[:12] for row in ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
