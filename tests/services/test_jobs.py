"""Attempts, logs that break off, and answers that are none; the real head is in `test_jobs_cluster`."""

from __future__ import annotations

import http.server
import json
import platform
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cuvee.errors import Unavailable, UserError
from services import jobs, probe
from services.jobs import Cluster, Order, check_store, entrypoint, exit_code, record
from services.parcel import Parcel

ORDER = Order("0123456789abcdef", "quick", "s3://bucket/a", "cuvee run", Path("."), [])
BASE = "cuvee-0123456789ab"


def details(name: str | None, status: str = "SUCCEEDED", **more: Any) -> SimpleNamespace:
    known = {
        "submission_id": name,
        "status": status,
        "metadata": {"cuvee.store": ORDER.store, "cuvee.recipe": "quick"},
        "start_time": 1_000_000,
        "end_time": None if status == "RUNNING" else 1_030_000,
        "message": "",
        "driver_exit_code": None,
        "entrypoint": "cuvee run",
    }
    return SimpleNamespace(**{**known, **more})


class Client:
    """Ray's client with the jobs that it is given. `hidden`: ids that were deleted; `breaks`: where the log breaks."""

    def __init__(self, *known: SimpleNamespace, hidden: tuple[str, ...] = ()) -> None:
        self.known, self.hidden = list(known), hidden
        self.lost: set[str] = set()
        self.log: list[list[str]] = []

    def list_jobs(self) -> list[SimpleNamespace]:
        return self.known

    def get_job_status(self, name: str) -> str:
        return "SUCCEEDED"

    def delete_job(self, name: str) -> None:
        pass

    def submit_job(self, *, submission_id: str, **more: Any) -> str:
        if more["entrypoint"] == "true":  # with its first job the agent looks after those of before
            for job in self.known:
                job.status = "FAILED" if job.submission_id in self.lost else job.status
            return submission_id
        if submission_id in self.hidden or any(job.submission_id == submission_id for job in self.known):
            raise RuntimeError(f"Job with submission_id {submission_id} already exists.")
        self.known.append(details(submission_id, "RUNNING", metadata=more["metadata"]))
        return submission_id

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        parts = self.log.pop(0)
        for part in parts:
            if part == "break":
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield part


def cluster(client: Client) -> Cluster:
    made = Cluster.__new__(Cluster)
    made.address, made.client = "http://head:8265", client
    return made


def test_the_first_attempt_and_the_next() -> None:
    client = Client(details(None), details("raysubmit_1"), details("cuvee-ffffffffffff-7"))
    assert cluster(client).submit(ORDER) == (f"{BASE}-1", True)
    client.known[-1].status = "FAILED"
    assert cluster(client).submit(ORDER) == (f"{BASE}-2", True)
    assert cluster(client).submit(ORDER) == (f"{BASE}-2", False)


def test_a_job_that_died_with_its_head_is_not_followed() -> None:
    client = Client(details(f"{BASE}-1", "RUNNING", metadata={"cuvee.store": ORDER.store}))
    client.lost = {f"{BASE}-1"}
    assert cluster(client).live(ORDER) is None
    assert cluster(client).submit(ORDER) == (f"{BASE}-2", True)
    assert cluster(client).submit(ORDER) == (f"{BASE}-2", False)


def test_attempts_are_numbers() -> None:
    client = Client(details(f"{BASE}-10"), details(f"{BASE}-9"))
    assert cluster(client).submit(ORDER) == (f"{BASE}-11", True)


def test_an_id_that_was_deleted_is_passed_over() -> None:
    assert cluster(Client(hidden=(f"{BASE}-1", f"{BASE}-2"))).submit(ORDER) == (f"{BASE}-3", True)


def test_a_head_that_has_just_started_gets_time(monkeypatch: pytest.MonkeyPatch) -> None:
    client, answers = Client(), [RuntimeError("status code 500: No available agent to submit job")] * 3
    submit = client.submit_job

    def later(**words: Any) -> str:
        if answers:
            raise answers.pop()
        return submit(**words)

    monkeypatch.setattr(client, "submit_job", later)
    monkeypatch.setattr("services.jobs.time.sleep", lambda seconds: None)
    assert cluster(client).submit(ORDER) == (f"{BASE}-1", True)
    assert not answers
    answers += [RuntimeError("No available agent to submit job")] * 3  # also for the job that wakes it
    assert cluster(client).submit(ORDER) == (f"{BASE}-1", False)
    assert not answers
    answers += [RuntimeError("No available agent to submit job")] * 1000
    monkeypatch.setattr("services.jobs.PATIENCE", 0.0)
    with pytest.raises(Unavailable, match="No available agent"):
        cluster(client)._submit(ORDER, f"{BASE}-9")


def test_a_live_attempt_into_another_store_is_refused() -> None:
    client = Client(details(f"{BASE}-1", "RUNNING", metadata={"cuvee.store": "s3://bucket/b"}))
    with pytest.raises(UserError, match=r"into the store s3://bucket/b \(.*cuvee stop"):
        cluster(client).submit(ORDER)


def test_jobs_are_found_by_the_beginning_of_their_id() -> None:
    client = Client(details(f"{BASE}-1"), details(f"{BASE}-2"), details("cuvee-0199999999ab-1"))
    made = cluster(client)
    assert made.job("0123")["job"] == f"{BASE}-2"
    assert made.job(f"{BASE}-1")["job"] == f"{BASE}-1"
    for word in ("cuvee-01", "nothing"):
        with pytest.raises(UserError, match="recipes have a job"):
            made.job(word)


def test_a_log_that_breaks_off_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    client = Client(details(f"{BASE}-1", "FAILED", driver_exit_code=2))
    client.log = [["one\ntw", "break"], ["break"], ["one", "\ntwo\n", "three\n"]]
    written: list[str] = []
    found = cluster(client).follow(f"{BASE}-1", written.append)
    assert "".join(written) == "one\ntwo\nthree\n"
    assert found["exit_code"] == 2


def test_a_job_that_died_with_its_head_while_it_was_followed_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    client = Client(details(f"{BASE}-1", "RUNNING"))
    client.lost = {f"{BASE}-1"}
    client.log = [["one\n", "break"], ["one\n"]]
    written: list[str] = []
    assert cluster(client).follow(f"{BASE}-1", written.append)["status"] == "FAILED"
    assert written == ["one\n"]


def test_a_cluster_that_is_gone_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 25))
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(jobs.time, "monotonic", lambda: float(next(now)))
    client = Client(details(f"{BASE}-1", "RUNNING"))
    client.log = [["break"]] * 5
    with pytest.raises(Unavailable, match="submit again"):
        cluster(client).follow(f"{BASE}-1", lambda text: None)


def test_exit_codes() -> None:
    assert [exit_code("RUNNING", None), exit_code("SUCCEEDED", 0), exit_code("STOPPED", -15)] == [None, 0, 130]
    # Killed by a signal, or never started: our fault until known better.
    assert [exit_code("FAILED", 2), exit_code("FAILED", -9), exit_code("FAILED", None)] == [2, 1, 1]


def test_records_say_times_in_seconds() -> None:
    found = record(details(f"{BASE}-1"))
    assert (found["started"], found["ended"], found["seconds"]) == (1000.0, 1030.0, 30.0)
    assert record(details(f"{BASE}-1", start_time=None))["seconds"] is None


def parcel(start: str = ".") -> Parcel:
    return Parcel(Path("work"), (), start, "recipes/my recipe.yaml", ("p/cpu.yaml",), (), ())


def test_the_command_of_a_job() -> None:
    assert entrypoint(parcel(), ["train.lr=1e-5"], "s3://b/x") == (
        "python -m services.cli run 'recipes/my recipe.yaml' --store s3://b/x --address auto --profile p/cpu.yaml "
        "--set train.lr=1e-5"
    )
    assert entrypoint(parcel("a b"), [], "/s").startswith("mkdir -p 'a b' && cd 'a b' && python -m")


def test_a_command_with_a_credential_is_refused() -> None:
    with pytest.raises(UserError, match="holds a credential"):
        entrypoint(parcel(), ["tracking=https://user:password@host"], "/s")


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_what_answers_must_be_rays_dashboard_of_this_version() -> None:
    with answering(200, "hello") as address, pytest.raises(UserError, match="is no Ray dashboard"):
        Cluster(address)
    with answering(401, "Unauthorized") as address, pytest.raises(UserError, match=r"asks for a token.*RAY_AUTH_MODE"):
        Cluster(address)
    version = json.dumps({"version": "4", "ray_version": "2.9.0", "ray_commit": "", "session_name": ""})
    with answering(200, version) as address, pytest.raises(UserError, match=r"runs Ray 2.9.0, .*install ray=="):
        Cluster(address, same_version=True)


def test_an_address_that_does_not_answer() -> None:
    with answering(200, "") as address:
        pass
    with pytest.raises(UserError, match=r"no Ray dashboard answers.*ray dashboard cluster.yaml"):
        Cluster(address)
    with pytest.raises(UserError, match="write it like http://"):
        Cluster("ray://head:10001")


def test_the_address_that_is_given_is_the_one_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own client would take the one in the environment."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    version = json.dumps({"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""})
    with answering(200, version) as address:
        assert Cluster(address, same_version=True).client.get_address() == address


def test_a_relative_store_is_nobodys() -> None:
    with pytest.raises(UserError, match="is a place of this machine"):
        check_store("cuvee-store")
    check_store("/shared/store")
    check_store("s3://bucket/x")


def test_what_a_node_cannot_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with answering(200, "OK") as address:
        assert probe.tracking_fault(address) == ""
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    assert "refused" in probe.tracking_fault(address)
    assert probe.tracking_fault("sqlite:////shared/mlflow.db") == ""
    assert "endpoint" in probe.store_fault("s3://bucket/x")
    (tmp_path / "file").write_text("")
    assert "file" in probe.store_fault(str(tmp_path / "file" / "store"))
    assert probe.store_fault(str(tmp_path / "store")) == ""


def test_versions_are_compared_where_both_sides_have_them() -> None:
    ours = {"python": "3.11", "ray": "2.60.0", "vllm": "0.32.0"}
    assert probe.compare(ours, {"python": "3.11", "ray": "2.60.0", "deepspeed": "0.19.8"}) == []
    assert probe.compare(ours, {"python": "3.12", "ray": "2.60.0", "vllm": "0.31.0"}) == [
        "python 3.12 there and 3.11 here",
        "vllm 0.31.0 there and 0.32.0 here",
    ]
    assert probe.versions()["python"] == ".".join(platform.python_version_tuple()[:2])
    assert "+" not in probe.versions()["torch"]


def test_the_findings_are_the_last_line_of_a_probe() -> None:
    assert probe.findings("noise\n" + probe.MARK + '["no store"]\nmore') == ["no store"]
    assert probe.findings("Traceback") is None
