"""Texts as chunks of tokens, decoded as llama.cpp's tools decode them.

Source: perplexity() and compute_imatrix() of llama.cpp 0c1e57098. The text is tokenized as a
whole; chunk i has the tokens [i·n_ctx, (i+1)·n_ctx), the first one replaced by BOS on the way in
where the model wants BOS; what is left over at the end is not used.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from minitron_core.errors import Denied, NotFound, Unsupported, Usage
from minitron_core.lfs_pointer import refuse_lfs_pointer
from minitron_core.text_encoding import as_utf8
from minitron_engine.llama.batch import Batch
from minitron_engine.llama.context import Context, Logits
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings
from minitron_engine.llama.tokenization import Tokens

# of the logits of a decode: allocating more takes longer than decoding more chunks saves
_LOGITS_BYTES = 1 << 27
# hears what share of the chunks that are decoded together is done, but for the end
PartDone = Callable[[float], None]


@dataclass(frozen=True)
class ChunkSettings:
    """n_ctx tokens a chunk, n_batch tokens a decode, at most `limit` chunks (None for all).

    n_ubatch: tokens that the device takes at once.

    stride: chunks that overlap, each beginning `stride` tokens after the one before, of which the
    last `stride` tokens are scored; None for chunks side by side, scored in their second half.
    """

    n_ctx: int = 512
    n_batch: int = 2048
    limit: int | None = None
    threads: int | None = None
    parse_special: bool = False
    stride: int | None = None
    n_ubatch: int = 512

    @property
    def n_seq(self) -> int:
        """How many chunks are decoded together."""
        return max(1, self.n_batch // self.n_ctx)

    @property
    def first_output(self) -> int:
        """The first position whose prediction is scored; the last of a chunk predicts nothing."""
        return self.n_ctx // 2 if self.stride is None else self.n_ctx - 1 - self.stride

    def bounded(self, n_vocab: int) -> Self:
        """As few chunks a decode as keep the logits of their scored positions small, at least one.

        With a large vocabulary one chunk is enough to decode at full speed, and the less memory a
        model takes, the more models fit together.
        """
        chunk_bytes = 4 * n_vocab * (self.n_ctx - self.first_output)
        together = max(1, _LOGITS_BYTES // max(1, chunk_bytes))
        return replace(self, n_batch=together * self.n_ctx) if together < self.n_seq else self

    def part_of(self, together: int) -> int:
        """How many tokens of each chunk to decode at once where no logits are read.

        llama.cpp would split the whole the same way: rows keep their order, and it reserves less
        memory for logits.
        """
        step = self.context().n_ubatch // together
        return min(self.n_batch, self.n_ctx, max(1, step))

    def context(self) -> ContextSettings:
        """The context that takes `n_seq` chunks at once."""
        total = self.n_seq * self.n_ctx
        return ContextSettings(
            n_ctx=total,
            n_batch=min(self.n_batch, total),
            n_ubatch=self.n_ubatch,
            n_seq=self.n_seq,
            threads=self.threads,
        )


def read_text(path: Path) -> str:
    """A text file without one newline at its end, as llama.cpp's -f; odd bytes survive.

    A byte order mark is not part of the text; a Git LFS pointer is refused.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error
    except OSError as error:
        raise Denied(f"{path} cannot be read: {error.strerror}") from error
    refuse_lfs_pointer(path, data)
    return as_utf8(data).removesuffix(b"\n").decode("utf-8", errors="surrogateescape")


def check_trained_context(model: Model, n_ctx: int) -> None:
    """Usage where chunks of n_ctx tokens are longer than what the model was trained on."""
    if n_ctx > model.n_ctx_train > 0:
        raise Usage(
            f"{model.path.name} was trained on {model.n_ctx_train} tokens of context; chunks of "
            f"{n_ctx} run past it",
            f"give --ctx {model.n_ctx_train} or less",
        )


def chunk_text(model: Model, text: str, settings: ChunkSettings, name: str) -> Tokens:
    """Tokens of a text as [chunks, n_ctx]; Usage where it is too short for two chunks."""
    if model.add_eos:
        raise Unsupported(f"{model.path.name} appends an end token to every text: not supported")
    n_ctx, stride = settings.n_ctx, settings.stride
    if stride is not None and not 0 < stride < n_ctx:
        raise Usage(f"a stride is from 1 to {n_ctx - 1} tokens in chunks of {n_ctx}, not {stride}")
    step = stride or n_ctx
    check_trained_context(model, n_ctx)
    tokens = model.tokenize(text, add_special=True, parse_special=settings.parse_special)
    if len(tokens) < n_ctx + step:
        raise Usage(
            f"{name} has {len(tokens)} tokens; two chunks of {n_ctx} need {n_ctx + step}",
            "give a longer text, or a smaller --ctx",
        )
    return sliding_window_view(tokens, n_ctx)[::step][: settings.limit]


def chunk_texts(model: Model, texts: Sequence[Path], settings: ChunkSettings) -> Tokens:
    """The chunks of several text files as [chunks, n_ctx], `limit` in all; as chunk_text."""
    each = [chunk_text(model, read_text(path), settings, path.name) for path in texts]
    if not each:
        raise Usage("calibration needs a text", "--text TEXT")
    chunks: Tokens = np.concatenate(each)[: settings.limit]
    return chunks


def decode_chunks(
    context: Context,
    chunks: Tokens,
    settings: ChunkSettings,
    first_output: int,
    *,
    read_logits: bool = True,
) -> Iterator[tuple[int, list[Logits]]]:
    """Decode n_seq chunks at a time and yield (index of the first, one logits array per chunk).

    Logits are those of the positions from `first_output` on, [n_ctx − first_output, n_vocab];
    they are views where a chunk fits into a decode, valid until the next one. read_logits: False
    where only a hook reads values; then the arrays are empty.
    """
    for start, group in groups(context.model, chunks, settings):
        yield start, decode_group(context, group, settings, first_output, read_logits)


def groups(
    model: Model, chunks: Tokens, settings: ChunkSettings, first_chunk: int = 0
) -> Iterator[tuple[int, Tokens]]:
    """The chunks that are decoded together, as they go in, and the index of their first one.

    first_chunk: where to begin, a multiple of n_seq.
    """
    for start in range(first_chunk, len(chunks), settings.n_seq):
        group = chunks[start : start + settings.n_seq].copy()
        if model.add_bos:
            group[:, 0] = model.bos
        yield start, group


def decode_group(
    context: Context,
    group: Tokens,
    settings: ChunkSettings,
    first_output: int,
    read_logits: bool,
    part_done: PartDone = lambda share: None,
) -> list[Logits]:
    """Decode chunks together; logits as those of `decode_chunks`."""
    context.clear()
    # with logits more than one step only where a chunk is longer than a batch: it is alone then
    step = min(settings.n_batch, settings.n_ctx)
    if not read_logits:
        step = settings.part_of(len(group))
    several = step < settings.n_ctx
    parts = []
    for start in range(0, settings.n_ctx, step):
        outputs = decode_part(context, group, start, step, first_output)
        if outputs:
            logits = context.logits(outputs if read_logits else 0)
            parts.append(logits.copy() if several else logits)
        if start + step < settings.n_ctx:
            part_done((start + step) / settings.n_ctx)
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return list(joined.reshape(len(group), -1, context.model.n_vocab))


def decode_part(
    context: Context, group: Tokens, start: int, length: int, first_output: int = 0
) -> int:
    """Decode the same `length` positions of some chunks, or what is left of them.

    Returns the number of rows of logits, those of the positions from `first_output` on.
    """
    part = group[:, start : start + length]
    batch = Batch(part.size)
    output = np.arange(start, start + part.shape[1]) >= first_output
    for sequence, tokens in enumerate(part):
        batch.add(tokens, start, sequence, output)
    context.decode(batch)
    return batch.outputs
