"""GGUF models in lm-evaluation-harness, in process: model `minitron`.

    python -m minitron_quant.tasks.lm_eval_adapter run --model minitron \
        --model_args path=M.gguf --tasks T

Needs the extra `lm_eval`. Texts are tokenized with BOS where the model file wants it.
"""

import atexit
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from minitron_core.errors import Unsupported
from minitron_engine.llama.settings import GpuLayers, ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.model_files import open_model_files
from minitron_quant.tasks.batch_generate import GreedySettings, generate_batch
from minitron_quant.tasks.likelihood import ScoreSettings
from minitron_quant.tasks.lm_eval_requests import (
    OnDone,
    loglikelihoods,
    prefix_token,
    rolling_loglikelihoods,
)

_N_PREDICT = 256
_MAX_LENGTH = 4096


@register_model("minitron")
class MinitronLM(TemplateLM):  # type: ignore[misc]
    """A GGUF file as a harness model.

    batch: tokens of a decode. max_length: tokens of a context, by default 4096 or the trained one
    where that is less. The last three are the harness's own and change nothing here.
    """

    def __init__(
        self,
        path: str,
        batch: int = 512,
        threads: int | None = None,
        gpu_layers: GpuLayers = "auto",
        max_length: int | None = None,
        batch_size: object = None,
        max_batch_size: object = None,
        device: object = None,
    ) -> None:
        super().__init__()
        open_model_files(Path(path))
        self._resources = ExitStack()
        atexit.register(self.close)
        self._model = self._resources.enter_context(
            open_model(ModelSettings(Path(path), gpu_layers, batch))
        )
        self._settings = ScoreSettings(batch, threads)
        self.max_length = min(max_length or _MAX_LENGTH, self._model.n_ctx_train)

    def close(self) -> None:
        """Free the model; at the interpreter's end by itself."""
        self._resources.close()

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._model.eos

    @property
    def prefix_token_id(self) -> int:
        """The token before an empty context."""
        return prefix_token(self._model)

    @property
    def tokenizer_name(self) -> str:
        """What tells this model's requests from another's in the harness's cache."""
        return self._model.path.name

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_kwargs: object
    ) -> list[int]:
        """Token ids; with BOS, unless add_special_tokens is False."""
        special = add_special_tokens is not False
        tokens = self._model.tokenize(string, add_special=special, parse_special=False)
        return [int(token) for token in tokens]

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **_kwargs: object
    ) -> list[tuple[float, bool]]:
        pairs = [(context, scored) for _, context, scored in requests]
        with _bar("loglikelihood", len(pairs), disable_tqdm) as done:
            results = loglikelihoods(self._model, pairs, self.max_length, self._settings, done)
        for (arguments, _, _), result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", arguments, result)
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Σ ln p of whole texts."""
        texts = [request.args[0] for request in requests]
        with _bar("loglikelihood_rolling", len(texts), disable_tqdm) as done:
            results = rolling_loglikelihoods(
                self._model, texts, self.max_length, self._settings, done
            )
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
        return results

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy texts up to the first of the stop strings; Unsupported for sampled ones."""
        alike: dict[GreedySettings, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(self._greedy_settings(request.args[1]), []).append(number)
        results = [""] * len(requests)
        before = 0
        with _bar("generate_until", len(requests), disable_tqdm) as done:
            for settings, numbers in alike.items():
                prompts = [requests[number].args[0] for number in numbers]
                texts, _ = generate_batch(self._model, prompts, settings, _after(done, before))
                before += len(numbers)
                for number, text in zip(numbers, texts, strict=True):
                    results[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
        return results

    def _greedy_settings(self, options: dict[str, Any]) -> GreedySettings:
        if options.get("do_sample") and options.get("temperature", 1.0) > 0:
            raise Unsupported(
                "this task asks for sampled texts; only greedy generation is supported",
                "override it with --gen_kwargs do_sample=False",
            )
        until = options.get("until") or ()
        stops = (until,) if isinstance(until, str) else tuple(until)
        return GreedySettings(
            stops,
            int(options.get("max_gen_toks") or _N_PREDICT),
            self._settings.n_batch,
            self._settings.threads,
            self.max_length,
        )


def _after(done: OnDone, before: int) -> OnDone:
    return lambda count: done(before + count)


@contextmanager
def _bar(title: str, total: int, disable: bool) -> Iterator[OnDone]:
    with tqdm(total=total, desc=title, disable=disable) as bar:
        yield lambda done: bar.update(done - bar.n)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
