"""The dial where codes are chosen with error feedback: what types then cost."""

from dataclasses import replace

from minitron_core.gguf import TYPE
from minitron_core.progress import Event, Progress, ignore
from minitron_quant.gptq.refinement import Feedback
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity


def with_feedback(
    sensitivity: Sensitivity, feedback: Feedback, progress: Progress = ignore
) -> Sensitivity:
    """The same measurements, every cost times what feedback leaves of it.

    That share is cross-fitted: codes fitted to one half of the text, judged by the other.
    """
    found = dict(sensitivity.tensors)
    for number, (name, tensor) in enumerate(sensitivity.tensors.items()):
        progress(Event("feedback", number, len(found), "tensors", name))
        costs = {
            kind: cost * (1.0 if TYPE[kind].block_elements == 1 else feedback.gain(name, kind))
            for kind, cost in tensor.costs.items()
        }
        found[name] = replace(tensor, costs=costs)
    return replace(sensitivity, tensors=found)
