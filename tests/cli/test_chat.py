"""minitron chat: turns from a pipe, commands, templates, and models without one."""

import io
import json
import os
import pty
import select
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.support import Ran, fails, with_template
from minitron_cli.generation import chatting
from minitron_cli.generation.chat_input import turns
from minitron_cli.main import main
from minitron_cli.output import Output
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if 'no orders' in m.content %}{{ raise_exception('refused') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
)


@pytest.fixture(scope="module")
def model(nano_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(nano_llama, tmp_path_factory.mktemp("chat") / "chatty.gguf", TEMPLATE)


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a chat whose turns come from a pipe."""

    def run(lines: str, *arguments: object) -> Ran:
        words = ("minitron", "chat", *arguments, "-n", 6, "--temp", 0, "--threads", 1)
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        capfd.readouterr()
        with pytest.raises(SystemExit) as leave:
            main()
        captured = capfd.readouterr()
        return Ran(int(leave.value.code or 0), captured.out, captured.err)

    return run


def test_chat_answers_piped_lines(chat: Any, model: Path) -> None:
    ran = chat("Hello\n\nAgain\n", model, "--system", "Be kind.", "--json")
    assert ran.code == 0, ran.err
    messages = ran.document["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [m["content"] for m in messages if m["role"] == "user"] == ["Hello", "Again"]
    assert 0 < ran.document["context_tokens"] < ran.document["context"]
    plain = chat("Hello\nAgain\n", model, "--system", "Be kind.")
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    assert plain.out == "".join(f"{answer}\n" for answer in answers)
    assert plain.err == ""


def test_chat_takes_a_message_that_begins_with_a_path(chat: Any, model: Path) -> None:
    ran = chat("/usr/bin/env prints what?\nAnd then?\n", model, "-n", 2, "--json")
    said = [m["content"] for m in ran.document["messages"] if m["role"] == "user"]
    assert said == ["/usr/bin/env prints what?", "And then?"]


def test_chat_obeys_its_commands(chat: Any, model: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = f"Hello\n/save {saved}\n/clear\n/system Be brief.\nOther\n/load {saved}\n/regenerate\n"
    ran = chat(lines + "/exit\nnever read\n", model, "--json")
    assert ran.code == 0, ran.err
    kept = json.loads(saved.read_text())["messages"]
    assert [m["role"] for m in kept] == ["user", "assistant"]
    # greedy: another seed gives the same answer, to the same question
    assert ran.document["messages"] == kept
    help_shown = chat("/help\n", model).err
    for name in ("/system", "/regenerate", "/clear", "/save", "/load", "/exit"):
        assert name in help_shown


@pytest.mark.parametrize(
    ("lines", "code", "word"),
    [
        ("/nonsense\n", 2, "/help"),
        ("/save\n", 2, "file"),
        ("/load /nowhere/talk.json\n", 3, "talk.json"),
        ("/regenerate\n", 2, "no answer"),
        ("/system no orders\nHello\n", 2, "refused"),
    ],
)
def test_chat_explains_mistakes(chat: Any, model: Path, lines: str, code: int, word: str) -> None:
    fails(chat(lines, model), code, word)


def test_chat_offers_raw_without_a_template(chat: Any, nano_llama: Path) -> None:
    fails(chat("Hello\n", nano_llama), 4, "no chat template", "--raw")
    ran = chat("The old\nAnd then\n", nano_llama, "--raw", "--json")
    assert len(ran.document["messages"]) == 4
    fails(chat("", nano_llama, "--raw", "--system", "x"), 2, "--system")
    fails(chat("Hello\n", nano_llama, "--raw", "--lora", nano_llama), 8, "adapter")


def test_chat_takes_a_template_of_a_file(
    chat: Any, model: Path, nano_llama: Path, tmp_path: Path
) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text(TEMPLATE)
    expected = chat("Hello\n", model, "--json").document
    assert chat("Hello\n", nano_llama, "--chat-template", template, "--json").document == expected
    template.write_text("{{ bos_token }}Once upon a time{{ messages[0].content[:0] }}")
    other = chat("Hello\n", model, "--chat-template", template, "--json").document
    assert other["context_tokens"] != expected["context_tokens"]
    fails(chat("Hello\n", model, "--chat-template", tmp_path / "none"), 3, "none")
    fails(chat("Hello\n", model, "--chat-template", template, "--raw"), 2, "--raw")


def test_chat_takes_device_options(chat: Any, nano_llama: Path) -> None:
    assert chat("The\n", nano_llama, "--raw", "--device", "none").code == 0
    fails(chat("The\n", nano_llama, "--raw", "--device", "GPU9"), 2, "GPU9")


def test_chat_drops_the_beginning_of_a_long_conversation(chat: Any, model: Path) -> None:
    lines = "".join(f"Question {n} about the house in the wood\n" for n in range(20))
    ran = chat(lines, model, "--system", "Be kind.", "--ctx", 256, "--json")
    assert ran.code == 0 and "no longer fit" in ran.err
    assert len(ran.document["messages"]) == 41 and ran.document["context_tokens"] <= 256


def test_chat_takes_a_context_smaller_than_a_batch(chat: Any, nano_llama: Path) -> None:
    ran = chat("the house " * 80 + "\n", nano_llama, "--raw", "--ctx", 64, "-n", 3)
    assert ran.code == 0 and ran.out.strip() and not ran.err


def test_read_messages_refuses_damaged_files(chat: Any, model: Path, tmp_path: Path) -> None:
    for number, text in enumerate(("{", "[]", '{"messages": [{"role": "x", "content": ""}]}')):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        fails(chat(f"/load {path}\n", model), 8, "not a saved conversation")


def test_turns_joins_continued_lines() -> None:
    def read(text: str) -> list[str]:
        lines = iter(text.splitlines())
        return list(turns(lambda _prompt: next(lines, None)))

    assert read("one\n\n  \ntwo") == ["one", "two"]
    assert read("one \\\ntwo\\\n\nthree") == ["one \ntwo\n", "three"]
    assert read('"""a\n\nb"""\nc') == ["a\n\nb", "c"]
    assert read('"""only"""\n"""open\nend') == ["only", "open\nend"]
    assert read("open\\") == ["open"]


def test_chat_ends_the_answer_on_ctrl_c_and_the_session_on_ctrl_d(
    nano_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    words = ("chat", str(nano_llama), "--raw", "--ignore-eos", "--threads", "1")
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "minitron_cli", *words])
    seen = ""

    def expect(text: str, within: float = 60) -> None:
        nonlocal seen
        end = time.monotonic() + within
        while text not in seen and time.monotonic() < end:
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 4096).decode(errors="replace")
        assert text in seen, seen
        seen = seen.partition(text)[2]

    prompt = "\x1b[?2004h"  # pasted text comes between marks from here on
    expect(prompt)
    os.write(terminal, b"\x1b[200~The old\nhouse\x1b[201~\r")
    expect(" the ")
    os.write(terminal, b"\x03")
    expect("tokens/s")
    expect(prompt)
    os.write(terminal, b"/nonsense\r")
    expect("unknown command /nonsense")
    expect(prompt)
    os.write(terminal, b"\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(terminal)
    history = tmp_path / "minitron" / "chat-history"
    assert "+The old\n+house\n" in history.read_text(), "one message of two lines"
    assert history.stat().st_mode & 0o777 == 0o600


def test_chat_stops_a_template_that_loops(
    chat: Any, nano_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    path = with_template(nano_llama, tmp_path / "hostile.gguf", loops)
    monkeypatch.setattr(chatting, "open_template", partial(chatting.open_template, seconds=0.5))
    fails(chat("Hello\n", path), 8, "takes longer than")


def test_serve_leaves_out_a_template_that_loops(nano_llama: Path, tmp_path: Path) -> None:
    serving = pytest.importorskip("minitron_cli.server.serving")
    path = with_template(nano_llama, tmp_path / "hostile.gguf", "{{ 'x' * 10 ** 10 }}")
    with ExitStack() as stack:
        model = stack.enter_context(open_model(ModelSettings(path, vocab_only=True)))
        assert stack.enter_context(serving._template(model, None, Output())) is None
