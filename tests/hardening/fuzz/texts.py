"""Job files, data of tasks, grammars, schemas, templates: what opens them, seeds, damage."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from hardening.fuzz import formats
from hardening.fuzz import seeds_text as seeds
from hardening.fuzz.guard import Hang
from hardening.fuzz.json_values import damage_json, damage_lines
from hardening.fuzz.model_files import Opener, mostly, through
from hardening.fuzz.mutate import damage_bytes, either, number_fields, text_tokens
from hardening.fuzz.runner import Target
from helpers.support import EXAMPLES
from minitron_cli.generation.chatting import read_messages
from minitron_cli.pipeline.job_file import load_jobs
from minitron_cli.pipeline.mixes import check_sizes
from minitron_convert.convert import ConvertSettings, convert
from minitron_core.errors import Damaged, Usage
from minitron_engine.generation import restricted_sampler, sampler
from minitron_engine.generation.constraint import Constraint, compile_schema
from minitron_engine.isolation import chat_template_worker
from minitron_engine.isolation.grammar import check_grammar
from minitron_engine.llama.binding import api
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.advise import measured
from minitron_quant.tasks.registry import task_named
from minitron_quant.tasks.task import TaskOptions

_OPEN = ExitStack()  # for as long as the process lives
_ENDINGS = {b"\x1f": ".gz", b"B": ".bz2", b"\xfd": ".xz"}


def _jobs(folder: Path) -> Opener:
    def read(path: Path) -> object:
        jobs = load_jobs(path)
        for job in jobs:
            check_sizes(job)
        return jobs

    return through("job.toml", read, folder)


def _task(task: str, folder: Path) -> Opener:
    def read(path: Path) -> object:
        examples = 0 if task == "mmlu" else None
        return task_named(task).prepare(TaskOptions(path, shots=examples))

    return through("data", read, folder)


def _packed(folder: Path) -> Opener:
    def open_input(data: bytes) -> object:
        path = folder / f"data{_ENDINGS.get(data[:1], '.gz')}"
        path.write_bytes(data)
        return task_named("hellaswag").prepare(TaskOptions(path))

    return open_input


def _vocabulary(folder: Path) -> Model:
    path = folder / "vocabulary.gguf"
    convert(ConvertSettings(EXAMPLES / "nano-llama", path, vocab_only=True, force=True))
    return _OPEN.enter_context(open_model(ModelSettings(path, vocab_only=True)))


def _take(model: Model, text: str) -> None:
    """Let llama.cpp parse a grammar that was accepted, and ask it for what may come first."""
    check_grammar(text, model.is_token)
    try:
        grammar = sampler._grammar(model, text)
    except Usage as error:  # by then it has printed to the terminal
        raise AssertionError(f"{error}") from error
    some = np.zeros(64, dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
    some["id"] = np.arange(64)
    array = restricted_sampler._token_array(some)
    api.llama_sampler_apply(grammar, ctypes.byref(array))
    allowed = some["id"][~np.isneginf(some["logit"])]
    if len(allowed):
        api.llama_sampler_accept(grammar, int(allowed[0]))
    api.llama_sampler_free(grammar)


def _grammar(folder: Path) -> Opener:
    model = _vocabulary(folder)
    return lambda data: _take(model, data.decode("utf-8", "replace"))


def _answered(answer: Callable[[], dict[str, str]]) -> dict[str, str]:
    """The answer of an isolated process, computed in this one; its fatal errors are answers."""
    try:
        found = answer()
    except Hang:
        raise Damaged("it does not end") from None
    if "error" in found:
        raise Usage(found["error"])
    return found


def _schema(folder: Path) -> Opener:
    model = _vocabulary(folder)

    def follow(data: bytes) -> None:
        constraint = Constraint(model, compile_schema(data.decode("utf-8", "replace")))
        for _ in range(4):
            allowed = constraint.allowed()
            if not len(allowed):
                return
            constraint.accept(int(allowed[0]))

    return follow


def _template(_: Path) -> Opener:
    messages = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Ho"}]
    values = {"messages": messages, "bos_token": "<s>", "add_generation_prompt": True}

    def render(data: bytes) -> object:
        request = {"template": data.decode("utf-8", "replace"), "values": values}
        return _answered(lambda: chat_template_worker._render(request))["text"]

    return render


def _records(name: str, task: str, records: Sequence[object]) -> Target:
    mutate = mostly(damage_lines)
    return Target(name, lambda: [seeds.lines(records)], mutate, partial(_task, task))


def _words(
    name: str,
    texts: Sequence[str | bytes],
    words: Sequence[str],
    prepare: Callable[[Path], Opener],
    **more: object,
) -> Target:
    found = [text.encode() if isinstance(text, str) else text for text in texts]
    mutate = either((8, text_tokens(*words)), (1, damage_bytes))
    return Target(name, lambda: found, mutate, prepare, **more)  # type: ignore[arg-type]


_PARTS = ("_", ",", '"', '""', "\n", "\r", "\x00", "1", "2", "-1", "A", "E", "question", "sentence")


def _report(path: Path) -> object:
    from minitron_cli.hub.card import _report as of_folder

    return measured(path), of_folder(path.parent)


TARGETS = [
    Target(
        "report of a run",
        lambda: [seeds.lines([seeds.REPORT])],
        mostly(damage_json),
        partial(through, "report.json", _report),
    ),
    Target(
        "saved conversation",
        lambda: [seeds.lines([seeds.CONVERSATION])],
        mostly(damage_json),
        partial(through, "chat.json", read_messages),
    ),
    _words("job file", [seeds.JOB], seeds.JOB_WORDS, _jobs),
    _words("hellaswag text", [seeds.HELLASWAG], _PARTS, partial(_task, "hellaswag")),
    _records("hellaswag json", "hellaswag", seeds.HELLASWAG_RECORDS),
    _words("winogrande csv", [seeds.WINOGRANDE], _PARTS, partial(_task, "winogrande")),
    _records("winogrande json", "winogrande", seeds.WINOGRANDE_RECORDS),
    _records("arc json", "arc", seeds.ARC_RECORDS),
    _words("mmlu csv", [seeds.MMLU], _PARTS, partial(_task, "mmlu")),
    _records("mmlu json", "mmlu", seeds.MMLU_RECORDS),
    _records("gsm8k json", "gsm8k", seeds.GSM8K_RECORDS),
    Target(
        "multiple-choice binary",
        seeds.choices,
        mostly(number_fields(formats.choice_fields)),
        partial(_task, "multiple-choice"),
    ),
    Target("compressed data", seeds.packed_texts, damage_bytes, _packed),
    _words("grammar", seeds.GRAMMARS, seeds.GRAMMAR_WORDS, _grammar, spare=1 << 30),
    Target(
        "JSON schema",
        lambda: [seeds.lines([schema]) for schema in seeds.SCHEMAS],
        mostly(damage_json),
        _schema,
        spare=1 << 30,
        seconds=0.5,
        sound=False,  # the converter knows no references to references
    ),
    _words(
        "template",
        seeds.TEMPLATES,
        seeds.TEMPLATE_WORDS,
        _template,
        spare=1 << 29,  # the limit of the templates' process
        seconds=0.3,
        imports=("jinja2", "unicodedata"),  # the second for "\N{NAME}" in a text
    ),
]
