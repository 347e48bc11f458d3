"""Merkle trees as RFC 6962, section 2.1, defines them: one hash that commits to an ordered list.

Leaves and inner nodes are hashed under different first bytes, so no leaf can pose as a node. A list of n leaves is cut
at the largest power of two below n. Everything here works on raw bytes; callers print hex.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import islice

_BLOCK = 1024  # leaves folded level by level before they meet the stack; any power of two gives the same root


class Merkle:
    """A tree that grows leaf by leaf and keeps only the roots of its complete subtrees: memory is logarithmic."""

    def __init__(self) -> None:
        self.size = 0
        self._pending: list[bytes] = []  # hashed leaves, fewer than _BLOCK
        self._peaks: list[tuple[int, bytes]] = []  # (height, root) of complete subtrees, heights falling

    def extend(self, leaves: Iterable[bytes]) -> None:
        pending = self._pending
        before = len(pending)
        pending.extend([sha256(b"\0" + leaf).digest() for leaf in leaves])
        self.size += len(pending) - before
        whole = len(pending) // _BLOCK * _BLOCK
        for start in range(0, whole, _BLOCK):
            height, root = _BLOCK.bit_length() - 1, _fold(pending[start : start + _BLOCK])
            while self._peaks and self._peaks[-1][0] == height:
                root = sha256(b"\1" + self._peaks.pop()[1] + root).digest()
                height += 1
            self._peaks.append((height, root))
        del pending[:whole]

    def root(self) -> bytes:
        """The root so far; more leaves may follow. The empty tree's root is SHA-256 of nothing."""
        if self.size == 0:
            return sha256(b"").digest()
        roots = [root for _, root in self._peaks]
        if self._pending:
            roots.append(_fold(self._pending))
        root = roots.pop()
        while roots:
            root = sha256(b"\1" + roots.pop() + root).digest()
        return root


def merkle_root(leaves: Iterable[bytes]) -> bytes:
    """The RFC 6962 tree hash of a stream of leaves."""
    tree = Merkle()
    stream = iter(leaves)
    while block := list(islice(stream, _BLOCK)):
        tree.extend(block)
    return tree.root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The audit path of leaf `index` (RFC 6962, section 2.1.1): the sibling hashes from the leaf up to the root."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of a tree of {len(leaves)}")
    level = [sha256(b"\0" + leaf).digest() for leaf in leaves]
    path = []
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        level = _pair_up(level)
        index //= 2
    return path


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `proof` shows that `leaf` stands at `index` in the tree of `size` leaves with this root (RFC 9162,
    section 2.1.3.2).
    """
    if not 0 <= index < size:
        return False
    here, last = index, size - 1
    node = sha256(b"\0" + leaf).digest()
    for sibling in proof:
        if last == 0:
            return False  # the proof is longer than the tree is high
        if here & 1 or here == last:
            node = sha256(b"\1" + sibling + node).digest()
            while not here & 1 and here:  # a node without a sibling rises unhashed
                here >>= 1
                last >>= 1
        else:
            node = sha256(b"\1" + node + sibling).digest()
        here >>= 1
        last >>= 1
    return last == 0 and node == root


def _fold(level: list[bytes]) -> bytes:
    while len(level) > 1:
        level = _pair_up(level)
    return level[0]


def _pair_up(level: list[bytes]) -> list[bytes]:
    """The level above. A last node without a partner rises as it is, which yields exactly RFC 6962's cut."""
    above = [sha256(b"\1" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
    if len(level) % 2:
        above.append(level[-1])
    return above
