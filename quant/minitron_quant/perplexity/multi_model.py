"""Models on one text, compared with a reference whose chunks are computed once for all of them.

With enough memory a chunk's reference is compared with every model and then forgotten. Otherwise
the reference runs ahead over as many chunks as a bounded cache on disk holds, and the models follow
in groups that fit. Either way the numbers are the same.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np

from minitron_core import stop
from minitron_core.cpu_limits import default_threads
from minitron_core.gguf import Gguf
from minitron_core.progress import Event, Progress, ignore
from minitron_quant.chunking import chunk_text, read_text
from minitron_quant.model_files import open_model_files
from minitron_quant.perplexity.divergence import TokenScores
from minitron_quant.perplexity.evaluation import Buffers, ChunkEvaluator, ReferenceScores
from minitron_quant.perplexity.loaded_model import (
    LoadedModel,
    ModelLoader,
    OtherBatchSize,
    check_vocabulary,
)
from minitron_quant.perplexity.model_batching import (
    bytes_needed,
    cache_budget,
    cache_folder,
    group_models,
    memory_for,
    runs_on_cpu,
    second_context_fits,
    vocabulary_size,
)
from minitron_quant.perplexity.reference_cache import ReferenceCache, open_cache
from minitron_quant.perplexity.scheduler import WORKERS, Jobs, Schedule, ScoringJob
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.perplexity.state import ModelInfo, State, noise_key, open_state, resume_keys

_LOG = logging.getLogger("minitron.measure")
# of an odd number of equal jobs the last one has half of the threads; among more it does not matter
_MANY_JOBS = 24
_LEAST_MODELS = 3  # of unequal models two would wait for each other


@dataclass(frozen=True)
class ModelScores:
    """One model's files, the device that it ran on, and its scored tokens, chunk by chunk.

    noise: for the reference, its first chunks compared with themselves in batches of another size.
    """

    shards: list[Gguf]
    device: str
    scores: list[TokenScores]
    noise: list[TokenScores]


def score_models(settings: MeasureSettings, progress: Progress = ignore) -> Iterator[ModelScores]:
    """The reference if there is one, then the models in the order given.

    Raises Unsupported where the vocabularies differ: their probabilities cannot be compared.
    """
    kept = f"the scores so far are kept in {settings.state}" if settings.state else ""
    with stop.keeping(lambda: kept), open_state(settings.state) as state:
        evaluation = _Evaluation(settings, state, progress)
        if settings.reference is None:
            for number, path in enumerate(settings.paths):
                if not evaluation.is_complete(path):
                    evaluation.score_one(path, number)
                yield evaluation.result(path)
            return
        pending = [path for path in settings.paths if not evaluation.is_complete(path)]
        if pending:
            others = [path for path in pending if path != settings.reference]
            evaluation.compare(settings.reference, others)
        yield from map(evaluation.result, settings.paths)


class _Evaluation:
    """Evaluates the settings' models on their text; the state takes the scores."""

    def __init__(self, settings: MeasureSettings, state: State, progress: Progress) -> None:
        # llama.cpp aborts on some damaged files: every header is read before any is loaded
        shards = {path: open_model_files(path) for path in settings.paths}
        chunks = settings.chunks.bounded(max(map(vocabulary_size, shards.values())))
        self._settings = settings = replace(settings, chunks=chunks)
        self._text = read_text(settings.text)
        self._state = state
        self._progress = progress
        self._threads = chunks.threads or default_threads()
        on_cpu = runs_on_cpu(settings.gpu_layers, settings.placement)
        self._may_share = on_cpu and self._threads % WORKERS == 0
        keys = resume_keys(settings, self._text, shards)
        where = settings.gpu_layers, settings.placement
        self._models = ModelLoader(shards, keys, chunks, *where)
        for key in keys.values():
            state.load(key)
            state.load(noise_key(key))

    def is_complete(self, path: Path) -> bool:
        """Whether every chunk of a model is known."""
        chunks = self._settings.chunks
        return self._state.is_complete(self._models.keys[path], chunks.n_seq, chunks.limit)

    def result(self, path: Path) -> ModelScores:
        """The scores of a model that is complete."""
        key, limit = self._models.keys[path], self._settings.chunks.limit
        info = self._state.info(key)
        assert info is not None
        scores, noise = (self._state.scores(each, limit) for each in (key, noise_key(key)))
        return ModelScores(self._models.shards[path], info.device, scores, noise)

    def score_one(self, path: Path, number: int) -> None:
        """Score a model without a reference; `number` is its place among the settings' models."""
        models = len(self._settings.paths)
        self._progress(Event("perplexity", number, models, "models", path.name))
        with ExitStack() as stack:
            model = self._models.load(path, stack)
            evaluator = self._evaluator(model)
            starts = evaluator.unknown_starts([model.key])
            contexts = self._contexts(model, len(starts), stack)
            if len(contexts) > 1:
                evaluator = self._share_threads(evaluator, contexts)

            def report(job: ScoringJob) -> None:
                ppl = np.exp(np.mean([chunk.nll.mean() for chunk in self._state.scores(model.key)]))
                done, of = job.start + len(evaluator.group(job.start)), len(evaluator.tokens)
                detail = f"{path.name}: chunk {done} of {of}, PPL {ppl:.4f}"
                self._progress(Event("perplexity", number + done / of, models, "models", detail))

            in_turn = zip(starts, cycle(contexts), strict=False)
            evaluator.run((evaluator.score(each, start) for start, each in in_turn), report)

    def _contexts(self, model: LoadedModel, jobs: int, stack: ExitStack) -> list[LoadedModel]:
        """A model's context, or one for each worker where that is faster."""
        even = jobs % WORKERS == 0 or jobs > _MANY_JOBS
        shards, chunks = self._models.shards[model.path], model.chunks
        if not self._may_share or not jobs or not even or not second_context_fits(shards, chunks):
            return [model]
        more = (stack.enter_context(model.with_context(chunks)) for _ in range(1, WORKERS))
        return [model, *more]

    def _share_threads(
        self, evaluator: ChunkEvaluator, models: Sequence[LoadedModel]
    ) -> ChunkEvaluator:
        """The evaluator with several workers, which share the threads of the models' contexts."""
        for model in models:
            model.context.use_threads(self._threads // WORKERS)
        return replace(evaluator, schedule=replace(evaluator.schedule, workers=WORKERS))

    def compare(self, reference: Path, paths: Sequence[Path]) -> None:
        """Compare models with the reference."""
        chunks, shards = self._settings.chunks, self._models.shards
        for path in paths:
            check_vocabulary(shards[reference][0], shards[path][0])
        needs = {path: bytes_needed(shards[path], chunks) for path in (reference, *paths)}
        available = memory_for(self._settings.gpu_layers, self._settings.placement)
        groups = group_models(needs, reference, paths, available)
        if groups is None:
            self._compare_in_memory(reference, paths)
        else:
            _LOG.info("not enough memory: the reference's rows are cached on disk")
            self._compare_from_disk(reference, groups)

    def _compare_in_memory(self, reference: Path, paths: Sequence[Path]) -> None:
        with ExitStack() as stack:
            model = self._models.load(reference, stack)
            evaluator = self._evaluator(model)
            others = self._models.load_all(paths, stack, model)
            self._describe(others, evaluator.total)
            if self._may_share and len(others) + 1 >= _LEAST_MODELS:
                evaluator = self._share_threads(evaluator, [model, *others])
            beside = {each.key: f"{each.path.name} on the text" for each in (model, *others)}
            keys = list(beside)
            starts = evaluator.unknown_starts(keys)
            self._progress(Event("divergence", 0, len(evaluator.tokens), "chunks"))

            def report(job: ScoringJob) -> None:
                if job.key in keys:
                    share = starts.index(job.start) + (1 + keys.index(job.key)) / len(keys)
                    done, of = share / len(starts) * len(evaluator.tokens), len(evaluator.tokens)
                    self._progress(Event("divergence", done, of, "chunks", beside[job.key]))

            evaluator.run(_reference_jobs(evaluator, model, starts, others), report)

    def _compare_from_disk(self, reference: Path, groups: Sequence[Sequence[Path]]) -> None:
        folder = cache_folder(self._settings.state)
        paths = (reference, *(path for group in groups for path in group))
        keys = [self._models.keys[path] for path in paths]
        total, left = 0, 1
        while left:
            with open_cache(folder, cache_budget(folder)) as cache:
                with ExitStack() as stack:
                    model = self._models.load(reference, stack)
                    evaluator = self._evaluator(model)
                    starts = evaluator.unknown_starts(keys)
                    total = total or len(starts)
                    evaluator.run(_reference_jobs(evaluator, model, starts, cache=cache))
                left = len(starts) - len(cache.starts)
                for number, group in enumerate(groups):
                    self._compare_group(evaluator, group, cache)
                    share = len(cache.starts) * (number + 1) / len(groups)
                    done = total - len(starts) + share
                    self._progress(Event("divergence", done, total, "parts", "reference on disk"))

    def _compare_group(
        self, evaluator: ChunkEvaluator, group: Sequence[Path], cache: ReferenceCache
    ) -> None:
        with ExitStack() as stack:
            models = self._models.load_all(group, stack)
            self._describe(models, evaluator.total)
            if self._may_share and len(models) >= _LEAST_MODELS:
                evaluator = self._share_threads(evaluator, models)

            def jobs() -> Jobs:
                unknown = evaluator.unknown_starts([model.key for model in models])
                for start in (start for start in cache.starts if start in unknown):
                    yield from evaluator.compare(models, start, ReferenceScores(cache.get(start)))

            evaluator.run(jobs())

    def _describe(self, models: Sequence[LoadedModel], chunks: int) -> None:
        for model in models:
            self._state.set_info(model.key, ModelInfo(model.model.device, chunks))

    def _evaluator(self, model: LoadedModel) -> ChunkEvaluator:
        """An evaluator of the text as the model tokenizes it."""
        chunks = self._settings.chunks
        every = replace(chunks, limit=None)
        tokens = chunk_text(model.model, self._text, every, self._settings.text.name)
        self._describe([model], len(tokens))
        schedule = Schedule(self._threads, overlap=model.model.offloaded > 0)
        limited = tokens[: chunks.limit]
        return ChunkEvaluator(limited, len(tokens), chunks, self._state, schedule)


def _reference_jobs(
    evaluator: ChunkEvaluator,
    reference: LoadedModel,
    starts: Sequence[int],
    others: Sequence[LoadedModel] = (),
    cache: ReferenceCache | None = None,
) -> Jobs:
    """The reference on every group, up to what a cache holds, and other models beside it.

    On the first group it is also compared with itself in batches of another size.
    """
    # reused: new memory takes longer to get than to fill; as many as may be in use at once
    buffers: cycle[Buffers] = cycle([[] for _ in range(evaluator.schedule.in_flight)])
    noise = OtherBatchSize(reference, noise_key(reference.key))
    for start in starts:
        scores = ReferenceScores()
        keep = None if cache is None else partial(cache.put, start)
        yield evaluator.score_reference(reference, start, scores, next(buffers), keep)
        yield from evaluator.compare([noise, *others] if start == 0 else others, start, scores)
        if cache is not None and cache.full:
            return
