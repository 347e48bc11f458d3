"""Which judgement feeds which loss: each kind by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from holdfast.data.dataset import Dataset
from holdfast.data.freeze import freeze_records
from holdfast.data.records import Judgement
from holdfast.data.views import READ_WITH, comparisons, labels, preferred, rankings
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
    for view in (comparisons(ds, []), preferred(ds, []), rankings(ds, []), labels(ds, [])):
        assert len(view) == 0 and view.left_out == [] and view.row.dtype == np.int64
    one = comparisons(ds, rows(ds)[[9]])
    assert ds.response_contents([one.a[0], one.b[0]]) == ["a", "c"]
    for bad in (-1, 10):
        with pytest.raises(DataError, match=f"rows 0 to 9; row {bad} was asked for"):
            comparisons(ds, [bad])


def test_rankings(ds: Dataset) -> None:
    """A pair is a ranking of two; ties, probabilities and labels rank nothing."""
    order = rows(ds)
    view, text = rankings(ds, order), ds.response_contents()
    number = {row: n for n, row in enumerate(order.tolist())}
    found = {
        number[int(r)]: ([str(text[x]) for x in mine], ranks.tolist())
        for r, mine, ranks in zip(view.row, view.responses, view.ranks, strict=True)
    }
    assert found.keys() == {0, 4, 5, 9}
    assert found[0] == (["a", "b"], [0, 1]) and found[9] == (["a", "c"], [0, 1])
    assert found[4][0][0] == "x" and found[4][0][3] == "w" and found[4][1] == [0, 1, 1, 2]
    assert set(found[5][0][:2]) == {"w", "x"} and found[5][1] == [0, 0, 1]
    assert (view.prompt == ds.prompt_of[view.row]).all() and set(view.reads) == set(view.row)
    assert {number[r]: why for r, why in view.left_out} == {
        1: "a tie ranks neither above the other",
        2: "a probability is no ranking",
        3: "a probability is no ranking",
        6: "the only score of its prompt by this annotator",
        7: "a label alone makes no ranking",
        8: "a label alone makes no ranking",
    }


def test_labels(ds: Dataset) -> None:
    """Labels as they are; a pair's winner is good and its loser bad, each half a judgement."""
    order = rows(ds)
    view, text = labels(ds, order), ds.response_contents()
    number = {row: n for n, row in enumerate(order.tolist())}
    found = [
        (number[int(r)], str(text[x]), bool(g), float(w))
        for r, x, g, w in zip(view.row, view.response, view.good, view.weight, strict=True)
    ]
    assert found == [
        (0, "a", True, 0.5),
        (0, "b", False, 0.5),
        (7, "y", True, 1.0),
        (8, "x", False, 1.0),
        (9, "a", True, 0.5),
        (9, "c", False, 0.5),
    ]
    assert {number[r]: why for r, why in view.left_out} == {
        1: "a tie calls neither good",
        2: "a probability calls neither good",
        3: "a probability calls neither good",
        4: "a ranking calls none good",
        5: "a ranking calls none good",
        6: "a score is no label",
    }


SCORED = [  # (prompt, response, score, annotator, rubric)
    ("p", "a", 3.0, "m", None),
    ("p", "b", 5.0, "m", None),
    ("p", "c", 4.5, "m", None),
    ("p", "d", 1.0, "m", None),
    ("p", "a", 9.0, "n", None),  # another annotator's scale
    ("p", "b", 1.0, "m", "brevity"),  # another rubric's
    ("p", "a", 2.0, "m", "brevity"),
    ("q", "a", 2.0, None, None),
    ("q", "b", 2.0, None, None),
    ("r", "a", 1.0, None, None),
    ("r", "a", 4.0, None, None),  # scored twice: 2.5
    ("r", "b", 2.0, None, None),
]


@pytest.fixture
def scored(tmp_path: Path) -> Dataset:
    said = [Judgement("score", p, (r,), value=v, annotator=a, rubric=b) for p, r, v, a, b in SCORED]
    return freeze_records([(j, "in", n) for n, j in enumerate(said)], tmp_path / "scored")


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.4, 5.0])
def test_scores_are_compared_within_a_prompt_an_annotator_and_a_rubric(scored: Dataset, margin: float) -> None:
    order = rows(scored)
    view, text = comparisons(scored, order, margin), scored.response_contents()
    number = {row: n for n, row in enumerate(order.tolist())}
    found: dict[int, set[tuple[str, str]]] = {}
    for r, a, b, p, w, at_a, at_b in zip(
        view.row, view.a, view.b, view.p, view.weight, view.from_a, view.from_b, strict=True
    ):
        found.setdefault(number[int(r)], set()).add((str(text[a]), str(text[b])))
        assert p == 1 and w == pytest.approx(1 / (view.row == r).sum())
        assert scored.responses_of[int(at_a)][0] == a and scored.responses_of[int(at_b)][0] == b
    pairs = [("b", "c", 0.5), ("b", "a", 2), ("b", "d", 4), ("c", "a", 1.5), ("c", "d", 3.5), ("a", "d", 2)]
    expected = {
        1: {(x, y) for x, y, apart in pairs if apart > margin},
        6: {("a", "b")} if margin < 1 else set(),
        min((9, 10), key=lambda n: order[n]): {("a", "b")} if margin < 0.5 else set(),  # the first in the dataset
    }
    assert found == {row: edges for row, edges in expected.items() if edges}
    why = {number[r]: reason for r, reason in view.left_out}
    assert len(why) == len(SCORED) - len(found)  # every row is used or listed
    assert why[4] == "the only score of its prompt by this annotator"
    assert why[7] == why[8] == f"the scores of its prompt differ by no more than {margin:g}"
    assert why[2] == (READ_WITH if found else why[7])
    assert set(view.reads.tolist()) == {int(r) for r in (*view.from_a, *view.from_b)}
    assert np.isnan(view.margin).all()


def test_a_ranking_by_score_keeps_apart_what_differs_by_more_than_the_margin(scored: Dataset) -> None:
    order = rows(scored)
    text = scored.response_contents()
    number = {row: n for n, row in enumerate(order.tolist())}
    for margin, expected in [(0.0, [0, 1, 2, 3]), (0.5, [0, 0, 1, 2]), (1.4, [0, 0, 1, 2]), (1.6, [0, 0, 0, 1])]:
        view = rankings(scored, order, margin)
        found = {number[int(r)]: (m, ranks) for r, m, ranks in zip(view.row, view.responses, view.ranks, strict=True)}
        mine, ranks = found[1]
        assert [str(text[x]) for x in mine] == ["b", "c", "a", "d"] and ranks.tolist() == expected
        assert [1 in found, 6 in found, 9 in found or 10 in found] == [True, margin < 1, margin == 0]
        assert len(view.left_out) == len(SCORED) - len(found)


def test_only_keeps_what_is_asked_for_and_weighs_it_anew(ds: Dataset) -> None:
    view = comparisons(ds, rows(ds))
    kept = view.only(~view.tie, "a tie")
    assert kept.tie.sum() == 0 and len(kept) == len(view) - 3
    sums = np.bincount(kept.row, kept.weight)
    np.testing.assert_allclose(sums[np.unique(kept.row)], 1.0)
    assert [why for _, why in kept.left_out].count("a tie") == 1  # the tie itself; the rankings keep other edges
    assert view.only(np.ones(len(view), dtype=bool), "nothing") is view
