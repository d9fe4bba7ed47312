"""The contract of encoders, decoders and strategies. Custom ones are tested against it on a tiny batch."""

import contextlib
import dataclasses
import functools
import inspect
import os
import sys
import traceback
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from pipelines import OptionError, choose, construct
from pipelines.columns import ColumnsTokenizer
from pipelines.options import choose_class, one_line
from pipelines.tokens import END, PADDING, START, UNKNOWN, Tokenizer
from seq2seq.attention import Encoded
from seq2seq.compilation import full_precision
from seq2seq.decoding import ENDED, STEPS_PER_CHECK, STOPPED, Constraints, Hypotheses, masking_loop, shrinking_loop
from seq2seq.layers import Decoder, Encoder, token_ids
from seq2seq.strategies import STRATEGIES, Strategy
from seq2seq.transformer import TransformerDecoder, TransformerEncoder


def take_tokenizers(part: keras.layers.Layer, source_tokenizer: Tokenizer, target_tokenizer: Tokenizer) -> None:
    """Give an encoder or a decoder both tokenizers, if it has a method `take_tokenizers` to take them."""
    if hasattr(part, "take_tokenizers"):
        part.take_tokenizers(source_tokenizer, target_tokenizer)


def encode(encoder: keras.layers.Layer, source: tf.Tensor, training: bool = False) -> Encoded:
    """Call the encoder with the ids of a source, and add them to its result, for decoders that copy from the source."""
    ids = token_ids(source)
    return encoder(ids, training=training)._replace(source=ids)


def start(decoder: keras.layers.Layer, encoded: Encoded, steps: int | tf.Tensor | None = None) -> Any:
    """Call `decoder.start`. If it has an argument `steps`, it gets the maximum number of tokens, so that it can
    allocate a state of constant shape for all of them; or None, if all tokens come in one call."""
    if "steps" in inspect.signature(decoder.start).parameters:
        return decoder.start(encoded, steps=steps)
    return decoder.start(encoded)


def has_attention(decoder: keras.layers.Layer) -> bool:
    """Whether a decoder can return attention weights: `call` has an argument `return_attention`, and an attribute
    `attention`, if there is one, is not None."""
    can_return = "return_attention" in inspect.signature(decoder.call).parameters
    return can_return and getattr(decoder, "attention", True) is not None


class Traits(NamedTuple):
    """What a model must know of its encoder and decoder."""

    # Whether the shapes of the decoder's state stay constant from one token to the next, so that a decode loop can be
    # compiled.
    keeps_sizes: bool = True
    adds_losses: bool = False  # whether one of them calls `add_loss` in training


@full_precision()
def check_contract(
    encoder: keras.layers.Layer, decoder: keras.layers.Layer, source_tokenizer: Tokenizer, target_tokenizer: Tokenizer
) -> Traits:
    """Run an encoder and a decoder on two short rows, which makes their weights, and check the results.

    Args:
        encoder: a layer, source ids `[B, S]` -> `Encoded`, independent of the padding of a row.
        decoder: a layer with `start(encoded)`, or `start(encoded, steps)`, -> (encoded, state), and (target `[B, T]`,
            encoded, state) -> (logits `[B, T, V]`, state). It must give the same logits for the whole target at once
            and token by token, also with K rows of target and state for each row of `encoded`, and must ignore padding.
            For a whole target, `steps` is None, and the next state is not used.
        source_tokenizer, target_tokenizer: those of the model; V is the vocabulary size of the latter.

    Returns:
        The `Traits` of this encoder and decoder.

    Raises:
        OptionError: if the contract is broken. The message names the argument (encoder or decoder), the class and the
            fault.
    """
    last = source_tokenizer.vocabulary_size - 1  # which an encoder made for fewer tokens does not know
    source = tf.constant([[UNKNOWN, last, END], [END, START, PADDING]])
    target = tf.constant([[START, UNKNOWN, END], [START, END, UNKNOWN]])
    with _refusing("encoder", encoder, "source ids [B, S]") as refuse:
        encoded = encoder(source)
        if not isinstance(encoded, Encoded):
            refuse(f"returns {type(encoded).__name__}, not Encoded")
        memory, mask = (tf.convert_to_tensor(tensor) for tensor in encoded[:2])
        if memory.shape[:-1] != (2, 3) or mask.shape != (2, 3) or mask.dtype != tf.bool:
            found = f"memory {memory.shape} and {mask.dtype.name} mask {mask.shape}"
            refuse(f"{found} of a source (2, 3); expected [B, S, D] and bool [B, S]")
    encoded = encoded._replace(source=source)
    with _refusing("decoder", decoder, f"the result of {type(encoder).__name__}") as refuse:
        if not hasattr(decoder, "start"):
            refuse("has no method `start`")
        started = start(decoder, encoded)
        if not isinstance(started, tuple) or len(started) != 2 or not isinstance(started[0], Encoded):
            refuse("`start` does not return (encoded, state)")
        found = decoder(target, *started)
        if not isinstance(found, tuple) or len(found) != 2:
            refuse("does not return (logits, state)")
        expected = (2, 3, target_tokenizer.vocabulary_size)
        if found[0].shape != expected:
            refuse(f"logits {found[0].shape} of a target (2, 3); expected {expected}, [B, T, V]")
        values = tf.cast(found[0], tf.float32).numpy()
        if (values >= 0).all() and np.allclose(values.sum(axis=-1), 1, atol=1e-2):
            refuse("returns probabilities; expected logits, without a softmax")
    if {type(encoder), type(decoder)} <= {Encoder, TransformerEncoder, Decoder, TransformerDecoder}:
        return Traits()  # the library's own tests check the rest

    compare = _comparison(decoder)
    _check_padding(encoder, decoder, source, target, encoded, found[0], compare)
    keeps_sizes = [_check_steps(decoder, target, encoded, copies, compare) for copies in (1, 3)]
    if has_attention(decoder) and not _of_library(decoder):
        _check_attention(decoder, target, encoded, compare)
    adds_losses, reloaded = False, []
    for name, part, compute in (
        ("encoder", encoder, lambda layer, **training: layer(source, **training)),
        ("decoder", decoder, lambda layer, **training: layer(target, *start(layer, encoded), **training)),
    ):
        with _refusing(name, part, _RELOAD) as refuse:
            again = _reloaded(part)
            take_tokenizers(again, source_tokenizer, target_tokenizer)
            compute(again)  # which makes its weights
            again.set_weights(part.get_weights())
            compare(compute(again), compute(part), refuse, f"computes different results after {_RELOAD}")
        with _refusing(name, part, "a call in training"):
            tf.distribute.get_strategy().run(compute, [again], {"training": True})
        regularized = [weight for weight in again.trainable_weights if weight.regularizer]
        adds_losses |= len(again.losses) > len(regularized)
        reloaded.append(again)
        if not _of_library(part):
            with _refusing(name, part, "a graph for batches of any size"):
                _trace(*reloaded)
    return Traits(all(keeps_sizes), adds_losses)


def _of_library(part):
    """Whether a part is of a class of the library, which its own tests check."""
    return type(part).__module__.startswith(("seq2seq.", "pipelines."))


def _trace(encoder, decoder=None):
    """Trace the graph of an encoder, or of both, for a batch of any size. This leaves losses of a graph in the layers,
    so they must not be those of the model."""

    def run(source, target):
        encoded = encode(encoder, source)
        return decoder(target, *start(decoder, encoded))[0] if decoder else encoded.memory

    ids = tf.TensorSpec([None, None], tf.int32)
    tf.function(run, [ids, ids], autograph=False).get_concrete_function()


def _comparison(decoder):
    """A function that refuses tensors whose values or shapes differ from those expected, in the decoder's precision."""
    tolerance = 1e-3 if keras.backend.standardize_dtype(decoder.compute_dtype) == "float32" else 0.05

    def compare(found, expected, refuse, what):
        found, expected = (
            [tf.cast(x, tf.float32) for x in tf.nest.flatten(nest) if x is not None] for nest in (found, expected)
        )
        shapes = [[tuple(x.shape) for x in nest] for nest in (found, expected)]
        if shapes[0] != shapes[1]:
            refuse(f"{what}: shapes {shapes[0]}; expected {shapes[1]}")
        if not all(np.allclose(x, y, tolerance, tolerance) for x, y in zip(found, expected, strict=True)):
            refuse(what)

    return compare


def _check_padding(encoder, decoder, source, target, encoded, whole, compare):
    """Run the second text again, without the padding that its neighbour caused."""
    with _refusing("encoder", encoder, "a text alone") as refuse:
        alone = encode(encoder, source[1:, :2])
        both = tf.nest.flatten((encoded.memory[:, :2], encoded.state))
        second = [tensor[1:] for tensor in both if tensor is not None]
        what = "memory or state of a text change if padding follows it"
        compare((alone.memory, alone.state), second, refuse, what)
    with _refusing("decoder", decoder, "a text alone") as refuse:
        what = "logits change if padding follows the source: does it use the mask?"
        compare(decoder(target[1:], *start(decoder, alone))[0], whole[1:], refuse, what)


def _check_steps(decoder, target, encoded, copies, compare):
    """Run token by token, with `copies` hypotheses of each source; return whether its state keeps its size."""
    case = "one token after another" if copies == 1 else "three hypotheses for each source (see rows_by_source)"
    keeps_sizes = True
    with _refusing("decoder", decoder, case) as refuse:
        # The hypotheses of a source differ; otherwise, it would not be noticed if they were mixed up.
        targets = [tf.roll(target, place, axis=1) for place in range(copies)]
        at_once = [decoder(each, *start(decoder, encoded))[0] for each in targets]
        targets, expected = (
            tf.reshape(tf.stack(each, axis=1), [2 * copies, *each[0].shape[1:]]) for each in (targets, at_once)
        )
        given, state = start(decoder, encoded, 5)  # which may be more than there are
        state = tf.nest.map_structure(lambda x: tf.repeat(x, copies, axis=0), state)
        for position in range(3):
            before, tokens = state, targets[:, position : position + 1]
            logits, state = decoder(tokens, given, state)
            tf.nest.assert_same_structure(before, state)
            sizes, sizes_before = ([x.shape for x in tf.nest.flatten(nest)] for nest in (state, before))
            keeps_sizes &= sizes == sizes_before
            what = f"different logits for {case} than for the whole target at once"
            compare(logits[:, 0], expected[:, position], refuse, what)
    return keeps_sizes


def _check_attention(decoder, target, encoded, compare):
    """Check the attention weights of a decoder, for a whole target and for one token after another."""
    with _refusing("decoder", decoder, "return_attention=True") as refuse:
        *_, weights = decoder(target, *start(decoder, encoded), return_attention=True)
        weights = tf.cast(weights, tf.float32)
        if weights.shape != (*target.shape, encoded.mask.shape[1]):
            refuse(f"attention {weights.shape} of a target {target.shape}; expected [B, T, S]")
        if (padding := tf.abs(tf.where(encoded.mask[:, None], 0.0, weights))).numpy().max() > 1e-3:
            refuse(f"attention to padding, up to {padding.numpy().max():.2g}; expected 0")
        if weights.numpy().min() < -1e-3 or tf.reduce_sum(weights, axis=2).numpy().max() > 1.01:
            refuse("attention that is no share of the source: expected weights from 0 that sum to 1 at most")
        given, state = start(decoder, encoded, 5)
        for position in range(target.shape[1]):
            _, state, of_one = decoder(target[:, position : position + 1], given, state, return_attention=True)
            what = "different attention for one token after another than for the whole target at once"
            compare(of_one[:, 0], weights[:, position], refuse, what)


def check_savable(name: str, part: Any) -> None:
    """Check that a part of a model can be saved and loaded again.

    Args:
        name: the argument that the part was given for.
        part: a layer or a tokenizer.

    Raises:
        OptionError: if Keras does not know its class, cannot serialize it, or cannot recreate it (for a tokenizer, with
            the same tokens) from its `get_config`. `check_contract` checks whether a layer computes the same.
    """
    with _refusing(name, part, "being saved") as refuse:
        kind = type(part)
        if kind.__module__.partition(".")[0] == "keras":
            refuse("put it into a layer of your own that keeps the contract of encoders and decoders")
        if keras.saving.get_registered_object(keras.saving.get_registered_name(kind)) is not kind:
            refuse(
                "put @keras.saving.register_keras_serializable() above it; otherwise, a saved model cannot be loaded"
            )
        keras.saving.serialize_keras_object(part)
    for tokenizer in part.tokenizers if isinstance(part, ColumnsTokenizer) else ():
        check_savable(name, tokenizer)
    if _of_library(part):
        return
    with _refusing(name, part, "a text in a graph"):
        sample = _sample(part) if isinstance(part, Tokenizer) else None
    with _refusing(name, part, _RELOAD) as refuse:
        again = _reloaded(part)
        if sample and sample != _sample(again):
            refuse(f"different tokens after {_RELOAD}")


def make_strategy(name: str, settings: dict[str, Any]) -> Strategy:
    """Make the strategy that `--search` and `--set` name.

    Args:
        name: "greedy", "beam", "sampling" or a custom class, `module:Class`.
        settings: arguments of its constructor.

    Raises:
        OptionError: if there is no such strategy, or its class cannot take these settings.
    """
    kind = choose_class("search", name, STRATEGIES)
    if not issubclass(kind, Strategy):
        raise OptionError(f"search={name!r}: {kind.__name__} is not derived from seq2seq.Strategy")
    known = list(inspect.signature(kind).parameters)
    for option in settings:
        if not known:
            raise OptionError(f"set={option!r}: {kind.__name__} has no settings")
        choose("set", option, known)
    return check_strategy(construct("search", kind, options=settings, saved=False))


def check_strategy(strategy: Strategy) -> Strategy:
    """Check that a strategy can be used. A custom one is tested, once, on three sources of a tiny model, two of which
    have a prefix.

    Returns:
        The strategy.

    Raises:
        OptionError: if it is not a `Strategy`, is not hashable, fails, or breaks the contract of `Strategy.search`.
    """
    if not isinstance(strategy, Strategy):
        raise OptionError(f"strategy={strategy!r}: expected one of {', '.join(STRATEGIES)}, or a `Strategy`")
    with _refusing("strategy", strategy, "hash(strategy): put @dataclasses.dataclass(frozen=True) above its class"):
        hash(strategy)
    if type(strategy) not in STRATEGIES.values():
        _refuse_unknown_settings(strategy)
        with tf.init_scope():  # also if a graph is being made
            _try_strategy(strategy)
    return strategy


def _refuse_unknown_settings(strategy):
    """Refuse a strategy that equals another one with other settings, since graphs are kept for each strategy."""
    kind = type(strategy)
    if "__dataclass_fields__" not in vars(next(each for each in kind.__mro__ if "__eq__" in vars(each))):
        return  # == is the class's own, or that of `object`
    fields = dataclasses.fields(strategy)
    settings = {field.name for field in fields} | vars(strategy).keys()
    settings -= {name for name in settings if isinstance(getattr(kind, name, None), functools.cached_property)}
    if settings - {field.name for field in fields if field.compare}:
        raise OptionError(
            f"strategy={kind.__name__}: == does not compare all of its settings; put "
            "@dataclasses.dataclass(frozen=True) above its class and make them fields"
        )


@functools.lru_cache
def _try_strategy(strategy):
    limits, prefixes = [3, 4, 6], [[5, 6], [4, PADDING], [PADDING, PADDING]]
    table = tf.random.stateless_normal([256, 256], seed=(0, 1))
    with _refusing("strategy", strategy, "a search for three sources") as refuse:
        n_best = strategy.n_best

        def step_for(sources):
            def step(ids, state):
                if tf.executing_eagerly() and (len(ids) % len(sources) or ids.shape != state.shape):
                    refuse(
                        f"calls a step with ids {ids.shape} and a state {state.shape}; expected [R] for both, R a "
                        f"multiple of {len(sources)}, the number of sources"
                    )
                return tf.gather(table, (ids + 7 * state) % 256), state

            return step

        def search(loop):
            constraints = Constraints(tf.constant(limits), 0, tf.range(3, dtype=tf.int64), tf.constant(prefixes))
            found = strategy.search(step_for, tf.range(3), constraints, loop)
            if not isinstance(found, Hypotheses):
                refuse(f"`search` returns {type(found).__name__}, not Hypotheses")
            count = found.ids.shape[1] if found.ids.shape.rank == 3 else None
            if count is None or count < n_best:
                refuse(f"ids {found.ids.shape}; expected (3, N, T), N known in advance and at least n_best={n_best}")
            for name, part in found._asdict().items():
                kind = tf.int32 if name in ("ids", "stopped") else tf.float32
                shape = (3, count, *found.ids.shape[2:]) if name == "ids" else (3, count)
                if part is None and kind == tf.float32 and found.scores is found.ranked_by:
                    continue  # both are left to `translate`
                if part is None or part.dtype != kind or not part.shape.is_compatible_with(shape):
                    what = part if part is None else f"{part.dtype.name} {part.shape}"
                    refuse(f"{name} {what}; expected {kind.name} {shape}")
            return found

        def check(source, ids, score, stopped):
            tokens = ids[: max(place for place, token in enumerate(ids, start=1) if token != PADDING)]
            limit, prefix = limits[source], [token for token in prefixes[source] if token != PADDING]
            if tokens[: len(prefix)] != prefix:
                refuse(f"ids {tokens} do not begin with {prefix}, the prefix; see `mask_logits`")
            if len(tokens) > limit or min(tokens) < END or END in tokens[:-1]:
                refuse(f"ids {tokens}; expected at most {limit} tokens, none below END={END}, which ends them")
            if stopped not in range(len(STOPPED)) or (tokens[-1] == END) != (stopped == ENDED):
                refuse(f"stopped {stopped} for ids {tokens}; expected {ENDED} if END={END} is the last, or why not")
            if score is not None:
                log_p, before = tf.nn.log_softmax(table).numpy(), [START, *tokens]
                true = sum(log_p[(last + 7 * source) % 256, token] for last, token in zip(before, tokens, strict=False))
                if not abs(score - true) < 1e-2:
                    refuse(
                        f"scores {score:.4g} for ids {tokens}, whose log-likelihood is {true:.4g}; see `mask_logits`"
                    )

        # First eagerly, for clearer errors; then in a graph, without Python, with the other loop.
        in_graph = tf.function(search, autograph=False)
        for run, loop in ((search, shrinking_loop), (in_graph, masking_loop(STEPS_PER_CHECK))):
            found = run(loop)
            for source, rank in np.argwhere(found.ids.numpy().any(axis=2)).tolist():
                score = None if found.scores is None else float(found.scores[source, rank])
                check(source, found.ids[source, rank].numpy().tolist(), score, int(found.stopped[source, rank]))


# A custom class often fails here because its `get_config` leaves out an argument.
_RELOAD = "from_config(get_config()); get_config must return all arguments of the constructor"


def _reloaded(part):
    """The part as loaded from a model file, without weights."""
    return keras.saving.deserialize_keras_object(serialized(part))


def serialized(part: Any) -> Any:
    """A part of a model as its `get_config` holds it: as Keras serializes it, but to be built by the model."""
    saved = keras.saving.serialize_keras_object(part)
    if isinstance(saved, dict):
        saved.pop("build_config", None)
    return saved


def _sample(tokenizer):
    """Data that identifies a tokenizer: the tokens of a text, its vocabulary, and the vocabulary as text."""
    ids = [[*range(END + 1, tokenizer.vocabulary_size), END]]
    count, detokenize = (tf.function(run, autograph=False) for run in (tokenizer.count, tokenizer.detokenize))
    tokens, *_ = count(tf.constant(["A text, \ufb01rst: na\u0131\u0308ve \u00bd."]))
    return tokens.numpy().tolist(), tokenizer.vocabulary, detokenize(tf.constant(ids)).numpy().tolist()


@contextlib.contextmanager
def _refusing(name, layer, given):
    """Yield a function that refuses the layer. An error raised by the layer also refuses it, in one line."""

    def refuse(what):
        raise OptionError(f"{name}={type(layer).__name__}: {what}")

    try:
        yield refuse
    except OptionError:
        raise
    except Exception as error:
        where = _line(type(layer), error)
        raise OptionError(f"{name}={type(layer).__name__}: fails on {given}: {one_line(error)}{where}") from error


def _line(kind, error):
    """The line in the module of a custom class in which an error occurred, as the end of a message."""
    if kind.__module__.startswith("seq2seq."):
        return ""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({os.path.basename(file)}, line {lines[-1]})" if lines else ""
