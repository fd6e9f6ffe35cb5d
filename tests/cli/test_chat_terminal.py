"""Messages typed on a terminal: pasted, completed, remembered."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from minitron_cli.generation.chat_input import turns
from minitron_cli.generation.chatting import HELP
from minitron_cli.generation.terminal_input import (
    CommandCompleter,
    history_path,
    open_history,
    terminal_reader,
)

UP = "\x1b[A"


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe:
        yield pipe


def test_terminal_reader_takes_pasted_lines_as_one_message(keys: PipeInput) -> None:
    ask = terminal_reader(HELP, InMemoryHistory(), keys, DummyOutput())
    keys.send_text("Explain:\x1b[200~\ndef f():\n    return 1\n\x1b[201~\rAnd this?\r\x04")
    assert list(turns(ask)) == ["Explain:\ndef f():\n    return 1\n", "And this?"]


def test_terminal_reader_remembers_messages(keys: PipeInput, tmp_path: Path) -> None:
    history = tmp_path / "state" / "chat-history"
    ask = terminal_reader(HELP, open_history(history), keys, DummyOutput())
    keys.send_text("first\rsecond\r")
    assert [ask("> "), ask("> ")] == ["first", "second"]
    again = terminal_reader(HELP, open_history(history), keys, DummyOutput())
    keys.send_text(f"{UP}{UP}\r")
    assert again("> ") == "first"
    assert history.stat().st_mode & 0o777 == 0o600


def test_terminal_reader_raises_on_ctrl_c(keys: PipeInput) -> None:
    ask = terminal_reader(HELP, InMemoryHistory(), keys, DummyOutput())
    keys.send_text("half\x03")
    with pytest.raises(KeyboardInterrupt):
        ask("> ")


def completions(text: str) -> list[str]:
    event = CompleteEvent(completion_requested=True)
    return [each.text for each in CommandCompleter(HELP).get_completions(Document(text), event)]


def test_command_completer_knows_commands_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk.json").touch()
    assert completions("/s") == ["/system", "/save"]
    assert completions("/load ta") == ["lk.json"]
    assert completions("What is /s") == completions("/system you") == completions("") == []


def test_open_history_stays_in_memory_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert isinstance(open_history(tmp_path / "file" / "history"), InMemoryHistory)
    assert isinstance(open_history(tmp_path / "history"), FileHistory)


def test_history_path_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert history_path() == Path("/state/minitron/chat-history")
