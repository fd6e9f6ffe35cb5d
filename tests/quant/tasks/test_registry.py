"""The registry of tasks: one file is a task for the command, for job files and for completion."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.support import EXAMPLES
from minitron_cli.options.completion import complete_task
from minitron_cli.pipeline.job_file import load_jobs
from minitron_core.errors import Usage
from minitron_quant.tasks import definitions
from minitron_quant.tasks.registry import task_named, task_names
from minitron_quant.tasks.task import TaskOptions

DUMMY = """
from minitron_quant.tasks.question import Question, after_common
from minitron_quant.tasks.task import ChoiceTask

QUESTION = Question("line 1", (("It", " is"), ("It", " was")), frozenset([1]))
TASK = ChoiceTask("A dummy.", lambda options: [QUESTION], after_common, normalize="none")
"""


def test_task_names_of_all_definitions() -> None:
    assert task_names() == (
        "arc",
        "gsm8k",
        "hellaswag",
        "mmlu",
        "multiple-choice",
        "winogrande",
    )
    assert all(task_named(name).help.endswith(".") for name in task_names())


def test_task_named_refuses_an_unknown_name() -> None:
    with pytest.raises(Usage, match="no task called os") as caught:
        task_named("os")
    assert "hellaswag" in caught.value.hint


def test_registry_needs_neither_numpy_nor_llama_cpp() -> None:
    code = (
        "import sys; from minitron_quant.tasks.registry import task_named, task_names\n"
        "assert [task_named(name).help for name in task_names()]\n"
        "heavy = {'numpy', 'llama_cpp', 'minitron_engine.llama'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_new_task_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new_task.py").write_text(DUMMY)
    monkeypatch.setattr(definitions, "__path__", [*definitions.__path__, str(tmp_path)])
    assert "new-task" in task_names()
    (question,) = task_named("new-task").prepare(TaskOptions(tmp_path)).questions
    assert question.gold == {1}
    assert complete_task("new") == [("new-task", "A dummy.")]
    job = tmp_path / "job.toml"
    job.write_text(f'[model]\nsource = "{EXAMPLES}/nano-llama"\n[tasks]\nnew-task = "data"\n')
    assert load_jobs(job)[0].tasks.data == {"new-task": tmp_path / "data"}
