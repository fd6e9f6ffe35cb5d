"""`minitron chat`: the session, its commands, and saved conversations."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minitron.generation import DEFAULT_CONTEXT, context_size
from minitron.loading import load
from minitron_cli.generation.chat_input import reader, turns
from minitron_cli.inputs import note_full_gpu, note_long_context, note_missing_gpu
from minitron_cli.output import Output
from minitron_core.atomic_files import write_whole
from minitron_core.errors import Damaged, MinitronError, NotFound, Usage
from minitron_core.text_encoding import as_utf8
from minitron_engine.generation.chat import Conversation
from minitron_engine.generation.sampling import settings_for
from minitron_engine.generation.slots import Slots
from minitron_engine.generation.steps import Generation, GenerationSettings, GenerationStep
from minitron_engine.isolation.chat_template import (
    ChatTemplate,
    open_template,
    open_template_text,
)
from minitron_engine.llama.adapters import Adapter, apply_adapters
from minitron_engine.llama.context import open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import (
    ContextSettings,
    GpuLayers,
    ModelSettings,
    Placement,
)
from minitron_engine.process import interrupts
from minitron_quant.chunking import read_text

_ROLES = ("system", "user", "assistant")

HELP = {
    "/help": "show this",
    "/system TEXT": "set the system message; without TEXT, remove it",
    "/regenerate": "answer the last message again",
    "/clear": "forget the conversation, but not the system message",
    "/save FILE": "write the conversation as JSON",
    "/load FILE": "continue a saved conversation",
    "/exit": "leave, as at the end of the input (Ctrl-D)",
    '\\ or """': "continue a line on the next; enclose several lines; pasted text is one message",
}


@dataclass(frozen=True)
class ChatRequest:
    """The request of the command line; a context of 0 tokens lets the command choose."""

    model: Path
    system: str | None
    raw: bool
    sampling: Mapping[str, Any]
    n_predict: int
    stop: tuple[str, ...]
    context: ContextSettings
    gpu_layers: GpuLayers
    placement: Placement
    chat_template: Path | None = None
    adapters: tuple[Adapter, ...] = ()


def converse(request: ChatRequest, out: Output) -> int:
    """Answer every message until the input ends; returns the exit code."""
    note_missing_gpu(out, request.gpu_layers)
    settings = replace(request.context, n_ctx=request.context.n_ctx or DEFAULT_CONTEXT)
    with ExitStack() as stack:
        loading = ModelSettings(
            request.model, request.gpu_layers, placement=request.placement, context=settings
        )
        model = stack.enter_context(load(loading))
        note_full_gpu(out, model)
        note_long_context(out, model, request.context.n_ctx)
        template = None if request.raw else stack.enter_context(_template(request, model))
        if not request.context.n_ctx:
            settings = replace(settings, n_ctx=context_size(model))
        context = stack.enter_context(open_context(model, settings))
        apply_adapters(context, request.adapters)
        slots = Slots(context, 1)
        stack.callback(slots.close)
        sampling = settings_for(model, request.sampling)
        generation = GenerationSettings(sampling, request.n_predict, request.stop)
        conversation = Conversation(model, slots, generation, template)
        if request.system:
            conversation.set_system(request.system)
        if out.interactive:
            out.note(f"{request.model.name} on {model.device}; /help lists the commands")
        return _Session(conversation, out).run()


def _template(request: ChatRequest, model: Model) -> AbstractContextManager[ChatTemplate]:
    """The template in the file that was named, or the model's own."""
    if request.chat_template is None:
        return open_template(model)
    bos, eos = model.special(model.bos), model.special(model.eos)
    return open_template_text(read_text(request.chat_template), bos, eos)


class _Session:
    """A conversation on a terminal or through a pipe."""

    def __init__(self, conversation: Conversation, out: Output) -> None:
        self._conversation, self._out = conversation, out
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/clear": self._clear,
            "/save": self._save,
            "/load": self._load,
            "/system": conversation.set_system,
            "/regenerate": lambda _: self._show(conversation.regenerate()),
        }
        self._interrupted = False
        self._on_terminal = sys.stdin.isatty()

    def run(self) -> int:
        """Message by message until the end; the first failure ends a session without a terminal."""
        for text in turns(reader(HELP)):
            name, _, rest = text.partition(" ")
            if name in ("/exit", "/quit"):
                break
            try:
                self._turn(name, rest.strip(), text)
            except MinitronError as error:
                if not self._on_terminal:
                    raise
                self._out.error(str(error), error.hint)
            if self._interrupted and not self._on_terminal:
                return interrupts.INTERRUPTED
        if self._out.as_json:
            conversation = self._conversation
            document = {"messages": conversation.messages, "context_tokens": conversation.used}
            self._out.document(document | {"context": conversation.n_ctx})
        return 0

    def _turn(self, name: str, rest: str, text: str) -> None:
        if name in self._commands:
            self._commands[name](rest)
        elif re.fullmatch(r"/[a-z]+", text):
            raise Usage(f"unknown command {name}", "/help lists them")
        else:
            # a message may begin with a path
            self._show(self._conversation.say(text))

    def _show(self, steps: Iterator[GenerationStep]) -> None:
        out, conversation, result = self._out, self._conversation, Generation()
        with suppress(KeyboardInterrupt), interrupts.deferred():
            for step in steps:
                result.add(step)
                if step.text and not out.as_json:
                    out.text(step.text, end="")
        if not out.as_json:
            out.text("")
        self._interrupted = result.finish_reason == "interrupted"
        if conversation.left_out:
            out.note("the oldest messages no longer fit into the context; --ctx makes it larger")
        if result.finish_reason == "context":
            out.note("stopped: the context is full")
        if out.interactive:
            out.note(
                f"{conversation.used} of {conversation.n_ctx} tokens; "
                f"{result.timings.tokens_per_second:.1f} tokens/s"
            )

    def _help(self, _rest: str) -> None:
        for name, meaning in HELP.items():
            self._out.note(f"{name:14} {meaning}")

    def _clear(self, _rest: str) -> None:
        kept = [message for message in self._conversation.messages if message["role"] == "system"]
        self._conversation.messages = kept

    def _save(self, rest: str) -> None:
        path = Path(_named(rest, "/save")).expanduser()
        document = {"messages": self._conversation.messages}
        write_whole(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        self._out.note(f"wrote {path}")

    def _load(self, rest: str) -> None:
        self._conversation.messages = read_messages(Path(_named(rest, "/load")).expanduser())
        self._out.note(f"{len(self._conversation.messages)} messages")


def _named(rest: str, command: str) -> str:
    if not rest:
        raise Usage(f"{command} needs the name of a file")
    return rest


def read_messages(path: Path) -> list[dict[str, Any]]:
    """The messages of a saved conversation. Errors: NotFound, Damaged."""
    try:
        found = json.loads(as_utf8(path.read_bytes()))["messages"]
        messages = [{key: str(entry[key]) for key in ("role", "content")} for entry in found]
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{path} is not a saved conversation") from error
    if any(message["role"] not in _ROLES for message in messages):
        raise Damaged(f"{path} is not a saved conversation: roles are {', '.join(_ROLES)}")
    return messages
