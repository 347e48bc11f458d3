"""The simulated annotator: its probabilities are the formula's, it is blind where it should be, and what teaches nothing is refused."""

from dataclasses import replace
from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.control.episodes import Episodes, EpisodesError
from holdfast.control.label import acrobot_height, label, mountaincar_energy


def walk(lengths=(6, 9, 4), rewards=None, seed=0) -> Episodes:
    rng, steps, n = np.random.default_rng(seed), sum(lengths), len(lengths)
    return Episodes(
        observations=rng.normal(size=(steps, 2)).astype(np.float32),
        actions=rng.integers(3, size=steps),
        rewards=rng.normal(size=steps) if rewards is None else np.asarray(rewards, float),
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        last=np.zeros((n, 2), np.float32),
        terminated=np.ones(n, bool),
        truncated=np.zeros(n, bool),
        n_actions=3,
    )


def returns(episodes, s, discount=1.0):
    """Of each segment, by plain loops."""
    found = np.zeros(s.episode.shape)
    for j, k in np.ndindex(*s.episode.shape):
        first = episodes.offsets[s.episode[j, k]] + s.start[j, k]
        found[j, k] = sum(discount**t * episodes.rewards[first + t] for t in range(s.length[j, k]))
    return found


@pytest.mark.parametrize(("ties", "discount"), [(1.0, 1.0), (3.0, 0.9)])
def test_frequencies_are_the_formulas(ties, discount):
    """Two segments there are in all, so every query is that pair; 4000 answers against Rao and Kupper by hand."""
    episodes = walk((3, 3), [1, 0, 0, 0, 0, 2])
    s = label(episodes, queries=4000, length=3, temperature=0.5, ties=ties, discount=discount)
    gap = (1 - 2 * discount**2) / 0.5  # of episode 0 over episode 1
    z = np.where(s.episode[:, 0] == 0, gap, -gap)
    for outcome, chance in (
        (1.0, 1 / (1 + ties * np.exp(-z))),
        (0.0, 1 / (1 + ties * np.exp(z))),
        (0.5, (ties**2 - 1) / ((1 + ties * np.exp(-z)) * (1 + ties * np.exp(z)))),
    ):
        share, wanted = (s.p == outcome).mean(), chance.mean()
        assert abs(share - wanted) <= 4 * (wanted * (1 - wanted) / 4000) ** 0.5, outcome
    assert {(0, 1), (1, 0)} == set(map(tuple, s.episode.tolist()))
    agrees = 1 / (1 + ties * exp(-abs(gap)))
    agrees /= agrees + 1 / (1 + ties * exp(abs(gap)))
    assert s.facts["agrees"] == pytest.approx(agrees, abs=0.03)


def test_without_noise_the_better_wins_and_equals_tie():
    episodes = walk((4, 4, 4), [0.1, 0.2, 0.3, 0, 0.3, 0.2, 0.1, 0, 0, 0, 0, 0.5])
    s = label(episodes, queries=300, length=4, temperature=0)
    gap = np.round(np.subtract(*returns(episodes, s).T), 12)  # .1 + .2 + .3 and .3 + .2 + .1 differ in their last bit
    assert (s.p == (np.sign(gap) + 1) / 2).all() and (s.p == 0.5).any()
    assert s.facts["agrees"] == 1.0 and s.facts["equal"] == s.facts["tied"] == (gap == 0).mean()


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    length=st.integers(1, 6),
    seed=st.integers(0, 50),
    draw=st.sampled_from(["random", "apart"]),
)
@settings(max_examples=40, deadline=None)
def test_segments_lie_in_their_episodes_and_no_pair_is_twice_the_same(lengths, length, seed, draw):
    episodes = walk(tuple(lengths), seed=seed)
    if sum(max(n - length + 1, 0) for n in lengths) < 2:
        with pytest.raises(EpisodesError, match="fewer than two|constant"):
            label(episodes, queries=20, length=length, short="drop")
        return
    s = label(episodes, queries=20, length=length, short="drop", seed=seed, draw=draw)
    s.check(episodes.offsets)
    assert (s.length == length).all()
    places = s.episode * 100 + s.start
    assert (places[:, 0] != places[:, 1]).all()
    again = label(episodes, queries=7, length=length, short="drop", seed=seed, draw=draw)
    assert again.ids == s.ids[:7]


def test_every_place_is_drawn_alike():
    episodes = walk((6, 9, 4))
    s = label(episodes, queries=6000, length=4)
    places = [(e, t) for e, n in enumerate((6, 9, 4)) for t in range(n - 3)]
    assert len(places) == 10
    for side in (0, 1):
        found = [((s.episode[:, side] == e) & (s.start[:, side] == t)).sum() for e, t in places]
        assert max(abs(np.array(found) - 600)) < 4 * 600**0.5


def test_pairs_drawn_apart_are_further_apart():
    episodes = walk((200, 200))
    means = {}
    for draw in ("random", "apart"):
        s = label(episodes, queries=200, length=5, draw=draw)
        at = (episodes.offsets[s.episode] + s.start)[..., None] + np.arange(5)
        seen = episodes.observations[at].mean(axis=2)
        means[draw] = ((seen[:, 0] - seen[:, 1]) ** 2).sum(axis=1).mean()
    assert means["apart"] > 1.5 * means["random"]


def test_short_episodes_and_mixed_lengths_are_as_was_asked():
    episodes = walk((6, 9, 4))
    with pytest.raises(EpisodesError, match=r"1 of 3 episodes have fewer than 5 steps \(the shortest 4\)"):
        label(episodes, queries=5, length=5)
    s = label(episodes, queries=200, length=5, short="drop")
    assert set(s.episode.ravel().tolist()) == {0, 1} and s.facts["short"] == {"episodes": 1, "handled": "drop"}
    with pytest.raises(EpisodesError, match="mixed = True"):
        label(episodes, queries=5, length=5, short="whole")
    s = label(episodes, queries=200, length=5, short="whole", mixed=True)
    assert set(s.length[s.episode == 2].tolist()) == {4} and set(s.length[s.episode != 2].tolist()) == {5}
    with pytest.raises(EpisodesError, match="mixed = True"):
        label(episodes, queries=5, length=(2, 4))
    s = label(episodes, queries=300, length=(2, 4), mixed=True)
    s.check(episodes.offsets)
    assert set(map(tuple, s.length.tolist())) == {(a, b) for a in (2, 3, 4) for b in (2, 3, 4)}


def test_what_teaches_nothing_is_refused():
    with pytest.raises(EpisodesError, match="constant reward teaches nothing.*another task"):
        label(walk(rewards=np.ones(19)), queries=5, length=3)
    rare = np.zeros(19)
    rare[5] = 1  # the last step of the first episode
    with pytest.raises(EpisodesError, match="each of the 1 pairs"):
        label(walk(rewards=rare), queries=1, length=1, seed=1)
    with pytest.raises(EpisodesError, match="no rewards"):
        label(replace(walk(), rewards=None), queries=5, length=3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"queries": 0}, "queries = 0"),
        ({"length": 0}, "length = 0"),
        ({"temperature": -1}, "temperature = -1"),
        ({"ties": 0.5}, "ties = 0.5"),
        ({"ties": 2, "temperature": 0}, "temperature 0"),
        ({"discount": 0}, "discount = 0"),
        ({"draw": "best"}, "'best'"),
        ({"short": "pad"}, "'pad'"),
        ({"reward": "fun"}, "'fun'"),
        ({"reward": np.ones(3)}, "19 numbers"),
        ({"length": 40, "short": "drop"}, "fewer than two segments"),
    ],
)
def test_what_cannot_be_labelled_is_said(given, said):
    with pytest.raises(EpisodesError, match=said):
        label(walk(), **{"queries": 5, "length": 3, **given})


def test_known_rewards_by_hand():
    hanging, upright = [1, 0, 1, 0, 0, 0], [-1, 0, 1, 0, 0, 0]
    folded = [1, 0, -1, 0, 0, 0]  # the second link back up to the pivot
    assert acrobot_height(np.array([hanging, upright, folded]), np.zeros(3)).tolist() == [-2, 2, 0]
    still, fast = [np.pi / 6, 0.0], [0.0, 0.05]
    assert mountaincar_energy(np.array([still, fast]), np.zeros(2)) == pytest.approx([1, 1.5])
    s = label(walk(), queries=10, length=3, reward=lambda o, a: o[:, 0], temperature=0)
    assert s.facts["reward"] == "<lambda>" and set(s.annotator) == {"simulated"}


def test_cartpole_is_refused_for_segments():
    pytest.importorskip("gymnasium", reason="the control extra is not installed")
    from holdfast.control.collect import collect

    with pytest.raises(EpisodesError, match="the reward is 1 at every step"):
        label(collect("CartPole-v1", "random", episodes=3), queries=5, length=3)
