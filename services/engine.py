"""A vLLM engine in a Ray actor.

`ray.data.llm` is not used: it keeps only the first of n samples, gives no finish reason, renders the chat with code of
its own, and on an engine's death restarts without bound. Here the actor takes token ids from `cuvee.chat`, the same
that training sees, and answers each request with what the protocols promise.

vLLM's synchronous engine runs in one thread and the actor's event loop in another, so that questions after its health
are answered while it computes. On CPU the engine core shares the actor's process: it starts in a third of the time
(12 against 37 s), computes faster (217 against 138 tokens/s with 64 short chats on two cores), and leaves nothing
behind when killed. On GPUs it has a process of its own, which keeps the device busy while Python handles outputs; that
process is in the actor's group and dies with it (see `services.processes`).
"""

from __future__ import annotations

import asyncio
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cuvee.config import Config
from cuvee.errors import CuveeError, Unavailable
from cuvee.protocols import Completion, Decoding, Request, Scored, ScoreRequest
from services.capacity import Need
from services.models import Dtype
from services.processes import Process, lead_group
from services.tokens import encode, encode_pair, likeliest

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput

LONGEST = 4096
"""`max_len` of models that could do more: context that is not used still costs cache."""


class EngineOptions(Config):
    """How an engine runs. `max_len` and `dtype` touch its answers, the rest only its speed and its patience."""

    max_len: int | None = Field(default=None, ge=8, description="tokens of prompt and answer; at most 4096 if absent")
    dtype: Dtype = Field(default="auto", description="auto on CPU: bfloat16 where the CPU computes in it, else float32")
    tensor_parallel: int = Field(default=1, ge=1, description="GPUs of one engine; a CPU engine is never split")
    replicas: int | None = Field(
        default=None, ge=1, description="engines at work; as many as the GPUs allow, or one on CPU"
    )
    need: Need = Field(default_factory=Need, description="what an engine's actor asks of Ray")
    batch: int | None = Field(default=None, ge=1, description="sequences at once in one engine; 64 on CPU, 256 on GPU")
    cpu_cache_gib: float = Field(default=1.0, gt=0, description="key-value cache of a CPU engine, GiB")
    gpu_memory: float = Field(default=0.9, gt=0, le=1, description="share of a GPU's memory that the engine takes")
    idle: float = Field(default=600.0, gt=0, description="seconds without work after which the engine ends itself")
    start: float = Field(default=900.0, gt=0, description="seconds that an engine may take to start")
    stall: float = Field(default=300.0, gt=0, description="seconds for one engine step, then the engine is restarted")
    restarts: int = Field(
        default=2, ge=0, description="restarts of a dead or hanging engine in one pass over the requests"
    )


class ChatOptions(Config):
    """How conversations are rendered: the options of `cuvee.chat.Chat`."""

    template: str | None = None
    template_args: dict[str, Any] = Field(default_factory=dict)
    date: str | None = None
    post_instruction: bool = False


@dataclass(frozen=True)
class Pulse:
    """`steps` that the engine has made, `waiting` seconds since the last one while there was work (0: none to do)."""

    steps: int
    waiting: float


def cpu_dtype(flags: str | None = None) -> Literal["float32", "bfloat16"]:
    """The faster type on this CPU. `flags` are those of /proc/cpuinfo.

    SmolLM2-135M on two cores: with AVX512-BF16 335 tokens/s in bfloat16 and 217 in float32; without (EPYC Milan) 13
    and 55, since each product is then emulated. The price is precision: log-probabilities of single tokens move by
    about 0.03 nats, without a direction. Where small differences of loss are the result, ask for float32.
    """
    if flags is None:
        info = Path("/proc/cpuinfo")
        flags = info.read_text() if info.exists() else ""
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & set(flags.split()) else "float32"


class EngineFailed(Unavailable):
    """The engine has stopped working; the actor has to be replaced."""


class Stepper:
    """vLLM's engine, stepped by one thread. `submit` may be called from any thread."""

    def __init__(self, **args: Any) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self.engine = LLMEngine.from_engine_args(EngineArgs(**args))
        self.max_len = int(self.engine.model_config.max_model_len)
        self.steps = 0
        self.busy_since = 0.0
        self.idle_since = time.monotonic()
        self.error: EngineFailed | None = None
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._promised: set[Future[RequestOutput]] = set()
        self._open: dict[str, Future[RequestOutput]] = {}
        self._ids = count()
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def submit(self, ids: Sequence[int], params: SamplingParams) -> Future[RequestOutput]:
        """The final output for a prompt. Cancelling the future aborts the request. Fails with EngineFailed."""
        future: Future[RequestOutput] = Future()
        name = str(next(self._ids))

        def add() -> None:
            try:
                self.engine.add_request(name, {"prompt_token_ids": list(ids)}, params)
                self._open[name] = future
            except (ValueError, TypeError) as error:  # vLLM refuses the request; the engine is well
                future.set_exception(error)

        def settle(done: Future[RequestOutput]) -> None:
            self._promised.discard(done)
            if done.cancelled():
                self._inbox.put(lambda: self._abort(name))

        self._promised.add(future)
        future.add_done_callback(settle)
        self._inbox.put(add)
        if self.error:
            self._fail()
        return future

    def _abort(self, name: str) -> None:
        if self._open.pop(name, None):
            self.engine.abort_request([name])

    def _run(self) -> None:
        try:
            while True:
                self._take(block=not self._open)
                while self._open:
                    self.busy_since = time.monotonic()
                    outputs: list[Any] = self.engine.step()
                    for output in outputs:
                        future = self._open.pop(output.request_id, None) if output.finished else None
                        if future and future.set_running_or_notify_cancel():
                            future.set_result(output)
                    self.steps += 1
                    self._take(block=False)
                self.busy_since, self.idle_since = 0.0, time.monotonic()
        except BaseException as error:
            # The engine cannot be trusted any more. Callers are told, and the actor refuses further work.
            self.error = EngineFailed(f"{type(error).__name__}: {error}")
            self._fail()
            raise

    def _fail(self) -> None:
        for future in list(self._promised):
            if not future.done():
                future.set_exception(self.error)

    def _take(self, *, block: bool) -> None:
        while block or not self._inbox.empty():
            self._inbox.get()()
            block = False


def command_gone() -> bool:
    """Whether the command that this actor was started for has ended. A killed one cannot put its engines away."""
    import ray
    from ray._private import state

    mine = ray.get_runtime_context().get_job_id()
    # Where the head does not answer nothing is known, and Ray ends its workers by itself.
    with suppress(Exception):
        return any(job["JobID"] == mine and job["IsDead"] for job in state.jobs())
    return False


class EngineActor:
    """One engine. `find` brings the model's folder to this node; `gpus` is 0 for a CPU engine."""

    def __init__(self, find: Callable[[], Path], options: EngineOptions, chat: ChatOptions, gpus: int) -> None:
        self._group = lead_group()
        self.options = options
        folder = find()
        from cuvee.chat import Chat

        self.chat = Chat.load(folder, **chat.model_dump())
        self.dtype, self.max_len = self._start(folder, gpus)
        threading.Thread(target=self._end_when_idle, name="idle", daemon=True).start()

    def _start(self, folder: Path, gpus: int) -> tuple[str, int]:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        limit = int(getattr(config, "max_position_embeddings", 0) or LONGEST)
        max_len = min(self.options.max_len or LONGEST, limit)
        dtype = cpu_dtype() if self.options.dtype == "auto" and not gpus else self.options.dtype
        batch = self.options.batch or (256 if gpus else 64)
        args: dict[str, Any] = {
            "model": str(folder),
            "dtype": dtype,
            # One more, since scoring a text of full length has to generate a token after it.
            "max_model_len": min(max_len + 1, limit),
            "max_num_seqs": batch,
            "trust_remote_code": False,
            "disable_log_stats": True,
            "enable_prefix_caching": True,
            "seed": 0,
        }
        if gpus:
            args |= {"tensor_parallel_size": gpus, "gpu_memory_utilization": self.options.gpu_memory}
        else:
            cache = int(self.options.cpu_cache_gib * 2**30)
            # vLLM rewinds the generator of a seeded request whose prompt it has taken in part, which CPU generators
            # cannot do, and dies of it. So prompts are taken whole, and a step is no longer than it must be: scores
            # need the logits of every prompt token, 0.2 GB for 1,024 of them at 49,152 words.
            args |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(1024, max_len + 1, batch)}
            # Blocks of 32 tokens cost nothing against the usual 128, and let draws of a short prompt share it.
            args |= {"enforce_eager": True, "kv_cache_memory_bytes": cache, "block_size": 32}
        self.stepper = Stepper(**args)
        return dtype, max_len

    def _end_when_idle(self) -> None:
        while True:
            time.sleep(min(5.0, self.options.idle))
            idle = not self.stepper.busy_since and time.monotonic() - self.stepper.idle_since > self.options.idle
            if idle or command_gone():
                # The process group, and with it a GPU engine's core, follows.
                os._exit(0)

    async def ready(self) -> dict[str, Any]:
        """Which process this is, and what was resolved on this node."""
        import ray

        process = Process.of(os.getpid(), "engine").model_dump()
        node = ray.get_runtime_context().get_node_id()
        return {"process": process, "node": node, "dtype": self.dtype, "max_len": self.max_len}

    async def pulse(self) -> Pulse:
        """Whether the engine moves. Raises what has ended it."""
        if self.stepper.error:
            raise self.stepper.error
        busy = self.stepper.busy_since
        return Pulse(self.stepper.steps, time.monotonic() - busy if busy else 0.0)

    async def prompt_ids(self, request: Request) -> list[int]:
        """The prompt as the engine itself reports it."""
        from vllm import SamplingParams

        output = await self._ask(self._prompt(request), SamplingParams(max_tokens=1, temperature=0.0))
        return list(output.prompt_token_ids or [])

    async def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[Completion]:
        """One completion for each request, in order."""
        return list(await asyncio.gather(*(self._complete(request, decoding) for request in requests)))

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
        """One score for each request, in order."""
        return list(await asyncio.gather(*(self._score(request) for request in requests)))

    async def _ask(self, ids: Sequence[int], params: SamplingParams) -> RequestOutput:
        return await asyncio.wrap_future(self.stepper.submit(ids, params))

    def _prompt(self, request: Request) -> list[int]:
        if request.text is not None:
            return encode(self.chat.tokenizer, request.text)
        return [int(i) for i in self.chat.prompt_ids(request.messages)]

    async def _complete(self, request: Request, decoding: Decoding) -> Completion:
        def failed(reason: str) -> Completion:
            return Completion(request.id, request.draw, "", "failed", error=reason)

        try:
            ids = self._prompt(request)
            if len(ids) >= self.max_len:
                return failed(f"the prompt has {len(ids)} tokens and max_len is {self.max_len}")
            output = await self._ask(ids, self._sampling(request, decoding, self.max_len - len(ids)))
        except EngineFailed:
            raise
        except Exception as error:  # of this row alone: a template that refuses it, a prompt that vLLM refuses
            return failed(said(error))
        answer = output.outputs[0]
        if answer.finish_reason not in ("stop", "length"):
            return failed(f"the engine ended the request: {answer.finish_reason}")
        if decoding.choices and answer.text not in decoding.choices:
            return failed(f"{answer.text!r} is none of the choices")
        first = likeliest(answer.logprobs[0], decoding.first_tokens) if answer.logprobs else {}
        return Completion(
            request.id,
            request.draw,
            answer.text,
            "stop" if answer.finish_reason == "stop" else "length",
            tokens=len(answer.token_ids),
            logprob=answer.cumulative_logprob,
            first_token_logprobs=first,
        )

    def _sampling(self, request: Request, decoding: Decoding, room: int) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        limit, constraint = decoding.max_new_tokens, None
        if decoding.choices:
            constraint = StructuredOutputsParams(choice=list(decoding.choices))
            longest = max(len(encode(self.chat.tokenizer, choice)) for choice in decoding.choices)
            # A choice is said in whole, however many tokens it takes, and in whichever way it is cut into tokens.
            limit = max(limit, 2 * longest + 1)
        return SamplingParams(
            max_tokens=min(limit, room),
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            seed=request.seed % 2**63 if decoding.temperature > 0 else None,
            stop=list(decoding.stop) or None,
            stop_token_ids=list(self.chat.stop_ids),
            logprobs=decoding.first_tokens,
            structured_outputs=constraint,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    async def _score(self, request: ScoreRequest) -> Scored:
        from vllm import SamplingParams

        def failed(reason: str, *, truncated: bool = False) -> Scored:
            return Scored(request.id, request.draw, math.nan, 0, truncated=truncated, error=reason)

        room = self.stepper.max_len - 1
        try:
            ids, asked, truncated = self._scored_tokens(request, room)
            if not asked:
                return failed("no token to score is within the context length", truncated=truncated)
            params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
            output = await self._ask(ids, params)
        except EngineFailed:
            raise
        except Exception as error:  # of this row alone: a template that refuses it, a prompt that vLLM refuses
            return failed(said(error))
        found = output.prompt_logprobs or []
        tokens = [found[i][ids[i]] for i in asked]  # type: ignore[index]
        return Scored(
            request.id,
            request.draw,
            math.fsum(token.logprob for token in tokens),
            len(tokens),
            greedy=all(token.rank == 1 for token in tokens),
            truncated=truncated,
            each=tuple(token.logprob for token in tokens) if request.ids else (),
        )

    def _scored_tokens(self, request: ScoreRequest, room: int) -> tuple[list[int], list[int], bool]:
        """Ids, the positions whose log-probability is asked, and whether anything was cut off."""
        if request.ids:
            return list(request.ids[:room]), list(range(1, min(len(request.ids), room))), len(request.ids) > room
        if request.messages:
            rendered = self.chat.render(request.messages)
            ids = [int(i) for i in rendered.ids]
            answers = {turn for turn, message in enumerate(request.messages) if message["role"] == "assistant"}
            wanted = {max(answers)} if request.last_only and answers else answers
            asked = [i for i in range(1, len(ids)) if int(rendered.turns[i]) in wanted]
            # As in training, a conversation loses its end.
            return ids[:room], [i for i in asked if i < room], len(ids) > room
        context, continuation = encode_pair(self.chat.tokenizer, request.context or "", request.continuation or "")
        whole = context + continuation
        cut = max(0, len(whole) - room)
        span = range(max(len(context) - cut, 1), len(whole) - cut)
        # As in lm-evaluation-harness, a context loses its beginning. A continuation that is itself too long is no
        # score of that text any more.
        return whole[cut:], list(span) if cut < len(context) else [], cut > 0


def said(error: Exception) -> str:
    """The message of our own errors; other errors with their kind."""
    return str(error) if isinstance(error, CuveeError) else f"{type(error).__name__}: {error}"
