"""Ensembles: several models combined into one, by the mean of their probabilities."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from pipelines import OptionError, Tokenizer
from seq2seq.attention import Encoded
from seq2seq.contract import encode, has_attention, serialized, start, take_tokenizers
from seq2seq.model import Seq2Seq


def ensemble(models: Sequence[Seq2Seq], names: Sequence[Any] = ()) -> Seq2Seq:
    """Combine models: the probability of each next token is the mean of theirs (Hansen & Salamon 1990).

    ```python
    model = ensemble([load_run("runs/one"), load_run("runs/two")])
    ```

    Members may have any encoder and decoder, of any size. Decoding takes as long as decoding with each member in turn.
    The ensemble translates, scores, and can be exported and saved like every `Seq2Seq`.

    Args:
        models: one model or more, with the same tokenizers. The ensemble shares their weights.
        names: names of the models for error messages, such as their run folders. Default: `models[0]` and so on.

    Returns:
        A `Seq2Seq`, not compiled; for a single model, that model. Its `limits` are calculated from the lengths that all
        members have seen.

    Raises:
        OptionError: if there is no model; if the number of names is not the number of models; if two models share an
            encoder or decoder; or if their tokenizers differ (the message says how).
    """
    if isinstance(models, Seq2Seq):
        raise OptionError("models: expected a list of models, not a single one")
    models = list(models)
    names = [str(name) for name in names] or [f"models[{number}]" for number in range(len(models))]
    if not models:
        raise OptionError("models: an ensemble needs at least one")
    if len(names) != len(models):
        raise OptionError(f"names: expected {len(models)}, one for each model, not {len(names)}")
    for name, model in zip(names, models, strict=True):
        if not isinstance(model, Seq2Seq):
            raise OptionError(f"{name}={model!r}: expected a Seq2Seq")
        try:
            model.check_vocabularies()
        except OptionError as error:
            raise OptionError(f"{name}: {error}") from None
        for side in ("source_tokenizer", "target_tokenizer"):
            one, other = getattr(models[0], side), getattr(model, side)
            if difference := _difference(one, other, names[0], name):
                raise OptionError(f"{name}: its {side} differs from that of {names[0]}: {difference}")
    encoders, decoders = [model.encoder for model in models], [model.decoder for model in models]
    if len({id(part) for part in encoders + decoders}) < 2 * len(models):
        raise OptionError("models: two of them share an encoder or decoder; load each model from a file")
    if len(models) == 1:
        return models[0]
    tokenizers = models[0].source_tokenizer, models[0].target_tokenizer
    together = Seq2Seq(*tokenizers, encoder=EnsembleEncoder(encoders), decoder=EnsembleDecoder(decoders))
    together.length_ratios.assign(sum(model.length_ratios.numpy() for model in models))
    return together


class _Members(keras.layers.Layer):
    """A layer that consists of one layer of each member."""

    def __init__(self, members: Sequence[keras.layers.Layer], **kwargs: Any) -> None:
        # The precision of the least precise member. Each member casts its inputs itself.
        mixed = [member.dtype_policy for member in members if member.compute_dtype != "float32"]
        super().__init__(**{"dtype": mixed[0] if mixed else "float32", **kwargs, "autocast": False})
        self.members = list(members)
        self.build((None, None))

    def take_tokenizers(self, source_tokenizer: Tokenizer, target_tokenizer: Tokenizer) -> None:
        for member in self.members:
            take_tokenizers(member, source_tokenizer, target_tokenizer)

    def build(self, shape: tuple) -> None:
        """Make no weights: the members make theirs in their first call."""

    def compute_output_shape(self, shape: tuple) -> tuple:
        return self.members[0].compute_output_shape(shape)

    def get_config(self) -> dict:
        return {**super().get_config(), "members": list(map(serialized, self.members))}

    @classmethod
    def from_config(cls, config: dict) -> "_Members":
        return cls(**{**config, "members": [keras.saving.deserialize_keras_object(each) for each in config["members"]]})


@keras.saving.register_keras_serializable("seq2seq")
class EnsembleEncoder(_Members):
    """Several encoders, `members`, each of which reads the source.

    Call arguments:
        source: ids `[B, S]`, padded on the right.

    Returns:
        The first member's `Encoded`, with a list of the results of all members in `extra`.
    """

    def call(self, source: tf.Tensor, training: bool = False) -> Encoded:
        encoded = [encode(member, source, training) for member in self.members]
        return encoded[0]._replace(extra=encoded)


@keras.saving.register_keras_serializable("seq2seq")
class EnsembleDecoder(_Members):
    """Several decoders, `members`, which predict each next token of the target by the mean of their predictions:

        P(token) = (P_1(token) + ... + P_n(token)) / n

    Call arguments:
        target: ids of the tokens so far `[B, T]`, padded on the right.
        encoded: the `Encoded` source, as `start` returned it.
        state: a list of the members' states, from `start` or the call for the tokens before.
        return_attention: whether to return the mean of the members' attention weights too.

    Returns:
        log P `[B, T, Vt]`, which are also valid logits, and the new state; then, on request, weights `[B, T, S]`.
    """

    def start(self, encoded: Encoded, steps: int | tf.Tensor | None = None) -> tuple[Encoded, list]:
        """Start each decoder from its own encoder. Return `encoded`, with their results in `extra`, and their
        states."""
        started = [start(member, each, steps) for member, each in zip(self.members, encoded.extra, strict=True)]
        given, state = map(list, zip(*started, strict=True))
        return encoded._replace(extra=given), state

    def call(
        self,
        target: tf.Tensor,
        encoded: Encoded,
        state: list,
        training: bool = False,
        return_attention: bool = False,
    ) -> tuple[tf.Tensor, list] | tuple[tf.Tensor, list, tf.Tensor]:
        options = {"training": training, **({"return_attention": True} if return_attention else {})}
        members = zip(self.members, encoded.extra, state, strict=True)
        logits, after, *weights = zip(*(member(target, *given, **options) for member, *given in members), strict=True)
        # In logarithms throughout; otherwise, the probability of a very unlikely token would be rounded to 0.
        each = [tf.nn.log_softmax(tf.cast(of_member, tf.float32)) for of_member in logits]
        mean = tf.reduce_logsumexp(each, axis=0) - math.log(len(each))
        if not return_attention:
            return mean, list(after)
        return mean, list(after), tf.reduce_mean([tf.cast(of_member, tf.float32) for of_member in weights[0]], axis=0)

    @property
    def attention(self) -> bool | None:
        """None, for `has_attention`, if a member has no attention weights, because then there is no mean."""
        return all(map(has_attention, self.members)) or None


def _difference(one, other, one_name, other_name):
    """The difference between two tokenizers in words; empty if they are the same."""
    found = []
    for tokens, others, name in (
        (one.vocabulary, set(other.vocabulary), one_name),
        (other.vocabulary, set(one.vocabulary), other_name),
    ):
        if only := [token for token in tokens if token not in others]:
            found.append(f"only {name} has {len(only):,} tokens, such as {', '.join(map(repr, only[:3]))}")
    if found:
        return "; ".join(found)
    for number, (token, instead) in enumerate(zip(one.vocabulary, other.vocabulary, strict=False)):
        if token != instead:
            return f"the same tokens in a different order: id {number} is {token!r} in one and {instead!r} in the other"
    if type(one) is not type(other):
        return f"the same tokens, but {type(one).__name__} and {type(other).__name__}"
    configs = one.get_config(), other.get_config()
    differ = [option for option in configs[0] if configs[0][option] != configs[1][option]]
    return f"the same tokens, but a different {', '.join(differ)}" if differ else ""
