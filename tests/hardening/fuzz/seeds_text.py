"""Sound texts and data of tasks: job files, grammars, schemas, templates, questions."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Sequence

from helpers.support import packed_choices

JOB = b"""[model]
source = "nano-llama"  # a comment
outtype = "f16"
[calibration]
text = ["calibration.txt", "more.txt"]
chunks = 100
ctx = 512
[quantize]
levels = ["Q4_K_M", "all"]
sizes = ["1.5G", "3.5bpw", "like:Q3_K_M", "kld:0.02"]
[measure]
text = "held-out.txt"
divergence = true
[tasks]
hellaswag = "h.txt"
limit = 5
[speed]
prompt = 8
[output]
directory = "out"
report = ["md", "html", "json"]
"""
JOB_WORDS = ("[", "]", "[[", "=", '"""', "'''", "{}", "[]", "1e999", "nan", "-1", "0x", "true")
JOB_WORDS += ("1979-05-27T07:32:00Z", '"../../x"', '"\\ud800"', "\x00", "model.source = 1", "#")
JOB_WORDS += ("99999999999999999999", "0", "[model]", "a.b.c.d", '"kld:."', '"1e400G"', '"-1bpw"')
JOB_WORDS += ('"like:"', '"0"', '["", 1]', '"owner/name"', "[" * 200, "{a=" * 150)

GRAMMARS = (
    'root ::= item+ "\\n"\nitem ::= [a-z]{1,3} | "\\x41" word*\nword ::= ("x" | .) # end\n',
    'root ::= object\nobject ::= "{" ws (pair ("," ws pair)*)? "}"\npair ::= string ":" ws string\n'
    'string ::= "\\"" [^"\\\\]* "\\""\nws ::= [ \\t\\n]{0,20}\n',
    'root ::= <[5]> !<[6]> | "yes" [^\\u00e9-\\U0001f600]\n',
)
GRAMMAR_WORDS = ("::=", "|", "(", ")", "{2,}", "{0,2000}", "{3}", "{,}", "*", "+", "?", ".", '"')
GRAMMAR_WORDS += ('""', "[", "]", "[^]", "[]", "[z-a]", "\\x", "\\xff", "\\U0011ffff", "\\uD800")
GRAMMAR_WORDS += ("root", "item", "<a>", "<[99999999999]>", "!<", "#", "\n", "\r", "\x00", "ü", "(")
GRAMMAR_WORDS += ("((((((((((", "))))))))))", "()", "root ::= ", "{99999999999999999999}", "😀")

SCHEMAS = (
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 5},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["a", 1, None]}, "maxItems": 3},
        },
        "required": ["name"],
        "additionalProperties": False,
    },
    {"$defs": {"n": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/n"}]}}, "$ref": "#/$defs/n"},
    {"type": "string", "pattern": "^(a|b)[c-e]{2,3}\\d+$"},
    {"allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"format": "date"}}}]},
    {"oneOf": [{"type": ["string", "null"]}, {"prefixItems": [{"type": "number"}]}]},
)

TEMPLATES = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{{ message.content | trim }}{% endfor %}{% if add_generation_prompt %}x{% endif %}",
    "{%- macro show(a, b=1) -%}{{ a ~ b }}{%- endmacro -%}{{ show(messages[0].role) }}"
    "{% set ns = namespace(n=0) %}{% for m in messages if m.role != 'x' %}{% set ns.n = ns.n + 1 %}"
    "{% if loop.first %}{% continue %}{% endif %}{{ loop.index0 }}{% else %}none{% endfor %}",
    "{{ messages | tojson(indent=2) }}{{ strftime_now('%d %b %Y') }}{{ bos_token }}"
    "{% generation %}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{% endgeneration %}{% filter upper %}a{% endfilter %}{# note #}{% raw %}{{ }}{% endraw %}",
)
TEMPLATE_WORDS = ("{{", "}}", "{%", "%}", "{#", "|", "(", ")", "[", "]", ".", "__class__", "~", "*")
TEMPLATE_WORDS += ("__mro__", "__globals__", "__subclasses__()", "__init__", "cycler", "joiner")
TEMPLATE_WORDS += ("range(10**9)", "'x' * 10**9", "**", "recursive", "{% include 'a' %}")
TEMPLATE_WORDS += ("{% extends '/etc/passwd' %}", "{% import 'os' as os %}", "| attr('format')")
TEMPLATE_WORDS += ("'{0.__class__}'.format(1)", "| map(attribute='__class__')", "loop", "self")
TEMPLATE_WORDS += ("messages.append(1)", "caller()", "super()", "lipsum(99)", "\x00", "not", "is")
TEMPLATE_WORDS += ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",)
TEMPLATE_WORDS += ("{% set messages = messages %}", "strftime_now('%s' * 99)", "(((((((((", "1e999")
TEMPLATE_WORDS += ("| tojson", "| pprint", "| xmlattr", "| format", "dict(a=1)", "{% do %}")


REPORT = {
    "rows": [
        {"model": "m", "level": "Q4_0", "ppl": 5.5, "accuracy_pct": 99, "kld_mean": 0.1},
        {"model": "n", "level": "F16", "ppl": 5, "accuracy_pct": None, "kld_mean": None},
    ]
}
CONVERSATION = {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": ""}]}


def lines(records: Sequence[object]) -> bytes:
    """JSON lines."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


HELLASWAG = b"A man sits.\n1\nHe stands.\nHe sings.\nHe eats.\nHe falls.\n" * 2
HELLASWAG_RECORDS = (
    {"ctx": "A", "activity_label": "B", "endings": ["a", "b", "c", "d"], "label": 1},
    {
        "ctx_a": "A",
        "ctx_b": "he",
        "activity_label": "B [title]",
        "endings": ["a [x]", "b"],
        "label": "0",
    },
)
WINOGRANDE = b'0,"The dog bit the cat since _ was mad, and big",dog,cat,1\n1,A _ b.,x,"y ""z""",2\n'
WINOGRANDE_RECORDS = ({"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "2"},)
ARC_RECORDS = (
    {"question": "Q?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
    {
        "question": {
            "stem": "Q",
            "choices": [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}],
        },
        "answerKey": "1",
    },
    {
        "instruction": "The question: Q?\n\nAnswer1: a\n\nAnswer2: b\n\nAnswer format: x",
        "answer": "answer2",
    },
)
MMLU = b'question,A,B,C,D,answer\nQ one,a,b,c,d,B\n"Q, two",a,b,c,d,3\n'
MMLU_RECORDS = ({"question": "Q", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "s"},)
GSM8K_RECORDS = (
    {"question": "Q?", "answer": "It is 5.\n#### 1,234.50"},
    {"question": "R", "answer": "#### -7"},
)


def choices() -> list[bytes]:
    """llama.cpp's binary file."""
    some = [("Q?", [("a", 1), ("b", 0)], [("c", 1)]), ("ü", [("x", 0), ("y", 1), ("z", 1)], [])]
    return [packed_choices(some), packed_choices(some[1:])]


def packed_texts() -> list[bytes]:
    """Questions in all compressions."""
    return [gzip.compress(HELLASWAG, mtime=0), bz2.compress(HELLASWAG), lzma.compress(HELLASWAG)]
