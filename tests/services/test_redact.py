from __future__ import annotations

import pytest

from services.redact import redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://ana:pa55word@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
        ("https://hf_abcdefghijklmnopqrst@hub.co/x", "https://***@hub.co/x"),
        ("s3://bucket/key?X-Amz-Signature=abc123&part=1", "s3://bucket/key?X-Amz-Signature=***&part=1"),
        ("got hf_AbCdEfGhIjKlMnOpQrSt from env", "got *** from env"),
        ("Authorization: Bearer abcdefghijklm", "Authorization: Bearer ***"),
        ("OPENAI_API_KEY=sk-123 cuvee run", "OPENAI_API_KEY=*** cuvee run"),
        ("--api-key abc --seed 1", "--api-key *** --seed 1"),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
        ("mail me at ana@example.org about key=value", "mail me at ana@example.org about key=value"),
        ("s3://bucket/a@b.jsonl", "s3://bucket/a@b.jsonl"),
        ("sk-learn and max_tokens=512, eos_token=<|im_end|>", "sk-learn and max_tokens=512, eos_token=<|im_end|>"),
    ],
)
def test_texts(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(redact(text)) == expected


def test_values_under_a_telling_key() -> None:
    settings = {
        "models": [{"api_key": "whatever", "url": "http://u:p@h"}],
        "AWS_SECRET_ACCESS_KEY": "x",
        "aws_access_key_id": "y",
        "hf_token": "z",
        "password": "",
        "eos_token": "<|im_end|>",
        "max_tokens": 5,
        "key": "select-0123",
        "step_key": "select-0123",
        "steps": ("a", 1, None, 2.5),
    }
    assert redact(settings) == {
        "models": [{"api_key": "***", "url": "http://***@h"}],
        "AWS_SECRET_ACCESS_KEY": "***",
        "aws_access_key_id": "***",
        "hf_token": "***",
        "password": "",
        "eos_token": "<|im_end|>",
        "max_tokens": 5,
        "key": "select-0123",
        "step_key": "select-0123",
        "steps": ("a", 1, None, 2.5),
    }


def test_values_of_the_environment_wherever_they_appear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_JUDGE_KEY", "open sesame")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    assert redact({"error": "server said: open sesame is wrong; true"}) == {"error": "server said: *** is wrong; true"}
