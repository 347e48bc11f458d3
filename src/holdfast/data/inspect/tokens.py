"""Lengths as the model's own tokenizer counts them, and the pairs whose difference a cut takes away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from holdfast.data.inspect.finding import Finding, Rows, by_cells, detector, graded, share
from holdfast.data.inspect.stats import quantiles
from holdfast.errors import DataError

if TYPE_CHECKING:
    from holdfast.data.inspect.material import Material

LENGTHS = (512, 1024, 2048, 4096, 8192)


class TokenCounter:
    """A `tokenizer.json`, or the folder of a model that has one. Called with texts, it gives (n,) int64 token counts,
    without special tokens. DataError if there is none at `path`.
    """

    def __init__(self, path: str | Path):
        from tokenizers import Tokenizer

        file = Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise DataError(f"{path} is no tokenizer: name a tokenizer.json, or a model's folder that holds one")
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as problem:  # whatever a damaged file makes of the parser
            raise DataError(f"{file} is no tokenizer: {problem}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        # A lone surrogate has no bytes to count.
        clean = [t.encode("utf-8", "replace").decode() for t in texts]
        return [e.ids for e in self._tokenizer.encode_batch(clean, add_special_tokens=False)]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([len(i) for i in self.ids(texts)], np.int64)


@detector("tokens", "text", "comparisons", "tokenizer")
def tokens(material: Material) -> Iterator[Finding]:
    count = material.tokenizer
    assert count is not None
    size = material.responses.derive(count)
    room = material.max_length - material.prompts.derive(count)[material.prompt]
    longest = np.maximum(size[material.a], size[material.b])
    whole = material.max_length - room + longest  # prompt and the longer response
    long = longest > room
    # Only of a pair that is cut on both sides can nothing be left that tells the two apart.
    both = np.flatnonzero(np.minimum(size[material.a], size[material.b]) > room)
    same = np.zeros(len(material), bool)
    for start in range(0, len(both), 1024):
        at = both[start : start + 1024]
        one, other = (count.ids(material.responses.at(side[at].astype(np.int64))) for side in (material.a, material.b))
        for e, x, y in zip(at.tolist(), one, other, strict=True):
            left = max(int(room[e]), 0)
            same[e] = x[:left] == y[:left]
    same &= material.a != material.b
    figure = material.resamples.ratio(material.weight * same, material.weight)
    value, cut = figure.value or 0.0, material.resamples.ratio(material.weight * long, material.weight).value or 0.0
    at = np.flatnonzero(same)
    yield Finding(
        name="tokens/difference-cut",
        title="Pairs whose difference is cut away",
        definition=f"Share of the comparisons whose two responses are the same tokens once prompt and response are cut "
        f"at {material.max_length:,} tokens. A chat template's own tokens are not counted.",
        figure=figure,
        unit="share",
        expected=0.0,
        alarm="note: any; warning: 0.1 % of the comparisons or more; serious: 2 % or more",
        severity=graded(value, warning=0.001, serious=0.02, note=bool(len(at))),
        verdict=f"At {material.max_length:,} tokens {len(at):,} pairs ({share(value, 2)}) become the same on both sides "
        f"and {share(cut)} lose part of a response."
        if cut
        else f"Every pair fits into {material.max_length:,} tokens; the longest takes {int(whole.max(initial=0)):,}.",
        remedy="Raise the length, cut the prompt's beginning, or drop these rows: on them the loss stays at ln 2.",
        rows=Rows.ranked(material.row[at], whole[at].astype(float), "tokens"),
        facts={
            "of prompt and longer response": quantiles(whole.astype(float)),
            "share longer than": {f"{n:,}": float(np.average(whole > n, weights=material.weight)) for n in LENGTHS},
        },
    )
    yield Finding(
        name="tokens/too-long",
        title="Pairs that do not fit",
        definition=f"Share of the comparisons whose prompt and longer response take more than {material.max_length:,} "
        "tokens together.",
        figure=material.resamples.ratio(material.weight * long, material.weight),
        unit="share",
        expected=0.0,
        alarm="note: any; warning: 2 % of the comparisons or more; serious: 20 % or more",
        severity=graded(cut, warning=0.02, serious=0.2, note=bool(cut)),
        verdict=f"{int(long.sum()):,} pairs ({share(cut)}) take more than {material.max_length:,} tokens."
        if cut
        else f"No pair takes more than {material.max_length:,} tokens.",
        remedy="Say in the recipe what becomes of them: dropped, cut at which end, or a longer limit.",
        rows=Rows.ranked(material.row[np.flatnonzero(long)], whole[long].astype(float), "tokens"),
        cells=by_cells(material, material.weight * long, material.weight) if cut else {},
    )
