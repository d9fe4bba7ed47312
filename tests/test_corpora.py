import collections
import re
import resource
import string
import unicodedata

import numpy as np
import pytest
import tensorflow as tf

from pipelines import (
    CharTokenizer,
    CorpusError,
    LetterTokenizer,
    OptionError,
    Report,
    SubwordTokenizer,
    Survey,
    WhitespaceTokenizer,
    corpus_errors,
    count_pairs,
    group_by_source,
    open_corpora,
    read_pairs,
    sources_in,
    split_by_hash,
    split_last,
    survey,
)


def strings(pairs):
    return [(source.decode(), target.decode()) for source, target in pairs.as_numpy_iterator()]


def dataset(lines):
    """A dataset of pairs that are in memory, which is faster to make than one that reads a file."""
    return tf.data.Dataset.from_tensor_slices(tuple(map(list, zip(*lines, strict=True))))


def test_reads_two_or_three_columns_with_bom_crlf_and_blank_lines(tsv):
    path = tsv(b"\xef\xbb\xbfGo.\tVe.\r\nHi.\tHola.\tCC-BY 2.0 (France)\r\n\r\nRun!\t\xc2\xa1Corre!")
    assert strings(read_pairs(path)) == [("Go.", "Ve."), ("Hi.", "Hola."), ("Run!", "¡Corre!")]
    assert strings(read_pairs(path, limit=1)) == [("Go.", "Ve.")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"no tab here", "line 3: expected source TAB target .*, found no tab"),
        (b"a\tb\tc\td", "line 3: .*found 4 columns"),
        (b"\tempty", r'line 3: the source is empty \(on_bad_line="skip" leaves'),
        (b"empty\t ", "line 3: the target is empty"),
        (b"a\t\xff\xfe", r"line 3: the target is not valid UTF-8 \(invalid start byte at byte 0\)"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(tsv, line, message):
    path = tsv(b"Go.\tVe.\nHi.\tHola.\n" + line + b"\nafter\tthat\n")
    with pytest.raises(CorpusError, match=re.escape(str(path)) + ", " + message), corpus_errors():
        strings(read_pairs(path))


def test_the_hash_split_never_changes():
    pairs = dataset([(letter, "x") for letter in string.ascii_lowercase])
    assert "".join(source for source, _ in strings(split_by_hash(pairs, 0.2, CharTokenizer())[1])) == "bcknrs"


def nfd(text):
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    ("change", "tokenizer"),
    [
        (str.lower, CharTokenizer(lowercase=True)),
        (nfd, CharTokenizer()),
        (nfd, LetterTokenizer(normal_form=None)),
        (lambda text: text.replace(" ", "\u3000 ") + " ", SubwordTokenizer()),
        (lambda text: text.replace(" ", "\u2009"), WhitespaceTokenizer(normal_form="NFKC")),
    ],
    ids=["case", "NFD", "letters", "spaces", "thin spaces"],
)
def test_the_hash_split_keeps_together_what_the_model_cannot_tell_apart_and_loses_nothing(change, tokenizer):
    spanish = [target.decode() for _, target in open_corpora("phrasebook").pairs()][:1000]
    lines = [(text, str(number)) for number, source in enumerate(spanish) for text in (source, change(source))]
    sides = [strings(side) for side in split_by_hash(dataset(lines), 0.2, tokenizer)]
    assert sorted(sides[0] + sides[1]) == sorted(lines)
    training, validation = (
        {" ".join(text.decode().split()) for text in tokenizer.normalize([source for source, _ in side]).numpy()}
        for side in sides
    )
    assert 150 < len(validation) < 250 and not training & validation


def test_the_hash_split_does_not_depend_on_how_text_is_split_into_tokens():
    pairs = dataset([(f"a{' ' * (n % 4)}b▁{n}", "x") for n in range(300)])
    kinds = (CharTokenizer, SubwordTokenizer, WhitespaceTokenizer)
    first, *others = (strings(split_by_hash(pairs, 0.2, kind())[1]) for kind in kinds)
    assert first and others == [first, first]


def test_pairs_are_found_whose_source_is_trained_on():
    pairs = dataset([("Go.", "Ve."), ("Stop.", "Para."), ("go.", "Vaya.")])
    training = dataset([("x", "y")] * 5000 + [("Go. ", "Vete.")] * 2)
    assert sources_in(pairs, training, CharTokenizer()).tolist() == [True, False, False]
    assert sources_in(pairs, training, CharTokenizer(lowercase=True)).tolist() == [True, False, True]
    assert sources_in(pairs.take(0), training, CharTokenizer()).tolist() == []
    assert sources_in(pairs, training.take(0), CharTokenizer()).tolist() == [False] * 3


def test_the_last_split_holds_out_the_end():
    training, validation = split_last(dataset([(str(n), "x") for n in range(10)]), 0.2)
    assert count_pairs(training) == 8
    assert strings(validation) == [("8", "x"), ("9", "x")]
    assert count_pairs(split_last(dataset([("a", "x")] * 9), 0.2)[0]) == 8  # what is held out is rounded down


def test_spa_eng_is_read_whole(spa_eng):
    pairs = read_pairs(spa_eng)
    assert count_pairs(pairs) == 118_964
    assert strings(pairs.take(1)) == [("Go.", "Ve.")]


def test_several_corpora_and_datasets_are_read_one_after_the_other(tsv):
    dataset = tf.data.Dataset.from_tensor_slices((["x", "xxxxxx"], ["y", "y"]))
    path = tsv("Go.\tVe.\n")
    assert strings(read_pairs([path, dataset])) == [("Go.", "Ve."), ("x", "y"), ("xxxxxx", "y")]
    report = Report()
    assert strings(read_pairs(dataset, max_length=5, report=report)) == [("x", "y")]
    assert report.first == {"too long": ["dataset, pair 2: 6 characters"]}
    with pytest.raises(OptionError, match="cannot be combined"):
        read_pairs(path, limit=1, num_shards=2)


def test_shuffled_files_come_in_a_new_order_each_epoch_and_the_same_for_a_seed(tsv, tmp_path):
    for file in range(9):
        tsv(f"{file}\tx\n", f"{file}.tsv")

    def epochs(**options):
        pairs = read_pairs(tmp_path, shuffle_files=True, **options)
        return strings(pairs if "epoch" in options else pairs.repeat(2))

    first = epochs(seed=1)
    assert first == epochs(seed=1) != epochs(seed=2)
    assert first[:9] != first[9:]
    assert epochs(seed=1, epoch=4) != epochs(seed=4, epoch=1)
    fourth, fifth = epochs(seed=1, epoch=4), epochs(seed=1, epoch=5)
    assert fourth == epochs(seed=1, epoch=tf.constant(4)) != fifth
    assert sorted(first[:9]) == sorted(fourth) == sorted(fifth) == [(str(file), "x") for file in range(9)]


def test_a_report_is_of_the_last_whole_pass(tsv):
    report = Report()
    pairs = read_pairs(tsv("a\tb\nno tab\n"), report=report, on_bad_line="skip")
    strings(pairs)
    strings(pairs)
    assert (report.pairs, report.dropped) == (1, {"wrong columns": 1})


def test_a_pass_up_to_the_limit_is_whole(tsv):
    report = Report()
    path = tsv("a\tb\nno tab\nc\td\ne\tf\nno tab\n")
    assert strings(read_pairs(path, 2, report=report, on_bad_line="skip")) == [("a", "b"), ("c", "d")]
    assert (report.pairs, report.dropped) == (2, {"wrong columns": 1})
    assert strings(read_pairs(path, 0)) == []
    for limit in (-1, 2.5):
        with pytest.raises(OptionError, match=f"limit={limit}: expected a whole number, at least 0"):
            read_pairs(path, limit)


@pytest.mark.parametrize(
    "takes",
    [
        lambda pairs: split_by_hash(pairs, 0.1, CharTokenizer()),
        lambda pairs: split_last(pairs, 0.1),
        lambda pairs: sources_in(pairs, dataset([("a", "b")]), CharTokenizer()),
        lambda pairs: sources_in(dataset([("a", "b")]), pairs, CharTokenizer()),
        lambda pairs: survey(pairs, CharTokenizer(), CharTokenizer()),
        count_pairs,
        group_by_source,
    ],
)
def test_what_takes_pairs_refuses_everything_else(takes):
    with pytest.raises(OptionError, match=r"expected a tf.data.Dataset, not a list; read_pairs makes one"):
        takes([("a", "b")])
    with pytest.raises(OptionError, match=r"a dataset of .*; expected \(source, target\) scalar strings"):
        takes(tf.data.Dataset.from_tensors("a"))


@pytest.mark.parametrize("fraction", [20, 1.0, -0.1])
def test_a_split_needs_a_fraction(tsv, fraction):
    pairs = read_pairs(tsv("a\tb\n"))
    for split in (lambda: split_last(pairs, fraction), lambda: split_by_hash(pairs, fraction, CharTokenizer())):
        with pytest.raises(OptionError, match=f"fraction={fraction}: expected"):
            split()


def test_after_reading_the_memory_of_large_arrays_is_used_again():
    list(read_pairs([("a", "b")]))
    np.ones(2**20, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        np.ones(2**20, np.uint8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 2560  # a tenth of their pages


def test_a_survey_counts_pairs_tokens_and_lengths():
    seen = []
    assert survey(dataset([("a", "ñandú")]), CharTokenizer(), CharTokenizer()).longer == 5  # characters
    found = survey(dataset([("aab", "x"), ("a", "xyxyx")]), CharTokenizer(), CharTokenizer(), seen.append)
    assert (found.pairs, found.longer, seen) == (2, 3 + 5, [2])
    assert found.tokens == ({b"a": 3, b"b": 1}, {b"x": 4, b"y": 2})
    assert found.lengths == ({3: 1, 1: 1}, {1: 1, 5: 1})
    assert [found.length(0, quantile) for quantile in (0, 0.5, 0.51, 1)] == [1, 1, 3, 3]
    assert found.as_dict()["target"] == {"tokens": {"x": 4, "y": 2}, "lengths": {1: 1, 5: 1}}


def test_a_survey_is_written_with_any_token_and_its_lengths_in_rising_order():
    assert Survey().length(0, 0.5) == 0
    nothing = collections.Counter()
    tokens, lengths = collections.Counter({b"\xc4": 1, b"\xc3": 2}), collections.Counter({3: 1, 1: 2})
    found = Survey(3, 7, (tokens, nothing), (lengths, nothing)).as_dict()["source"]
    assert list(found["tokens"].items()) == [("\\xc3", 2), ("\\xc4", 1)]
    assert list(found["lengths"].items()) == [(1, 2), (3, 1)]


def test_pairs_are_grouped_by_source_in_their_order():
    pairs = dataset([("go", "ve"), ("ñu", "x"), ("go", "vaya"), ("go", "ve")])
    assert group_by_source(pairs) == {"go": ["ve", "vaya", "ve"], "ñu": ["x"]}
    assert group_by_source(pairs.take(0)) == {}


def test_a_source_in_two_unicode_forms_is_one_source():
    pairs = dataset([(nfd("ñu"), "x"), ("ñu", "y"), ("Ñu", "z")])
    assert group_by_source(pairs) == {nfd("ñu"): ["x", "y"], "Ñu": ["z"]}


def test_a_text_that_is_not_utf8_is_named_by_its_pair():
    with pytest.raises(CorpusError, match="pair 2: a text is not UTF-8"):
        group_by_source(dataset([("go", "ve"), (b"\xff", "x")]))
