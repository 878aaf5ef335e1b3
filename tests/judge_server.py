"""A scripted judge: a loopback server that answers questions about pictures, and its faults."""

import hashlib
from collections.abc import Callable
from typing import Any

from fault_server import FaultServer

from bench.loopback import last_turn

# The picture's SHA-256 and the question to the answer.
Script = Callable[[str, str], str]


def by_coin(image: str, question: str) -> str:
    """Yes or no by the picture and the question alone, each about as often."""
    digest = hashlib.sha256((image + question).encode()).digest()
    return "Yes." if digest[0] % 2 else "no"


class JudgeServer(FaultServer):
    """Answers by a script; `asked` lists (picture's SHA-256, question) in the order of arrival."""

    def __init__(self, script: Script = by_coin, **options: Any):
        super().__init__({}, [], **options)
        self._script = script
        self.asked: list[tuple[str, str]] = []

    def _text(self, body: dict[str, Any]) -> tuple[str, str]:
        text, png = last_turn(body)
        question, _, instruction = text.partition("?")
        assert instruction == " Answer with one word: yes or no."
        assert png.startswith(b"\x89PNG") and body["temperature"] == 0
        image = hashlib.sha256(png).hexdigest()
        self.asked.append((image, f"{question}?"))
        return self._script(image, f"{question}?"), "judge"
