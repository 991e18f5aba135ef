"""Near duplicates among 20,000 texts: against datasketch's MinHashLSH and rensa's own index, at the same parameters.

    python benchmarks/dedup.py

Texts are docstrings of the standard library, their blocks of words in other orders so that they stay different, and
2,000 of them again with one word replaced. All cut texts into the same word 5-grams with 128 permutations and 16 bands,
threshold 0.8; the cutting is in every time. `found`: planted pairs that were found.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from embedding import texts as docstrings
from side_by_side import clocks, compare, finish, machine, since

TEXTS, PLANTED, THRESHOLD = 20_000, 2_000, 0.8


def pool() -> list[str]:
    """`TEXTS` texts; text i of the last `PLANTED` is text i of the first ones with one word replaced."""
    base = [" ".join(text.split()[:120]) for text in docstrings(False) if len(text.split()) > 40]
    draw = np.random.default_rng(1)
    made = []
    for number in range(TEXTS - PLANTED):
        words = base[number % len(base)].split()
        # Another order of blocks of ten words: other 5-grams at the seams, and text of the same kind.
        blocks = [words[i : i + 10] for i in range(0, len(words), 10)]
        salted = [[f"n{number}x{i}", *blocks[j][1:]] for i, j in enumerate(draw.permutation(len(blocks)))]
        made.append(" ".join(word for block in salted for word in block))
    for text in made[:PLANTED]:
        words = text.split()
        words[int(draw.integers(len(words)))] = "replaced"
        made.append(" ".join(words))
    return made


def pairs_found(group: Iterable[int]) -> int:
    label = np.asarray(list(group))
    return int((label[:PLANTED] == label[TEXTS - PLANTED :]).sum())


def cuvee() -> None:
    from selection.near import near_groups

    made = pool()
    begin = clocks()
    group = near_groups(made, THRESHOLD)
    finish(**since(begin), found=pairs_found(group))


def datasketch() -> None:
    from datasketch import MinHash, MinHashLSH

    from selection.near import BANDS, PERMUTATIONS, _grams

    made = pool()
    begin = clocks()
    index = MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, PERMUTATIONS // BANDS))
    group = []
    grams = ([gram.encode() for gram in _grams(text)] for text in made)
    for number, sketch in enumerate(MinHash.generator(grams, num_perm=PERMUTATIONS)):
        like = [int(n) for n in index.query(sketch)]
        index.insert(str(number), sketch)
        group.append(group[min(like)] if like else number)
    finish(**since(begin), found=pairs_found(group))


def rensa() -> None:
    from rensa import RMinHash, RMinHashLSH

    from selection.near import BANDS, PERMUTATIONS, _grams

    made = pool()
    begin = clocks()
    index = RMinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS, num_bands=BANDS)
    group = []
    for number, text in enumerate(made):
        sketch = RMinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update(_grams(text))
        like = index.query(sketch)
        index.insert(number, sketch)
        group.append(group[min(like)] if like else number)
    finish(**since(begin), found=pairs_found(group))


CONTENDERS = {"cuvee": cuvee, "datasketch": datasketch, "rensa's index": rensa}


def head(rounds: int) -> list[str]:
    return [
        machine("rensa", "datasketch", "numpy"),
        f"{TEXTS:,} texts of up to 120 words, {PLANTED:,} of them near copies. datasketch and rensa's index keep every",
        f"candidate of a band; Cuvee compares the signatures of candidates besides. Best of {rounds} rounds.",
    ]


if __name__ == "__main__":
    compare(__file__, CONTENDERS, head, lambda record: {**record, "texts/s": TEXTS / record["seconds"]})
