"""Log-probabilities in the two forms that OpenAI's API has for them."""

from collections.abc import Sequence
from typing import Any

from minitron_engine.generation.logprobs import TokenLogprob
from minitron_engine.generation.slot import GenerationRequest
from minitron_engine.llama.model import Model


def completion_logprobs(
    model: Model,
    request: GenerationRequest,
    *,
    echo: bool = False,
    answer: bool = True,
    logprobs: Sequence[TokenLogprob] | None = None,
    start: int = 0,
) -> dict[str, Any]:
    """Those of /v1/completions: four lists, with an element for each token.

    echo: the prompt's tokens too, the first of which has none. answer: those of the answer.
    logprobs: these instead of all of the answer. start: the first one's place in the text.
    """
    result = request.result
    found: list[TokenLogprob] = list(result.prompt_logprobs) if echo else []
    if answer:
        found += result.logprobs if logprobs is None else logprobs
    tokens: list[str] = [token_text(model, int(request.tokens[0]))] if echo else []
    values: list[float | None] = [None] * len(tokens)
    tops: list[dict[str, float] | None] = [None] * len(tokens)
    for each in found:
        tokens.append(token_text(model, each.token))
        values.append(each.logprob)
        tops.append(_top(model, each))
    ids = [*request.tokens[:1].tolist()] * echo + [each.token for each in found]
    offsets = []
    for token in ids:
        offsets.append(start)
        start += len(model.piece(token).decode(errors="ignore"))
    return {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def chat_logprobs(model: Model, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Those of /v1/chat/completions: an object for each token, with its bytes."""
    content = []
    for each in logprobs:
        top = [_described(model, token, value) for token, value in each.top]
        content.append(_described(model, each.token, each.logprob) | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def token_text(model: Model, token: int) -> str:
    """A token as text; one that is not whole characters as OpenAI writes it: bytes:\\xe2\\x80."""
    data = model.piece(token, special=True)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _described(model: Model, token: int, logprob: float) -> dict[str, Any]:
    data = list(model.piece(token, special=True))
    return {"token": token_text(model, token), "logprob": logprob, "bytes": data}


def _top(model: Model, each: TokenLogprob) -> dict[str, float]:
    """The likeliest by their text, and the token itself; the likelier of two with the same text."""
    found: dict[str, float] = {}
    for token, value in (*each.top, (each.token, each.logprob)):
        found.setdefault(token_text(model, token), value)
    return found
