"""Formats: how people keep preferences, in and out.

    registry.py   what a format is, how it is told, and the way in (`judge`) and out (`say`) that all of them share
    columns.py    what a column may hold; text with text, chat with chat
    general.py    trl, trl-implicit, unpaired, compared, ranked, scored, and holdfast, which can say everything
    trainers.py   what other trainers read: openrlhf, llama-factory, halos, nemo, ms-swift
    published.py  what published data and labelling tools look like: hh, alpaca-eval, pandalm, ultrafeedback, ...

A format is two functions side by side, one in and one out. docs/formats.md tells users what each becomes, and what it
cannot carry.
"""

from holdfast.data.formats import general, published, trainers  # noqa: F401  (they register their formats)
from holdfast.data.formats.general import GIVEN
from holdfast.data.formats.registry import (
    COMMON,
    FORMATS,
    Format,
    Row,
    Unsayable,
    check_mapping,
    detect,
    judge,
    named,
    reader,
    say,
    writer,
)

__all__ = [
    "COMMON",
    "FORMATS",
    "GIVEN",
    "Format",
    "Row",
    "Unsayable",
    "check_mapping",
    "detect",
    "judge",
    "named",
    "reader",
    "say",
    "writer",
]
