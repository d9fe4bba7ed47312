"""The progress of training: which epoch is the best, and when training stops."""

import pytest

from seq2seq import Config
from seq2seq.progress import TrainingRun, best_epoch


def test_the_best_epoch_is_the_first_of_the_lowest_or_highest_figure_and_not_a_number_is_worse_than_any():
    rows = [{"epoch": "1", "val_loss": "nan", "val_bleu": "3"}, {"epoch": "2", "val_loss": "2", "val_bleu": "5"}]
    rows += [{"epoch": "3", "val_loss": "", "val_bleu": ""}, {"epoch": "4", "val_loss": "2", "val_bleu": "inf"}]
    assert [best_epoch(rows, monitor) for monitor in ("val_loss", "val_bleu", None)] == [2, 2, 4]


def test_an_epoch_that_was_measured_stays_one_if_training_ends_early(tmp_path):
    run = TrainingRun(tmp_path, Config("pairs.tsv", monitor="val_loss"), {}, None, None, pairs=1, steps=1, epochs=100)
    run.history = [{"epoch": number, "val_loss": abs(27 - number)} for number in range(1, 51)]
    assert run.kept() == 27 and not run.measures(50)
    assert list(filter(run.measures, range(1, 10))) == [1, 3, 6, 9]
    run.config = Config("pairs.tsv", monitor=None)
    assert run.kept() == 48
    run.epochs = 50
    assert run.kept() == 50 and run.measures(50)
    run.config = Config("pairs.tsv", monitor="val_loss")
    assert run.kept() == 27


@pytest.mark.parametrize(
    ("monitor", "figures", "stopped"),
    [
        ("val_loss", [3, 2, 2.5], False),
        ("val_loss", [3, 2, 2.5, 2.1], True),
        ("val_accuracy", [0.1, 0.3, 0.2, 0.4], False),
        ("val_accuracy", [0.3, 0.2, 0.1], True),
    ],
)
def test_patience_counts_the_epochs_since_the_best(tmp_path, monitor, figures, stopped):
    config = Config("pairs.tsv", epochs=40, monitor=monitor, patience=2)
    run = TrainingRun(tmp_path, config, {}, None, None, pairs=1, steps=1, epochs=40)
    assert not run.stopped()
    run.history = [{"epoch": number, monitor: figure} for number, figure in enumerate(figures, start=1)]
    assert run.stopped() == stopped
