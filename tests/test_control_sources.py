"""Sources: each says the same episodes as the others, ends and last observations are the file's own, and a bad file is a sentence."""

import zipfile
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.control.episodes import Episodes, EpisodesError
from holdfast.control.sources import SOURCES, from_steps, read_episodes
from holdfast.control.store import freeze_episodes
from holdfast.errors import HoldfastError

h5py = pytest.importorskip("h5py", reason="the control extra is not installed")

# Three episodes of 2, 3 and 1 steps: ended by the task, cut by a limit, cut.
FLAT = {
    "observations": np.array([[0, 0], [1, 0], [5, 5], [6, 5], [7, 5], [9, 9]], np.float32),
    "actions": np.array([0, 2, 1, 1, 0, 2]),
    "rewards": np.array([0.5, 1.5, -1, -2, -3, 4]),
    "next_observations": np.array([[1, 0], [2, 0], [6, 5], [7, 5], [8, 5], [9.5, 9]], np.float32),
    "terminals": np.array([0, 1, 0, 0, 0, 0], bool),
    "timeouts": np.array([0, 0, 0, 0, 1, 1], bool),
}
WHOLE = Episodes(
    observations=FLAT["observations"],
    actions=FLAT["actions"],
    rewards=FLAT["rewards"],
    offsets=np.array([0, 2, 5, 6]),
    last=np.array([[2, 0], [8, 5], [9.5, 9]], np.float32),
    terminated=np.array([True, False, False]),
    truncated=np.array([False, True, True]),
    n_actions=3,
)


def without(*names, **more):
    return {**{k: v for k, v in FLAT.items() if k not in names}, **more}


def write(kind, path, columns):
    path = path.with_suffix({"hdf5": ".hdf5", "npz": ".npz", "parquet": ".parquet"}[kind])
    if kind == "hdf5":
        with h5py.File(path, "w") as file:
            for name, column in columns.items():
                file[name] = column
    elif kind == "npz":
        np.savez(path, **columns)
    else:
        table = {k: list(v) if v.ndim > 1 else v for k, v in columns.items()}
        pq.write_table(pa.table(table), path)
    return path


def same(found: Episodes, wanted: Episodes = WHOLE) -> None:
    for f in fields(wanted):
        x, y = getattr(found, f.name), getattr(wanted, f.name)
        if isinstance(y, np.ndarray):
            assert x.dtype == y.dtype and np.array_equal(x, y), f.name
        elif f.name != "facts":
            assert (x is None) == (y is None) and x == y, f.name


@pytest.mark.parametrize("kind", ["hdf5", "npz", "parquet"])
def test_flat_files_say_the_same_episodes(tmp_path, kind):
    found = read_episodes(write(kind, tmp_path / "log", FLAT))
    same(found)
    assert found.facts["source"]["format"] == kind
    other = {"o": FLAT["observations"], **without("observations")}
    same(read_episodes(write(kind, tmp_path / "named", other), mapping={"observations": "o"}))
    # the same ends, told in other words
    for told in (
        without("timeouts"),  # next_observations alone show every cut
        without("timeouts", episode=np.array([7, 7, 3, 3, 3, 4])),
        without("timeouts", episode=np.array([b"x", b"x", b"b", b"b", b"b", b"c"])) if kind != "parquet" else FLAT,
    ):
        same(read_episodes(write(kind, tmp_path / "told", told)))
    bare = without("timeouts", "next_observations")
    for told in (bare, {**bare, "timeouts": np.zeros(6, bool)}):
        cut = read_episodes(write(kind, tmp_path / "horizon", told), horizon=3)
        assert cut.offsets.tolist() == [0, 2, 4] and cut.last.tolist() == [[1, 0], [7, 5]]


def test_without_the_true_last_observation_a_cut_episode_gives_up_its_final_step():
    found = from_steps(
        {
            **without("next_observations", "terminals", "timeouts"),
            "terminated": FLAT["terminals"],
            "truncated": FLAT["timeouts"],
        }
    )
    # episode 1 loses its step with reward -3, whose observation (7, 5) is its last; episode 2 was that one step: gone
    assert found.offsets.tolist() == [0, 2, 4] and found.rewards.tolist() == [0.5, 1.5, -1, -2]
    assert found.last.tolist() == [[1, 0], [7, 5]]  # the terminated one's stands in, and is never bootstrapped from
    assert found.terminated.tolist() == [True, False] and found.truncated.tolist() == [False, True]
    assert found.facts["dropped"]["steps"] == 2 and found.facts["dropped"]["episodes"] == 1
    assert "1 terminated" in found.facts["last"]


def test_an_end_that_is_not_said_is_found_by_what_followed():
    hidden = {"terminated": FLAT["terminals"], "truncated": np.zeros(6, bool)}
    columns = {**without("terminals", "timeouts"), **hidden}
    with pytest.raises(EpisodesError, match=r"step 4 \(and 0 more\).*jumps = 'cut'"):
        from_steps(columns)
    same(from_steps(columns, jumps="cut"))
    with pytest.raises(EpisodesError, match="needs next_observations"):
        from_steps({k: v for k, v in columns.items() if k != "next_observations"}, jumps="cut")


def test_behaviour_and_probabilities_come_along(tmp_path):
    logs = np.log([0.5, 0.25, 0.5, 0.125, 1.0, 0.5])
    columns = {**FLAT, "behaviour": np.array([1, 1, 0, 0, 0, 2]), "infos/action_log_probs": logs}
    found = read_episodes(write("hdf5", tmp_path / "log", columns))
    assert found.behaviour.tolist() == [1, 0, 2]
    assert found.propensities == pytest.approx([0.5, 0.25, 0.5, 0.125, 1.0, 0.5])
    dropped = from_steps(
        {
            "observations": FLAT["observations"],
            "actions": FLAT["actions"],
            "terminated": FLAT["terminals"],
            "truncated": FLAT["timeouts"],
            "behaviour": columns["behaviour"],
            "log_propensities": logs,
        }
    )
    assert dropped.behaviour.tolist() == [1, 0] and len(dropped.propensities) == 4
    columns["behaviour"] = np.array([1, 2, 0, 0, 0, 2])
    with pytest.raises(EpisodesError, match="behaviour changes within"):
        read_episodes(write("hdf5", tmp_path / "log", columns))


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    continuous=st.booleans(),
    ends=st.lists(st.booleans(), min_size=5, max_size=5),
    kind=st.sampled_from(["hdf5", "npz", "parquet"]),
)
@settings(max_examples=30, deadline=None)
def test_any_episodes_go_through_flat_files(tmp_path_factory, lengths, continuous, ends, kind):
    rng, steps, n = np.random.default_rng(len(lengths)), sum(lengths), len(lengths)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    ended = np.array(ends[:n])
    episodes = Episodes(
        observations=rng.normal(size=(steps, 3)).astype(np.float32),
        actions=rng.normal(size=(steps, 2)).astype(np.float32) if continuous else rng.integers(4, size=steps),
        rewards=rng.normal(size=steps),
        offsets=offsets,
        last=rng.normal(size=(n, 3)).astype(np.float32),
        terminated=ended,
        truncated=~ended,
        n_actions=None if continuous else 4,
    )
    stop = offsets[1:] - 1
    following = np.roll(episodes.observations, -1, axis=0)
    following[stop] = episodes.last
    flat = {"observations": episodes.observations, "actions": episodes.actions, "rewards": episodes.rewards}
    flat |= {"next_observations": following, "terminals": np.zeros(steps, bool), "timeouts": np.zeros(steps, bool)}
    flat["terminals"][stop], flat["timeouts"][stop] = ended, ~ended
    path = write(kind, tmp_path_factory.mktemp("flat") / "log", flat)
    same(read_episodes(path, n_actions=None if continuous else 4), episodes)


def test_columns_of_episodes_in_an_npz_and_a_frozen_log(tmp_path):
    np.savez(
        tmp_path / "ours.npz",
        **{
            f.name: getattr(WHOLE, f.name)
            for f in fields(WHOLE)
            if f.name not in ("facts", "propensities", "action_probs", "behaviour")
        },
    )
    same(read_episodes(tmp_path / "ours.npz"))
    freeze_episodes(WHOLE, tmp_path / "log")
    same(read_episodes(tmp_path / "log"))
    with pytest.raises(EpisodesError, match="log has no use for horizon"):
        read_episodes(tmp_path / "log", horizon=3)


def test_numbered_columns_are_a_vector(tmp_path):
    o = FLAT["observations"]
    columns = {"obs_1": o[:, 1], "obs_0": o[:, 0], **without("observations", "next_observations")}
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(columns), path)
    found = read_episodes(path)
    assert found.observations.tolist() == o[[0, 1, 2, 3]].tolist()
    pq.write_table(pa.table({"obs_2": o[:, 1], **columns}).drop_columns("obs_1"), path)
    with pytest.raises(EpisodesError, match="obs_1 is missing"):
        read_episodes(path)


@pytest.mark.filterwarnings("ignore:.*set to None:UserWarning", "ignore:env_spec is None:UserWarning")
def test_minari(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari", reason="the control extra is not installed")
    from gymnasium.spaces import Box, Discrete
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    buffers = []
    for e in range(3):
        span = slice(WHOLE.offsets[e], WHOLE.offsets[e + 1])
        flags = {k: np.zeros(span.stop - span.start, bool) for k in ("terminations", "truncations")}
        flags["terminations"][-1], flags["truncations"][-1] = WHOLE.terminated[e], WHOLE.truncated[e]
        seen = np.concatenate([WHOLE.observations[span], WHOLE.last[e : e + 1]])
        buffers.append(
            EpisodeBuffer(observations=seen, actions=WHOLE.actions[span] + 1, rewards=WHOLE.rewards[span], **flags)
        )
    minari.create_dataset_from_buffers(
        "made/up-v0",
        buffers,
        observation_space=Box(-10, 10, (2,), np.float32),
        action_space=Discrete(3, start=1),
        algorithm_name="by hand",
    )
    for place in ("made/up-v0", tmp_path / "made/up-v0", tmp_path / "made/up-v0" / "data"):
        found = read_episodes(place)
        same(found)
    assert found.facts["dataset_id"] == "made/up-v0" and found.facts["algorithm_name"] == "by hand"
    data = tmp_path / "made/up-v0" / "data" / "main_data.hdf5"
    data.write_bytes(data.read_bytes()[:-800])
    with pytest.raises(EpisodesError, match="up-v0"):
        read_episodes("made/up-v0")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (without("terminals"), "no column for terminated"),
        (without("terminals", dones=FLAT["terminals"]), "terminated=dones"),
        (without("observations"), "no column for observations"),
        (without("timeouts", "next_observations"), "nothing shows where a time limit"),
        (without(terminals=np.arange(6)), "terminated should be true or false"),
        (without(rewards=np.ones(5)), r"rewards has shape \(5,\)"),
        (without(actions=np.array([0, -1, 0, 0, 0, 0])), "-1 was met"),
        (without(actions=np.zeros((6, 2), int)), "actions are int64"),
        (without(rewards=np.array([1, 1, 1, 1, 1, np.nan])), "rewards holds a number that is not finite"),
        (without(episode=np.array([0, 0, 1, 1, 0, 2])), "do not stand together"),
        (without(episode=np.zeros(6, int)), "step 1 terminated, but episode 0 goes on"),
        (without(episode=np.array([0, 0, 1, 1, 1, 1])), "step 4 was truncated, but episode 1 goes on"),
        (without(actions=np.array(["a"] * 6, "S1")), "actions holds"),
        (without(next_observations=np.zeros((6, 3))), r"next_observations are \(6, 3\)"),
        ({k: v[:0] for k, v in FLAT.items()}, "no steps"),
    ],
)
@pytest.mark.parametrize("kind", ["hdf5", "npz"])
def test_what_is_missing_or_wrong_is_said_with_the_file(tmp_path, columns, said, kind):
    with pytest.raises(EpisodesError, match=said) as raised:
        read_episodes(write(kind, tmp_path / "log", columns))
    assert str(raised.value).startswith(str(tmp_path / "log"))


def test_options_that_do_not_fit_are_said(tmp_path):
    path = write("npz", tmp_path / "log", FLAT)
    named = write("npz", tmp_path / "named", {**FLAT, "episode": np.array([0, 0, 1, 1, 1, 2])})
    for at, options, said in (
        (path, {"mapping": {"reward": "x"}}, "'reward' is no column"),
        (path, {"mapping": {"rewards": "x"}}, "no such column"),
        (path, {"horizon": 0}, "horizon = 0"),
        (named, {"horizon": 3}, "horizon = 3 has no use"),
        (path, {"n_actions": 2}, r"0\.\.1"),
        (path, {"jumps": "leap"}, "'leap'"),
        (path, {"speed": 3}, "no use for speed"),
        (path, {"format": "csv"}, "'csv' is not known"),
        (tmp_path / "nothing", {}, "does not exist"),
    ):
        with pytest.raises(EpisodesError, match=said):
            read_episodes(at, **options)


def test_nothing_is_unpickled_and_no_link_is_followed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    from pathlib import Path

    np.savez(tmp_path / "trap.npz", **without("rewards", rewards=np.array([Trap()] * 6, object)))
    with pytest.raises(EpisodesError, match="unpickling"):
        read_episodes(tmp_path / "trap.npz")
    assert not (tmp_path / "sprung").exists()
    write("hdf5", tmp_path / "secret", {"observations": FLAT["observations"]})
    path = write("hdf5", tmp_path / "log", without("observations"))
    with h5py.File(path, "a") as file:
        file["observations"] = h5py.ExternalLink(str(tmp_path / "secret.hdf5"), "observations")
    with pytest.raises(EpisodesError, match="no column for observations"):
        read_episodes(path)


@pytest.mark.parametrize("kind", ["hdf5", "npz", "parquet"])
def test_a_damaged_file_is_a_sentence_and_never_a_traceback(tmp_path, kind):
    whole = write(kind, tmp_path / "log", FLAT).read_bytes()
    path = tmp_path / f"damaged.{kind}"
    rng, refused = np.random.default_rng(0), 0
    for i in range(60):
        damaged = bytearray(whole if i % 2 else whole[: rng.integers(len(whole))])
        for at in rng.integers(max(len(damaged), 1), size=8):
            if len(damaged):
                damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_episodes(path)
        except HoldfastError as problem:
            assert str(path) in str(problem)
            refused += 1
    assert refused >= 25
    path.write_bytes(b"")
    with pytest.raises(EpisodesError):
        read_episodes(path)


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("observations.txt", "hello")
    with pytest.raises(EpisodesError):
        read_episodes(tmp_path / "a.npz")
    assert set(SOURCES) == {"log", "minari", "hdf5", "npz", "parquet"}
