"""`Seq2Seq`: the encoder-decoder as a Keras model, from teacher forcing to translation."""

import keras
import numpy as np
import tensorflow as tf

from pipelines.tokenizers import one_hot
from seq2seq import decoding
from seq2seq.layers import Decoder, Encoder
from seq2seq.metrics import Perplexity, token_accuracy, token_crossentropy


@keras.saving.register_keras_serializable("seq2seq")
class Seq2Seq(keras.Model):
    """A recurrent encoder-decoder (Sutskever et al. 2014, arxiv.org/abs/1409.3215).

    ```python
    model = Seq2Seq(source_tokenizer, target_tokenizer, units=256)
    model.compile(optimizer="adam")
    model.fit(batch_pairs(pairs, source_tokenizer, target_tokenizer), epochs=26)
    model.translate(["Good morning."])                  # a tensor of strings, one for each
    model.save("model.keras")
    ```

    Args:
        source_tokenizer, target_tokenizer: adapted tokenizers; they are saved inside the model.
        units: size of the recurrent state, D.
        attention: "dot" or None, as in `Decoder`.
    """

    def __init__(self, source_tokenizer, target_tokenizer, units=256, attention="dot", **kwargs):
        super().__init__(**kwargs)
        self.source_tokenizer = source_tokenizer
        self.target_tokenizer = target_tokenizer
        self.units = units
        self.attention = attention
        dtype = self.dtype_policy
        self.encoder = Encoder(source_tokenizer.vocabulary_size, units, dtype=dtype, name="encoder")
        self.decoder = Decoder(target_tokenizer.vocabulary_size, units, attention, dtype=dtype, name="decoder")
        self.build()

    def build(self, *_):
        """Makes the weights; their shapes follow from the vocabularies, whatever the batches will look like."""
        self.encoder.build()
        self.decoder.build()
        self.built = True

    def call(self, inputs):
        """Scores the next target token at every position.

        Args:
            inputs: (source `[B, S, Vs]`, target from START on `[B, T, Vt]`), one-hot; or ids `[B, S]` and `[B, T]`.

        Returns:
            logits `[B, T, Vt]`.
        """
        source, target = inputs
        encoded = self.encoder(source)
        logits, _ = self.decoder(target, encoded, encoded.state)
        return logits

    def compile(self, optimizer="adam", loss="auto", weighted_metrics="auto", **kwargs):
        """As `keras.Model.compile`; by default with the loss, accuracy and perplexity of real tokens."""
        if loss == "auto":
            loss = token_crossentropy()
        if weighted_metrics == "auto":
            weighted_metrics = [token_accuracy(), Perplexity()]
        super().compile(optimizer=optimizer, loss=loss, weighted_metrics=weighted_metrics, **kwargs)

    def compile_from_config(self, config):
        """Compiles a loaded model as the saved one was. Keras asks for this where `compile` is overridden."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def train_step(self, data):
        """Learns from one batch of (source, target) with teacher forcing."""
        return super().train_step(teacher_forcing(*data, self.target_tokenizer.vocabulary_size))

    def test_step(self, data):
        """Measures one batch of (source, target) with teacher forcing."""
        return super().test_step(teacher_forcing(*data, self.target_tokenizer.vocabulary_size))

    def translate(self, texts, max_length=256, batch_size=256):
        """Translates texts by greedy decoding.

        Args:
            texts: strings, any number of them: a list, an array, a tensor `[N]` or a `tf.data.Dataset` of scalar
                strings; or one string alone.
            max_length: where a translation that does not end by itself is cut, in tokens.
            batch_size: how many are decoded together. It changes the speed, not the translations.

        Returns:
            A string tensor `[N]` in the order of `texts`; a scalar for one string alone.
        """
        if isinstance(texts, tf.data.Dataset):
            texts = list(texts)
        texts = tf.convert_to_tensor(texts, tf.string)
        if texts.shape.rank == 0:
            return self.translate(texts[None], max_length, batch_size)[0]
        # Texts of one length share a batch, so that a short one does not wait for a long one to end.
        order = np.argsort(tf.strings.length(texts), kind="stable")
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        translations = [self._translate_batch(tf.gather(texts, batch), max_length) for batch in batches]
        return tf.gather(tf.concat([tf.zeros([0], tf.string), *translations], axis=0), np.argsort(order))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([], tf.int32)])
    def _translate_batch(self, texts, max_length):
        ids = self.decode(self.source_tokenizer.tokenize(texts), max_length)
        return self.target_tokenizer.detokenize(ids)

    def decode(self, source, max_length):
        """Decodes ids `[B, S]`, or their one-hot form, into target ids `[B, T]`."""
        encoded = self.encoder(source)

        def step(token, state):
            logits, state = self.decoder(token[:, None], encoded, state)
            return logits[:, 0], state

        return decoding.greedy(step, encoded.state, tf.shape(source)[0], max_length)

    def get_config(self):
        return {
            **super().get_config(),
            "source_tokenizer": keras.saving.serialize_keras_object(self.source_tokenizer),
            "target_tokenizer": keras.saving.serialize_keras_object(self.target_tokenizer),
            "units": self.units,
            "attention": self.attention,
        }

    @classmethod
    def from_config(cls, config):
        for side in ("source_tokenizer", "target_tokenizer"):
            config[side] = keras.saving.deserialize_keras_object(config[side])
        return cls(**config)


def teacher_forcing(source, target, vocabulary_size):
    """Makes a training example of a pair: the decoder reads the right tokens so far and predicts the one after each.

    Args:
        source: one-hot `[B, S, Vs]` or ids `[B, S]`.
        target: one-hot `[B, T + 1, Vt]` or ids `[B, T + 1]`, from START to END, then padding.
        vocabulary_size: Vt.

    Returns:
        ((source, decoder input `[B, T, Vt]` or `[B, T]`), labels `[B, T, Vt]`, weights `[B, T]`); a weight is 1 where
        the label is a token and 0 where it is padding.
    """
    labels = target[:, 1:]
    if labels.dtype.is_integer:
        labels = one_hot(labels, vocabulary_size)
    return (source, target[:, :-1]), labels, tf.reduce_sum(labels, axis=-1)
