"""Counters for Prometheus, under llama-server's names where it has the same one."""

from collections import Counter
from collections.abc import Iterator

from minitron_cli.server.worker import Worker
from minitron_engine.generation.steps import Timings


class Metrics:
    """What was served since the start; for the event loop's thread only."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._prompt_tokens = self._tokens = self._drafted = self._accepted = self._longest = 0
        self._prompt_seconds = self._seconds = 0.0

    def answered(self, path: str, status: int) -> None:
        """Count a request that has its answer."""
        self._requests[path, status] += 1

    def generated(self, timings: Timings) -> None:
        """Count the tokens and seconds of one answer."""
        self._prompt_tokens += timings.prompt_tokens - timings.reused_tokens
        self._prompt_seconds += timings.prompt_seconds
        self._tokens += timings.tokens
        self._seconds += timings.generation_seconds
        self._drafted += timings.drafted or 0
        self._accepted += timings.accepted or 0
        self._longest = max(self._longest, timings.prompt_tokens + timings.tokens)

    def text(self, worker: Worker) -> str:
        """All of them in Prometheus' text format."""
        return "".join(f"{line}\n" for line in self._lines(worker))

    def _lines(self, worker: Worker) -> Iterator[str]:
        rows = (
            ("prompt_tokens_total", "Prompt tokens processed.", self._prompt_tokens),
            ("prompt_seconds_total", "Prompt processing time.", self._prompt_seconds),
            ("tokens_predicted_total", "Tokens generated.", self._tokens),
            ("tokens_predicted_seconds_total", "Generation time.", self._seconds),
            ("n_decode_total", "Calls of llama_decode().", worker.decodes),
            ("n_tokens_max", "Most tokens of a prompt with its answer.", self._longest),
            ("spec_decode_num_draft_tokens_total", "Tokens drafted.", self._drafted),
            ("spec_decode_num_accepted_tokens_total", "Drafted tokens accepted.", self._accepted),
        )
        for name, meaning, value in rows:
            yield from _described(f"llamacpp:{name}", "counter", meaning)
            yield f"llamacpp:{name} {value:.15g}"
        busy, waiting = worker.load()
        gauges = (
            ("requests_processing", "Answers being generated.", busy),
            ("requests_deferred", "Requests waiting for a place.", waiting),
            (
                "prompt_tokens_seconds",
                "Prompt tokens a second.",
                _rate(self._prompt_tokens, self._prompt_seconds),
            ),
            (
                "predicted_tokens_seconds",
                "Generated tokens a second.",
                _rate(self._tokens, self._seconds),
            ),
        )
        for name, meaning, value in gauges:
            yield from _described(f"llamacpp:{name}", "gauge", meaning)
            yield f"llamacpp:{name} {value:.15g}"
        yield from _described("minitron_requests_total", "counter", "HTTP requests answered.")
        for (path, status), count in sorted(self._requests.items()):
            yield f'minitron_requests_total{{path="{path}",status="{status}"}} {count}'


def _described(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds else 0.0
