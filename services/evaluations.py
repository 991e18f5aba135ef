"""What finished evaluations have left: their summaries and their items."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from services.measuring import Measure
from services.store import Store

if TYPE_CHECKING:
    import pyarrow as pa


def summary_of(measure: Measure, store: Store) -> dict[str, Any]:
    """The summary of an evaluation, empty while it is not done."""
    if store.done(measure.node.key) is None:
        return {}
    return dict(json.loads((store.local(measure.node.key) / "summary.json").read_text()))


def items_of(measure: Measure, store: Store) -> pa.Table:
    """The items of an evaluation."""
    import pyarrow.parquet as pq

    return pq.read_table(store.local(measure.node.key) / "items.parquet")
