"""Tool calls: how templates write them, how they are found in an answer, how one is forced.

A format belongs to a family of chat templates, and is recognised by the marks in a template. To add
one, add a row to `FORMATS`.
"""

import json
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ToolCall = dict[str, Any]

_BETWEEN = re.compile(r"[\s;,]*")
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


@dataclass(frozen=True)
class ToolFormat:
    """A way to write calls: JSON objects with a name and arguments, between two marks.

    sign: a regular expression that finds a template of this family. arguments: the key of the
    arguments. listed: the marks have an array of calls between them.
    """

    name: str
    sign: str
    opening: str = ""
    closing: str = ""
    arguments: str = "arguments"
    listed: bool = False


# in this order: the first whose sign a template has
FORMATS = (
    ToolFormat("Nemotron", "<TOOLCALL>", "<TOOLCALL>", "</TOOLCALL>", listed=True),
    # its template shows tools, and leaves out how the model calls them
    ToolFormat("Nemotron-Mini", "<tool> ", "<toolcall> ", " </toolcall>"),
    # Nemotron 3 and Qwen3-Coder have <function=…> between the same marks, GLM something else
    ToolFormat(
        "Hermes",
        r'(?s)(?=.*<tool_call>)(?=.*("arguments"|<function=))',
        "<tool_call>\n",
        "\n</tool_call>",
    ),
    ToolFormat("Mistral", r"\[TOOL_CALLS\]", "[TOOL_CALLS]", listed=True),
    ToolFormat("Llama 3.1", '"parameters": dictionary', arguments="parameters"),
)


def format_of(template: str) -> ToolFormat | None:
    """The format of a chat template's calls; None where it takes no tools, or in an unknown way."""
    if not re.search(r"\btools\b", template):
        return None
    return next((each for each in FORMATS if re.search(each.sign, template)), None)


@dataclass(frozen=True)
class ToolParser:
    """Finds the calls of known functions in an answer.

    tools: the parameters' schema of each function. begun: what of the answer the prompt ends with.
    most: calls to give, None for all.
    """

    format: ToolFormat
    tools: Mapping[str, Any]
    begun: str = ""
    most: int | None = None

    def parse(self, answer: str) -> tuple[str, list[ToolCall]]:
        """The text of an answer and its calls; all is text where one call cannot be read."""
        text, mark = self.begun + answer, self.format.opening.strip()
        at = text.find(mark) if mark else -1
        if at >= 0:
            found = self._between_marks(text[at:], mark)
            return (text[:at].rstrip(), found[: self.most]) if found else (answer, [])
        # the mark may be a control token, which has no text
        found = self._documents(text) if text.lstrip()[:1] in ("{", "[") else []
        return ("", found[: self.most]) if found else (answer, [])

    def _between_marks(self, text: str, mark: str) -> list[ToolCall]:
        calls: list[ToolCall] = []
        for part in text.split(mark)[1:]:
            inner, _, after = part.partition(self.format.closing.strip() or "\0")
            found = self._documents(inner) or self._functions(inner)
            if not found or after.strip():
                return []
            calls += found
        return calls

    def _documents(self, text: str) -> list[ToolCall]:
        """The calls of a text that is JSON documents and nothing else."""
        calls, at = list[ToolCall](), 0
        decoder = json.JSONDecoder()
        try:
            while at < len(text.rstrip()):
                at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
                value, at = decoder.raw_decode(text, at)
                calls += [
                    self._call(each) for each in (value if isinstance(value, list) else [value])
                ]
        except (ValueError, RecursionError):
            return []
        return calls

    def _call(self, value: Any) -> ToolCall:
        """A call as OpenAI has it; ValueError for what is none."""
        if not isinstance(value, dict) or value.get("name") not in self.tools:
            raise ValueError("not a call of a known function")
        arguments = value.get(self.format.arguments, value.get("arguments", {}))
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if not isinstance(arguments, dict):
            raise ValueError("the arguments are not an object")
        return call(value["name"], arguments)

    def _functions(self, text: str) -> list[ToolCall]:
        """Calls as Nemotron 3 writes them: each parameter between marks of its own."""
        calls: list[ToolCall] = []
        for name, inner in _FUNCTION.findall(text):
            if name not in self.tools:
                return []
            types = _property_types(self.tools[name])
            calls.append(
                call(name, {key: _value(v, types.get(key)) for key, v in _PARAMETER.findall(inner)})
            )
        return [] if _FUNCTION.sub("", text).strip() else calls


class ToolStream:
    """An answer as it comes: text that cannot be part of a call, and at the end the calls."""

    def __init__(self, parser: ToolParser) -> None:
        self._parser = parser
        self._mark = parser.format.opening.strip()
        self._text, self._shown = "", 0

    def push(self, text: str) -> str:
        """Add text; returns what can be shown."""
        self._text += text
        start, self._shown = self._shown, max(self._shown, self._safe())
        return self._text[start : self._shown]

    def finish(self) -> tuple[str, list[ToolCall]]:
        """What was held back, as text and as calls."""
        text, calls = self._parser.parse(self._text)
        return text[self._shown :], calls

    def _safe(self) -> int:
        text = self._text
        if self._parser.begun or text.lstrip()[:1] in ("", "{", "["):
            return 0
        if not self._mark:
            return len(text)
        at = text.find(self._mark)
        if at < 0:
            lengths = range(min(len(self._mark), len(text)), 0, -1)
            at = len(text) - next((n for n in lengths if text.endswith(self._mark[:n])), 0)
        # the space before a call belongs to it
        return len(text[:at].rstrip())


def call(name: str, arguments: dict[str, Any]) -> ToolCall:
    """A call as OpenAI has it; ValueError for arguments that JSON has no numbers for."""
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    # Mistral's templates take only identifiers of nine letters and digits
    identifier = secrets.token_hex(5)[:9]
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": text}}


def forced_schema(form: ToolFormat, tools: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The JSON schema of one call of one of these functions."""
    choices = [
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                form.arguments: {"$ref": f"#/$defs/{number}"},
            },
            "required": ["name", form.arguments],
            "additionalProperties": False,
        }
        for number, name in enumerate(names)
    ]
    one: dict[str, Any] = {"anyOf": choices} if len(choices) > 1 else choices[0]
    schema = {"type": "array", "items": one, "minItems": 1, "maxItems": 1} if form.listed else one
    defined = {str(n): _moved(tools[name], f"#/$defs/{n}") for n, name in enumerate(names)}
    return {**schema, "$defs": defined}


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references hold at another place of a document."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref")
    moved = {key: _moved(value, place) for key, value in schema.items()}
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = place + reference[1:]
    return moved


def _property_types(schema: Any) -> dict[str, Any]:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    items: Collection[Any] = properties.items() if isinstance(properties, dict) else ()
    return {key: each.get("type") if isinstance(each, dict) else None for key, each in items}


def _value(text: str, kind: Any) -> Any:
    """A parameter's value: JSON, unless the schema says that it is a text."""
    if kind == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
