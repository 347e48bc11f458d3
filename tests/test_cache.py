"""Artefacts kept by their key: whole or not there, never trusted unread; tokens read back are the tokens made."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.data.freeze import freeze_records
from holdfast.data.records import Judgement
from holdfast.language import tokens as module
from holdfast.language.cache import keep, kept
from holdfast.language.scratch import train_tokenizer
from holdfast.language.tokens import tokenise, tokens_of
from holdfast.recipe import TextTable


def test_what_is_kept_is_found_and_cannot_be_written(tmp_path):
    arrays = {"a": np.arange(100, dtype=np.int32), "empty": np.zeros(0, np.int64)}
    keep(tmp_path / "entry", arrays, {"what": ["ever", 1]})
    found, said = kept(tmp_path / "entry")
    assert said == {"what": ["ever", 1]}
    assert all(np.array_equal(found[n], arrays[n]) and found[n].dtype == arrays[n].dtype for n in arrays)
    with pytest.raises(ValueError):
        found["a"][0] = 1
    assert [p.name for p in tmp_path.iterdir()] == ["entry"]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "json", "none"])
def test_a_damaged_entry_is_none_and_is_made_again(tmp_path, damage):
    folder = tmp_path / "entry"
    keep(folder, {"a": np.arange(100)}, {})
    file = folder / ("entry.json" if damage == "json" else "a.npy")
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
    elif damage in ("cut", "json"):
        del content[-9:]
    if damage == "missing":
        file.unlink()
    elif damage != "none":
        file.write_bytes(content)
    assert (kept(folder) is None) == (damage != "none")
    keep(folder, {"a": np.arange(50)}, {})
    assert len(kept(folder)[0]["a"]) == 50


def test_a_place_that_cannot_be_written_keeps_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    keep(tmp_path / "file" / "entry", {"a": np.arange(3)}, {})
    assert kept(tmp_path / "file" / "entry") is None


@pytest.fixture
def frozen(tmp_path):
    words = ["kelp", "rock", "sea", "wave", "tide"]
    said = [Judgement("pair", f"{words[i % 5]} {i}?", (" ".join(words[: i % 4 + 1]) * 3, f"no {i}")) for i in range(20)]
    return freeze_records(said, tmp_path / "data")


def test_tokens_read_back_are_those_made(frozen, monkeypatch):
    tokenizer = train_tokenizer(["kelp rock sea wave tide no"] * 5, 300)
    text = TextTable(max_length=10, too_long="truncate-response-right")
    rows = np.arange(18)
    made = tokenise(frozen, rows, tokenizer, text)
    assert made.cuts  # else nothing of them is tested
    first = tokens_of(frozen, rows, tokenizer, text)
    with monkeypatch.context() as patch:
        patch.setattr(module, "tokenise", None)  # from here on it is read
        again = tokens_of(frozen, rows, tokenizer, text)
        with pytest.raises(TypeError):
            tokens_of(frozen, rows[:17], tokenizer, text)  # another key
        with pytest.raises(TypeError):
            tokens_of(frozen, rows, tokenizer, TextTable(max_length=11, too_long="truncate-response-right"))
    for other in (first, again):
        assert other.prompts == made.prompts and other.responses == made.responses
        assert np.array_equal(other.rows, made.rows)
        assert (other.left_out, other.cuts, other.key, other.facts) == (
            made.left_out,
            made.cuts,
            made.key,
            made.facts,
        )
    assert isinstance(again.responses.flat, np.memmap)
