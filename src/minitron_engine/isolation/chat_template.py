"""Chat templates: turn a conversation into a prompt, in a sandboxed process with limits."""

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
    """A model's template, rendered in its own process; `open_template` makes it. Thread-safe."""

    def __init__(self, source: str, values: dict[str, Any], seconds: float) -> None:
        self.source, self._values, self.seconds = source, values, seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, messages: Sequence[Message], **more: Any) -> str:
        """The prompt for the assistant's next message.

        messages: {"role": …, "content": …}; more: further values of the template.
        Errors: Usage where the template refuses the messages, Damaged where it takes too long.
        """
        values = self._values | more | {"messages": list(messages)}
        request = json.dumps({"template": self.source, "values": values}).encode() + b"\n"
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
            line = _line_within(stdout, self.seconds)
        except BrokenPipeError:
            line = b""
        except BaseException:
            self.close()
            raise
        if not line.endswith(b"\n"):
            self.close()
            raise Damaged(
                f"the model's chat template takes longer than {self.seconds:g} s "
                "or too much memory",
                "use minitron generate or minitron chat --raw, which need no template",
            )
        return line


def _line_within(stream: IO[bytes], seconds: float) -> bytes:
    """The next line; less than a line after a timeout or at the end of the stream."""
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
    """The model's own template; raises Unsupported where it has none.

    seconds: the longest a rendering may take, including the start of the process.
    """
    source = model.chat_template
    if not source:
        raise Unsupported(
            f"{model.path.name} has no chat template: it is a base model that continues text",
            "use minitron chat --raw or minitron generate",
        )
    bos, eos = model.special(model.bos), model.special(model.eos)
    with open_template_text(source, bos, eos, seconds) as template:
        yield template


@contextmanager
def open_template_text(
    source: str, bos: str, eos: str, seconds: float = 10.0
) -> Iterator[ChatTemplate]:
    """A template given as text, with the texts of the model's special tokens."""
    values = {
        "bos_token": bos,
        "eos_token": eos,
        "add_generation_prompt": True,
        # as in transformers: templates ask whether they are none
        "tools": None,
        "documents": None,
    }
    template = ChatTemplate(source, values, seconds)
    try:
        yield template
    finally:
        template.close()


def chat_tokens(model: Model, prompt: str) -> Tokens:
    """Token ids of a rendered prompt; no second BOS where the template wrote one."""
    bos = model.special(model.bos)
    written = bool(bos) and prompt.startswith(bos)
    return model.tokenize(prompt, add_special=not written, parse_special=True)
