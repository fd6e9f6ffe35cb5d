"""Chat templates: what they can do, and what a hostile one cannot."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.support import with_template
from minitron_core.errors import Damaged, Unsupported, Usage
from minitron_engine.isolation.chat_template import ChatTemplate, chat_tokens, open_template
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model

CHATML = (
    "{% for message in messages %}\n"
    "    {%- if loop.first and message.role != 'system' %}{{ bos_token }}{% endif %}\n"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}\n"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASK = [{"role": "user", "content": " Häns & <Co> "}]


@pytest.fixture
def template() -> Iterator[ChatTemplate]:
    """A template to be given its source by a test."""
    found = ChatTemplate("", {"bos_token": "<s>", "add_generation_prompt": True}, 60.0)
    yield found
    found.close()


def render(template: ChatTemplate, source: str, **more: object) -> str:
    template.source = source
    return template.render(ASK, **more)


def test_chat_template_renders_what_published_ones_use(template: ChatTemplate) -> None:
    expected = "<s><|im_start|>user\nHäns & <Co><|im_end|>\n<|im_start|>assistant\n"
    assert render(template, CHATML) == expected
    assert render(template, CHATML, add_generation_prompt=False).endswith("<|im_end|>\n")
    assert render(template, "{{ {'a': '<ü>'} | tojson }}") == '{"a": "<ü>"}'
    loop = "{% for i in range(9) %}{% if i > 1 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert render(template, loop) == "01"
    assert render(template, "{% generation %}{{ messages[0].role }}{% endgeneration %}") == "user"
    assert render(template, "{{ strftime_now('%Y') }}").startswith("20")
    with pytest.raises(Usage, match="roles must alternate"):
        render(template, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(Usage, match="refuses"):
        render(template, "{% if %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ 'x' * 10 ** 10 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_chat_template_refuses_hostile_ones(template: ChatTemplate, source: str) -> None:
    with pytest.raises((Usage, Damaged)):
        render(template, source)
    assert render(template, "still here") == "still here"


def test_chat_template_ends_loops(template: ChatTemplate) -> None:
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    render(template, "warm")
    template.seconds = 0.5
    started = time.monotonic()
    with pytest.raises(Damaged, match="takes longer than"):
        render(template, loops)
    assert time.monotonic() - started < 20
    template.seconds = 60
    assert render(template, "still here") == "still here"


def test_open_template_needs_a_template(nano_llama: Path) -> None:
    with open_model(ModelSettings(nano_llama, vocab_only=True)) as model:
        with pytest.raises(Unsupported, match="no chat template"), open_template(model):
            pass
        # what a template begins with is not added again
        plain = chat_tokens(model, "Hello")
        assert plain[0] == model.bos
        assert chat_tokens(model, model.special(model.bos) + "Hello").tolist() == plain.tolist()


def test_open_template_has_tools_and_documents_as_none(nano_llama: Path, tmp_path: Path) -> None:
    source = (
        "{% if tools is not none or documents is not none %}wrong {% endif %}"
        "{% if tools == none %}{{ messages[0].content }}{% endif %}"
    )
    path = with_template(nano_llama, tmp_path / "templated.gguf", source)
    with (
        open_model(ModelSettings(path, vocab_only=True)) as model,
        open_template(model, 60.0) as found,
    ):
        assert found.render([{"role": "user", "content": "Hi"}]) == "Hi"
