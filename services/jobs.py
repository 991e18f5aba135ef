"""Jobs of a Ray cluster, over its dashboard's address.

A job is a command that Ray runs on the head: here `cuvee run` on that cluster. Ray never takes a submission id twice,
so ids are `cuvee-<recipe hash>-<attempt>`: a live attempt of the same recipe is followed, an ended one gets the next
number, and continues from what is in the store.

The address executes code for whoever reaches it. Ray's token authentication is honoured as Ray does it: with
`RAY_AUTH_MODE=token` the token of `RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH` or `~/.ray/auth_token` is sent along.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from cuvee.errors import CuveeError, Unavailable, UserError
from services.groups import ENDED
from services.parcel import Parcel
from services.probe import findings
from services.redact import redact

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ANSWER = 10.0
"""Seconds in which a dashboard must answer."""
PATIENCE = 60.0
"""Seconds of silence after which a followed cluster counts as gone, and in which a new head gets ready."""
PROBE = 300.0
"""Seconds for the look from inside: the packages are sent first, and the driver starts."""
SETTLE = 1.5
"""Seconds in which Ray notices that a job has ended; one that is deleted before comes back as `FAILED`."""
_ID = re.compile(r"cuvee-([0-9a-f]{12})-(\d+)")
_TRIES = 20
_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_SIGN_IN = (
    "set RAY_AUTH_MODE=token, and put the cluster's token (`ray get-auth-token` on its head) into ~/.ray/auth_token, "
    "or name its file in RAY_AUTH_TOKEN_PATH"
)


def entrypoint(parcel: Parcel, overrides: Sequence[str], store: str) -> str:
    """The shell command of a job. Raises UserError when it would show a credential to all who see the job."""
    words = ["python", "-m", "services.cli", "run", parcel.recipe, "--store", store, "--address", "auto"]
    words += [word for profile in parcel.profiles for word in ("--profile", profile)]
    words += [word for setting in overrides for word in ("--set", setting)]
    command = shlex.join(words)
    if redact(command) != command:
        raise UserError(
            "a setting or address of this command holds a credential, and commands of jobs can be read by all",
            remedy="give it to the cluster's nodes as an environment variable",
        )
    folder = shlex.quote(parcel.start)
    return command if parcel.start == "." else f"mkdir -p {folder} && cd {folder} && {command}"


@dataclass(frozen=True)
class Order:
    """A job to be submitted. `hash` is the recipe's; `variables` are environment variables of the job."""

    hash: str
    recipe: str
    store: str
    command: str
    folder: Path
    packages: Sequence[Path]
    variables: Mapping[str, str] = field(default_factory=dict)


class Cluster:
    """The jobs of the cluster whose dashboard is at `address`.

    Raises UserError when nothing answers there, a token is missing, or another version of Ray runs.
    """

    _awake = False
    """Whether the head's agent has been given a job by this command."""

    def __init__(self, address: str, *, same_version: bool = False) -> None:
        self.address = address.rstrip("/") if "://" in address else f"http://{address.rstrip('/')}"
        if not self.address.startswith(("http://", "https://")):
            raise UserError(
                f"{address} is not the address of a Ray dashboard", remedy=f"write it like {DEFAULT_ADDRESS}"
            )
        found = self._version()
        with self._errors(), _hidden(_OVERRIDES):
            import ray
            from ray.job_submission import JobSubmissionClient

            # These modules set their own level when they are imported.
            for module in (
                "dashboard.modules.dashboard_sdk",
                "dashboard.modules.job.sdk",
                "_private.runtime_env.packaging",
            ):
                logging.getLogger(f"ray.{module}").setLevel(logging.WARNING)
            if same_version and found != ray.__version__:
                raise UserError(
                    f"the cluster runs Ray {found}, and here is Ray {ray.__version__}",
                    remedy=f"install ray=={ray.__version__} on every node of the cluster",
                )
            self.client: Any = JobSubmissionClient(self.address)

    def _version(self) -> str:
        """Asked by ourselves first: Ray's client waits without limit for an address that drops what it is sent."""
        import httpx
        from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

        try:
            headers = get_auth_headers_if_auth_enabled({})
            answer = httpx.get(f"{self.address}/api/version", headers=headers, timeout=ANSWER)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _silent(self.address, str(error)) from error
        if answer.status_code in (401, 403):
            raise UserError(f"{self.address} asks for a token (status {answer.status_code})", remedy=_SIGN_IN)
        try:
            return str(answer.json()["ray_version"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"what answers at {self.address} is no Ray dashboard", remedy="the dashboard's port is 8265 by default"
            ) from error

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise UserError(f"{self.address} refuses the token, or there is none", remedy=_SIGN_IN) from error
        except (ConnectionError, requests.exceptions.RequestException) as error:
            raise _silent(self.address, str(error)) from error
        except RuntimeError as error:
            raise Unavailable(f"the cluster could not do that: {error}") from error

    # Jobs

    def live(self, order: Order) -> dict[str, Any] | None:
        """The attempt of the recipe that has not ended, if there is one.

        A head that was killed and started again on its state still says `RUNNING` of the jobs that died with it, until
        its agent is given another job. So an attempt that seems to be live is looked at again after one.
        """
        found = max(self._attempts(order), key=number, default=None)
        if found and found["status"] not in ENDED and not self._awake:
            self._wake()
            found = max(self._attempts(order), key=number, default=None)
        return found if found and found["status"] not in ENDED else None

    def _attempts(self, order: Order) -> list[dict[str, Any]]:
        return [job for job in self.jobs() if job["job"].startswith(f"cuvee-{order.hash[:12]}-")]

    def _wake(self) -> None:
        """Run a job that does nothing."""
        self._awake = True
        name = f"cuvee-wake-{uuid4().hex[:12]}"
        self._start(entrypoint="true", submission_id=name)
        with self._errors():
            self._wait(name, PATIENCE)
        self._forget(name)

    def _wait(self, name: str, patience: float) -> None:
        """Until the job has ended, so many seconds at most."""
        deadline = time.monotonic() + patience
        while str(self.client.get_job_status(name)) not in ENDED and time.monotonic() < deadline:
            time.sleep(0.5)

    def _forget(self, name: str) -> None:
        """Delete an ended job of which nobody wants to hear."""
        time.sleep(SETTLE)
        with suppress(RuntimeError):
            self.client.delete_job(name)

    def submit(self, order: Order) -> tuple[str, bool]:
        """(submission id, whether it is new): a live attempt of the same recipe is not started twice."""
        base, taken = f"cuvee-{order.hash[:12]}", 0
        for _ in range(_TRIES):
            if last := self.live(order):
                if last["store"] != order.store:
                    raise UserError(
                        f"{last['job']} runs this recipe into the store {last['store']}",
                        remedy=f"wait for it, or end it with `cuvee stop {last['job']}`",
                    )
                return str(last["job"]), False
            taken = max(taken, *map(number, self._attempts(order)), 0) + 1
            try:
                return self._submit(order, f"{base}-{taken}"), True
            except Unavailable as error:
                # Another command was quicker, or the job was deleted: Ray keeps an id for ever.
                if "already exists" not in str(error):
                    raise
        raise Unavailable(f"no free submission id after {base}-{taken}")

    def _submit(self, order: Order, name: str) -> str:
        metadata = {"cuvee.recipe": order.recipe, "cuvee.hash": order.hash, "cuvee.store": order.store}
        environment: dict[str, Any] = {"working_dir": str(order.folder), "env_vars": dict(order.variables)}
        if order.packages:  # Ray cannot set up an empty list
            environment["py_modules"] = [str(package) for package in order.packages]
        return self._start(entrypoint=order.command, submission_id=name, runtime_env=environment, metadata=metadata)

    def _start(self, **job: Any) -> str:
        """Give Ray a job, once it takes any. Raises Unavailable when it does not."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with self._errors():
                    return str(self.client.submit_job(**job))
            except Unavailable as error:
                # The dashboard of a head that has just been started answers before its agent can take a job.
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def probe(self, order: Order, asked: Mapping[str, Any], patience: float = PROBE) -> list[str]:
        """What stands against the job, seen from the cluster (`services.probe`). Raises Unavailable when that fails."""
        name = f"cuvee-probe-{order.hash[:12]}-{uuid4().hex[:8]}"
        command = shlex.join(["python", "-m", "services.probe", json.dumps(dict(asked))])
        folder = shlex.quote(str(asked.get("start", ".")))
        looking = replace(order, command=f"mkdir -p {folder} && cd {folder} && {command}")
        self._submit(looking, name)
        with self._errors():
            try:
                self._wait(name, patience)
                log = str(self.client.get_job_logs(name))
                told = self.client.get_job_info(name)
            finally:
                with suppress(RuntimeError):
                    self.client.stop_job(name)
        found = findings(log)
        if found is None:
            said = redact((log.strip() or told.message or "nothing").splitlines()[-1])
            raise Unavailable(
                f"the cluster could not be looked at from inside: {said}", remedy="--no-check submits all the same"
            )
        self._forget(name)
        return found

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs that `submit` started, oldest first."""
        with self._errors():
            found = [record(job) for job in self.client.list_jobs() if _ID.fullmatch(job.submission_id or "")]
        return sorted(found, key=lambda job: (job["started"] or 0, number(job)))

    def job(self, word: str) -> dict[str, Any]:
        """The job of that id, or the last attempt of those whose id (with or without `cuvee-`) begins so."""
        found = [job for job in self.jobs() if job["job"].startswith((word, f"cuvee-{word}"))]
        exact = [job for job in found if job["job"] == word]
        bases = {job["job"].rpartition("-")[0] for job in found}
        if not exact and len(bases) != 1:
            raise UserError(f"{len(bases)} recipes have a job that matches {word!r}", remedy="see `cuvee jobs`")
        return max(exact or found, key=number)

    def logs(self, name: str) -> str:
        """All that a job has printed so far."""
        with self._errors():
            return str(self.client.get_job_logs(name))

    def stop(self, name: str, patience: float = 30.0) -> dict[str, Any]:
        """End a job and wait until it has ended. What it has finished stays in the store."""
        with self._errors():
            self.client.stop_job(name)
        deadline = time.monotonic() + patience
        while (job := self.job(name))["status"] not in ENDED:
            if time.monotonic() > deadline:
                raise Unavailable(f"{name} is still {job['status']} after {patience:g} s", remedy="try again")
            time.sleep(0.5)
        return job

    def follow(self, name: str, write: Callable[[str], None]) -> dict[str, Any]:
        """Hand on what a job prints until it has ended; a connection that breaks is made again.

        It may be the head that broke off: a job that died with it is only known to have ended once it is woken.
        """
        import aiohttp

        seen, answered, lost = 0, time.monotonic(), False

        async def tail() -> None:
            nonlocal seen
            place = 0  # a new connection starts from the beginning of the log
            async for text in self.client.tail_job_logs(name):
                fresh = text[max(0, seen - place) :]
                place += len(text)
                if fresh:
                    write(fresh)
                    seen = place

        while True:
            try:
                asyncio.run(tail())
                job = self.job(name)
                if lost and job["status"] not in ENDED:
                    self._wake()
                    job = self.job(name)
                lost = False
            except (CuveeError, RuntimeError, OSError, aiohttp.ClientError) as error:
                lost = True
                if time.monotonic() - answered > PATIENCE:
                    raise Unavailable(
                        f"{self.address} has not answered for {PATIENCE:g} s: {error}",
                        remedy="the job may go on; submit again to follow or continue it",
                    ) from error
            else:
                if job["status"] in ENDED:
                    return job
                answered = time.monotonic()
            time.sleep(1.0)


def record(job: Any) -> dict[str, Any]:
    """What is said of a job; times are seconds since the epoch."""
    said = job.metadata or {}
    started, ended = (value / 1000 if value else None for value in (job.start_time, job.end_time))
    return {
        "job": job.submission_id,
        "status": str(job.status),
        "recipe": said.get("cuvee.recipe"),
        "hash": said.get("cuvee.hash"),
        "store": said.get("cuvee.store"),
        "started": started,
        "ended": ended,
        "seconds": round((ended or time.time()) - started, 1) if started else None,
        "message": job.message,
        "exit_code": exit_code(str(job.status), job.driver_exit_code),
        "command": redact(job.entrypoint),
    }


def exit_code(status: str, code: int | None) -> int | None:
    """That of the job's command; 130 for a job that was stopped; None while it is live."""
    if status not in ENDED:
        return None
    return {"SUCCEEDED": 0, "STOPPED": 130}.get(status, code if code is not None and code > 0 else 1)


def number(job: Mapping[str, Any]) -> int:
    """The attempt."""
    return int(str(job["job"]).rpartition("-")[2])


def check_store(url: str) -> None:
    """UserError when a cluster cannot mean the same store: a relative path."""
    if not url.startswith("s3://") and not Path(url).is_absolute():
        raise UserError(
            f"the store {url!r} is a place of this machine", remedy="give --store s3://… or an absolute path there"
        )


def _silent(address: str, why: str) -> UserError:
    return UserError(
        f"no Ray dashboard answers at {address}: {why}",
        remedy="is the cluster up, and the tunnel open (`ray dashboard cluster.yaml`)? docs/cluster.md has more",
    )


@contextmanager
def _hidden(names: Sequence[str]) -> Iterator[None]:
    """Without these environment variables: Ray's client takes them before the address that it is given."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
