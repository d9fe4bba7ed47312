import dataclasses
import itertools

import pytest

from pipelines import CharTokenizer, CorpusError, OptionError
from pipelines.tokens import REPLACEMENT
from seq2seq import configure
from seq2seq.building import prepare
from seq2seq.config import Config
from seq2seq.records import Record
from seq2seq.surveying import say_leaks, survey_corpus, take_vocabularies


def survey(config, progress=None, say=print, warns=False):
    """What a configuration's corpus holds, and its tokenizers with their vocabularies."""
    _, tokenizers = prepare(config)
    found = survey_corpus(config, tokenizers, progress, say, warns)
    take_vocabularies(config, tokenizers, found, say)
    return found, tokenizers


def test_the_vocabulary_is_of_the_training_side_only(tsv):
    corpus = tsv("".join(f"{c}\tx\n" for c in "abcdefghij"))
    _, (source, _) = survey(Config(str(corpus), split="last", validation_fraction=0.2, units=4))
    assert sorted(source.tokens) == list("abcdefgh")


def test_a_small_corpus_counts_as_often_as_training_draws_from_it(tsv):
    small, large = tsv("a\tx\n", "small.tsv"), tsv("b\ty\n" * 20)
    config = Config((str(small), str(large)), weights=(1, 1), validation_fraction=0)
    found = survey_corpus(config, [CharTokenizer()] * 2, None, print)
    assert found.tokens[0][b"b"] >= 20 and found.tokens[0][b"a"] > 5


def test_what_was_read_is_reported_and_unknown_tokens_are_told(tsv):
    corpus = tsv("".join(f"{c}{c}\txy\n" for c in "abcdefghij") + "no tab\n" + "a" * 30 + "\tx\n")
    options = {"on_bad_line": "skip", "max_length": 20, "min_frequency": 2, "max_vocabulary": 5}
    config = Config(str(corpus), validation_fraction=0, units=4, **options)
    counted, said = [], []
    found, (source, _) = survey(config, counted.append, said.append)
    assert counted == [10] and said == [
        f"2 of 12 pairs left out\n  1 wrong columns\n    {corpus}, line 11: expected source TAB target (and at most "
        f"one more column), found no tab\n  1 too long\n    {corpus}, line 12: 30 characters",
        "source: 50% of the tokens are not in the vocabulary of 5",
    ]
    assert source.tokens == list("abcde")
    assert found.pairs == 10 and found.as_dict()["target"]["tokens"] == {"x": 10, "y": 10}


@pytest.mark.parametrize("shared", [False, True])
def test_a_copying_model_has_a_target_token_for_what_it_does_not_know(tsv, shared):
    corpus, said = tsv("ab\tbx\nac\tax\n"), []
    config = Config(str(corpus), validation_fraction=0, units=4, copy=True, shared_vocabulary=shared)
    _, (source, target) = survey(config, say=said.append)
    assert target.tokens[-1] == REPLACEMENT and (REPLACEMENT in source.tokens) == shared
    assert said == [
        f"copying: {4 if shared else 2} source tokens can be copied; there are {4 if shared else 3} target tokens"
    ]
    _, (source, target) = survey(dataclasses.replace(config, copy=False), say=said.append)
    assert REPLACEMENT not in source.tokens + target.tokens


def test_a_source_token_that_targets_know_is_copied_as_itself_however_rare_it_is(tsv):
    corpus, said = tsv("aa\taaxx\nab\taxx\na\taxb\n\ufffdc\tab\n"), []
    config = Config(str(corpus), validation_fraction=0, units=4, copy=True, min_frequency=2)
    _, (source, target) = survey(config, say=said.append)
    assert source.tokens == ["a", "b"] and target.tokens == ["a", "x", "b", REPLACEMENT]
    assert said == [
        "source: 29% of the tokens are not in the vocabulary of 2",
        "copying: 2 source tokens can be copied; there are 3 target tokens",
    ]
    _, (source, _) = survey(dataclasses.replace(config, copy=False), say=said.append)
    assert source.tokens == ["a"]


def test_each_column_that_is_no_set_knows_what_targets_know(tsv):
    corpus = tsv("V;W\taXV\taXXV\nV\taY\taYY\nW\taZ\ta\n")
    options = {"columns": (1, 2, 3), "source_tokenizer": ";,char", "copy": True, "min_frequency": 2}
    _, (source, target) = survey(Config(str(corpus), validation_fraction=0, units=4, **options), say=[].append)
    assert target.tokens == ["a", "X", "Y", REPLACEMENT]
    assert sorted(source.tokens) == [b"\t", b"\tX", b"\tY", b"\ta", b"V", b"W"]


@pytest.mark.parametrize("kind", ["subword", "byte"])
def test_what_a_source_cannot_name_has_no_token_in_targets(tsv, kind):
    corpus = tsv("ab\tbx\nac\tax\n")
    config, said = Config(str(corpus), validation_fraction=0, units=4, copy=True, source_tokenizer=kind), []
    assert REPLACEMENT not in survey(config, say=said.append)[1][1].tokens
    assert said == [f"copying: {3 if kind == 'byte' else 2} source tokens can be copied; there are 3 target tokens"]


def test_an_empty_vocabulary_is_refused(tsv):
    with pytest.raises(OptionError, match="min_frequency=1000: no source token occurs that often"):
        survey(Config(str(tsv("a\tb\n")), validation_fraction=0, units=4, min_frequency=1000))


def test_a_side_without_a_token_is_refused(tsv):
    options = {"source_tokenizer": ";", "target_tokenizer": ";", "shared_vocabulary": True}
    found, (source, _) = survey(Config(str(tsv(";\tA;B\n;;\tA\n")), validation_fraction=0, units=4, **options))
    assert source.tokens == ["A", "B"] and not found.tokens[0]


def test_a_size_that_a_vocabulary_cannot_have_is_refused_by_the_name_of_the_option(tsv):
    corpus = str(tsv("".join(f"{chr(0xAC00 + n)}\tx\n" for n in range(50))))
    config = Config(corpus, validation_fraction=0, units=4, source_tokenizer="subword")
    with pytest.raises(OptionError, match="source: max_vocabulary=20: expected 51 or more, the number of characters"):
        survey(dataclasses.replace(config, max_vocabulary=20))
    with pytest.raises(OptionError, match="target: max_vocabulary=20: bytes are a fixed vocabulary"):
        survey(dataclasses.replace(config, source_tokenizer="char", target_tokenizer="byte", max_vocabulary=20))


def test_the_preset_for_pieces_takes_a_language_of_many_characters(tsv):
    syllables = [chr(0xAC00 + n) for n in range(1600)]
    corpus = str(tsv("".join(f"{a}{b} {a}\tword\n" for a, b in itertools.pairwise(syllables))))
    _, (source, _) = survey(configure("subword", corpus=corpus, validation_fraction=0, units=4))
    assert set(syllables) <= set("".join(source.tokens)) and len(source.tokens) > 1600


def test_lines_that_the_default_length_leaves_out_are_told_and_refused_for_validation(tsv):
    rows = "".join(f"{c}{c}\txy\n" for c in "abcdefghij")
    corpus, said = tsv(rows + f"{'a' * 20_000}\t{'x' * 20_000}\n"), []
    config = Config(str(corpus), validation_fraction=0, units=4)
    survey(config, say=said.append)
    assert said[0].startswith("1 of 11 pairs left out\n  1 too long\n") and said[1:] == [
        f"1 left out, with a side of more than 1,000 characters; the first is {corpus}, line 11: 20000 "
        "characters. To use them, set a higher --max-length, or none; long texts need much memory"
    ]
    with pytest.warns(UserWarning, match=r"line 11: 20000 characters\. To use them, set a higher --max-length"):
        survey(config, warns=True)
    said.clear()
    survey(dataclasses.replace(config, max_length=5000), say=said.append)
    assert len(said) == 1 and said[0].startswith("1 of 11 pairs left out")  # as the user has asked for that length
    held_out = dataclasses.replace(config, corpus=str(tsv(rows, "short.tsv")), validation=str(corpus))
    with pytest.raises(
        CorpusError, match=r"pairs\.tsv, line 11: 20000 characters, too long to validate on; .*--max-length"
    ):
        survey(held_out)


@pytest.mark.parametrize(("tokenizer", "unit"), [("byte", "tokens"), ("subword", "words")])
def test_long_sources_are_counted_in_tokens_or_before_subwords_exist_in_words(tsv, tokenizer, unit):
    config = Config(str(tsv("a " * 1100 + "\tx\n" + "a b\tx\n" * 9)), source_tokenizer=tokenizer, max_length=None)
    said = []
    survey(dataclasses.replace(config, validation_fraction=0, units=4), say=said.append)
    assert said[:1] == [f"1 sources have more than 1,024 {unit}; translation reads only the first 1,024 tokens"]


def test_nothing_held_out_cannot_be_monitored(tsv):
    with pytest.raises(OptionError, match="monitor='val_loss': there is no held-out set"):
        survey(Config(str(tsv("a\tb\n")), validation_fraction=1e-6, units=4, monitor="val_loss"))


def test_held_out_pairs_with_a_source_that_is_trained_on_are_counted(tsv):
    corpus = tsv("".join(f"{c}\tx\n" for c in "abcdefgh") + "A\ty\nB\ty\n")
    config = Config(str(corpus), split="last", validation_fraction=0.3, lowercase=True, units=4)
    said, (_, tokenizers) = [], prepare(config)
    say_leaks(Record({}), config, tokenizers[0], said.append)
    assert said == [
        "2 of 3 held-out pairs have a source that is also in the training set; --split hash keeps them apart"
    ]
    say_leaks(Record({}), dataclasses.replace(config, split="hash"), tokenizers[0], said.append)
    assert len(said) == 1


def test_what_a_warm_start_was_trained_on_is_told_or_that_nobody_can_tell(trained, tsv):
    record = Record({"from": {"options": dataclasses.asdict(trained.config), "checksums": {}}})
    said, corpus = [], tsv("zz\tZZ\nab\tAB\n")
    options = {"split": "last", "validation_fraction": 0.5, "warm_start": "old"}
    config = dataclasses.replace(trained.config, corpus=str(corpus), **options)
    say_leaks(record, config, trained.model.source_tokenizer, said.append)
    assert said[0].startswith("old: cannot tell whether it was trained on the held-out pairs: ")


def test_rare_tokens_of_one_side_are_not_counted_on_the_other(tsv):
    corpus, said = tsv("".join(f"ab\t{chr(0x4E00 + n)}\n" for n in range(50)) + "aabb\tab\n"), []
    options = {"validation_fraction": 0, "units": 4, "shared_vocabulary": True, "min_frequency": 2}
    survey(Config(str(corpus), **options), say=said.append)
    assert said == ["target: 96% of the tokens are not in the vocabulary of 2"]


def test_features_in_place_of_the_target_are_said(tsv):
    path, options = tsv("go\tV;PST\twent\nsee\tV;PST\tsaw\n"), {"source_tokenizer": "char,;", "validation_fraction": 0}
    asked = "';' separates source features, but is often in targets: are the columns in order?"
    for columns in ((1, 2, 3), (1, 3, 2)):
        said = []
        survey(Config(str(path), columns=columns, **options), say=said.append)
        assert (asked in said) == (columns == (1, 3, 2))
