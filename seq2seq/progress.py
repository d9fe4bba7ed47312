"""The progress of a training run: which epochs are measured, which one is kept, when training stops."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from seq2seq.checkpoints import Checkpoints
from seq2seq.config import MONITORS, Config
from seq2seq.model import Seq2Seq
from seq2seq.records import Record

# At most this many epochs are measured and saved, besides the first and the last. With 800 words of letters to phones,
# 52 measured epochs of 104 took about a third of the processor time of a training run.
_MEASURED_EPOCHS = 40


@dataclasses.dataclass
class TrainingRun:
    """A started training run and its progress."""

    folder: Path
    config: Config
    record: Record
    model: Seq2Seq
    checkpoints: Checkpoints
    pairs: int  # in the training set
    steps: int  # in an epoch
    epochs: int
    history: list = dataclasses.field(default_factory=list)  # rows of history.csv
    step: int = 0  # steps done in the current epoch
    seen: int = 0  # pairs trained on, in all epochs
    state: list | None = None  # the arrays of the checkpoint to resume from
    clocks: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2))  # plus `clocks()`: seconds taken
    peak: int = 0  # MB of memory, before training was resumed
    strategy: tf.distribute.Strategy | None = None

    def __post_init__(self):
        self.interval = math.ceil(self.epochs / _MEASURED_EPOCHS)  # of measured epochs, also if training ends early

    def measures(self, epoch: int) -> bool:
        """Whether the model is measured and saved after this epoch, counted from 1."""
        return epoch in (1, self.epochs) or epoch % self.interval == 0

    def measured_after(self, epoch: int) -> int:
        """How many epochs after this one have been measured."""
        return sum(self.measures(row["epoch"]) for row in self.history[epoch:])

    def kept(self) -> int | None:
        """The number of the epoch whose model is in the folder; None during the first epoch."""
        measured = [row for row in self.history if self.measures(row["epoch"])]
        return best_epoch(measured, self.config.monitor) if measured else None

    def stopped(self) -> bool:
        """Whether training has ended: all epochs are done, or patience has run out."""
        patience, kept = self.config.patience, self.kept()
        impatient = patience is not None and kept is not None and self.measured_after(kept) >= patience
        return len(self.history) == self.epochs or impatient


def best_epoch(history: Sequence[dict], monitor: str | None) -> int:
    """The number of the epoch whose model is kept: the first of the best by `monitor`, or the last.

    Args:
        history: the rows of `history.csv`; those without the metric are ignored.
        monitor: the name of a metric; None to keep the last epoch.
    """
    if monitor is None:
        return int(history[-1]["epoch"])
    sign = -1 if MONITORS[monitor] == "max" else 1
    measured = [row for row in history if row.get(monitor) not in (None, "")]
    figures = [sign * float(row[monitor]) for row in measured]
    order = [figure if math.isfinite(figure) else math.inf for figure in figures]
    return int(measured[order.index(min(order))]["epoch"])
