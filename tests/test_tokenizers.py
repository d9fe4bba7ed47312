import string
import unicodedata

import keras
import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.tokenizers import END, PADDING, START, UNKNOWN, CharTokenizer

CHARACTERS = string.ascii_letters + string.whitespace + "¿¡ñüé漢字かな🙂אבاب\u0301\u2028\ufeff"
TOKENIZER = CharTokenizer()
TOKENIZER.adapt(list(CHARACTERS))


def known(text):
    return set(unicodedata.normalize("NFC", text)) <= set(TOKENIZER.vocabulary)


@settings(deadline=None)
@given(st.lists(st.text(CHARACTERS, max_size=20).filter(known), min_size=1, max_size=5), st.booleans())
def test_round_trip_gives_the_nfc_form_of_every_text_over_the_vocabulary(texts, start_end):
    back = TOKENIZER.detokenize(TOKENIZER.tokenize(texts, start_end=start_end))
    assert [text.decode() for text in back.numpy()] == [unicodedata.normalize("NFC", text) for text in texts]


def test_vocabulary_starts_with_the_reserved_tokens_and_then_the_most_frequent():
    tokenizer = CharTokenizer()
    tokenizer.adapt(tf.data.Dataset.from_tensor_slices(["abb", "b"]))
    assert tokenizer.vocabulary == ["", "[UNK]", "[START]", "[END]", "b", "a"]
    assert tokenizer.vocabulary_size == 6


def test_targets_run_from_start_to_end_and_then_padding():
    tokenizer = CharTokenizer("ab")
    ids = tokenizer.tokenize(["ab", "", "z"], start_end=True)
    expected = [[START, 4, 5, END], [START, END, PADDING, PADDING], [START, UNKNOWN, END, PADDING]]
    np.testing.assert_array_equal(ids, expected)


def test_empty_texts_are_one_column_of_padding():
    np.testing.assert_array_equal(CharTokenizer("a").tokenize(["", ""]), [[PADDING], [PADDING]])


def test_a_batch_of_single_characters_keeps_its_two_axes():
    assert CharTokenizer("ab").tokenize(["a", "b"]).shape == (2, 1)


def test_one_hot_rows_of_padding_are_all_zero():
    tokenizer = CharTokenizer("ab")
    rows = tokenizer.one_hot(tokenizer.tokenize(["ab", "b"]))
    np.testing.assert_array_equal(rows, np.eye(6)[[[4, 5], [5, 0]]] * [[[1], [1]], [[1], [0]]])


def test_detokenize_stops_at_end_and_shows_unknown_characters():
    texts = CharTokenizer("ab").detokenize([[START, 4, UNKNOWN, END, 5], [5, PADDING, 4, 4, 4]])
    assert [text.decode() for text in texts.numpy()] == ["a\ufffd", "baaa"]


def test_decomposed_and_invalid_text_are_read():
    tokenizer = CharTokenizer("é")
    texts = tf.constant(["e\u0301".encode(), b"\xff"])
    np.testing.assert_array_equal(tokenizer.tokenize(texts), [[4], [UNKNOWN]])


def test_nul_is_not_taken_into_the_vocabulary():
    tokenizer = CharTokenizer()
    tokenizer.adapt(["a\0"])
    assert tokenizer.characters == ["a"]


def test_eager_and_dataset_map_agree():
    texts = tf.constant(["Hola.", "", "¿qué?"])
    (mapped,) = tf.data.Dataset.from_tensors(texts).map(TOKENIZER.tokenize)
    np.testing.assert_array_equal(mapped, TOKENIZER.tokenize(texts))
    (back,) = tf.data.Dataset.from_tensors(mapped).map(TOKENIZER.detokenize)
    np.testing.assert_array_equal(back, TOKENIZER.detokenize(mapped))


def test_keras_serializes_it_whole():
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(TOKENIZER))
    assert copy.vocabulary == TOKENIZER.vocabulary
