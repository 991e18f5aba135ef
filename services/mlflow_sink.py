"""Events of the journal, said to MLflow.

Saying an event twice is the same as saying it once, since a command may die between the call and the note that it was
made: runs and models are found by their tag before they are made, metrics have their original times, and the rest is
overwritten with itself. Errors are of two kinds: the server is away (`Away`, everything waits), or it will never take
this event (`Refused`, the others go on).
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.journal import Event

RUN, KEY = "cuvee.run", "cuvee.step.key"
MODEL = "cuvee.model.key"
_BATCH = 500
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_NEVER = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "MALFORMED_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
_NAME = re.compile(r"[^\w\-./: ]")


class Away(Exception):
    """The server does not answer, or not now."""


class Refused(Exception):
    """The server will not take this event, now or later."""


class MlflowSink:
    """One server. `find` gives the event that opened a run, for runs that the server does not know.

    `artifacts` is where a SQLite store keeps its files.
    """

    def __init__(self, uri: str, artifacts: Path, find: Callable[[str], Event | None]) -> None:
        self.uri, self._artifacts, self._find = uri, artifacts, find
        self._connection: Any = None
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, tuple[str, str]] = {}

    def deliver(self, events: Sequence[Event], kept: Callable[[str], Path]) -> None:
        """Say events of one run that may be said together: all of them metrics, or a single one. `kept`: see Journal.

        Raises Away or Refused.
        """
        with self._errors():
            first = events[0]
            if first["kind"] == "run":
                self._open(first, reopen=True)
            elif first["kind"] == "metrics":
                self._metrics(events)
            elif first["kind"] == "artifact":
                self._artifact(first, kept(first["file"]))
            elif first["kind"] in _SAY:
                _SAY[first["kind"]](self, first)
            else:
                raise Refused(f"unknown kind of event {first['kind']!r}")

    # Runs

    def _open(self, event: Event, *, reopen: bool = False) -> tuple[str, str]:
        """(run id, experiment id) of MLflow for the event that opened a run."""
        client, experiment = self._client(), self._experiment(event["experiment"])
        name = event["run"]
        found = client.search_runs([experiment], f"tags.`{RUN}` = '{name}'", max_results=1)
        if found:
            run = found[0]
            if reopen and run.info.status != "RUNNING":
                client.update_run(run.info.run_id, status="RUNNING")
            self._runs[name] = run.info.run_id, experiment
            if reopen:
                # A parameter cannot change in MLflow; what a run said first stays.
                fresh = {k: v for k, v in event["params"].items() if k not in run.data.params}
                self._describe(run.info.run_id, fresh, event["tags"])
            return self._runs[name]
        tags = {**event["tags"], RUN: name}
        if event["parent"]:
            tags["mlflow.parentRunId"] = self._run(event["parent"])[0]
        run = client.create_run(experiment, start_time=event["time"], run_name=event["name"])
        self._runs[name] = run.info.run_id, experiment
        # The tag that it is found by goes first: a kill here must not leave a second run behind.
        self._describe(run.info.run_id, {}, {RUN: name})
        self._describe(run.info.run_id, event["params"], tags)
        return self._runs[name]

    def _run(self, name: str) -> tuple[str, str]:
        if name not in self._runs:
            event = self._find(name)
            if event is None:
                raise Refused(f"no event opens run {name}")
            self._open(event)
        return self._runs[name]

    def _describe(self, run: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        pairs = [RunTag(_key(k), str(v)) for k, v in tags.items()]
        for start in range(0, len(pairs), 100):
            self._client().log_batch(run, tags=pairs[start : start + 100])
        if params:
            self._client().log_batch(run, params=[Param(_key(k), str(v)) for k, v in params.items()])

    # What is said of runs

    def _metrics(self, events: Sequence[Event]) -> None:
        from mlflow.entities import Metric

        run, experiment = self._run(events[0]["run"])
        models = {key: self._known_model(key, experiment) for key in {e["model"] for e in events if "model" in e}}
        batch = [
            Metric(_key(name), float(value), event["time"], step, model_id=models.get(event.get("model")), run_id=run)
            for event in events
            for name, value, step in event["metrics"]
        ]
        for start in range(0, len(batch), _BATCH):
            self._client().log_batch(run, metrics=batch[start : start + _BATCH])

    def _tags(self, event: Event) -> None:
        self._describe(self._run(event["run"])[0], {}, event["tags"])

    def _artifact(self, event: Event, source: Path) -> None:
        folder, _, name = event["path"].rpartition("/")
        if not source.exists():
            raise Refused("the copy of the artifact is gone")
        with tempfile.TemporaryDirectory() as temporary:
            shutil.copyfile(source, Path(temporary) / name)
            self._client().log_artifact(self._run(event["run"])[0], str(Path(temporary) / name), folder or None)

    def _dataset(self, event: Event) -> None:
        """What a MetaDataset becomes on the wire, with the number of rows that it has no place for."""
        from mlflow.data import sources
        from mlflow.entities import Dataset, DatasetInput, InputTag

        # The classes are made when MLflow is imported, out of sight of a type checker.
        s3 = event["source"].startswith("s3://")
        source = getattr(sources, "S3ArtifactDatasetSource" if s3 else "LocalArtifactDatasetSource")(event["source"])
        data = Dataset(
            name=event["name"],
            digest=event["digest"][-36:],
            source_type=source._get_source_type(),
            source=source.to_json(),
            profile=json.dumps({"num_rows": event["rows"]}),
        )
        tags = [InputTag("mlflow.data.context", event["context"]), InputTag("cuvee.digest", event["digest"])]
        self._client().log_inputs(self._run(event["run"])[0], [DatasetInput(data, tags)])

    def _model(self, event: Event) -> None:
        import mlflow
        from mlflow.entities import LoggedModelOutput

        run, experiment = self._run(event["run"])
        model = self._known_model(event["key"], experiment)
        if model is None:
            tags = {MODEL: event["key"], "cuvee.path": event["path"], "cuvee.time": str(event["time"])}
            name = re.sub(r"[/:.%\"']", "-", event["name"])
            made = mlflow.create_external_model(name=name, source_run_id=run, tags=tags, experiment_id=experiment)
            model = made.model_id
        # Unlike data sets, a model that is linked twice is an error.
        if model not in {output.model_id for output in self._client().get_run(run).outputs.model_outputs}:
            self._client().log_outputs(run, [LoggedModelOutput(model, step=0)])
        for name, value in event["metrics"].items():
            self._client().log_metric(run, _key(name), value, timestamp=event["time"], step=0, model_id=model)

    def _uses(self, event: Event) -> None:
        from mlflow.entities import LoggedModelInput

        run, experiment = self._run(event["run"])
        model = self._known_model(event["key"], experiment)
        if model is None:
            raise Refused(f"no model of key {event['key']}")
        if model not in {given.model_id for given in self._client().get_run(run).inputs.model_inputs}:
            self._client().log_inputs(run, models=[LoggedModelInput(model)])

    def _known_model(self, key: str, experiment: str) -> str | None:
        found = self._client().search_logged_models([experiment], f"tags.`{MODEL}` = '{key}'", max_results=1)
        return str(found[0].model_id) if found else None

    def _finish(self, event: Event) -> None:
        self._client().set_terminated(self._run(event["run"])[0], _STATUS[event["status"]], event["time"])

    # The connection

    def _client(self) -> Any:
        if self._connection is None:
            # It takes seconds and asks these once. A server that is away must say so soon: what waits is safe.
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            os.environ.setdefault("DO_NOT_TRACK", "true")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            import mlflow

            for name in ("mlflow", "alembic"):  # after the import, which sets them
                logging.getLogger(name).setLevel(logging.WARNING)
            if self.uri.startswith("sqlite:///"):
                Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            mlflow.set_tracking_uri(self.uri)  # logged models know no other way
            self._connection = mlflow.MlflowClient(self.uri)
        return self._connection

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            client = self._client()
            found = client.get_experiment_by_name(name)
            if found is None:
                local = "://" not in self.uri or self.uri.startswith("sqlite:")
                place = (self._artifacts / re.sub(r"[^\w\-.]", "-", name)).resolve().as_uri() if local else None
                self._experiments[name] = client.create_experiment(name, place)
            else:
                if found.lifecycle_stage == "deleted":
                    client.restore_experiment(found.experiment_id)
                self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def check(self, experiment: str) -> None:
        """Write a run and delete it. Raises Away or Refused."""
        with self._errors():
            client = self._client()
            run = client.create_run(self._experiment(experiment), run_name="check")
            client.delete_run(run.info.run_id)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (Away, Refused):
            raise
        except (KeyError, TypeError) as error:
            raise Refused(f"an event that cannot be read: {error!r}") from error
        except ImportError as error:
            raise Away(f"MLflow cannot be imported: {error}") from error
        except Exception as error:
            # Below MLflow there are databases, object stores and HTTP, each with errors of its own.
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            if getattr(error, "error_code", "") in _NEVER:
                self._runs.clear()  # a run that was deleted meanwhile is looked for, or made, again
                raise Refused(reason) from error
            raise Away(reason) from error


_SAY: dict[str, Callable[[MlflowSink, Event], None]] = {
    "tags": MlflowSink._tags,
    "dataset": MlflowSink._dataset,
    "model": MlflowSink._model,
    "uses": MlflowSink._uses,
    "finish": MlflowSink._finish,
}


def _key(name: str) -> str:
    """A name that MLflow takes for tags, parameters and metrics."""
    return _NAME.sub("_", name).strip("/ ")[:250] or "_"
