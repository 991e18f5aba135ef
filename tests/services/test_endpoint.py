"""An endpoint in the place of an engine, against a small server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cuvee.errors import MissingError, Unavailable, UserError
from cuvee.protocols import Decoding, Request
from services.endpoint import Endpoint, estimate_cost
from services.models import ModelSpec, Price

Answer = tuple[int, Any]


class Server(ThreadingHTTPServer):
    """Answers by `reply(path, body)` and remembers what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply: Callable[[str, dict[str, Any]], Answer] = said
        self.seen: list[tuple[str, dict[str, Any], str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append((self.path, body, self.headers.get("authorization", "")))
        status, answer = self.server.reply(self.path, body)
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


def said(path: str, body: dict[str, Any]) -> Answer:
    """Says the last message in capitals."""
    text = (body.get("prompt") or body["messages"][-1]["content"]).upper()
    choice = {"finish_reason": "stop"} | ({"text": text} if "prompt" in body else {"message": {"content": text}})
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": len(text)}}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def endpoint(server: Server, **spec: Any) -> Endpoint:
    return Endpoint(ModelSpec(api="local/tiny", base_url=server.url, **spec), wait=0.01)


def ask(text: str, draw: int = 0, seed: int = 0) -> Request:
    return Request(text, ({"role": "user", "content": text},), draw=draw, seed=seed)


def test_one_answer_a_request_of_a_stream_that_is_not_read_ahead(server: Server) -> None:
    taken = 0

    def stream() -> Iterator[Request]:
        nonlocal taken
        for i in range(100):
            taken += 1
            yield ask(f"question {i}")

    seen: list[tuple[int, int | None]] = []
    generate = endpoint(server, parallel=3)
    generate.progress = lambda done, total: seen.append((done, total))
    answers = generate(stream(), Decoding(max_new_tokens=7, temperature=0.5, stop=("x",)))
    first = next(answers)
    assert taken <= 12
    found = {first.id: first, **{answer.id: answer for answer in answers}}
    assert {i: a.text for i, a in found.items()} == {f"question {i}": f"QUESTION {i}" for i in range(100)}
    assert {a.finish for a in found.values()} == {"stop"}
    assert seen[-1] == (100, None)
    assert generate.usage.requests == 100
    assert generate.usage.prompt_tokens == 1000
    assert (server.seen[0][1]["max_tokens"], server.seen[0][1]["stop"]) == (7, ["x"])
    assert generate.name == "api:local/tiny"


def test_busy_servers_are_asked_again_and_wrong_requests_are_not(server: Server) -> None:
    tries: dict[str, int] = {}

    def reply(path: str, body: dict[str, Any]) -> Answer:
        text = body["messages"][0]["content"]
        tries[text] = tries.get(text, 0) + 1
        if text == "wrong":
            return 400, {"error": {"message": "no such thing"}}
        if text == "filtered":
            return 200, {"choices": [{"finish_reason": "content_filter", "message": {"content": None}}]}
        if text == "garbled":
            return 200, {"choices": []}
        return said(path, body) if tries[text] > 2 else (429 if tries[text] == 1 else 503, {"error": "busy"})

    server.reply = reply
    requests = [ask(text) for text in ("patient", "wrong", "filtered", "garbled")]
    found = {answer.id: answer for answer in endpoint(server)(requests, Decoding())}
    assert (found["patient"].text, tries["patient"]) == ("PATIENT", 3)
    assert (found["wrong"].finish, tries["wrong"]) == ("failed", 1)
    assert "no such thing" in found["wrong"].error
    assert found["filtered"].finish == found["garbled"].finish == "failed"


def test_choices_log_probabilities_and_raw_text(server: Server) -> None:
    def reply(path: str, body: dict[str, Any]) -> Answer:
        if path.endswith("/chat/completions"):
            enum = body["response_format"]["json_schema"]["schema"]["properties"]["choice"]["enum"]
            tokens = [
                {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}]},
                {"token": "b", "logprob": -0.25, "top_logprobs": []},
            ]
            message = {"content": json.dumps({"choice": enum[1]})}
            return 200, {"choices": [{"finish_reason": "stop", "message": message, "logprobs": {"content": tokens}}]}
        return said(path, body)

    server.reply = reply
    decoding = Decoding(choices=("yes", "no"), first_tokens=3)
    (answer,) = endpoint(server)([ask("well?")], decoding)
    assert (answer.text, answer.logprob, dict(answer.first_token_logprobs)) == ("no", -0.75, {"a": -0.5})
    (raw,) = endpoint(server)([Request("r", text="once upon")], Decoding())
    assert raw.text == "ONCE UPON"
    assert server.seen[-1][0] == "/v1/completions"


def test_a_key_is_sent_and_never_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_API_KEY", "a-very-secret-value")
    list(endpoint(server)([ask("hello")], Decoding()))
    assert server.seen[-1][2] == "Bearer a-very-secret-value"
    server.reply = lambda path, body: (401, {"error": {"message": "a-very-secret-value is not a key"}})
    with pytest.raises(UserError, match=r"HTTP 401: \*\*\* is not a key"):
        list(endpoint(server)([ask("hello")], Decoding()))
    monkeypatch.delenv("LOCAL_API_KEY")
    with pytest.raises(MissingError, match="export OTHER_KEY"):
        endpoint(server, key_env="OTHER_KEY")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(MissingError, match="export OPENAI_API_KEY"):
        Endpoint(ModelSpec(api="openai/gpt-4"))
    with pytest.raises(MissingError, match="base_url"):
        Endpoint(ModelSpec(api="nobody/x"))


def test_an_endpoint_that_is_down_ends_the_pass(server: Server) -> None:
    server.reply = lambda path, body: (503, {"error": {"message": "down"}})
    answers = []
    with pytest.raises(Unavailable, match="down"):
        answers += endpoint(server, parallel=1)([ask(str(i)) for i in range(50)], Decoding())
    assert len(server.seen) < 100


def test_the_rate_limit_spaces_calls(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr("services.endpoint.time.sleep", naps.append)
    monkeypatch.setattr("services.endpoint.time.monotonic", lambda: 100.0)
    list(endpoint(server, requests_per_minute=30, parallel=4)([ask(str(i)) for i in range(5)], Decoding()))
    assert sorted(naps) == pytest.approx([0, 2, 4, 6, 8])


def test_cost() -> None:
    spec = ModelSpec(api="openai/gpt-4", price=Price(prompt=30, completion=60))
    assert estimate_cost(spec, 1_000_000, 500_000) == 60
    assert estimate_cost(ModelSpec(api="openai/gpt-4"), 1, 1) is None
