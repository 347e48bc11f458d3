"""A frozen log: what goes in comes out, the root follows the content, and damage is named by table and row."""

import hashlib
import shutil
from dataclasses import fields, replace

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.control import store
from holdfast.control.episodes import Episodes, EpisodesError
from holdfast.control.segments import Segments, attach, named, read_judgements
from holdfast.control.store import freeze_episodes, open_log, relabel, split_episodes, verify_log
from holdfast.data.dataset import canonical_json
from holdfast.data.merkle import merkle_root
from holdfast.data.offline import offline
from holdfast.errors import IntegrityError, OfflineError
from holdfast.proof import verify


def some(lengths=(2, 3, 1), n_actions=3, seed=0, logged=True, rewards=True, shape=(2,)) -> Episodes:
    rng = np.random.default_rng(seed)
    steps, n = sum(lengths), len(lengths)
    probs = rng.dirichlet(np.ones(n_actions), steps) if n_actions else None
    actions = rng.integers(n_actions, size=steps) if n_actions else rng.normal(size=(steps, 2)).astype(np.float32)
    ended = rng.random(n) < 0.5
    return Episodes(
        observations=rng.normal(size=(steps, *shape)).astype(np.float32),
        actions=actions,
        rewards=rng.normal(size=steps) if rewards else None,
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        last=rng.normal(size=(n, *shape)).astype(np.float32),
        terminated=ended,
        truncated=~ended,
        propensities=rng.uniform(0.1, 1, steps) if logged else None,
        action_probs=probs if logged else None,
        behaviour=rng.integers(2, size=n).astype(np.int32) if logged else None,
        n_actions=n_actions,
        facts={"environment": "made up"},
    )


def judged(episodes: Episodes) -> Segments:
    ids = [episodes.digest(e) for e in range(len(episodes))]
    two = [[0, 1], [1, 0], [0, 1]]
    return Segments.of(ids, two, [[0, 1], [2, 0], [0, 1]], [[2, 2], [1, 1], [2, 2]], [1.0, 0.5, 1.0], ["a", None, "a"])


def same(a, b) -> None:
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype and x.shape == y.shape, field.name
            assert x.tobytes() == y.tobytes(), field.name
        else:
            assert x == y, field.name


def test_what_goes_in_comes_out(tmp_path):
    episodes = some()
    log = freeze_episodes(episodes, tmp_path / "log", segments=judged(episodes), facts={"more": [1, 2]}, parent="ab")
    again = open_log(tmp_path / "log")
    facts = {"environment": "made up", "more": [1, 2]}
    same(replace(episodes, facts=facts), again.episodes)
    same(judged(episodes), again.segments)
    assert (again.root, again.facts, again.parent, len(again)) == (log.root, facts, "ab", 3)
    assert again.episode_ids == [episodes.digest(e) for e in range(3)]
    assert verify(tmp_path / "log") == [] and not list(tmp_path.glob(".*"))
    # a second time: nothing happens; another content does not go over it
    assert (
        freeze_episodes(episodes, tmp_path / "log", segments=judged(episodes), facts=facts, parent="ab").root
        == log.root
    )
    with pytest.raises(EpisodesError, match="another log"):
        freeze_episodes(some(seed=1), tmp_path / "log")
    with pytest.raises(EpisodesError, match="no frozen log"):
        open_log(tmp_path)
    with offline(log.root):
        open_log(tmp_path / "log")
    with offline("another"), pytest.raises(OfflineError):
        open_log(tmp_path / "log")


def test_root_by_hand(tmp_path):
    """The root is worked out here again from the words of the module: leaves, trees, then one digest over the tables."""
    episodes = some(logged=False)
    log = freeze_episodes(episodes, tmp_path / "log", segments=judged(episodes))
    ids = [bytes.fromhex(episodes.digest(e)) for e in range(3)]
    rewards = np.split(episodes.rewards, [2, 5])
    paid = [
        hashlib.sha256(b"holdfast/rewards/1\0" + i + r.astype("<f8").tobytes()).digest()
        for i, r in zip(ids, rewards, strict=True)
    ]
    first = {"segments": [[ids[0].hex(), 0, 2], [ids[1].hex(), 1, 2]], "p": 1.0, "annotator": "a"}
    tie = {"segments": [[ids[1].hex(), 2, 1], [ids[0].hex(), 0, 1]], "p": 0.5}
    said = [
        hashlib.sha256(b"holdfast/segment-judgement/1\0" + canonical_json(j)).digest()
        for j in (first, tie, {**first, "copy": 1})
    ]
    tables = {"episodes": ids, "rewards": paid, "judgements": said}
    sizes = {name: {"rows": 3, "root": merkle_root(leaves).hex()} for name, leaves in tables.items()}
    assert log.root == hashlib.sha256(b"holdfast/log/1\0" + canonical_json(sizes)).hexdigest()
    assert log.segments.ids == [i.hex() for i in said]


def test_root_follows_content_and_facts_stand_beside(tmp_path):
    episodes = some()
    root = freeze_episodes(episodes, tmp_path / "0").root
    changed = {
        "rewards": episodes.rewards + 1,
        "propensities": episodes.propensities / 2,
        "action_probs": episodes.action_probs[::-1].copy(),
        "behaviour": 1 - episodes.behaviour,
        "last": episodes.last + 1,
    }
    roots = [freeze_episodes(replace(episodes, **{k: v}), tmp_path / k).root for k, v in changed.items()]
    roots.append(freeze_episodes(replace(episodes, action_probs=None), tmp_path / "a").root)
    roots.append(freeze_episodes(episodes, tmp_path / "j", segments=judged(episodes)).root)
    assert len({root, *roots}) == 8
    assert freeze_episodes(replace(episodes, facts={"other": 1}), tmp_path / "f").root == root


def test_relabelled_log_names_its_parent_and_keeps_its_judgements(tmp_path):
    episodes = some()
    log = freeze_episodes(episodes, tmp_path / "log", segments=judged(episodes))
    made = relabel(log, np.arange(6.0), tmp_path / "made", facts={"reward": "learned"})
    assert made.parent == log.root != made.root and made.facts["reward"] == "learned"
    assert made.episode_ids == log.episode_ids and made.segments.ids == log.segments.ids
    assert made.episodes.rewards.tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(EpisodesError, match="rewards"):
        relabel(log, np.arange(5.0), tmp_path / "short")


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    n_actions=st.sampled_from([None, 1, 4]),
    seed=st.integers(0, 9),
    logged=st.booleans(),
    rewards=st.booleans(),
    shape=st.sampled_from([(1,), (3,), (2, 2)]),
)
@settings(max_examples=12, deadline=None)
def test_round_trip_of_any_episodes(tmp_path_factory, lengths, n_actions, seed, logged, rewards, shape):
    episodes = some(tuple(lengths), n_actions, seed, logged, rewards, shape)
    if n_actions is None:
        episodes = replace(episodes, action_probs=None)
    folder = tmp_path_factory.mktemp("log")
    log = freeze_episodes(episodes, folder / "a")
    same(episodes, open_log(folder / "a").episodes)
    assert verify_log(folder / "a") == []
    assert freeze_episodes(log.episodes, folder / "b").root == log.root
    shutil.rmtree(folder)


@pytest.mark.parametrize("continuous", [False, True])
def test_every_changed_byte_is_named(tmp_path, continuous):
    episodes = some(n_actions=None if continuous else 3)
    episodes = replace(episodes, action_probs=None) if continuous else episodes
    log = freeze_episodes(episodes, tmp_path / "log", segments=judged(episodes)).path
    rows = 0
    for table in ("episodes", "rewards", "behaviour", "judgements", "manifest"):
        path = next(log.glob(f"{table}.*"))
        whole = path.read_bytes()
        for at in range(0, len(whole), 1 + len(whole) // 25):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
            problems = verify_log(log)
            assert problems and all(p.where.startswith(path.name) for p in problems), (table, at, problems)
            rows += any("row " in p.where for p in problems)
            with pytest.raises((IntegrityError, EpisodesError), match=path.name.replace(".", r"\.")):
                open_log(log)
        path.write_bytes(whole)
    assert rows > 12 and verify_log(log) == []


def test_a_changed_number_is_named_by_table_and_row(tmp_path):
    log = freeze_episodes(some(), tmp_path / "log").path
    whole = pq.read_table(log / "rewards.parquet")
    (log / "rewards.parquet").unlink()
    rewards = whole["rewards"].to_pylist()
    rewards[1][0] += 1e-9
    changed = pa.array(rewards, whole.schema.field(2).type)
    pq.write_table(whole.set_column(2, whole.schema.field(2), changed), log / "rewards.parquet", store_schema=False)
    (problem,) = verify_log(log)
    assert problem.where == "rewards.parquet, row 1" and problem.what == "a row does not hash to its id"
    with pytest.raises(IntegrityError, match=r"rewards.parquet, row 1"):
        open_log(log)


def test_a_rebuilt_source_is_recognised_and_a_changed_one_refused_by_name(tmp_path):
    episodes = some()
    log = freeze_episodes(episodes, tmp_path / "log", segments=judged(episodes))
    rows = named(log.segments, log.episode_ids)
    turned = [2, 1, 0]  # the same episodes in another order
    ids = [log.episode_ids[e] for e in turned]
    again = attach(rows, ids)
    assert again.ids == log.segments.ids and again.episode.tolist() == [[2, 1], [1, 2], [2, 1]]
    with pytest.raises(EpisodesError, match=f"1 episodes.*(?s:.)*{ids[1]}"):
        attach(rows, [ids[0], "f" * 64, ids[2]])
    lines = tmp_path / "judgements.jsonl"
    lines.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    assert attach(read_judgements(lines), log.episode_ids).ids == log.segments.ids


@pytest.mark.parametrize(
    ("row", "named_"),
    [
        ({"second": {}, "p": 1}, "'first' is missing"),
        ({"first": 3, "second": {}, "p": 1}, "row 0"),
        ({"p": 2.0}, "p = 2.0"),
        ({"p": True}, "p = True"),
        ({"annotator": 3}, "annotator = 3"),
        ({"first": {"episode": 3, "start": 0, "length": 1}}, "digest"),
        ({"first": {"episode": "x", "start": 0.5, "length": 1}}, "whole"),
    ],
)
def test_judgements_that_cannot_be_are_refused_by_row(row, named_):
    side = {"episode": "x", "start": 0, "length": 1}
    whole = {"first": side, "second": side, "p": 1.0, **row} if len(row) == 1 else row
    with pytest.raises(EpisodesError, match=named_):
        attach([whole], ["x"])


def test_segments_outside_their_episode_are_refused(tmp_path):
    episodes = some()
    whole = judged(episodes)
    for change, said in (
        ({"length": whole.length + 1}, "steps 0 to 2 of episode 0"),
        ({"episode": whole.episode + 2}, "episode 3"),
    ):
        with pytest.raises(EpisodesError, match=said):
            freeze_episodes(episodes, tmp_path / "log", segments=replace(whole, **change))
    for change in (
        {"p": whole.p + 1},
        {"p": whole.p * np.nan},
        {"start": whole.start - 1},
        {"length": whole.length * 0},
    ):
        with pytest.raises(EpisodesError, match="judgement 0"):
            replace(whole, **change)


def test_split_is_by_episode_and_by_content(tmp_path):
    episodes = some(lengths=(2,) * 40)
    log = freeze_episodes(episodes, tmp_path / "log")
    parts = split_episodes(log, 0.1, 0.25, seed=3)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 26, "validation": 4, "test": 10}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(40))
    other = split_episodes(log, 0.1, 0.25, seed=4)
    assert other["test"].tolist() != parts["test"].tolist()
    # in another order, and with its first episode twice, each episode falls where it fell
    turn = np.append(np.arange(40)[::-1], 0)
    steps = (2 * turn[:, None] + [0, 1]).ravel()
    per_step = {k: getattr(episodes, k)[steps] for k in ("observations", "actions", "rewards", "propensities")}
    per_episode = {k: getattr(episodes, k)[turn] for k in ("last", "terminated", "truncated", "behaviour")}
    probs = episodes.action_probs[steps]
    mixed = Episodes(**per_step, **per_episode, action_probs=probs, offsets=np.arange(42) * 2, n_actions=3)
    again = split_episodes(freeze_episodes(mixed, tmp_path / "mixed"), 0.1, 0.25, seed=3)
    assert {name: set(turn[rows].tolist()) for name, rows in again.items()} == {
        name: set(rows.tolist()) for name, rows in parts.items()
    }
    for validation, test in ((0.5, 0.5), (0.001, 0), (-0.1, 0)):
        with pytest.raises(EpisodesError):
            split_episodes(log, validation, test, seed=0)


def test_a_pair_across_two_parts_is_in_neither():
    s = judged(some())
    assert s.within(np.array([0, 1])).tolist() == [0, 1, 2] and s.within(np.array([1, 2])).tolist() == []
    assert s.take(np.array([2])).ids == [s.ids[2]]


def test_a_freeze_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    """Broken off at any table or at the manifest; and what a killed process left is cleared by the next."""
    episodes = some()
    whole, calls = store.sync, []
    for at in range(6):

        def stop(path, at=at):
            calls.append(path)
            if len(calls) == at + 1:
                raise OSError(28, "No space left on device")
            whole(path)

        calls.clear()
        monkeypatch.setattr(store, "sync", stop)
        with pytest.raises(EpisodesError, match="No space left"):
            freeze_episodes(episodes, tmp_path / "log", segments=judged(episodes))
        assert list(tmp_path.iterdir()) == [], calls
    monkeypatch.setattr(store, "sync", whole)
    (tmp_path / ".log.freezing-999999999").mkdir()
    freeze_episodes(episodes, tmp_path / "log")
    assert [p.name for p in tmp_path.iterdir()] == ["log"]


def test_facts_of_judgements_go_with_them(tmp_path):
    episodes = some()
    told = replace(judged(episodes), facts={"tied": 0.5})
    log = freeze_episodes(episodes, tmp_path / "log", segments=told)
    assert log.facts["judgements"] == log.segments.facts == {"tied": 0.5}
    assert "judgements" not in freeze_episodes(log.episodes, tmp_path / "bare").facts
