"""The costs of types where GPTQ chooses the codes."""

from dataclasses import replace

from minitron_core.gguf import TYPE
from minitron_core.progress import Event, Progress, ignore
from minitron_quant.gptq.encoder import GptqEncoder
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity


def with_gptq(
    sensitivity: Sensitivity, gptq: GptqEncoder, progress: Progress = ignore
) -> Sensitivity:
    """The same sensitivity, every cost multiplied by the share of the error that GPTQ leaves.

    The share is cross-validated: codes fitted to one half of the text, measured on the other.
    """
    found = dict(sensitivity.tensors)
    for number, (name, tensor) in enumerate(sensitivity.tensors.items()):
        progress(Event("gptq", number, len(found), "tensors", name))
        costs = {
            ggml_type: cost
            * (1.0 if TYPE[ggml_type].block_elements == 1 else gptq.gain(name, ggml_type))
            for ggml_type, cost in tensor.costs.items()
        }
        found[name] = replace(tensor, costs=costs)
    return replace(sensitivity, tensors=found)
