"""Models on one text, with a reference side by side: each of its chunks is computed once.

With enough memory a chunk's reference is compared with every model and then forgotten. Else the
reference runs ahead over as many chunks as a bounded cache on disk holds, and the models follow in
groups that fit. Either way the numbers are the same.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np

from minitron_core.cpu_limits import default_threads
from minitron_core.gguf import Gguf
from minitron_core.hashing import file_sha256, fingerprint
from minitron_core.progress import Event, Progress, ignore
from minitron_engine.process import interrupts
from minitron_quant.chunking import chunk_text, read_text
from minitron_quant.model_files import open_model_files
from minitron_quant.perplexity.divergence import TokenScores
from minitron_quant.perplexity.evaluation import (
    Opened,
    OtherShape,
    Pass,
    check_vocabulary,
    open_for,
    same_vocabulary,
)
from minitron_quant.perplexity.model_batching import (
    bytes_needed,
    cache_budget,
    cache_folder,
    fits_again,
    memory_for,
    on_processor,
    plan_memory,
    vocabulary_size,
)
from minitron_quant.perplexity.reference_cache import ReferenceCache
from minitron_quant.perplexity.scheduler import LANES, Job, Jobs, Way
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.perplexity.state import About, State, open_state

_LOG = logging.getLogger("minitron.measure")
_LOADERS = 2  # models that are loaded at once
# of an odd number of equal jobs the last one has half of the threads; among more it does not matter
_MANY_JOBS = 24
_LEAST_MODELS = 3  # of unequal models two would wait for each other


@dataclass(frozen=True)
class Measured:
    """One model's files, the device that it ran on, and its scored tokens, chunk by chunk.

    noise: of the reference, its first chunks compared with themselves in other batch shapes.
    """

    shards: list[Gguf]
    device: str
    scores: list[TokenScores]
    noise: list[TokenScores]


def measure_together(settings: MeasureSettings, progress: Progress = ignore) -> Iterator[Measured]:
    """The reference if there is one, then the models in the order given.

    Raises Unsupported where the vocabularies differ: their probabilities cannot be compared.
    """
    with open_state(settings.state) as state:
        run = _Run(settings, state, progress)
        if settings.reference is None:
            for number, path in enumerate(settings.paths):
                if not run.finished(path):
                    run.alone(path, number)
                yield run.result(path)
            return
        pending = [path for path in settings.paths if not run.finished(path)]
        if pending:
            run.beside(settings.reference, [p for p in pending if p != settings.reference])
        yield from map(run.result, settings.paths)


class _Run:
    """The passes over one text, and the keys of the scores that they give."""

    def __init__(self, settings: MeasureSettings, state: State, progress: Progress) -> None:
        # llama.cpp aborts on some damaged files: every header is read before any is loaded
        self._shards = {path: open_model_files(path) for path in settings.paths}
        chunks = settings.chunks.bounded(max(map(vocabulary_size, self._shards.values())))
        self._threads = chunks.threads or default_threads()
        self._in_lanes = on_processor(settings.gpu_layers) and self._threads % LANES == 0
        self._settings = replace(settings, chunks=chunks)
        self._text = read_text(settings.text)
        self._state = state
        self._progress = progress
        self._keys = {path: self._key(path) for path in settings.paths}
        for key in self._keys.values():
            state.load(key)
            state.load(_noise(key))

    def _key(self, path: Path) -> str:
        # what is only kept in memory needs no proof of where it came from
        if self._settings.state is None:
            return str(path)
        from importlib.metadata import version  # it loads what reads mail

        settings = self._settings
        chunks = replace(settings.chunks, limit=None, threads=None)
        beside = [] if settings.reference in (None, path) else [settings.reference]
        return fingerprint(
            self._text.encode("utf-8", "surrogateescape"),
            *(repr(chunks), str(settings.gpu_layers), version("llama_cpp_python")),
            *(self._hash(each) for each in (path, *beside)),
        )

    def _hash(self, path: Path) -> str:
        known = self._settings.hashes
        shards = [shard.path for shard in self._shards[path]]
        return fingerprint(*(known.get(shard) or file_sha256(shard) for shard in shards))

    def finished(self, path: Path) -> bool:
        """Whether every chunk of a model is known."""
        key, n_seq = self._keys[path], self._settings.chunks.n_seq
        about = self._state.about(key)
        count = self._limited(about.chunks) if about else 0
        return about is not None and all(
            self._state.has(key, start, min(n_seq, count - start))
            for start in range(0, count, n_seq)
        )

    def _limited(self, chunks: int) -> int:
        return min(chunks, self._settings.chunks.limit or chunks)

    def result(self, path: Path) -> Measured:
        """What is known of a model that is finished."""
        key = self._keys[path]
        about = self._state.about(key)
        assert about is not None
        scores, noise = (
            self._state.scores(each)[: self._limited(about.chunks)] for each in (key, _noise(key))
        )
        return Measured(self._shards[path], about.device, scores, noise)

    def alone(self, path: Path, number: int) -> None:
        """Score a model that is compared with nothing: the one of that number."""
        models = len(self._settings.paths)
        with ExitStack() as stack:
            opened = self._open(path, stack)
            work = self._pass(opened)
            starts = work.starts([opened.key])
            contexts = self._contexts(opened, len(starts), stack)
            if len(contexts) > 1:
                self._share(work, contexts)

            def told(job: Job) -> None:
                running = np.exp(np.mean([s.nll.mean() for s in self._state.scores(opened.key)]))
                share = number + (job.start + len(work.part(job.start))) / len(work.tokens)
                detail = f"{path.name}: PPL {running:.4f}"
                self._progress(Event("perplexity", share, models, "models", detail))

            by_turns = zip(starts, cycle(contexts), strict=False)
            work.finish((work.alone(context, start) for start, context in by_turns), told)

    def _contexts(self, opened: Opened, jobs: int, stack: ExitStack) -> list[Opened]:
        """A model's context, or one for each lane where that pays."""
        even = jobs % LANES == 0 or jobs > _MANY_JOBS
        shards, chunks = self._shards[opened.path], opened.chunks
        if not self._in_lanes or not jobs or not even or not fits_again(shards, chunks):
            return [opened]
        return [opened, *(stack.enter_context(opened.again(chunks)) for _ in range(1, LANES))]

    def _share(self, work: Pass, contexts: Sequence[Opened]) -> None:
        """Do the jobs in lanes, whose contexts share the threads."""
        work.way = replace(work.way, lanes=LANES)
        for opened in contexts:
            opened.context.use_threads(self._threads // LANES)

    def beside(self, reference: Path, paths: Sequence[Path]) -> None:
        """Compare models with the reference."""
        for path in paths:
            check_vocabulary(self._shards[reference][0], self._shards[path][0])
        chunks, shards = self._settings.chunks, self._shards
        needs = {path: bytes_needed(shards[path], chunks) for path in (reference, *paths)}
        plan = plan_memory(needs, reference, paths, memory_for(self._settings.gpu_layers))
        if plan.from_disk:
            _LOG.info("not enough memory: the reference's rows go over the disk")
            self._from_disk(reference, plan.groups)
            return
        with ExitStack() as stack:
            opened = self._open(reference, stack)
            work = self._pass(opened)
            others = self._open_beside(paths, work, stack, opened)
            if self._in_lanes and len(others) + 1 >= _LEAST_MODELS:
                self._share(work, [opened, *others])
            keys = [opened.key, *(other.key for other in others)]
            starts = work.starts(keys)

            def told(job: Job) -> None:
                if job.key in keys:
                    done = starts.index(job.start) + (1 + keys.index(job.key)) / len(keys)
                    self._progress(Event("divergence", done, len(starts), "parts"))

            work.finish(self._jobs_beside(work, opened, others, starts), told)

    def _jobs_beside(
        self, work: Pass, opened: Opened, others: Sequence[Opened], starts: Sequence[int]
    ) -> Jobs:
        for start in starts:
            yield work.refer(opened, start)
            yield from self._noise_of(work, opened, start)
            yield from work.compare(others, start)

    def _from_disk(self, reference: Path, groups: Sequence[Sequence[Path]]) -> None:
        folder = cache_folder(self._settings.state)
        keys = [self._keys[path] for path in (reference, *(p for group in groups for p in group))]
        total, left = 0, 1
        while left:
            with ReferenceCache(folder, cache_budget(folder)) as cache:
                with ExitStack() as stack:
                    opened = self._open(reference, stack)
                    work = self._pass(opened)
                    starts = work.starts(keys)
                    total = total or len(starts)
                    work.finish(self._jobs_to_disk(work, opened, starts, cache))
                left = len(starts) - len(cache.starts)
                for number, group in enumerate(groups):
                    self._score_group(work, group, cache)
                    share = len(cache.starts) * (number + 1) / len(groups)
                    done = total - len(starts) + share
                    self._progress(Event("divergence", done, total, "parts", "reference on disk"))

    def _jobs_to_disk(
        self, work: Pass, opened: Opened, starts: Sequence[int], cache: ReferenceCache
    ) -> Jobs:
        for start in starts:
            yield work.refer(opened, start, cache)
            yield from self._noise_of(work, opened, start)
            if cache.full:
                return

    def _score_group(self, work: Pass, group: Sequence[Path], cache: ReferenceCache) -> None:
        with ExitStack() as stack:
            others = self._open_beside(group, work, stack)
            if self._in_lanes and len(others) >= _LEAST_MODELS:
                work = replace(work)
                self._share(work, others)
            work.finish(job for start in cache.starts for job in work.compare(others, start, cache))

    def _noise_of(self, work: Pass, opened: Opened, start: int) -> Jobs:
        """The reference against itself in other batch shapes, on the first part."""
        noise = _noise(opened.key)
        if start == 0 and not work.known(noise, 0):
            yield from work.compare([OtherShape(opened, noise)], 0)

    def _open(self, path: Path, stack: ExitStack, first: Opened | None = None) -> Opened:
        chunks, layers = self._settings.chunks, self._settings.gpu_layers
        beside = None
        if first and same_vocabulary(self._shards[first.path][0], self._shards[path][0]):
            beside = first.model
        return open_for(path, self._keys[path], chunks, layers, stack, beside)

    def _open_beside(
        self, paths: Sequence[Path], work: Pass, stack: ExitStack, first: Opened | None = None
    ) -> list[Opened]:
        others = [] if first else [self._open(paths[0], stack)]
        first = first or others[0]
        left = paths[len(others) :]
        # much of a load is one thread's; on a GPU each must find taken what those before it took
        loaders = ThreadPoolExecutor(1 if work.way.overlap else _LOADERS)
        # a signal ends the loads; it comes when nobody is at work in what is closed then
        with interrupts.deferred(), loaders as pool:
            others += pool.map(lambda path: self._open(path, stack, first), left)
        for opened in others:
            self._state.describe(opened.key, About(opened.model.device, work.total))
        return others

    def _pass(self, opened: Opened) -> Pass:
        settings = self._settings.chunks
        every = replace(settings, limit=None)
        tokens = chunk_text(opened.model, self._text, every, self._settings.text.name)
        self._state.describe(opened.key, About(opened.model.device, len(tokens)))
        limited = tokens[: settings.limit]
        way = Way(self._threads, overlap=opened.model.offloaded > 0)
        return Pass(limited, len(tokens), settings, self._state, way)


def _noise(key: str) -> str:
    return f"{key} in other batches"
