"""Numeric judge: speed of the two paths, agreement with hand-labelled pairs, and math-verify on the same pairs.

    python benchmarks/judges.py [--pairs N]

Rows are written like GSM8K's, by template, so that nothing has to be downloaded. Speed is given on the
clock and per second of processor time, which tells more when the machine is busy.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from side_by_side import RESULTS, machine, table

from cuvee.protocols import Case, Label
from evaluation.judges import JudgeConfig, build
from evaluation.judges.calibrate import calibrate
from evaluation.judges.symbolic import Symbolic

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests/evaluation/data"
PAIRS = DATA / "numeric_pairs.jsonl"
FIRST_SEEN = """Pairs written and labelled later, before the judge had seen any of them, and its first answers:
  set 1, formats of real models (185 pairs): accuracy 0.843, kappa 0.63, 2 false accepts, 27 false rejects, 1 unsure;
  set 2, written after that to be hard (115 pairs): 0.800, kappa 0.52, 4 false accepts, 17 false rejects, 2 unsure.
What was learnt from both went into the judge, so that today's figures, below, are no longer independent of them.
"""


def worked(count: int) -> list[tuple[str, str, str]]:
    """(answer with a final sentence, answer that ends in prose, gold with calculator marks) of sums in three steps."""
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        a, b, c = (draw.randint(2, 900) for _ in range(3))
        text = (
            f"At the market Ana buys {a} apples in the morning and {b} apples in the afternoon.\n"
            f"Together these are {a} + {b} = {{1}}{a + b} apples, which she packs into {c} boxes of equal size.\n"
            f"At {c} cents each she pays {a + b} * {c} = {{2}}{(a + b) * c} cents for all of them in the end."
        )
        plain = text.replace("{1}", "").replace("{2}", "")
        marked = text.replace("{1}", f"<<{a}+{b}={a + b}>>").replace("{2}", f"<<{a + b}*{c}={(a + b) * c}>>")
        end = (a + b) * c
        rows.append((f"{plain}\nThe answer is {end}.", plain, f"{marked}\n#### {end}"))
    return rows


def speed(name: str, cases: list[Case]) -> dict[str, object]:
    judge = build(JudgeConfig.parse("numeric"))
    best_cpu = best_wall = float("inf")
    for _ in range(5):
        wall, cpu = time.perf_counter(), time.process_time()
        verdicts = judge(cases)
        best_cpu = min(best_cpu, time.process_time() - cpu)
        best_wall = min(best_wall, time.perf_counter() - wall)
    return {
        "pairs": name,
        "pairs/s": len(cases) / best_wall,
        "per processor second": len(cases) / best_cpu,
        "equivalent": sum(v.label is Label.EQUIVALENT for v in verdicts),
    }


def later() -> str:
    """Agreement with the pairs that were labelled before the judge saw them, then and now."""
    rows = []
    written = [
        json.loads(line) for line in (DATA / "numeric_pairs_later.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    for number in (1, 2):
        pairs = [row for row in written if row["set"] == number]
        cases = [Case(str(i), "", row["prediction"], (row["reference"],)) for i, row in enumerate(pairs)]
        people = [row["label"] == "equivalent" for row in pairs]
        found, _ = calibrate(build(JudgeConfig.parse("numeric")), cases, people)
        rows.append(
            {"set": number, "pairs": found.rows, "accuracy": found.accuracy_all, "kappa": found.kappa,
             "false accepts": found.false_accepts, "false rejects": found.false_rejects,
             "undecided": found.rows - found.decided}
        )  # fmt: skip
    return f"{FIRST_SEEN}\n{table(rows)}\n"


def agreement() -> str:
    """The judge and math-verify alone on the hand-labelled pairs."""
    labelled = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    hand = [Case(str(i), "", row["prediction"], (row["reference"],)) for i, row in enumerate(labelled)]
    people = [row["label"] == "equivalent" for row in labelled]
    found, _ = calibrate(build(JudgeConfig.parse("numeric")), hand, people)
    with Symbolic(2.0) as compare:
        compare([("1", "1")])
        start = time.perf_counter()
        outcomes = compare([(case.references[0], case.prediction) for case in hand])
        seconds = time.perf_counter() - start
    alike = [outcome[0] is True for outcome in outcomes]
    right = sum(a == b for a, b in zip(alike, people, strict=True))
    accepted = sum(a and not b for a, b in zip(alike, people, strict=True))
    rows = [
        {"judge": "numeric", "accuracy": found.accuracy_all, "false accepts": found.false_accepts,
         "false rejects": found.false_rejects, "undecided": found.rows - found.decided},
        {"judge": "math-verify alone", "accuracy": right / len(hand), "false accepts": accepted,
         "false rejects": sum(b and a is False for (a, _), b in zip(outcomes, people, strict=True)),
         "undecided": sum(a is None for a, _ in outcomes)},
    ]  # fmt: skip
    return (
        f"{len(hand)} hand-labelled pairs, {sum(people)} equivalent. The judge was written against them, math-verify "
        f"was not, and made {len(hand) / seconds:.0f} pairs/s.\n\n{table(rows)}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=50_000)
    count = parser.parse_args().pairs
    rows = worked(count)
    sentence = [Case(str(i), "", text, (gold,)) for i, (text, _, gold) in enumerate(rows)]
    marked = [Case(c.id, "", c.references[0], c.references) for c in sentence]
    bare = [
        Case(c.id, "", gold.rpartition(" ")[2], (gold.rpartition(" ")[2],)) for c in sentence for gold in c.references
    ]
    prose = [Case(str(i), "", text, (gold,)) for i, (_, text, gold) in enumerate(rows)]
    money = [Case(c.id, "", f"That makes ${int(c.id) / 100:,.2f}", (f"{int(c.id) / 100:.2f}",)) for c in sentence]
    speeds = [
        speed("required sentence, #### gold", sentence),
        speed("#### on both sides", marked),
        speed("two plain numbers", bare),
        speed("last number in prose", prose),
        speed("dollars with cents, short text", money),
    ]
    text = f"{machine('math-verify')}\n{count:,} pairs, best of 5.\n\n{table(speeds)}\n\n{agreement()}\n{later()}"
    print(text)
    (RESULTS / "judges.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
