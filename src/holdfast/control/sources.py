"""Logged episodes from the files that people have: Minari, D4RL-style HDF5, NPZ, parquet, and our own frozen logs.

A source is one function, registered with how it is recognised; it takes a path and returns `Episodes`. Most hold steps in
flat columns and end in `from_steps`, which finds the episodes and never makes up what the file does not say: without the
true last observation of an episode that a limit cut, its final step is given up, and that step's observation is the last.
Nothing is unpickled and nothing is fetched.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from holdfast.control.episodes import Episodes, EpisodesError
from holdfast.control.store import is_log, open_log

NAMES: dict[str, tuple[str, ...]] = {  # what each column is called
    "observations": ("observations", "observation", "obs", "states", "state"),
    "actions": ("actions", "action", "acts"),
    "rewards": ("rewards", "reward"),
    "next_observations": ("next_observations", "next_observation", "next_obs", "next_states", "next_state"),
    "terminated": ("terminals", "terminated", "terminations", "terminal"),
    "truncated": ("timeouts", "truncated", "truncations", "timeout"),
    "episode": ("episode", "episode_id"),
    "propensities": ("propensities", "propensity"),
    "log_propensities": ("log_propensities", "infos/action_log_probs"),
    "action_probs": ("action_probs",),
    "behaviour": ("behaviour", "behavior"),
}
SOURCES: dict[str, tuple[Callable[[Path], bool], Callable[..., Episodes]]] = {}


def source(name: str, detect: Callable[[Path], bool]) -> Callable[[Callable[..., Episodes]], Callable[..., Episodes]]:
    """Register a reader: its name, and whether a path is for it. Its keyword arguments are the options it takes."""

    def register(read: Callable[..., Episodes]) -> Callable[..., Episodes]:
        SOURCES[name] = (detect, read)
        return read

    return register


def read_episodes(path: str | Path, format: str | None = None, **options: Any) -> Episodes:
    """Episodes from a file, a folder, or the id of a local Minari dataset.

    format: one of `SOURCES`; recognised where not given. options, where the format has them: mapping (name of a column
    here -> name there), horizon, jumps, n_actions; see `from_steps`. An option that the format has no use for is an error.
    """
    path = Path(path)
    if format is None:
        format = next((name for name, (detect, _) in SOURCES.items() if detect(path)), None)
        if format is None:
            what = (
                "is of no kind that is recognised"
                if path.exists()
                else "does not exist, nor a Minari dataset of that id"
            )
            raise EpisodesError(f"{path} {what}; there are {', '.join(SOURCES)}: name one by format")
    if format not in SOURCES:
        raise EpisodesError(f"format {format!r} is not known; there are {', '.join(SOURCES)}")
    read = SOURCES[format][1]
    given = {k: v for k, v in options.items() if v is not None}
    takes = [p.name for p in inspect.signature(read).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in given:
        if name not in takes:
            raise EpisodesError(f"{format} has no use for {name}; it takes {', '.join(takes) or 'no options'}")
    try:
        made = read(path, **given)
    except EpisodesError as problem:
        said = str(problem)
        raise (problem if said.startswith(str(path)) else EpisodesError(f"{path}: {said}")) from None
    except OSError as problem:  # also what h5py says of a file that is none
        raise EpisodesError(f"{path} cannot be read as {format}: {problem}") from None
    return replace(made, facts={"source": {"name": str(path), "format": format}, **made.facts})


def from_steps(
    columns: Mapping[str, np.ndarray],
    *,
    horizon: int | None = None,
    jumps: Literal["refuse", "cut"] = "refuse",
    n_actions: int | None = None,
) -> Episodes:
    """Episodes from columns with a row per step, under the names of `NAMES`; steps of an episode stand together, in order.

    Needed: observations (T, *obs), actions (T,) whole numbers or (T, A) floats, terminated (T,). And what shows where a
    limit cut an episode: truncated (T,), or episode (T,), or next_observations (T, *obs), or `horizon`, the limit itself
    (also beside truncated, where that does not show every cut).
    The steps after the last end are an episode that was cut.

    next_observations: what followed each step; within an episode it is the next row's observation. Where it is not, an
    episode ends unsaid: jumps = "refuse" names the step, "cut" takes it for a cut. Without this column the true last
    observation of an episode is not known. A cut one then loses its final step, whose observation is its last. One that
    terminated keeps every step, for nothing is bootstrapped from its last observation; its final one stands in the place.
    The facts count both.
    n_actions: how many discrete actions there are; by default one more than the largest met, and the facts say so.
    """
    for name in ("observations", "actions", "terminated"):
        if name not in columns:
            held = ", ".join(columns) or "nothing"
            why = "; whether the task or a limit ended an episode decides what lies beyond" * (name == "terminated")
            raise EpisodesError(f"there is no column for {name} among {held}{why}. Name it: mapping {name}=COLUMN")
    if jumps not in ("refuse", "cut"):
        raise EpisodesError(f"jumps = {jumps!r} should be 'refuse' or 'cut'")
    facts: dict[str, Any] = {}
    steps = len(columns["observations"])
    if not steps:
        raise EpisodesError("there are no steps")
    for name, column in columns.items():
        if column.ndim == 0 or len(column) != steps:
            raise EpisodesError(
                f"{name} has shape {column.shape}, but there are {steps} observations; give one per step"
            )
        if column.dtype.kind not in "biuf" and name != "episode":
            raise EpisodesError(f"{name} holds {column.dtype}; give numbers")

    def flags(name: str) -> np.ndarray:
        column = columns[name].reshape(steps, -1)
        if column.shape[1] != 1 or not np.isin(column, (0, 1)).all():
            raise EpisodesError(f"{name} should be true or false (0 or 1) for each step")
        return column[:, 0].astype(bool)

    observations = columns["observations"].astype(np.float32)
    observations = observations[:, None] if observations.ndim == 1 else observations
    actions = columns["actions"]
    if actions.dtype.kind in "biu" and (actions.ndim == 1 or actions.shape[1:] == (1,)):
        actions = actions.reshape(steps).astype(np.int64)
        if actions.min() < 0:
            raise EpisodesError(f"discrete actions are numbered from 0; {actions.min()} was met")
        if n_actions is None:
            n_actions = int(actions.max()) + 1
            facts["n_actions"] = f"{n_actions}: one more than the largest action met"
    elif actions.dtype.kind == "f" and actions.ndim <= 2:
        if n_actions is not None:
            raise EpisodesError(f"n_actions = {n_actions}, but the actions are {actions.dtype}: continuous")
        actions = actions.reshape(steps, -1).astype(np.float32)
    else:
        raise EpisodesError(
            f"actions are {actions.dtype} {actions.shape}; give (steps,) whole numbers for discrete ones, or (steps, "
            "dimensions) floats for continuous ones"
        )

    # Where episodes end: step t is the last of its own.
    terminated = flags("terminated")
    following = None
    ends = terminated.copy()
    if "next_observations" in columns:
        following = columns["next_observations"].astype(np.float32)
        following = following[:, None] if following.ndim == 1 else following
        if following.shape != observations.shape:
            raise EpisodesError(f"next_observations are {following.shape}, observations {observations.shape}")
    if "episode" in columns:
        named = columns["episode"]
        turn = named[1:] != named[:-1]
        if len(np.unique(named)) != turn.sum() + 1:
            raise EpisodesError("the steps of an episode do not stand together; sort the rows by episode and step")
        inside = np.flatnonzero(terminated[:-1] & ~turn)
        if len(inside):
            at = int(inside[0])
            raise EpisodesError(f"step {at} terminated, but episode {named[at]} goes on after it")
        ends[:-1] = turn
    if "truncated" in columns:
        cut = flags("truncated")
        if "episode" in columns and (cut & ~ends)[:-1].any():
            at = int(np.flatnonzero((cut & ~ends)[:-1])[0])
            raise EpisodesError(f"step {at} was truncated, but episode {columns['episode'][at]} goes on after it")
        ends |= cut
    if horizon is not None:
        if horizon < 1 or "episode" in columns:
            why = "should be 1 step or more" if horizon < 1 else "has no use: the episode column shows where they end"
            raise EpisodesError(f"horizon = {horizon} {why}")
        begun = 0
        for t in range(steps):
            if ends[t] or t - begun + 1 == horizon:
                ends[t], begun = True, t + 1
    elif not {"episode", "truncated"} & columns.keys() and following is None:
        raise EpisodesError(
            "nothing shows where a time limit cut an episode: give timeouts (or truncated), next_observations, an episode "
            "column, or the limit itself as horizon"
        )
    if following is None and jumps == "cut":
        raise EpisodesError("jumps = 'cut' needs next_observations: without them no jump can be seen")
    if following is not None:
        apart = ~np.isclose(following[:-1], observations[1:], rtol=1e-5, atol=1e-6)
        jump = np.append(apart.any(axis=tuple(range(1, apart.ndim))), False) & ~ends
        if jump.any():
            known = any(name in columns for name in ("truncated", "episode")) or horizon is not None
            if known and jumps == "refuse":
                raise EpisodesError(
                    f"step {int(np.flatnonzero(jump)[0])} (and {jump.sum() - 1} more): what followed it is not the next "
                    "row's observation, so an episode ends there unsaid. Mend the file, or take these for cuts: jumps = 'cut'"
                )
            ends |= jump
            facts["jumps"] = f"{jump.sum()} episodes end where the next row does not go on"
    ends[-1] = True

    # The last observations.
    stop = np.flatnonzero(ends)
    ended = terminated[stop]
    start = np.concatenate(([0], stop[:-1] + 1))
    keep = np.ones(steps, bool)
    if following is not None:
        last = following[stop]
    else:
        last = observations[stop]  # of a cut episode its true last one, once its final step is given up
        keep[stop[~ended]] = False
        alone = ~ended & (start == stop)
        if (~ended).any():
            facts["dropped"] = {
                "why": "the true last observation of a cut episode is not in the source: its final step was given up",
                "steps": int((~ended).sum()),
                "episodes": int(alone.sum()),
            }
        if ended.any():
            facts["last"] = (
                f"the last observation of {int(ended.sum())} terminated episodes is not in the source: the final one stands "
                "in its place, from which nothing is bootstrapped"
            )
        start, stop, ended, last = start[~alone], stop[~alone], ended[~alone], last[~alone]
        if not len(stop):
            raise EpisodesError("every episode is one step without its true last observation: nothing is left")

    def number(name: str) -> np.ndarray | None:
        if name not in columns:
            return None
        column = columns[name]
        if column.size != steps:
            raise EpisodesError(f"{name} has shape {column.shape}; give one number per step")
        return column.reshape(steps)[keep].astype(np.float64)

    propensities = number("propensities")
    if propensities is None and (logs := number("log_propensities")) is not None:
        propensities = np.exp(logs)
        facts["propensities"] = "from logged logarithms"
        if not (np.isfinite(propensities) & (propensities > 0)).all():
            propensities = None
            facts["propensities"] = "left out: not every logged logarithm is that of a density above 0"
    probs = columns.get("action_probs")
    behaviour = None
    if (who := number("behaviour")) is not None:
        behaviour = columns["behaviour"].reshape(steps)[stop]
        length = stop - start + 1
        if (np.repeat(behaviour, length) != columns["behaviour"].reshape(steps)[_spans(start, length)]).any():
            raise EpisodesError("behaviour changes within an episode; an episode has one")
        if (behaviour != behaviour.astype(np.int32)).any():
            raise EpisodesError(f"behaviour should be whole numbers; {who.min():g} to {who.max():g} were met")
        behaviour = behaviour.astype(np.int32)
    lengths = stop - start + 1 - (~ended if following is None else 0)  # a cut episode's final step is given up
    return Episodes(
        observations=observations[keep],
        actions=actions[keep],
        rewards=number("rewards"),
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        last=last,
        terminated=ended,
        truncated=~ended,
        propensities=propensities,
        action_probs=None if probs is None else probs.astype(np.float64)[keep],
        behaviour=behaviour,
        n_actions=n_actions,
        facts=facts,
    )


def _spans(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """All steps of the stretches, one after another."""
    return np.repeat(start - np.concatenate(([0], np.cumsum(length)[:-1])), length) + np.arange(length.sum())


def _named(held: list[str], mapping: Mapping[str, str] | None) -> dict[str, str]:
    """Which column of the file stands for which of `NAMES`: as the mapping says, else by what it is called."""
    found = {}
    for field, column in (mapping or {}).items():
        if field not in NAMES:
            raise EpisodesError(f"mapping: {field!r} is no column of steps; there are {', '.join(NAMES)}")
        if column not in held:
            raise EpisodesError(f"mapping {field}={column}: there is no such column; there are {', '.join(held)}")
        found[field] = column
    for field, names in NAMES.items():
        several = [name for name in names if name in held and name not in found.values()]
        if field not in found and several:
            found[field] = several[0]
    if "terminated" not in found:
        for done in ("dones", "done"):
            if done in held:
                raise EpisodesError(
                    f"{done!r} does not say whether the task or a limit ended an episode. If it is true only where the task "
                    f"did, map it: terminated={done}"
                )
    return found


@source("log", is_log)
def read_log(path: Path) -> Episodes:
    """A log that Holdfast froze."""
    return open_log(path).episodes


def _minari_folder(path: Path) -> Path | None:
    """Where a Minari dataset's data lies: in this folder, in its `data`, or under this id among the local ones."""
    home = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
    for folder in (path, path / "data", home / path / "data"):
        if (folder / "metadata.json").is_file():
            return folder
    return None


@source("minari", lambda path: _minari_folder(path) is not None)
def read_minari(path: Path) -> Episodes:
    """A Minari dataset, by folder or by id among the local ones (MINARI_DATASETS_PATH). Needs the `minari` package."""
    try:
        from gymnasium.spaces import Box, Discrete
        from minari.dataset.minari_storage import MinariStorage
    except ImportError:
        raise EpisodesError("this needs minari: pip install 'holdfast[control]'") from None
    folder = _minari_folder(path)
    if folder is None:
        raise EpisodesError("is no Minari dataset: it has no metadata.json")
    try:
        told = orjson.loads((folder / "metadata.json").read_bytes())
        if not {"observation_space", "action_space"} <= told.keys():
            raise EpisodesError(
                "its metadata.json has no spaces; to know them its environment's code would have to run"
            )
        storage = MinariStorage.read(folder)
        seen, done = storage.observation_space, storage.action_space
        if not isinstance(seen, Box):
            raise EpisodesError(f"its observations are {seen}; Holdfast takes vectors")
        if not isinstance(done, Box | Discrete):
            raise EpisodesError(f"its actions are {done}; Holdfast takes a Discrete or a Box")
        parts: dict[str, list[np.ndarray]] = {k: [] for k in ("observations", "actions", "rewards", "last")}
        ended = []
        for number, episode in enumerate(storage.get_episodes(range(storage.total_episodes))):
            steps = len(episode["rewards"])
            observations = np.asarray(episode["observations"])
            if len(observations) != steps + 1 or len(episode["actions"]) != steps or not steps:
                raise EpisodesError(
                    f"episode {number} has {len(observations)} observations, {len(episode['actions'])} actions and {steps} "
                    "rewards; n steps have n + 1 observations"
                )
            if np.asarray(episode["terminations"])[:-1].any() or np.asarray(episode["truncations"])[:-1].any():
                raise EpisodesError(f"episode {number} ends before its last step")
            parts["observations"].append(observations[:-1])
            parts["last"].append(observations[-1:])
            parts["actions"].append(np.asarray(episode["actions"]))
            parts["rewards"].append(np.asarray(episode["rewards"]))
            ended.append(bool(episode["terminations"][-1]))
    except EpisodesError:
        raise
    except Exception as problem:  # whatever a damaged dataset makes of Minari
        raise EpisodesError(f"cannot be read as a Minari dataset: {type(problem).__name__}: {problem}") from None
    if not ended:
        raise EpisodesError("the dataset has no episodes")
    facts: dict[str, Any] = {k: told[k] for k in ("dataset_id", "algorithm_name", "minari_version") if told.get(k)}
    with suppress(KeyError, TypeError, ValueError):  # it need not name its environment
        facts["environment"] = orjson.loads(told["env_spec"])["id"]
    actions = np.concatenate(parts["actions"])
    n_actions = None
    if isinstance(done, Discrete):
        n_actions = int(done.n)
        actions = (actions.reshape(-1) - done.start).astype(np.int64)
    else:
        actions = actions.reshape(len(actions), -1).astype(np.float32)
        if done.is_bounded():
            facts |= {"action_low": done.low.ravel().tolist(), "action_high": done.high.ravel().tolist()}
    lengths = [len(r) for r in parts["rewards"]]
    return Episodes(
        observations=np.concatenate(parts["observations"]).astype(np.float32),
        actions=actions,
        rewards=np.concatenate(parts["rewards"]).astype(np.float64),
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        last=np.concatenate(parts["last"]).astype(np.float32),
        terminated=np.array(ended),
        truncated=~np.array(ended),
        n_actions=n_actions,
        facts=facts,
    )


@source("hdf5", lambda path: path.suffix in (".hdf5", ".h5") and path.is_file())
def read_hdf5(
    path: Path,
    *,
    mapping: Mapping[str, str] | None = None,
    horizon: int | None = None,
    jumps: Literal["refuse", "cut"] = "refuse",
    n_actions: int | None = None,
) -> Episodes:
    """An HDF5 file of flat columns, as D4RL has them. `infos/action_log_probs` are taken for the logged densities."""
    try:
        import h5py
    except ImportError:
        raise EpisodesError("this needs h5py: pip install 'holdfast[control]'") from None
    try:
        with h5py.File(path, "r") as file:
            names = list(file)
            if isinstance(file.get("infos"), h5py.Group):
                names += [f"infos/{name}" for name in file["infos"]]
            # Hard links alone: a soft or external one could point at another file of this machine.
            held = [n for n in names if isinstance(file.get(n, getlink=True), h5py.HardLink)]
            held = [n for n in held if isinstance(file[n], h5py.Dataset)]
            columns = {}
            for field, name in _named(held, mapping).items():
                data = file[name]
                if data.external or data.is_virtual:
                    raise EpisodesError(f"{name} lies in another file; copy it into this one")
                columns[field] = _plain(field, data[()])
    except EpisodesError:
        raise
    except Exception as problem:  # whatever a damaged file makes of the library
        raise EpisodesError(f"cannot be read as HDF5: {problem}") from None
    return from_steps(columns, horizon=horizon, jumps=jumps, n_actions=n_actions)


@source("npz", lambda path: path.suffix == ".npz" and path.is_file())
def read_npz(
    path: Path,
    *,
    mapping: Mapping[str, str] | None = None,
    horizon: int | None = None,
    jumps: Literal["refuse", "cut"] = "refuse",
    n_actions: int | None = None,
) -> Episodes:
    """An NPZ file of arrays, never unpickled: flat columns, or the columns of `Episodes` under their names (it then has
    `offsets`)."""
    import zipfile
    import zlib

    try:
        with np.load(path, allow_pickle=False) as file:
            held = list(file.files)
            if "offsets" in held:
                ours = ("observations", "actions", "rewards", "offsets", "last", "terminated", "truncated")
                wanted = {n: n for n in (*ours, "propensities", "action_probs", "behaviour") if n in held}
                for option, given in (("mapping", mapping), ("horizon", horizon), ("jumps", jumps)):
                    if given not in (None, "refuse"):
                        raise EpisodesError(f"it holds offsets, which say where episodes end: {option} has no use")
                missing = [n for n in ours if n not in held and n != "rewards"]
                if missing:
                    raise EpisodesError(f"it holds offsets, but no {', '.join(missing)}")
            else:
                wanted = _named(held, mapping)
            columns = {field: _plain(field, file[name]) for field, name in wanted.items()}
            if "offsets" in held and "n_actions" in held and n_actions is None:
                n_actions = int(file["n_actions"])
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError) as problem:
        raise EpisodesError(f"cannot be read as arrays without unpickling: {problem}") from None
    except AttributeError:  # np.load gives the array itself of a .npy
        raise EpisodesError("is one array (.npy); an .npz holds several by name") from None
    if "offsets" not in columns:
        return from_steps(columns, horizon=horizon, jumps=jumps, n_actions=n_actions)
    discrete = columns["actions"].dtype.kind in "biu"
    kinds: dict[str, Any] = {"offsets": np.int64, "behaviour": np.int32, "terminated": bool, "truncated": bool}
    kinds |= {"observations": np.float32, "last": np.float32, "actions": np.int64 if discrete else np.float32}
    cast: dict[str, Any] = {name: column.astype(kinds.get(name, np.float64)) for name, column in columns.items()}
    if discrete and n_actions is None and cast["actions"].size:
        n_actions = int(cast["actions"].max()) + 1
    if not discrete and n_actions is not None:
        raise EpisodesError(f"n_actions = {n_actions}, but the actions are {columns['actions'].dtype}: continuous")
    return Episodes(rewards=cast.pop("rewards", None), n_actions=n_actions, **cast)


@source("parquet", lambda path: path.suffix == ".parquet" and path.is_file())
def read_parquet(
    path: Path,
    *,
    mapping: Mapping[str, str] | None = None,
    horizon: int | None = None,
    jumps: Literal["refuse", "cut"] = "refuse",
    n_actions: int | None = None,
) -> Episodes:
    """A parquet table with a row per step. Vectors are a column of lists (`observation`), or numbered columns
    (`observation_0`, `observation_1`, ...)."""
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as problem:
        raise EpisodesError(f"cannot be read as parquet: {problem}") from None
    numbered: dict[str, dict[int, str]] = {}
    for name in table.column_names:
        if found := re.fullmatch(r"(.+)_(\d+)", name):
            numbered.setdefault(found[1], {})[int(found[2])] = name
    columns = {}
    for field, name in _named([*table.column_names, *numbered], mapping).items():
        members = [name]
        if name not in table.column_names:
            members = [numbered[name].get(i, "") for i in range(len(numbered[name]))]
            if "" in members:
                raise EpisodesError(f"{name}_{members.index('')} is missing among {', '.join(numbered[name].values())}")
        parts = []
        for member in members:
            column = table[member].combine_chunks()
            if column.null_count:
                raise EpisodesError(f"column {member} has {column.null_count} nulls; drop or mend these steps")
            if (
                pa.types.is_list(column.type)
                or pa.types.is_fixed_size_list(column.type)
                or pa.types.is_large_list(column.type)
            ):
                flat, sizes = column.flatten(), pc.list_value_length(column).unique()
                if len(sizes) > 1 or flat.null_count:
                    raise EpisodesError(
                        f"column {member}: its lists hold nulls, or differ in length; a vector has one size"
                    )
                parts.append(_plain(field, flat.to_numpy(zero_copy_only=False)).reshape(len(column), -1))
            else:
                parts.append(_plain(field, column.to_numpy(zero_copy_only=False)))
        columns[field] = parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
    return from_steps(columns, horizon=horizon, jumps=jumps, n_actions=n_actions)


def _plain(field: str, values: Any) -> np.ndarray:
    """Numbers (or, for episodes, names) as an array."""
    array = np.asarray(values)
    if array.dtype.kind in "SUO" and field == "episode":
        return np.unique(array.astype(str), return_inverse=True)[1]
    if array.dtype.kind not in "biuf":
        raise EpisodesError(f"{field} holds {array.dtype}; give numbers")
    return array
