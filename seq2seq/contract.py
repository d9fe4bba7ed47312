"""What an encoder and a decoder must do for the model to train and translate with them, tried on a tiny batch."""

import numpy as np
import tensorflow as tf

from pipelines import OptionError
from pipelines.tokenizers import PADDING, START, UNKNOWN
from seq2seq.layers import Decoder, Encoded, Encoder


def check_contract(encoder, decoder, vocabulary_size):
    """Runs the two on two short rows, which makes their weights, and compares what comes out with what should.

    Args:
        encoder: a layer, (source ids `[B, S]` or one-hot) -> `Encoded`.
        decoder: a layer with `start(encoded)` -> (encoded, state), and (target `[B, T]`, encoded, state) ->
            (logits `[B, T, V]`, state), which gives the same logits for the whole target at once and for one token
            after another, also with K rows of target and state for each one of `encoded`.
        vocabulary_size: V of the target.

    Raises:
        OptionError: names the argument, encoder or decoder, the class, and what it got wrong.
    """

    def demand(good, name, layer, what):
        if not good:
            raise OptionError(f"{name}={type(layer).__name__}: {what}")

    source = tf.constant([[UNKNOWN, UNKNOWN, UNKNOWN], [UNKNOWN, PADDING, PADDING]])
    target = tf.constant([[START, UNKNOWN, UNKNOWN], [START, START, UNKNOWN]])
    encoded = encoder(source)
    demand(isinstance(encoded, Encoded), "encoder", encoder, f"returns {type(encoded).__name__}, not Encoded")
    shapes = encoded.memory.shape[:-1], encoded.mask.shape
    demand(
        shapes == ((2, 3), (2, 3)) and encoded.mask.dtype == tf.bool,
        "encoder",
        encoder,
        f"memory {encoded.memory.shape} and {encoded.mask.dtype.name} mask {encoded.mask.shape} of a source (2, 3); "
        "expected [B, S, D] and bool [B, S]",
    )
    demand(hasattr(decoder, "start"), "decoder", decoder, "has no method `start`")
    encoded, first = decoder.start(encoded)
    found = decoder(target, encoded, first)
    demand(isinstance(found, tuple) and len(found) == 2, "decoder", decoder, "does not return (logits, state)")
    logits = found[0]
    demand(
        logits.shape == (2, 3, vocabulary_size),
        "decoder",
        decoder,
        f"logits {logits.shape} of a target (2, 3); expected {(2, 3, vocabulary_size)}, [B, T, V]",
    )
    if type(encoder) is Encoder and type(decoder) is Decoder:
        return  # the tests of the library have seen to the rest

    def one_by_one(copies):
        state = tf.nest.map_structure(lambda x: tf.repeat(x, copies, axis=0), first)
        for position in range(3):
            tokens = tf.repeat(target[:, position : position + 1], copies, axis=0)
            step, after = decoder(tokens, encoded, state)
            tf.nest.assert_same_structure(state, after)
            yield step[:, 0]
            state = after

    for copies, case in ((1, "one token after another"), (3, "three hypotheses for each source (see rows_by_source)")):
        try:
            steps = np.stack([step.numpy() for step in one_by_one(copies)], axis=1)
        except Exception as error:
            raise OptionError(f"decoder={type(decoder).__name__}: fails on {case}: {error}") from error
        same = np.allclose(steps, np.repeat(logits, copies, axis=0), rtol=0.05, atol=0.05)
        demand(same, "decoder", decoder, f"other logits for {case} than for the whole target at once")
