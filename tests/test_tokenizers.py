import functools
import itertools
import re
import string
import unicodedata

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import decoded
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.columns import ColumnsTokenizer
from pipelines.options import OptionError
from pipelines.subwords import SubwordTokenizer
from pipelines.tokenizers import (
    TOKENIZERS,
    ByteTokenizer,
    CharTokenizer,
    LetterTokenizer,
    SeparatorTokenizer,
    WhitespaceTokenizer,
)
from pipelines.tokens import (
    END,
    NORMAL_FORMS,
    PADDING,
    REPLACEMENT,
    START,
    UNKNOWN,
    Tokenizer,
    target_ids,
)

CHARACTERS = string.ascii_letters + string.whitespace + "¿¡ñüé漢字かな🙂אבاب\u0301\u2028\ufeff"
TOKENIZER = CharTokenizer()
TOKENIZER.adapt(list(CHARACTERS))

WORDS = ["Straße", "ﬁn", "½", "e\u0301te\u0301", "ÉTÉ", "ΑΣ", "漢字", "🙂", "אבا", "caterpillar", "cat", "cats", "a"]
WORDS += ["[UNK]", "[END]", "[START]x", "<s>", "</s>"]
SPACES = [" ", "  ", "\t", "\n", "\xa0", "\u3000", "\u2028", "\x85"]


@keras.saving.register_keras_serializable("tests")
class CommaTokenizer(Tokenizer):
    def split(self, texts):
        return tf.strings.split(texts, ",")

    def join(self, tokens):
        return tf.strings.reduce_join(tokens, axis=1, separator=",")


def columns(**options):
    return ColumnsTokenizer([kind(**options) for kind in (SubwordTokenizer, SeparatorTokenizer, CharTokenizer)])


KINDS = [*TOKENIZERS.values(), CommaTokenizer, columns]


@functools.cache
def adapted(kind, **options):
    tokenizer = kind(**options)
    tokenizer.adapt([*WORDS, *SPACES, "cat\tcats;a\tcat"])
    return tokenizer


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


def test_without_a_vocabulary_every_token_is_unknown():
    assert WhitespaceTokenizer().tokenize(["nothing"]).numpy().tolist() == [[UNKNOWN]]


def test_a_batch_of_single_characters_keeps_its_two_axes():
    assert CharTokenizer("ab").tokenize(["a", "b"]).shape == (2, 1)


def test_one_hot_rows_of_padding_are_all_zero():
    tokenizer = CharTokenizer("ab")
    rows = tokenizer.one_hot(tokenizer.tokenize(["ab", "b"]))
    np.testing.assert_array_equal(rows, np.eye(6)[[[4, 5], [5, 0]]] * [[[1], [1]], [[1], [0]]])


def test_detokenize_stops_at_end_and_shows_unknown_characters():
    texts = CharTokenizer("ab").detokenize([[START, 4, UNKNOWN, END, 5], [5, PADDING, 4, 4, 4]])
    assert [text.decode() for text in texts.numpy()] == ["a\ufffd", "baaa"]


@pytest.mark.parametrize("kind", [CharTokenizer, LetterTokenizer, WhitespaceTokenizer])
def test_unknown_tokens_are_listed_and_can_be_a_token(kind):
    tokenizer, texts = kind(["a", " "]), ["a x a y", "", "a", "x x \ufffd"]
    assert tokenizer.unknown_ids == (UNKNOWN,)
    unknown = tokenizer.tokenize(texts).numpy() == UNKNOWN
    assert unknown.sum(axis=1).tolist() == [2, 0, 0, 3]
    tokenizer.add_unknown_token()
    assert tokenizer.vocabulary[4:] == ["a", " ", REPLACEMENT] and tokenizer.unknown_ids == (6,)
    np.testing.assert_array_equal(tokenizer.tokenize(texts).numpy() == 6, unknown)
    listed = [[token.decode() for token in tokens] for tokens in tokenizer.unknown(texts).to_list()]
    assert listed == [["x", "y"], [], [], ["x", "x", REPLACEMENT]]
    assert tokenizer.unknown(["a x x"], 3 if kind is not WhitespaceTokenizer else 2).to_list() == [[b"x"]]


def test_what_is_unknown_in_the_source_is_written_for_the_token_of_what_is_unknown_as_long_as_there_is_any():
    tokenizer = CharTokenizer("ab")
    ids = [[6, 4, 6, END], [4, END, 6, 6], [6, 6, UNKNOWN, 5], [END, 0, 0, 0]]
    unknown = [["ж", "xy"], ["z", ""], ["q", ""], ["z", ""]]
    assert decoded(tokenizer.detokenize(ids[1:2], unknown[1:2])) == ["a"]
    assert decoded(tokenizer.detokenize([[UNKNOWN, END]], [["q"]])) == ["\ufffd"]
    tokenizer.add_unknown_token()
    written = ["жaxy", "a", "q\ufffdb", ""]
    assert decoded(tokenizer.detokenize(ids, unknown)) == written
    assert decoded(tokenizer.detokenize(ids)) == ["\ufffda\ufffd", "a", "\ufffd\ufffd\ufffdb", ""]
    assert decoded(tf.function(tokenizer.detokenize)(tf.constant(ids), tf.constant(unknown))) == written
    words = WhitespaceTokenizer(["x\ufffdy", REPLACEMENT])  # the first is a word as any other
    assert decoded(words.detokenize([[4, 5, 5]], [["ж"]])) == ["x\ufffdy ж"]


def test_an_unknown_mark_is_written_on_its_letter():
    source, target = LetterTokenizer("ae"), LetterTokenizer("ae")
    target.add_unknown_token()
    assert decoded(target.detokenize([[6, 4, 6, 5, 6]], source.unknown(["cáe\u0301"]))) == ["cáé"]


def test_only_what_counts_its_tokens_has_a_token_for_what_is_unknown_and_no_text_brings_it():
    for tokenizer in (CharTokenizer(), WhitespaceTokenizer(), SubwordTokenizer(), ByteTokenizer()):
        tokenizer.adapt(["a \ufffd \ufffd b\ufffd", "a b"])
        size, counts = tokenizer.vocabulary_size, isinstance(tokenizer, CharTokenizer | WhitespaceTokenizer)
        assert REPLACEMENT not in tokenizer.vocabulary and tokenizer.unknown_ids == (UNKNOWN,)
        for _ in range(2):
            tokenizer.add_unknown_token()
            assert tokenizer.vocabulary_size == size + counts


def test_only_the_unknown_tokens_of_the_source_are_the_replacement_character_in_a_target():
    source, target = CharTokenizer("a"), CharTokenizer(["a", "b"])
    sources, targets = ["xay", "xa", "a", "xy", "xx"], ["xby", "by", "xb", "y", "xxx"]
    ids = [[START, UNKNOWN, 5, UNKNOWN, END], [START, 5, UNKNOWN, END], [START, UNKNOWN, 5, END]]
    assert_ids = lambda tokenizer, rows: np.testing.assert_array_equal(  # noqa: E731
        target_ids(tokenizer, targets, source, sources), tf.ragged.constant(rows).to_tensor()
    )
    ids += [[START, UNKNOWN, END], [START, UNKNOWN, UNKNOWN, UNKNOWN, END]]
    assert_ids(target, ids)
    target.add_unknown_token()
    ids[0] = [START, 6, 5, 6, END]
    assert_ids(target, ids)
    (written,) = decoded(target.detokenize([[6, 6, END]], source.unknown(["ж"])))
    assert written == "ж"
    for text, longest, expected in (("ж", None, [6]), ("ж", 0, [UNKNOWN]), ("ж\ufffd", None, [UNKNOWN, UNKNOWN])):
        np.testing.assert_array_equal(target_ids(target, [text], source, ["ж"], longest), [[START, *expected, END]])


def test_decomposed_and_invalid_text_are_read():
    tokenizer = CharTokenizer("é")
    texts = tf.constant(["e\u0301".encode(), b"\xff"])
    np.testing.assert_array_equal(tokenizer.tokenize(texts), [[4], [UNKNOWN]])


def test_letters_their_marks_and_syllables_of_hangul_are_taken_apart_and_put_together_again():
    tokenizer = LetterTokenizer()
    texts = ["한글 ệ", "가", "", "ㄱ값x"]
    tokenizer.adapt(texts)
    letters = [decoded(row) for row in tokenizer.split(tf.constant(texts))]
    hangul = ["".join(unicodedata.normalize("NFD", text)) for text in ("한글", "가", "값")]
    assert letters == [[*hangul[0], " ", "e", "\u0323", "\u0302"], [*hangul[1]], [], ["ㄱ", *hangul[2], "x"]]
    assert tokenizer.lengths(texts).numpy().tolist() == [10, 2, 0, 5]
    assert tokenizer.vocabulary_size == 4 + len(set(itertools.chain.from_iterable(letters)))
    assert decoded(tokenizer.detokenize(tokenizer.tokenize(texts))) == texts
    assert decoded(LetterTokenizer(normal_form=None).normalize(["e\u0301"])) == ["é"]
    # All syllables, those at the ends of the range included, as Unicode takes them apart.
    syllables = [chr(code) for code in range(0xAC00, 0xD7A4, 97)] + ["힣", "\uabff", "\ud7b0"]
    assert ["".join(decoded(row)) for row in tokenizer.split(tf.constant(syllables))] == [
        unicodedata.normalize("NFD", syllable) for syllable in syllables
    ]


def test_nul_is_not_taken_into_the_vocabulary():
    tokenizer = CharTokenizer()
    tokenizer.adapt(["a\0"])
    assert tokenizer.tokens == ["a"]


@pytest.mark.parametrize("normal_form", NORMAL_FORMS)
@pytest.mark.parametrize("kind", TOKENIZERS.values())
@settings(deadline=None, max_examples=20)
@given(st.lists(st.lists(st.sampled_from(WORDS + SPACES)).map("".join), min_size=1, max_size=4), st.booleans())
def test_round_trip_gives_the_normal_form_and_single_spaces_where_whitespace_separates(
    kind, normal_form, texts, lowercase
):
    tokenizer = adapted(kind, normal_form=normal_form, lowercase=lowercase)
    if kind is WhitespaceTokenizer:
        texts = [" ".join(re.findall("|".join(map(re.escape, WORDS)), text)) for text in texts]
    normal = [unicodedata.normalize(normal_form, text) if normal_form else text for text in texts]
    if lowercase:
        normal = decoded(tokenizer.normalize(texts))
    if kind is LetterTokenizer and normal_form is None:
        normal = [unicodedata.normalize("NFC", text) for text in normal]
    if kind in (WhitespaceTokenizer, SubwordTokenizer):
        normal = [" ".join(text.split()) for text in normal]
    assert decoded(tokenizer.detokenize(tokenizer.tokenize(texts))) == normal


@pytest.mark.parametrize(
    ("tokenizer", "text", "written"),
    [
        (CharTokenizer("a"), "É  b", "É  b"),
        (CharTokenizer(lowercase=True), "E\u0301  B", "é  b"),
        (WhitespaceTokenizer(["a"]), " É  b", "É b"),
        (ByteTokenizer(), "É  b", "É  b"),
    ],
)
def test_the_written_form_of_a_text_is_that_of_a_model_that_knows_its_tokens(tokenizer, text, written):
    assert tokenizer.written_form([text]).numpy()[0].decode() == written


@pytest.mark.parametrize("kind", KINDS[:-1])
@settings(deadline=None, max_examples=30)
@given(st.lists(st.binary(max_size=20), max_size=4), st.sampled_from(NORMAL_FORMS), st.booleans())
def test_any_bytes_can_be_read_and_what_is_written_is_utf8(kind, texts, normal_form, lowercase):
    tokenizer = adapted(kind, normal_form=normal_form, lowercase=lowercase)
    texts = tf.constant(texts, tf.string)
    ids = tokenizer.tokenize(texts, start_end=True)
    assert len(decoded(tokenizer.detokenize(ids))) == len(texts)
    np.testing.assert_array_equal(tf.reduce_sum(tf.cast(ids > END, tf.int64), axis=1) <= ids.shape[1] - 2, True)
    _, numbers, lengths = tokenizer.count(texts)
    assert sum(numbers) == sum(lengths)


@pytest.mark.parametrize("kind", TOKENIZERS.values())
def test_every_kind_folds_case_also_without_a_normal_form(kind):
    assert decoded(kind(normal_form=None, lowercase=True).normalize(["Straße É"])) == ["strasse é"]


def test_lowercase_folds_case_alike_in_all_languages_before_the_normal_form():
    texts = ["TITLE Straße", "ΑΣ ½", "E\u0301"]
    assert decoded(CharTokenizer(lowercase=True).normalize(texts)) == ["title strasse", "ασ 1⁄2", "é"]
    assert decoded(CharTokenizer(lowercase=True, normal_form="NFD").normalize(texts))[2] == "e\u0301"


def test_another_normal_form_is_an_error_that_names_those_there_are():
    with pytest.raises(OptionError, match="normal_form='nfc': expected 'NFC', 'NFD', 'NFKC', 'NFKD', None"):
        CharTokenizer(normal_form="nfc")


def test_a_vocabulary_has_each_token_once():
    with pytest.raises(OptionError, match="vocabulary: a token is empty"):
        WhitespaceTokenizer(WhitespaceTokenizer(["a", "b"]).vocabulary)  # which begins with the reserved tokens
    with pytest.raises(OptionError, match="vocabulary: 'a' occurs 2 times; expected each token once"):
        CharTokenizer(["a", "b", "a"])
    with pytest.raises(OptionError, match="vocabulary: b'ab' is a token; expected strings"):
        WhitespaceTokenizer([b"ab"])


@pytest.mark.parametrize("kind", KINDS)
def test_eager_graph_and_dataset_agree(kind):
    tokenizer, texts = adapted(kind), tf.constant(["cat, cats\ta;x;cats\tta", "", "¿qué? a"])
    ids = tokenizer.tokenize(texts, start_end=True)
    (mapped,) = tf.data.Dataset.from_tensors(texts).map(lambda texts: tokenizer.tokenize(texts, start_end=True))
    np.testing.assert_array_equal(mapped, ids)
    np.testing.assert_array_equal(tf.function(tokenizer.tokenize)(texts, start_end=True), ids)
    (back,) = tf.data.Dataset.from_tensors(ids).map(tokenizer.detokenize)
    np.testing.assert_array_equal(back, tokenizer.detokenize(ids))
    np.testing.assert_array_equal(tf.function(tokenizer.detokenize)(ids), back)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_texts_are_padding_whatever_the_kind(kind):
    tokenizer = adapted(kind)
    if kind is not CommaTokenizer:  # to which an empty text is one empty token
        np.testing.assert_array_equal(tokenizer.tokenize(["", ""]), [[PADDING], [PADDING]])
    assert tokenizer.tokenize(tf.constant([], tf.string)).shape == (0, 1)
    nothing = "\t\t" if kind is columns else ""
    assert decoded(tokenizer.detokenize(tf.zeros([2, 0], tf.int32))) == [nothing] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_keras_serializes_every_kind_whole(kind):
    tokenizer = adapted(kind, normal_form="NFKD", lowercase=True)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(tokenizer))
    assert (copy.vocabulary, copy.normal_form, copy.lowercase) == (tokenizer.vocabulary, "NFKD", True)
    texts = ["Caterpillar CATS", "é,漢 ½", "a\tA;CATS\tcat"]
    np.testing.assert_array_equal(copy.tokenize(texts), tokenizer.tokenize(texts))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_model_takes_the_tables_along(kind, tmp_path):
    class Echo(tf.Module):
        def __init__(self, tokenizer):
            super().__init__()
            self.tokenizer = tokenizer

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def __call__(self, texts):
            ids = self.tokenizer.tokenize(texts)
            return ids, self.tokenizer.detokenize(ids)

    echo = Echo(adapted(kind))
    tf.saved_model.save(echo, tmp_path)
    texts = tf.constant(["cat cats", "漢字 x", "a\ta;x\tcat\ta"])
    for loaded, own in zip(tf.saved_model.load(tmp_path)(texts), echo(texts), strict=True):
        np.testing.assert_array_equal(loaded, own)


def test_a_dataset_keeps_the_vocabulary_it_was_made_with():
    tokenizer = WhitespaceTokenizer(["a", "b"])
    ids = tf.data.Dataset.from_tensors(["a b"]).map(tokenizer.tokenize)
    tokenizer.adapt(["b"])
    np.testing.assert_array_equal(list(ids), [[[4, 5]]])


def test_bytes_need_no_adapting_and_none_is_unknown():
    tokenizer = ByteTokenizer(normal_form=None)
    assert (tokenizer.vocabulary_size, len(set(tokenizer.vocabulary))) == (260, 260)
    np.testing.assert_array_equal(tokenizer.tokenize(tf.constant([b"\xff\0", b"a"])), [[4 + 255, 4], [4 + 97, PADDING]])
    assert decoded(tokenizer.detokenize([[4 + 97, 4 + 255, END, 4 + 98]])) == ["a\ufffd"]
    tokenizer.adapt(["b"])
    tokenizer.take_vocabulary({b"a": 1})
    assert tokenizer.vocabulary_size == 260
    with pytest.raises(OptionError, match="min_frequency=2"):
        tokenizer.adapt(["b"], min_frequency=2)
    with pytest.raises(OptionError, match="max_size=9"):
        tokenizer.take_vocabulary({}, max_size=9)


def test_words_that_look_like_reserved_tokens_are_words():
    tokenizer = WhitespaceTokenizer()
    tokenizer.adapt(["[END] [UNK] [UNK]", "[START]\0 \0"])
    assert tokenizer.tokens == ["[UNK]", "[END]"]
    np.testing.assert_array_equal(tokenizer.tokenize(["[END] [UNK] [START]"]), [[5, 4, UNKNOWN]])


def test_subwords_are_counted_as_words_before_training_and_as_pieces_after():
    tokenizer = SubwordTokenizer()
    words, numbers, lengths = tokenizer.count(["cat  cats cat", ""])
    assert (words.numpy().tolist(), numbers.numpy().tolist(), lengths.numpy().tolist()) == (
        [b"cat", b"cats"],
        [2, 1],
        [3, 0],
    )
    tokenizer.take_vocabulary({b"cat": 50, b"cats": 20, b"dogs": 20, b"dog": 40, b"sings": 9})
    pieces, _, lengths = tokenizer.count(["cat cats"])
    assert set(pieces.numpy().tolist()) <= {token.encode() for token in tokenizer.vocabulary}
    assert pieces.numpy()[0] == "▁cat".encode() and lengths.numpy() > 2
    assert decoded(tokenizer.detokenize(tokenizer.tokenize(["cat xyz dog"]))) == ["cat \ufffd dog"]


def test_the_same_words_train_the_same_subwords_silently(capfd):
    counts = {
        f"{a}{b}{c}".encode(): 1 + len(a + c) for a in ("un", "re", "") for b in WORDS for c in ("ing", "ed", "s")
    }
    models = []
    for words in (counts, dict(reversed(counts.items()))):
        tokenizer = SubwordTokenizer()
        tokenizer.take_vocabulary(words, max_size=60)
        models.append(tokenizer.model)
    assert models[0] == models[1] and tokenizer.vocabulary_size <= 64
    assert capfd.readouterr() == ("", "")


def trained(counts, **options):
    """The pieces of subwords trained on counted words, without "▁"."""
    tokenizer = SubwordTokenizer()
    tokenizer.take_vocabulary({word.encode(): count for word, count in counts.items()}, **options)
    return {token.replace("▁", "") for token in tokenizer.tokens}


def test_subwords_are_those_of_frequent_words_and_a_rare_character_is_one_of_them():
    for often, seldom in ((1000, 2), (2, 1000)):
        counts = {"sing": often, "singing": often, "queue": seldom, "quoqueue": seldom}
        assert ("singing" in trained(counts, max_size=12)) == (often > seldom)
    assert "ж" in trained({"sing": 10_000, "ж": 1})


def test_there_may_be_as_many_subwords_as_characters_and_by_default_more():
    assert trained({"abc": 1}, max_size=4) == {"", *"abc"}
    characters = "".join(chr(0x4E00 + number) for number in range(4100))
    assert trained({characters: 1}) >= set(characters)


@pytest.mark.parametrize("mark", ["▅", REPLACEMENT, "▁"])
def test_marks_of_sentencepiece_and_of_what_is_unknown_divide_words(mark):
    assert trained({f"ab{mark}c": 1}) - {"", "ab"} == set("abc")
    if mark == "▁":
        tokenizer = SubwordTokenizer()
        words, *_ = tokenizer.count([f"ab{mark}c"])
        assert words.numpy().tolist() == [b"ab", b"c"]
        assert decoded(tokenizer.written_form([f"ab{mark} c"])) == ["ab c"]


def test_adapting_subwords_again_starts_over():
    tokenizer = SubwordTokenizer()
    for texts in (["ab abab"], ["cd"]):
        tokenizer.adapt(texts)
    assert set("".join(tokenizer.tokens)) == set("▁cd")


def test_long_words_and_few_make_subwords_too():
    tokenizer = SubwordTokenizer()
    tokenizer.adapt(["漢字" * 4000])
    assert decoded(tokenizer.written_form([" 漢 \u00a0 字½"])) == ["漢 字½"]  # though it knows no ½
    assert decoded(tokenizer.detokenize(tokenizer.tokenize(["漢 字字"]))) == ["漢 字字"]
    tokenizer.adapt(["a"])
    assert decoded(tokenizer.detokenize(tokenizer.tokenize(["a aa"]))) == ["a aa"]


def test_what_subwords_cannot_be_made_of_is_an_error():
    tokenizer = SubwordTokenizer()
    with pytest.raises(ValueError, match="not trained yet: call adapt"):
        tokenizer.tokenize(["a"])
    with pytest.raises(ValueError, match="not trained yet: call adapt"):
        tf.data.Dataset.from_tensors(["a"]).map(tokenizer.tokenize)
    with pytest.raises(OptionError, match="max_size=3: expected 4 or more"):
        tokenizer.take_vocabulary({b"abc": 1}, max_size=3)
    with pytest.raises(OptionError, match="min_frequency=2: no word"):
        tokenizer.take_vocabulary({b"abc": 1}, min_frequency=2)
    with pytest.raises(OptionError, match="model: expected"):
        SubwordTokenizer(b"none")


def test_a_tokenizer_of_ones_own_needs_split_and_join_only():
    tokenizer = CommaTokenizer(lowercase=True)
    tokenizer.adapt(["A b,c", "c"])
    assert tokenizer.vocabulary[4:] == ["c", "a b"]
    assert decoded(tokenizer.detokenize(tokenizer.tokenize(["C,A B,c", "d,c"], start_end=True))) == [
        "c,a b,c",
        "\ufffd,c",
    ]


@pytest.mark.parametrize("wrong", [tf.strings.upper, lambda texts: tf.strings.unicode_decode(texts, "UTF-8"), list])
def test_a_split_that_returns_something_else_is_an_error(wrong):
    class Wrong(Tokenizer):
        def split(self, texts):
            return wrong(texts)

    with pytest.raises(ValueError, match=r"Wrong.split must return ragged strings \[B, \(S\)\]"):
        Wrong().tokenize(["a"])
    with pytest.raises(NotImplementedError, match="Tokenizer must define split"):
        Tokenizer().tokenize(["a"])


@pytest.mark.parametrize("tokenizer", [CharTokenizer(), WhitespaceTokenizer(), SubwordTokenizer()], ids=repr)
def test_seeding_the_generators_of_chance_leaves_tokenizers_alone(tokenizer):
    """It empties TensorFlow's cache of kernels, and with it whatever tables kernels own."""
    tokenizer.adapt(["the cat sat on the mat", "the dog"])
    before = tokenizer.tokenize(["the cat"])
    batches = tf.data.Dataset.from_tensors(["the cat"]).map(tokenizer.tokenize)
    keras.utils.set_random_seed(1)
    np.testing.assert_array_equal(tokenizer.tokenize(["the cat"]), before)
    np.testing.assert_array_equal(next(iter(batches)), before)


def test_an_extended_vocabulary_keeps_the_ids_it_had():
    tokenizer = WhitespaceTokenizer()
    tokenizer.adapt(["b b a"])
    before = tokenizer.tokenize(["a b"]).numpy().tolist()
    tokenizer.extend_vocabulary({b"c": 3, b"b": 9, b"d": 1, b"e": 2}, min_frequency=2)
    assert tokenizer.tokens == ["b", "a", "c", "e"]
    assert tokenizer.tokenize(["a b"]).numpy().tolist() == before
    tokenizer.extend_vocabulary({b"f": 3, b"g": 2}, max_size=5)
    assert tokenizer.tokens == ["b", "a", "c", "e", "f"]
    tokenizer.extend_vocabulary({b"h": 3}, max_size=2)
    assert len(tokenizer.tokens) == 5


def inflection():
    tokenizer = ColumnsTokenizer([CharTokenizer(), SeparatorTokenizer(";")], ["lemma", "features"])
    tokenizer.adapt(["see\tV;PST", "go\tV;PRS", "V\t"])
    return tokenizer


INFLECTION = inflection()


def test_each_column_has_ids_of_its_own_also_for_what_is_unknown():
    tokenizer = inflection()
    assert tokenizer.vocabulary[4:] == ["e", "V", "g", "o", "s", "[UNK]", "V", "PRS", "PST"]
    assert tokenizer.columns.tolist() == [0] * 9 + [1] * 4 and tokenizer.columns.dtype == np.int32
    assert tokenizer.in_order.tolist() == [True] * 9 + [False] * 4
    assert CharTokenizer("ab").in_order.tolist() == [True] * 6
    assert CharTokenizer("ab").columns.tolist() == [0] * 6
    ids = tokenizer.tokenize(["Vx\tV;FUT", "go\tPRS;V", "o", "o\t", "\tV", "o\t;V;;PST\ts"])
    expected = [[5, UNKNOWN, 10, 9], [6, 7, 11, 10], [7, 0, 0, 0], [7, 0, 0, 0], [10, 0, 0, 0], [7, 10, 12, 0]]
    np.testing.assert_array_equal(ids, expected)
    assert tokenizer.lengths(["Vx\tV;FUT", "o", ""]).numpy().tolist() == [4, 1, 0]
    assert tokenizer.unknown_ids == (UNKNOWN, 9)
    assert tokenizer.unknown(["Vxy\tV;FUT", "go", "\t;FUT"]).to_list() == [[b"x", b"y"], [], []]
    both = ColumnsTokenizer([SeparatorTokenizer(";"), CharTokenizer("a")])
    assert both.unknown(["V;W\txay", "V\t"], 4).to_list() == [[b"x"], []]
    pieces = SubwordTokenizer()
    pieces.adapt(["see it"])
    assert ColumnsTokenizer([pieces, CharTokenizer("a")]).unknown(["\u65e5 see\tz"]).to_list() == [
        ["\ufffd".encode(), b"z"]
    ]
    texts = ["V\ufffd\tV;\ufffd", "go\tPRS;V", "o\t", "o\t", "\tV", "o\tV;PST"]
    assert decoded(tokenizer.detokenize(ids)) == texts
    assert tokenizer.one_hot(ids).shape == (6, 4, 13)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.lists(st.binary(max_size=5), max_size=4).map(b"\t".join), min_size=1, max_size=4))
def test_columns_are_each_cut_as_if_alone_whatever_the_bytes(texts):
    tokenizer = INFLECTION
    rows = [[*text.split(b"\t"), b""][:2] for text in texts]
    alone = [
        part.lengths(part.normalize([row[n] for row in rows])).numpy() for n, part in enumerate(tokenizer.tokenizers)
    ]
    ids = tokenizer.tokenize(texts).numpy()
    for number, lengths in enumerate(alone):
        np.testing.assert_array_equal(np.sum((tokenizer.columns[ids] == number) & (ids > 0), axis=1), lengths)
    assert len(decoded(tokenizer.detokenize(ids))) == len(texts)


def test_columns_are_counted_and_their_vocabularies_taken_by_themselves():
    tokens, numbers, lengths = inflection().count(["VV\tV;PST", "s\tV"])
    counts = dict(zip(tokens.numpy().tolist(), numbers.numpy().tolist(), strict=True))
    assert counts == {b"V": 2, b"s": 1, b"\tV": 2, b"\tPST": 1} and lengths.numpy().tolist() == [4, 2]
    tokenizer = ColumnsTokenizer([SubwordTokenizer(), SeparatorTokenizer(";"), ByteTokenizer()])
    tokenizer.take_vocabulary({b"cat": 9, b"cats": 5, b"\tPL": 3, b"\tSG": 2, b"\tDU": 1, b"\t\tx": 1})
    assert tokenizer.tokens.index(b"\tPL") < tokenizer.tokens.index(b"\tSG") < tokenizer.tokens.index(b"\t\tx")
    assert decoded(tokenizer.detokenize(tokenizer.tokenize(["cats\tDU;SG\té"]))) == ["cats\tDU;SG\té"]
    few = inflection()
    few.take_vocabulary({b"a": 2, b"b": 1, b"\tV": 2, b"\tN": 3, b"\tA": 1}, min_frequency=2, max_size=1)
    assert few.vocabulary[4:] == ["a", "[UNK]", "N"]
    with pytest.raises(OptionError, match="min_frequency=2: bytes are a fixed vocabulary"):
        tokenizer.take_vocabulary({b"cat": 2}, min_frequency=2)
    again, fresh = (ColumnsTokenizer([CharTokenizer(), SubwordTokenizer()]) for _ in range(2))
    for texts in (["x\tsun"], ["cat\tcats cat", "dog\tdogs"]):
        again.adapt(texts)
    fresh.adapt(texts)
    assert again.vocabulary == fresh.vocabulary


def test_new_tokens_of_any_column_leave_the_ids_of_all_as_they_were():
    tokenizer = inflection()
    texts = ["goose\tPST;V", "Vs\tx"]
    before, old = tokenizer.tokenize(texts).numpy().tolist(), tokenizer.vocabulary
    tokenizer.extend_vocabulary({b"n": 2, b"o": 9, b"\tFUT": 1, b"\tV": 7, b"\tIMP": 3})
    assert tokenizer.vocabulary == [*old, "n", "IMP", "FUT"]
    assert tokenizer.tokenize(texts).numpy().tolist() == before
    assert tokenizer.columns[-4:].tolist() == [1, 0, 1, 1]
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(tokenizer))
    assert (copy.vocabulary, copy.tokens, copy.column_names) == (
        tokenizer.vocabulary,
        tokenizer.tokens,
        ("lemma", "features"),
    )
    np.testing.assert_array_equal(copy.tokenize(["on\tFUT;x"]), tokenizer.tokenize(["on\tFUT;x"]))


@pytest.mark.parametrize("normal_form", NORMAL_FORMS)
@pytest.mark.parametrize("lowercase", [False, True])
def test_normalization_keeps_columns_apart(normal_form, lowercase):
    options = {"normal_form": normal_form, "lowercase": lowercase}
    parts = [CharTokenizer(**options), SeparatorTokenizer(**options)]
    texts = ["É½\t\u0301A", "a", "\t\u0301"]
    apart = [
        part.normalize(column) for part, column in zip(parts, (["É½", "a", ""], ["\u0301A", "", "\u0301"]), strict=True)
    ]
    assert decoded(ColumnsTokenizer(parts).normalize(texts)) == decoded(tf.strings.join(apart, "\t"))


def test_what_columns_and_separators_cannot_be_is_an_error():
    for separator in ("", "a\tb"):
        with pytest.raises(OptionError, match="separator="):
            SeparatorTokenizer(separator)
    SeparatorTokenizer("\u00ad")
    with pytest.raises(OptionError, match="separator='\\\\xad': normal form and case folding remove it"):
        SeparatorTokenizer("\u00ad", lowercase=True)
    with pytest.raises(OptionError, match=r"names=\['lemma'\]: 1 for 2 tokenizers"):
        ColumnsTokenizer([CharTokenizer(), CharTokenizer()], ["lemma"])


def test_a_separator_is_found_in_the_normal_form_of_a_text():
    tokenizer = SeparatorTokenizer("；", normal_form="NFKC")  # which has an ASCII semicolon for it
    assert tokenizer.count(["V；PST;SG"])[0].numpy().tolist() == [b"V", b"PST", b"SG"]


@pytest.mark.parametrize("kind", [CharTokenizer, WhitespaceTokenizer, SubwordTokenizer, LetterTokenizer])
@pytest.mark.parametrize("options", [{"min_frequency": 0}, {"max_size": 0}, {"max_size": -1}, {"max_size": 2.5}])
def test_a_vocabulary_of_an_impossible_size_is_refused(kind, options):
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}=.*: expected a whole number, at least 1"):
        kind().adapt(["a b", "b c"], **options)


def test_a_token_that_is_no_text_is_refused_by_name():
    class Bytes(Tokenizer):
        def split(self, texts):
            return tf.strings.bytes_split(texts)

    with pytest.raises(OptionError, match=r"^Bytes: the token b.*xa9.* is not valid UTF-8"):
        Bytes().adapt(["é"])


PAIRS = [("a", "b"), ("b", "a")]
ONLY_STRINGS = "texts=.*: expected a list, an array or a tensor of strings, [B]"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ByteTokenizer(None).tokenize("abc"), ONLY_STRINGS),
        (lambda: TOKENIZER.tokenize([1]), ONLY_STRINGS),
        (lambda: CharTokenizer().adapt("abc"), ONLY_STRINGS),
        (lambda: CharTokenizer().adapt(PAIRS), ONLY_STRINGS),
        (lambda: CharTokenizer().adapt(iter("abc")), ONLY_STRINGS),
        (lambda: columns().adapt(PAIRS), ONLY_STRINGS),
        (
            lambda: CharTokenizer().adapt(tf.data.Dataset.from_tensor_slices(PAIRS).map(tf.unstack)),
            "texts: expected a dataset of scalar strings, not of (",
        ),
        (lambda: TOKENIZER.detokenize([4, 5]), "ids: expected whole numbers [B, T], not int32 (2,)"),
        (lambda: TOKENIZER.detokenize([[4.0]]), "ids: expected whole numbers [B, T], not float32 (1, 1)"),
        (lambda: TOKENIZER.detokenize([[4, 5], [6]]), "ids: expected whole numbers [B, T], padded (ValueError"),
        (lambda: TOKENIZER.detokenize(tf.ragged.constant([[4], []])), "ids: expected whole numbers [B, T], padded ("),
        (lambda: CharTokenizer(["ab"]), "vocabulary: expected single characters, not 'ab'"),
    ],
)
def test_anything_but_a_batch_is_an_error_that_names_the_argument(call, message):
    with pytest.raises(OptionError, match=f"^{re.escape(message).replace(re.escape('.*'), '.*')}"):
        call()
