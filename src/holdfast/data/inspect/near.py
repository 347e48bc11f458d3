"""Near-duplicates of texts: MinHash finds candidates, exact Jaccard similarity decides.

A text is the set of its words and pairs of neighbouring words, case and punctuation set aside. A changed word in a
prompt of ten leaves a similarity of 0.73, so 0.7 is where near-duplicates begin; texts of fewer than five words are
compared as a whole. Words are counted by hash (64 bits of BLAKE2b), the same on every machine.

Candidates: 96 hashes in 24 bands of 4 (Broder 1997; Leskovec, Rajaraman and Ullman, *Mining of Massive Datasets*, 3.4).
A pair of similarity s is a candidate with probability 1 - (1 - s^4)^24: 0.9986 at 0.7, 0.99999 at 0.8. Candidates of which fewer
than 54 of the 96 hashes are equal are not read again (0.9987 of the pairs at 0.7 have more).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from holdfast.data.inspect.material import Material, Texts

SIMILAR = 0.7
BANDS, WIDTH = 24, 4
FEWEST_WORDS = 5
WORTH = 0.56  # share of equal hashes from which a pair is compared exactly: three errors below SIMILAR
CROWD = 32  # members from which a cluster's connected pairs are not all listed
NEIGHBOURS = 8  # members of one bucket that a text is compared with; the others are reached through these
WORD = re.compile(r"\w+")
_ODD = np.random.default_rng(20210715).integers(0, 2**32, size=(2, BANDS * WIDTH), dtype=np.uint64)
_MULTIPLY = (_ODD[0] | 1).astype(np.uint32)
_ADD = _ODD[1].astype(np.uint32)
_words: dict[str, int] = {}


def digest64(text: str) -> int:
    """64 bits of a text's BLAKE2b."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def hashed_words(text: str) -> np.ndarray:
    """(n,) uint64, the hashes of a text's words in order, lower case."""
    found = WORD.findall(text.lower())
    known = _words
    out = []
    for word in found:
        h = known.get(word)
        if h is None:
            if len(known) > 500_000:
                known.clear()
            h = known[word] = digest64(word)
        out.append(h)
    return np.array(out, dtype=np.uint64)


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, (n,) uint64: neighbouring numbers become unlike."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def shingles(text: str) -> np.ndarray:
    """The sorted distinct hashes of a text's words and pairs of neighbouring words, uint64."""
    words = hashed_words(text)
    if not len(words):
        return words
    with np.errstate(over="ignore"):
        pairs = words[:-1] * np.uint64(3) + np.uint64(1) + (words[1:] << np.uint64(1))
    return np.unique(np.concatenate([mix(words), mix(pairs)]))


def whole(texts: Sequence[str]) -> np.ndarray:
    """(n,) uint64: equal where texts read the same, case, punctuation and white space set aside."""
    out = np.zeros(len(texts), np.uint64)
    for i, text in enumerate(texts):
        read = " ".join(WORD.findall(text.lower())) or text.strip()
        out[i] = digest64(read)
    return out


def signature(texts: Sequence[str]) -> np.ndarray:
    """(n, 96) uint32, the least of each hash; 0 throughout for texts too short to be near anything but themselves."""
    out = np.zeros((len(texts), BANDS * WIDTH), np.uint32)
    for start in range(0, len(texts), 256):
        sets = [shingles(t) for t in texts[start : start + 256]]
        long = [i for i, s in enumerate(sets) if len(s) >= 2 * FEWEST_WORDS - 2]
        if not long:
            continue
        flat = np.concatenate([sets[i] for i in long])
        low = (flat >> np.uint64(32)).astype(np.uint32)
        starts = np.concatenate([[0], np.cumsum([len(sets[i]) for i in long])[:-1]])
        least = np.empty((len(long), BANDS * WIDTH), np.uint32)
        with np.errstate(over="ignore"):
            for k in range(BANDS * WIDTH):
                h = low * _MULTIPLY[k] + _ADD[k]
                h ^= h >> np.uint32(15)
                h *= np.uint32(0x2C1B3C6D)
                least[:, k] = np.minimum.reduceat(h, starts)
        out[start + np.array(long)] = least
    return out


def band_keys(of: np.ndarray, band: int) -> np.ndarray:
    """(n,) uint64, a key of one band of signatures (n, 96); 0 for those of short texts."""
    mine = of[:, band * WIDTH : (band + 1) * WIDTH].astype(np.uint64)
    key = np.full(len(of), band + 1, np.uint64)
    with np.errstate(over="ignore"):
        for w in range(WIDTH):
            key = mix(key * np.uint64(0x9E3779B97F4A7C15) + mine[:, w])
    return np.where(of.any(axis=1), np.maximum(key, np.uint64(1)), np.uint64(0))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Similarity of two sorted sets of hashes."""
    if not len(a) or not len(b):
        return 0.0
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


@dataclass(frozen=True)
class Near:
    """Pairs of texts that are near each other: one, other (n,) int64, one < other; similarity (n,); 1 where they read the
    same. cluster: (N,) int64, the lowest number of a text's connected near-duplicates (its own where there are none).
    """

    one: np.ndarray
    other: np.ndarray
    similarity: np.ndarray
    cluster: np.ndarray


def near(texts: Texts, numbers: np.ndarray | None = None) -> Near:
    """Near-duplicates among these texts (default: all). Numbers are places in `texts`.

    Of a bucket of many, each is compared with a few neighbours, so `cluster` is found but not every pair in it is listed.
    """
    numbers = np.arange(len(texts)) if numbers is None else np.asarray(numbers, np.int64)
    n = len(numbers)
    same = texts.derive(whole)[numbers]
    signed = texts.derive(signature)[numbers]
    pairs = [_neighbours(same, np.ones(n, bool), 1)]
    alike = [np.ones(len(pairs[0]))]
    label = clusters(n, pairs[0][:, 0], pairs[0][:, 1])
    asked = np.zeros(0, np.int64)  # pairs that were compared exactly, as low * n + high, rising
    for band in range(BANDS):
        keys = band_keys(signed, band)
        found = _neighbours(keys, keys != 0, NEIGHBOURS)
        # In a large cluster, those that are connected already need not be compared: its pairs would grow with its square.
        large = np.bincount(label, minlength=n)[label[found[:, 0]]] > CROWD
        found = found[~(large & (label[found[:, 0]] == label[found[:, 1]])) & (same[found[:, 0]] != same[found[:, 1]])]
        for start in range(0, len(found), 1 << 16):  # before texts are read again: the share of equal hashes
            chunk = slice(start, start + (1 << 16))
            close = (signed[found[chunk, 0]] == signed[found[chunk, 1]]).mean(axis=1) >= WORTH
            found[chunk][~close] = -1
        found = found[found[:, 0] >= 0]
        code = found[:, 0] * n + found[:, 1]
        found = found[~np.isin(code, asked)]
        if not len(found):
            continue
        asked = np.union1d(asked, found[:, 0] * n + found[:, 1])
        similarity = similarities(texts, numbers[found[:, 0]], numbers[found[:, 1]])
        keep = similarity >= SIMILAR
        pairs.append(found[keep])
        alike.append(similarity[keep])
        if keep.any():
            every = np.concatenate(pairs)
            label = clusters(n, every[:, 0], every[:, 1])
    every = np.concatenate(pairs)
    order = np.lexsort((every[:, 1], every[:, 0]))
    one, other = numbers[every[order, 0]], numbers[every[order, 1]]
    low, high = np.minimum(one, other), np.maximum(one, other)
    return Near(low, high, np.concatenate(alike)[order], clusters(len(texts), low, high))


def similarities(texts: Texts, one: np.ndarray, other: np.ndarray, also: Texts | None = None) -> np.ndarray:
    """Jaccard similarity of each pair of texts, (n,); `also` holds the second of each pair, where it is another table."""
    also = texts if also is None else also
    out = np.zeros(len(one))
    order = np.argsort(one, kind="stable")
    for start in range(0, len(order), 4096):
        mine = order[start : start + 4096]
        left, right = np.unique(one[mine]), np.unique(other[mine])
        sets = dict(zip(left.tolist(), map(shingles, texts.at(left)), strict=True))
        sets2 = dict(zip(right.tolist(), map(shingles, also.at(right)), strict=True))
        for i in mine.tolist():
            out[i] = jaccard(sets[int(one[i])], sets2[int(other[i])])
    return out


def clusters(n: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,) the lowest number each is connected with."""
    from holdfast.data.inspect.stats import components

    part = components(n, one, other)
    first = np.full(int(part.max(initial=-1)) + 1, n, np.int64)
    np.minimum.at(first, part, np.arange(n))
    return first[part]


def _neighbours(keys: np.ndarray, use: np.ndarray, most: int) -> np.ndarray:
    """(m, 2) places of equal keys: each with up to `most` before it in its bucket, low then high."""
    at = np.flatnonzero(use)
    order = at[np.argsort(keys[at], kind="stable")]
    ranked = keys[order]
    out = []
    alive = np.arange(len(order))
    for step in range(1, most + 1):
        alive = alive[alive >= step]
        alive = alive[ranked[alive] == ranked[alive - step]]
        if not len(alive):
            break
        out.append(np.stack([order[alive - step], order[alive]], axis=1))
    return np.concatenate(out) if out else np.zeros((0, 2), np.int64)


def across(texts: Texts, numbers: np.ndarray, outside: Texts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Near-duplicates between these texts and outside ones: (number, outside number, similarity), each (n,)."""
    pairs = []
    tables = [(texts.derive(whole)[numbers][:, None], outside.derive(whole)[:, None])]
    here, there = texts.derive(signature)[numbers], outside.derive(signature)
    for band in range(BANDS):
        tables.append((band_keys(here, band)[:, None], band_keys(there, band)[:, None]))
    for mine, theirs in tables:
        for band in range(mine.shape[1]):
            keys = theirs[:, band]
            order = np.argsort(keys, kind="stable")
            ranked = keys[order]
            lo = np.searchsorted(ranked, mine[:, band], "left")
            hi = np.minimum(np.searchsorted(ranked, mine[:, band], "right"), lo + NEIGHBOURS)
            hi = np.where(mine[:, band] == 0, lo, hi)
            for step in range(int((hi - lo).max(initial=0))):
                has = np.flatnonzero(lo + step < hi)
                pairs.append(np.stack([has, order[lo[has] + step]], axis=1))
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    found = np.unique(np.concatenate(pairs), axis=0)
    alike = texts.derive(whole)[numbers[found[:, 0]]] == outside.derive(whole)[found[:, 1]]
    similarity = np.where(alike, 1.0, 0.0)
    ask = np.flatnonzero(~alike)
    similarity[ask] = similarities(texts, numbers[found[ask, 0]], found[ask, 1], outside)
    keep = similarity >= SIMILAR
    return numbers[found[keep, 0]], found[keep, 1], similarity[keep]


def near_prompts(material: Material) -> Near:
    """Near-duplicates among the prompts that judgements name."""
    return material.compute("near prompts", lambda m: near(m.prompts, m.live_prompts))


def near_responses(material: Material) -> Near:
    """Near-duplicates among the responses that comparisons name."""
    return material.compute("near responses", lambda m: near(m.responses, m.used))


def ngrams(text: str, n: int) -> np.ndarray:
    """Hashes of a text's runs of n words, in order, uint64; empty for shorter texts."""
    words = hashed_words(text)
    if len(words) < n:
        return np.zeros(0, np.uint64)
    out = np.zeros(len(words) - n + 1, np.uint64)
    with np.errstate(over="ignore"):
        for k in range(n):
            out = mix(out * np.uint64(0x9E3779B97F4A7C15) + words[k : len(words) - n + 1 + k])
    return out
