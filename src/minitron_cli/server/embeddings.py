"""/v1/embeddings: vectors of texts, where the model gives them."""

import asyncio
import base64
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from starlette.responses import JSONResponse, Response

from minitron_cli.server.errors import BadRequest, problem
from minitron_cli.server.requests import MOST_CHOICES, Prompts
from minitron_cli.server.service import Service
from minitron_cli.server.validation import Strict
from minitron_core.errors import Usage

_NONE = (
    "this model gives no embeddings: its file does not say how to pool them; "
    "minitron serve --pooling mean or last chooses a way"
)


class EmbeddingRequest(Strict):
    """The body of /v1/embeddings."""

    refused: ClassVar[tuple[str, ...]] = ("dimensions",)

    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None


async def embed(body: dict[str, Any], service: Service) -> Response:
    """The answer to a request; status 501 where the model gives no embeddings."""
    request = EmbeddingRequest.of(body)
    embedder = service.embedder
    if embedder is None:
        return JSONResponse(problem(_NONE, "server_error", code="not_implemented"), 501)
    if len(request.input) > MOST_CHOICES:
        raise BadRequest(f"more than {MOST_CHOICES} texts in one request", "input")
    count, data = 0, []
    for number, text in enumerate(request.input):
        try:
            tokens = await asyncio.to_thread(embedder.checked, text)
        except Usage as error:
            raise BadRequest(str(error), "input") from None
        count += len(tokens)
        # one text at a time: the answers of others go on between them
        vector = await service.worker.run(partial(embedder.embed, tokens))
        shown = _encoded(vector) if request.encoding_format == "base64" else vector.tolist()
        data.append({"object": "embedding", "index": number, "embedding": shown})
    used = {"prompt_tokens": count, "total_tokens": count}
    answer = {"object": "list", "model": service.name, "data": data, "usage": used}
    return JSONResponse(answer)


def _encoded(vector: NDArray[np.float32]) -> str:
    """32-bit floats, least byte first, as OpenAI's own client asks for them."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
