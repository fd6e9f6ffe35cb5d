"""What a quantization job takes from a covariance: importance, factors, and how to say so."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from minitron_core.errors import Damaged
from minitron_core.gguf import TYPE, TYPE_ID, Gguf, KeyValue
from minitron_core.hashing import model_fingerprint
from minitron_quant.array_backend import best_arrays
from minitron_quant.covariance.files import PARTS, Covariance, open_covariance
from minitron_quant.gptq.blocks import Bytes, Floats, decoded
from minitron_quant.gptq.cholesky import BlockFactor, factor_block
from minitron_quant.gptq.cross_validation import Trial
from minitron_quant.gptq.encode import encode_rows, supports
from minitron_quant.gptq.estimate import feedback_keys
from minitron_quant.quantize.encode import Refine

# rows of a weight that dampings are tried on, and the types, by the width of the rows
_SAMPLE_ROWS = 32
_TRIED_TYPES = (TYPE_ID["q3_K"], TYPE_ID["q4_0"])
# below so many tokens for each column of a block a covariance is mostly noise
_TOKENS_PER_COLUMN = 4
_LEAST = np.float32(1e-6)
# factors of inputs that are kept, for the weights that share one and the ones encoded ahead
_KEPT = 3


Parts = tuple[int, ...]
ALL: Parts = tuple(range(PARTS))


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
        self.arrays = best_arrays()
        self._lock = threading.Lock()
        self._factors: OrderedDict[tuple[str, Parts], list[BlockFactor] | None] = OrderedDict()
        self._dampings: dict[str, float | None] = {}
        self._gains: dict[tuple[str, int], float] = {}
        self._raised: list[str] = []
        self._last_trial: tuple[str, Trial] | None = None

    @property
    def keys(self) -> tuple[KeyValue, ...]:
        """The metadata that tells how the codes were chosen."""
        origin = self.covariance.origin
        return feedback_keys(origin.names, sum(origin.tokens), self.covariance.block)

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

    @property
    def raised(self) -> str:
        """One line on the singular covariances that were met so far; empty where none was."""
        if not self._raised:
            return ""
        more = f" and {len(self._raised) - 1} more" if len(self._raised) > 1 else ""
        return (
            f"the covariance of the inputs of {self._raised[0]}{more} is singular: the damping "
            "was raised there, and the gain is smaller"
        )

    def of(self, name: str, parts: Parts = ALL) -> Refine | None:
        """What encodes the rows of a tensor with feedback; None where its inputs are not known.

        parts: of the text, that the codes are fitted to.
        """
        return partial(self._refine, name, parts) if name in self._edges else None

    def _refine(self, name: str, parts: Parts, kind: int, values: Floats, plain: Bytes) -> Bytes:
        blocks = self.blocks(name, parts) if supports(kind) else None
        return plain if blocks is None else encode_rows(kind, values, plain, blocks, self.arrays)

    def blocks(self, name: str, parts: Parts = ALL) -> list[BlockFactor] | None:
        """The factors of a tensor's input; None where feedback would not help on another text."""
        source = self.covariance.taken_by[name]
        with self._lock:
            if (source, parts) not in self._factors:
                damping = self._damping(source)
                blocks = None if damping is None else self._factor(source, parts, damping)
                self._factors[source, parts] = blocks
                if damping is not None and any(b.damping > damping for b in blocks or ()):
                    self._raised.append(source)
                while len(self._factors) > _KEPT:
                    self._factors.popitem(last=False)
            return self._factors[source, parts]

    def gain(self, name: str, kind: int) -> float:
        """The error of a tensor in a type over that of plain codes, as another text would see it.

        1 where there is no feedback. Cross-fitted on some rows of one of the weights that share
        the input.
        """
        if name not in self._edges or not supports(kind):
            return 1.0
        source = self.covariance.taken_by[name]
        with self._lock:
            if (source, kind) not in self._gains:
                damping = self._damping(source)
                self._gains[source, kind] = (
                    1.0 if damping is None else self._trial(source).ratio(kind, damping, both=True)
                )
            return self._gains[source, kind]

    def _damping(self, source: str) -> float | None:
        if source not in self._dampings:
            columns = self._edges[self._taking(source)][-1][1]
            kinds = [kind for kind in _TRIED_TYPES if columns % TYPE[kind].block_elements == 0]
            self._dampings[source] = self._trial(source).damping(kinds[0]) if kinds else None
        return self._dampings[source]

    def _trial(self, source: str) -> Trial:
        """The trial of an input; the last is kept, since types are tried one after the other."""
        if self._last_trial is None or self._last_trial[0] != source:
            name = self._taking(source)
            trial = Trial(
                self._sample(name),
                self.weights[name][0],
                lambda part, damping: self._factor(source, (part,), damping),
            )
            self._last_trial = source, trial
        return self._last_trial[1]

    def _factor(self, source: str, parts: Parts, damping: float) -> list[BlockFactor]:
        return [
            factor_block(start, self.covariance.mean(source, start, parts), damping)
            for start, _ in self._edges[self._taking(source)]
        ]

    def _taking(self, source: str) -> str:
        """The first of the weights that take an input."""
        return next(name for name in self._edges if self.covariance.taken_by[name] == source)

    def _sample(self, name: str) -> Floats:
        """Some rows of a weight, spread evenly, [rows, columns]."""
        shard, info = self._tensors[name]
        rows = np.linspace(0, info.rows - 1, min(info.rows, _SAMPLE_ROWS)).astype(int)
        data = shard.data(info).reshape(info.rows, info.row_size)[rows]
        return decoded(info.type, data, (len(rows), info.shape[0]))
