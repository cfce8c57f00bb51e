"""What the drivers can train on, by name."""

from __future__ import annotations

from collections.abc import Callable

from bigmodel_ext.train.tasks import digits, text
from bigmodel_ext.train.tasks._task import Data as Data
from bigmodel_ext.train.tasks._task import Metric as Metric
from bigmodel_ext.train.tasks._task import Recipe as Recipe
from bigmodel_ext.train.tasks._task import Task as Task

TASKS: dict[str, Callable[[], Task]] = {"digits": digits.task, "text": text.task}


def get(name: str) -> Task:
    """Raises ValueError, listing the known ones, if there is no such task."""
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]()
