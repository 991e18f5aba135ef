"""What a step's workers may ask for, and where they find it: now, on machines that can still come, or never.

Logical CPUs are Ray's admission tickets, not cores. On a machine with two of them a trial, an engine, a Ray Data task
and an embedding actor that each ask for one wait for each other for ever. So without accelerators every kind asks for
at most a quarter of a node, a training for a little more than half (two trainings on one machine would only be slower
and need the memory twice), and the cores are shared out as `threads` instead. With accelerators Ray's own tickets for
them keep an engine and a training off the same one.

A cluster that grows on demand has no accelerator until somebody asks for one. What it could have is in the file that
its autoscaler was started with, which lies on the head, where drivers run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml
from pydantic import Field, field_validator

from cuvee.config import Config
from cuvee.errors import Unavailable, UserError
from training.settings import Execution

Kind = Literal["driver", "data", "embed", "cluster", "engine", "judge", "sandbox", "train"]
Asked = Literal["embed", "cluster", "engine", "judge", "sandbox", "train"]
_ACCELERATED = ("embed", "engine", "judge", "train")
_TRAIN_SHARE = 0.6
_RUNTIME_ENV = ("pip", "uv", "conda", "env_vars", "image_uri", "config")
_GROUP = "ray.io/node-group"


class Need(Config):
    """What the workers of one kind ask of Ray, where the recipe knows better than the rule."""

    cpus: float | None = Field(default=None, gt=0, description="logical CPUs of one worker: tickets for admission")
    gpus: float | None = Field(default=None, ge=0, description="accelerators of one worker; 0: runs on CPUs")
    memory_gb: float | None = Field(default=None, gt=0, description="main memory of one worker, GB")
    labels: dict[str, str] = Field(default_factory=dict, description="node labels, such as accelerator-type: H100")
    runtime_env: dict[str, Any] = Field(
        default_factory=dict, description="Ray's runtime environment: pip, uv, conda, env_vars, image_uri, config"
    )

    @field_validator("runtime_env")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name not in _RUNTIME_ENV:
                raise ValueError(f"runtime_env takes {', '.join(_RUNTIME_ENV)}, and not {name!r}")
        return value

    @classmethod
    def of_training(cls, execution: Mapping[str, Any]) -> Need:
        """What a worker of a training asks for, from settings of `training.settings.Execution`."""
        gpus = float(execution["use_gpu"]) if "use_gpu" in execution else None
        named = {name: execution[name] for name in ("memory_gb", "labels") if name in execution}
        return cls(cpus=execution.get("cpus_per_worker"), gpus=gpus, **named)

    def environment(self, variables: Mapping[str, str]) -> dict[str, Any]:
        """The runtime environment with our own variables; the recipe's win."""
        return {**self.runtime_env, "env_vars": {**variables, **self.runtime_env.get("env_vars", {})}}


class Where(Execution):
    """`execution` of a recipe: where training runs, and what the workers of every kind ask for."""

    resources: dict[Asked, Need] = Field(
        default_factory=dict,
        description="by kind of worker: train, engine, embed, judge (reward models), sandbox, cluster",
    )

    def training(self) -> dict[str, Any]:
        """What is said of training, as `training.settings.Execution` has it."""
        said = self.model_dump(mode="json", exclude_unset=True, exclude={"resources"})
        need = self.resources.get("train", Need()).model_dump(mode="json", exclude_unset=True)
        if "gpus" in need:
            said["use_gpu"] = need.pop("gpus") > 0
        if "cpus" in need:
            said["cpus_per_worker"] = need.pop("cpus")
        return said | need

    def asked(self, kind: Asked) -> dict[str, Any]:
        """What is said of a kind of worker, for the `execution` of a node; empty where nothing is."""
        need = self.resources.get(kind)
        return {} if need is None else need.model_dump(mode="json", exclude_unset=True)


@dataclass(frozen=True)
class Resources:
    """What one worker asks Ray for. `memory` in bytes; `threads` are compute threads, for OMP_NUM_THREADS."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1

    def options(self) -> dict[str, Any]:
        """Keywords for `.options()` of a Ray task or actor."""
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.memory:
            options["memory"] = self.memory
        if self.labels:
            options["label_selector"] = dict(self.labels)
        return options

    def __str__(self) -> str:
        parts = [f"{self.cpus:g} CPU"]
        if self.gpus:
            parts.append(f"{self.gpus:g} GPU")
        if self.memory:
            parts.append(f"{self.memory / 1e9:.1f} GB")
        parts += [f"{name}={value}" for name, value in sorted(self.labels.items())]
        return " · ".join(parts)


@dataclass(frozen=True)
class Group:
    """Nodes that are alike: `up` of them run, `most` could. Memory in bytes; 0 is unknown."""

    name: str
    cpus: float
    gpus: float = 0.0
    memory: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    up: int = 1
    most: int = 1

    def holds(self, need: Resources) -> int:
        """Workers that one node of the group can hold."""
        if not all(_fits(self.labels.get(name), wanted) for name, wanted in need.labels.items()):
            return 0
        shares = [(self.cpus, need.cpus), (self.gpus, need.gpus)]
        shares += [(self.memory, float(need.memory))] if self.memory else []
        return min((int(have / want + 1e-9) for have, want in shares if want), default=10_000)


@dataclass(frozen=True)
class Placement:
    """`when`: now, later (after machines have come), or never. `text` says it to people."""

    when: Literal["now", "later", "never"]
    text: str


@dataclass(frozen=True)
class Capacity:
    """The machines that a run can use."""

    groups: tuple[Group, ...]

    @property
    def gpus(self) -> float:
        """Accelerators, those included that can still come."""
        return sum(group.gpus * group.most for group in self.groups)

    @property
    def cpus(self) -> float:
        """Logical CPUs of the nodes that run."""
        return sum(group.cpus * group.up for group in self.groups)

    @property
    def nodes(self) -> int:
        """Nodes that run."""
        return sum(group.up for group in self.groups)

    def members(self, need: Resources) -> int:
        """How many workers of that need are worth having now: one an accelerator, else one a machine; at least one."""
        if need.gpus:
            return max(1, int(sum(g.gpus * g.up for g in self.groups if g.holds(need)) / need.gpus))
        return max(1, sum(g.up for g in self.groups if g.holds(need)))

    def place(self, need: Resources, workers: int = 1) -> Placement:
        """Where `workers` of that need go. Counts what nodes have, not what is free: who waits for a step gets on."""
        held = [group.holds(need) for group in self.groups]
        now = sum(h * g.up for h, g in zip(held, self.groups, strict=True))
        if now >= workers:
            return Placement("now", "")
        most = sum(h * g.most for h, g in zip(held, self.groups, strict=True))
        if most < workers:
            return Placement("never", f"{workers} x {need} fit no machine of this cluster, which has {self}")
        coming = [g.name for h, g in zip(held, self.groups, strict=True) if h and g.most > g.up]
        return Placement("later", f"waits for machines of the group {' or '.join(coming)}")

    def __str__(self) -> str:
        said = []
        for group in self.groups:
            count = f"{group.up}" if group.most == group.up else f"{group.up} to {group.most}"
            said.append(f"{count} x ({Resources(group.cpus, group.gpus, int(group.memory), threads=1)})")
        return ", ".join(said) or "no machines"

    @classmethod
    def of_machine(cls, cpus: int, accelerators: int) -> Capacity:
        """This machine, where a command starts a Ray of its own. Ray keeps 30% of the memory to itself."""
        return cls((Group("this machine", cpus, accelerators, 0.7 * psutil.virtual_memory().total),))

    @classmethod
    def of_ray(cls) -> Capacity:
        """The cluster that this process is connected to, with what its autoscaler could start."""
        import ray

        alive: dict[str, list[Group]] = {}
        for node in ray.nodes():
            if node["Alive"]:
                have, labels = node["Resources"], node.get("Labels") or {}
                own = {k: v for k, v in labels.items() if not k.startswith("ray.io/node-")}
                group = Group("", have.get("CPU", 0.0), have.get("GPU", 0.0), have.get("memory", 0.0), own)
                alive.setdefault(_shape(group), []).append(group)
        return cls(_merged([each for groups in alive.values() for each in groups], _autoscaling()))


def _merged(alive: list[Group], kinds: Iterable[Group]) -> tuple[Group, ...]:
    """Nodes that run, as members of the autoscaler's groups where they have their shape, else on their own."""
    groups: dict[str, Group] = {_shape(kind): kind for kind in kinds}
    for node in alive:
        shape = _shape(node)
        known = groups.get(shape)
        if known is None:
            groups[shape] = Group(f"{node.cpus:g} CPUs", node.cpus, node.gpus, node.memory, node.labels)
        else:
            up = known.up + 1
            memory = min(node.memory, known.memory) if known.up and known.memory else node.memory
            most = max(known.most, up)
            groups[shape] = Group(known.name, known.cpus, known.gpus, memory, known.labels, up, most)
    return tuple(group for group in groups.values() if group.most)


def _shape(group: Group) -> str:
    return json.dumps([group.cpus, group.gpus, sorted(group.labels.items())])


def _autoscaling() -> list[Group]:
    """The node types of the autoscaler of this cluster, as its file says; none without an autoscaler."""
    import ray

    address = ray.get_runtime_context().gcs_address
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError, yaml.YAMLError, KeyError):
            words = process.cmdline()
            if not any(word.endswith("monitor.py") for word in words) or f"--gcs-address={address}" not in words:
                continue
            files = [w.partition("=")[2] for w in words if w.startswith("--autoscaling-config=")]
            return node_types(yaml.safe_load(Path(files[0]).expanduser().read_text())) if files else []
    return []


def node_types(config: Mapping[str, Any]) -> list[Group]:
    """The groups of an autoscaler's file (`cluster.yaml`), none of which runs yet."""
    found = []
    for name, kind in config["available_node_types"].items():
        have = kind.get("resources", {})
        most = 1 if name == config.get("head_node_type") else int(kind.get("max_workers", config["max_workers"]))
        found.append(
            Group(
                name,
                float(have.get("CPU", 0)),
                float(have.get("GPU", 0)),
                float(have.get("memory", 0)),
                {str(k): str(v) for k, v in kind.get("labels", {}).items()},
                up=0,
                most=min(most, int(config["max_workers"]) + 1),
            )
        )
    return found


def _fits(label: str | None, wanted: str) -> bool:
    """Ray's selectors: `a`, `!a`, `in(a, b)`, `!in(a, b)`."""
    negated = wanted.startswith("!")
    word = wanted.removeprefix("!")
    values = [v.strip() for v in word[3:-1].split(",")] if word.startswith("in(") and word.endswith(")") else [word]
    return (label in values) != negated


def resources(
    kind: Kind, capacity: Capacity, *, workers: int = 1, gpus: float = 1.0, need: Need | None = None
) -> Resources:
    """What each of `workers` workers of a step asks for. `gpus` is what one needs where accelerators exist.

    Raises UserError when the cluster can never hold them, with all the machines that can still come.
    """
    asked = need or Need()
    if capacity.cpus <= 0:
        raise Unavailable("the cluster has no CPUs", remedy="look at `ray status` of that cluster")
    if kind == "driver":
        # Ray Tune refuses a bundle of nothing.
        return Resources(cpus=0.01)
    wanted = (gpus if capacity.gpus and kind in _ACCELERATED else 0.0) if asked.gpus is None else asked.gpus
    memory = int((asked.memory_gb or 0) * 1e9)
    fitting = [group for group in capacity.groups if group.holds(Resources(0.0, wanted, memory, asked.labels))]
    largest = max(fitting, key=lambda group: (group.up > 0, group.cpus), default=None)
    cores = largest.cpus if largest else 1.0
    if wanted and largest:
        cpus = min(1.0, int(100 * cores / max(4.0, largest.gpus)) / 100)
        threads = max(1, int(cores / largest.gpus * wanted))
    elif kind == "train":
        each = -(-workers // max(1, sum(g.up or g.most for g in fitting)))
        cpus = int(100 * cores * _TRAIN_SHARE / each) / 100
        threads = max(1, int(cores) // each)
    else:
        cpus = min(1.0, cores / 4)
        threads = max(1, int(cores)) if kind in ("embed", "engine", "judge") else 1
    found = Resources(asked.cpus or cpus, wanted, memory, asked.labels, threads)
    placed = capacity.place(found, workers)
    if placed.when == "never":
        raise UserError(
            f"{kind}: {placed.text}",
            remedy="ask for fewer or smaller workers (execution), use a smaller model, or add machines",
        )
    return found
