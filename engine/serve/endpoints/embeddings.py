"""POST /v1/embeddings: texts or token ids -> vectors, by an encoder or by a model that generates text."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from engine.decoding.embedding import Encoded, json_arrays
from engine.serve.endpoints.answers import answer_job, check_ids
from engine.serve.endpoints.client import Client, prepare, read_body
from engine.serve.protocol.errors import ApiError
from engine.serve.protocol.requests import EmbeddingRequest

if TYPE_CHECKING:
    from torch import Tensor

    from engine.serve.engine import Engine
    from engine.serve.request_log import Served


async def embeddings(request: Request) -> Response:
    """Embed texts. A text that is too long is cut, as the model's checkpoint says; the answer counts such texts."""
    body = await read_body(EmbeddingRequest, request)

    async def work(client: Client, engine: Engine, served: Served) -> None:
        encoded = await prepare(request, lambda: encode(body, engine))
        served.prompt_tokens = encoded.tokens
        computed = await engine.embeddings.compute(encoded.rows)
        vectors, served.queue_seconds, served.prefill_seconds = computed
        data = await asyncio.to_thread(write, vectors, body.encoding_format)
        usage = {"prompt_tokens": encoded.tokens, "total_tokens": encoded.tokens}
        await client.send(
            {
                "object": "list",
                "data": data,
                "model": engine.name,
                "usage": {**usage, "truncated_inputs": encoded.truncated},
            }
        )

    return answer_job(request, body.model, work, generates=False)


def encode(body: EmbeddingRequest, engine: Engine) -> Encoded:
    """Token ids of all inputs. Text gets the tokenizer's special tokens, ids are taken as they are.

    Raises `ApiError` or `BareloopError`.
    """
    embedder, texts = engine.embedder, body.texts
    if body.dimensions not in (None, embedder.size):
        raise ApiError(
            400,
            f"dimensions is {body.dimensions}; vectors of {engine.name} have {embedder.size}, and are not shortened",
            param="dimensions",
        )
    strings = [text for text in texts if isinstance(text, str)]
    if strings:
        return embedder.encode(strings)
    rows = [ids for ids in texts if not isinstance(ids, str)]
    for row in rows:
        check_ids(engine, row, "input")
    longest = max(map(len, rows))
    if longest > embedder.max_length:
        raise ApiError(
            400,
            f"an input has {longest:,} tokens, and {engine.name} takes {embedder.max_length:,}; shorten it, or send "
            "text, which is cut",
            param="input",
            code="context_length_exceeded",
        )
    embedder.check(rows)
    return Encoded(rows, 0)


def write(vectors: Tensor, encoding: str) -> bytes:
    """The JSON array of an answer's objects, one for each of the vectors [n, D]."""
    entries = []
    for index, value in enumerate(_values(vectors, encoding)):
        entries.append(f'{{"object":"embedding","index":{index},"embedding":{value}}}')
        time.sleep(0)  # other threads get the interpreter, above all the event loop's
    return f"[{','.join(entries)}]".encode()


def _values(vectors: Tensor, encoding: str) -> Iterator[str]:
    """Each vector as JSON: a list of numbers, or float32, little-endian, in base64."""
    if encoding == "float":
        return json_arrays(vectors)
    return (f'"{base64.b64encode(row.tobytes()).decode()}"' for row in vectors.numpy().astype("<f4"))
