from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

from services.journal import Journal, forget_files, journals


def test_events_come_back_from_where_they_were_marked(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a")
    for n in range(3):
        journal.append({"n": n, "text": "ü\n"})
    places = [place for place, _ in journal.events()]
    journal.mark(places[0])
    again = Journal(tmp_path, "a")
    assert [event["n"] for _, event in again.events(again.sent) if event] == [1, 2]
    assert again.behind
    again.mark(places[-1])
    assert not journal.behind


def test_a_torn_line_is_skipped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a")
    journal.append({"n": 0})
    with journal.path.open("ab") as file:
        file.write(b'{"n": 1, "te')
    assert [event for _, event in journal.events()] == [{"n": 0}]  # it may still be being written
    journal.append({"n": 2})
    assert [event for _, event in journal.events()] == [{"n": 0}, None, {"n": 2}]


def write(folder: Path, name: int) -> None:
    journal = Journal(folder, "a")
    for n in range(200):
        journal.append({"who": name, "n": n, "pad": "x" * 5000})


def test_several_processes_write_whole_lines(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write, args=(tmp_path, i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    events = [event for _, event in Journal(tmp_path, "a").events()]
    assert None not in events
    assert [[e["n"] for e in events if e and e["who"] == i] for i in range(3)] == [list(range(200))] * 3


def test_copies_of_artifacts_stay_while_they_are_young(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a")
    old, young = journal.keep(b"old"), journal.keep(b"young")
    assert journal.keep(b"young") == young
    os.utime(journal.kept(old), (1, 1))
    forget_files(tmp_path)
    assert not journal.kept(old).exists()
    assert journal.kept(young).read_bytes() == b"young"


def test_journals_are_found_without_what_was_refused(tmp_path: Path) -> None:
    assert journals(tmp_path / "none") == []
    Journal(tmp_path, "a").append({})
    Journal(tmp_path, "a").refuse({"kind": "metrics"}, "because")
    assert [j.name for j in journals(tmp_path)] == ["a"]
