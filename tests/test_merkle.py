"""Merkle trees: RFC 6962's own definition as the oracle, published test vectors, and proofs that break."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.data.merkle import Merkle, inclusion_proof, merkle_root, verify_inclusion

# The leaves and roots that the Certificate Transparency reference code tests itself with.
LEAVES = [
    bytes.fromhex(x)
    for x in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def naive(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, word for word."""
    n = len(leaves)
    if n == 0:
        return sha256(b"").digest()
    if n == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < n:
        k *= 2
    return sha256(b"\x01" + naive(leaves[:k]) + naive(leaves[k:])).digest()


@pytest.mark.parametrize("n", ROOTS)
def test_published_vectors(n: int) -> None:
    assert naive(LEAVES[:n]).hex() == ROOTS[n]
    assert merkle_root(LEAVES[:n]).hex() == ROOTS[n]


def test_published_proof() -> None:
    # RFC 6962's worked example: the path of leaf d3 among seven is c, g (its sibling d2 first), then the right subtree.
    seven = LEAVES[:7]
    proof = inclusion_proof(seven, 3)
    assert proof == [naive([seven[2]]), naive(seven[:2]), naive(seven[4:])]
    # and of d6, which has no sibling: i, k
    assert inclusion_proof(seven, 6) == [naive(seven[4:6]), naive(seven[:4])]


@pytest.mark.parametrize("n", [1023, 1024, 1025, 2047, 2048, 3000, 5121])
def test_streamed_equals_the_definition_around_block_bounds(n: int) -> None:
    leaves = [i.to_bytes(4, "big") for i in range(n)]
    assert merkle_root(iter(leaves)) == naive(leaves)


@given(st.lists(st.binary(max_size=8), max_size=70), st.data())
def test_grown_in_any_pieces_equals_the_definition(leaves: list[bytes], data: st.DataObject) -> None:
    tree, at = Merkle(), 0
    while at < len(leaves):
        n = data.draw(st.integers(1, len(leaves) - at))
        tree.extend(leaves[at : at + n])
        at += n
        assert tree.root() == naive(leaves[:at])
    assert tree.size == len(leaves)


@given(st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=40), st.data())
def test_proofs_hold_and_break(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    root, proof, n = naive(leaves), inclusion_proof(leaves, index), len(leaves)
    leaf = leaves[index]
    assert verify_inclusion(leaf, index, n, proof, root)
    assert not verify_inclusion(leaf + b"x", index, n, proof, root)
    assert not verify_inclusion(leaf, n, n, proof, root)
    assert not verify_inclusion(leaf, index, n, [*proof, root], root)
    assert not verify_inclusion(leaf, index, n, proof, sha256(root).digest())
    if proof:
        assert not verify_inclusion(leaf, index, n, proof[:-1], root)
        step = data.draw(st.integers(0, len(proof) - 1))
        broken = list(proof)
        broken[step] = bytes([broken[step][0] ^ 1]) + broken[step][1:]
        assert not verify_inclusion(leaf, index, n, broken, root)


def test_a_node_cannot_pose_as_a_leaf() -> None:
    a, b = b"a" * 32, b"b" * 32
    inner = sha256(b"\x00" + a).digest() + sha256(b"\x00" + b).digest()
    assert merkle_root([inner]) != merkle_root([a, b])


def test_proof_of_a_leaf_that_is_not_there() -> None:
    with pytest.raises(IndexError, match="leaf 3 of a tree of 3"):
        inclusion_proof([b"a", b"b", b"c"], 3)
