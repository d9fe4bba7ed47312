import dataclasses
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import decoded, ids_of

from pipelines import CharTokenizer, ColumnsTokenizer, OptionError, SeparatorTokenizer, Tokenizer, batch_pairs
from pipelines.tokens import END, PADDING, spelled
from seq2seq import (
    BeamSearch,
    Decoder,
    Greedy,
    Sampling,
    Seq2Seq,
    Strategy,
)
from seq2seq.texts import first_different


def test_sources_with_a_wrong_number_of_columns_are_refused():
    source = ColumnsTokenizer([CharTokenizer("abc"), SeparatorTokenizer(";", ["V", "PST"])], ["lemma", "features"])
    model = Seq2Seq(source, CharTokenizer("abc"), units=8, attention="dot")
    assert model.translate(["a\tV", "\t"]).shape == 2
    for wrong, found in (("a", 1), ("a\tV\tPST", 3)):
        message = f": text 2: expected 2 columns: lemma TAB features, found {found}"
        for refuses in (model.translate, model.attention, model.encode, lambda texts: model.score(texts, texts)):
            with pytest.raises(OptionError, match=message):
                refuses(["a\tV", wrong])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["greedy", BeamSearch(3), "sampling"], ids=str)
def test_a_translation_depends_on_neither_its_batch_nor_its_place(upper_case, strategy):
    model, words = upper_case
    texts = [*words, "", "中🙂", "sol", "a" * 40, "gato\0"]
    together = decoded(model.translate(texts, strategy, seed=5))
    assert together == decoded(model.translate(texts, strategy, seed=5, batch_size=3))
    # What sampling draws for a text follows from the seed and the text's place.
    assert together == [decoded(model.translate([text], strategy, seed=(5, n)))[0] for n, text in enumerate(texts)]
    if strategy != "sampling":
        assert together[::-1] == decoded(model.translate(texts[::-1], strategy))


@pytest.mark.slow
def test_padding_a_batch_differently_gives_the_same_translations(upper_case):
    model, words = upper_case
    ids = model.source_tokenizer.tokenize(words)
    for strategy in (Greedy(), BeamSearch(4)):
        texts = model.target_tokenizer.detokenize(model.decode(ids, strategy).ids[:, 0])
        wider = model.target_tokenizer.detokenize(model.decode(tf.pad(ids, [[0, 0], [0, 13]]), strategy).ids[:, 0])
        assert decoded(texts) == decoded(wider) == [word.upper() for word in words]


def test_translate_takes_one_string_a_list_an_array_a_tensor_and_nothing(shared_model):
    one = shared_model.translate("sol", max_length=5)
    assert one.shape == () and one.dtype == tf.string
    for texts in (["sol"], np.array(["sol"]), tf.constant(["sol"]), tf.data.Dataset.from_tensors("sol")):
        assert shared_model.translate(texts, max_length=5)[0] == one
    assert shared_model.translate([]).shape == (0,)


def test_translate_and_score_take_what_gives_texts_in_an_order_and_refuse_the_rest_by_name(shared_model):
    texts = ["sol", "mar"]
    expected = shared_model.translate(texts).numpy().tolist()
    for given in ((text for text in texts), iter(texts), map(str, texts), dict.fromkeys(texts).keys()):
        assert shared_model.translate(given).numpy().tolist() == expected
    scores = shared_model.score(iter(texts), iter(texts)).numpy().tolist()
    assert scores == shared_model.score(texts, texts).numpy().tolist()
    for wrong, message in (
        (set(texts), "a set has no order"),
        ({"sol": 1}, "a dict has no order"),
        *((wrong, "expected a string, or a list of strings") for wrong in (None, 3, ["sol", None], [["sol"], ["mar"]])),
    ):
        with pytest.raises(OptionError, match=f"texts: {message}"):
            shared_model.translate(wrong)
        with pytest.raises(OptionError, match=f"targets: {message}"):
            shared_model.score(texts, wrong)
    with pytest.raises(OptionError, match="put a single string into a list"):
        shared_model.score("sol", "sol")
    with pytest.raises(OptionError, match="put a single string into a list"):
        shared_model.score(["s"], "s")


def test_translate_is_traced_once_for_each_strategy_whatever_the_shapes(model):
    for strategy in ("greedy", "beam", "sampling"):
        for texts in (["a"], ["b" * n for n in range(7)], [""], []):
            for lengths in ({"max_length": 4}, {"min_length": 2}):
                model.translate(texts, strategy, batch_size=3, seed=len(texts), **lengths)
    assert model._translate_with.cache_info().currsize == 3
    assert model._translate_with(Greedy(), False, True, 1, False, False).experimental_get_tracing_count() == 1
    assert model._translate_with(BeamSearch(), False, True, 1, False, False).experimental_get_tracing_count() == 1
    assert model._graph_of.cache_info().currsize == 0


def test_a_beam_of_one_is_greedy_and_a_wider_one_finds_likelier_texts(shared_model):
    texts = ["sol", "niño", "", "gatogato"]
    assert decoded(shared_model.translate(texts, BeamSearch(1))) == decoded(shared_model.translate(texts))
    one, nine = (shared_model.translate(texts, BeamSearch(n, length_penalty=0.0), details=True) for n in (1, 9))
    ended = (one.stopped[:, 0] == b"end") & (nine.stopped[:, 0] == b"end")
    assert (nine.scores[:, 0] >= one.scores[:, 0] - 1e-4)[ended].numpy().all()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["greedy", BeamSearch(4, n_best=4), "sampling"], ids=str)
def test_scores_are_those_of_the_texts(upper_case, strategy):
    model, words = upper_case
    texts, scores, ranked_by, stopped, ids = model.translate(words, strategy, details=True)
    assert texts.shape == scores.shape == ranked_by.shape == stopped.shape == ids.shape[:2]
    for column in range(texts.shape[1]):
        # Of the very tokens, those are right too that did not end by themselves, and texts with unknown tokens.
        np.testing.assert_allclose(model.score(words, ids[:, column]), scores[:, column], rtol=1e-3, atol=1e-3)
        ended = (stopped[:, column] == b"end").numpy()
        assert ended[: len(words)].any()
        again = model.score(words, texts[:, column]).numpy()
        np.testing.assert_allclose(again[ended], scores[:, column].numpy()[ended], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("penalty", [0.0, 0.6])
def test_hypotheses_stand_in_the_order_of_what_ranks_them(model, penalty):
    model.decoder.output_layer.bias.assign(tf.one_hot(END, model.target_tokenizer.vocabulary_size))  # some must end
    found = model.translate(["sol", "mar", "niño"], BeamSearch(6, penalty, n_best=6), details=True)
    ended = (found.stopped == b"end").numpy()
    assert ended.sum() > 6
    for row in range(3):
        assert np.all(np.diff(found.ranked_by[row][ended[row]]) <= 0)
    lengths = np.vectorize(len)([[text.decode() for text in row] for row in found.texts.numpy()]) + 1
    expected = found.scores / ((5 + lengths) / 6) ** penalty
    np.testing.assert_allclose(found.ranked_by.numpy()[ended], expected.numpy()[ended], rtol=1e-5)


@keras.saving.register_keras_serializable("tests")
class Pieces(Tokenizer):
    """A tokenizer of letters. Its vocabulary may hold longer pieces, so one text can be several lists of tokens."""

    def split(self, texts):
        return tf.strings.unicode_split(texts, "UTF-8")


@keras.saving.register_keras_serializable("tests")
class Branching(Tokenizer):
    """A tokenizer of letters that splits by a branch on a tensor, for which AutoGraph is needed."""

    @tf.function
    def split(self, texts):
        if tf.size(texts) > 1:
            texts = tf.strings.lower(texts)
        return tf.strings.unicode_split(texts, "UTF-8")


def test_a_tokenizer_may_branch_on_a_tensor(tokenizers):
    model = Seq2Seq(Branching(["s", "o", "l"]), tokenizers[1], units=8)
    assert model.translate(["SOL", "sol"], max_length=3).shape == (2,)
    assert model.score(["SOL", "sol"], ["S", "S"]).shape == (2,)
    assert model.encode(["SOL", "sol"]).source.shape == (2, 3)


def test_the_n_best_are_different_texts(tokenizers):
    keras.utils.set_random_seed(1)
    pieces = Pieces(["a", "b", "aa", "ab", "ba", "bb"])
    model = Seq2Seq(tokenizers[0], pieces, units=8)
    strategy, words = BeamSearch(6, n_best=6), ["sol", "mar", "niño"]
    every = model.decode(model.source_tokenizer.tokenize(words), strategy, max_length=22)
    every = [pieces.detokenize(ids).numpy().tolist() for ids in every.ids]
    found = model.translate(words, strategy, max_length=22, details=True)
    for row, texts in enumerate(found.texts.numpy().tolist()):
        different = [text for text in dict.fromkeys(every[row])][:6]
        assert len(different) < 12 and len(set(every[row])) < len(every[row])
        assert texts[: len(different)] == different


def test_if_too_few_hypotheses_are_different_empty_ones_follow():
    texts = tf.constant([["a", "a", "b", "a"], ["a", "b", "c", "b"]])
    scores, ranked_by = tf.constant([[-1.0, -2, -3, -4]] * 2), tf.constant([[-0.1, -0.2, -0.3, -0.4]] * 2)
    stopped, ids = tf.fill([2, 4], "end"), tf.constant([[[4, END], [5, END], [6, END], [7, END]]] * 2)
    found = first_different(3, texts, scores, ranked_by, stopped, ids)
    right = (
        [[b"a", b"b", b""], [b"a", b"b", b"c"]],
        np.float32([[-1, -3, -np.inf], [-1, -2, -3]]).tolist(),
        np.float32([[-0.1, -0.3, -np.inf], [-0.1, -0.2, -0.3]]).tolist(),
        [[b"end", b"end", b"limit"], [b"end"] * 3],
        [[[4, END], [6, END], [PADDING, PADDING]], [[4, END], [5, END], [6, END]]],
    )
    assert [part.numpy().tolist() for part in found] == list(right)


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("strategy", [Greedy(), BeamSearch(3, n_best=2), Sampling(n_best=2)], ids=repr)
def test_translations_begin_with_their_prefixes_and_score_as_the_model_scores_them(model, strategy, compiles):
    model.compiles_decoding = compiles
    texts, prefixes = ["sol", "mar", "gatonube", "", "x"], ["S", "", "GATONUBEGATO", "ÑO", "TREN"]
    found = model.translate(texts, strategy, prefixes=prefixes, details=True, max_length=14, seed=3, batch_size=2)
    for row, prefix in enumerate(prefixes):
        assert all(text.decode().startswith(prefix) for text in found.texts[row].numpy())
    for column in range(strategy.n_best):
        ended = (found.stopped[:, column] == b"end").numpy()
        again = model.score(texts, found.texts[:, column]).numpy()
        np.testing.assert_allclose(again[ended], found.scores[:, column].numpy()[ended], rtol=1e-3, atol=1e-3)
    if compiles:  # which changes how steps are run, not what a prefix is
        return
    free = model.translate(texts, strategy, details=True, max_length=14, seed=3)
    np.testing.assert_array_equal(free.texts[1], found.texts[1])
    # A prefix is never cut.
    long = model.translate("sol", strategy, prefixes="SOLSOL", details=True, max_length=2)
    assert all(re.fullmatch("SOLSOL.?", text.decode()) for text in long.texts.numpy().ravel())


def test_prefixes_of_all_lengths_are_translated_by_one_trace(model):
    for prefixes in (["S"], ["", "SOL" * 9, "M"], [""], []):
        model.translate(["sol"] * len(prefixes), prefixes=prefixes, max_length=3)
    assert model.translate("sol", prefixes="SO", max_length=3).shape == ()
    assert model._translate_with.cache_info().currsize == 1
    assert model._translate_with(Greedy(), False, True, 1, True, False).experimental_get_tracing_count() == 1


def test_prefixes_that_cannot_be_are_refused(shared_model):
    for texts, prefixes, message in (
        (["sol", "mar"], ["S"], "prefixes: expected as many as texts, 2, not 1"),
        (["sol"], "S", "prefixes: expected as many as texts, 1, not one string"),
        ("sol", ["S"], "prefixes: expected as many as texts, one string, not 1"),
        (["sol", "mar"], ["S", "Mxay"], "prefixes: text 2: the prefix 'Mxay' has tokens .*: 'x', 'a', 'y'$"),
        (["sol"], [3], "prefixes: expected a string, or a list of strings"),
        (["sol"], {"S"}, "prefixes: a set has no order"),
    ):
        with pytest.raises(OptionError, match=message):
            shared_model.translate(texts, prefixes=prefixes)


@dataclasses.dataclass(frozen=True)
class Several(Strategy):
    """A strategy that finds each of `samples` samples twice; `n_best` of them are wanted."""

    samples: int = 4
    n_best: int = 3

    def search(self, step_for, state, constraints, loop=None):
        found = Sampling(n_best=self.samples).search(step_for, state, constraints, loop)
        return found._replace(**{part: tf.repeat(getattr(found, part), 2, axis=1) for part in ("ids", "stopped")})


def test_of_more_hypotheses_than_wanted_the_first_different_texts_are_taken(model):
    words, how = ["sol", "mar"], {"seed": 5, "min_length": 4, "max_length": 9}
    every = model.translate(words, Several(n_best=8), details=True, **how)
    assert every.texts.shape == (2, 8) and (every.texts[:, 0] == every.texts[:, 1]).numpy().all()  # equal ones too
    found = model.translate(words, Several(), details=True, **how)
    np.testing.assert_array_equal(found.texts, every.texts[:, :6:2])
    np.testing.assert_allclose(found.scores, every.scores[:, :6:2], rtol=1e-5)
    assert model.translate(words, Several(), **how).numpy().tolist() == found.texts.numpy().tolist()
    one = model.translate(words, Several(n_best=1), **how)
    np.testing.assert_array_equal(one, found.texts[:, 0])


def test_a_seed_of_numpy_is_the_number_that_it_is(shared_model):
    plain, small, large = (
        shared_model.translate(["sol"] * 5, "sampling", seed=(of(7), of(3))) for of in (int, np.int32, np.uint64)
    )
    np.testing.assert_array_equal(plain, small)
    np.testing.assert_array_equal(plain, large)


def test_no_sample_of_a_seed_is_one_of_another_seed(shared_model):
    drawn = [text for seed in range(3) for text in decoded(shared_model.translate(["sol"] * 50, "sampling", seed=seed))]
    assert len(set(drawn)) > 140


def test_details_without_scores_are_the_same_otherwise(shared_model):
    for strategy, scored in (("greedy", False), ("sampling", False), ("beam", True)):
        whole, quick = (shared_model.translate(["sol", "mar"], strategy, details=True, scores=s) for s in (True, False))
        assert np.isfinite(whole.scores).all() and np.isfinite(quick.scores).all() == scored
        assert np.isnan(quick.ranked_by).all() != scored
        for name in ("texts", "stopped", "ids"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(quick, name))


def test_samples_are_many_more_than_tokens_if_wanted_and_the_first_is_that_drawn_alone(shared_model):
    texts = shared_model.translate(["sol", "mar"], Sampling(n_best=60), seed=4, max_length=2)
    assert texts.shape == (2, 60) and shared_model.target_tokenizer.vocabulary_size < 60
    assert len(set(texts[0].numpy())) < 60  # equal ones are kept
    np.testing.assert_array_equal(texts[:, 0], shared_model.translate(["sol", "mar"], "sampling", seed=4, max_length=2))


@keras.saving.register_keras_serializable("tests")
class Growing(Decoder):
    """A decoder whose state grows: at its end are the ids of all tokens so far."""

    def start(self, encoded):
        encoded, state = super().start(encoded)
        return encoded, [*state, [tf.zeros([tf.shape(encoded.memory)[0], 0], tf.int32)]]

    def call(self, target, encoded, state, training=False):
        *state, [past] = state
        logits, state = super().call(target, encoded, state, training=training)
        return logits, [*state, [tf.concat([past, target], axis=1)]]


@pytest.mark.parametrize("gpu", [False, True])
def test_decoding_is_compiled_by_default_on_a_gpu_unless_the_state_grows(tokenizers, gpu, monkeypatch):
    monkeypatch.setattr("seq2seq.model.on_gpu", lambda: gpu)
    assert Seq2Seq(*tokenizers, units=8).compiles_decoding == gpu
    assert not Seq2Seq(*tokenizers, decoder=Growing, units=8).compiles_decoding


def test_strings_in_parts_are_the_same(shared_model):
    texts = tf.constant(["sol", "m", "nube", "", "árbolárbol", "rey", "pan"])
    whole, parts = (shared_model.translate_batch(texts, Greedy(), parts=parts) for parts in (1, 3))
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("texts", ["sol", ["sol", "mar", ""]], ids=["one", "several"])
def test_what_xla_refuses_is_decoded_uncompiled_and_said_once(tokenizers, texts):
    model = Seq2Seq(*tokenizers, decoder=Growing, units=8)
    right = model.translate(texts, BeamSearch(2), max_length=20)
    model.compiles_decoding = True
    with pytest.warns(UserWarning, match="decoding continues uncompiled"):
        np.testing.assert_array_equal(model.translate(texts, BeamSearch(2), max_length=20), right)
    np.testing.assert_array_equal(model.translate(texts, BeamSearch(2), max_length=20), right)


def test_score_is_the_sum_over_the_tokens_and_end(shared_model):
    source, target = (
        shared_model.source_tokenizer.tokenize(["sol"]),
        shared_model.target_tokenizer.tokenize(["SOL"], start_end=True),
    )
    logits = shared_model((source, target[:, :-1])).numpy()[0].astype("float64")
    nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(4), target[0, 1:]]
    np.testing.assert_allclose(shared_model.score(["sol", "m", "sol"], ["SOL", "A", "SOL"])[2], -nats.sum(), rtol=1e-5)
    with pytest.raises(OptionError, match="targets: expected as many as sources, 2"):
        shared_model.score(["a", "b"], ["A"])

    each = shared_model.score(["sol", "m", "sol"], ["SOL", "", "SOL"], batch_size=2, per_token=True)
    assert each.dtype == tf.float32 and each.row_lengths().numpy().tolist() == [4, 1, 4]
    np.testing.assert_allclose(each[0], -nats, rtol=1e-5)
    scores = shared_model.score(["sol", "m", "sol"], ["SOL", "", "SOL"])
    np.testing.assert_allclose(tf.reduce_sum(each, axis=1), scores, rtol=1e-6)
    assert shared_model.score([], [], per_token=True).shape == (0, None) and shared_model.score([], []).shape == (0,)


def test_ids_are_scored_and_looked_at_as_they_are_with_and_without_end(shared_model):
    whole = shared_model.target_tokenizer.tokenize(["SOL", "MAR"], start_end=True)[:, 1:]
    ids = np.pad(whole.numpy(), [[0, 0], [0, 5]])  # padding more, as a longer row beside them would give them
    ids[1, 3] = PADDING  # no END
    each = shared_model.score(["sol", "mar"], ids, per_token=True)
    right = shared_model.score(["sol", "mar"], ["SOL", "MAR"], per_token=True)
    np.testing.assert_allclose(each.flat_values, right.flat_values[:-1], rtol=1e-5)
    found = shared_model.attention(["sol", "mar"], ids)
    assert [alignment.target for alignment in found] == [["S", "O", "L", "[END]"], ["M", "A", "R"]]
    np.testing.assert_allclose(found[1].weights, shared_model.attention(["mar"], ["MAR"])[0].weights[:3], rtol=1e-5)
    with pytest.raises(OptionError, match="targets: expected as many as sources, 1, not 2"):
        shared_model.attention(["sol"], ids)


def test_encode_gives_what_the_decoder_looks_at(shared_model):
    found = shared_model.encode(text for text in ("sol", "m"))
    ids = shared_model.source_tokenizer.tokenize(["sol", "m"])
    np.testing.assert_array_equal(found.source, ids)
    np.testing.assert_array_equal(found.mask, [[True] * 3, [True, False, False]])
    for one, other in zip(
        *(tf.nest.flatten([e.memory, e.state]) for e in (found, shared_model.encoder(ids))), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert found.memory.shape == (2, 3, 16) and shared_model.encode("sol").memory.shape == (1, 3, 16)
    for wrong, message in (
        ([], "expected one or more"),
        ({"sol"}, "a set has no order"),
        ([1], "expected a string"),
    ):
        with pytest.raises(OptionError, match=f"texts: {message}"):
            shared_model.encode(wrong)


def test_a_translation_is_as_long_as_it_was_told_to_be(shared_model):
    texts = ["sol", "niño"]
    for strategy in ("greedy", "beam", "sampling"):
        long, short = (
            shared_model.translate(texts, strategy, details=True, **o) for o in ({"min_length": 9}, {"max_length": 2})
        )
        assert (tf.strings.length(long.texts, "UTF8_CHAR") >= 9).numpy().all()
        assert (tf.strings.length(short.texts, "UTF8_CHAR") <= 2).numpy().all()
        assert set(short.stopped.numpy().ravel()) <= {b"limit", b"end"}


def test_a_translation_can_end_after_a_least_length_beyond_its_limit(model, monkeypatch):
    monkeypatch.setattr("seq2seq.decoding.LEAST_REPETITION", 1000)  # an untrained model may repeat itself
    model.decoder.output_layer.bias.assign(100 * tf.one_hot(END, model.decoder.output_layer.bias.shape[0]))
    limit = int(model.limits(model.source_tokenizer.tokenize(["sol"]))[0])
    for strategy in ("greedy", "beam"):
        found = model.translate(["sol"], strategy, min_length=limit, details=True)
        assert found.stopped.numpy().tolist() == [[b"end"]] and found.ids[0, 0, limit] == END


def test_in_a_graph_the_model_translates_a_batch_and_says_so(model):
    texts = tf.data.Dataset.from_tensor_slices(["sol", "mar"]).batch(2)
    with pytest.raises(Exception, match=r"texts: not in a graph .* call `translate_batch`"):
        texts.map(model.translate)
    (found,) = texts.map(lambda some: model.translate_batch(some, Greedy())[0])
    np.testing.assert_array_equal(found[:, 0], model.translate(["sol", "mar"]))


def test_n_best_and_details_say_more_of_each_text(shared_model):
    found = shared_model.translate(["sol", "mar"], BeamSearch(5, n_best=3), max_length=6)
    assert found.shape == (2, 3) and len(set(found[0].numpy())) == 3
    assert shared_model.translate("sol", BeamSearch(5, n_best=3), max_length=6).shape == (3,)
    assert shared_model.translate("sol", details=True, max_length=6).texts.shape == (1, 1)
    assert shared_model.translate([], "beam", details=True).scores.shape == (0, 1)


def test_what_cannot_be_asked_of_translate_is_refused_by_name(shared_model):
    tokens = shared_model.target_tokenizer.vocabulary_size - END
    assert shared_model._checked_strategy(BeamSearch(tokens)).width == tokens
    for options, message in (
        ({"strategy": BeamSearch(tokens + 1)}, f"width={tokens + 1}: wider than .*, which has {tokens} tokens"),
        ({"strategy": "beem"}, "strategy='beem'.*did you mean 'beam'"),
        ({"min_length": 3, "max_length": 2}, "max_length=2: expected a whole number, at least 3"),
        ({"max_length": 0}, "max_length=0: expected a whole number, at least 1 and at most 100,000, or None"),
        ({"max_length": 2**31}, "max_length=2147483648: expected .* at most 100,000, or None"),
        ({"min_length": -1}, "min_length=-1: expected a whole number, at least 0"),
        ({"min_length": 100_001}, "min_length=100001: expected a whole number, at least 0 and at most 100,000"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number, at least 1"),
        ({"seed": -1}, "seed=-1: expected a whole number, at least 0"),
        ({"seed": (5, -1)}, "seed=-1: expected a whole number, at least 0"),
        ({"seed": (5, 2**31)}, "seed=2147483648: expected a whole number, at least 0 and below 2,147,483,648"),
        ({"seed": (5, 0, 1)}, r"seed=\(5, 0, 1\): expected a whole number"),
        ({"seed": 10**20}, "seed=100000000000000000000: expected a whole number"),
    ):
        with pytest.raises(OptionError, match=message):
            shared_model.translate(["sol"], **options)
    for size in (0, -3, 2.5):
        for compute in (shared_model.score, shared_model.attention):
            with pytest.raises(OptionError, match=f"batch_size={size}: expected a whole number, at least 1"):
                compute(["sol"], ["SOL"], batch_size=size)
    with pytest.raises(OptionError, match="Decoder has no attention weights"):
        Seq2Seq(shared_model.source_tokenizer, shared_model.target_tokenizer, units=8).attention(["sol"])
    with pytest.raises(OptionError, match=r"option='unit'.*did you mean 'units'"):
        Seq2Seq(shared_model.source_tokenizer, shared_model.target_tokenizer, unit=8)


@pytest.mark.slow
def test_attention_follows_the_source(upper_case):
    model, words = upper_case
    for word, alignment in zip(words, model.attention(words), strict=True):
        assert alignment.source == list(word) and alignment.target == [*word.upper(), "[END]"]
        np.testing.assert_allclose(alignment.weights.sum(axis=1), np.ones(len(word) + 1), atol=1e-5)
    (given,) = model.attention(["sol"], ["MAR"])
    assert given.target == ["M", "A", "R", "[END]"] and given.weights.shape == (4, 3)


def test_predict_translates_batches(shared_model, pairs, tokenizers):
    batches = batch_pairs(pairs.map(lambda source, _: (source, source)), tokenizers[0], tokenizers[0], 5, shuffle=False)
    sources = [text for _, again in batches for text in decoded(tokenizers[0].detokenize(tf.argmax(again, 2)[:, 1:]))]
    assert shared_model.predict(batches, verbose=0).tolist() == shared_model.translate(sources).numpy().tolist()
    source, target = ids_of(shared_model)
    np.testing.assert_allclose(
        shared_model.predict((source, target), verbose=0), shared_model((source, target)), atol=1e-5
    )


def test_attention_in_batches_is_the_same_and_keeps_no_more_than_it_returns(shared_model):
    words = ["gatonube", "", "sol", "ma", "x" * 30]
    together, alone = (shared_model.attention(words, words, batch_size=size) for size in (256, 2))
    for one, other in zip(together, alone, strict=True):
        assert one[:2] == other[:2] and one.weights.base is None
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-6)
    assert [len(row.source) for row in together] == list(map(len, words))
    assert together[1].weights.tolist() == [[1.0]]  # of END to the one step of an empty source
    assert shared_model.attention([]) == [] and shared_model.attention("sol")[0].source == list("sol")
    with pytest.raises(OptionError, match="targets: expected as many as sources, 2, not 1"):
        shared_model.attention(["sol", "mar"], ["SOL"])


def test_nothing_is_copied_from_beyond_what_is_read_of_a_source():
    tokenizers = CharTokenizer("ab"), CharTokenizer("ab")
    tokenizers[1].add_unknown_token()
    keras.utils.set_random_seed(0)
    model = Seq2Seq(*tokenizers, units=4, attention="dot", copy=True)
    how = {"max_length": 9, "details": True}
    read, beyond = (model.translate([text] * 9, "sampling", **how) for text in ("ж", "a" * 1024 + "ж"))
    texts = ["".join(decoded(found.texts[:, 0])) for found in (read, beyond)]
    assert "ж" in texts[0] and not {"ж", "\ufffd"} & set(texts[1])
    assert tokenizers[1].unknown_ids[0] in beyond.ids.numpy()  # it was drawn, and there is nothing to write for it


def test_attention_of_a_translation_is_that_of_its_ids(tokenizers):
    keras.utils.set_random_seed(0)
    model, texts = Seq2Seq(*tokenizers, units=4, attention="dot"), ["sol", "gatonube"]
    found = model.translate(texts, details=True)
    assert set(found.stopped.numpy().ravel()) != {b"end"}  # else the text's tokens would do
    assert [each.target for each in model.attention(texts)] == spelled(tokenizers[1], found.ids[:, 0])


def test_ids_that_are_no_targets_are_refused(shared_model):
    ok = np.array([[5, 6, 3], [5, 3, 0]])
    assert shared_model.score(["sol", "mar"], ok).shape == (2,)
    for bad in ([[5, 0, 3], [5, 3, 0]], [[5, 99, 3], [5, 3, 0]], [[-1, 5, 3], [5, 3, 0]]):
        with pytest.raises(OptionError, match="targets: expected"):
            shared_model.score(["sol", "mar"], np.array(bad))
    with pytest.raises(OptionError, match=r"as found.ids\[:, 0\]"):
        shared_model.score(["sol", "mar"], np.ones([2, 1, 3], int))


def test_many_strategies_bring_no_warning_of_many_traces(model, monkeypatch):
    said = []
    monkeypatch.setattr(tf.get_logger(), "warning", lambda *arguments: said.append(arguments))
    monkeypatch.setattr(model, "translate_batch", lambda texts, *_: (texts[:, None],))
    for number in range(1, 9):
        model.translate(["a"], Sampling(temperature=number))
    assert not said


def test_translations_are_str_if_asked_for(shared_model):
    texts, model = ["sol", "mar", "ñ"], shared_model
    expected = [text.decode() for text in model.translate(texts).numpy()]
    assert model.translate(texts, as_text=True) == expected
    assert model.translate("sol", as_text=True) == expected[0] and model.translate([], as_text=True) == []
    strategy = BeamSearch(2, n_best=2)
    plain, found = (model.translate(texts, strategy, details=True, as_text=each) for each in (False, True))
    assert found.texts == [[text.decode() for text in row] for row in plain.texts.numpy()]
    assert {why for row in found.stopped for why in row} <= {"end", "limit", "repetition"} and len(found.texts) == 3
    assert model.translate(texts, strategy, as_text=True) == found.texts


def test_a_beam_by_name_is_no_wider_than_a_small_vocabulary():
    model = Seq2Seq(CharTokenizer("01"), CharTokenizer("01"), units=4)
    expected = model.translate(["01"], BeamSearch(3), details=True)
    np.testing.assert_allclose(model.translate(["01"], "beam", details=True).scores, expected.scores)
    with pytest.raises(OptionError, match="width=5: wider than the vocabulary, which has 3 tokens"):
        model.translate(["01"], BeamSearch(5))
