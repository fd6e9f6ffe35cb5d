"""The chat page, used in a headless Chromium as a person would."""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from helpers.browser import Page, browsing, chromium
from helpers.server import serving
from helpers.support import with_template

pytestmark = pytest.mark.skipif(chromium() is None, reason="there is no Chromium here")

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
VISITS = count()
ANSWERS = "[...document.querySelectorAll('.assistant')].map(e => e.textContent)"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def url(nano_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = with_template(nano_llama, tmp_path_factory.mktemp("page") / "nano.gguf", TEMPLATE)
    with serving(model) as found:
        yield f"{found}/"


def fresh(tab: Page, url: str, width: int = 1280) -> Page:
    """The page as it is for somebody who comes for the first time."""
    tab.open(f"{url}?{next(VISITS)}", width)
    tab.value("localStorage.clear()")
    tab.open(f"{url}?{next(VISITS)}", width)
    tab.wait("document.title === 'nano'")
    return tab


@pytest.fixture
def page(tab: Page, url: str) -> Page:
    return fresh(tab, url)


def say(page: Page, text: str) -> None:
    page.value(f"$('prompt').value = {json.dumps(text)}")
    page.value("$('form').requestSubmit()")


def settle(page: Page) -> list[str]:
    """The answers, once nothing is at work."""
    page.wait("$('stop').disabled && document.querySelector('.assistant')")
    found: list[str] = page.value(ANSWERS)
    return found


def set_number(page: Page, name: str, value: float) -> None:
    page.value(f"$('{name}').value = {value}; $('{name}').dispatchEvent(new Event('input'))")


def test_chat_page_answers_with_its_settings(page: Page, url: str) -> None:
    for name, value in (("temperature", 0), ("max_tokens", 12)):
        set_number(page, name, value)
    say(page, "Who are you?")
    (first,) = settle(page)
    assert first and "12 tokens" in page.value("$('status').textContent")
    assert page.value("$('model').textContent") == "nano"
    # greedy: again the same words, and one answer still
    page.value("$('again').click()")
    assert settle(page) == [first]
    set_number(page, "temperature", 2)
    set_number(page, "seed", 7)
    page.value("$('again').click()")
    (other,) = settle(page)
    assert other != first
    say(page, "And where?")
    assert len(settle(page)) == 2
    page.value("$('new').click()")
    assert page.value(ANSWERS) == []
    # what was set is there the next time
    page.open(f"{url}?{next(VISITS)}")
    page.wait("document.title === 'nano'")
    assert page.value("$('max_tokens').value") == "12"


def test_chat_page_streams_and_stops(page: Page) -> None:
    set_number(page, "max_tokens", 200)
    page.value(
        "window.seen = new Set(); new MutationObserver(() => seen.add($('messages').textContent))"
        ".observe($('messages'), {subtree: true, childList: true, characterData: true})"
    )
    say(page, "Tell me everything")
    page.wait("seen.size > 4")
    page.value("$('stop').click()")
    (text,) = settle(page)
    assert text
    # what was said stays in the conversation
    assert page.value("messages.map(m => m.role)") == ["user", "assistant"]


def test_chat_page_shows_what_went_wrong(page: Page) -> None:
    say(page, "word " * 400)
    page.wait("document.querySelector('.error')")
    assert "context" in page.value("document.querySelector('.error.message').textContent")
    assert page.value("messages.length") == 1


def test_chat_page_shows_text_and_never_markup(page: Page) -> None:
    page.value(
        "add('assistant', 'a <b>b</b> <img src=x onerror=1>\\n```python\\nx < 1\\n```\\nend')"
    )
    assert page.value("document.querySelector('.assistant b, .assistant img')") is None
    assert page.value("document.querySelector('.assistant pre').textContent") == "x < 1"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_chat_page_fits_the_window(tab: Page, url: str, width: int, scheme: str) -> None:
    def is_dark() -> bool:
        color = tab.value("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g)")
        return sum(map(int, color)) < 200

    tab.color_scheme(scheme)
    fresh(tab, url, width)
    tab.value("$('settings').open = true; add('user', 'x'.repeat(300))")
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert is_dark() is (scheme == "dark")
    tab.value("$('theme').click()")
    assert is_dark() is (scheme == "light")


def test_chat_page_continues_texts_of_a_model_without_a_template(
    tab: Page, nano_llama: Path
) -> None:
    with serving(nano_llama) as found:
        tab.open(f"{found}/")
        tab.wait("document.title === 'nano'")
        assert "no chat template" in tab.value("$('status').textContent")
        set_number(tab, "max_tokens", 4)
        say(tab, "The old house")
        assert settle(tab)[0]


def test_chat_page_loads_nothing_from_elsewhere(url: str) -> None:
    from urllib.request import urlopen

    with urlopen(url) as answer:
        policy, text = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    assert "http://" not in text and "https://" not in text


def test_chat_page_asks_for_the_key(tab: Page, nano_llama: Path) -> None:
    with serving(nano_llama, api_key="secret") as found:
        tab.open(f"{found}/")
        tab.wait("$('status').className === 'error'")
        assert "API key" in tab.value("$('status').textContent")
        tab.value("$('key').value = 'secret'; $('key').dispatchEvent(new Event('change'))")
        tab.wait("document.title === 'nano'")
