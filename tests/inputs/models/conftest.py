"""A hub with a small model on it."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.helpers import fake_hub
from tests.helpers.fake_hub import FakeHub
from tests.helpers.lab import CONFIG

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def on_hub(hub: FakeHub) -> str:
    """`org/tiny`, and the commit it is at."""
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    (hub.folder / digest).write_bytes(WEIGHTS)
    return hub.put(
        "org/tiny",
        {
            "config.json": json.dumps(CONFIG).encode(),
            "tokenizer_config.json": b"{}",
            "README.md": b"---\nlicense: mit\n---\n",
            "model.safetensors": fake_hub.Large(digest, len(WEIGHTS)),
            "pytorch_model.bin": b"code",
            "onnx/config.json": b"{}",
            ".hidden.json": b"{}",
        },
        private=False,
    )
