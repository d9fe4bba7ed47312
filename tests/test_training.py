import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import signal
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import QUICK, epochs_seen, notices, read_history, spy_on_steps

from pipelines import CorpusError, OptionError
from seq2seq import Seq2Seq
from seq2seq.commands.train import progress_callback
from seq2seq.compilation import is_deterministic
from seq2seq.config import Config
from seq2seq.evaluation import evaluate
from seq2seq.process import clocks
from seq2seq.progress import best_epoch
from seq2seq.records import RunError, read_record
from seq2seq.runs import draw_run, held_out_pairs, kept_epochs, load_run
from seq2seq.training import train


def test_a_run_folder_holds_the_model_its_configuration_and_its_history(trained):
    folder, config = trained.folder, trained.config
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "history.csv",
        "model.keras",
        "probe.json",
        "survey.json",
        "tensorboard",
    ]
    record = read_record(folder)
    saved = record.content
    assert record.config == config
    assert saved["versions"]["keras"] == keras.__version__
    assert saved["checksums"] == {config.corpus: hashlib.sha256(Path(config.corpus).read_bytes()).hexdigest()}
    rows = read_history(folder)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"loss", "accuracy", "perplexity", "val_loss", "val_accuracy", "val_perplexity"} < set(rows[0])
    assert int(trained.live.optimizer.iterations) == 2 * 3  # 19 to 24 of the 25 pairs, in batches of 8
    assert float(trained.live.optimizer.learning_rate) == pytest.approx(0, abs=1e-9)  # the schedule spans all updates


def test_without_a_monitor_the_last_epoch_is_kept_and_returned(trained):
    again = load_run(trained.folder)
    assert epochs_seen(trained.model, trained.folder) == epochs_seen(again, trained.folder) == 2
    assert again.translate("ab", max_length=9) == trained.model.translate("ab", max_length=9)


def test_a_corpus_too_small_to_hold_anything_out_is_trained_on_whole_and_its_change_is_noticed(tsv, tmp_path):
    path, run, said = tsv("Go.\tVe.\n"), tmp_path / "run", []
    change = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: path.write_text("Go.\tVete.\n"))
    train(Config(str(path), units=4, epochs=2, **QUICK), run, say=said.append, callbacks=[change])
    assert "val_loss" not in (run / "history.csv").read_text()
    (text,) = (text for text in said if "changed" in text)
    assert text.startswith(f"{path}: changed during training, so the model may have seen two versions;")
    assert read_record(run).content["training"]["changed"] == [str(path)]


def test_a_run_is_overwritten_only_on_request_and_then_with_the_models_of_its_epochs(copied, monkeypatch):
    run, _ = copied
    config = read_record(run).config
    model = (run / "model.keras").read_bytes()
    (run / "epochs").mkdir()
    (run / "epochs" / "epoch-0007.keras").touch()
    old = [run / name for name in ("curves.png", "error-rates.png", "attention-1.png")]
    for path in (*old, run / "notes.png"):
        path.touch()
    old += (run / "tensorboard").rglob("events.*")
    assert len(old) == 5  # of training and validation
    with pytest.raises(
        RunError, match=r"run holds a finished run; --from .* trains it further .*, --overwrite replaces"
    ):
        train(config, run)
    with pytest.raises(CorpusError):
        train(dataclasses.replace(config, corpus="nowhere.tsv"), run, overwrite=True)
    assert (run / "model.keras").read_bytes() == model and all(path.exists() for path in old)
    beside, save = [], Seq2Seq.save

    def saving(model, path, **options):
        if path.parent == run:
            assert read_record(run).config.epochs == 1
            beside.extend(path.name for path in run.iterdir())
        save(model, path, **options)

    monkeypatch.setattr(Seq2Seq, "save", saving)
    write = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: (run / "diverged.tsv").write_text("new"))
    options = {"epochs": 1, "keep_epochs": 9, "validation_fraction": 0}
    train(dataclasses.replace(config, **options), run, overwrite=True, callbacks=[write])
    assert "config.json" in beside and "history.csv" not in beside  # the old run's
    assert (run / "model.keras").read_bytes() != model and list(kept_epochs(run)) == [1]
    assert (run / "diverged.tsv").read_text() == "new"  # what this run has written stays
    assert (run / "notes.png").exists() and not any(path.exists() for path in old)


def test_a_training_prints_its_epochs_and_what_was_left_out_unless_it_is_to_be_silent(tsv, tmp_path, capfd):
    options = {"units": 4, "epochs": 1, "on_bad_line": "skip", "validation_fraction": 0, **QUICK}
    config = Config(str(tsv("Go.\tVe.\nno tab\n")), **options)
    train(config, tmp_path / "silent", say=None)
    assert not re.search("Epoch|left out", capfd.readouterr().err)
    long = Config(str(tsv(f"Go.\tVe.\n{'a' * 2000}\tb\n", "long.tsv")), **options)
    with pytest.warns(UserWarning, match="1 left out, with a side of more than 1,000 characters"):
        train(long, tmp_path / "long", say=None)
    train(config, tmp_path / "spoken")
    said = capfd.readouterr().err
    assert "1 of 2 pairs left out" in said
    assert "\nTraining on 1 pairs\nEpoch 1/1" in said
    assert re.search(r"^Epoch 1/1  loss \d\.\d{3}  accuracy \d.*%  \|  ", said, re.M)


def test_a_folder_without_a_run_is_not_overwritten(tsv, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    config = Config(str(tsv("Go.\tVe.\n")), units=4, epochs=1, **QUICK)
    for overwrite in (False, True):
        with pytest.raises(RunError, match=r"mine is not empty, and its config\.json is damaged or of another program"):
            train(config, tmp_path / "mine", overwrite=overwrite)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["config.json"]


def test_no_step_returns_figures_that_the_device_must_be_waited_for(config, trained, tmp_path, monkeypatch):
    loud, follow = (
        spy_on_steps(monkeypatch),
        keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None),
    )
    train(config, tmp_path / "loud", callbacks=[progress_callback(), follow])
    assert len(loud) == 2 * 3 and all(math.isfinite(figures["loss"]) for figures in loud)
    # TensorBoard does not follow each step.
    assert len(trained.steps) == 2 * 3 and all(set(figures) == {"loss"} for figures in trained.steps)
    assert all(math.isnan(figures["loss"]) and "CPU" in figures["loss"].device for figures in trained.steps)
    assert read_history(tmp_path / "loud") == read_history(trained.folder)


def test_no_epoch_waits_in_the_end_for_a_thread_that_tunes_what_it_reads(trained):
    assert [batches.options().autotune.enabled for batches in trained.read] == [False, False]


def test_a_signal_stops_a_training_of_one_step_an_epoch_too(config, tmp_path):
    send = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        train(dataclasses.replace(config, batch_size=64, epochs=9), tmp_path / "run", callbacks=[send])
    assert len(read_history(tmp_path / "run")) == 1


def test_a_corpus_that_cannot_serve_is_refused(config, tmp_path, tsv):
    for corpus, message in (
        (str(tsv("\n\n", "lines.tsv")), "no pairs to train on"),
        ("-", "standard input: training reads a corpus many times"),
    ):
        with pytest.raises(CorpusError, match=message):
            train(dataclasses.replace(config, corpus=corpus), tmp_path / "run")
    for validation, message in (
        ("-", "standard input: training reads a corpus many times"),
        ("nowhere.tsv", "nowhere.tsv: No such file"),
        (str(tsv("\n", "empty.tsv")), "empty.tsv: no pairs to validate on"),
        (str(tsv("no tab\n", "bad.tsv")), "bad.tsv, line 1: expected source TAB target"),
    ):
        with pytest.raises(CorpusError, match=message):
            train(dataclasses.replace(config, validation=validation, validation_fraction=0.0), tmp_path / "run")
    with pytest.raises(OptionError, match=r"config='x\.tsv': expected a Config"):
        train("x.tsv", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_of_many_epochs_some_are_measured_and_saved_and_the_models_of_the_last_are_kept(config, tmp_path, monkeypatch):
    run, saved = tmp_path / "run", []

    class Follow(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            saved.append((run / "model.keras").stat().st_mtime_ns)

    monkeypatch.setattr("seq2seq.progress._MEASURED_EPOCHS", 3)
    model = train(dataclasses.replace(config, epochs=8, keep_epochs=2), run, callbacks=[Follow()])
    assert [len(list(epochs)) for _, epochs in itertools.groupby(saved)] == [2, 3, 2, 1]  # after 1, 3, 6 and 8
    assert epochs_seen(model, run) == 8
    rows = read_history(run)
    assert [row["epoch"] for row in rows if row["val_loss"]] == ["1", "3", "6", "8"]
    assert all((row["val_loss"] == "") == (row["val_chrf"] == "") for row in rows)
    assert all(float(row["loss"]) > 0 and float(row["learning_rate"]) >= 0 for row in rows)
    assert list(kept_epochs(run)) == [6, 8]
    last = keras.models.load_model(kept_epochs(run)[8])
    for one, other in zip(last.weights, model.weights, strict=True):
        np.testing.assert_array_equal(one, other)


class Worsen(keras.callbacks.Callback):
    """A callback that spoils the model after each epoch but the first three, before it is measured."""

    def on_test_begin(self, logs=None):
        if len(self.model.history.epoch) >= 3:
            bias = self.model.decoder.output_layer.bias
            bias.assign(bias + 3.0 * (tf.range(bias.shape[0], dtype=tf.float32) % 3))


def test_the_best_measured_epoch_is_kept_and_training_stops_when_patience_runs_out(config, tmp_path, monkeypatch):
    monkeypatch.setattr("seq2seq.progress._MEASURED_EPOCHS", 20)
    options = {"epochs": 40, "learning_rate": 0.02, "monitor": "val_loss", "patience": 2}
    model = train(dataclasses.replace(config, **options), tmp_path / "run", callbacks=[Worsen()])
    rows = read_history(tmp_path / "run")
    assert [row["epoch"] for row in rows if row["val_loss"]] == ["1", "2", "4", "6"] and len(rows) == 6
    assert best_epoch(rows, "val_loss") == 2 == epochs_seen(model, tmp_path / "run")
    known = evaluate(model, held_out_pairs(tmp_path / "run", model))
    assert known.perplexity == pytest.approx(float(rows[1]["val_perplexity"]), rel=1e-4)
    assert draw_run(tmp_path / "run", model)[0].is_file()


def test_a_plateau_halves_the_learning_rate(config, tmp_path):
    options = {"schedule": "plateau", "monitor": "val_loss", "epochs": 7, "learning_rate": 0.004}
    seen: list[float] = []
    worsen = Worsen()
    rate = lambda: float(worsen.model.optimizer.learning_rate)  # noqa: E731
    see = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append(rate()))
    train(dataclasses.replace(config, **options), tmp_path / "run", callbacks=[worsen, see])
    rates = [float(row["learning_rate"]) for row in read_history(tmp_path / "run")]
    np.testing.assert_allclose(seen, rates)  # which trackers show, too
    assert rates == [0.004] * 5 + [0.002] * 2  # two epochs after the third, and again two after that


def test_an_interrupted_training_resumes_and_what_it_took_adds_up(config, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            time.sleep(0.3)
            raise KeyboardInterrupt  # the last step of the epoch is to be done again

    # Lists, paths and whole numbers are recorded as JSON has them, and are still the same configuration.
    options = {"corpus": [Path(config.corpus)], "columns": [1, 2], "teacher_forcing": [1, 0.5]}
    config, said = dataclasses.replace(config, checkpoint_minutes=0.0, **options), []
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", callbacks=[Stop()])
    before = time.monotonic() - started
    assert "training" not in read_record(tmp_path / "run").content
    started = clocks()
    model = train(config, tmp_path / "run", say=said.append)
    alone, alone_processor = clocks() - started
    assert said[0].startswith(f"Resuming {tmp_path / 'run'} in epoch ") and len(read_history(tmp_path / "run")) == 2
    found = read_record(tmp_path / "run").content["training"]
    pairs = json.loads((tmp_path / "run" / "survey.json").read_text())["pairs"]
    (size,) = (text for text in said if text.startswith("Training on "))
    held_out = "translations of [1-9] held-out sources are measured, too few for precise scores"
    assert re.fullmatch(f"Training on {pairs} pairs; {held_out}", size)
    assert (found["updates"], found["epochs"], found["pairs"]) == (6, 2, 2 * pairs)
    weights = sum(weight.numpy().size for weight in model.trainable_weights)  # and no statistics of training
    assert found["parameters"] == model.count_params() == weights and found["device"]
    assert alone < found["seconds"] < before + alone
    assert found["processor_seconds"] > alone_processor and found["peak_memory_mb"] > 100


def test_a_token_budget_and_one_hot_rows_train_too_and_a_copying_model_without_common_tokens(config, tmp_path):
    live, said = keras.callbacks.Callback(), []
    config = dataclasses.replace(config, batch_tokens=30, encoding="one_hot", copy=True)
    model = train(config, tmp_path / "run", callbacks=[live], say=said.append)
    wanted = "copying: source and target have no token in common, so unknown source tokens will be copied as they are"
    assert f"{wanted} (--no-copy switches it off)" in said
    losses = [float(row["loss"]) for row in read_history(tmp_path / "run")]
    assert losses[1] < losses[0] and np.isfinite(model.score(["a"], ["b"])).all()
    assert 2 * 2 <= int(live.model.optimizer.iterations) <= 2 * 3  # 3 tokens a pair, about 20 pairs, batches of 30


def test_a_callback_may_end_a_training(config, tmp_path):
    said = []
    stop = keras.callbacks.EarlyStopping(monitor="val_loss", patience=1, mode="max")  # the loss falls
    gone = keras.callbacks.LambdaCallback(on_train_end=lambda *_: os.unlink(config.corpus))
    callbacks = (each for each in [stop, gone])
    train(dataclasses.replace(config, epochs=6), tmp_path / "run", callbacks=callbacks, say=said.append)
    stopped, changed = notices(said)
    assert len(read_history(tmp_path / "run")) == 2 and stopped == "A callback has stopped training in epoch 2"
    assert changed.startswith(f"{config.corpus}: changed during training")
    found = read_record(tmp_path / "run").content["training"]
    assert (found["epochs"], found["changed"]) == (2, [config.corpus])
    assert not (tmp_path / "run" / "unfinished").exists()


class StopAndSpoil(keras.callbacks.Callback):
    """A callback that ends training after the second epoch. As an `EarlyStopping` that restores weights, it changes
    them at the end."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.optimizer.learning_rate = 1e-5 / (epoch + 1)
        self.model.stop_training = epoch == 1

    def on_train_end(self, logs=None):
        self.weights = self.model.get_weights()
        self.model.set_weights([0 * weight for weight in self.weights])


def test_the_epoch_in_which_a_callback_ends_training_is_measured_and_saved(config, tmp_path):
    stop, said = StopAndSpoil(), []
    # Of 82 epochs, the first and every third are measured.
    config = dataclasses.replace(config, epochs=82, schedule="constant", warmup=0)
    model = train(config, tmp_path / "run", callbacks=stop, say=said.append)
    assert notices(said) == ["A callback has stopped training in epoch 2"]
    assert [line.count("held out") for line in said if line.startswith("Epoch ")] == [1, 0, 1]
    first, second = read_history(tmp_path / "run")
    assert all(float(row[name]) > 0 for row in (first, second) for name in ("loss", "val_loss", "val_chrf"))
    assert float(first["learning_rate"]) > float(second["learning_rate"]) == pytest.approx(1e-5)
    assert read_record(tmp_path / "run").content["training"]["epochs"] == 2
    for kept, last in zip(model.get_weights(), stop.weights, strict=True):
        np.testing.assert_array_equal(kept, last)


class At(keras.callbacks.Callback):
    """A callback that calls a function with the model after a batch, or after an epoch if no batch is given."""

    def __init__(self, run, batch=None):
        super().__init__()
        self.run, self.batch = run, batch

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.batch:
            self.run(self.model)

    def on_epoch_end(self, epoch, logs=None):
        if self.batch is None:
            self.run(self.model)


def stop(model):
    model.stop_training = True


def test_a_callback_may_end_a_training_within_an_epoch_and_in_the_rest_of_a_resumed_one(config, tmp_path):
    config, said = dataclasses.replace(config, epochs=4), []
    train(config, tmp_path / "within", callbacks=[At(stop, batch=1)], say=said.append)
    assert read_record(tmp_path / "within").content["training"]["updates"] == 2
    interrupt = At(lambda model: os.kill(os.getpid(), signal.SIGINT), batch=0)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "rest", callbacks=[interrupt])
    train(config, tmp_path / "rest", callbacks=[At(stop)], say=said.append)
    assert len(read_history(tmp_path / "within")) == len(read_history(tmp_path / "rest")) == 1
    stopped = "A callback has stopped training in epoch 1"
    assert notices(said) == [stopped, f"Resuming {tmp_path / 'rest'} in epoch 1/4, after 1 of 3 steps", stopped]


def test_only_a_training_that_was_begun_can_be_resumed_without_a_configuration(tmp_path):
    with pytest.raises(RunError, match=r"rest: no unfinished run to resume$"):
        train(None, tmp_path / "rest")
    with pytest.raises(OptionError, match="config=None: resumes a run; to overwrite one, give a Config"):
        train(None, tmp_path / "rest", overwrite=True)


def test_what_is_left_of_a_training_that_was_killed_is_named_removed_or_begun_anew(config, tmp_path):
    """In the middle of overwriting; at the end, before its checkpoints were removed; and at the first file."""
    part, ended, begun = (tmp_path / name for name in ("part", "ended", "begun"))
    record = {"options": dataclasses.asdict(config), "plan": {}}
    for folder, more in ((part, {}), (ended, {"training": {}})):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(record | more))
        (folder / "model.keras").touch()
    with pytest.raises(RunError, match="part holds part of a run, which cannot be resumed; --overwrite starts"):
        train(config, part)
    (ended / "unfinished").mkdir()
    (ended / "unfinished" / "begun.keras").touch()
    with pytest.raises(RunError, match="no unfinished run to resume; its training has ended"):
        train(None, ended)
    assert sorted(path.name for path in ended.iterdir()) == ["config.json", "model.keras"]
    begun.mkdir()
    (begun / "aside-config.json").touch()
    with pytest.raises(CorpusError, match=r"nowhere\.tsv: No such file"):
        train(dataclasses.replace(config, corpus="nowhere.tsv"), begun)


def test_operations_are_deterministic_for_a_training_only(config, tmp_path):
    with pytest.raises(CorpusError):
        train(dataclasses.replace(config, corpus="nowhere.tsv", deterministic=True), tmp_path / "run")
    assert not is_deterministic()
