"""thalweg: training neural networks by gradient descent, with the knobs chosen on evidence.

import thalweg as tw

task = tw.Task(model=make_model, loss=F.cross_entropy, data=(x, y), validation=(xv, yv))
run = tw.fit(task, epochs=20, out="runs/digits")
"""

from thalweg import optim, schedule
from thalweg.errors import (
    ArgumentError,
    CallbackError,
    CheckpointError,
    DataError,
    DivergedError,
    Interrupted,
    NonFiniteError,
    PlanError,
    RuleError,
    RunError,
    ScheduleError,
    StudyError,
    TaskError,
    ThalwegError,
)
from thalweg.records.comparison import Comparison
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.records.escape import Escape
from thalweg.records.forecast import Estimate, Forecast
from thalweg.records.plan import Evidence, Group, Plan
from thalweg.records.run import Run
from thalweg.records.survey import Survey
from thalweg.records.task import Task
from thalweg.verbs import check, compare, diagnose, escape, evaluate, fit, forecast, report, resume, survey, train, tune
from thalweg.watch.watch import Watch

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "CallbackError",
    "CheckpointError",
    "Comparison",
    "Cure",
    "DataError",
    "Diagnosis",
    "DivergedError",
    "Escape",
    "Estimate",
    "Evidence",
    "Forecast",
    "Group",
    "Interrupted",
    "NonFiniteError",
    "Plan",
    "PlanError",
    "RuleError",
    "Run",
    "RunError",
    "ScheduleError",
    "StudyError",
    "Survey",
    "Task",
    "TaskError",
    "ThalwegError",
    "Watch",
    "check",
    "compare",
    "diagnose",
    "escape",
    "evaluate",
    "fit",
    "forecast",
    "optim",
    "report",
    "resume",
    "schedule",
    "survey",
    "train",
    "tune",
]
