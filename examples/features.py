"""A tokenizer for morphological features as Universal Dependencies writes them, with an option of its own.

seq2seq train verbs.tsv --columns lemma,features,form --source-tokenizer char,features:FeatureTokenizer \
    --set "separator=|" --epochs 5 --out runs/verbs
seq2seq evaluate runs/verbs verbs.tsv --import features:FeatureTokenizer

The first line of `verbs.tsv` names its columns, lemma, features and form, with tabs between them.
"""

import keras
import tensorflow as tf

from pipelines import Tokenizer


@keras.saving.register_keras_serializable("features")
class FeatureTokenizer(Tokenizer):
    """One token for each feature, such as `Tense=Past`. They are a set, so they take no position of their own."""

    ordered = False

    def __init__(self, vocabulary=(), separator=";", **kwargs):
        super().__init__(vocabulary, **kwargs)
        self.separator = separator

    def split(self, texts):
        tokens = tf.strings.split(texts, self.separator)
        return tf.ragged.boolean_mask(tokens, (tokens != "_") & (tokens != ""))  # both mean: no features

    def join(self, tokens):
        return tf.strings.reduce_join(tokens, axis=1, separator=self.separator)

    def get_config(self):
        return {**super().get_config(), "separator": self.separator}
