"""What quantized kernels add: they round their inputs to 8 bits, whatever the weights' type is.

A probe in the full-precision model does not show it, and near full precision it is most of the
divergence. A file of Q6_K tells: what it diverges more than its weights explain is put on the
tensors as their q8_0 errors are, for both are 8-bit errors seen through the same tensor.
"""

import math
import tempfile
from pathlib import Path

from minitron_convert.gguf_file import TYPE_ID
from minitron_engine.progress import Progress
from minitron_quant.levels import level_named
from minitron_quant.measure.settings import MeasureSettings
from minitron_quant.quantize.batch import run
from minitron_quant.quantize.job import QuantizeSettings, prepare
from minitron_quant.sensitivity.files import Sensitivity
from minitron_quant.sensitivity.proof import divergence_rows

_LEVEL = level_named("Q6_K")
_Q8 = TYPE_ID["q8_0"]


def activation_ratio(
    sensitivity: Sensitivity, imatrix: Path, measuring: MeasureSettings, progress: Progress
) -> float:
    """What rounded inputs add to the divergence of all tensors in q8_0, as a multiple of it.

    measuring: text, chunks and device, and as reference the full model. The file that is measured
    lies in a folder beside the importance matrix meanwhile.
    """
    q8 = sensitivity.predict(dict.fromkeys(sensitivity.tensors, _Q8))
    if measuring.reference is None or not 0 < q8 < math.inf:
        return 0.0
    with tempfile.TemporaryDirectory(prefix=".activations-", dir=imatrix.parent) as folder:
        settings = QuantizeSettings(measuring.reference, (_LEVEL,), Path(folder), imatrix=imatrix)
        batch = prepare(settings)
        path = run(batch, progress)[0].path
        row = divergence_rows(measuring, [path], progress)[0]
    explained = sensitivity.predict(batch.plan.levels[0].types)
    measured = sum(row.chunk_kld) / row.chunks
    return max(0.0, measured - explained) / q8
