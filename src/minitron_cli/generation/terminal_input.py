"""Messages typed on a terminal: edited, completed, remembered, and pasted as one message.

Loads prompt_toolkit, so only a chat on a terminal imports this module.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.output.vt100 import Vt100_Output

from minitron_cli.generation.chat_input import ReadLine

# commands that name a file
_WITH_FILE = ("/save", "/load")


class CommandCompleter(Completer):
    """Completes a command at the beginning of a message, and the file that it names.

    commands: by name, as they are typed, what each does.
    """

    def __init__(self, commands: Mapping[str, str]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """The completions of what stands before the cursor."""
        text = document.text_before_cursor
        name, space, rest = text.partition(" ")
        if space and name in _WITH_FILE:
            yield from self._paths.get_completions(Document(rest), event)
        elif text.startswith("/") and not space:
            yield from self._matching(text)

    def _matching(self, text: str) -> Iterator[Completion]:
        for usage, meaning in self._commands.items():
            name = usage.split()[0]
            if name.startswith(text):
                yield Completion(name, -len(text), display=usage, display_meta=meaning)


def history_path() -> Path:
    """Where the messages of earlier chats are kept, as the XDG base directories say."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "minitron" / "chat-history"


def open_history(path: Path) -> History:
    """The history in a file that only its owner reads; in memory where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        with path.open("ab"):
            return FileHistory(path)
    except OSError:
        return InMemoryHistory()


def terminal_reader(
    commands: Mapping[str, str],
    history: History,
    keys: Input | None = None,
    screen: Output | None = None,
) -> ReadLine:
    """Messages of a terminal, None at its end (Ctrl-D); Ctrl-C raises KeyboardInterrupt.

    keys, screen: the terminal of the process by default.
    """
    screen = screen or create_output()
    if isinstance(screen, Vt100_Output):
        screen.enable_cpr = False  # terminals that do not answer would be warned about
    session: PromptSession[str] = PromptSession(
        history=history,
        completer=CommandCompleter(commands),
        complete_while_typing=True,
        reserve_space_for_menu=4,
        input=keys,
        output=screen,
    )

    def ask(prompt: str) -> str | None:
        try:
            return session.prompt(prompt)
        except EOFError:
            return None

    return ask
