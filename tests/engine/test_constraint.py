"""Answers follow their JSON schema, whatever the model prefers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from helpers.json_schemas import REFUSED, SCHEMAS
from minitron_core.errors import Usage
from minitron_engine.generation.constraint import Constraint, compile_schema
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model

_MOST_TOKENS = 300
_FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER


@pytest.fixture(scope="module", params=["llama", "nemotron"])
def model(request: pytest.FixtureRequest, nano_llama: Path, nano_nemotron: Path) -> Iterator[Model]:
    path = nano_llama if request.param == "llama" else nano_nemotron
    with open_model(ModelSettings(path, vocab_only=True)) as opened:
        yield opened


def drawn(model: Model, schema: Any, seed: int) -> bytes | None:
    """What comes of random tokens among those that are allowed; None where it does not end."""
    generator = np.random.default_rng(seed)
    constraint, text = Constraint(model, compile_schema(json.dumps(schema))), b""
    for _ in range(_MOST_TOKENS):
        token = int(generator.choice(constraint.allowed()))
        constraint.accept(token)
        if model.is_end(token):
            return text
        text += model.piece(token)
    return None


def test_schemas_are_at_least_150() -> None:
    assert sum(map(len, SCHEMAS.values())) >= 150


@pytest.mark.parametrize("keyword", SCHEMAS)
def test_constraint_allows_only_what_validates(model: Model, keyword: str) -> None:
    ended = 0
    for schema in SCHEMAS[keyword]:
        for seed in range(3):
            text = drawn(model, schema, seed)
            if text is not None:
                ended += 1
                validator = jsonschema.Draft202012Validator(schema, format_checker=_FORMATS)
                validator.validate(json.loads(text.decode()))
    assert ended >= 0.6 * 3 * len(SCHEMAS[keyword])


@pytest.mark.parametrize("named", REFUSED)
def test_compile_schema_names_what_it_does_not_support(named: str) -> None:
    with pytest.raises(Usage, match="JSON schema") as refused:
        compile_schema(json.dumps(REFUSED[named]))
    assert named in str(refused.value)


@pytest.mark.parametrize("text", ["{", "[]", "5", "null", "false", "", '{"a"' * 50_000])
def test_compile_schema_refuses_what_is_not_a_schema(text: str) -> None:
    with pytest.raises(Usage, match="JSON schema"):
        compile_schema(text)


def test_compile_schema_refuses_chains_that_overflow_its_engine() -> None:
    chain = {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(30_000)}
    with pytest.raises(Usage, match=r"\$ref"):
        compile_schema(json.dumps({"$defs": chain, "$ref": "#/$defs/a0"}))


def test_compile_schema_is_not_loosened_by_the_schema_itself() -> None:
    with pytest.raises(Usage, match="uniqueItems"):
        compile_schema('{"x-guidance": {"lenient": true}, "type": "array", "uniqueItems": true}')
