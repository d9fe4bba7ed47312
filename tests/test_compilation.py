import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines.tokens import PADDING
from seq2seq import BeamSearch, Decoder, Encoder, Seq2Seq
from seq2seq.compilation import (
    compiled_by_xla,
    exporting,
    full_precision,
    parts_of_batch,
    rounded_up,
    side_by_side,
    xla_works,
)
from seq2seq.layers import token_ids


@pytest.mark.parametrize(
    ("threads", "each", "parts"), [(0, 0, 1), (2, 1, 2), (3, 1, 3), (4, 2, 2), (1, 2, 1), (4, 0, 1)]
)
def test_a_batch_has_as_many_parts_as_threads_are_set_for_on_a_cpu_and_not_in_exports(
    monkeypatch, threads, each, parts
):
    monkeypatch.setattr(tf.config.threading, "get_inter_op_parallelism_threads", lambda: threads)
    monkeypatch.setattr(tf.config.threading, "get_intra_op_parallelism_threads", lambda: each)
    monkeypatch.setattr("seq2seq.compilation.on_gpu", lambda: False)
    assert parts_of_batch() == parts
    for to in ("tensorflow", "onnx"):
        with exporting(to):
            assert parts_of_batch() == 1
    monkeypatch.setattr("seq2seq.compilation.on_gpu", lambda: True)
    assert parts_of_batch() == 1


@pytest.mark.parametrize("before", [False, True])
def test_factors_are_rounded_afterwards_as_they_were_before(before, rounds):
    tf.config.experimental.enable_tensor_float_32_execution(before)
    with full_precision():
        assert not rounds()
    assert rounds() == before


def test_where_xla_does_not_work_it_is_said_once_and_done_without():
    assert xla_works()
    with pytest.warns(UserWarning, match="training is slower, because XLA cannot compile here: .*AsString"):
        assert not xla_works(tf.strings.as_string)
    assert not xla_works(tf.strings.as_string)


def test_a_function_is_compiled_and_what_xla_refuses_is_said():
    specs = [tf.TensorSpec([2])]
    double = compiled_by_xla("sums", lambda x: 2 * x, specs)
    assert double(tf.constant([1.0, 2.0])).numpy().tolist() == [2, 4]
    with pytest.warns(UserWarning, match="texts are not compiled, because XLA refuses them: .*AsString"):
        assert compiled_by_xla("texts", lambda x: tf.strings.as_string(x), specs) is None


@pytest.mark.parametrize(("size", "expected"), [(0, 16), (16, 16), (17, 32), (100, 128), (90_000, 131_072)])
def test_sizes_are_rounded_up_to_few(size, expected):
    assert rounded_up(tf.constant(size)) == expected


@pytest.mark.parametrize(("rows", "expected"), [(0, 1), (1, 1), (2, 2), (3, 4), (5, 8), (100, 128)])
def test_few_rows_stay_few_where_each_costs_time(rows, expected):
    assert rounded_up(tf.constant(rows), least=1) == expected


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 7])
def test_parts_side_by_side_are_the_whole(rows):
    numbers = tf.range(rows)[:, None]
    seen = []

    def run(one, other):
        seen.append(one.shape[0])
        return one + other, [one * 10]

    total, [tens] = side_by_side(run, 3, numbers, numbers)
    np.testing.assert_array_equal(total, 2 * numbers)
    np.testing.assert_array_equal(tens, 10 * numbers)
    assert len(seen) == 3 and min(seen) >= 1 and max(seen) - min(seen) <= 2


def test_a_model_in_parts_learns_the_same(tokenizers, batches, monkeypatch):
    weights, texts, batch = [], [], next(iter(batches))
    for parts in (1, 2):
        monkeypatch.setattr("seq2seq.model.parts_of_batch", lambda parts=parts: parts)
        keras.utils.set_random_seed(0)
        model = Seq2Seq(*tokenizers, units=8, attention="dot", bidirectional=True)
        model.compile(keras.optimizers.SGD(0.1))
        model.train_step(batch)
        weights.append([np.array(weight) for weight in model.trainable_weights])
        texts.append(model.translate(["sol", "mar", "nube"] * 30, BeamSearch(2), max_length=9, details=True))
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_array_equal(texts[0].texts, texts[1].texts)
    np.testing.assert_allclose(texts[0].scores, texts[1].scores, atol=1e-5)


@keras.saving.register_keras_serializable("tests")
class Costly(Decoder):
    """A decoder with a loss of its own, the mean of its logits' squares."""

    def call(self, target, encoded, state, training=False):
        logits, state = super().call(target, encoded, state, training=training)
        if training:
            self.add_loss(tf.reduce_mean(logits**2))
        return logits, state


def test_a_loss_that_a_layer_adds_counts_once_however_many_parts_a_batch_has(tokenizers, batches, monkeypatch):
    model = Seq2Seq(*tokenizers, decoder=Costly, units=8)
    model.compile()
    source, target = next(iter(batches))
    inputs, labels = (source, target[:, :-1]), token_ids(target[:, 1:])
    found = []
    for parts in (1, 3):
        monkeypatch.setattr("seq2seq.model.parts_of_batch", lambda parts=parts: parts)
        logits = model(inputs, training=True)
        found.append(model.compute_loss(inputs, labels, logits, tf.cast(labels != PADDING, tf.float32)))
    added = tf.reduce_mean(logits**2)
    np.testing.assert_allclose(found, found[:1] * 2, rtol=1e-5)
    (own,) = model.losses
    np.testing.assert_allclose(own, added, rtol=1e-5)


@keras.saving.register_keras_serializable("tests")
class CostlyEncoder(Encoder):
    """An encoder with a loss of its own."""

    def call(self, source, training=False):
        if training:
            self.add_loss(tf.reduce_mean(tf.convert_to_tensor(self.weights[0]) ** 2))
        return super().call(source, training=training)


def test_a_loss_that_an_encoder_adds_counts_once_too(tokenizers, batches, monkeypatch):
    monkeypatch.setattr("seq2seq.model.parts_of_batch", lambda: 3)
    model = Seq2Seq(*tokenizers, encoder=CostlyEncoder, units=8)
    source, target = next(iter(batches))
    model((source, target[:, :-1]), training=True)
    assert len(model.losses) == 1
