"""Splits: no prompt on two sides, shares as asked, the same for ever, and damage named."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from holdfast.cli import app
from holdfast.data import freeze as freezing
from holdfast.data.dataset import Dataset
from holdfast.data.freeze import freeze_records
from holdfast.data.records import Judgement, Segment
from holdfast.data.splits import _deal, check_disjoint, groups, load_split, make_split, normalised, verify_split
from holdfast.errors import DataError, IntegrityError, RecipeError
from holdfast.recipe import SplitTable


def make(folder: Path, prompts: list[Any], categories: list[str | None] | None = None) -> Dataset:
    named = categories or [None] * len(prompts)
    records = [
        Judgement("pair", p, ("yes", f"no {i}"), category=c)
        for i, (p, c) in enumerate(zip(prompts, named, strict=True))
    ]
    return freeze_records(records, folder)


def prompts_in(ds: Dataset, rows: np.ndarray) -> list[Any]:
    return ds.prompt_contents(ds.prompt_of[rows])


@pytest.fixture(scope="module")
def ds(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """120 prompts in four categories of 60, 40, 15 and 5, two judgements each; some in other case and spacing."""
    categories = ["a"] * 60 + ["b"] * 40 + ["c"] * 15 + ["d"] * 5
    prompts = [f"Question {i} ?" for i in range(120)]
    again = [p.upper() if i % 2 else "  " + p.replace(" ", " \n") for i, p in enumerate(prompts)]
    return make(tmp_path_factory.mktemp("split") / "ds", prompts + again, categories * 2)


def test_shares_within_each_category_and_twins_together(ds: Dataset) -> None:
    split = make_split(ds, SplitTable(validation=0.1, test=0.2))
    sizes = {part: Counter(ds.categories[i] for i in rows) for part, rows in split.parts.items()}
    assert sizes["test"] == {"a": 24, "b": 16, "c": 6, "d": 2}  # twice 12, 8, 3, 1 groups
    # 6, 4, 1.5 and 0.5 of 12: c and d tie on the remainder, and one group is due: c comes first
    assert sizes["validation"] == {"a": 12, "b": 8, "c": 4}
    assert sum(map(len, split.parts.values())) == 240 and split.left_out == []
    assert sorted(np.concatenate(list(split.parts.values())).tolist()) == list(range(240))
    where = {}
    for part, rows in split.parts.items():
        assert (np.diff(rows) > 0).all()
        for prompt in prompts_in(ds, rows):
            assert where.setdefault(" ".join(prompt.lower().split()), part) == part
    assert len(where) == 120


def test_the_seed_decides_and_nothing_else(ds: Dataset, tmp_path: Path) -> None:
    spec = SplitTable(seed=3, test=0.2)
    one, same, other = make_split(ds, spec), make_split(ds, spec), make_split(ds, SplitTable(seed=4, test=0.2))
    assert one.digest == same.digest != other.digest
    assert set(one.parts["test"].tolist()) != set(other.parts["test"].tolist())
    # the order by hand: were it to change, every split that anyone published would
    tiny = make(tmp_path / "tiny", [f"Q{i}" for i in range(10)])
    parts = make_split(tiny, SplitTable(seed=1, test=0.3, validation=0.2)).parts

    def place(prompt: str) -> bytes:
        key = sha256(b"holdfast/prompt-group/1\0" + prompt.lower().encode()).hexdigest()
        return sha256(f"holdfast/split-order/1\0001 {key}".encode()).digest()

    ordered = sorted((f"Q{i}" for i in range(10)), key=place)
    expected = {"test": ordered[:3], "validation": ordered[3:5], "train": ordered[5:], "ood": []}
    assert {k: sorted(prompts_in(tiny, v)) for k, v in parts.items()} == {k: sorted(v) for k, v in expected.items()}


def test_without_strata_only_the_whole_counts(ds: Dataset) -> None:
    split = make_split(ds, SplitTable(validation=0.05, test=0.1, stratify=False))
    assert {k: len(v) for k, v in split.parts.items()} == {"train": 204, "validation": 12, "test": 24, "ood": 0}


def test_held_out_categories_go_wholly_to_ood(tmp_path: Path) -> None:
    prompts = [f"q{i}" for i in range(20)] + ["q3", "Q4 "]
    ds = make(tmp_path / "ds", prompts, ["kept"] * 20 + ["held", "held"])
    split = make_split(ds, SplitTable(holdout=("held",), validation=0.1, test=0.2))
    assert sorted(prompts_in(ds, split.parts["ood"])) == ["Q4 ", "q3", "q3", "q4"]
    assert {k: len(v) for k, v in split.parts.items()} == {"train": 12, "validation": 2, "test": 4, "ood": 4}
    with pytest.raises(RecipeError, match="no judgement has category 'hold'; the dataset's categories: 'held', 'kept'"):
        make_split(ds, SplitTable(holdout=("hold",)))
    with pytest.raises(RecipeError, match="holds out every prompt"):
        make_split(ds, SplitTable(holdout=("held", "kept")))


def test_nothing_left_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="1 prompt groups are too few"):
        make_split(make(tmp_path / "ds", ["only"]), SplitTable(test=0.9, validation=0.0))


@settings(max_examples=200)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.sampled_from([0.0, 0.05, 0.1, 0.25, 1 / 3, 0.5, 0.9]),
)
def test_dealing_is_exact(sizes: list[int], share: float) -> None:
    room = {f"s{i}": n for i, n in enumerate(sizes)}
    dealt = _deal(share, room)
    total = sum(sizes)
    assert abs(sum(dealt.values()) - share * total) <= 0.5 + 1e-9
    for name, n in room.items():
        assert math.floor(share * n - 1e-9) <= dealt[name] <= math.ceil(share * n + 1e-9)
    left = {name: n - dealt[name] for name, n in room.items()}
    rest = _deal(0.1, room, left)
    assert all(0 <= rest[name] <= left[name] for name in room)
    assert sum(rest.values()) == min(sum(left.values()), math.floor(0.1 * total + 0.5 + 1e-9))


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("Why?", "  WHY?\n"),
        ("a\u00a0b\tc", "A b  c"),
        ("Straße", "STRASSE"),
        ("Why?", [{"role": "user", "content": "why?"}]),
        (
            [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}],
            [{"content": "s", "role": "x"}, {"role": "user", "content": " u"}],
        ),
        ("Why?", {"messages": [{"role": "user", "content": "Why?"}], "tools": [{"name": "t"}]}),
    ],
)
def test_what_reads_the_same(one: Any, same: Any) -> None:
    assert normalised(one) == normalised(same)


def test_what_reads_otherwise() -> None:
    distinct = ["a b", "ab", [{"role": "user", "content": [{"type": "text", "text": "a b"}]}], None]
    assert len({normalised(p) for p in distinct}) == 4


def test_saved_and_loaded(ds: Dataset, tmp_path: Path) -> None:
    split = make_split(ds, SplitTable(holdout=("d",), test=0.2))
    split.save(tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["split.json"]
    loaded = load_split(tmp_path / "run", ds)
    assert loaded.digest == split.digest and loaded.spec == split.spec
    assert all((loaded.parts[k] == split.parts[k]).all() for k in split.parts)
    assert verify_split(tmp_path / "run", ds.root) == []
    with pytest.raises(DataError, match=r"has no split\.json"):
        load_split(tmp_path, ds)


def test_a_split_of_other_data_is_refused(ds: Dataset, tmp_path: Path) -> None:
    other = make(tmp_path / "other", ["x", "y", "z"])
    make_split(ds, SplitTable()).save(tmp_path)
    with pytest.raises(IntegrityError, match="of another dataset"):
        load_split(tmp_path, other)
    assert [p.found for p in verify_split(tmp_path, other.root)] == [f"root {ds.root}"]
    assert verify_split(tmp_path) == []


def test_every_flipped_byte_of_a_split_is_named(ds: Dataset, tmp_path: Path) -> None:
    path = make_split(ds, SplitTable()).save(tmp_path)
    raw, draw = path.read_bytes(), random.Random(0)
    for _ in range(60):
        at = draw.randrange(len(raw))
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << draw.randrange(8)]) + raw[at + 1 :])
        assert [p.where for p in verify_split(tmp_path, ds.root)] == ["split.json"]
        with pytest.raises(IntegrityError, match=r"split\.json"):
            load_split(tmp_path, ds)
    path.unlink()
    assert verify_split(tmp_path)[0].what == "the split cannot be read"


def test_a_forged_split_that_tears_a_group_apart(ds: Dataset, tmp_path: Path) -> None:
    """Resealed, so that every digest fits: the prompts themselves give it away."""
    from holdfast.data import splits

    split = make_split(ds, SplitTable())
    torn = split.members[1:]  # one spelling of a prompt falls back to train, its twin stays
    (tmp_path / "split.json").write_bytes(splits._split_bytes(ds.root, split.spec, torn))
    assert verify_split(tmp_path, ds.root) == []
    part = split.members[0][1]
    shared = rf"split '{part}' shares 1 prompt groups with 'train' \(first [0-9a-f]{{8}}\.\.\); re-split by prompt"
    with pytest.raises(IntegrityError, match=shared):
        load_split(tmp_path, ds)
    for members, message in [
        ((("0" * 64, "test"),), "names 0{64}, which is not in"),
        ((("a", "dev"),), "names other parts"),
    ]:
        (tmp_path / "split.json").write_bytes(splits._split_bytes(ds.root, split.spec, members))
        with pytest.raises(IntegrityError, match=message):
            load_split(tmp_path, ds)


def test_the_disjointness_check_counts(ds: Dataset) -> None:
    split = make_split(ds, SplitTable(test=0.2))
    check_disjoint(ds, split)
    found = groups(ds)
    stolen = split.parts["test"][:6]
    split.parts["train"] = np.sort(np.concatenate([split.parts["train"], stolen]))
    shared = {found.keys[g] for g in found.of.take(stolen).flat.tolist()}
    with pytest.raises(
        IntegrityError, match=f"split 'test' shares {len(shared)} prompt groups with 'train' \\(first {min(shared)[:8]}"
    ):
        check_disjoint(ds, split)


def test_segments_split_by_episode(tmp_path: Path) -> None:
    draw = random.Random(2)
    records = []
    for i in range(300):
        a, b = draw.sample(range(40), 2)
        records.append(Judgement("pair", None, (Segment(f"e{a}", i, 5), Segment(f"e{b if i % 3 else a}", i + 9, 5))))
    ds = freeze_records(records, tmp_path / "ds")
    split = make_split(ds, SplitTable(validation=0.1, test=0.2))
    episodes: dict[str, set[str]] = {}
    for part, rows in split.parts.items():
        flat = ds.responses_of.take(rows).flat
        episodes[part] = {s.episode for s in ds.response_contents(flat) if isinstance(s, Segment)}
    assert not episodes["train"] & (episodes["test"] | episodes["validation"])
    assert not episodes["test"] & episodes["validation"]
    assert Counter(part for _, part in split.members) == {"validation": 4, "test": 8}
    assert len(split.left_out) + sum(map(len, split.parts.values())) == 300
    row, reason = split.left_out[0]
    first, second = (s.episode for s in ds.response_contents(ds.responses_of[row]) if isinstance(s, Segment))
    lie_in = [dict(split.members).get(e, "train") for e in (first, second)]
    assert lie_in[0] != lie_in[1] and all(repr(part) in reason for part in lie_in)
    split.save(tmp_path)
    assert load_split(tmp_path, ds).left_out == split.left_out


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["x", "y", None])), min_size=4, max_size=30),
    st.data(),
)
def test_any_dataset_any_spec(said: list[tuple[str, str | None]], data: st.DataObject) -> None:
    import tempfile

    spec = SplitTable(
        seed=data.draw(st.integers(0, 5)),
        validation=data.draw(st.sampled_from([0.0, 0.1, 0.3])),
        test=data.draw(st.sampled_from([0.0, 0.2, 0.4])),
        stratify=data.draw(st.booleans()),
        holdout=("x",) if data.draw(st.booleans()) and any(c == "x" for _, c in said) else (),
    )
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(freezing, "sync", lambda path: None)
        ds = make(
            Path(folder) / "ds",
            [data.draw(st.sampled_from([p, p.upper(), f" {p}"])) for p, _ in said],
            [c for _, c in said],
        )
        try:
            split = make_split(ds, spec)
        except RecipeError:
            return
        where: dict[str, str] = {}
        for part, rows in split.parts.items():
            for row, prompt in zip(rows, prompts_in(ds, rows), strict=True):
                assert where.setdefault(prompt.strip().lower(), part) == part
                assert part == "ood" or ds.categories[row] not in spec.holdout
        assert sorted(np.concatenate(list(split.parts.values())).tolist()) == list(range(ds.n_judgements))
        said_on_disk = json.loads(split.save(folder).read_bytes())
        assert orjson.dumps(said_on_disk["members"]) == orjson.dumps(split.members)
        assert load_split(folder, ds).digest == split.digest


def grouped(folder: Path, rows: list[tuple[str, dict[str, Any]]]) -> Dataset:
    return freeze_records(
        [Judgement("pair", p, ("yes", f"no {i}"), **more) for i, (p, more) in enumerate(rows)], folder
    )


def sides(ds: Dataset, split: Any) -> dict[str, str]:
    return {p: part for part, rows in split.parts.items() for p in prompts_in(ds, rows)}


def test_prompt_is_the_default_said_aloud(ds: Dataset, tmp_path: Path) -> None:
    plain, said = make_split(ds, SplitTable(test=0.2)), make_split(ds, SplitTable(test=0.2, group="prompt"))
    assert plain.digest == said.digest and b"group" not in plain.save(tmp_path).read_bytes()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.sampled_from(["ann", "bob", "cy", None]), st.sampled_from("xy")),
        min_size=6,
        max_size=60,
    ),
    st.integers(0, 3),
    st.booleans(),
)
def test_no_annotator_on_two_sides_and_prompts_whole(said: list[Any], seed: int, stratify: bool) -> None:
    """Each annotator has prompts of their own (and nobody some), but for prompts 0 to 2, which anyone may judge."""
    import tempfile

    rows = [
        (f"Q{n}" if n < 3 else f"Q{n} {who}", {"annotator": who, "category": category}) for n, who, category in said
    ]
    spec = SplitTable(seed=seed, validation=0.2, test=0.3, stratify=stratify, group="annotator")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(freezing, "sync", lambda path: None)
        ds = grouped(Path(folder) / "ds", rows)
        try:
            split = make_split(ds, spec)
        except RecipeError:
            return
        part_of_prompt: dict[str, str] = {}
        part_of_annotator: dict[str, str] = {}
        for part, own in split.parts.items():
            for row, prompt in zip(own.tolist(), prompts_in(ds, own), strict=True):
                assert part_of_prompt.setdefault(prompt, part) == part
                if (who := ds.column("annotator")[row]) is not None:
                    assert part_of_annotator.setdefault(who, part) == part
        split.save(folder)
        assert load_split(folder, ds).digest == split.digest and verify_split(folder, ds.root) == []


def test_a_group_that_cuts_a_prompt_is_joined_through_it(tmp_path: Path) -> None:
    """ann judged A and B, bob B and C, cy D, dee E, eve F: A, B and C are one group of three prompts."""
    said = [("A", "ann"), ("B", "ann"), ("B", "bob"), ("C", "bob"), ("D", "cy"), ("E", "dee"), ("F", "eve")]
    ds = grouped(tmp_path / "ds", [(p, {"annotator": who}) for p, who in said])
    found = groups(ds, "annotator")
    of = dict(
        zip((ds.prompt_contents([ds.prompt_ids.index(m)])[0] for m in found.members), found.member_group, strict=True)
    )
    assert len({of["A"], of["B"], of["C"]}) == 1 and len(set(of.values())) == 4
    alone = {k: sha256(b"holdfast/prompt-group/1\0" + k.lower().encode()).hexdigest() for k in "ABCDEF"}
    assert found.keys[of["A"]] == min(alone[k] for k in "ABC") and found.keys[of["F"]] == alone["F"]
    for seed in range(6):
        spec = SplitTable(seed=seed, test=0.5, validation=0.0, group="annotator")
        where = sides(ds, make_split(ds, spec))
        assert where["A"] == where["B"] == where["C"]
        # Half of six prompts, to within half of the largest group.
        assert abs(sum(part == "test" for part in where.values()) - 3) <= 1.5
    with pytest.raises(
        RecipeError, match=r"validation = 0.05: no group by 'annotator' is small enough \(the smallest of 4 has 1 of 6"
    ):
        make_split(ds, SplitTable(test=0.0, validation=0.05, group="annotator"))


def test_near_duplicates_and_other_columns(tmp_path: Path) -> None:
    base = "Please explain to a child of ten how the tide rises and falls along the coast number"
    rows = [(f"{base} {i}", {"licence": f"l{i % 4}"}) for i in range(4)]
    rows += [
        ("".join(random.Random(i).choices("abcdefgh ", k=60)), {"licence": f"l{i % 4}", "extra": {"of": i}})
        for i in range(40)
    ]
    ds = grouped(tmp_path / "ds", rows)
    for seed in range(5):
        where = sides(ds, make_split(ds, SplitTable(seed=seed, test=0.25, validation=0.1, group="near-duplicates")))
        assert len({where[f"{base} {i}"] for i in range(4)}) == 1
    split = make_split(ds, SplitTable(test=0.25, validation=0.0, stratify=False, group="licence"))
    licences = {part: {ds.column("licence")[r] for r in own} for part, own in split.parts.items()}
    assert len(licences["test"]) == 1 and len(licences["train"]) == 3 and len(split.parts["test"]) == 11
    assert make_split(ds, SplitTable(group="extra.of")).digest != make_split(ds, SplitTable()).digest
    for group, words in [
        (
            "anotator",
            r"group = 'anotator': unknown column 'anotator' \(known: kind, annotator, .*extra.NAME\) \(or prompt, near-duplicates\)",
        ),
        ("source", "group = 'source': no row says anything there"),
        ("extra.nothing", "no row has an extra column 'nothing'"),
        ("kind", r"group = 'kind' joins all 44 prompt groups into one \(one value of it alone touches 44\)"),
    ]:
        with pytest.raises(RecipeError, match=words):
            make_split(ds, SplitTable(group=group))
    segments = freeze_records([Judgement("pair", None, (Segment("e1", 0, 5), Segment("e2", 0, 5)))], tmp_path / "s")
    with pytest.raises(RecipeError, match="group = 'annotator': a dataset of segments is split by episode"):
        make_split(segments, SplitTable(group="annotator"))


def test_the_command_takes_a_group(tmp_path: Path) -> None:
    ds = grouped(tmp_path / "ds", [(f"Q{i}", {"annotator": f"a{i % 10}"}) for i in range(40)])
    words = [
        "split",
        str(ds.path),
        "-o",
        str(tmp_path / "s"),
        "--group",
        "annotator",
        "--test",
        "0.2",
        "--validation",
        "0",
        "--json",
    ]
    said = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).output)
    assert said["parts"] == {"train": 32, "validation": 0, "test": 8, "ood": 0}
    assert load_split(tmp_path / "s", ds).spec.group == "annotator"
