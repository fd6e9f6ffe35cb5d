"""minitron tasks: how well models answer questions, and what a level changes in the answers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from minitron_cli.options.completion import complete_task
from minitron_cli.options.generation import DeviceOptions
from minitron_cli.options.parameters import (
    ConsoleOptions,
    Force,
    GpuLayers,
    ModelPaths,
    TableFormat,
    Threads,
    gpu_layers,
)
from minitron_quant.tasks.registry import task_names

EXAMPLES = """minitron tasks model-Q4_K_M.gguf --task hellaswag --data hellaswag_val.txt --limit 400
minitron tasks out/*.gguf --reference F16.gguf --task winogrande --data winogrande.csv
minitron tasks model-Q4_K_M.gguf --task mmlu --data mmlu/test --limit 1000 --json
minitron tasks model-Q4_K_M.gguf --task gsm8k --data test.jsonl --shots-data train.jsonl"""


# choices that the registry knows, which a type checker does not
if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[task_names()]


def tasks(
    models: ModelPaths,
    task: Annotated[
        TaskName,
        typer.Option("--task", help="Which questions.", autocompletion=complete_task),
    ],
    data: Annotated[Path, typer.Option("--data", help="The file of questions.")],
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, help="At most so many questions, drawn as by llama-perplexity."
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="The full model: adds changed answers and their p-value."),
    ] = None,
    answers: Annotated[
        Path | None, typer.Option("--answers", help="Write every answer here, as JSON lines.")
    ] = None,
    force: Force = False,
    normalize: Annotated[
        Literal["tokens", "characters", "none"] | None,
        typer.Option("--normalize", help="Divide likelihoods by this, not by the task's default."),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option("--shots", min=0, help="Examples before each question (mmlu, gsm8k): 5."),
    ] = None,
    shots_data: Annotated[
        Path | None, typer.Option("--shots-data", help="The file of examples.")
    ] = None,
    predict: Annotated[
        int, typer.Option("-n", "--predict", min=1, help="Tokens of a written answer (gsm8k).")
    ] = 256,
    batch: Annotated[int, typer.Option("--batch", "-b", min=8, help="Tokens of a decode.")] = 512,
    threads: Threads = None,
    layers: GpuLayers = "auto",
    table_format: TableFormat = "table",
    *,
    spread: DeviceOptions,
    console: ConsoleOptions,
) -> None:
    """Score models on tasks, as llama-perplexity or lm-evaluation-harness does."""
    from minitron import measurement
    from minitron_cli.inputs import local_model, local_models, refuse_existing
    from minitron_cli.views.tasks import answer_lines, show_tasks, tasks_document
    from minitron_core.atomic_files import write_whole
    from minitron_core.made_from import inputs_key, is_made_from, record_inputs
    from minitron_core.progress import Event
    from minitron_quant.tasks.evaluate import TasksSettings
    from minitron_quant.tasks.likelihood import ScoreSettings
    from minitron_quant.tasks.task import TaskOptions

    out = console.output(table_format)
    placement = spread.placement(out)
    settings = TasksSettings(
        local_models(models, out),
        task,
        TaskOptions(data, limit, normalize, shots, shots_data, predict),
        ScoreSettings(batch, threads),
        gpu_layers(layers, out),
        local_model(reference, out) if reference else None,
        placement,
    )
    files = [path for path in (*settings.models, settings.reference, data) if path is not None]
    key = inputs_key([path for path in files if path.is_file()], "tasks", task, settings.options)
    if answers:
        refuse_existing(answers, force or is_made_from([answers], key))
    found = []
    with out.progress() as listener:
        for row, each in measurement.tasks(settings, listener):
            found.append((row, each))
            listener(Event("tasks", finished=f"{row.model}: {row.score_pct:.2f} %"))
    rows = [row for row, _ in found]
    if answers:
        write_whole(answers, answer_lines(found))
        record_inputs([answers], key)
    if rows[0].shortened:
        out.note(f"cut {rows[0].shortened} questions that are longer than the trained context")
    if out.as_json:
        out.document(tasks_document(task, data, rows))
    else:
        show_tasks(out, rows, table_format)
