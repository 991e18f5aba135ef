"""Texts of conversations, taken from the Arrow column without a Python object a row.

The instruction is every turn that is not the assistant's, the response every turn that is, joined by a newline, as the
released code of Diversify and Conquer embeds them; `both` is all turns in order. The answer is the last assistant turn.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Part = Literal["instruction", "response", "both"]


def texts(messages: pa.ChunkedArray, part: Part) -> pa.ChunkedArray:
    """The text of each conversation, (n,) string; empty where there is no such turn."""
    return pa.chunked_array([_texts(chunk, part) for chunk in messages.chunks], pa.string())


def answers(messages: pa.ChunkedArray) -> pa.ChunkedArray:
    """The last assistant turn of each conversation, (n,) string; empty where there is none."""
    return pa.chunked_array([_answers(chunk) for chunk in messages.chunks], pa.string())


def _texts(messages: pa.ListArray, part: Part) -> pa.StringArray:
    turns, owner = _turns(messages)
    if part != "both":
        keep = _spoken(turns) == (part == "response")
        turns, owner = turns.filter(pa.array(keep)), owner[keep]
    counts = np.bincount(owner, minlength=len(messages))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    return pc.binary_join(pa.ListArray.from_arrays(offsets, pc.struct_field(turns, "content")), "\n")


def _answers(messages: pa.ListArray) -> pa.StringArray:
    turns, owner = _turns(messages)
    spoken = np.flatnonzero(_spoken(turns))
    last = np.full(len(messages), -1, dtype=np.int64)
    np.maximum.at(last, owner[spoken], spoken)
    return pc.fill_null(pc.struct_field(turns, "content").take(pa.array(last, mask=last < 0)), "")


def _spoken(turns: pa.StructArray) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.equal(pc.struct_field(turns, "role"), "assistant"), dtype=bool)


def _turns(messages: pa.ListArray) -> tuple[pa.StructArray, npt.NDArray[np.int64]]:
    """All turns in order, and the row of each."""
    return messages.flatten(), np.asarray(pc.list_parent_indices(messages), dtype=np.int64)
