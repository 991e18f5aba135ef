r"""k-means against faiss and scikit-learn: time, inertia and peak memory, at equal work and to convergence.

    python benchmarks/kmeans.py                                  52k x 384, k = 512
    python benchmarks/kmeans.py --rows 1000000 --k 1024 --rounds 1 --name kmeans_1m \
        --leave-out "sklearn, early stop" "sklearn mini-batch"

Equal work: the same number of updates from random rows, one start, no early stop. `cuvee` reads Parquet parts and holds
no copy of the vectors; the others need the array. The vectors are a mixture with clusters of unequal sizes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from side_by_side import RESULTS, clocks, finish, machine, run, since, table

STEP = 8192


def make(folder: Path, rows: int, dim: int) -> None:
    """`rows` unit vectors around 2,000 centres of unequal weight, as an array and as parts."""
    from selection.vectors import write_vectors

    draw = np.random.default_rng(0)
    above = draw.standard_normal((40, dim), dtype=np.float32)
    centres = above[draw.integers(0, 40, 2000)] + 0.7 * draw.standard_normal((2000, dim), dtype=np.float32)
    shares = np.arange(1, 2001) ** -0.8
    array = np.lib.format.open_memmap(folder / "array.npy", mode="w+", dtype=np.float32, shape=(rows, dim))
    for start in range(0, rows, STEP):
        size = min(STEP, rows - start)
        block = centres[draw.choice(2000, size, p=shares / shares.sum())]
        block = block + 1.5 * draw.standard_normal((size, dim), dtype=np.float32)
        array[start : start + size] = block / np.linalg.norm(block, axis=1, keepdims=True)
    starts = range(0, rows, STEP)
    blocks = (([f"{i:012d}" for i in range(s, min(s + STEP, rows))], array[s : s + STEP]) for s in starts)
    write_vectors(folder / "vectors", blocks, dim=dim)


def cuvee(folder: Path, k: int, iterations: int, tolerance: float) -> None:
    from selection.clustering import ClusterConfig, cluster
    from selection.vectors import Vectors

    vectors = Vectors.open(folder / "vectors")
    config = ClusterConfig(iterations=iterations, tolerance=tolerance)
    few = Vectors.of([f"{i}" for i in range(9)], np.eye(9))
    cluster(few, 2, rng=np.random.default_rng(0))  # what is imported at the first use, as the others do before
    begin = clocks()
    found = cluster(vectors, k, rng=np.random.default_rng(0), config=config)
    finish(**since(begin), inertia=found.inertia, updates=found.iterations)


def faiss(folder: Path, k: int, iterations: int, tolerance: float) -> None:
    import faiss

    array = np.load(folder / "array.npy")
    begin = clocks()
    # By default faiss trains on 256 rows a centre: here it gets all.
    found = faiss.Kmeans(array.shape[1], k, niter=iterations, seed=0, max_points_per_centroid=len(array))
    found.train(array)
    squares, _ = found.index.search(array, 1)
    finish(**since(begin), inertia=float(squares.sum(dtype=np.float64)), updates=iterations)


def sklearn(folder: Path, k: int, iterations: int, tolerance: float) -> None:
    from sklearn.cluster import KMeans

    array = np.load(folder / "array.npy")
    begin = clocks()
    found = KMeans(k, init="random", n_init=1, max_iter=iterations, tol=tolerance, random_state=0).fit(array)
    finish(**since(begin), inertia=float(found.inertia_), updates=found.n_iter_)


def minibatch(folder: Path, k: int, iterations: int, tolerance: float) -> None:
    from sklearn.cluster import MiniBatchKMeans

    array = np.load(folder / "array.npy")
    begin = clocks()
    found = MiniBatchKMeans(k, init="random", n_init=1, max_iter=iterations, batch_size=STEP, random_state=0).fit(array)
    finish(**since(begin), inertia=float(found.inertia_), updates=found.n_steps_)


CONTENDERS = {"cuvee": cuvee, "faiss": faiss, "sklearn": sklearn, "minibatch": minibatch}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=52_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--k", type=int, default=512)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="kmeans")
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="CONTENDER")
    parser.add_argument("--only", nargs=3, metavar=("CONTENDER", "FOLDER", "TOLERANCE"))
    options = parser.parse_args()
    if options.only:
        contender, folder, tolerance = options.only
        CONTENDERS[contender](Path(folder), options.k, options.iterations, float(tolerance))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.rows, options.dim)
        size = [f"--k={options.k}", f"--iterations={options.iterations}", "--only"]
        equal = {name: [*size, name, folder, "0"] for name in ("cuvee", "faiss", "sklearn")}
        whole = [f"--k={options.k}", "--iterations=50", "--only"]
        equal["cuvee, early stop"] = [*whole, "cuvee", folder, "1e-4"]
        equal["sklearn, early stop"] = [*whole, "sklearn", folder, "1e-4"]
        equal["sklearn mini-batch"] = [*whole, "minibatch", folder, "0"]
        equal = {name: arguments for name, arguments in equal.items() if name not in options.leave_out}
        records = run(__file__, equal, options.rounds)
    rows = [
        {"contender": name, **min(found, key=lambda r: r["seconds"]), "rounds": len(found)}
        for name, found in records.items()
    ]
    text = [
        machine("numpy", "faiss-cpu", "scikit-learn"),
        f"{options.rows:,} x {options.dim} (the array alone is {options.rows * options.dim * 4 / 2**20:,.0f} MB), k ="
        f" {options.k}; {options.iterations} updates from random rows, up to 50 with early stop. Best of the rounds.",
        "",
        table(rows),
    ]
    (RESULTS / f"{options.name}.txt").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
