import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import CharTokenizer, OptionError, batch_pairs, read_pairs
from pipelines.batches import _length_order
from pipelines.tokens import END, REPLACEMENT, START, UNKNOWN


def texts(batches, tokenizers):
    """The pairs in each batch, as sets of strings."""
    return [
        {
            (source.decode(), target.decode())
            for source, target in zip(
                tokenizers[0].detokenize(tf.argmax(sources, -1)).numpy(),
                tokenizers[1].detokenize(tf.argmax(targets, -1)).numpy(),
                strict=True,
            )
        }
        for sources, targets in batches
    ]


def in_memory(lines):
    sources, targets = zip(*lines, strict=True)
    return tf.data.Dataset.from_tensor_slices((list(sources), list(targets)))


# Of lengths that no side shares with the other.
LINES = [("a" * (n * 7 % 40 + 1), "A" * (n * 11 % 40 + 1)) for n in range(320)]


def test_every_pair_comes_once_an_epoch_as_one_hot_rows(pairs, tokenizers):
    batches = batch_pairs(pairs, *tokenizers, batch_size=5)
    wanted = {(source.decode(), target.decode()) for source, target in pairs.as_numpy_iterator()}
    read = texts(batches, tokenizers)
    assert [len(batch) for batch in read].count(5) == 2 and sum(map(len, read)) == 12
    assert set().union(*read) == wanted
    for source, target in batches:
        assert source.dtype == target.dtype == tf.float32
        assert source.shape[2] == tokenizers[0].vocabulary_size
        assert set(np.unique(tf.reduce_sum(target, -1))) <= {0.0, 1.0}


def test_a_list_of_pairs_is_refused_with_a_hint(tokenizers):
    with pytest.raises(OptionError, match=r"pairs: expected a tf\.data\.Dataset, not a list; read_pairs makes one"):
        batch_pairs([("sol", "SOL")], *tokenizers)
    with pytest.raises(OptionError, match="target_tokenizer='char': expected a tokenizer, such as Char"):
        batch_pairs(read_pairs([("a", "b")]), CharTokenizer(), "char")
    with pytest.raises(OptionError, match="not a zip"):
        batch_pairs(zip(["sol"], ["SOL"], strict=True), *tokenizers)


def test_datasets_of_anything_but_pairs_of_strings_are_refused(pairs, tokenizers):
    weighted = pairs.map(lambda source, target: (source, target, 1.0))
    for wrong in (pairs.batch(2), weighted, pairs.map(lambda source, target: (target, 1))):
        with pytest.raises(OptionError, match=r"pairs: a dataset of .*; expected .source, target. scalar strings"):
            batch_pairs(wrong, *tokenizers)


def test_the_order_is_new_each_epoch_and_the_same_for_a_seed(tokenizers):
    def two_epochs(seed):
        batches = batch_pairs(in_memory(LINES[:12]), *tokenizers, batch_size=3, encoding="ids", seed=seed)
        return [source.numpy().tolist() for source, _ in batches.repeat(2)]

    epochs = two_epochs(1)
    assert epochs == two_epochs(1) != two_epochs(2)
    assert epochs[:4] != epochs[4:]


@pytest.mark.parametrize("size", [{"batch_size": 3}, {"batch_tokens": 20}])
def test_an_epoch_resumes_after_the_pairs_that_were_seen(tokenizers, size):
    pairs = in_memory([(f"{'a' * (n % 7 + 1)}{n}", "A" * (n * 5 % 9 + 1)) for n in range(40)])

    def batches(epoch, skip=0):
        return batch_pairs(pairs, *tokenizers, encoding="ids", window=12, seed=1, epoch=epoch, skip=skip, **size)

    def rest(epoch, skip):
        return batches(epoch, skip).map(lambda source, target: (epoch, skip, source, target))

    whole = [(source.numpy().tolist(), target.numpy().tolist()) for source, target in batches(2)]
    seen = np.cumsum([len(source) for source, _ in whole])
    assert seen[-1] == 40
    found = {}
    # In one dataset, which is traced once: all positions in an epoch, and the start of this and of another epoch.
    positions = [2] * len(seen) + [2, 3], [*seen, 0, 0]
    for epoch, skip, source, target in tf.data.Dataset.from_tensor_slices(positions).flat_map(rest):
        found.setdefault((int(epoch), int(skip)), []).append((source.numpy().tolist(), target.numpy().tolist()))
    for number, skip in enumerate(seen, start=1):
        assert found.get((2, skip), []) == whole[number:]
    assert found[2, 0] == whole != found[3, 0]


def test_each_window_of_an_epoch_has_an_order_of_its_own():
    letters = "abcdefghijklmnop"
    tokenizers, options = [CharTokenizer(letters)] * 2, {"encoding": "ids", "window": 8, "epoch": 0}
    batches = batch_pairs(in_memory(list(zip(letters, letters, strict=True))), *tokenizers, batch_size=8, **options)
    first, second = (source.numpy()[:, 0] for source, _ in batches)
    assert sorted(first + 8) == sorted(second) and (first + 8 != second).any()


def test_an_epoch_has_another_order_for_another_seed(tokenizers):
    def epoch(seed):
        batches = batch_pairs(in_memory(LINES[:12]), *tokenizers, 3, encoding="ids", seed=seed, epoch=0)
        return [source.numpy().tolist() for source, _ in batches]

    assert epoch(1) != epoch(2)


def test_pairs_are_skipped_only_in_the_order_of_a_given_epoch(tokenizers):
    for skip in (4, tf.constant(0)):
        with pytest.raises(OptionError, match="skip: needs epoch"):
            batch_pairs(in_memory(LINES), *tokenizers, skip=skip)
    with pytest.raises(OptionError, match="skip=-1: expected a whole number, at least 0"):
        batch_pairs(in_memory(LINES), *tokenizers, epoch=0, skip=-1)


def test_batches_hold_pairs_of_similar_length(tokenizers):
    pairs = in_memory([("a" * (n % 40 + 1), "A" * (n % 40 + 1)) for n in range(640)])
    for source, _ in batch_pairs(pairs, *tokenizers, batch_size=16, encoding="ids"):
        lengths = tf.math.count_nonzero(source, axis=1)
        assert tf.reduce_max(lengths) - tf.reduce_min(lengths) <= 1


def test_the_replacement_character_in_a_target_stands_only_for_unknown_tokens_of_its_source():
    source, target = CharTokenizer("a"), CharTokenizer(["a", REPLACEMENT])
    pairs = read_pairs([("aж", "жa"), ("aa", "жa")])
    ((_, ids),) = batch_pairs(pairs, source, target, batch_size=2, encoding="ids", shuffle=False)
    np.testing.assert_array_equal(ids, [[START, 5, 4, END], [START, UNKNOWN, 4, END]])


def test_at_most_a_twentieth_of_spa_eng_is_padding(spa_eng):
    source, target = CharTokenizer(["e"]), CharTokenizer(["e"])  # the unknown is not padding either
    batches = batch_pairs(read_pairs(spa_eng), source, target, 128, encoding="ids", seed=0)
    counts = batches.map(
        lambda *ids: [sum(map(tf.math.count_nonzero, ids)), sum(tf.size(side, tf.int64) for side in ids)]
    )
    real, size = np.sum(list(counts.as_numpy_iterator()), axis=0)
    assert 1 - real / size < 0.05


def test_ids_are_the_positions_of_the_one_hot_rows(pairs, tokenizers):
    one_hot, ids = (batch_pairs(pairs, *tokenizers, 5, encoding=encoding, seed=1) for encoding in ("one_hot", "ids"))
    for (source, target), (source_ids, target_ids) in zip(one_hot, ids, strict=True):
        assert source_ids.dtype == target_ids.dtype == tf.int32
        np.testing.assert_array_equal(tf.argmax(source, -1), source_ids)
        np.testing.assert_array_equal(tf.argmax(target, -1), target_ids)
    with pytest.raises(ValueError, match="expected 'one_hot', 'ids'"):
        batch_pairs(pairs, *tokenizers, encoding="one-hot")


@pytest.mark.parametrize("budget", [30, 200])
def test_a_token_budget_is_kept_and_used(tokenizers, budget):
    options = {"batch_tokens": budget, "encoding": "ids", "seed": 3}
    batches = [(s.numpy(), t.numpy()) for s, t in batch_pairs(in_memory(LINES), *tokenizers, **options)]
    sizes = [len(source) * max(source.shape[1], target.shape[1] - 1) for source, target in batches]
    assert all(size <= budget or len(source) == 1 for size, (source, _) in zip(sizes, batches, strict=True))
    assert sum(np.count_nonzero(source[:, 0]) for source, _ in batches) == len(LINES)
    assert budget < 200 or np.mean(sizes) > 140


@pytest.mark.parametrize(("options", "text"), [({"normal_form": "NFD"}, "한글"), ({"lowercase": True}, "½ß")])
def test_a_token_budget_is_kept_by_texts_that_their_normal_form_makes_longer(options, text):
    pairs = in_memory([(text * (1 + n % 9), "a") for n in range(40)])
    tokenizer = CharTokenizer(**options)
    tokenizer.adapt([text])
    read = batch_pairs(pairs, tokenizer, LETTERS[0], batch_tokens=100, encoding="ids")
    batches = [source.numpy() for source, _ in read]
    assert len(batches) > 5 and all(source.size <= 100 for source in batches)
    assert sum(np.count_nonzero(source[:, 0]) for source in batches) == 40


def test_no_thread_tunes_an_iteration_and_delays_its_end(pairs, tokenizers):
    for read in (pairs, batch_pairs(in_memory(LINES), *tokenizers), batch_pairs(pairs, *tokenizers).repeat()):
        assert read.options().autotune.enabled is False


LETTERS = CharTokenizer("abc"), CharTokenizer("xyz")
OPTIONS = [
    {},
    {"batch_tokens": 20},
    {"shuffle": False},
    {"window": 10},
    {"window": 10, "batch_tokens": 20},
]


@functools.cache
def letters(number):
    """Lines to fill in, and a dataset of their batches, which is traced once."""
    lines = []
    column = tf.TensorSpec([], tf.string)
    pairs = tf.data.Dataset.from_generator(lambda: iter(lines), output_signature=(column, column))
    return lines, batch_pairs(pairs, *LETTERS, 7, encoding="ids", **OPTIONS[number])


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.text("abc", min_size=1), st.text("xyz", min_size=1)), max_size=60),
    st.integers(0, len(OPTIONS) - 1),
)
def test_no_pair_is_lost_repeated_or_mismatched(wanted, number):
    lines, batches = letters(number)
    lines[:] = wanted
    read = []
    for ids in batches:
        sides = (tokenizer.detokenize(side).numpy() for tokenizer, side in zip(LETTERS, ids, strict=True))
        read += zip(*sides, strict=True)
    encoded = [(source.encode(), target.encode()) for source, target in wanted]
    assert sorted(pair for pair in read if pair != (b"", b"")) == sorted(encoded)


@pytest.mark.parametrize("size", ["batch_size", "batch_tokens", "longest_source", "window"])
def test_a_size_below_one_is_refused(tokenizers, size):
    with pytest.raises(OptionError, match=f"{size}=0: expected a whole number, at least 1"):
        batch_pairs(tf.data.Dataset.from_tensors(("a", "A")), *tokenizers, **{size: 0})


def test_a_seed_below_zero_is_refused(tokenizers):
    with pytest.raises(OptionError, match="seed=-1: expected a whole number, at least 0"):
        batch_pairs(tf.data.Dataset.from_tensors(("a", "A")), *tokenizers, seed=-1)


def test_sources_are_in_rising_and_falling_order_by_turns_so_that_neighbours_are_similar():
    order = _length_order(tf.constant([1, 2, 1, 2, 1, 2]), tf.constant([0, 1, 2, 3, 4, 4]))
    assert order.numpy().tolist() == [0, 1, 3, 2, 4, 5]
    assert _length_order(tf.constant([2, 2]), tf.constant([2, 0])).numpy().tolist() == [1, 0]


def test_long_texts_are_ordered_by_length_too():
    assert _length_order(tf.fill([3], 1), tf.constant([70_000, 2, 4])).numpy().tolist() == [1, 2, 0]
    assert _length_order(tf.constant([70_000, 2, 4]), tf.constant([70_000, 2, 4])).numpy().tolist() == [1, 2, 0]
