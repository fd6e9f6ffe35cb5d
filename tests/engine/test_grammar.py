"""Grammars are checked before llama.cpp sees them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitron_core.errors import Usage
from minitron_engine.isolation.grammar import check_grammar
from minitron_engine.llama.binding import api
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model

GOOD = (
    'root ::= "a"',
    'root ::= ("yes" | "no")+ [0-9]{2,4}',
    '# a comment\nroot ::= item ( # another\n  item\n)? .\n\nitem ::= [^a-z\\]\\x41\\u00e9-] "\\n"',
    "root ::= x*\r\nx ::= [a-] | [^-]",
    'root ::= "x" root | ',
    "root ::= <[5]> !<[6]>",
    'root ::= a\na ::= b{0,3}\nb ::= "c" | ',
)
BAD = {
    "root ::= (": r"line 1, column 11: expected \)",
    'root ::= "a': 'expected "',
    "root ::= [a": r"expected \]",
    "root := 1": "expected ::=",
    "root ::= other": "a rule other",
    'first ::= "a"': "no rule named root",
    "root ::= *": r"nothing stands before \*",
    'root ::= "a"{2001}': "more than 2000",
    'root ::= ("a"{0,1000}){0,1000}': "repetitions of repetitions",
    'root ::= "a"{x}': "expected a repetition",
    'root ::= root "a"': "rule root begins with itself",
    'root ::= a root "z" | "x"\na ::= b\nb ::= "" | "y"': "begins with itself",
    'root ::= ("a"?)*': "may be empty",
    'root ::= "\\q"': "a character or an escape",
    "root ::= <nothing>": "not one token",
    'root ::= "a"\n)': "line 2, column 1",
    "root ::= " + "(" * 5000: "nested too deeply",
    'root ::= "a\0"': "NUL",
}


def no_token(_text: str) -> bool:
    return False


@pytest.mark.parametrize("text", GOOD)
def test_check_grammar_accepts_what_llama_cpp_accepts(text: str, nano_llama: Path) -> None:
    check_grammar(text, no_token)
    with open_model(ModelSettings(nano_llama, vocab_only=True)) as model:
        sampler = api.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
        assert sampler
        api.llama_sampler_free(sampler)


@pytest.mark.parametrize("text", BAD)
def test_check_grammar_refuses_with_a_reason(text: str) -> None:
    with pytest.raises(Usage, match=BAD[text]):
        check_grammar(text, no_token)


@given(st.text(alphabet='ab"[]()|*+?{}1,:= \n\\.^-<>!#', max_size=40))
def test_check_grammar_survives_any_text(text: str) -> None:
    try:
        check_grammar("root ::= " + text, no_token)
    except Usage as error:
        assert "grammar" in str(error)
