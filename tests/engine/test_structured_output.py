"""Sampled answers are JSON that validates: schemas of every keyword, and usual pydantic models."""

import json
from collections.abc import Sequence
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import jsonschema
import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from helpers.json_schemas import SCHEMAS
from minitron_engine.generation.generate import prompt_tokens
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.generation.slot import GenerationRequest
from minitron_engine.generation.slots import Slots
from minitron_engine.generation.steps import GenerationSettings
from minitron_engine.llama.context import open_context
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model

_SLOTS, _CONTEXT = 8, 512
_FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER


class Colour(Enum):
    RED, GREEN = "red", "green"


class Address(BaseModel):
    street: str = Field(max_length=20)
    number: int = Field(ge=1, le=999)


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=20)
    age: int | None = Field(default=None, ge=0, le=150)
    address: Address


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    good: bool


class Pet(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Node(BaseModel):
    value: int = Field(ge=0, le=9)
    children: list["Node"] = Field(max_length=2)


class Event(BaseModel):
    id: UUID
    day: date
    at: datetime


class Point(BaseModel):
    x: float = Field(gt=-1, lt=1)
    where: tuple[int, bool]


class Tags(BaseModel):
    tags: list[Annotated[str, Field(pattern="^[a-z]{2,5}$")]] = Field(min_length=1, max_length=3)
    colour: Colour
    rating: Literal[1, 2, 3, 4, 5]


class Optional(BaseModel):
    note: str | None = Field(max_length=10)
    flag: bool = True
    nothing: None


class Table(BaseModel):
    cells: list[list[int]] = Field(max_length=2)
    title: Annotated[str, Field(max_length=12)] = "x"


MODELS: list[Any] = [
    Person,
    Address,
    Pet,
    Node,
    Event,
    Point,
    Tags,
    Optional,
    Table,
    list[Address],
    Person | Address,
    Literal["yes", "no", "maybe"],
]


def sampled(path: Path, schemas: Sequence[Any]) -> list[str | None]:
    """A text of temperature 1.5 for each schema, several at once; None where it has no end."""
    settings = ContextSettings(n_ctx=_SLOTS * _CONTEXT, n_batch=_SLOTS * 8, n_seq=_SLOTS)
    requests = []
    with open_model(ModelSettings(path)) as model, open_context(model, settings) as context:
        slots = Slots(context, _SLOTS)
        for seed, schema in enumerate(schemas):
            sampling = SamplingSettings(seed, temperature=1.5, json_schema=json.dumps(schema))
            generation = GenerationSettings(sampling, 300)
            requests.append(GenerationRequest(prompt_tokens(model, "JSON: "), generation))
            slots.submit(requests[-1])
        while not slots.idle:
            slots.step()
    assert not any(request.error for request in requests)
    ends = [request.result.finish_reason == "end" for request in requests]
    return [r.result.text if end else None for r, end in zip(requests, ends, strict=True)]


def check(path: Path, schemas: Sequence[Any]) -> None:
    texts = sampled(path, schemas)
    assert sum(text is not None for text in texts) >= 0.8 * len(schemas)
    for schema, text in zip(schemas, texts, strict=True):
        if text is not None:
            validator = jsonschema.Draft202012Validator(schema, format_checker=_FORMATS)
            validator.validate(json.loads(text))


@pytest.fixture(params=["llama", "nemotron"])
def model_path(request: pytest.FixtureRequest, short_llama: Path, nano_nemotron: Path) -> Path:
    return short_llama if request.param == "llama" else nano_nemotron


def test_sampler_follows_a_schema_of_every_keyword(model_path: Path) -> None:
    check(model_path, [several[0] for several in SCHEMAS.values()])


@pytest.mark.harden
def test_sampler_follows_every_schema(model_path: Path, nano_llama: Path) -> None:
    path = nano_llama if "llama" in model_path.name else model_path
    check(path, [schema for several in SCHEMAS.values() for schema in several])


def test_sampler_follows_pydantic_models(model_path: Path) -> None:
    adapters = [TypeAdapter(each) for each in MODELS]
    texts = sampled(model_path, [adapter.json_schema() for adapter in adapters])
    assert sum(text is not None for text in texts) >= 0.8 * len(texts)
    for adapter, text in zip(adapters, texts, strict=True):
        if text is not None:
            adapter.validate_json(text)
