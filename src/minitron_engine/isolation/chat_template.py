"""Chat templates: a conversation becomes a prompt, in a sandbox that cannot hang."""

import json
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from minitron_core.errors import Damaged, Unsupported, Usage
from minitron_engine.llama.model import Model
from minitron_engine.llama.tokenization import Tokens

Message = dict[str, Any]

_WORKER = Path(__file__).with_name("chat_template_worker.py")


class ChatTemplate:
    """A model's template in a process of its own; made by `open_template`. Threads may share it."""

    def __init__(self, source: str, values: dict[str, Any], seconds: float) -> None:
        self._source, self._values, self._seconds = source, values, seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, messages: Sequence[Message], **more: Any) -> str:
        """The prompt that asks for the assistant's next message.

        messages: {"role": …, "content": …}; more: further values of the template.
        Errors: Usage where the template refuses the messages, Damaged where it takes too long.
        """
        values = self._values | more | {"messages": list(messages)}
        request = json.dumps({"template": self._source, "values": values}).encode() + b"\n"
        with self._lock:
            answer = json.loads(self._ask(request))
        if "error" in answer:
            reason = " ".join(str(answer["error"]).split())[:300]
            raise Usage(f"the model's chat template refuses the conversation: {reason}")
        return str(answer["text"])

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, request: bytes) -> bytes:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C ends an answer, not this process
            )
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(request)
            stdin.flush()
            line = _line_within(stdout, self._seconds)
        except BrokenPipeError:
            line = b""
        except BaseException:
            self.close()
            raise
        if not line.endswith(b"\n"):
            self.close()
            raise Damaged(
                f"the model's chat template does not end within {self._seconds:g} s, "
                "or takes too much memory",
                "give the text raw instead: minitron generate, or minitron chat --raw",
            )
        return line


def _line_within(stream: IO[bytes], seconds: float) -> bytes:
    """The next line; less than a line where it does not come in time or the stream ends."""
    deadline, line = time.monotonic() + seconds, b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([stream], [], [], left)[0]:
            break
        part = stream.read1(1 << 20)  # type: ignore[attr-defined]
        if not part:
            break
        line += part
    return line


@contextmanager
def open_template(model: Model, seconds: float = 10.0) -> Iterator[ChatTemplate]:
    """The model's own template. Unsupported: it has none.

    seconds: what a rendering may take, the start of its process included.
    """
    source = model.chat_template
    if not source:
        raise Unsupported(
            f"{model.path.name} has no chat template: it continues texts and knows no turns",
            "minitron chat --raw continues what you write, and so does minitron generate",
        )
    values = {
        "bos_token": model.special(model.bos),
        "eos_token": model.special(model.eos),
        "add_generation_prompt": True,
    }
    template = ChatTemplate(source, values, seconds)
    try:
        yield template
    finally:
        template.close()


def chat_tokens(model: Model, prompt: str) -> Tokens:
    """Token ids of a rendered prompt; a BOS that the template wrote itself is not added again."""
    bos = model.special(model.bos)
    written = bool(bos) and prompt.startswith(bos)
    return model.tokenize(prompt, add_special=not written, parse_special=True)
