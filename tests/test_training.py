import csv
import dataclasses
import hashlib
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
from tensorflow.python.framework import config as determinism

from pipelines import CharTokenizer, CorpusError, OptionError
from seq2seq.commands.train import progress_callback
from seq2seq.config import Config, load_config
from seq2seq.evaluation import evaluate
from seq2seq.layers import Encoder
from seq2seq.model import Seq2Seq
from seq2seq.runs import RunError, best_epoch, configuration, draw_run, held_out_pairs, kept_epochs, load_run
from seq2seq.training import DivergedError, train


def test_a_run_folder_holds_the_model_what_made_it_and_how_it_went(config, tmp_path):
    live = keras.callbacks.Callback()  # has the model that is trained
    model = train(config, tmp_path / "run", callbacks=[live])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "history.csv",
        "model.keras",
        "probe.json",
        "survey.json",
    ]
    options, saved = load_config(tmp_path / "run" / "config.json")
    assert Config(**options) == config
    assert saved["versions"]["keras"] == keras.__version__
    assert saved["checksums"] == {config.corpus: hashlib.sha256(Path(config.corpus).read_bytes()).hexdigest()}
    with (tmp_path / "run" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"loss", "accuracy", "perplexity", "val_loss", "val_accuracy", "val_perplexity"} < set(rows[0])
    assert int(live.model.optimizer.iterations) == 2 * 3  # 19 to 24 of the 25 pairs, in batches of 8
    again = load_run(tmp_path / "run")
    assert again.translate("ab", max_length=9) == model.translate("ab", max_length=9)


def test_the_vocabulary_is_of_the_training_side_only(tsv, tmp_path):
    corpus = tsv("".join(f"{c}\tx\n" for c in "abcdefghij"))
    model = train(Config(str(corpus), split="last", validation_fraction=0.2, units=4, epochs=1), tmp_path / "run")
    assert sorted(model.source_tokenizer.characters) == list("abcdefgh")


def test_a_corpus_too_small_to_hold_anything_out_is_trained_on_whole(tsv, tmp_path):
    train(Config(str(tsv("Go.\tVe.\n")), units=4, epochs=1), tmp_path / "run")
    assert "val_loss" not in (tmp_path / "run" / "history.csv").read_text()


def test_a_run_is_not_overwritten_unasked(config, tmp_path):
    run = tmp_path / "run"
    train(config, run)
    model = (run / "model.keras").read_bytes()
    with pytest.raises(RunError, match=r"run is not empty; choose another folder .* or say --overwrite"):
        train(config, run)
    with pytest.raises(CorpusError):
        train(dataclasses.replace(config, corpus="nowhere.tsv"), run, overwrite=True)
    assert (run / "model.keras").read_bytes() == model
    train(dataclasses.replace(config, epochs=1), run, overwrite=True)
    assert (run / "model.keras").read_bytes() != model


def test_each_pair_of_a_batch_without_a_finite_gradient_is_one_line(config, tsv, tmp_path):
    lines = [json.dumps({"source": f"{a}\n{b}", "target": "x\ty\u2028"}) + "\n" for a in "abc" for b in "abc"]
    wild = {"optimizer": "sgd", "learning_rate": 1e38, "clip_norm": None, "schedule": "constant"}
    config = dataclasses.replace(config, corpus=str(tsv("".join(lines), "pairs.jsonl")), batch_size=2, **wild)
    with pytest.raises(DivergedError):
        train(config, tmp_path / "run")
    batch = (tmp_path / "run" / "diverged.tsv").read_text().splitlines()
    assert len(batch) == 2 and all(re.fullmatch("[abc] [abc]\tx y ", line) for line in batch)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_training_without_a_finite_gradient_stops_and_names_the_batch(config, tmp_path, compiled):
    wild = {"optimizer": "sgd", "learning_rate": 1e38, "clip_norm": None, "schedule": "constant"}
    wild = dataclasses.replace(config, compile=compiled, **wild)
    with pytest.raises(
        DivergedError,
        match=r"epoch \d, step \d: .* norm is (nan|inf), one step earlier it was [\d.]+\. The batch is in",
    ):
        train(wild, tmp_path / "run")
    batch = (tmp_path / "run" / "diverged.tsv").read_text().splitlines()
    assert len(batch) in (4, 8) and set(batch) < set(Path(config.corpus).read_text().splitlines())
    said, live = [], keras.callbacks.Callback()
    skipping = dataclasses.replace(wild, on_divergence="skip")
    model = train(skipping, tmp_path / "run", overwrite=True, say=said.append, callbacks=[live])
    if compiled:
        assert said.pop(0).startswith("Training steps are compiled")
        assert said.pop(0) == "Compiling for batches of 8 x 16: size 1"
        assert re.fullmatch(r"Compiled in [\d.]+ s", said.pop(0))
    assert said and all(text.endswith("left out") for text in said)
    assert int(live.model.optimizer.iterations) == 2 * 3 - len(said)
    assert all(np.isfinite(weight).all() for weight in model.trainable_weights)


@pytest.mark.slow
def test_steps_that_are_looked_at_together_name_the_same_batches(config, tmp_path, monkeypatch):
    wild = {"optimizer": "sgd", "learning_rate": 1e38, "clip_norm": None, "schedule": "constant"}
    config = dataclasses.replace(config, batch_size=4, on_divergence="skip", validation_fraction=0, **wild)
    said = {}
    for seconds in (0.0, 3600.0):
        monkeypatch.setattr("seq2seq.training._seconds_between_looks", lambda seconds=seconds: seconds)
        run, said[seconds] = tmp_path / str(seconds), []
        train(config, run, say=said[seconds].append)
        said[seconds] = [text.replace(str(run), "") for text in said[seconds]]
    assert len(said[0.0]) > 5 and said[0.0] == said[3600.0]
    assert len({(tmp_path / str(seconds) / "diverged.tsv").read_text() for seconds in said}) == 1


@pytest.mark.slow
def test_no_step_comes_back_with_figures_for_which_a_device_is_waited(config, tmp_path, monkeypatch):
    returned, losses, make = [], [], Seq2Seq.make_train_function

    def spying(model, force=False):
        make(model, force)
        step = model.train_function
        model.train_function = lambda batches: returned.append(step(batches)) or returned[-1]

    class Follow(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            losses.append(logs["loss"])

    monkeypatch.setattr(Seq2Seq, "make_train_function", spying)
    train(config, tmp_path / "quiet", callbacks=[progress_callback()])
    assert len(returned) == 2 * 3 and all(set(figures) == {"loss"} for figures in returned)
    assert all(math.isnan(figures["loss"]) and "CPU" in figures["loss"].device for figures in returned)
    train(config, tmp_path / "followed", callbacks=[Follow()])
    assert len(losses) == 2 * 3 and np.isfinite(losses).all()
    assert history(tmp_path / "quiet") == history(tmp_path / "followed")


@pytest.mark.slow
def test_a_scale_too_large_for_float16_is_no_divergence_but_weights_that_are_no_numbers_are(config, tmp_path):
    scales = []

    class Spoil(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            scales.append(float(self.model.optimizer.dynamic_scale))
            if len(scales) == 1:
                self.model.optimizer.dynamic_scale.assign(2.0**30)
            if int(self.model.optimizer.iterations) == 3:
                kernel = self.model.decoder.output_layer.kernel
                kernel.assign(kernel * np.nan)

    with pytest.raises(DivergedError, match="the gradient norm is nan"):
        train(dataclasses.replace(config, epochs=30, precision="float16"), tmp_path / "run", callbacks=[Spoil()])
    assert 2.0**29 in scales and 1.0 in scales
    losses = [float(row["loss"]) for row in history(tmp_path / "run")]
    assert math.isnan(losses[-1]) and not math.isnan(losses[0])


@keras.saving.register_keras_serializable("tests")
class VastEncoder(Encoder):
    """Asks for a petabyte if there are more rows than `enough`."""

    enough = 3

    def call(self, source, training=False):
        size = tf.where(tf.shape(source)[0] > self.enough, 2**24, 1)
        asked_for = tf.fill([size, size], 0.0)
        encoded = super().call(source, training=training)
        return encoded._replace(memory=encoded.memory + asked_for[0, 0])


def test_a_batch_that_does_not_fit_into_memory_is_described_and_what_was_saved_stays(config, tmp_path):
    config = dataclasses.replace(config, encoder="test_training:VastEncoder", validation_fraction=0)
    with pytest.raises(MemoryError) as raised:
        train(config, tmp_path / "run")
    assert str(raised.value) == (
        "epoch 1, step 1: out of memory for a batch of 8 pairs of up to 2 source and 3 target tokens. Lower "
        "--batch-size (8), or set --batch-tokens, so that fewer long texts are in a batch, or leave long texts out by "
        "--max-length (1000)"
    )
    assert len(list((tmp_path / "run" / "unfinished").glob("*.npz"))) == 1
    model = Seq2Seq(CharTokenizer("ab"), CharTokenizer("AB"), encoder=VastEncoder, units=8)
    with pytest.raises(MemoryError, match="out of memory for 9 texts of up to 2 bytes together; lower batch_size=9"):
        model.translate(["ab"] * 9, batch_size=9)
    assert model.translate(["ab"] * 9, batch_size=3).shape == [9]


@pytest.mark.parametrize(("sent", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_stops_a_training_of_one_step_an_epoch_too(config, tmp_path, sent, raised):
    send = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: os.kill(os.getpid(), sent))
    with pytest.raises(raised):
        train(dataclasses.replace(config, batch_size=64, epochs=9), tmp_path / "run", callbacks=[send])
    assert len(history(tmp_path / "run")) == 1


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_corpus_is_refused(tsv, tmp_path, content):
    with pytest.raises(CorpusError, match="no pairs to train on"):
        train(Config(str(tsv(content))), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_same_configuration_gives_the_same_weights_to_the_bit(config, tmp_path):
    """Every source of chance is in it: first weights, order, dropout, scheduled sampling."""
    config = dataclasses.replace(
        config, embedding=6, dropout=0.3, teacher_forcing=(1.0, 0.3), tied=True, layers=2, target_tokenizer="subword"
    )
    seen = []

    class See(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append(determinism.is_op_determinism_enabled())

    def weights(run, **options):
        model = train(dataclasses.replace(config, **options), tmp_path / run, callbacks=[See()])
        return [weight.numpy().tobytes() for weight in model.weights]

    assert weights("first") == weights("second") != weights("other", seed=1, deterministic=False)
    assert seen == [True, True, False] and not determinism.is_op_determinism_enabled()
    with pytest.raises(OptionError, match="compile=True: XLA does not promise the same bits"):
        dataclasses.replace(config, compile=True, deterministic=True)


def test_standard_input_cannot_be_trained_on(config, tmp_path):
    with pytest.raises(CorpusError, match="standard input can be read only once"):
        train(dataclasses.replace(config, corpus="-"), tmp_path / "run")


def test_a_corpus_to_hold_out_that_cannot_serve_is_refused(config, tmp_path, tsv):
    for validation, message in (
        ("-", "standard input can be read only once"),
        ("nowhere.tsv", "nowhere.tsv: No such file"),
        (str(tsv("\n", "empty.tsv")), "empty.tsv: no pairs to validate on"),
        (str(tsv("no tab\n", "bad.tsv")), "bad.tsv, line 1: expected source TAB target"),
    ):
        with pytest.raises(CorpusError, match=message):
            train(dataclasses.replace(config, validation=validation, validation_fraction=0.0), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_held_out_pairs_with_a_source_that_is_trained_on_are_counted(tsv, tmp_path):
    corpus = tsv("".join(f"{c}\tx\n" for c in "abcdefgh") + "A\ty\nB\ty\n")
    config = Config(str(corpus), split="last", validation_fraction=0.3, lowercase=True, units=4, epochs=1)
    said = []
    train(config, tmp_path / "run", say=said.append)
    assert "2 of 3 held-out pairs have a source that is trained on too" in said[0]
    said.clear()
    train(dataclasses.replace(config, split="hash"), tmp_path / "other", say=said.append)
    assert said == []


def test_as_many_epochs_as_make_2000_updates_are_the_default(config, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            assert self.params["epochs"] == 100  # at most
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(config, epochs=None), tmp_path / "run", callbacks=[Stop()])


@pytest.mark.parametrize(("updates", "epochs"), [(1, 1), (14, 5)])
def test_a_length_in_updates_is_rounded_to_epochs_and_the_schedule_spans_them(config, tmp_path, updates, epochs):
    config = dataclasses.replace(config, epochs=None, updates=updates, validation_fraction=0, batch_size=9)
    live = keras.callbacks.Callback()
    train(config, tmp_path / "run", callbacks=[live])
    assert len(history(tmp_path / "run")) == epochs and int(live.model.optimizer.iterations) == 3 * epochs
    assert float(live.model.optimizer.learning_rate) == pytest.approx(0, abs=1e-9)


def test_of_many_epochs_some_are_measured_and_saved_and_the_last(config, tmp_path, monkeypatch):
    kept = []

    class Follow(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kept.append(epochs_seen(load_run(tmp_path / "run"), tmp_path / "run"))

    monkeypatch.setattr("seq2seq.training._MEASURED_EPOCHS", 3)
    model = train(dataclasses.replace(config, epochs=8), tmp_path / "run", callbacks=[Follow()])
    assert kept == [1, 1, 3, 3, 3, 6, 6, 8] and epochs_seen(model, tmp_path / "run") == 8
    rows = history(tmp_path / "run")
    assert [row["epoch"] for row in rows if row["val_loss"]] == ["1", "3", "6", "8"]
    assert all((row["val_loss"] == "") == (row["val_chrf"] == "") for row in rows)
    assert all(float(row["loss"]) > 0 and float(row["learning_rate"]) >= 0 for row in rows)


def test_only_measured_epochs_are_compared_and_only_they_try_patience(config, tmp_path, monkeypatch):
    monkeypatch.setattr("seq2seq.training._MEASURED_EPOCHS", 20)
    options = {"epochs": 40, "learning_rate": 0.02, "monitor": "val_loss", "patience": 2}
    model = train(dataclasses.replace(config, **options), tmp_path / "run", callbacks=[Worsen()])
    rows = history(tmp_path / "run")
    assert [row["epoch"] for row in rows if row["val_loss"]] == ["1", "2", "4", "6"] and len(rows) == 6
    assert best_epoch(rows, "val_loss") == 2 == epochs_seen(model, tmp_path / "run")
    assert draw_run(tmp_path / "run", model)[0].is_file()


def test_the_models_of_the_last_measured_epochs_are_kept_and_go_with_the_run(config, tmp_path, monkeypatch):
    monkeypatch.setattr("seq2seq.training._MEASURED_EPOCHS", 3)
    run = tmp_path / "run"
    train(dataclasses.replace(config, epochs=8, keep_epochs=2), run)
    assert list(kept_epochs(run)) == [6, 8]  # of 1, 3, 6 and 8
    last = keras.models.load_model(kept_epochs(run)[8])
    for one, other in zip(last.weights, load_run(run).weights, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(RunError, match="is not empty"):
        train(config, run)
    train(dataclasses.replace(config, epochs=1, keep_epochs=9), run, overwrite=True)
    assert list(kept_epochs(run)) == [1]
    train(dataclasses.replace(config, epochs=1), run, overwrite=True)
    assert not (run / "epochs").exists()


def test_what_a_training_took_is_recorded_and_adds_up_when_it_is_resumed(config, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            time.sleep(0.3)
            raise KeyboardInterrupt

    config = dataclasses.replace(config, checkpoint_minutes=0.0)
    for _ in range(2):  # each time the last step of the first epoch is to be done again
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", callbacks=[Stop()])
    before = configuration(tmp_path / "run")[1]["training"]
    started = time.monotonic()
    model = train(config, tmp_path / "run")
    alone = time.monotonic() - started
    found = configuration(tmp_path / "run")[1]["training"]
    pairs = json.loads((tmp_path / "run" / "survey.json").read_text())["pairs"]
    assert (before["updates"], before["epochs"], before["pairs"]) == (3, 1, pairs)
    assert (found["updates"], found["epochs"], found["pairs"]) == (6, 2, 2 * pairs)
    assert found["parameters"] == model.count_params() and found["device"]
    assert alone < found["seconds"] < before["seconds"] + alone
    assert before["processor_seconds"] < found["processor_seconds"] and found["peak_memory_mb"] > 100


@pytest.mark.parametrize("kinds", [("char", "byte"), ("whitespace", "subword")])
def test_every_kind_of_tokens_can_be_trained_on_and_comes_back(config, tmp_path, kinds):
    options = {"source_tokenizer": kinds[0], "target_tokenizer": kinds[1], "lowercase": True, "epochs": 1}
    model = train(dataclasses.replace(config, **options, normal_form="NFKC"), tmp_path / "run")
    again = load_run(tmp_path / "run")
    for tokenizers in (
        (model.source_tokenizer, again.source_tokenizer),
        (model.target_tokenizer, again.target_tokenizer),
    ):
        assert tokenizers[0].get_config() == tokenizers[1].get_config()
    assert again.source_tokenizer.lowercase and again.source_tokenizer.normal_form == "NFKC"
    assert again.translate("AB") == model.translate("ab")
    assert json.loads((tmp_path / "run" / "survey.json").read_text())["pairs"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "transformer", "attention": None, "warmup": 9},
        {"decoder": "transformer", "copy": False},
        {"encoder": "transformer", "cell": "lstm", "shared_vocabulary": True},
    ],
    ids=str,
)
def test_both_halves_may_be_of_either_architecture(config, tmp_path, options):
    said = []
    options = {"heads": 2, "epochs": 1, "copy": True} | options
    corpus = tmp_path / "same.tsv"
    corpus.write_text("".join(f"{a}{b}\t{b}{a}\n" for a in "abcde" for b in "abcde"))
    train(dataclasses.replace(config, corpus=str(corpus), **options), tmp_path / "run", say=said.append)
    model = load_run(tmp_path / "run")
    kinds = [type(half).__name__.removesuffix("coder") for half in (model.encoder, model.decoder)]
    given = [options.get(half) or options.get("architecture", "recurrent") for half in ("encoder", "decoder")]
    assert kinds == [
        ("Transformer" if kind == "transformer" else "") + half for kind, half in zip(given, ("En", "De"), strict=True)
    ]
    assert any(text == "copying: 5 source tokens can be copied, of 5 target tokens" for text in said) == options["copy"]
    assert any("all of them warm-up: --warmup 9" in text for text in said) == ("warmup" in options)
    if options.get("shared_vocabulary"):
        assert model.source_tokenizer.vocabulary == model.target_tokenizer.vocabulary


def test_where_no_token_is_common_a_copying_model_says_so_and_learns_without(config, tmp_path):
    said = []
    train(dataclasses.replace(config, copy=True), tmp_path / "run", say=said.append)
    assert any(text.startswith("copying: no source token can be copied, of ") for text in said)
    assert np.isfinite(load_run(tmp_path / "run").score(["a"], ["b"])).all()


def test_options_that_cannot_be_are_refused_before_anything_is_read(config, tmp_path):
    for options, message in (
        ({"cell": "lstmm"}, "cell='lstmm'.*did you mean 'lstm'"),
        ({"target_tokenizer": "words"}, "target_tokenizer='words': expected 'char'"),
        ({"optimizer": "adamm"}, "optimizer='adamm'.*did you mean 'adam'"),
        ({"tied": True}, "tied=True"),
        ({"decoder": "nowhere:Decoder"}, "there is no module 'nowhere'"),
        ({"encoder": "json:Encoder"}, "json has no class 'Encoder'"),
        ({"units": 7, "bidirectional": True}, "units=7"),
        ({"min_frequency": 1000}, "min_frequency=1000: no source token comes so often"),
    ):
        with pytest.raises(OptionError, match=message):
            train(dataclasses.replace(config, **options), tmp_path / "run")
    with pytest.raises(OptionError, match=r"config='x\.tsv': expected a Config"):
        train("x.tsv", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_was_read_is_reported_and_kept(tsv, tmp_path):
    corpus = tsv("".join(f"{c}{c}\txy\n" for c in "abcdefghij") + "no tab\n" + "a" * 30 + "\tx\n")
    options = {"on_bad_line": "skip", "max_length": 20, "min_frequency": 2, "max_vocabulary": 5}
    config = Config(str(corpus), validation_fraction=0, units=4, epochs=1, **options)
    counted, reports, said = [], [], []
    model = train(config, tmp_path / "run", progress=counted.append, report=reports.append, say=said.append)
    assert counted == [10] and "source: 50% of the tokens are none of the vocabulary's 5" in said
    assert not any(text.startswith("target") for text in said)
    assert reports[0].dropped == {"wrong columns": 1, "too long": 1}
    assert model.source_tokenizer.characters == list("abcde")
    kept = json.loads((tmp_path / "run" / "survey.json").read_text())
    assert kept["pairs"] == 10 and kept["target"]["tokens"] == {"x": 10, "y": 10}


def test_an_overlong_line_is_told_left_out_and_survived(tsv, tmp_path):
    rows = "".join(f"{c}{c}\txy\n" for c in "abcdefghij")
    long = f"{'a' * 20_000}\t{'x' * 20_000}\n"
    corpus, said = tsv(rows + long), []
    config = Config(str(corpus), validation_fraction=0, units=4, epochs=1, encoding="ids")
    train(config, tmp_path / "run", say=said.append, report=lambda report: None)
    assert said == [
        f"1 with a side of more than 1,000 characters left out, the first of them {corpus}, line 11: 20000 characters. "
        "Another --max-length, or none, takes them; long texts need much memory"
    ]
    with pytest.warns(UserWarning, match=r"line 11: 20000 characters\. Another --max-length"):  # if nobody listens
        train(config, tmp_path / "heard")
    said.clear()
    train(dataclasses.replace(config, max_length=5000), tmp_path / "asked", say=said.append)
    assert said == []  # as asked for
    held_out = dataclasses.replace(config, corpus=str(tsv(rows, "short.tsv")), validation=str(corpus))
    with pytest.raises(
        CorpusError, match=r"pairs\.tsv, line 11: 20000 characters, too long to validate on; .*--max-length"
    ):
        train(held_out, tmp_path / "validated")
    assert not (tmp_path / "validated").exists()


def test_a_configuration_of_lists_and_paths_goes_on_where_it_was(config, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    options = {"corpus": [Path(config.corpus)], "columns": [1, 2], "teacher_forcing": [1, 0.5], "epochs": 3}
    again = dataclasses.replace(config, **options)
    with pytest.raises(KeyboardInterrupt):
        train(again, tmp_path / "run", callbacks=[Stop()])
    said = []
    train(again, tmp_path / "run", say=said.append)
    assert said[0].startswith(f"Resuming {tmp_path / 'run'} in epoch ") and len(history(tmp_path / "run")) == 3


def test_weights_draw_from_the_training_side_only(tsv, tmp_path):
    large = tsv("".join(f"large {n}\tx\n" for n in range(200)), "large.tsv")
    small = tsv("".join(f"small {n}\ty\n" for n in range(20)), "small.tsv")
    config = Config((str(large), str(small)), weights=(1, 1), validation_fraction=0.2, units=4, epochs=1, batch_size=50)
    train(config, tmp_path / "run")
    tokens = json.loads((tmp_path / "run" / "survey.json").read_text())["target"]["tokens"]
    assert tokens["x"] == pytest.approx(160, abs=20) and tokens["y"] == pytest.approx(tokens["x"], rel=0.3)
    for other in ({"limit": 100}, {"split": "last"}):
        with pytest.raises(OptionError, match="weights cannot be used"):
            dataclasses.replace(config, **other)


def history(run):
    with (run / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_figures_of_an_epoch_are_those_of_evaluate(config, tmp_path):
    model = train(config, tmp_path / "run")
    found = evaluate(model, held_out_pairs(tmp_path / "run", model))
    last = history(tmp_path / "run")[-1]
    for name, measured in found.scores.items():
        assert float(last[f"val_{name.lower().replace(' ', '_')}"]) == pytest.approx(measured.score)
    assert float(last["val_perplexity"]) == pytest.approx(found.perplexity, rel=1e-4)


class Worsen(keras.callbacks.Callback):
    """Spoils the model after each epoch but the first three, before it is measured."""

    def on_test_begin(self, logs=None):
        if len(self.model.history.epoch) >= 3:
            bias = self.model.decoder.output_layer.bias
            bias.assign(bias + 3.0 * (tf.range(bias.shape[0], dtype=tf.float32) % 3))


def epochs_seen(model, run):
    """How many epochs a model has been trained for, by the pairs that it has counted."""
    return model.length_ratios.numpy()[0] / json.loads((run / "survey.json").read_text())["pairs"]


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy"])
def test_the_best_epoch_is_kept_and_training_stops_when_none_is_better(config, tmp_path, monitor):
    config = dataclasses.replace(config, epochs=40, learning_rate=0.02, monitor=monitor, patience=2)
    model = train(config, tmp_path / "run", callbacks=[Worsen()])
    rows = history(tmp_path / "run")
    best = best_epoch(rows, monitor)
    assert 1 <= best <= 3 and len(rows) == best + 2
    assert epochs_seen(model, tmp_path / "run") == best
    known = evaluate(model, held_out_pairs(tmp_path / "run", model))
    assert known.perplexity == pytest.approx(float(rows[best - 1]["val_perplexity"]), rel=1e-4)


def test_without_a_monitor_the_last_epoch_is_kept(config, tmp_path):
    model = train(dataclasses.replace(config, epochs=5), tmp_path / "run", callbacks=[Worsen()])
    assert epochs_seen(model, tmp_path / "run") == epochs_seen(load_run(tmp_path / "run"), tmp_path / "run") == 5


@pytest.mark.parametrize("validation_fraction", [0, 0.2])
def test_the_average_of_the_last_epochs_is_measured_and_kept(config, tmp_path, validation_fraction):
    class Remember(keras.callbacks.Callback):
        weights, steps = [], 0

        def on_train_batch_end(self, batch, logs=None):
            self.now = [weight.numpy() for weight in self.model.trainable_variables]

        def on_epoch_begin(self, epoch, logs=None):
            if epoch:  # training goes on from where it was, not from the average
                for weight, own in zip(self.model.trainable_variables, self.weights[-1], strict=True):
                    np.testing.assert_array_equal(weight, own)

        def on_epoch_end(self, epoch, logs=None):
            self.weights.append(self.now)

    remember = Remember()
    config = dataclasses.replace(config, epochs=4, average=3, validation_fraction=validation_fraction)
    train(config, tmp_path / "run", callbacks=[remember])
    kept = load_run(tmp_path / "run")
    for weight, own in zip(kept.trainable_variables, zip(*remember.weights[1:], strict=True), strict=True):
        np.testing.assert_allclose(weight, np.mean(own, axis=0), rtol=1e-6)
    if validation_fraction:
        known = evaluate(kept, held_out_pairs(tmp_path / "run", kept))
        assert known.perplexity == pytest.approx(float(history(tmp_path / "run")[-1]["val_perplexity"]), rel=1e-4)


def test_a_plateau_halves_the_step_size(config, tmp_path):
    options = {"schedule": "plateau", "monitor": "val_loss", "epochs": 7, "learning_rate": 0.004}
    train(dataclasses.replace(config, **options), tmp_path / "run", callbacks=[Worsen()])
    rates = [float(row["learning_rate"]) for row in history(tmp_path / "run")]
    assert rates[0] == pytest.approx(0.004) and rates[-1] < 0.003


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"monitor": "val_bleuu"}, "monitor='val_bleuu'.*did you mean 'val_bleu'"),
        ({"patience": 3}, "patience=3: there is no monitor"),
        ({"schedule": "plateau"}, "schedule='plateau': there is no monitor"),
        ({"schedule": "inverse_sqrt"}, "schedule='inverse_sqrt' and warmup=0 do not go together"),
        ({"schedule": "cosin"}, "schedule='cosin'.*did you mean 'cosine'"),
        ({"monitor": "val_loss", "validation_fraction": 0}, "nothing is held out"),
    ],
)
def test_what_cannot_be_watched_is_refused(config, tmp_path, options, message):
    with pytest.raises(OptionError, match=message):
        train(dataclasses.replace(config, **options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_token_budget_and_one_hot_rows_train_too(config, tmp_path):
    live = keras.callbacks.Callback()
    train(dataclasses.replace(config, batch_tokens=30, encoding="one_hot"), tmp_path / "run", callbacks=[live])
    with (tmp_path / "run" / "history.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[1] < losses[0]
    assert 2 * 2 <= int(live.model.optimizer.iterations) <= 2 * 3  # 3 tokens a pair, about 20 pairs, batches of 30


def test_no_epoch_waits_in_the_end_for_a_thread_that_tunes_what_it_reads(config, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("seq2seq.training.distribute", lambda strategy, batches: read.append(batches) or batches)
    train(config, tmp_path / "run")
    assert [batches.options().autotune.enabled for batches in read] == [False, False]


@pytest.mark.parametrize("options", [{}, {"embedding": 6, "tied": True, "encoding": "ids"}])
def test_a_warm_start_keeps_what_was_learned_of_old_tokens_and_knows_new_ones(config, tmp_path, tsv, options):
    config = dataclasses.replace(config, normal_form=None, **options)
    old = train(config, tmp_path / "old")
    new = str(tsv("".join(f"{a}{b}\t{a.upper()}{b}\n" for a in "abxy" for b in "xyz") + "€a\t€A\n", "new.tsv"))
    said = []
    still = {"learning_rate": 0.0, "warm_start": str(tmp_path / "old"), "validation_fraction": 0.0}
    warm = train(dataclasses.replace(config, corpus=new, **still), tmp_path / "warm", say=said.append)
    for side, tokenizer in (("source", warm.source_tokenizer), ("target", warm.target_tokenizer)):
        known = getattr(old, f"{side}_tokenizer").tokens
        assert tokenizer.tokens[: len(known)] == known and set("xyz") < set(tokenizer.tokens)
    assert said[0] == "source: 4 new tokens" and said[1].startswith("target: 6 new tokens")
    texts = ["ab", "ce", "dd"]
    np.testing.assert_allclose(
        warm.attention(texts, texts)[1].weights, old.attention(texts, texts)[1].weights, atol=1e-5
    )
    with pytest.raises(OptionError, match=r"units=4: .*old, to start from, has 8"):
        train(dataclasses.replace(config, corpus=new, units=4, **still), tmp_path / "other")


@pytest.mark.slow
def test_a_run_of_several_source_columns_and_one_that_starts_from_it(tsv, tmp_path):
    corpus = tsv("lemma\tform\tfeatures\n" + "".join(f"{a}\t{a.upper()}\tV;UP\n{a}\t{a}\t\n" for a in "abcdef"))
    options = {"columns": ("lemma", "features", "form"), "source_tokenizer": "char,;", "validation_fraction": 0}
    options |= {"units": 4, "epochs": 1}
    model = train(Config(str(corpus), **options), tmp_path / "run")
    source = model.source_tokenizer
    assert source.column_names == ("lemma", "features") and source.vocabulary[-3:] == ["[UNK]", "UP", "V"]
    assert set(json.loads((tmp_path / "run" / "probe.json").read_text())) >= {"a\tV;UP", "a\t"}
    more = tsv("az\tzaz\tV;NEW\n", "more.tsv")
    warm = {"columns": (1, 3, 2), "warm_start": str(tmp_path / "run"), "learning_rate": 0.0}
    warmed = train(Config(str(more), **options | warm), tmp_path / "warm")
    assert warmed.source_tokenizer.vocabulary == [*source.vocabulary, "z", "NEW"]
    ids = source.tokenize(["ax\tV;DOWN;UP"])
    assert warmed.source_tokenizer.tokenize(["ax\tV;DOWN;UP"]).numpy().tolist() == ids.numpy().tolist()
    np.testing.assert_allclose(warmed.encoder(ids).memory, model.encoder(ids).memory, atol=1e-6)
    with pytest.raises(OptionError, match=r"columns=\(1, 2\): .*run, to start from, has 2 of the source \(lemma, feat"):
        train(Config(str(more), **options | warm | {"columns": (1, 2)}), tmp_path / "other")
    with pytest.raises(
        OptionError, match="source_tokenizer='char,;': 2 names, but the columns are source; expected one"
    ):
        train(Config(str(more), **options | {"columns": (1, 2)}), tmp_path / "other")
