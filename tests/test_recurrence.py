import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines import OptionError
from seq2seq.recurrence import Recurrent, Rows

LENGTHS = tf.constant([5, 1, 3])


@pytest.fixture(params=itertools.product(["lstm", "gru"], [False, True]), ids=str)
def layer(request):
    """A recurrent layer whose biases are not zero."""
    cell, bidirectional = request.param
    keras.utils.set_random_seed(0)
    layer = Recurrent(cell, 4, 6, bidirectional)
    for direction in layer.directions:
        direction.cell.bias.assign(keras.random.normal(direction.cell.bias.shape))
    return layer


def keras_layer(layer):
    """The layer that Keras would make of the same directions."""
    if len(layer.directions) == 1:
        return layer.directions[0]
    both = keras.layers.Bidirectional(type(layer.directions[0])(3, return_sequences=True, return_state=True))
    both.build((None, None, 4))
    both.set_weights([weight for direction in layer.directions for weight in direction.get_weights()])
    return both


def with_gradients(layer, run, x):
    """What a layer makes of `[B, T, E]`, and the gradients of all that it depends on."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        output, *state = tf.nest.flatten(run(x))
        real = tf.sequence_mask(LENGTHS, 5)[..., None]
        loss = tf.reduce_sum(tf.where(real, output, 0) ** 3) + sum(tf.reduce_sum(part**2) for part in state)
    return tf.where(real, output, 0), state, tape.gradient(loss, [x, *layer.trainable_weights])


def test_output_states_and_gradients_are_those_of_keras(layer):
    theirs, x = keras_layer(layer), tf.random.stateless_normal([3, 5, 4], [0, 1])
    ours = tf.function(lambda x: with_gradients(layer, lambda x: layer(x, lengths=LENGTHS), x))(x)
    mask = tf.sequence_mask(LENGTHS, 5)
    output, state, gradients = with_gradients(theirs, lambda x: theirs(x, mask=mask), x)
    half = len(state) // 2
    if len(layer.directions) == 2:  # Keras returns the states of the two directions one after the other
        state = [tf.concat(parts, axis=1) for parts in zip(state[:half], state[half:], strict=True)]
    for one, other in zip(tf.nest.flatten(ours), [output, *state, *gradients], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_it_goes_on_from_a_state_and_learns_from_where_it_led(layer):
    if len(layer.directions) == 2:
        pytest.skip("a decoder has one direction")
    x, theirs = tf.random.stateless_normal([3, 5, 4], [0, 1]), layer.directions[0]
    first = [tf.random.stateless_normal([3, 6], [0, n]) for n in range(2 if theirs.name.startswith("lstm") else 1)]
    found = []
    for run in (lambda: layer(x, state=first), lambda: theirs(x, initial_state=first)):
        with tf.GradientTape() as tape:
            tape.watch(first)
            output, *last = tf.nest.flatten(run())
            loss = sum(tf.reduce_sum(part**2) for part in [output, *last])
        found.append([output, *last, *tape.gradient(loss, first)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


MATRIX = tf.random.stateless_normal([5, 4], [0, 1])
INPUTS = {
    "vectors": (tf.TensorSpec([None, None, 4]), lambda x: x),
    "one-hot": (tf.TensorSpec([None, None], tf.int32), Rows),
    "embedding": (tf.TensorSpec([None, None], tf.int32), lambda ids: Rows(ids, MATRIX)),
}


@pytest.mark.parametrize("lengths", [LENGTHS, None], ids=["lengths", "none"])
@pytest.mark.parametrize("given", INPUTS)
def test_on_a_gpu_all_steps_are_one_call_of_cudnn_that_waits_for_nothing(layer, given, lengths, monkeypatch):
    monkeypatch.setattr("seq2seq.recurrence.on_gpu", lambda: True)  # that it computes the same, a GPU must show: above
    spec, made_of = INPUTS[given]
    graph = tf.function(lambda x: layer(made_of(x), lengths=lengths)).get_concrete_function(spec).graph
    made = [op.type for op in graph.get_operations()]
    assert made.count("CudnnRNNV3") == 1 and not {"Assert", "If", "StatelessIf", "While", "Where"} & set(made)


def test_rows_are_looked_up_in_the_product(layer):
    ids = tf.constant([[1, 2, 3, 1, 1], [4, 0, 0, 0, 0], [2, 2, 4, 0, 0]])
    matrix = tf.random.stateless_normal([5, 4], [0, 1])
    output, state = layer(Rows(ids, matrix), lengths=LENGTHS)
    same, same_state = layer(tf.gather(matrix, ids), lengths=LENGTHS)
    np.testing.assert_allclose(output, same, atol=1e-6)
    tf.nest.map_structure(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), state, same_state)
    one_hot, _ = layer(Rows(ids % 4), lengths=LENGTHS)
    np.testing.assert_allclose(one_hot, layer(tf.one_hot(ids % 4, 4), lengths=LENGTHS)[0], atol=1e-6)


def test_what_stands_after_a_row_has_no_say_in_it(layer):
    x = tf.random.stateless_normal([3, 5, 4], [0, 1])
    output, state = layer(x, lengths=LENGTHS)
    alone, alone_state = layer(x[2:, :3], lengths=LENGTHS[2:])
    np.testing.assert_allclose(output[2:, :3], alone, atol=1e-6)
    for part, same in zip(state, alone_state, strict=True):
        np.testing.assert_allclose(part[2:], same, atol=1e-6)


def test_an_unknown_cell_is_refused():
    with pytest.raises(OptionError, match="did you mean 'gru'"):
        Recurrent("grü", 4, 6)
