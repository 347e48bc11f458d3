"""The pictures of a control run that a language run has none of: a plane of states, and a strip of frames as PNG."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from holdfast.report import plots
from holdfast.report.plots import joined, markup

CELLS = (36, 22)  # of a plane, across and up
FRAME = 200  # pixels that a frame is at most wide, in the file


def plane(
    title: str,
    xy: np.ndarray,
    visits: np.ndarray | None,
    x_label: str,
    y_label: str,
    *,
    height: int = 300,
    names: tuple[str, str] = ("the log", "the policy"),
) -> Markup:
    """How densely points lie in the plane, by cell: the stronger the more, on a logarithm's scale. xy: (n, 2). visits: (m, 2), other
    points over them, as dots whose area is their number in the cell.
    """
    every = xy if visits is None else np.concatenate([xy, visits])
    lo, hi = np.quantile(every, [0.002, 0.998], axis=0)
    lo, hi = lo - 0.03 * (hi - lo) - 1e-9, hi + 0.03 * (hi - lo) + 1e-9

    def counted(points: np.ndarray) -> np.ndarray:
        inside = np.clip(points, lo, hi)
        edges = [np.linspace(lo[i], hi[i], CELLS[i] + 1) for i in (0, 1)]
        return np.histogram2d(inside[:, 0], inside[:, 1], edges)[0]

    wide, tall = 100 / CELLS[0], 100 / CELLS[1]
    drawn = []
    dense = counted(xy)
    for i, j in np.argwhere(dense > 0):
        drawn.append(
            markup(
                '<rect class="heat-cell" style="--a:{:.2f}" x="{:.2f}%" y="{:.2f}%" width="{:.2f}%" height="{:.2f}%">'
                "<title>{:.2f} % of {}</title></rect>",
                0.12 + 0.88 * float(np.log1p(dense[i, j]) / np.log1p(dense.max())),
                wide * i,
                100 - tall * (j + 1),
                wide,
                tall,
                100 * dense[i, j] / len(xy),
                names[0],
            )
        )
    if visits is not None and len(visits):
        there = counted(visits)
        for i, j in np.argwhere(there > 0):
            share = there[i, j] / len(visits)
            drawn.append(
                markup(
                    '<circle class="visit" cx="{:.2f}%" cy="{:.2f}%" r="{:.1f}"><title>{:.2f} % of {}</title></circle>',
                    wide * (i + 0.5),
                    100 - tall * (j + 0.5),
                    1.6 + 5.5 * (there[i, j] / there.max()) ** 0.5,
                    100 * share,
                    names[1],
                )
            )
    drawn.append(markup('<text class="word" x="0" y="0" dx="6" dy="13">{}</text>', y_label))
    across, up = (plots.ticks(float(lo[i]), float(hi[i]), 5) for i in (0, 1))
    frame = plots._frame(
        title,
        joined(drawn),
        height,
        [(100 * (t - lo[0]) / (hi[0] - lo[0]), w) for t, w in zip(across, plots.tick_text(across), strict=True)],
        [(100 * (hi[1] - t) / (hi[1] - lo[1]), w) for t, w in zip(up, plots.tick_text(up), strict=True)],
        x_label,
    )
    legend = [(names[0], "model", "square"), (names[1], "longer", "circle")]
    return plots._figure(title, frame, legend if visits is not None else [])


def film(title: str, frames: Sequence[tuple[str, np.ndarray]]) -> Markup:
    """Frames side by side: (what stands below, (height, width, 3) uint8)."""
    pieces = [
        markup(
            '<figure><img alt="{0}" width="{1}" height="{2}" src="data:image/png;base64,{3}"><figcaption>{0}</figcaption></figure>',
            below,
            small.shape[1],
            small.shape[0],
            base64.b64encode(png(small)).decode(),
        )
        for below, small in ((below, smaller(frame)) for below, frame in frames)
    ]
    return markup('<h4>{}</h4><div class="film">{}</div>', title, joined(pieces))


def smaller(frame: np.ndarray) -> np.ndarray:
    """At most FRAME wide, by the mean of square blocks."""
    block = -(-frame.shape[1] // FRAME)
    h, w = frame.shape[0] // block, frame.shape[1] // block
    blocks = frame[: h * block, : w * block].reshape(h, block, w, block, 3)
    return np.round(blocks.mean((1, 3))).astype(np.uint8)


def png(rgb: np.ndarray) -> bytes:
    """(height, width, 3) uint8 as a PNG of eight bits per channel. ISO 15948."""
    height, width, _ = rgb.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), rgb.reshape(height, -1)], axis=1)  # filter 0: as it is

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
