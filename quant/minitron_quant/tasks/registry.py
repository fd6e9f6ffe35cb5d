"""The tasks by name: every module of `definitions` is one, and is imported when it is used.

Names and help lines need neither numpy nor llama.cpp.
"""

import pkgutil
from functools import cache
from importlib import import_module

from minitron_core.errors import Usage
from minitron_quant.tasks import definitions
from minitron_quant.tasks.task import Task


def task_names() -> tuple[str, ...]:
    """The names of all tasks, as the command line and job files take them."""
    modules = pkgutil.iter_modules(definitions.__path__)
    return tuple(module.name.replace("_", "-") for module in modules)


@cache
def task_named(name: str) -> Task:
    """The task with this name; Usage for an unknown one."""
    if name not in task_names():
        raise Usage(f"there is no task called {name}", f"the tasks are {', '.join(task_names())}")
    module = import_module(f"{definitions.__name__}.{name.replace('-', '_')}")
    task: Task = module.TASK
    return task
