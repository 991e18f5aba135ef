from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selection import greedy
from selection.greedy import deita, k_center, qdit, unit


def rows_of(n: int, dim: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def plain_k_center(rows: np.ndarray, budget: int) -> list[int]:
    exact = rows.astype(np.float64)
    order = [int(((exact - exact.mean(0)) ** 2).sum(1).argmin())]
    while len(order) < budget:
        near = ((exact[:, None] - exact[order][None]) ** 2).sum(-1).min(1)
        near[order] = -1
        order.append(int(near.argmax()))
    return order


def plain_deita(rows: np.ndarray, quality: np.ndarray, budget: int, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (-quality[i], i)):
        if len(kept) < budget and all(unit(rows)[i] @ unit(rows)[j] <= threshold for j in kept):
            kept.append(i)
    return kept


def plain_qdit(rows: np.ndarray, quality: np.ndarray, budget: int, alpha: float) -> list[int]:
    exact = unit(rows).astype(np.float64)
    covered, order = np.zeros(len(rows)), []
    for _ in range(budget):
        gain = np.maximum(exact @ exact.T - covered, 0).sum(1)
        value = (1 - alpha) * gain + alpha * quality
        value[order] = -np.inf
        order.append(int(value.argmax()))
        covered = np.maximum(covered, exact @ exact[order[-1]])
    return order


@pytest.mark.parametrize("batch", [2, 7, 512])
def test_k_center_is_the_farthest_first_traversal(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(greedy, "BATCH", batch)
    rows = rows_of(150)
    assert k_center(rows, 60).tolist() == plain_k_center(rows, 60)


def test_k_center_of_identical_rows_and_of_all() -> None:
    assert sorted(k_center(np.ones((5, 2), np.float32), 3).tolist()) == sorted({0, *k_center(np.ones((5, 2)), 3)})
    assert sorted(k_center(rows_of(20), 50).tolist()) == list(range(20))
    assert k_center(rows_of(20), 0).tolist() == []


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 80), st.integers(1, 40), st.floats(-0.5, 1.0), st.integers(0, 5))
def test_deita_is_the_plain_filter(n: int, budget: int, threshold: float, seed: int) -> None:
    rows = rows_of(n, dim=3, seed=seed)
    quality = np.random.default_rng(seed).integers(0, 5, n).astype(float)
    assert deita(rows, quality, budget, threshold).tolist() == plain_deita(rows, quality, budget, threshold)


def test_deita_across_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy, "BATCH", 7)
    rows, quality = rows_of(100, dim=3), np.random.default_rng(0).random(100)
    assert deita(rows, quality, 30, 0.8).tolist() == plain_deita(rows, quality, 30, 0.8)


def test_deita_of_identical_rows_keeps_one() -> None:
    rows = np.ones((5, 2), dtype=np.float32)
    assert deita(rows, np.array([1.0, 5, 2, 5, 3]), 3, 0.9).tolist() == [1]


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0])  # at 0 two rows that cover each other are a true tie
def test_qdit_is_the_plain_greedy(alpha: float) -> None:
    rows, quality = rows_of(90), np.random.default_rng(2).random(90) * 10
    assert qdit(rows, quality, 30, alpha).tolist() == plain_qdit(rows, quality, 30, alpha)


def test_qdit_covers_a_sample() -> None:
    rows = np.array([[1, 0], [0.9, 0.1], [0, 1]], dtype=np.float32)
    # only the third row counts, so the row that covers it comes first
    assert qdit(rows, np.zeros(3), 1, 0.0, np.array([2])).tolist() == [2]
    assert sorted(qdit(rows, np.zeros(3), 9, 0.0).tolist()) == [0, 1, 2]
