"""Plan and tokens to the batches of one rank.

Batch t is a function of the plan, the settings and the seed alone: the t-th `global_batch` consecutive rows (with
length grouping: rows regrouped inside windows of the plan). How the rows of a batch are arranged into bins and
micro-batches, and which rank takes which, changes memory and speed and not the loss, because every token carries its
share of the loss of the whole global batch:

    token  L = sum of w*l / sum of w                 share w / W, W over the global batch
    row    L = mean over rows of (sum w*l / sum w)   share w / (W of the row * rows that have a loss)
    sum    L = mean over rows of (sum w*l)           share w / rows that have a loss

Averaging each micro-batch and then the averages would weight tokens by the company they are in; that fault stood for
years in trainers with accumulation (transformers issue 34191). Each rank works the shares out for itself from the
roles of the whole batch, which costs microseconds a row and no communication. `cuvee.loss` defines the same three by
numerator and denominator.

Rows are right-padded and get no attention mask: under causal attention no token sees the padding after it, and the
kernels for plain causal attention are the fast ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuvee.errors import DataError
from cuvee.rng import stream
from training.corpus import Corpus
from training.packing import balance
from training.settings import TrainConfig

WINDOW = 32
"""Global batches in one window of length grouping."""

Weights = Callable[..., np.ndarray]
"""`token_weights` with its objective: (source, roles, turns, scale, weight) to (T,) float32."""


@dataclass(frozen=True)
class Micro:
    """One forward pass: (B, T) arrays. Padding has share 0."""

    ids: np.ndarray
    positions: np.ndarray
    share: np.ndarray
    """float32: factor of each token's negative log-likelihood in the loss of the global batch."""
    weight: np.ndarray
    """float32: the objective's weight, for sums by source."""
    source: np.ndarray
    """int64: index of the token's source."""
    smoothing: np.ndarray | None
    reference: np.ndarray | None
    """float32: each token's log-probability under the frozen model, where the corpus has it; 0 where none is known."""
    rows: np.ndarray
    """Row numbers in the corpus, for whoever needs to look a row up."""
    row: np.ndarray
    """int64 (B, T): index into `rows` of the token's row; -1 for padding."""
    tokens: int
    """Tokens without padding."""


class Batches:
    """The batches of one rank. Raises DataError when nothing is left to train on."""

    def __init__(
        self,
        corpus: Corpus,
        weights: Weights,
        config: TrainConfig,
        *,
        normalise: str,
        smoothing: float = 0.0,
        seed: int,
        micro_batch: int,
        world: int = 1,
        rank: int = 0,
        flat: bool = False,
    ) -> None:
        """`flat` lays the bins of a packed micro-batch in one line, the only form in which FlashAttention packs."""
        self.corpus, self.weights, self.config, self.normalise = corpus, weights, config, normalise
        self.micro_batch, self.world, self.rank = micro_batch, world, rank
        self.flat = flat and config.packing
        full = corpus.lengths
        order = np.asarray(corpus.order)
        long = full[order] > config.max_len
        dropped = config.over_long == "drop"
        self.truncated = 0 if dropped else int(long.sum())
        self.dropped = int(long.sum()) if dropped else 0
        self.lengths = np.minimum(full, config.max_len)
        self.order = order[~long] if dropped else order
        self._taken = np.cumsum(~long) if dropped else np.arange(1, len(order) + 1)
        if not len(self.order):
            raise DataError(
                f"no row is left to train on: {self.dropped} of {len(order)} are longer than {config.max_len} tokens",
                remedy="raise max_len or truncate",
            )
        if corpus.referenced is not None:
            short = corpus.referenced[self.order] < self.lengths[self.order]
            if short.any():
                raise DataError(
                    f"{short.sum()} rows have the frozen model's log-probabilities for fewer tokens than are trained",
                    remedy="make them with the same max_len",
                )
        self.smoothing = np.nan_to_num(corpus.smoothing, nan=smoothing) if len(corpus.smoothing) else corpus.smoothing
        self.smoothed = bool(self.smoothing.any())
        if config.length_grouping:
            self.order = grouped(self.order, self.lengths, config.global_batch, seed)
        self.steps = -(-len(self.order) // config.global_batch)
        self.untrained: dict[int, int] = {}
        """By step, as far as prepared: rows of the global batch of which no token carries loss."""

    def rows(self, step: int) -> np.ndarray:
        """Row numbers of the global batch of 0-based `step`."""
        size = self.config.global_batch
        return self.order[step * size : (step + 1) * size]

    def steps_after(self, rows: int) -> int:
        """Optimiser steps after which the first `rows` rows of the plan have been trained on.

        The last of these batches may hold rows that come later. Length grouping moves rows within its window.
        """
        return -(-int(self._taken[rows - 1]) // self.config.global_batch)

    def row_weights(self, row: int) -> np.ndarray:
        """(T,) weights of a row after truncation. The first token has no prediction, hence weight 0."""
        corpus = self.corpus
        start = int(corpus.starts[row])
        part = slice(start, start + int(self.lengths[row]))
        own = float(corpus.weight[row])
        weights = self.weights(
            source=corpus.sources[int(corpus.source[row])],
            roles=corpus.roles[part],
            turns=corpus.turns[part],
            scale=None if corpus.scale is None else corpus.scale[part],
            weight=None if np.isnan(own) else own,
        )
        weights = np.array(weights, dtype=np.float32)
        weights[0] = 0
        return weights

    def micros(self, step: int) -> list[Micro]:
        """This rank's micro-batches; every rank has the same number, an empty one trains on nothing."""
        rows = self.rows(step)
        weights = [self.row_weights(int(row)) for row in rows]
        divisors = self._divisors(rows, weights)
        self.untrained[step] = sum(not w.any() for w in weights)
        lengths = self.lengths[rows]
        bins = (
            balance(lengths, self.config.max_len, self.world)
            if self.config.packing
            else [[i] for i in range(len(rows))]
        )
        sizes = np.array([lengths[bin_].sum() for bin_ in bins])
        chunks = deal(sizes, self.world, self.micro_batch)
        micros = []
        for chunk in chunks[self.rank :: self.world]:
            lines = [bins[i] for i in chunk]
            if self.flat:
                lines = [[i for line in lines for i in line]]
            micros.append(self._micro(lines, rows, weights, divisors))
        return micros

    def _divisors(self, rows: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
        """By what the weights of each row are divided."""
        sums = np.array([w.sum(dtype=np.float64) for w in weights])
        trained = sums > 0
        if self.normalise == "token":
            return np.full(len(sums), sums.sum() or 1.0)
        if self.normalise == "sum":
            return np.full(len(sums), max(1, trained.sum()))
        # A row's own weight is a factor of all its tokens and cancels in its mean, so it comes in here.
        own = np.nan_to_num(self.corpus.weight[rows].astype(np.float64), nan=1.0)
        return np.where(trained, sums * (own * trained).sum() / np.where(own > 0, own, 1), 1)

    def _micro(self, bins: list[list[int]], rows: np.ndarray, weights: list[np.ndarray], divisors: np.ndarray) -> Micro:
        lengths = self.lengths[rows]
        width = max([int(lengths[bin_].sum()) for bin_ in bins], default=2)
        shape = (max(1, len(bins)), width)
        ids, positions, source = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        share, weight = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
        smoothing = np.zeros(shape, dtype=np.float32) if self.smoothed else None
        reference = np.zeros(shape, dtype=np.float32) if self.corpus.reference is not None else None
        owner = np.full(shape, -1, dtype=np.int64)
        used: list[int] = []
        tokens = 0
        for line, bin_ in enumerate(bins):
            at = 0
            for i in bin_:
                row, size = int(rows[i]), int(lengths[i])
                start = int(self.corpus.starts[row])
                here = slice(at, at + size)
                ids[line, here] = self.corpus.ids[start : start + size]
                positions[line, here] = np.arange(size)
                weight[line, here] = weights[i]
                share[line, here] = weights[i] / divisors[i]
                source[line, here] = self.corpus.source[row]
                owner[line, here] = len(used)
                if smoothing is not None:
                    smoothing[line, here] = self.smoothing[row]
                if reference is not None and self.corpus.reference is not None:
                    reference[line, here] = np.nan_to_num(self.corpus.reference[start : start + size])
                used.append(row)
                at += size
            # What is left of the line counts as one more row of its own in a packed bin, and goes on with the
            # row's positions otherwise: transformers takes a restart of positions for the start of a row.
            positions[line, at:] = np.arange(width - at) + (0 if len(bin_) > 1 else at)
            tokens += at
        numbers = np.array(used, dtype=np.int64)
        return Micro(ids, positions, share, weight, source, smoothing, reference, numbers, owner, tokens)


def grouped(order: np.ndarray, lengths: np.ndarray, batch: int, seed: int) -> np.ndarray:
    """Inside each window of the plan: rows sorted by length, cut into batches, the batches shuffled.

    What remains below one batch at the end of the plan stays at the end, so the number of steps is the same.
    """
    out = order.copy()
    whole = len(order) // batch * batch
    for number, start in enumerate(range(0, whole, WINDOW * batch)):
        window = order[start : min(start + WINDOW * batch, whole)]
        batches = window[np.argsort(lengths[window], kind="stable")].reshape(-1, batch)
        stream(seed, "length_grouping", number).shuffle(batches)
        out[start : start + len(window)] = batches.reshape(-1)
    return out


def deal(sizes: np.ndarray, world: int, micro_batch: int) -> list[np.ndarray]:
    """Sequences dealt to `world * n` micro-batches, n as small as `micro_batch` allows; the i-th is of rank i % world.

    Sequences of like size stand together, so that the ranks' j-th micro-batches are alike and padding is little.
    """
    count = world * -(-len(sizes) // (world * micro_batch))
    return np.array_split(np.argsort(-sizes, kind="stable"), count)


def ahead(make: Callable[[int], Any], start: int, stop: int, depth: int = 2) -> Iterator[Any]:
    """`make(start)`, ..., `make(stop - 1)`, prepared by a thread up to `depth` items before they are asked for."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting = [pool.submit(make, i) for i in range(start, min(start + depth, stop))]
        for i in range(start, stop):
            item = waiting.pop(0).result()
            if i + depth < stop:
                waiting.append(pool.submit(make, i + depth))
            yield item
