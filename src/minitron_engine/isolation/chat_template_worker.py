"""The process in which chat templates run: one JSON line in, one out, until stdin ends.

Templates come with models from anywhere. Jinja's sandbox restricts them to text, this process
limits its memory, and chat_template.py ends it after a timeout. Run as a file: it imports nothing
of the package.
"""

import json
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

try:
    import resource
except ImportError:  # not on Windows: the timeout is the only limit there
    resource = None  # type: ignore[assignment]

_MEMORY = 1 << 29
_LONGEST = 16 << 20  # characters of a prompt


class _Generation(Extension):
    """{% generation %} marks an assistant's words for training; here only its content counts."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _fail(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
    # without the escapes for HTML of Jinja's own filter
    return json.dumps(value, ensure_ascii=ensure_ascii, **how)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _fail
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _render(request: dict[str, Any]) -> dict[str, str]:
    try:
        text = _environment().from_string(request["template"]).render(request["values"])
    except MemoryError:
        return {"error": "it takes too much memory"}
    except RecursionError:
        return {"error": "it recurses without end"}
    except Exception as error:
        return {"error": f"{error}" or type(error).__name__}
    return (
        {"text": text}
        if len(text) <= _LONGEST
        else {"error": f"its text is longer than {_LONGEST} characters"}
    )


def main() -> None:
    """Answer requests until there are no more."""
    with suppress(ValueError, OSError, AttributeError):  # not every system can
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_render(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
