"""An OpenAI-compatible endpoint in the place of an engine, for generators and judges that are not ours to run.

Log-probabilities come only where the endpoint reports them. `choices` are asked for as a JSON schema with an
enumeration, which OpenAI, vLLM and llama.cpp all understand. Seeds are passed on, but an endpoint may ignore them: its
answers are stored, and the stored ones are the truth.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from cuvee.errors import MissingError, Unavailable, UserError
from cuvee.protocols import Completion, Decoding, Request
from services.models import ModelSpec
from services.redact import redact

if TYPE_CHECKING:
    import httpx

BASE_URLS = {"openai": "https://api.openai.com/v1"}
_RETRY = {408, 409, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 60.0
_TRIES = 6
_HOPELESS = 3
"""So many requests in a row that got no answer at all end the pass: the endpoint is down."""


def estimate_cost(spec: ModelSpec, prompt_tokens: int, completion_tokens: int) -> float | None:
    """What so many tokens cost, in the currency of `spec.price`; None where the recipe states no price."""
    if spec.price is None:
        return None
    return (prompt_tokens * spec.price.prompt + completion_tokens * spec.price.completion) / 1e6


@dataclass
class Usage:
    """What an endpoint has counted so far."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Endpoint:
    """`cuvee.protocols.Generate` over HTTP. `wait` is the first pause after a failure in seconds; it doubles.

    Raises MissingError when there is no key or address, UserError when the endpoint refuses the key or the model,
    Unavailable when it does not answer.
    """

    spec: ModelSpec
    progress: Callable[[int, int | None], None] | None = None
    timeout: float = 120.0
    wait: float = 1.0
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        if self.spec.api is None:
            raise UserError("the model has no `api`", remedy='write api: "provider/model"')
        self.provider, self.model = self.spec.api.split("/", 1)
        self.name = f"api:{self.spec.api}"
        url = self.spec.base_url or BASE_URLS.get(self.provider)
        if url is None:
            raise MissingError(f"no address is known for {self.provider!r}", remedy="give the model a `base_url`")
        self.url = url.rstrip("/")
        variable = self.spec.key_env or f"{self.provider.upper().replace('-', '_')}_API_KEY"
        # Servers in one's own house often ask for none; those of others always do.
        if variable not in os.environ and (self.spec.key_env or not self.spec.base_url):
            raise MissingError(f"{self.name} needs a key", remedy=f"export {variable}=…")
        self._key_variable = variable
        self._pace = Pace(self.spec.requests_per_minute)
        self._lock = threading.Lock()
        self._silent = 0
        self._stopped = threading.Event()

    def __call__(self, requests: Iterable[Request], decoding: Decoding) -> Iterator[Completion]:
        """One completion for each request, as they come, with `spec.parallel` requests in flight."""
        import httpx

        total = len(requests) if isinstance(requests, Sized) else None
        source, done = iter(requests), 0
        key = os.environ.get(self._key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._stopped.clear()
        with (
            httpx.Client(headers=headers, timeout=self.timeout) as client,
            ThreadPoolExecutor(self.spec.parallel, thread_name_prefix="endpoint") as threads,
        ):
            open_: set[Future[Completion]] = set()
            try:
                while True:
                    for request in islice(source, 2 * self.spec.parallel - len(open_)):
                        open_.add(threads.submit(self._complete, client, request, decoding))
                    if not open_:
                        return
                    ready, open_ = wait(open_, return_when=FIRST_COMPLETED)
                    for future in ready:
                        completion = future.result()
                        done += 1
                        if self.progress:
                            self.progress(done, total)
                        yield completion
            finally:
                self._stopped.set()
                threads.shutdown(wait=False, cancel_futures=True)

    def _complete(self, client: httpx.Client, request: Request, decoding: Decoding) -> Completion:
        path = "completions" if request.text is not None else "chat/completions"
        answer = self._post(client, path, self._body(request, decoding))
        if isinstance(answer, str):
            return Completion(request.id, request.draw, "", "failed", error=answer)
        try:
            return self._read(request, decoding, answer)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            reason = f"the endpoint's answer cannot be read: {type(error).__name__}: {error}"
            return Completion(request.id, request.draw, "", "failed", error=redact(reason))

    def _body(self, request: Request, decoding: Decoding) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": request.seed % 2**31,
        }
        if decoding.top_k:
            body["top_k"] = decoding.top_k
        if decoding.stop:
            body["stop"] = list(decoding.stop)
        if request.text is not None:
            return (
                body | {"prompt": request.text} | ({"logprobs": decoding.first_tokens} if decoding.first_tokens else {})
            )
        body["messages"] = [{"role": m["role"], "content": m["content"]} for m in request.messages]
        if decoding.first_tokens:
            body |= {"logprobs": True, "top_logprobs": decoding.first_tokens}
        if decoding.choices:
            schema = {
                "type": "object",
                "properties": {"choice": {"type": "string", "enum": list(decoding.choices)}},
                "required": ["choice"],
                "additionalProperties": False,
            }
            wrapped = {"name": "choice", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": wrapped}
        return body

    def _read(self, request: Request, decoding: Decoding, answer: dict[str, Any]) -> Completion:
        choice = answer["choices"][0]
        usage = answer.get("usage") or {}
        tokens = int(usage.get("completion_tokens") or 0)
        with self._lock:
            self.usage.requests += 1
            self.usage.prompt_tokens += int(usage.get("prompt_tokens") or 0)
            self.usage.completion_tokens += tokens
        text = choice["text"] if request.text is not None else choice["message"]["content"]
        reason = choice.get("finish_reason")
        if reason not in ("stop", "length") or not isinstance(text, str):
            return Completion(request.id, request.draw, "", "failed", error=f"the endpoint ended with {reason!r}")
        if decoding.choices:
            text = json.loads(text)["choice"] if request.text is None else text.strip()
            if text not in decoding.choices:
                raise ValueError(f"{text!r} is none of the choices")
        first, logprob = _logprobs(choice.get("logprobs"))
        return Completion(request.id, request.draw, text, reason, tokens, logprob, "", first)

    def _post(self, client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any] | str:
        """The answer, or why there is none for this request."""
        import httpx

        said = ""
        for attempt in range(_TRIES):
            pause = min(_LONGEST_WAIT, self.wait * 2.0**attempt)
            self._pace.wait()
            if self._stopped.is_set():
                return "the pass was ended"
            try:
                response = client.post(f"{self.url}/{path}", json=body)
            except httpx.TransportError as error:
                said = redact(f"{type(error).__name__}: {error}")
            else:
                if response.status_code == 200:
                    self._silent = 0
                    return dict(response.json())
                said = redact(f"HTTP {response.status_code}: {_message(response)}")
                if response.status_code in (401, 403, 404):
                    raise UserError(
                        f"{self.name} refuses: {said}", remedy=f"look at ${self._key_variable}, base_url and model name"
                    )
                if response.status_code not in _RETRY:
                    return said
                pause = max(pause, _retry_after(response))
            if attempt < _TRIES - 1:
                self._stopped.wait(pause)
        with self._lock:
            self._silent += 1
            if self._silent >= _HOPELESS:
                raise Unavailable(
                    f"{self.name} does not answer: {said}", remedy="run again later; answers so far are kept"
                )
        return f"no answer in {_TRIES} tries: {said}"


class Pace:
    """Lets calls pass at most so many times a minute, evenly."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Block until the caller's turn."""
        if not self._gap:
            return
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap
        time.sleep(turn - now)


def _message(response: httpx.Response) -> str:
    """What the endpoint says about an error, at most 300 characters."""
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    except (ValueError, KeyError, TypeError):
        return response.text[:300]


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the endpoint asks to wait, at most a minute. A date instead of seconds counts as none."""
    try:
        return min(_LONGEST_WAIT, float(response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


def _logprobs(found: Any) -> tuple[dict[str, float], float | None]:
    """The first token's alternatives and the sum over all tokens, from either form of the answer."""
    if not found:
        return {}, None
    if content := found.get("content"):  # chat
        first = {str(t["token"]): float(t["logprob"]) for t in content[0].get("top_logprobs") or []}
        return first, math.fsum(float(t["logprob"]) for t in content)
    if values := found.get("token_logprobs"):  # completions
        tops = found.get("top_logprobs") or [{}]
        return {str(k): float(v) for k, v in (tops[0] or {}).items()}, math.fsum(float(v) for v in values)
    return {}, None
