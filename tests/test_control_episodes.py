"""Episodes: columns that do not fit are refused by name, and an episode's digest is its content's."""

from dataclasses import replace

import numpy as np
import pytest

from holdfast.control.episodes import Episodes, EpisodesError


def two() -> Episodes:
    return Episodes(
        observations=np.arange(10, dtype=np.float32).reshape(5, 2),
        actions=np.array([0, 1, 2, 0, 1]),
        rewards=np.ones(5),
        offsets=np.array([0, 2, 5]),
        last=np.full((2, 2), 9, np.float32),
        terminated=np.array([True, False]),
        truncated=np.array([False, True]),
        propensities=np.full(5, 0.5),
        n_actions=3,
    )


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"rewards": np.ones(4)}, "rewards"),
        ({"rewards": np.ones(5, np.float32)}, "rewards"),
        ({"observations": np.full((5, 2), np.nan, np.float32)}, "observations"),
        ({"last": np.zeros((2, 3), np.float32)}, "last"),
        ({"offsets": np.array([0, 0, 5])}, "offsets"),
        ({"offsets": np.array([0, 2, 4])}, "offsets"),
        ({"truncated": np.array([True, True])}, "episode 0"),
        ({"n_actions": 2}, "0..1"),
        ({"n_actions": None}, "actions"),
        ({"propensities": np.array([0.5, 0.5, 0.0, 0.5, 0.5])}, "propensities"),
    ],
)
def test_columns_that_do_not_fit_are_refused(fault, named):
    with pytest.raises(EpisodesError, match=named):
        replace(two(), **fault)


def test_digest_follows_content_and_not_place_or_reward():
    whole = two()
    second = replace(
        whole,
        **{k: getattr(whole, k)[2:] for k in ("observations", "actions", "rewards", "propensities")},
        **{k: getattr(whole, k)[1:] for k in ("last", "terminated", "truncated")},
        offsets=np.array([0, 3]),
    )
    assert len(whole) == 2 and second.digest(0) == whole.digest(1) != whole.digest(0)
    assert replace(whole, rewards=np.zeros(5)).digest(1) == whole.digest(1)
    for name, at in (("observations", (3, 0)), ("actions", 4), ("last", (1, 1))):
        changed = getattr(whole, name).copy()
        changed[at] = 1 - (changed[at] > 0)
        assert replace(whole, **{name: changed}).digest(1) != whole.digest(1), name
    assert replace(whole, truncated=np.array([False, False])).digest(1) != whole.digest(1)
