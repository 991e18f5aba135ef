"""Packing: time, and how full the bins are, against TRL's best-fit decreasing.

    python benchmarks/packing.py

Lengths are log-normal, as those of instruction data (median 150 to 200 tokens), or hard: 60% just above or below half
of the capacity. TRL's time includes moving the token columns, ours does not (a batch is laid out when it is trained):
the comparison of times is of what each does before training, that of fullness is exact. "cuvee, by batch" packs each
global batch of 128 rows by itself, which is what training does.
"""

from __future__ import annotations

import argparse

import numpy as np
from side_by_side import RESULTS, clocks, finish, machine, run, since, table

ROWS = {"log-normal": (100_000, 4096), "hard": (100_000, 4096), "short": (52_000, 2048)}
BATCH = 128


def lengths(kind: str) -> tuple[np.ndarray, int]:
    rows, capacity = ROWS[kind]
    rng = np.random.default_rng(0)
    if kind == "hard":
        half = capacity // 2
        near = rng.integers(half - 60, half + 60, int(0.6 * rows))
        return np.concatenate([near, rng.integers(10, half, rows - len(near))]), capacity
    return rng.lognormal(5.2, 0.9, rows).astype(np.int64).clip(4, capacity), capacity


def cuvee(kind: str, by_batch: bool) -> None:
    from training.packing import pack

    sizes, capacity = lengths(kind)
    begin = clocks()
    step = BATCH if by_batch else len(sizes)
    bins = sum(len(pack(sizes[start : start + step], capacity)) for start in range(0, len(sizes), step))
    report(since(begin), bins, sizes, capacity)


def trl(kind: str) -> None:
    import pyarrow as pa
    from trl.data_utils import _pack_bfd

    sizes, capacity = lengths(kind)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.zeros(offsets[-1], np.int32)))
    rows = pa.table({"input_ids": ids})
    begin = clocks()
    bins = _pack_bfd(rows, capacity).num_rows
    report(since(begin), bins, sizes, capacity)


def report(took: dict[str, float], bins: int, sizes: np.ndarray, capacity: int) -> None:
    finish(**took, bins=bins, full=float(100 * sizes.sum() / (bins * capacity)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("CONTENDER", "LENGTHS"))
    args = parser.parse_args()
    if args.one:
        who, kind = args.one
        return trl(kind) if who == "TRL" else cuvee(kind, by_batch=who == "cuvee, by batch")
    text = [machine("trl", "numpy", "pyarrow"), f"Median of {args.rounds} rounds.", ""]
    for kind, (rows, capacity) in ROWS.items():
        names = ("cuvee", "cuvee, by batch", "TRL")
        records = run(__file__, {name: ["--one", name, kind] for name in names}, args.rounds)
        sizes, _ = lengths(kind)
        least = -(-int(sizes.sum()) // capacity)
        text += [f"{kind}: {rows:,} rows into bins of {capacity}; at least {least:,} bins"]
        lines = []
        for name, made in records.items():
            seconds = sorted(r["seconds"] for r in made)
            spread = f"{seconds[0]:.2f} to {seconds[-1]:.2f}"
            lines.append({"contender": name, "seconds": seconds[len(seconds) // 2], "range": spread})
            lines[-1] |= {"bins": f"{made[0]['bins']:,}", "full, %": made[0]["full"]}
        text += [table(lines), ""]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "packing.txt").write_text("\n".join(text))
    print("\n".join(text))
    return None


if __name__ == "__main__":
    main()
