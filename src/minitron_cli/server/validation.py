"""From a body to a request model: pydantic's findings become one clear line and a field's name."""

import json
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from minitron_cli.server.errors import BadRequest
from minitron_core.quoting import quoted

# errors of a number that is of another kind, or out of its field's range
_NUMERIC = {
    *("int_type", "int_from_float", "int_parsing_size", "float_type", "finite_number"),
    *("greater_than_equal", "less_than_equal"),
}
_REASONS = {
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "missing": "is required",
    "too_short": "must not be empty",
    "float_type": "must be a number",
    "int_type": "must be an integer",
    "finite_number": "must be a number",
}
# OpenAI's own, without effect on a local model's answer
_NO_EFFECT = {
    *("metadata", "model", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
    *("service_tier", "store", "user"),
}


class Strict(BaseModel):
    """A JSON object whose values have exactly the types that its fields declare.

    refused: what would change the answer and is not implemented. Other unknown names are kept in
    `ignored`, so that the reply can name them.
    """

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)
    refused: ClassVar[tuple[str, ...]] = ()

    @property
    def ignored(self) -> tuple[str, ...]:
        """The names that nothing here knows."""
        extra = self.model_extra or {}
        return tuple(n for n, value in extra.items() if value is not None and n not in _NO_EFFECT)

    @classmethod
    def of(cls, body: dict[str, Any]) -> Self:
        """The request that a body makes; BadRequest names the first field that is wrong."""
        try:
            found = cls.model_validate(body)
        except ValidationError as error:
            raise _refusal(cls, error.errors(include_url=False)[0]) from None
        for name in cls.refused:
            if body.get(name):
                raise BadRequest(f"{name} is not supported", name)
        return found


def parse(body: bytes) -> dict[str, Any]:
    """The body as a JSON object; BadRequest otherwise."""
    try:
        found = json.loads(body)
        # JSON can name half a surrogate pair, which is not text
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadRequest("the body must be a JSON object")
    return found


def _refusal(model: type[BaseModel], error: ErrorDetails) -> BadRequest:
    path = ""
    for part in error["loc"]:
        # keys are the client's, too: they must not break the line
        name = quoted(part).strip("'\"")
        path += f"[{part}]" if isinstance(part, int) else f".{name}" if path else name
    kind, context = error["type"], error.get("ctx", {})
    field = model.model_fields.get(str(error["loc"][0])) if len(error["loc"]) == 1 else None
    if kind == "value_error":
        reason = str(context["error"])
    elif kind == "literal_error":
        reason = f"must be {context['expected']}".replace("'", "")
    elif kind in _NUMERIC and field is not None:
        reason = _number(field)
    else:
        reason = _REASONS.get(kind, error["msg"][:1].lower() + error["msg"][1:])
    return BadRequest(f"{path} {reason}".strip(), path or None)


def _number(field: FieldInfo) -> str:
    what = "an integer" if int in (field.annotation, *get_args(field.annotation)) else "a number"
    low = next(each.ge for each in field.metadata if hasattr(each, "ge"))
    high = next(each.le for each in field.metadata if hasattr(each, "le"))
    return f"must be {what} from {_exact(low)} to {_exact(high)}"


def _exact(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"
