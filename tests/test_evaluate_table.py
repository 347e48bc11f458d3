"""The table of an evaluation: what stands in it, and that damage to its folder is named."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from holdfast.data.freeze import freeze_records
from holdfast.data.records import Judgement
from holdfast.errors import DataError, IntegrityError
from holdfast.evaluation.table import (
    choose_examples,
    evaluation_table,
    read_evaluation,
    verify_evaluation,
    write_evaluation,
)


@pytest.fixture
def scored(tmp_path: Path):
    """Twenty pairs and one ranking of three, frozen, and scored by response length."""
    said = [
        Judgement(
            "pair", f"prompt {i}", (f"better {'x' * (i % 5)}", f"worse {'y' * (i % 7)}"),
            annotator=f"ann{i % 2}", category="even" if i % 2 == 0 else "odd", sources=("m1", "m2"),
        )
        for i in range(20)
    ]  # fmt: skip
    said.append(Judgement("ranking", "rank", ("first", "second", "third"), ranks=(1, 2, 3), sources=("s1", "s2", "s3")))
    ds = freeze_records(said, tmp_path / "data")
    row, a, b, weight = [], [], [], []
    for i in range(ds.n_judgements):
        own = ds.responses_of[i].tolist()
        edges = [(x, y) for k, x in enumerate(own) for y in own[k + 1 :]]
        for x, y in edges:
            row.append(i)
            a.append(x)
            b.append(y)
            weight.append(1 / len(edges))
    n = len(row)
    comparisons = SimpleNamespace(
        row=np.array(row), a=np.array(a, np.int32), b=np.array(b, np.int32), prompt=ds.prompt_of[row],
        p=np.ones(n), weight=np.array(weight), from_a=np.array(row), from_b=np.array(row),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    scores = {
        "reward_a": rng.normal(size=n),
        "reward_b": rng.normal(size=n),
        "n_a": np.full(n, 5),
        "n_b": np.full(n, 6),
    }
    half = np.arange(ds.n_judgements)
    parts = {"test": half[::2], "validation": half[1::2]}
    return ds, comparisons, parts, scores


def test_columns_say_what_the_dataset_says(scored):
    ds, comparisons, parts, scores = scored
    table = evaluation_table(ds, comparisons, parts, scores, longer=np.ones(23, np.int8), bow=np.full(23, np.nan))
    assert table.num_rows == 23 and table["bow"].null_count == 23
    contents = dict(zip(ds.response_ids, ds.response_contents(), strict=True))
    prompts = dict(zip(ds.prompt_ids, ds.prompt_contents(), strict=True))
    ranked = []
    for i, line in enumerate(table.to_pylist()):
        at = int(comparisons.row[i])
        assert line["judgement"] == ds.row_id(at)
        assert line["part"] == ("test" if at % 2 == 0 else "validation")
        assert line["reward_a"] == scores["reward_a"][i] and line["n_b"] == 6
        if line["kind"] == "ranking":
            ranked.append(
                (line["edge"], contents[line["chosen"]], contents[line["rejected"]], line["source_a"], line["source_b"])
            )
        else:
            number = int(prompts[line["prompt"]].split()[1])
            assert contents[line["chosen"]].startswith("better") and contents[line["rejected"]].startswith("worse")
            assert (line["source_a"], line["source_b"]) == ("m1", "m2")
            assert line["annotator"] == f"ann{number % 2}" and line["category"] == ("odd" if number % 2 else "even")
            assert line["edge"] == 0
    assert sorted(ranked) == [
        (0, "first", "second", "s1", "s2"),
        (1, "first", "third", "s1", "s3"),
        (2, "second", "third", "s2", "s3"),
    ]


def test_wrong_scores_and_parts_are_refused(scored):
    ds, comparisons, parts, scores = scored
    with pytest.raises(DataError, match=r"unknown \['rewards_a'\]"):
        evaluation_table(ds, comparisons, parts, scores | {"rewards_a": scores["reward_a"]})
    with pytest.raises(DataError, match=r"missing \['logp_b', 'ref_logp_a', 'ref_logp_b'\]"):
        evaluation_table(ds, comparisons, parts, scores | {"logp_a": scores["reward_a"]})
    with pytest.raises(DataError, match="reward_a has 3 values for 23 comparisons"):
        evaluation_table(ds, comparisons, parts, scores | {"reward_a": np.zeros(3)})
    with pytest.raises(DataError, match=r"is in none of the parts \['test'\]"):
        evaluation_table(ds, comparisons, {"test": parts["test"]}, scores)


def written(scored, folder):
    ds, comparisons, parts, scores = scored
    table = evaluation_table(ds, comparisons, parts, scores, longer=np.ones(23, np.int8))
    facts = {"dataset_root": ds.root, "split_digest": "0" * 64, "ledger_head": "1" * 64, "weights_digest": "2" * 64}
    side = {"text": "t", "reward": 0.5, "tokens": [{"piece": "t", "value": 0.5}]}
    example = {
        "judgement": "3" * 64,
        "part": "test",
        "prompt_text": "p",
        "category": None,
        "p": 1.0,
        "chosen": side,
        "rejected": side,
    }
    return write_evaluation(folder, table, facts, examples=[example], bootstrap=50), table


def test_write_read_verify(scored, tmp_path: Path):
    folder = tmp_path / "eval"
    metrics, table = written(scored, folder)
    read = read_evaluation(folder)
    assert read.metrics == metrics and read.table().equals(table) and read.examples[0]["prompt_text"] == "p"
    assert read.facts["dataset_root"] == scored[0].root
    assert verify_evaluation(folder) == []
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    written(scored, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before  # the same bytes again, nothing left over


def test_every_flipped_byte_is_named(scored, tmp_path: Path):
    folder = tmp_path / "eval"
    written(scored, folder)
    rng = np.random.default_rng(0)
    for name in ("rows.parquet", "examples.json", "metrics.json"):
        good = (folder / name).read_bytes()
        for at in rng.integers(0, len(good), 20):
            bad = bytearray(good)
            bad[at] ^= 1 << int(rng.integers(0, 8))
            (folder / name).write_bytes(bad)
            problems = verify_evaluation(folder)
            assert problems and any(name in f"{p.where} {p.found}" for p in problems), (name, at)
        (folder / name).write_bytes(good)
    assert verify_evaluation(folder) == []


def test_a_figure_that_the_rows_do_not_give_is_named(scored, tmp_path: Path):
    """Someone improves a figure and mends the digest: recomputing from the rows still tells."""
    from holdfast.evaluation.table import _digest, _pretty

    folder = tmp_path / "eval"
    metrics, _ = written(scored, folder)
    metrics["figures"]["parts"]["test"]["all"]["figures"]["rewards/accuracies"]["value"] += 0.01
    metrics["digest"] = _digest(metrics)
    (folder / "metrics.json").write_bytes(_pretty(metrics))
    problems = verify_evaluation(folder)
    assert len(problems) == 1 and problems[0].where.endswith(
        "parts > test > all > figures > rewards/accuracies > value"
    )


def test_an_incomplete_or_foreign_folder_is_refused(tmp_path: Path, scored):
    with pytest.raises(IntegrityError, match=r"metrics\.json is missing"):
        read_evaluation(tmp_path)
    (tmp_path / "examples.json").write_text("[]")
    (tmp_path / "metrics.json").write_text('{"format": "other/1"}')
    with pytest.raises(IntegrityError, match="format 'other/1'"):
        read_evaluation(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    assert "not JSON" in verify_evaluation(tmp_path)[0].found
    folder = tmp_path / "eval"
    written(scored, folder)
    (folder / "rows.parquet").unlink()
    assert {p.what for p in verify_evaluation(folder)} == {
        "the file's bytes have changed",
        "the figures cannot be recomputed",
    }


def test_examples_show_wrong_right_and_close(scored):
    ds, comparisons, parts, scores = scored
    table = evaluation_table(ds, comparisons, parts, scores)
    margin = scores["reward_a"] - scores["reward_b"]
    chosen = choose_examples(table, 6)
    assert len(chosen) == len(set(chosen)) == 6
    assert chosen[0] == int(np.argmin(margin)) and int(np.argmax(margin)) in chosen
    assert sum(margin[i] < 0 for i in chosen) >= 3 and chosen == choose_examples(table, 6)
    prompts = [table["prompt"][i].as_py() for i in chosen]
    assert len(set(prompts)) == 6
    assert choose_examples(table, 0) == []


def test_rows_are_readable_by_anyone(scored, tmp_path: Path):
    written(scored, tmp_path / "eval")
    assert pq.read_schema(tmp_path / "eval" / "rows.parquet").names[:5] == [
        "judgement",
        "edge",
        "prompt",
        "chosen",
        "rejected",
    ]
