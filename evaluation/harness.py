"""lm-evaluation-harness on our models: any of its tasks, with its per-sample records in our item table.

The harness asks, extracts and scores; we only answer its requests, so that a task means here what it means there.
Its models are ours by two protocols: log-likelihoods through `Score`, generation through `Generate`. With the chat
template on, the harness hands over conversations instead of text, and our one renderer renders them.

Tasks that run generated code in this process are refused: ours run it in the sandbox.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa

from cuvee.errors import MissingError, UserError, nearest
from cuvee.protocols import Completion, Decoding, Generate, Message, Request, Score, ScoreRequest
from cuvee.rng import stream_seed
from evaluation.data import Source
from evaluation.items import table
from evaluation.tasks.task import DEFAULTS, EvalOptions, Item, Kind, collect, stamp

_CHAT = "\x02chat\x03"
SEED = 1234
"""Of the harness's own draws (examples of few-shot tasks): its default."""


@dataclass(frozen=True)
class HarnessTask:
    """A task or group of the harness. It loads its own data: `items` is empty, and `run` evaluates up to the limit.

    Metrics and what it asks of a model are the task's own, whatever `kind` says. `spec` may be a task config (a dict)
    to run in place of the harness's task of that name.
    """

    task: str
    spec: Any = None
    shots: int | None = None
    kind: Kind = "choice"
    metric: str = ""

    @property
    def name(self) -> str:
        return f"lm_eval:{self.task}"

    @property
    def version(self) -> str:
        from importlib.metadata import version

        return f"lm_eval-{version('lm-eval')}"

    @property
    def sources(self) -> tuple[Source, ...]:
        return ()

    def items(self, options: EvalOptions = DEFAULTS) -> list[Item]:
        return []

    def run(
        self,
        items: Sequence[Item] = (),
        *,
        generate: Generate | None = None,
        score: Score | None = None,
        judge: object = None,
        options: EvalOptions = DEFAULTS,
    ) -> pa.Table:
        """Raises MissingError when the task or its data is not there, UserError when it needs to run code."""
        evaluate, manager = _library()
        if self.spec is None and self.task not in manager.all_tasks:
            raise MissingError(f"the harness has no task {self.task!r}", remedy=nearest(self.task, manager.all_tasks))
        shots = self.shots if options.shots is None else options.shots
        try:
            result = evaluate(
                model=adapter(self.name, generate, score, options),
                tasks=[self.spec or self.task],
                task_manager=manager,
                num_fewshot=shots,
                limit=options.limit,
                log_samples=True,
                bootstrap_iters=0,
                apply_chat_template=bool(options.chat),
                random_seed=SEED,
                numpy_random_seed=SEED,
                torch_random_seed=SEED,
                fewshot_random_seed=SEED,
                confirm_run_unsafe_code=False,
            )
        except (OSError, ImportError) as error:
            raise MissingError(
                f"{self.name} cannot be loaded: {(str(error) or type(error).__name__).splitlines()[0]}",
                remedy="see that its data and packages can be had here",
            ) from error
        except ValueError as error:
            raise UserError(f"{self.name}: {error}") from error
        return self._table(result, options)

    def _table(self, result: Any, options: EvalOptions) -> pa.Table:
        rows: list[dict[str, Any]] = []
        for name, samples in sorted(result["samples"].items()):
            shots = result.get("n-shot", {}).get(name) or 0
            version = stamp(
                f"{self.version}/{result['versions'].get(name)}", options, shots=shots, chat=bool(options.chat)
            )
            first: list[str] = samples[0]["metrics"] if samples else []
            for sample in samples:
                base = {
                    "task": self.name,
                    "version": version,
                    "item": f"{name}/{sample['doc_id']}-{sample['doc_hash'][:8]}",
                    "group": name if len(result["samples"]) > 1 else "",
                    **_texts(sample),
                }
                several = sample["filter"] != "none"
                for metric in sample["metrics"]:
                    rows.append(
                        {
                            **base,
                            "metric": f"{metric},{sample['filter']}" if several else metric,
                            "main": bool(first) and metric == first[0] and sample["filter"] == samples[0]["filter"],
                            **_value(sample[metric]),
                        }
                    )
        return table(rows)


def adapter(name: str, generate: Generate | None, score: Score | None, options: EvalOptions) -> Any:
    """A model of the harness that answers through the two protocols. Either may be None if the task does not ask it."""
    from lm_eval.api.model import LM

    class Adapter(LM):
        tokenizer_name = ""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            asked = [_scored(str(i), *request.args) for i, request in enumerate(requests)]
            return [(s.logprob, s.greedy) for s in self._scores(asked)]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            asked = [ScoreRequest(str(i), context="", continuation=r.args[0]) for i, r in enumerate(requests)]
            found = self._scores(asked)
            if cut := sum(s.truncated for s in found):
                raise UserError(f"{name}: {cut} texts are longer than the model's context")
            return [s.logprob for s in found]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            if generate is None:
                raise UserError(f"{name} needs a model that can generate", remedy="pass generate=")
            done: dict[str, Completion] = {}
            groups: dict[Decoding, list[Request]] = {}
            repeats: Counter[str] = Counter()
            for i, request in enumerate(requests):
                context, settings = request.args
                messages = _messages(context)
                repeats[context] += 1
                groups.setdefault(_decoding(settings, options), []).append(
                    Request(
                        str(i),
                        messages,
                        text=None if messages else context,
                        seed=stream_seed(0, name, context, repeats[context]),
                    )
                )
            for decoding, group in groups.items():
                done |= collect(generate, group, decoding)
            if failed := next((c for c in done.values() if c.finish == "failed"), None):
                raise UserError(f"{name}: a generation failed: {failed.error}")
            return [done[str(i)].text for i in range(len(requests))]

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            if not add_generation_prompt:
                raise UserError(
                    f"{name} begins the answer itself, which a chat template does not", remedy="chat: false"
                )
            return _CHAT + json.dumps(chat_history)

        def _scores(self, asked: list[ScoreRequest]) -> Any:
            if score is None:
                raise UserError(f"{name} needs a model that can score", remedy="pass score=")
            found = {s.id: s for s in score(asked)}
            missing = [r.id for r in asked if r.id not in found or found[r.id].error]
            if missing:
                reason = found[missing[0]].error if missing[0] in found else "no score came back"
                raise UserError(f"{name}: {len(missing)} of {len(asked)} requests failed: {reason}")
            return [found[r.id] for r in asked]

    return Adapter()


def _messages(context: str) -> tuple[Message, ...]:
    if not context.startswith(_CHAT):
        return ()
    turns = json.loads(context.removeprefix(_CHAT))
    return tuple(Message(role=turn["role"], content=turn["content"]) for turn in turns)


def _scored(key: str, context: str, continuation: str) -> ScoreRequest:
    messages = _messages(context)
    if not messages:
        return ScoreRequest(key, context=context, continuation=continuation)
    answer = Message(role="assistant", content=continuation.strip())
    return ScoreRequest(key, messages=(*messages, answer), last_only=True)


def _decoding(settings: dict[str, Any], options: EvalOptions) -> Decoding:
    """The harness's generation settings as ours; those that we do not know are refused, not dropped."""
    known = {
        "until",
        "max_gen_toks",
        "max_new_tokens",
        "max_tokens",
        "max_length",
        "do_sample",
        "temperature",
        "top_p",
        "top_k",
    }
    if odd := sorted(settings.keys() - known):
        raise UserError(f"the harness asks for {', '.join(odd)} in generation, which is not supported")
    until = settings.get("until") or []
    limit = next((settings[k] for k in ("max_gen_toks", "max_new_tokens", "max_tokens") if settings.get(k)), 256)
    sampling = bool(settings.get("do_sample"))
    return Decoding(
        max_new_tokens=options.max_new_tokens or int(limit),
        temperature=float(settings.get("temperature") or 1.0) if sampling else 0.0,
        top_p=float(settings.get("top_p") or 1.0),
        top_k=int(settings.get("top_k") or 0),
        stop=(until,) if isinstance(until, str) else tuple(until),
    )


def _texts(sample: dict[str, Any]) -> dict[str, Any]:
    """prompt, prediction, reference of a sample."""
    arguments = sample["arguments"]
    first = next(iter(arguments.values()), {}) if isinstance(arguments, dict) else {"arg_0": arguments[0][0]}
    prompt = str(first.get("arg_0", ""))
    messages = _messages(prompt)
    answers = sample["filtered_resps"]
    prediction = answers[0] if len(answers) == 1 else answers
    return {
        "prompt": "\n\n".join(f"{m['role']}: {m['content']}" for m in messages) if messages else prompt,
        "prediction": prediction if isinstance(prediction, str) else json.dumps(prediction, default=str),
        "reference": str(sample["target"]),
    }


def _value(value: Any) -> dict[str, Any]:
    """A sample's metric as a score. Pairs (log-likelihood, words) of perplexity tasks have no score of their own."""
    if isinstance(value, bool | int | float) or (hasattr(value, "item") and getattr(value, "size", 0) == 1):
        number = float(value)
        return {"score": number, "correct": bool(number) if number in (0.0, 1.0) else None}
    return {"score": None, "reason": json.dumps(value, default=str), "error": "no score of a single sample"}


@cache
def _library() -> tuple[Any, Any]:
    """The harness's evaluator and its index of tasks, which takes seconds to make."""
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingError("lm-evaluation-harness is not installed", remedy="pip install lm-eval") from error
    return simple_evaluate, TaskManager()
