"""GPTQ for a whole model: a covariance file gives the importance and the codes of its tensors."""

import copy
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Self

import numpy as np

from minitron_core.errors import Damaged
from minitron_core.gguf import Gguf, KeyValue
from minitron_core.hashing import file_sha256, model_fingerprint
from minitron_quant.array_backend import Bytes, Floats, best_arrays
from minitron_quant.blocks import decode_blocks
from minitron_quant.covariance.files import PARTS, Covariance, open_covariance
from minitron_quant.gptq.cholesky import BlockFactor, factor_block
from minitron_quant.gptq.cross_validation import CrossValidation, sampled_rows, tried_type
from minitron_quant.gptq.encode_rows import encode_rows, supports
from minitron_quant.gptq.estimate import gptq_keys
from minitron_quant.model_files import tensors_of
from minitron_quant.quantize.encode import RefineRows
from minitron_quant.quantize.importance import PlainCodes
from minitron_quant.quantize.prepare import QuantizeJob, QuantizeSettings, prepare

# below so many tokens for each column of a block a covariance is mostly noise
_TOKENS_PER_COLUMN = 4
_MIN_WEIGHT = np.float32(1e-6)
# factors to keep, for the weights that share an input and those encoded ahead
_MAX_FACTORS = 3


Parts = tuple[int, ...]
_ALL_PARTS: Parts = tuple(range(PARTS))


class GptqEncoder:
    """A covariance file matched with a model's tensors; a quantize.prepare.CodeRefiner.

    file: the covariance. rows: of a tensor, encoded together. dampings: found so far, by input;
    None where GPTQ would not help.
    """

    def __init__(self, file: Path, shards: Sequence[Gguf]) -> None:
        """Raises Damaged if the covariance was collected on another model."""
        self.file = file
        self.covariance: Covariance = open_covariance(file)
        if self.covariance.origin.model != model_fingerprint(shards):
            raise Damaged(
                f"{file.name} was collected on another model",
                "collect it on this model: --gptq --text TEXT",
            )
        self._tensors = tensors = tensors_of(shards)
        self._edges = {
            name: self.covariance.edges(source, tensors[name][1].shape[0])
            for name, source in self.covariance.taken_by.items()
            if name in tensors
        }
        self._arrays = best_arrays()
        self.rows = self._arrays.rows
        self._lock = threading.Lock()
        self._factors: OrderedDict[tuple[str, Parts], list[BlockFactor] | None] = OrderedDict()
        self.dampings: dict[str, float | None] = {}
        self._gains: dict[tuple[str, int], float] = {}
        self._raised: list[str] = []
        self._last_validation: tuple[str, CrossValidation] | None = None
        self._parts = _ALL_PARTS

    def fitted_to(self, parts: Parts) -> Self:
        """The same with codes that are fitted to some parts of the text."""
        other = copy.copy(self)
        other._parts = parts
        return other

    @property
    def keys(self) -> tuple[KeyValue, ...]:
        """The metadata that records how the codes were chosen."""
        origin = self.covariance.origin
        return gptq_keys("independent", origin.names, sum(origin.tokens), self.covariance.block)

    @cached_property
    def weights(self) -> dict[str, Floats]:
        """The importance of columns, [1, columns]: mean squares, as an importance matrix has."""
        found: dict[str, Floats] = {}
        for name, edges in self._edges.items():
            source = self.covariance.taken_by[name]
            parts = [self.covariance.diagonal(source, start) for start, _ in edges]
            squares = np.concatenate(parts)[None]
            # encoders divide by sums of these: a column without inputs gets a small weight
            found[name] = np.maximum(squares, (_MIN_WEIGHT * squares.mean()) or 1)
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """A warning if the text is short for the width of the inputs."""
        widest = max(end - start for edges in self._edges.values() for start, end in edges)
        tokens = sum(self.covariance.origin.tokens)
        if tokens >= _TOKENS_PER_COLUMN * widest:
            return ()
        return (
            f"{tokens} tokens are few for a covariance of {widest} columns: the damping is raised, "
            "and more text would gain more",
        )

    @property
    def warning(self) -> str:
        """One line on the singular covariances found so far; empty if there were none."""
        if not self._raised:
            return ""
        more = f" and {len(self._raised) - 1} more" if len(self._raised) > 1 else ""
        return (
            f"the covariance of the inputs of {self._raised[0]}{more} is singular: the damping "
            "was raised there, and the gain is smaller"
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """The SHA-256 of every calibration text."""
        return self.covariance.origin.texts

    @property
    def made_from(self) -> str:
        """The hash of the covariance."""
        return file_sha256(self.file)

    def job(self, settings: QuantizeSettings) -> QuantizeJob:
        """A quantization with these codes."""
        return prepare(settings, self)

    def plain_job(self, settings: QuantizeSettings) -> QuantizeJob:
        """The same importance with ggml's own codes, to compare with."""
        return prepare(settings, PlainCodes(self.weights, (), self.notes, self.file))

    def of(self, name: str) -> RefineRows | None:
        """What encodes the rows of a tensor; None if its inputs are not in the covariance."""
        return partial(self._refine, name) if name in self._edges else None

    def _refine(self, name: str, ggml_type: int, values: Floats, plain: Bytes) -> Bytes:
        blocks = self.blocks(name) if supports(ggml_type) else None
        return (
            plain if blocks is None else encode_rows(ggml_type, values, plain, blocks, self._arrays)
        )

    def blocks(self, name: str) -> list[BlockFactor] | None:
        """The factors of a tensor's input; None where GPTQ would not help on another text."""
        source, parts = self.covariance.taken_by[name], self._parts
        with self._lock:
            if (source, parts) not in self._factors:
                damping = self._damping(source)
                blocks = None if damping is None else self._factor(source, parts, damping)
                self._factors[source, parts] = blocks
                if damping is not None and any(b.damping > damping for b in blocks or ()):
                    self._raised.append(source)
                while len(self._factors) > _MAX_FACTORS:
                    self._factors.popitem(last=False)
            return self._factors[source, parts]

    def gain(self, name: str, ggml_type: int) -> float:
        """The error of a tensor in a type over that of ggml's codes, measured on another text.

        1 where GPTQ does not apply. Cross-validated on some rows of one of the weights that share
        the input.
        """
        if name not in self._edges or not supports(ggml_type):
            return 1.0
        source = self.covariance.taken_by[name]
        with self._lock:
            if (source, ggml_type) not in self._gains:
                damping = self._damping(source)
                self._gains[source, ggml_type] = (
                    1.0
                    if damping is None
                    else self._validation(source).ratio(ggml_type, damping, both=True)
                )
            return self._gains[source, ggml_type]

    def _damping(self, source: str) -> float | None:
        if source not in self.dampings:
            tried = tried_type(self._edges[self._first_weight(source)][-1][1])
            self.dampings[source] = (
                None if tried is None else self._validation(source).damping(tried)
            )
        return self.dampings[source]

    def _validation(self, source: str) -> CrossValidation:
        """The cross-validation of an input; the last is kept, since types follow each other."""
        if self._last_validation is None or self._last_validation[0] != source:
            name = self._first_weight(source)
            validation = CrossValidation(
                self._sample(name),
                self.weights[name][0],
                lambda part, damping: self._factor(source, (part,), damping),
            )
            self._last_validation = source, validation
        return self._last_validation[1]

    def _factor(self, source: str, parts: Parts, damping: float) -> list[BlockFactor]:
        return [
            factor_block(start, self.covariance.mean(source, start, parts), damping)
            for start, _ in self._edges[self._first_weight(source)]
        ]

    def _first_weight(self, source: str) -> str:
        """The first of the weights that share an input."""
        return next(name for name in self._edges if self.covariance.taken_by[name] == source)

    def _sample(self, name: str) -> Floats:
        """Some rows of a weight, spread evenly, [rows, columns]."""
        shard, info = self._tensors[name]
        rows = sampled_rows(info.rows)
        data = shard.data(info).reshape(info.rows, info.row_size)[rows]
        return decode_blocks(info.type, data, (len(rows), info.shape[0]))
