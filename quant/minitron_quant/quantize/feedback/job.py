"""What a quantization job takes from a covariance: importance, factors, and how to say so."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from minitron_convert.gguf_file import TYPE, TYPE_ID, Gguf, KeyValue, ValueType
from minitron_engine.errors import Damaged
from minitron_engine.library import ggml
from minitron_quant.covariance.files import PARTS, Covariance, open_covariance
from minitron_quant.imatrix.origin import model_fingerprint
from minitron_quant.quantize.encode import Refine
from minitron_quant.quantize.feedback.blocks import Bytes, Floats, decoded
from minitron_quant.quantize.feedback.encode import encode_rows, supports
from minitron_quant.quantize.feedback.factor import BlockFactor, error_of, factor_block

# shares of the mean diagonal; the search starts in the middle and goes where new text is better
DAMPINGS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_FIRST_TRIED = 3
# rows of a weight that dampings are tried on
_SAMPLE_ROWS = 32
# below so many tokens for each column of a block a covariance is mostly noise
_TOKENS_PER_COLUMN = 4
_KEYS = "minitron.feedback."
_LEAST = np.float32(1e-6)
# factors of inputs that are kept, for the weights that share one and the ones encoded ahead
_KEPT = 3


class Feedback:
    """A covariance file matched with a model's tensors."""

    def __init__(self, path: Path, shards: Sequence[Gguf]) -> None:
        """Damaged if the covariance was collected on another model."""
        self.covariance: Covariance = open_covariance(path)
        if self.covariance.origin.model != model_fingerprint(shards):
            raise Damaged(
                f"{path.name} was collected on another model",
                "collect it on this one: --feedback -f TEXT",
            )
        tensors = {info.name: (shard, info) for shard in shards for info in shard.tensors}
        self._tensors = tensors
        self._edges = {
            name: self.covariance.edges(source, tensors[name][1].shape[0])
            for name, source in self.covariance.taken_by.items()
            if name in tensors
        }
        self._lock = threading.Lock()
        self._factors: OrderedDict[str, list[BlockFactor] | None] = OrderedDict()

    @property
    def keys(self) -> tuple[KeyValue, ...]:
        """The metadata that tells how the codes were chosen."""
        origin = self.covariance.origin
        numbers = {"tokens": sum(origin.tokens), "block": self.covariance.block}
        return (
            KeyValue.of(
                "minitron.feedback.texts", ValueType.ARRAY, [*origin.names], ValueType.STRING
            ),
            *(
                KeyValue.of(f"minitron.feedback.{key}", ValueType.UINT32, number)
                for key, number in numbers.items()
            ),
        )

    @cached_property
    def weights(self) -> dict[str, Floats]:
        """The importance of columns, [1, columns]: mean squares, as an importance matrix has."""
        found: dict[str, Floats] = {}
        for name, edges in self._edges.items():
            source = self.covariance.taken_by[name]
            parts = [self.covariance.diagonal(source, start) for start, _ in edges]
            squares = np.concatenate(parts)[None]
            # encoders divide by sums of these: a column that never had an input counts a little
            found[name] = np.maximum(squares, (_LEAST * squares.mean()) or 1)
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """Said where the text is short for the width of the inputs."""
        widest = max(end - start for edges in self._edges.values() for start, end in edges)
        tokens = sum(self.covariance.origin.tokens)
        if tokens >= _TOKENS_PER_COLUMN * widest:
            return ()
        return (
            f"{tokens} tokens are little for a covariance of {widest} columns: the damping is "
            "raised, and the gain is smaller than more text would give",
        )

    def of(self, name: str) -> Refine | None:
        """What encodes the rows of a tensor with feedback; None where its inputs are not known."""
        return partial(self._refine, name) if name in self._edges else None

    def _refine(self, name: str, kind: int, values: Floats, plain: Bytes) -> Bytes:
        blocks = self.blocks(name) if supports(kind) else None
        return plain if blocks is None else encode_rows(kind, values, plain, blocks)

    def blocks(self, name: str) -> list[BlockFactor] | None:
        """The factors of a tensor's input; None where feedback would not help on another text."""
        source = self.covariance.taken_by[name]
        with self._lock:
            if source not in self._factors:
                self._factors[source] = self._prepare(source)
                while len(self._factors) > _KEPT:
                    self._factors.popitem(last=False)
            return self._factors[source]

    def _prepare(self, source: str) -> list[BlockFactor] | None:
        """The factors of an input, with the damping that serves the other half of the text best.

        None where codes fitted to one half make the other half worse.
        """
        first = next(n for n, taken in self.covariance.taken_by.items() if taken == source)
        trial = _Trial(self, source, first)
        place, best = _FIRST_TRIED, trial.ratio(DAMPINGS[_FIRST_TRIED])
        for step in (1, -1):
            while 0 <= place + step < len(DAMPINGS):
                ratio = trial.ratio(DAMPINGS[place + step])
                if ratio >= best:
                    break
                place, best = place + step, ratio
            if place != _FIRST_TRIED:
                break
        return (
            self.factor(source, first, tuple(range(PARTS)), DAMPINGS[place]) if best < 1 else None
        )

    def factor(
        self, source: str, name: str, parts: tuple[int, ...], damping: float
    ) -> list[BlockFactor]:
        """The factors of an input from some parts of the text; `name`: a weight that takes it."""
        return [
            factor_block(start, self.covariance.mean(source, start, parts), damping)
            for start, _ in self._edges[name]
        ]

    def sample(self, name: str) -> Floats:
        """Some rows of a weight, spread evenly, [rows, columns]."""
        shard, info = self._tensors[name]
        rows = np.linspace(0, info.rows - 1, min(info.rows, _SAMPLE_ROWS)).astype(int)
        data = shard.data(info).reshape(info.rows, info.row_size)[rows]
        return decoded(info.type, data, (len(rows), info.shape[0]))


class _Trial:
    """Some rows of a weight, encoded with what one half of the text says, judged by the other."""

    def __init__(self, feedback: Feedback, source: str, name: str) -> None:
        self._feedback, self._source, self._name = feedback, source, name
        self._values = feedback.sample(name)
        columns = self._values.shape[1]
        self._kind = TYPE_ID["q3_K" if columns % 256 == 0 else "q4_0"]
        self._plain = plain(self._kind, self._values, feedback.weights[name][0])

    def ratio(self, damping: float) -> float:
        """The error with feedback over that without it."""
        fit, judge = (
            self._feedback.factor(self._source, self._name, (part,), damping)
            for part in range(PARTS)
        )
        ours = encode_rows(self._kind, self._values, self._plain, fit)
        before, after = (
            float(error_of(decoded(self._kind, d, self._values.shape) - self._values, judge).sum())
            for d in (self._plain, ours)
        )
        return after / before if before > 0 else 1.0


def plain(kind: int, values: Floats, importance: Floats) -> Bytes:
    """Rows [rows, columns] as ggml encodes them; `importance`: [columns]."""
    rows, columns = values.shape
    size = TYPE[kind].block_bytes * columns // TYPE[kind].block_elements
    data = np.empty(rows * size, np.uint8)
    values, importance = np.ascontiguousarray(values), np.ascontiguousarray(importance)
    pointers = values.ctypes.data, data.ctypes.data
    ggml().ggml_quantize_chunk(kind, *pointers, 0, rows, columns, importance.ctypes.data)
    return data
