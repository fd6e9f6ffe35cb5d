"""The likeliest token of a row of logits, and whether the logits are numbers at all.

The compiled library does it in one call, and numpy, which takes as long to load as the first token
of a small model, where there is none.
"""

import ctypes

from minitron_core.kernels import kernels
from minitron_engine.llama.context import Context
from minitron_engine.llama.library import llama

NOT_A_NUMBER = -1  # some logit is NaN
TIED = -2  # several logits are the largest
_NO_LOGITS = -3


class Likeliest:
    """Finds the likeliest token in the logits of contexts."""

    def __init__(self) -> None:
        loaded = kernels()
        self._level = loaded.level
        self._find = loaded.library.kernels_likeliest if loaded.library else None
        self._logits_of = ctypes.cast(llama().llama_get_logits_ith, ctypes.c_void_p)

    def of(self, context: Context, output: int = -1) -> int:
        """The token with the largest of an output's logits, NOT_A_NUMBER or TIED."""
        if self._find is not None:
            found: int = self._find(
                self._level, self._logits_of, context.handle, output, context.model.n_vocab
            )
            if found != _NO_LOGITS:
                return found
        return _by_numpy(context, output)


def _by_numpy(context: Context, output: int) -> int:
    logits = context.output_logits(output)
    token = int(logits.argmax())  # the first NaN, where there is one
    largest = logits[token]
    if largest != largest:
        return NOT_A_NUMBER
    return token if (logits == largest).sum() == 1 else TIED
