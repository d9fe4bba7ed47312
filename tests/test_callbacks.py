import dataclasses
import json
import math
import re
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import notices, read_history

from pipelines import CharTokenizer
from seq2seq.callbacks import AverageWeights, DivergedError, SaveRun, SayEpochs, WatchSteps
from seq2seq.config import Config
from seq2seq.epochs import training_batches
from seq2seq.evaluation import evaluate
from seq2seq.layers import Encoder, token_ids
from seq2seq.model import Seq2Seq
from seq2seq.progress import TrainingRun
from seq2seq.runs import held_out_pairs, load_run
from seq2seq.training import train

WILD = {"optimizer": "sgd", "learning_rate": 1e38, "clip_norm": None, "schedule": "constant"}


def test_the_figures_of_an_epoch_are_those_of_evaluate(trained):
    found = evaluate(trained.model, held_out_pairs(trained.folder, trained.model))
    last = read_history(trained.folder)[-1]
    for name, measured in found.scores.items():
        assert float(last[f"val_{name.lower().replace(' ', '_')}"]) == pytest.approx(measured.score)
    assert float(last["val_perplexity"]) == pytest.approx(found.perplexity, rel=1e-4)


@pytest.fixture
def run(tmp_path):
    """A run of nine epochs that has not begun, without a model."""
    config = Config("pairs.tsv", monitor="val_loss", batch_tokens=30)
    return TrainingRun(tmp_path, config, {}, None, None, pairs=9, steps=3, epochs=9)


def test_the_figures_of_an_epoch_are_said_and_the_beginnings_of_three_translations(shared_model, run):
    said, blank, long = [], " ", "sol" * 100
    say = SayEpochs({"sol": ["SOL", "no other"], blank: ["x\ny"], long: [""], "mar": ["MAR"]}, run, said.append)
    say.set_model(shared_model)
    say.on_epoch_begin(0)
    measured = {"val_loss": 2.0, "val_accuracy": 0.25, "val_chrf": 12.34, "val_exact_match": 33.333}
    say.on_epoch_end(0, {"loss": 1.23456, "accuracy": 0.5, **measured})
    figures, *translations = said
    held_out = r"held out: loss 2\.000  accuracy 25\.0%  chrF 12\.3  exact match 33\.3%"
    assert re.fullmatch(rf"Epoch 1/9  loss 1\.235  accuracy 50\.0%  \|  {held_out}  \|  \d+\.\d s", figures)
    for text, (source, reference) in zip(
        translations, (("sol", "SOL"), ("␣", "x y"), (f"{long[:200]}...", "")), strict=True
    ):
        assert text.startswith(f"    {source}  ->  ") and text.endswith(f"   ({reference})")
    say.on_epoch_end(1, {"loss": 1.0})  # not measured
    assert len(said) == 5 and "held out" not in said[4]


def test_the_history_has_a_column_for_each_figure_even_if_the_first_epoch_lacks_it(run):
    run.history = [{"epoch": 1, "val_loss": 1.0}, {"epoch": 2, "val_loss": 2.0, "val_chrf": 3.0}]
    SaveRun(run, None, None, [], None).write()
    assert [row["val_chrf"] for row in read_history(run.folder)] == ["", "3.0"]


def test_memory_that_the_held_out_set_lacks_is_not_that_of_a_training_step(run):
    run.step = 3
    assert WatchSteps(run, None).out_of_memory() == (
        "epoch 1: out of memory while the held-out set was measured. Lower --batch-tokens (30), or leave out long "
        "texts with --max-length (1000)"
    )


class Remember(keras.callbacks.Callback):
    """A callback that keeps the weights after each epoch, and checks that the next one does not begin with their
    average."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        self.now = [weight.numpy() for weight in self.model.trainable_variables]

    def on_epoch_begin(self, epoch, logs=None):
        if epoch:
            for weight, own in zip(self.model.trainable_variables, self.weights[-1], strict=True):
                np.testing.assert_array_equal(weight, own)

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(self.now)


def assert_mean(model, weights):
    for weight, own in zip(model.trainable_variables, zip(*weights, strict=True), strict=True):
        np.testing.assert_allclose(weight, np.mean(own, axis=0), rtol=1e-6)


@pytest.mark.parametrize("validation_data", [None, (np.ones([2, 2]), np.ones([2, 1]))])
def test_the_average_of_the_last_epochs_takes_the_place_of_the_weights_between_epochs(validation_data):
    model, remember = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)]), Remember()
    model.compile("sgd", "mse")
    callbacks = [AverageWeights(3), remember]
    x, y = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0], [2.0]])
    model.fit(x, y, epochs=4, verbose=0, validation_data=validation_data, callbacks=callbacks)
    assert_mean(model, remember.weights[1:])


def test_the_average_of_the_last_epochs_is_measured_and_kept(config, tmp_path):
    remember = Remember()
    train(dataclasses.replace(config, epochs=3, average=2), tmp_path / "run", callbacks=[remember])
    kept = load_run(tmp_path / "run")
    assert_mean(kept, remember.weights[1:])
    known = evaluate(kept, held_out_pairs(tmp_path / "run", kept))
    assert known.perplexity == pytest.approx(float(read_history(tmp_path / "run")[-1]["val_perplexity"]), rel=1e-4)


def test_a_training_without_a_finite_gradient_stops_and_writes_each_pair_of_the_batch_as_one_line(
    config, tsv, tmp_path
):
    lines = [json.dumps({"source": f"{a}\n{b}", "target": "x\ty\u2028"}) + "\n" for a in "abc" for b in "abc"]
    wild = dataclasses.replace(config, corpus=str(tsv("".join(lines), "pairs.jsonl")), batch_size=2, **WILD)
    with pytest.raises(
        DivergedError,
        match=r"epoch 1, step \d: .* norm is (nan|inf); the last finite one was [\d.]+\. The batch is in .*tsv\. "
        r"The run folder holds no model, because this was the first epoch\. A smaller",
    ):
        train(wild, tmp_path / "run")
    batch = (tmp_path / "run" / "diverged.tsv").read_text().splitlines()
    assert len(batch) == 2 and all(re.fullmatch("[abc] [abc]\tx y ", line) for line in batch)


class Follow(keras.callbacks.Callback):
    """A callback that keeps the norm of each step's gradient."""

    def __init__(self):
        super().__init__()
        self.norms = []

    def on_train_batch_end(self, batch, logs=None):
        self.norms.append(float(self.model.gradient_norm))


def test_batches_without_a_finite_gradient_are_left_out_and_named_however_seldom_one_looks(
    config, tmp_path, monkeypatch
):
    options = {"batch_size": 4, "on_divergence": "skip", "validation_fraction": 0, **WILD}
    config, run, said, follow = dataclasses.replace(config, **options), tmp_path / "run", [], Follow()
    monkeypatch.setattr("seq2seq.callbacks._seconds_between_looks", lambda: 3600.0)
    model = train(config, run, say=said.append, callbacks=[follow])
    skipped = [number for number, norm in enumerate(follow.norms) if not math.isfinite(norm)]
    assert len(follow.norms) == 2 * 7 and len(skipped) > 5
    assert [text.partition(":")[0] for text in notices(said)] == [
        f"epoch {n // 7 + 1}, step {n % 7 + 1}" for n in skipped
    ]
    assert all(text.endswith("it was skipped") for text in notices(said))
    assert int(follow.model.optimizer.iterations) == 2 * 7 - len(skipped)
    assert all(np.isfinite(weight).all() for weight in model.trainable_weights)
    (batch,) = training_batches(SimpleNamespace(config=config, model=model, pairs=25), 0).skip(skipped[-1]).take(1)
    tokenizers = model.source_tokenizer, model.target_tokenizer
    texts = [of.detokenize(token_ids(side)).numpy() for of, side in zip(tokenizers, batch, strict=True)]
    assert (run / "diverged.tsv").read_bytes().splitlines() == [b"%b\t%b" % pair for pair in zip(*texts, strict=True)]


@pytest.mark.parametrize("step", [0, 3])
def test_weights_that_are_no_numbers_end_training_even_if_batches_may_be_skipped(config, tmp_path, step):
    class Spoil(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == step:
                kernel = self.model.decoder.output_layer.kernel
                kernel.assign(kernel * np.nan)

    config = dataclasses.replace(config, on_divergence="skip", validation_fraction=0)
    before = r"; the last finite one was [\d.]+" if step else ""
    message = rf"step {step + 1}: the gradient norm is nan{before}\. The batch is .*; weights are not finite either"
    with pytest.raises(DivergedError, match=message):
        train(config, tmp_path / "run", callbacks=[Spoil()])


@pytest.mark.slow
def test_a_scale_too_large_for_float16_is_no_divergence_but_weights_that_are_no_numbers_are(config, tmp_path):
    scales, said = [], []

    class Spoil(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            scales.append(float(self.model.optimizer.dynamic_scale))
            if len(scales) == 1:
                self.model.optimizer.dynamic_scale.assign(2.0**30)
            if int(self.model.optimizer.iterations) == 3:
                kernel = self.model.decoder.output_layer.kernel
                kernel.assign(kernel * np.nan)

    options = {"epochs": 30, "precision": "float16", "validation_fraction": 0}
    with pytest.raises(DivergedError, match="the gradient norm is nan"):
        train(dataclasses.replace(config, **options), tmp_path / "run", callbacks=[Spoil()], say=said.append)
    assert 2.0**29 in scales and 1.0 in scales
    before = [scales[0], 2.0**30, *scales[1:]]
    halved = [now < was for was, now in zip(before, scales, strict=False)]
    skipped = [sum(halved[start : start + 4]) for start in range(0, len(halved) - 4, 4)]  # by epochs, the last left out
    told = [f"{number}: {count} of 4 steps" for number, count in enumerate(skipped, start=1) if count]
    assert notices(said) == [f"epoch {text} skipped, because their gradients were not finite" for text in told]
    losses = [float(row["loss"]) for row in read_history(tmp_path / "run")]
    assert math.isnan(losses[-1]) and not math.isnan(losses[0])


@keras.saving.register_keras_serializable("tests")
class VastEncoder(Encoder):
    """An encoder that asks for a petabyte if there are more rows than `enough`."""

    enough = 3

    def call(self, source, training=False):
        size = tf.where(tf.shape(source)[0] > self.enough, 2**24, 1)
        asked_for = tf.fill([size, size], 0.0)
        encoded = super().call(source, training=training)
        return encoded._replace(memory=encoded.memory + asked_for[0, 0])


@keras.saving.register_keras_serializable("tests")
class ShortOfMemory(Encoder):
    """An encoder that fails like `VastEncoder`, but at once: TensorFlow waits 10 s for memory before it gives up."""

    def call(self, source, training=False):
        encoded = super().call(source, training=training)
        rows = tf.numpy_function(refuse_many, [tf.shape(source)[0]], tf.int32)
        return encoded._replace(memory=encoded.memory + tf.cast(0 * rows, tf.float32))


def refuse_many(rows):
    if rows > VastEncoder.enough:
        raise MemoryError
    return rows


def test_a_batch_that_does_not_fit_into_memory_is_described_and_what_was_saved_stays(config, tmp_path):
    config = dataclasses.replace(config, encoder="test_callbacks:VastEncoder", validation_fraction=0)
    with pytest.raises(MemoryError) as raised:
        train(config, tmp_path / "run")
    assert str(raised.value) == (
        "epoch 1, step 1: out of memory for a batch of 8 pairs of up to 2 source and 3 target tokens. Lower "
        "--batch-size (8), or set --batch-tokens, so that fewer long texts are in a batch, or leave out long texts "
        "with --max-length (1000)"
    )
    assert (tmp_path / "run" / "unfinished" / "begun.keras").is_file()
    model = Seq2Seq(CharTokenizer("ab"), CharTokenizer("AB"), encoder=ShortOfMemory, units=8)
    with pytest.raises(MemoryError, match="out of memory for 9 texts together; lower batch_size=9"):
        model.translate(["ab"] * 9, batch_size=9)
    assert model.translate(["ab"] * 9, batch_size=3).shape == [9]
