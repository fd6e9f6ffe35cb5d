"""Mixed precision: the sensitivity of each tensor, and the mix of types of a size."""

from minitron_core.progress import Progress, ignore
from minitron_quant.mixed_precision.build_mix import BuiltMix, MixBuilder, MixSettings
from minitron_quant.mixed_precision.measure import SensitivitySettings, measure_sensitivity
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity


def sensitivity(settings: SensitivitySettings, progress: Progress = ignore) -> Sensitivity:
    """Measure each tensor's sensitivity to quantization error; writes `settings.output`.

    The cost of a type for a tensor is a divergence (KLD) from the full model in nats per token.
    Raises Usage for a text that is too short, Damaged for an importance matrix of another model.
    """
    return measure_sensitivity(settings, progress)


def build_mix(settings: MixSettings, progress: Progress = ignore) -> BuiltMix:
    """Write the mix of types of least predicted divergence for a size, and verify it.

    Raises NotFound or Usage where `settings.sensitivity` is missing or unfinished, Usage for a
    size out of reach.
    """
    return MixBuilder(settings, progress).make()
