"""Content-addressed artifacts.

An artifact's address is a hash of everything that decides its content (see `step_key`) and of nothing else, so that
the same question is computed once, by whoever asks first, on whatever machine. It appears whole or not at all: an
attempt's files are made durable under their own name, and one conditional write of `_DONE.json` makes that attempt
the artifact. Readers go only through `_DONE.json`. Unfinished state (checkpoints, open shards) lives in `work/<key>`
and survives attempts.

    artifacts/<key>/_DONE.json, artifacts/<key>/<attempt>/…
    work/<key>/…        leases/<key>.json        runs/<name>.json        accepted.json
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuvee.errors import UserError
from services import lease as leases
from services.objects import ABSENT, Conflict, LocalObjects, open_objects


@dataclass(frozen=True)
class Done:
    """A finished artifact: its record, as written when it was published."""

    key: str
    attempt: str
    step: str
    info: Mapping[str, Any]
    inputs: Mapping[str, str]
    seconds: float
    made: float


def step_key(
    step: str, version: str, config: Mapping[str, Any], inputs: Mapping[str, str], data: str, seed: int | None
) -> str:
    """`<step>-<32 hex digits>`. `config`: what changes the result, with every `auto` resolved; `inputs`: keys by
    name; `data`: digest of outside data or model; `seed`: only if the step draws."""
    question = {"step": step, "version": version, "config": config, "inputs": dict(inputs), "data": data, "seed": seed}
    text = json.dumps(question, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return f"{step}-{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


class Store:
    """A store at a folder or `s3://bucket/prefix`."""

    def __init__(self, url: str) -> None:
        self.objects = open_objects(url)
        self.url = self.objects.root
        if isinstance(self.objects, LocalObjects):
            self.scratch = Path(self.url)
        else:
            base = os.environ.get("CUVEE_CACHE") or str(Path(tempfile.gettempdir()) / f"cuvee-cache-{os.getuid()}")
            self.scratch = Path(base) / hashlib.blake2b(self.url.encode(), digest_size=8).hexdigest()
        self._done: dict[str, Done] = {}

    # Reading

    def done(self, key: str) -> Done | None:
        """The artifact's record, or None while it does not exist."""
        if key not in self._done:
            found = self.objects.get(f"artifacts/{key}/_DONE.json")
            if not found:
                return None
            self._done[key] = Done(**json.loads(found[0]))
        return self._done[key]

    def local(self, key: str) -> Path:
        """The artifact's files on this node (engines need paths); a copy when the store is remote."""
        done = self.done(key)
        if done is None:
            raise KeyError(key)
        return self.objects.fetch(f"artifacts/{key}/{done.attempt}", self.scratch / "artifacts" / key / done.attempt)

    def where(self, key: str) -> str:
        """The artifact's address, for people and for MLflow."""
        done = self.done(key)
        return f"{self.url}/artifacts/{key}/{done.attempt}" if done else ""

    def find(self, prefix: str) -> str:
        """The one finished key that starts with `prefix` (or has it as its hash). UserError when none or many do."""
        keys = [k for k in self.objects.children("artifacts") if k.startswith(prefix) or k.split("-")[-1] == prefix]
        found = [k for k in keys if self.done(k)]
        if len(found) != 1:
            raise UserError(f"{len(found)} artifacts match {prefix!r}", remedy="see `cuvee store list`")
        return found[0]

    # Writing

    def acquire(self, key: str) -> leases.Lease | None:
        """The right to make this artifact, or None while another runner has it."""
        self.check_writable()
        return leases.acquire(self.objects, key)

    def check_writable(self) -> None:
        """UserError when the store cannot be written."""
        if isinstance(self.objects, LocalObjects):
            folder = Path(self.url)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                raise UserError(
                    f"the store {self.url} cannot be written: {error.strerror}", remedy="give another with --store"
                ) from error

    def work(self, key: str) -> Path:
        """The folder of unfinished state. On an object store it is a copy that `save_work` brings back."""
        folder = self.scratch / "work" / key
        if not isinstance(self.objects, LocalObjects) and not folder.exists() and self.objects.names(f"work/{key}"):
            self.objects.fetch(f"work/{key}", folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def save_work(self, key: str) -> None:
        """Bring the finished files of the work folder to the object store; nothing to do on a local one."""
        if isinstance(self.objects, LocalObjects):
            return
        folder = self.scratch / "work" / key
        kept = {name.removeprefix(f"work/{key}/") for name in self.objects.names(f"work/{key}")}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            # Steps write shards and checkpoints under a temporary name and rename them, so a name is final.
            if path.is_file() and name not in kept and not name.endswith(".tmp"):
                self.objects.put(f"work/{key}/{name}", path.read_bytes(), version=ABSENT)

    def attempt_folder(self, lease: leases.Lease) -> Path:
        """An empty folder on the store's file system for the files of this attempt."""
        folder = self.scratch / "attempts" / f"{lease.key}.{lease.fence}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def publish(
        self, lease: leases.Lease, folder: Path, *, info: Mapping[str, Any], inputs: Mapping[str, str], seconds: float
    ) -> Done:
        """Make the attempt's files the artifact. Raises LeaseLost when another runner took the key meanwhile."""
        lease.check()
        key, attempt = lease.key, f"a{lease.fence}"
        self.objects.delete(f"artifacts/{key}/{attempt}")
        self.objects.upload(folder, f"artifacts/{key}/{attempt}")
        done = Done(key, attempt, key.rsplit("-", 1)[0], dict(info), dict(inputs), round(seconds, 3), time.time())
        record = json.dumps(done.__dict__, indent=1, default=str).encode()
        try:
            self.objects.put(f"artifacts/{key}/_DONE.json", record, version=ABSENT)
        except Conflict:
            # An artifact is immutable: the first published attempt stays.
            self.objects.delete(f"artifacts/{key}/{attempt}")
        finished = self.done(key)
        assert finished is not None
        shutil.rmtree(self.scratch / "attempts" / f"{key}.{lease.fence}", ignore_errors=True)
        self.drop_work(key)
        return finished

    # Versions that were declared to give the same result

    def accepted(self) -> dict[str, dict[str, str]]:
        """step → version → the older version whose artifacts serve for it."""
        found = self.objects.get("accepted.json")
        return dict(json.loads(found[0])) if found else {}

    def accept(self, step: str, old: str, new: str) -> None:
        """Declare that version `new` of a step gives the same result as `old`."""
        found = self.objects.get("accepted.json")
        table = json.loads(found[0]) if found else {}
        table.setdefault(step, {})[new] = table.get(step, {}).get(old, old)
        self.objects.put("accepted.json", json.dumps(table, indent=1).encode(), version=found[1] if found else ABSENT)

    # Runs and what they reach

    def save_run(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Keep a run's manifest: recipe, arms, and the key of each of its steps under `keys`."""
        found = self.objects.get(f"runs/{name}.json")
        data = json.dumps(manifest, indent=1, default=str).encode()
        self.objects.put(f"runs/{name}.json", data, version=found[1] if found else ABSENT)

    def runs(self) -> dict[str, dict[str, Any]]:
        """All run manifests by name."""
        names = [n for n in self.objects.children("runs") if n.endswith(".json")]
        found = {n.removesuffix(".json"): self.objects.get(f"runs/{n}") for n in names}
        return {name: json.loads(item[0]) for name, item in found.items() if item}

    def save_arm(self, search: str, arm: str, record: Mapping[str, Any]) -> None:
        """Keep what is known of an arm that a search has proposed. One command at a time writes them."""
        name = f"searches/{search}/{arm}.json"
        found = self.objects.get(name)
        data = json.dumps(record, indent=1, default=str).encode()
        self.objects.put(name, data, version=found[1] if found else ABSENT)

    def saved_arms(self, search: str) -> list[dict[str, Any]]:
        """The arms of a search, by name."""
        names = sorted(n for n in self.objects.children(f"searches/{search}") if n.endswith(".json"))
        found = [self.objects.get(f"searches/{search}/{name}") for name in names]
        return [json.loads(item[0]) for item in found if item]

    def drop_work(self, key: str) -> None:
        """Forget the unfinished state of a key."""
        shutil.rmtree(self.scratch / "work" / key, ignore_errors=True)
        self.objects.delete(f"work/{key}")

    def artifacts(self) -> list[Done]:
        """All finished artifacts, oldest first."""
        found = [done for key in self.objects.children("artifacts") if (done := self.done(key))]
        return sorted(found, key=lambda done: done.made)

    def reachable(self, keys: Iterable[str]) -> set[str]:
        """The keys and everything that they were made from."""
        seen: set[str] = set()
        todo = list(keys)
        while todo:
            key = todo.pop()
            if key not in seen:
                seen.add(key)
                done = self.done(key)
                todo += list(done.inputs.values()) if done else []
        return seen

    def prune(self, *, dry_run: bool = True, forget: Collection[str] = ()) -> list[tuple[str, int]]:
        """(name, bytes) of what no stored run reaches: artifacts, and work and attempts that nobody holds.

        Runs named in `forget` do not count, and are removed too.
        """
        wanted = self.reachable(key for name, run in self.runs().items() if name not in forget for key in run["keys"])
        doomed = [f"artifacts/{k}" for k in self.objects.children("artifacts") if k not in wanted]
        doomed += [f"work/{k}" for k in self.objects.children("work") if "-" in k and not self.holder(k)]
        for name in self.objects.children("attempts"):
            if not self.holder(name.rsplit(".", 1)[0]):
                doomed.append(f"attempts/{name}")
        doomed += [f"runs/{name}.json" for name in forget]
        kept = {run["search"]["records"] for name, run in self.runs().items() if name not in forget and "search" in run}
        doomed += [f"searches/{name}" for name in self.objects.children("searches") if name not in kept]
        sized = [(name, self.objects.size(name)) for name in doomed]
        if not dry_run:
            for name in doomed:
                self.objects.delete(name)
            self._done.clear()
        return sized

    def holder(self, key: str) -> str:
        """Who makes this key now; empty when nobody does."""
        return leases.holder(self.objects, key)
