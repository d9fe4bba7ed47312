import dataclasses
import math
from types import SimpleNamespace

import pytest

from pipelines import CharTokenizer, ColumnsTokenizer, CorpusError, OptionError, Survey, corpus_errors
from seq2seq.building import configure
from seq2seq.config import Config
from seq2seq.epochs import count_batches, training_batches, training_length, training_pairs, validation_pairs


@pytest.mark.parametrize(
    ("pairs", "batch_size", "epochs"),
    [(100, 64, 100), (1000, 10, 14), (10_000, 100, 28), (10_000_000, 100, 8)],
)
def test_a_corpus_ten_times_as_large_is_trained_on_for_twice_as_many_updates(pairs, batch_size, epochs):
    steps = math.ceil(pairs / batch_size)
    assert training_length(Config(), pairs, steps) == (steps, epochs)
    assert training_length(Config(epochs=5, usual_updates=4000), pairs, steps) == (steps, 5)
    long = {100: 500, 1000: 20, 10_000: 40, 10_000_000: 1}[pairs]
    assert training_length(Config(usual_updates=2000, usual_epochs=(1, 500)), pairs, steps) == (steps, long)
    halves = training_length(Config(steps_per_epoch=math.ceil(steps / 2)), pairs, steps)
    assert math.prod(halves) == pytest.approx(steps * epochs, rel=0.05)  # as many updates


def test_the_usual_training_lengths_are_those_of_the_benchmarks():
    for preset, pairs, updates in (
        ("default", 3326, 1976),
        ("grapheme-to-phoneme", 800, 1300),
        ("grapheme-to-phoneme", 8000, 4000),
        ("inflection", 1000, 3200),
    ):
        steps = math.ceil(pairs / 64)
        assert math.prod(training_length(configure(preset), pairs, steps)) == updates


def test_the_bounds_of_the_usual_number_of_epochs_are_two_in_their_order():
    for wrong in ((8,), (9, 8), (1, 2, 3)):
        with pytest.raises(OptionError, match=r"usual_epochs=.*: expected two numbers of passes"):
            Config(usual_epochs=wrong)


@pytest.mark.parametrize(
    ("options", "steps", "epochs"),
    [
        ({"updates": 1}, 1, 1),  # less than a pass
        ({"updates": 14}, 3, 5),
        ({"updates": 14, "steps_per_epoch": 2}, 2, 7),
        ({"updates": 14, "steps_per_epoch": 100}, 14, 1),
        ({"usual_updates": 14, "usual_epochs": (1, 100), "steps_per_epoch": 100}, 14, 1),
        ({"epochs": 5, "steps_per_epoch": 2}, 2, 5),
    ],
)
def test_a_length_in_updates_is_rounded_to_epochs(options, steps, epochs):
    assert training_length(Config(**options), pairs=3, batches=3) == (steps, epochs)


def test_weights_draw_from_the_training_side_only(tsv):
    large = tsv("".join(f"large {n}\tx\n" for n in range(200)), "large.tsv")
    small = tsv("".join(f"small {n}\ty\n" for n in range(20)), "small.tsv")
    config = Config((str(large), str(small)), weights=(1, 1), validation_fraction=0.2)
    targets = [target for _, target in training_pairs(config, CharTokenizer(), epoch=0).as_numpy_iterator()]
    assert targets.count(b"x") == pytest.approx(160, abs=20)
    assert targets.count(b"y") == pytest.approx(targets.count(b"x"), rel=0.3)
    for other in ({"limit": 100}, {"split": "last"}):
        with pytest.raises(OptionError, match="weights cannot be used"):
            dataclasses.replace(config, **other)


@pytest.fixture
def seen(tsv):
    """A function (pairs seen, options) -> the targets that training reads next, in two passes over 12 pairs."""
    large = tsv("".join(f"{letter}\tx{letter}\n" for letter in "abcdefghi"), "large.tsv")
    small = tsv("j\tyj\nk\tyk\nl\tyl\n", "small.tsv")
    tokenizers = CharTokenizer("abcdefghijkl"), CharTokenizer("xyabcdefghijkl")
    model = SimpleNamespace(source_tokenizer=tokenizers[0], target_tokenizer=tokenizers[1])

    def read(already=0, pairs=12, **options):
        config = Config((str(large), str(small)), validation_fraction=0.0, batch_size=3, **options)
        batches = training_batches(SimpleNamespace(config=config, model=model, pairs=pairs), already)
        ids = [target.numpy() for _, target in batches.take((24 - already) // 3)]
        return [text.decode() for batch in ids for text in tokenizers[1].detokenize(batch).numpy()]

    return read


def test_each_pass_has_another_order_and_a_resumed_training_leaves_out_pairs_of_its_first_pass_only(seen):
    both = seen()
    first, second = both[:12], both[12:]
    assert first != second and sorted(first) == sorted(second) and len(set(first)) == 12
    assert seen(9) == both[9:]


def test_the_order_of_training_follows_from_the_seed(seen):
    assert seen(seed=1) != seen(seed=2)


def test_a_pass_whose_pairs_end_early_reads_them_again(seen):
    assert len(seen(pairs=20)) == 23  # a pass of 7 batches, one of which holds only 2 pairs, and a batch of the next


@pytest.mark.parametrize(
    ("options", "batches"), [({"batch_size": 5}, 3), ({"batch_tokens": 10}, 6), ({"batch_tokens": 64}, 1)]
)
def test_an_epoch_has_as_many_batches_as_hold_its_pairs(tsv, options, batches):
    config = Config(str(tsv("abcd\tx\n" * 11)), validation_fraction=0.0, **options)
    tokenizers = [CharTokenizer("abcd"), CharTokenizer("x")]
    # By tokens: 11 sources of 4 letters, and as many tokens more, since targets have END.
    assert count_batches(config, tokenizers, Survey(pairs=11, longer=44)) == batches


@pytest.mark.parametrize("options", [{}, {"limit": 8}, {"split": "last"}], ids=str)
def test_each_epoch_reads_files_in_another_order_unless_it_decides_which_pairs_are_trained_on(tsv, options):
    corpus = [str(tsv(f"first {number}\tx\nsecond {number}\ty\n", f"{number}.tsv")) for number in range(6)]
    config = Config(tuple(corpus), validation_fraction=0.2, **options)
    first, again, *others = (
        list(training_pairs(config, CharTokenizer(), epoch=epoch).as_numpy_iterator()) for epoch in (0, 0, 1, 2, 3)
    )
    assert first == again and all(sorted(other) == sorted(first) for other in others)
    assert all(other == first for other in others) == bool(options)
    pairs = training_pairs(dataclasses.replace(config, seed=1), CharTokenizer(), epoch=0)
    assert (list(pairs.as_numpy_iterator()) == first) == bool(options)  # of another seed


def test_the_held_out_corpus_must_have_the_source_columns_of_the_training_corpus(tsv):
    tokenizer = ColumnsTokenizer([CharTokenizer(), CharTokenizer()])
    config = Config("a.txt+b.txt+c.txt", validation=str(tsv("go\tV;PST\twent\n", "dev.tsv")))
    assert list(validation_pairs(config, tokenizer).as_numpy_iterator()) == [(b"go\tV;PST", b"went")]
    skipping = dataclasses.replace(config, validation=str(tsv("go\twent\n", "two.tsv")), on_bad_line="skip")
    assert list(validation_pairs(skipping, tokenizer)) == []
    config = dataclasses.replace(config, validation=str(tsv("go\twent\n", "two.tsv")))
    with pytest.raises(CorpusError, match=r"line 1: expected .* TAB target, found 2 columns"), corpus_errors():
        list(validation_pairs(config, tokenizer))


def test_the_held_out_corpus_is_read_by_the_columns_and_in_the_direction_of_the_training_corpus(tsv):
    dev = str(tsv("1\twent\tgo\n", "dev.tsv"))
    for how in ({"columns": (2, 3), "reverse": True}, {"columns": (3, 2)}):
        pairs = validation_pairs(Config("train.tsv", validation=dev, **how), CharTokenizer())
        assert list(pairs.as_numpy_iterator()) == [(b"go", b"went")]
