"""Which judgement feeds which loss: each kind by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from holdfast.data.dataset import Dataset
from holdfast.data.freeze import freeze_records
from holdfast.data.records import Judgement
from holdfast.data.views import comparisons, preferred
from holdfast.errors import DataError

SAID = [
    Judgement("pair", "p", ("a", "b"), margin=0.5),
    Judgement("tie", "p", ("b", "c")),
    Judgement("soft", "p", ("c", "a"), value=0.2),
    Judgement("soft", "p", ("c", "d"), value=0.5),
    Judgement("ranking", "q", ("w", "x", "y", "z"), ranks=(2, 0, 1, 1)),
    Judgement("ranking", "q", ("w", "x", "y"), ranks=(0, 0, 1), margin=3.0),
    Judgement("score", "q", ("w",), value=4.0),
    Judgement("label", "q", ("y",), value=1),
    Judgement("label", "q", ("x",), value=0),
    Judgement("pair", "p", ("a", "c")),
]


@pytest.fixture
def ds(tmp_path: Path) -> Dataset:
    return freeze_records([(j, "in", n) for n, j in enumerate(SAID)], tmp_path / "ds")


def rows(ds: Dataset) -> np.ndarray:
    """Row numbers in the order in which SAID says them."""
    return np.argsort([ds.origins(i)[0][1] for i in range(ds.n_judgements)])


def test_comparisons(ds: Dataset) -> None:
    order = rows(ds)
    view = comparisons(ds, order)
    text = ds.response_contents()
    number = {row: n for n, row in enumerate(order.tolist())}
    found: dict[int, list[tuple[str, str, float, float, float]]] = {}
    for r, a, b, p, m, w in zip(view.row, view.a, view.b, view.p, view.margin, view.weight, strict=True):
        x, y = str(text[a]), str(text[b])
        edge = (x, y, float(p)) if p != 0.5 or x < y else (y, x, 0.5)
        found.setdefault(number[int(r)], []).append((*edge, float(m), float(w)))
    nan = float("nan")
    expected = {
        0: [("a", "b", 1.0, 0.5, 1.0)],
        1: [("b", "c", 0.5, nan, 1.0)],
        2: [("a", "c", 0.8, nan, 1.0)],
        3: [("c", "d", 0.5, nan, 1.0)],
        4: [
            (*e, nan, 1 / 6)
            for e in [
                ("x", "w", 1.0),
                ("x", "y", 1.0),
                ("x", "z", 1.0),
                ("y", "w", 1.0),
                ("y", "z", 0.5),
                ("z", "w", 1.0),
            ]
        ],
        5: [(*e, 3.0, 1 / 3) for e in [("w", "x", 0.5), ("w", "y", 1.0), ("x", "y", 1.0)]],
        9: [("a", "c", 1.0, nan, 1.0)],
    }
    assert found.keys() == expected.keys()
    for n in expected:
        assert [e[:2] for e in sorted(found[n])] == [e[:2] for e in sorted(expected[n])]
        np.testing.assert_allclose([e[2:] for e in sorted(found[n])], [e[2:] for e in sorted(expected[n])])
    assert [number[r] for r, _ in view.left_out] == [6, 7, 8]
    assert [why for _, why in view.left_out] == ["the only score of its prompt by this annotator"] + [
        "a label alone makes no comparison"
    ] * 2
    assert (view.prompt == ds.prompt_of[view.row]).all() and len(view) == 14
    assert (np.diff([number[r] for r in view.row.tolist()]) >= 0).all()  # in the order asked for
    np.testing.assert_allclose(
        np.bincount(view.row, view.weight), [float(number[r] not in (6, 7, 8)) for r in range(10)]
    )


def test_preferred(ds: Dataset) -> None:
    order = rows(ds)
    view = preferred(ds, order)
    number = {row: n for n, row in enumerate(order.tolist())}
    kept = [(number[r], x) for r, x in zip(view.row.tolist(), ds.response_contents(view.response), strict=True)]
    assert kept == [(0, "a"), (4, "x"), (7, "y")]
    assert {number[r]: why for r, why in view.left_out} == {
        1: "a tie prefers neither",
        2: "same response",
        3: "a preference of 1/2 prefers neither",
        5: "the best rank is shared",
        6: "a score alone prefers none",
        8: "labelled bad",
        9: "same response",
    }
    assert (view.prompt == ds.response_prompt[view.response]).all()
    # the first of its rows, in the order asked for, stands for a response
    assert [number[r] for r in preferred(ds, order[::-1]).row.tolist()] == [9, 7, 4]


def test_some_rows_none_or_rows_that_are_not_there(ds: Dataset) -> None:
    for view in (comparisons(ds, []), preferred(ds, [])):
        assert len(view) == 0 and view.left_out == [] and view.row.dtype == np.int64
    one = comparisons(ds, rows(ds)[[9]])
    assert ds.response_contents([one.a[0], one.b[0]]) == ["a", "c"]
    for bad in (-1, 10):
        with pytest.raises(DataError, match=f"rows 0 to 9; row {bad} was asked for"):
            comparisons(ds, [bad])
