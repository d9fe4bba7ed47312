import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import CharTokenizer, OptionError, batch_pairs, read_pairs
from seq2seq import teacher_forcing


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


def test_the_order_is_new_each_epoch_and_the_same_for_a_seed(pairs, tokenizers):
    epochs = [
        texts(batch_pairs(pairs, *tokenizers, batch_size=3, seed=seed).repeat(2), tokenizers) for seed in (1, 1, 2)
    ]
    assert epochs[0] == epochs[1] != epochs[2]
    assert epochs[0][:4] != epochs[0][4:]


@pytest.mark.parametrize("size", [{"batch_size": 3}, {"batch_tokens": 20}])
def test_an_epoch_goes_on_where_it_was_left(tokenizers, size):
    lines = [(f"{'a' * (n % 7 + 1)}{n}", "A" * (n * 5 % 9 + 1)) for n in range(40)]
    pairs = tf.data.Dataset.from_tensor_slices(tuple(map(list, zip(*lines, strict=True))))

    def batches(**position):
        found = batch_pairs(pairs, *tokenizers, encoding="ids", window=12, seed=1, **size, **position)
        return [(source.numpy().tolist(), target.numpy().tolist()) for source, target in found]

    whole = batches(epoch=2)
    assert whole == batches(epoch=tf.constant(2)) != batches(epoch=3)
    seen = np.cumsum([len(source) for source, _ in whole])
    assert seen[-1] == len(lines)
    for number, skip in enumerate(seen, start=1):
        assert batches(epoch=2, skip=skip) == whole[number:]


def test_batches_hold_pairs_of_like_length(tsv, tokenizers):
    lines = [f"{'a' * (n % 40 + 1)}\t{'A' * (n % 40 + 1)}\n" for n in range(640)]
    pairs = read_pairs(tsv("".join(lines)))
    for source, _ in batch_pairs(pairs, *tokenizers, batch_size=16):
        lengths = tf.reduce_sum(tf.reduce_max(source, -1), 1)
        assert tf.reduce_max(lengths) - tf.reduce_min(lengths) <= 1


def padding(batches):
    real = sum(int(tf.math.count_nonzero(ids)) for batch in batches for ids in batch)
    return 1 - real / sum(int(tf.size(ids)) for batch in batches for ids in batch)


def test_at_most_a_twentieth_of_spa_eng_is_padding(spa_eng):
    pairs = read_pairs(spa_eng)
    source, target = CharTokenizer(["e"]), CharTokenizer(["e"])  # what is unknown is not padding either
    assert padding(batch_pairs(pairs, source, target, 128, encoding="ids", seed=0)) < 0.05


def test_ids_are_the_positions_of_the_one_hot_rows(pairs, tokenizers):
    one_hot, ids = (batch_pairs(pairs, *tokenizers, 5, encoding=encoding, seed=1) for encoding in ("one_hot", "ids"))
    for (source, target), (source_ids, target_ids) in zip(one_hot, ids, strict=True):
        assert source_ids.dtype == target_ids.dtype == tf.int32
        np.testing.assert_array_equal(tf.argmax(source, -1), source_ids)
        np.testing.assert_array_equal(tf.argmax(target, -1), target_ids)
    with pytest.raises(ValueError, match="expected 'one_hot', 'ids'"):
        batch_pairs(pairs, *tokenizers, encoding="one-hot")


@pytest.mark.parametrize("budget", [30, 200])
@pytest.mark.parametrize("multiple", [None, 4])
def test_a_token_budget_is_kept_and_used(tsv, tokenizers, budget, multiple):
    lines = [f"{'a' * (n * 7 % 40 + 1)}\t{'A' * (n * 11 % 40 + 1)}\n" for n in range(640)]
    batches = list(
        batch_pairs(
            read_pairs(tsv("".join(lines))),
            *tokenizers,
            batch_tokens=budget,
            encoding="ids",
            pad_to_multiple=multiple,
            seed=3,
        )
    )
    sizes = [source.shape[0] * max(source.shape[1], target.shape[1] - 1) for source, target in batches]
    assert all(size <= budget or source.shape[0] == 1 for size, (source, _) in zip(sizes, batches, strict=True))
    assert sum(int(tf.math.count_nonzero(source[:, 0])) for source, _ in batches) == 640
    if budget == 200 and not multiple:
        assert np.mean(sizes) > 150


def test_static_shapes_are_few_and_the_rows_that_fill_them_weigh_nothing(tsv, tokenizers):
    lines = [f"{'a' * (n * 7 % 40 + 1)}\t{'A' * (n * 11 % 40 + 1)}\n" for n in range(100)]
    batches = list(batch_pairs(read_pairs(tsv("".join(lines))), *tokenizers, 16, pad_to_multiple=8))
    assert {source.shape[0] for source, _ in batches} == {16}
    assert {source.shape[1] % 8 for source, _ in batches} == {(target.shape[1] - 1) % 8 for _, target in batches} == {0}
    weights = [teacher_forcing(source, target)[2] for source, target in batches]
    assert sum(float(tf.reduce_sum(w)) for w in weights) == sum(n * 11 % 40 + 2 for n in range(100))


def test_no_iteration_waits_in_the_end_for_a_thread_that_tunes_it(pairs, tokenizers):
    own = tf.data.Dataset.from_tensor_slices((["sol"], ["SOL"]))
    for read in (pairs, batch_pairs(own, *tokenizers), batch_pairs(pairs, *tokenizers).repeat()):
        assert read.options().autotune.enabled is False


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.tuples(st.text("abc", min_size=1), st.text("xyz", min_size=1)), max_size=60),
    st.sampled_from(
        [
            {},
            {"batch_tokens": 20},
            {"pad_to_multiple": 4},
            {"shuffle": False},
            {"window": 10},
            {"window": 10, "batch_tokens": 20},
        ]
    ),
)
def test_no_pair_is_lost_repeated_or_mismatched(lines, options):
    source, target = CharTokenizer("abc"), CharTokenizer("xyz")
    sources, targets = zip(*lines, strict=True) if lines else ([], [])
    dataset = tf.data.Dataset.from_tensor_slices((tf.constant(sources, tf.string), tf.constant(targets, tf.string)))
    read = []
    for source_ids, target_ids in batch_pairs(dataset, source, target, 7, encoding="ids", **options):
        read += zip(source.detokenize(source_ids).numpy(), target.detokenize(target_ids).numpy(), strict=True)
    wanted = [(source.encode(), target.encode()) for source, target in lines]
    assert sorted(pair for pair in read if pair != (b"", b"")) == sorted(wanted)


@pytest.mark.parametrize("size", ["batch_size", "batch_tokens", "pad_to_multiple", "window"])
def test_a_size_below_one_is_refused(pairs, tokenizers, size):
    with pytest.raises(OptionError, match=f"{size}=0: expected a whole number, at least 1"):
        batch_pairs(pairs, *tokenizers, **{size: 0})
