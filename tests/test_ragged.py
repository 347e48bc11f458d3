from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.data.ragged import Ragged

lists = st.lists(st.lists(st.integers(-5, 5), max_size=4), max_size=8)


@given(lists, st.data())
def test_it_is_a_list_of_lists(said: list[list[int]], data: st.DataObject) -> None:
    ragged = Ragged.of(said)
    assert [x.tolist() for x in ragged] == said
    assert ragged.lengths.tolist() == [len(x) for x in said]
    assert ragged.owner.tolist() == [i for i, x in enumerate(said) for _ in x]
    indices = data.draw(st.lists(st.integers(0, max(len(said) - 1, 0)), max_size=6)) if said else []
    assert [x.tolist() for x in ragged.take(indices)] == [said[i] for i in indices]
    assert ragged == Ragged.of(said)
    assert ragged != Ragged.of([*said, [1]])


def test_items_are_views_and_bounds_are_checked() -> None:
    ragged = Ragged.of([[1, 2], [], [3]], dtype=np.int64)
    ragged[0][1] = 9
    assert ragged.flat.tolist() == [1, 9, 3]
    assert ragged[-1].tolist() == [3]
    assert ragged.flat.dtype == np.int64
    for i in (3, -4):
        with pytest.raises(IndexError):
            ragged[i]


@pytest.mark.parametrize("offsets", [[], [1, 2], [0, 1], [0, 3, 2]])
def test_offsets_that_do_not_cover_flat(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets must rise"):
        Ragged(np.zeros(2, np.int32), np.array(offsets))
