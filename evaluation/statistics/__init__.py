"""Intervals, paired comparisons, noise of seeds, and what a number of items can show: plain functions.

The unit decides the function: items for a claim about one model (`wilson`, `bootstrap_mean`, `clustered_mean`,
`paired`, `compare`), seeds for a claim about a method (`paired_t`, `variance_components`, `noise`). Both follow
E. Miller, "Adding error bars to evals" (arXiv 2411.00640): pair what can be paired, cluster what is clustered.
"""

from evaluation.statistics.intervals import Interval, bootstrap_mean, clustered_mean, wilson
from evaluation.statistics.noise import Noise, Part, noise
from evaluation.statistics.paired import McNemar, Paired, compare, holm, mcnemar, paired
from evaluation.statistics.power import minimum_detectable
from evaluation.statistics.retention import retention_drop, retention_drop_items
from evaluation.statistics.seeds import Component, Components, PairedT, paired_t, variance_components

__all__ = [
    "Component",
    "Components",
    "Interval",
    "McNemar",
    "Noise",
    "Paired",
    "PairedT",
    "Part",
    "bootstrap_mean",
    "clustered_mean",
    "compare",
    "holm",
    "mcnemar",
    "minimum_detectable",
    "noise",
    "paired",
    "paired_t",
    "retention_drop",
    "retention_drop_items",
    "variance_components",
    "wilson",
]
