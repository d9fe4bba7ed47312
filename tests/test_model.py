import contextlib
import dataclasses
import random
import re
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines import CharTokenizer, ColumnsTokenizer, OptionError, SeparatorTokenizer, Tokenizer, batch_pairs
from pipelines.tokenizers import END, PADDING
from seq2seq import (
    BeamSearch,
    Decoder,
    Encoder,
    Greedy,
    Sampling,
    Seq2Seq,
    Strategy,
    TransformerDecoder,
    TransformerEncoder,
    teacher_forcing,
)

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def upper_case(tmp_path_factory):
    """A model that has learned to write words in upper case, and the words."""
    from conftest import WORDS

    keras.utils.set_random_seed(3)
    pairs = tf.data.Dataset.from_tensor_slices((WORDS, [word.upper() for word in WORDS]))
    source, target = CharTokenizer(), CharTokenizer()
    source.adapt(WORDS)
    target.adapt([word.upper() for word in WORDS])
    model = Seq2Seq(source, target, units=48, attention="general")
    model.compile(keras.optimizers.Adam(0.02))
    model.fit(batch_pairs(pairs.repeat(20), source, target, batch_size=12), epochs=12, verbose=0, shuffle=False)
    return model, WORDS


def decoded(tensor):
    return [text.decode() for text in tensor.numpy()]


@pytest.mark.slow
def test_it_learns_and_translates(upper_case):
    model, words = upper_case
    assert decoded(model.translate(words)) == [word.upper() for word in words]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["greedy", BeamSearch(3), "sampling"], ids=str)
def test_a_translation_depends_on_neither_its_batch_nor_its_place(upper_case, strategy):
    model, words = upper_case
    texts = [*words, "", "中🙂", "sol", "a" * 40, "gato\0"]
    together = decoded(model.translate(texts, strategy, seed=5))
    assert together == decoded(model.translate(texts, strategy, seed=5, batch_size=3))
    # What sampling draws for a text follows from the seed and the text's place.
    assert together == [decoded(model.translate([text], strategy, seed=5 + n))[0] for n, text in enumerate(texts)]
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


@pytest.mark.slow
def test_a_saved_model_translates_the_same_in_a_process_that_only_imported_seq2seq(upper_case, tmp_path):
    model, words = upper_case
    path = tmp_path / "x.keras"
    model.save(path)
    script = (
        "import seq2seq, keras\n"
        f"model = keras.models.load_model({str(path)!r})\n"
        f"print(*[text.decode() for text in model.translate({words!r}).numpy()], sep='|')\n"
        "assert type(model.optimizer).__name__ == 'Adam' and int(model.optimizer.iterations) == "
        f"{int(model.optimizer.iterations)}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().split("|") == decoded(model.translate(words))


def test_translate_takes_one_string_a_list_an_array_a_tensor_and_nothing(model):
    one = model.translate("sol", max_length=5)
    assert one.shape == () and one.dtype == tf.string
    for texts in (["sol"], np.array(["sol"]), tf.constant(["sol"]), tf.data.Dataset.from_tensors("sol")):
        assert model.translate(texts, max_length=5)[0] == one
    assert model.translate([]).shape == (0,)


def test_translate_and_score_take_what_gives_texts_in_an_order_and_refuse_the_rest_by_name(model):
    texts = ["sol", "mar"]
    expected = model.translate(texts).numpy().tolist()
    for given in ((text for text in texts), iter(texts), map(str, texts), dict.fromkeys(texts).keys()):
        assert model.translate(given).numpy().tolist() == expected
    scores = model.score(iter(texts), iter(texts)).numpy().tolist()
    assert scores == model.score(texts, texts).numpy().tolist()
    for wrong, message in (
        (set(texts), "a set gives them in no order"),
        ({"sol": 1}, "a dict gives them in no order"),
        *((wrong, "expected a string, or a list of strings") for wrong in (None, 3, ["sol", None], [["sol"], ["mar"]])),
    ):
        with pytest.raises(OptionError, match=f"texts: {message}"):
            model.translate(wrong)
        with pytest.raises(OptionError, match=f"targets: {message}"):
            model.score(texts, wrong)
    with pytest.raises(OptionError, match="not one alone"):
        model.score("sol", "sol")


def test_translate_is_traced_once_for_each_strategy_whatever_the_shapes(model):
    for strategy in ("greedy", "beam", "sampling"):
        for texts in (["a"], ["b" * n for n in range(7)], [""], []):
            for lengths in ({"max_length": 4}, {"min_length": 2}):
                model.translate(texts, strategy, batch_size=3, seed=len(texts), **lengths)
    assert model._translate_with.cache_info().currsize == 3
    assert model._translate_with(Greedy(), False, 1, False).experimental_get_tracing_count() == 1
    assert model._translate_with(BeamSearch(), False, 1, False).experimental_get_tracing_count() == 1
    assert model._score.experimental_get_tracing_count() == 0


def test_a_beam_of_one_is_greedy_and_a_wider_one_finds_likelier_texts(model):
    texts = ["sol", "niño", "", "gatogato"]
    assert decoded(model.translate(texts, BeamSearch(1))) == decoded(model.translate(texts))
    one, nine = (model.translate(texts, BeamSearch(n, length_penalty=0.0), details=True) for n in (1, 9))
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
    """Splits into letters; its vocabulary may hold longer pieces, so that one text can be several lists of tokens."""

    def split(self, texts):
        return tf.strings.unicode_split(texts, "UTF-8")


@keras.saving.register_keras_serializable("tests")
class Branching(Tokenizer):
    """Splits into letters, by a branch on a tensor, as AutoGraph allows in `Dataset.map`."""

    def split(self, texts):
        if tf.size(texts) > 1:
            texts = tf.strings.lower(texts)
        return tf.strings.unicode_split(texts, "UTF-8")


def test_a_tokenizer_may_branch_on_a_tensor(tokenizers):
    model = Seq2Seq(Branching(["s", "o", "l"]), tokenizers[1], units=8)
    assert model.translate(["SOL", "sol"], max_length=3).shape == (2,)
    assert model.score(["SOL", "sol"], ["S", "S"]).shape == (2,)


def test_the_n_best_are_different_texts(tokenizers):
    keras.utils.set_random_seed(1)
    pieces = Pieces(["a", "b", "aa", "ab", "ba", "bb"])
    model = Seq2Seq(tokenizers[0], pieces, units=8)
    strategy, words = BeamSearch(6, n_best=6), ["sol", "mar", "niño"]
    every = model.decode(model.source_tokenizer.tokenize(words), strategy)
    every = [pieces.detokenize(ids).numpy().tolist() for ids in every.ids]
    found = model.translate(words, strategy, details=True)
    for row, texts in enumerate(found.texts.numpy().tolist()):
        different = [text for text in dict.fromkeys(every[row])][:6]
        assert len(different) < 12 and len(set(every[row])) < len(every[row])
        assert texts[: len(different)] == different
        assert np.all(np.isinf(found.scores[row, len(different) :]))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [Greedy(), BeamSearch(3, n_best=3), Sampling(0.9, top_k=5)], ids=repr)
def test_compiled_decoding_finds_the_same_row_by_row_in_few_shapes(upper_case, strategy):
    model, words = upper_case
    texts = [*words, "", "sol" * 7, "niño" * 3, "zzz"]
    try:
        known = {}
        for compiles in (False, True):
            model.compiles_decoding = compiles
            known[compiles] = model.translate(texts, strategy, details=True, seed=3)
            for length in (3, 30):
                known[compiles, length] = model.translate(texts[3:8], strategy, min_length=2, max_length=length)
        for one, other in zip(known[False], known[True], strict=True):
            if one.dtype == tf.string:
                np.testing.assert_array_equal(one, other)
            else:
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
        for length in (3, 30):
            np.testing.assert_array_equal(known[False, length], known[True, length])
        assert model._search_with(strategy).experimental_get_tracing_count() == 1
    finally:
        model.compiles_decoding = False


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
    free = model.translate(texts, strategy, max_length=14, seed=3)
    np.testing.assert_array_equal(np.ravel(free[1]), found.texts[1])
    # A prefix is never cut.
    long = model.translate("sol", strategy, prefixes="SOLSOL", max_length=2)
    assert all(re.fullmatch("SOLSOL.?", text.decode()) for text in np.ravel(long.numpy()).tolist())


def test_prefixes_of_all_lengths_are_translated_by_one_trace(model):
    for prefixes in (["S"], ["", "SOL" * 9, "M"], [""], []):
        model.translate(["sol"] * len(prefixes), prefixes=prefixes, max_length=3)
    assert model.translate("sol", prefixes="SO", max_length=3).shape == ()
    assert model._translate_with.cache_info().currsize == 1
    assert model._translate_with(Greedy(), False, 1, True).experimental_get_tracing_count() == 1


def test_prefixes_that_cannot_be_are_refused(model):
    for texts, prefixes, message in (
        (["sol", "mar"], ["S"], "prefixes: expected as many as texts, 2, and not 1"),
        (["sol"], "S", "prefixes: expected as many as texts, 1, and not one string"),
        ("sol", ["S"], "prefixes: expected as many as texts, one string, and not 1"),
        (["sol", "mar"], ["S", "Mxay"], "prefixes: text 2: the prefix 'Mxay' has tokens .*: 'x', 'a', 'y'$"),
        (["sol"], [3], "prefixes: expected a string, or a list of strings"),
        (["sol"], {"S"}, "prefixes: a set gives them in no order"),
    ):
        with pytest.raises(OptionError, match=message):
            model.translate(texts, prefixes=prefixes)


@dataclasses.dataclass(frozen=True)
class Several(Strategy):
    """Finds each of so many samples twice, of which so many are wanted."""

    samples: int = 4
    n_best: int = 3

    @property
    def rows_per_source(self):
        return self.samples

    def search(self, step_for, state, wanted, loop=None):
        found = Sampling(n_best=self.samples).search(step_for, state, wanted, loop)
        return found._replace(**{part: tf.repeat(getattr(found, part), 2, axis=1) for part in ("ids", "stopped")})


@pytest.mark.parametrize("compiles", [False, True])
def test_of_more_hypotheses_than_wanted_the_first_different_texts_are_taken(model, compiles):
    model.compiles_decoding = compiles
    words = ["sol", "mar"]
    every = model.translate(words, Several(n_best=8), details=True, seed=5, max_length=9)
    assert every.texts.shape == (2, 8) and (every.texts[:, 0] == every.texts[:, 1]).numpy().all()  # equal ones too
    found = model.translate(words, Several(), details=True, seed=5, max_length=9)
    np.testing.assert_array_equal(found.texts, every.texts[:, :6:2])
    np.testing.assert_allclose(found.scores, every.scores[:, :6:2], rtol=1e-5)
    assert model.translate(words, Several(), seed=5, max_length=9).numpy().tolist() == found.texts.numpy().tolist()
    one = model.translate(words, Several(n_best=1), seed=5, max_length=9)
    np.testing.assert_array_equal(one, found.texts[:, 0])


def test_samples_are_many_more_than_tokens_if_wanted_and_the_first_is_that_drawn_alone(model):
    texts = model.translate(["sol", "mar"], Sampling(n_best=60), seed=4, max_length=2)
    assert texts.shape == (2, 60) and model.target_tokenizer.vocabulary_size < 60
    assert len(set(texts[0].numpy())) < 60  # equal ones are kept
    np.testing.assert_array_equal(texts[:, 0], model.translate(["sol", "mar"], "sampling", seed=4, max_length=2))


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


def test_a_decoder_whose_state_grows_is_never_compiled_by_default(tokenizers, monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["a GPU"])
    assert not Seq2Seq(*tokenizers, decoder=Growing, units=8).compiles_decoding
    monkeypatch.undo()
    assert not Seq2Seq(*tokenizers, units=8).compiles_decoding


@keras.saving.register_keras_serializable("tests")
class Particular(Decoder):
    """A decoder whose `start` takes only what the encoder returned, and not what it has made of that itself."""

    def start(self, encoded):
        assert encoded.extra is None
        encoded, state = super().start(encoded)
        return encoded._replace(extra=encoded.extra._replace(keys=encoded.memory)), state


def test_a_decoder_is_started_from_what_the_encoder_returned(tokenizers):
    model = Seq2Seq(*tokenizers, decoder=Particular, units=8)
    assert model.translate(["sol"], max_length=3).shape == (1,)


def test_loss_and_perplexity_of_an_epoch_agree(model, pairs, tokenizers):
    batches = batch_pairs(pairs, *tokenizers, batch_size=5, seed=1)
    found = model.fit(batches, verbose=0, shuffle=False).history
    assert found["perplexity"][0] == pytest.approx(np.exp(found["loss"][0]), rel=1e-5)


def test_a_callback_made_of_functions_sees_each_step(model, batches):
    seen = []
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(logs["loss"]))
    model.fit(batches, verbose=0, shuffle=False, callbacks=[callback])
    assert len(seen) == 3 and np.all(np.isfinite(seen))


@pytest.mark.parametrize("texts", ["sol", ["sol", "mar", ""]], ids=["one", "several"])
def test_what_xla_refuses_is_decoded_uncompiled_and_said_once(tokenizers, texts):
    model = Seq2Seq(*tokenizers, decoder=Growing, units=8)
    right = model.translate(texts, BeamSearch(2), max_length=20)
    model.compiles_decoding = True
    with pytest.warns(UserWarning, match="decoding goes on uncompiled"):
        np.testing.assert_array_equal(model.translate(texts, BeamSearch(2), max_length=20), right)
    np.testing.assert_array_equal(model.translate(texts, BeamSearch(2), max_length=20), right)


def test_score_is_the_sum_over_the_tokens_and_end(model):
    source, target = model.source_tokenizer.tokenize(["sol"]), model.target_tokenizer.tokenize(["SOL"], start_end=True)
    logits = model((source, target[:, :-1])).numpy()[0].astype("float64")
    nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(4), target[0, 1:]]
    np.testing.assert_allclose(model.score(["sol", "m", "sol"], ["SOL", "A", "SOL"])[2], -nats.sum(), rtol=1e-5)
    with pytest.raises(OptionError, match="targets: expected as many as sources, 2"):
        model.score(["a", "b"], ["A"])

    each = model.score(["sol", "m", "sol"], ["SOL", "", "SOL"], batch_size=2, per_token=True)
    assert each.dtype == tf.float32 and each.row_lengths().numpy().tolist() == [4, 1, 4]
    np.testing.assert_allclose(each[0], -nats, rtol=1e-5)
    scores = model.score(["sol", "m", "sol"], ["SOL", "", "SOL"])
    np.testing.assert_allclose(tf.reduce_sum(each, axis=1), scores, rtol=1e-6)
    assert model.score([], [], per_token=True).shape == (0, None) and model.score([], []).shape == (0,)


def test_ids_are_scored_and_looked_at_as_they_are_with_and_without_end(model):
    whole = model.target_tokenizer.tokenize(["SOL", "MAR"], start_end=True)[:, 1:]
    ids = np.pad(whole.numpy(), [[0, 0], [0, 5]])  # padding more, as a longer row beside them would give them
    ids[1, 3] = PADDING  # no END
    each = model.score(["sol", "mar"], ids, per_token=True)
    right = model.score(["sol", "mar"], ["SOL", "MAR"], per_token=True)
    np.testing.assert_allclose(each.flat_values, right.flat_values[:-1], rtol=1e-5)
    found = model.attention(["sol", "mar"], ids)
    assert [alignment.target for alignment in found] == [["S", "O", "L", "[END]"], ["M", "A", "R"]]
    np.testing.assert_allclose(found[1].weights, model.attention(["mar"], ["MAR"])[0].weights[:3], rtol=1e-5)
    with pytest.raises(OptionError, match="targets: expected as many as sources, 1, and not 2"):
        model.attention(["sol"], ids)


def test_encode_gives_what_the_decoder_looks_at(model):
    found = model.encode(text for text in ("sol", "m"))
    ids = model.source_tokenizer.tokenize(["sol", "m"])
    np.testing.assert_array_equal(found.source, ids)
    np.testing.assert_array_equal(found.mask, [[True] * 3, [True, False, False]])
    for one, other in zip(*(tf.nest.flatten([e.memory, e.state]) for e in (found, model.encoder(ids))), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert found.memory.shape == (2, 3, 16) and model.encode("sol").memory.shape == (1, 3, 16)
    for wrong, message in (
        ([], "expected one or more"),
        ({"sol"}, "a set gives them in no order"),
        ([1], "expected a string"),
    ):
        with pytest.raises(OptionError, match=f"texts: {message}"):
            model.encode(wrong)


def test_lengths_seen_in_training_are_kept_and_limit_each_translation(tokenizers, tmp_path):
    model = Seq2Seq(*tokenizers, units=8)
    model.compile()
    source, target = tokenizers[0].tokenize(["sol", "flor"]), tokenizers[1].tokenize(["SOLSOL", "FLOR"], start_end=True)
    blank = [[0, 1], [0, 0]]  # a row that fills the batch up
    model.train_step((tf.pad(source, blank), tf.pad(target, blank)))
    ratios = [7 / 3, 5 / 4]
    np.testing.assert_allclose(model.length_ratios, [2, sum(ratios), sum(r * r for r in ratios)])
    ratio = np.mean(ratios) + 4 * np.std(ratios)
    limits = model.limits(model.source_tokenizer.tokenize(["", "sol", "s" * 50])).numpy().tolist()
    assert limits == [16, 16 + np.ceil(6 * ratio), 16 + np.ceil(100 * ratio)]
    model.save(tmp_path / "x.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "x.keras").length_ratios, model.length_ratios)


def test_a_translation_is_as_long_as_it_was_told_to_be(model):
    texts = ["sol", "niño"]
    for strategy in ("greedy", "beam", "sampling"):
        long, short = (
            model.translate(texts, strategy, details=True, **o) for o in ({"min_length": 9}, {"max_length": 2})
        )
        assert (tf.strings.length(long.texts, "UTF8_CHAR") >= 9).numpy().all()
        assert (tf.strings.length(short.texts, "UTF8_CHAR") <= 2).numpy().all()
        assert set(short.stopped.numpy().ravel()) <= {b"limit", b"end"}


def test_n_best_and_details_say_more_of_each_text(model):
    found = model.translate(["sol", "mar"], BeamSearch(5, n_best=3), max_length=6)
    assert found.shape == (2, 3) and len(set(found[0].numpy())) == 3
    assert model.translate("sol", BeamSearch(5, n_best=3), max_length=6).shape == (3,)
    assert model.translate("sol", details=True, max_length=6).texts.shape == (1, 1)
    assert model.translate([], "beam", details=True).scores.shape == (0, 1)


def test_what_cannot_be_asked_of_translate_is_refused_by_name(model):
    for options, message in (
        ({"strategy": "beem"}, "strategy='beem'.*did you mean 'beam'"),
        ({"strategy": BeamSearch(50)}, "width=50: wider than the vocabulary"),
        ({"min_length": 3, "max_length": 2}, "max_length=2"),
        ({"max_length": 0}, "max_length=0: expected a whole number, at least 1 and at most 100,000, or None"),
        ({"max_length": 2**31}, "max_length=2147483648: expected .* at most 100,000, or None"),
        ({"min_length": -1}, "min_length=-1: expected a whole number, at least 0"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number, at least 1"),
        ({"seed": -1}, "seed=-1: expected a whole number, at least 0"),
        ({"seed": 10**20}, "seed=100000000000000000000: expected a whole number"),
    ):
        with pytest.raises(OptionError, match=message):
            model.translate(["sol"], **options)
    with pytest.raises(OptionError, match="Decoder has no attention weights"):
        Seq2Seq(model.source_tokenizer, model.target_tokenizer, units=8).attention(["sol"])
    with pytest.raises(OptionError, match=r"option='unit'.*did you mean 'units'"):
        Seq2Seq(model.source_tokenizer, model.target_tokenizer, unit=8)


@pytest.mark.slow
def test_attention_follows_the_source(upper_case):
    model, words = upper_case
    for word, alignment in zip(words, model.attention(words), strict=True):
        assert alignment.source == list(word) and alignment.target == [*word.upper(), "[END]"]
        np.testing.assert_allclose(alignment.weights.sum(axis=1), np.ones(len(word) + 1), atol=1e-5)
    (given,) = model.attention(["sol"], ["MAR"])
    assert given.target == ["M", "A", "R", "[END]"] and given.weights.shape == (4, 3)


@pytest.mark.slow
def test_a_copying_model_writes_what_it_has_only_ever_read_elsewhere(tmp_path):
    """Letters that no pair of training holds are copied into the target, where both vocabularies have them."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(3, 7))) for _ in range(200)]
    pairs = tf.data.Dataset.from_tensor_slices((words, [word + "!" for word in words]))
    tokenizers = CharTokenizer("abcdefghijxyz"), CharTokenizer("zyx!jihgfedcba")
    keras.utils.set_random_seed(0)
    options = {"units": 32, "embedding": 16, "bidirectional": True, "attention": "general"}
    model = Seq2Seq(*tokenizers, **options, copy=True, dropout=0.3)
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    model.fit(
        batch_pairs(pairs, *tokenizers, batch_size=20, seed=1).repeat(),
        epochs=1,
        steps_per_epoch=200,
        verbose=0,
        shuffle=False,
    )
    unseen = {f"{word[:2]}{letter}{word[2:]}": letter for word, letter in zip(words, "xyz" * 6, strict=False)}
    texts = decoded(model.translate(list(unseen)))
    assert sum(letter in text for letter, text in zip(unseen.values(), texts, strict=True)) >= len(unseen) - 1
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert decoded(loaded.translate(list(unseen), BeamSearch(2))) == decoded(
        model.translate(list(unseen), BeamSearch(2))
    )


def test_label_smoothing_spreads_labels_but_never_padding(tokenizers, batches):
    model = Seq2Seq(*tokenizers, units=8, label_smoothing=0.1)
    model.compile()
    source, target = next(iter(batches))
    logs = model.test_step((source, target))
    logits = model((source, target[:, :-1])).numpy().astype("float64")
    labels = target[:, 1:].numpy()
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    real = labels.sum(-1) == 1
    smoothed = 0.9 * labels + 0.1 / labels.shape[-1]
    np.testing.assert_allclose(logs["loss"], -(smoothed * log_probabilities).sum(-1)[real].mean(), rtol=1e-5)
    np.testing.assert_allclose(
        logs["perplexity"], np.exp(-(labels * log_probabilities).sum(-1)[real].mean()), rtol=1e-5
    )


@pytest.mark.parametrize("encoding", ["one_hot", "ids"])
def test_scheduled_sampling_puts_guesses_in_the_place_of_right_tokens(tokenizers, encoding):
    keras.utils.set_random_seed(0)
    source, target = (
        tokenizer.tokenize(texts, start_end=True)
        for tokenizer, texts in zip(tokenizers, (["sol", "a"] * 200, ["SOLSOLSOL", "MAR"] * 200), strict=True)
    )
    inputs = target[:, :-1]
    if encoding == "one_hot":
        source, inputs = tokenizers[0].one_hot(source), tokenizers[1].one_hot(inputs)
    for probability, share in ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0)):
        model = Seq2Seq(*tokenizers, units=8, teacher_forcing=probability)
        mixed = model._own_guesses(source, inputs)
        assert mixed.shape == inputs.shape and mixed.dtype == inputs.dtype
        ids = tf.argmax(mixed, -1).numpy() if encoding == "one_hot" else mixed.numpy()
        right = target[:, :-1].numpy()
        np.testing.assert_array_equal(ids[:, 0], right[:, 0])  # START stays,
        np.testing.assert_array_equal(ids[right == PADDING], 0)  # and padding
        changed = (ids != right)[:, 1:][right[:, 1:] != PADDING].mean()
        by_chance = 1 / tokenizers[1].vocabulary_size  # a guess may be right
        assert changed == pytest.approx(share * (1 - by_chance), abs=0.05)


def test_teacher_forcing_may_follow_a_schedule(tokenizers, batches, tmp_path):
    schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 10, 0.25)
    model = Seq2Seq(*tokenizers, units=8, teacher_forcing=schedule)
    model.compile()
    model.fit(batches, verbose=0, shuffle=False)
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    assert again.teacher_forcing.get_config() == schedule.get_config()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"cell": "gru", "layers": 2, "bidirectional": True, "attention": "additive", "embedding": 12, "tied": True},
        {"attention": "dot", "input_feeding": True, "dropout": 0.1},
        {"attention": "monotonic", "copy": True, "dropout": 0.1},
        {"label_smoothing": 0.1, "teacher_forcing": 0.8, "embedding": 24, "attention": "dot", "copy": True},
    ],
    ids=str,
)
def test_every_kind_of_model_learns_saves_and_translates(tokenizers, tmp_path, options):
    from conftest import WORDS

    keras.utils.set_random_seed(0)
    pairs = tf.data.Dataset.from_tensor_slices((WORDS, [word.upper() for word in WORDS]))
    model = Seq2Seq(*tokenizers, units=48, **options)
    model.compile(keras.optimizers.Adam(0.01, global_clipnorm=1.0))
    batches = batch_pairs(pairs.repeat(60), *tokenizers, batch_size=12, encoding="ids", seed=0)
    model.fit(batches, epochs=12, verbose=0, shuffle=False)
    wanted = [word.upper() for word in WORDS]
    model.save(tmp_path / "x.keras")
    assert decoded(model.translate(WORDS)) == wanted
    assert decoded(keras.models.load_model(tmp_path / "x.keras").translate(WORDS, "beam")) == wanted


def test_teacher_forcing_gives_the_right_tokens_so_far_and_asks_for_the_next(tokenizers):
    source, target = tokenizers
    ids = target.tokenize(["SOL", "MA"], start_end=True)
    one_hot = source.one_hot(source.tokenize(["sol", "ma"])), target.one_hot(ids)
    (_, inputs), labels, weights = teacher_forcing(*one_hot)
    np.testing.assert_array_equal(tf.argmax(inputs, -1), ids[:, :-1])
    np.testing.assert_array_equal(labels, ids[:, 1:])
    np.testing.assert_array_equal(weights, [[1, 1, 1, 1], [1, 1, 1, 0]])
    _, _, weights = teacher_forcing(*one_hot, sample_weight=tf.constant([[2.0], [0.5]]))
    np.testing.assert_array_equal(weights, [[2, 2, 2, 2], [0.5, 0.5, 0.5, 0]])


def test_the_loss_of_a_train_step_is_the_one_computed_by_hand(model, batches):
    source, target = next(iter(batches))
    logits = model((source, target[:, :-1])).numpy().astype("float64")
    labels = target[:, 1:].numpy()
    nats = np.log(np.exp(logits).sum(-1)) - (logits * labels).sum(-1)  # -log softmax at the label
    real = labels.sum(-1) == 1
    before = [weight.numpy() for weight in model.trainable_weights]
    logs = model.train_step((source, target))
    np.testing.assert_allclose(logs["loss"], nats[real].mean(), rtol=1e-5)
    np.testing.assert_allclose(logs["perplexity"], np.exp(nats[real].mean()), rtol=1e-5)
    right = (logits.argmax(-1) == labels.argmax(-1))[real].mean()
    np.testing.assert_allclose(logs["accuracy"], right, rtol=1e-6)
    assert all((old != new.numpy()).any() for old, new in zip(before, model.trainable_weights, strict=True))


def test_a_batch_alone_has_figures_after_a_fit_that_nobody_watched(model, batches):
    model.fit(batches, verbose=0, shuffle=False)
    assert np.isfinite(list(model.train_step(next(iter(batches))).values())).all()


@pytest.mark.parametrize(("embedding", "optimizer"), [(None, "sgd"), (4, "sgd"), (4, "adam")])
def test_ids_train_the_same_model_as_one_hot_rows(pairs, tokenizers, embedding, optimizer):
    losses, models = [], []
    for encoding in ("one_hot", "ids"):
        keras.utils.set_random_seed(1)
        model = Seq2Seq(*tokenizers, units=16, embedding=embedding)
        model.compile(optimizer=optimizer)
        batches = batch_pairs(pairs, *tokenizers, batch_size=5, encoding=encoding, seed=1)
        losses.append(model.fit(batches, epochs=3, shuffle=False, verbose=0).history["loss"])
        models.append(model)
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6 if optimizer == "sgd" else 1e-4)


@pytest.mark.parametrize("embedding", [None, 4])
def test_a_clipped_step_is_as_long_as_it_may_be_though_tokens_are_repeated(tokenizers, embedding):
    """The gradient of a row that was looked up twice is the sum of two, and that is what has a length."""
    model = Seq2Seq(*tokenizers, units=16, embedding=embedding)
    model.compile(keras.optimizers.SGD(1.0, global_clipnorm=0.01))
    before = [weight.numpy() for weight in model.trainable_weights]
    source, target = (of.tokenize(["lasallana", "sososo"], start_end=True) for of in tokenizers)
    model.fit(tf.data.Dataset.from_tensors((source[:, 1:], target)), shuffle=False, verbose=0)
    steps = [weight.numpy() - old for weight, old in zip(model.trainable_weights, before, strict=True)]
    np.testing.assert_allclose(np.sqrt(sum(np.sum(step**2) for step in steps)), 0.01, rtol=1e-3)


@pytest.mark.slow
def test_a_scaled_loss_that_is_too_large_for_float16_lowers_its_scale_and_is_then_learned_from(tokenizers):
    from conftest import WORDS

    keras.utils.set_random_seed(3)
    model = Seq2Seq(*tokenizers, units=32, attention="general", dtype="mixed_float16")
    adam = keras.optimizers.Adam(0.01, global_clipnorm=1.0)
    model.compile(keras.optimizers.LossScaleOptimizer(adam, initial_scale=2.0**24))
    steps = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            optimizer = self.model.optimizer
            norm, scale, learned = self.model.gradient_norm, optimizer.dynamic_scale, optimizer.iterations
            steps.append((float(norm), float(scale), int(learned), logs["loss"]))

    pairs = tf.data.Dataset.from_tensor_slices((WORDS, [word.upper() for word in WORDS]))
    batches = batch_pairs(pairs.repeat(6), *tokenizers, batch_size=12)
    found = model.fit(batches, epochs=8, verbose=0, shuffle=False, callbacks=[Watch()]).history
    norms, scales, learned, losses = (np.array(of) for of in zip(*steps, strict=True))
    finite = np.isfinite(norms)
    assert 2 <= np.count_nonzero(~finite) <= 16 and not finite[0]
    np.testing.assert_array_equal(scales, 2.0 ** (24 - np.cumsum(~finite)))
    np.testing.assert_array_equal(learned, np.cumsum(finite))
    assert norms[finite].max() < 10  # which holds no scale
    assert np.isnan(losses[0]) and not np.isnan(losses[np.argmax(finite)])  # of nothing there is no figure
    assert found["loss"][-1] < found["loss"][0] / 2 and found["accuracy"][-1] > 0.5


@pytest.mark.parametrize(
    ("wrap", "compiled"),
    [
        (lambda sgd: sgd, False),
        (keras.optimizers.LossScaleOptimizer, False),
        pytest.param(keras.optimizers.LossScaleOptimizer, True, marks=pytest.mark.slow),
    ],
    ids=["plain", "scaling", "scaling, compiled"],
)
def test_an_epoch_that_nothing_was_learned_in_has_no_figures(model, batches, wrap, compiled):
    model.compile(wrap(keras.optimizers.SGD(0.1)))
    model.compiles_training = compiled
    kernel = model.decoder.output_layer.kernel
    kernel.assign(kernel * np.nan)
    before = [weight.numpy() for weight in model.trainable_weights]
    found = model.fit(batches, verbose=0, shuffle=False).history
    assert set(found) == {"loss", "accuracy", "perplexity"} and all(np.isnan(figures) for figures in found.values())
    for one, other in zip(before, model.trainable_weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(model.optimizer.iterations) == 0
    assert float(getattr(model.optimizer, "dynamic_scale", 2.0**12)) == 2.0**12  # of 2^15, halved three times


@pytest.mark.parametrize(
    "scaling",
    [
        lambda: keras.optimizers.SGD(0.1, global_clipnorm=0.5, loss_scale_factor=1024.0),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, global_clipnorm=0.5)),
    ],
)
def test_the_scale_of_a_loss_changes_neither_the_gradients_length_nor_the_step(tokenizers, batches, scaling):
    norms, weights = [], []
    batch = tf.data.Dataset.from_tensors(next(iter(batches)))
    for optimizer in (keras.optimizers.SGD(0.1, global_clipnorm=0.5), scaling()):
        keras.utils.set_random_seed(1)
        model = Seq2Seq(*tokenizers, units=8)
        model.compile(optimizer)
        model.fit(batch, verbose=0, shuffle=False)
        norms.append(model.gradient_norm.numpy())
        weights.append(model.get_weights())
    np.testing.assert_allclose(*norms, rtol=1e-5)
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_an_optimizer_that_scales_lowers_the_scale_too_where_only_the_length_is_not_finite(model):
    """Of 1e30 and 1e30 the length overflows float32, of which Keras's own look at each number knows nothing."""
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**100))
    ids = [of.tokenize(["sol"], start_end=True) for of in (model.source_tokenizer, model.target_tokenizer)]
    model.fit(tf.data.Dataset.from_tensors(tuple(ids)), verbose=0, shuffle=False)
    assert model.optimizer.dynamic_scale == 2.0**99 and model.optimizer.iterations == 0


def test_training_on_at_a_learning_rate_of_zero_is_warned_of(model, batches, tmp_path):
    rate = keras.optimizers.schedules.CosineDecay(0.1, 3)
    model.compile(keras.optimizers.SGD(rate))
    model.fit(batches, verbose=0, shuffle=False)
    model.save(tmp_path / "x.keras")
    for it in (model, keras.models.load_model(tmp_path / "x.keras")):
        with pytest.warns(UserWarning, match="fit: the learning rate is 0 after 3 steps, .* compile the model again"):
            it.fit(batches, verbose=0, shuffle=False)
        it.compile("sgd")
        it.fit(batches, verbose=0, shuffle=False)


def test_padding_costs_nothing_in_a_test_step(model, batches):
    source, target = next(iter(batches))
    logs = {name: float(value) for name, value in model.test_step((source, target)).items()}
    model.reset_metrics()
    wider = [tf.pad(side, [[0, 0], [0, 6], [0, 0]]) for side in (source, target)]
    again = model.test_step(wider)
    for name, value in logs.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-5)


SCALED = keras.optimizers.LossScaleOptimizer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "encoding", "wrap"),
    [
        ({"attention": "general"}, "one_hot", SCALED),
        ({"cell": "gru", "bidirectional": True, "embedding": 4, "tied": True}, "ids", lambda sgd: sgd),
        ({"attention": "monotonic"}, "ids", lambda sgd: sgd),
    ],
    ids=["one-hot, loss scaled", "ids, embedding", "monotonic"],
)
def test_a_compiled_step_learns_and_measures_the_same(pairs, tokenizers, options, encoding, wrap):
    found = []
    for compiled in (False, True):
        keras.utils.set_random_seed(1)
        model = Seq2Seq(*tokenizers, units=8, label_smoothing=0.1, **options)
        model.compile(wrap(keras.optimizers.SGD(0.5, momentum=0.9, global_clipnorm=1.0)))
        model.compiles_training = compiled
        batches = batch_pairs(pairs, *tokenizers, batch_size=5, encoding=encoding, seed=1)  # of 5, 5 and 2
        figures = model.fit(batches, verbose=0, shuffle=False).history
        state = [*model.weights, *model.optimizer.variables]
        found.append(([np.array(tf.convert_to_tensor(variable)) for variable in state], figures, model))
    (one, figures, _), (other, again, model) = found
    for value, compiled in zip(one, other, strict=True):
        np.testing.assert_allclose(value, compiled, atol=1e-5)
    for name, values in figures.items():
        np.testing.assert_allclose(values, again[name], rtol=1e-5)
    assert model._learn_compiled.cache_info().currsize == 1
    assert (model.optimizer.iterations, model.length_ratios[0]) == (3, 12)


def test_batches_of_many_shapes_are_compiled_for_few(model):
    shapes = {(1, 1, 5): (16, 16), (70, 16, 17): (128, 16), (64, 9, 18): (64, 32), (3, 300, 2): (16, 512)}
    for (rows, source, target), (filled, length) in shapes.items():
        batch = model._filled_up(tf.ones([rows, source], tf.int32), tf.ones([rows, target, 7]))
        assert [tuple(side.shape) for side in batch] == [(filled, length), (filled, length + 1, 7)]
        assert [int(tf.reduce_sum(tf.cast(side, tf.int32))) for side in batch] == [rows * source, rows * target * 7]
    model.tokens_compiled = 4000  # whatever lengths up to 64 and rows of so many tokens: one size for each length
    of_64 = [tf.ones([4000 // length, length], tf.int32) for length in (33, 48, 64)]
    assert {tuple(model._filled_up(side, side)[0].shape) for side in of_64} == {(125, 64)}
    model.tokens_compiled, model.rows_compiled = None, 70
    batch = [tf.ones([rows, 4], tf.int32) for rows in (3, 70, 71)]
    assert [model._filled_up(side, side)[0].shape[0] for side in batch] == [70, 70, 140]


@keras.saving.register_keras_serializable("tests")
class HostEncoder(Encoder):
    """Reads by way of NumPy, which XLA cannot compile."""

    def call(self, source, training=False):
        read = tf.numpy_function(np.array, [source], source.dtype, stateful=False)
        return super().call(tf.ensure_shape(read, source.shape), training=training)


@pytest.mark.slow
def test_an_encoder_that_xla_refuses_is_trained_uncompiled_and_nothing_is_lost(pairs, tokenizers):
    weights = []
    for compiled in (False, True):
        keras.utils.set_random_seed(1)
        model = Seq2Seq(*tokenizers, units=8, encoder=HostEncoder)
        model.compile(keras.optimizers.SGD(0.5))
        model.compiles_training = compiled
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            model.fit(batch_pairs(pairs, *tokenizers, batch_size=5, seed=1), epochs=2, verbose=0, shuffle=False)
        said = [str(warning.message) for warning in warned if "training steps are not compiled" in str(warning.message)]
        assert len(said) == compiled and all("HostEncoder" in text or "PyFunc" in text for text in said), said
        weights.append(model.get_weights())
        assert model.optimizer.iterations == 6
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


SPARSE = keras.losses.SparseCategoricalCrossentropy


@pytest.mark.parametrize("how", ["own loss", "eager", "several replicas"])
def test_what_would_not_be_the_same_compiled_is_not(model, how):
    model.compiles_training = True
    assert model._may_compile()
    if how == "own loss":
        model.compile(loss=SPARSE(from_logits=True, reduction="mean_with_sample_weight"))
    if how == "eager":
        model.compile(run_eagerly=True)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope() if how == "several replicas" else contextlib.nullcontext():
        assert not model._may_compile()


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}])
def test_fit_and_evaluate_work_however_keras_runs_the_step(tokenizers, batches, how):
    keras.utils.set_random_seed(0)
    model = Seq2Seq(*tokenizers, units=8)
    model.compile(keras.optimizers.SGD(0.5, clipnorm=1.0), **how)
    before = model.evaluate(batches, verbose=0, return_dict=True)
    model.fit(batches.repeat(4), steps_per_epoch=12, epochs=1, verbose=0, shuffle=False)
    after = model.evaluate(batches, verbose=0, return_dict=True)
    assert set(after) == {"loss", "accuracy", "perplexity"} and after["loss"] < before["loss"]


@keras.saving.register_keras_serializable("tests")
class HalfDecoder(Decoder):
    """A decoder whose logits are of the precision that it computes in."""

    def call(self, *arguments, **options):
        logits, *more = super().call(*arguments, **options)
        return tf.cast(logits, self.compute_dtype), *more


@pytest.mark.slow
def test_mixed_precision_trains_saves_and_translates(tokenizers, batches, tmp_path):
    source, target = next(iter(batches))
    models = [
        Seq2Seq(*tokenizers, units=8, attention="dot", decoder=HalfDecoder, dtype=dtype)
        for dtype in ("mixed_float16", "float32")
    ]
    model, whole = models
    encoded, state = model.decoder.start(model.encoder(source))
    assert encoded.memory.dtype == tf.float16 and model((source, target[:, :-1])).dtype == tf.float32
    # Padding beside a long text: its scores of -65,504 must be no weight and make no NaN.
    _, _, weights = model.decoder(target[:, :-1], encoded, state, return_attention=True)
    assert weights.dtype == tf.float32 and np.all(weights.numpy()[:, :, encoded.mask.numpy().sum(1).max() :] == 0)
    np.testing.assert_allclose(tf.reduce_sum(weights, axis=2), 1.0, atol=1e-6)
    whole.set_weights(model.get_weights())
    texts = ["a" * 300, "sol"], ["SOL" * 100, "SOL"]
    exact, found = whole.score(*texts).numpy(), model.score(*texts).numpy()
    assert np.all(np.isfinite(found)) and found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=0.01)
    for it in models:
        it.compile()
    losses = [it.fit(batches, verbose=0, shuffle=False).history["loss"] for it in models]
    np.testing.assert_allclose(*losses, rtol=0.01)
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    assert again.dtype_policy.name == "mixed_float16"
    for strategy in ("greedy", "beam"):
        found, right = (it.translate(["sol"], strategy, max_length=5, details=True) for it in (again, model))
        assert decoded(found.texts[:, 0]) == decoded(right.texts[:, 0]) and np.isfinite(found.scores.numpy()).all()


def ids_of(model, words=("sol", "mar", "gatonube")):
    source, target = model.source_tokenizer, model.target_tokenizer
    return source.tokenize(words).numpy(), target.tokenize([w.upper() for w in words], start_end=True).numpy()


@pytest.mark.parametrize("how", ["train_on_batch", "fit", "dataset", "labels", pytest.param("compiled", marks=SLOW)])
def test_a_weight_multiplies_what_a_pair_counts_for(tokenizers, how):
    learned = []
    for words, weights in ((("sol", "mar", "mar", "mar"), None), (("sol", "mar", "gatonube"), [1.0, 3.0, 0.0])):
        keras.utils.set_random_seed(1)
        model = Seq2Seq(*tokenizers, units=8, attention="dot")
        model.compile(keras.optimizers.SGD(0.5))
        model.compiles_training = how == "compiled"
        source, target = ids_of(model, words)
        if weights and how == "labels":
            weights = np.repeat(np.array(weights)[:, None], target.shape[1] - 1, axis=1)
        weights = weights if weights is None else np.array(weights)
        measured = model.test_on_batch(source, target, weights, return_dict=True)
        if how in ("fit", "labels"):
            found = model.fit(source, target, sample_weight=weights, verbose=0).history
            found = {name: value for name, (value,) in found.items()}
        elif how == "dataset":
            batch = (source, target) if weights is None else (source, target, weights)
            found = model.fit(tf.data.Dataset.from_tensors(batch), verbose=0).history
            found = {name: value for name, (value,) in found.items()}
        else:
            found = model.train_on_batch(source, target, weights, return_dict=True)
        assert found == pytest.approx(measured, rel=1e-4)
        learned.append((found, model.get_weights(), model.length_ratios.numpy()))
    (one, weights, _), (other, again, ratios) = learned
    assert other == pytest.approx(one, rel=1e-5) and ratios[0] == 3  # lengths are what they are
    for value, same in zip(weights[1:], again[1:], strict=True):
        if value.shape != (3,):
            np.testing.assert_allclose(value, same, atol=1e-6)


def test_a_batch_of_no_weight_has_no_figures_and_changes_nothing(model):
    before = [weight.numpy() for weight in model.trainable_weights]
    source, target = ids_of(model)
    model.fit(source, target, verbose=0, epochs=0)
    found = model.test_on_batch(source, target, np.zeros(3), return_dict=True)
    assert all(map(np.isnan, found.values()))
    assert 0 < model.test_on_batch(source, target, np.full(3, 1e-3), return_dict=True)["loss"] < 10
    model.compile(keras.optimizers.SGD(1.0))
    model.train_on_batch(source, target, np.zeros(3))
    for old, new in zip(before, model.trainable_weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_batch_after_a_quiet_fit_has_figures(model, batches):
    model.fit(batches, verbose=0)
    assert np.all(np.isfinite(model.train_on_batch(*ids_of(model))))


def test_predict_translates_batches(model, pairs, tokenizers):
    batches = batch_pairs(pairs.map(lambda source, _: (source, source)), tokenizers[0], tokenizers[0], 5, shuffle=False)
    sources = [text for _, again in batches for text in decoded(tokenizers[0].detokenize(tf.argmax(again, 2)[:, 1:]))]
    assert model.predict(batches, verbose=0).tolist() == model.translate(sources).numpy().tolist()
    source, target = ids_of(model)
    np.testing.assert_allclose(model.predict((source, target), verbose=0), model((source, target)), atol=1e-5)


def test_fit_and_evaluate_say_what_they_are_to_be_given(model, pairs):
    source, target = ids_of(model)
    for run, message in (
        (lambda: model.fit(pairs), "fit: expected batches of ids .* not texts; batch_pairs"),
        (lambda: model.fit(np.array(["sol"]), np.array(["SOL"])), "fit: expected batches of ids .* not texts"),
        (lambda: model.evaluate(pairs.batch(2)), "evaluate: expected batches of ids .* not texts"),
        (lambda: model.predict(["sol"]), "predict: .*`translate` takes texts"),
        (lambda: model.predict(np.array(["sol"])), "predict: .*`translate` takes texts"),
        (lambda: model.fit(source, verbose=0), r"expected \(source, target\)"),
        (lambda: model.fit((source, target[:, :-1]), target[:, 1:], verbose=0), r"expected \(source, target\)"),
        (lambda: model.fit(source, target, class_weight={1: 2.0}), "class_weight: .* sample_weight"),
        (lambda: model.train_on_batch(source, target, class_weight={1: 2.0}), "class_weight: .* sample_weight"),
        (lambda: model(source), r"call: expected \(source, target so far\)"),
        (lambda: model.export("x", format="onnx"), "format='onnx': expected 'tf_saved_model'"),
        (lambda: model.export("x", input_signature=[]), "input_signature: .*strings"),
        (lambda: model.save("x.h5"), r"x.h5: .*\.keras"),
        (lambda: model.quantize("int8"), "quantize: .*mixed_bfloat16"),
    ):
        with pytest.raises(OptionError, match=message):
            run()


def test_keras_warns_of_nothing_that_is_meant_so(model, batches):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        model.fit(batches, validation_data=batches, verbose=0)
        model.fit(((source, target) for source, target in batches), verbose=0)
        model.evaluate(batches, verbose=0)
    with pytest.warns(UserWarning, match="Your input ran out of data"):
        model.fit(batches, steps_per_epoch=9, verbose=0)


@pytest.mark.parametrize(
    "options",
    [
        {"metrics": ["accuracy"]},
        {"weighted_metrics": ["accuracy"]},
        {"metrics": [keras.metrics.SparseCategoricalAccuracy("accuracy")], "weighted_metrics": None},
        {"metrics": [keras.metrics.sparse_categorical_accuracy]},
        {"loss": SPARSE(from_logits=True, reduction="mean_with_sample_weight"), "metrics": []},
    ],
    ids=["metrics", "weighted", "object", "function", "loss"],
)
def test_whatever_it_is_compiled_with_padding_is_not_counted(model, tmp_path, options):
    source, target = ids_of(model)
    right = model.evaluate(source, target, verbose=0, return_dict=True)
    model.compile("sgd", **options)
    model.fit(source, target, verbose=0)
    model.save(tmp_path / "x.keras")
    right["accuracy"], right["loss"] = None, None
    found = []
    for it in (model, keras.models.load_model(tmp_path / "x.keras")):
        for more in (0, 9):
            wide = [np.pad(side, [(0, 0), (0, more)]) for side in (source, target)]
            found.append(it.evaluate(*wide, verbose=0, return_dict=True))
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)
    logits = model((source, target[:, :-1])).numpy()
    accuracy = (logits.argmax(-1) == target[:, 1:])[target[:, 1:] != PADDING].mean()
    name = "sparse_categorical_accuracy" if "sparse_categorical_accuracy" in found[0] else "accuracy"
    assert found[0][name] == pytest.approx(accuracy)


def test_a_loss_or_metric_whose_figure_would_be_wrong_is_refused(model):
    for options, message in (
        ({"loss": "sparse_categorical_crossentropy"}, "loss=.*takes probabilities.*from_logits=True"),
        ({"loss": SPARSE(reduction="sum")}, "loss=.*takes probabilities.*from_logits=True"),
        ({"loss": SPARSE(from_logits=True)}, "loss=.*counts padding.*mean_with_sample_weight"),
        ({"loss": "mse"}, "loss='mse': must take ids"),
        ({"loss": keras.losses.CategoricalCrossentropy(from_logits=True)}, "loss=.*must take ids"),
        ({"metrics": [keras.metrics.SparseCategoricalCrossentropy()]}, "metrics=.*takes probabilities"),
        ({"metrics": ["sparse_categorical_crossentropy"]}, "metrics=.*takes probabilities"),
    ):
        with pytest.raises(OptionError, match=message):
            model.compile(**options)


def test_frozen_weights_stay_as_they_are_and_frozen_when_loaded(model, tmp_path):
    source, target = ids_of(model)
    model.encoder.trainable = False
    model.compile()
    model.train_on_batch(source, target)
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    before = again.encoder.get_weights()
    again.train_on_batch(source, target)
    assert len(again.trainable_weights) == len(model.trainable_weights) == len(again.weights) - 5
    for old, new in zip(before, again.encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    model.trainable = False
    model.compile()
    with pytest.raises(OptionError, match="fit: all weights are frozen; set trainable=True"):
        model.fit(source, target, verbose=0)
    model.trainable = True
    model.compile(optimizer=None)
    with pytest.raises(OptionError, match="fit: there is no optimizer"):
        model.fit(source, target, verbose=0)
    model.save(tmp_path / "x.keras")
    assert keras.models.load_model(tmp_path / "x.keras").evaluate(source, target, verbose=0)[0] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "monotonic", "copy": True, "embedding": 4},
        {"encoder": TransformerEncoder, "decoder": TransformerDecoder, "tied": True, "copy": True, "heads": 2},
    ],
    ids=["monotonic", "transformer"],
)
@pytest.mark.slow
def test_float64_trains_saves_and_translates(tokenizers, tmp_path, options):
    policy = keras.config.dtype_policy()
    try:
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")
        model = Seq2Seq(*tokenizers, units=8, **options)
        model.compile(keras.optimizers.Adam(0.01, global_clipnorm=0.1))
        assert {weight.dtype for weight in model.trainable_weights} == {"float64"}
        source, target = ids_of(model)
        assert np.isfinite(model.train_on_batch(source, target, np.ones(3))).all()
        assert np.isfinite(model.fit(source, target, verbose=0).history["loss"]).all()
        found = model.translate(["sol"], "beam", max_length=3)
        model.save(tmp_path / "x.keras")
        np.testing.assert_array_equal(
            keras.models.load_model(tmp_path / "x.keras").translate(["sol"], "beam", max_length=3), found
        )
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy(policy)


def test_weights_of_sixteen_bits_are_refused(tokenizers):
    for dtype in ("float16", "bfloat16"):
        with pytest.raises(OptionError, match=f"dtype='{dtype}': .*use 'mixed_{dtype}'"):
            Seq2Seq(*tokenizers, units=8, dtype=dtype)


def test_attention_in_batches_is_the_same_and_keeps_no_more_than_it_returns(model):
    words = ["gatonube", "", "sol", "ma", "x" * 30]
    together, alone = (model.attention(words, words, batch_size=size) for size in (256, 2))
    for one, other in zip(together, alone, strict=True):
        assert one[:2] == other[:2] and one.weights.base is None
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-6)
    assert [len(row.source) for row in together] == list(map(len, words))
    assert model.attention([]) == [] and model.attention("sol")[0].source == list("sol")
    with pytest.raises(OptionError, match="targets: expected as many as sources, 2, and not 1"):
        model.attention(["sol", "mar"], ["SOL"])


def operations(graph):
    """All nodes of a graph, those inside its functions too, each with the nodes inside it."""
    functions = {function.signature.name: function for function in graph.library.function}

    def inside(node):
        called = [attr.func.name for attr in node.attr.values() if attr.func.name in functions]
        return [inner for name in called for one in functions[name].node_def for inner in (one, *inside(one))]

    return [(node, inside(node)) for top in graph.node for node in (top, *inside(top))]


def loops(model, strategy, chosen):
    """What is inside the loops that decode, the outer one first: those with the operation by which they choose."""
    graph = model._translate_with(strategy, False, 1, False).get_concrete_function().graph.as_graph_def()
    found = [inside for node, inside in operations(graph) if node.op in ("While", "StatelessWhile")]
    return [inside for inside in found if chosen in {node.op for node in inside}]


@pytest.mark.parametrize("strategy", [Greedy(), BeamSearch(3), Sampling(top_k=5)], ids=str)
def test_the_decode_loop_has_operations_with_gpu_kernels_only(model, strategy):
    # Private: nothing public lists the kernels of an operation. setup.cfg bounds TensorFlow to this series.
    from tensorflow.python.framework import kernels

    chosen = {Greedy: "ArgMax", BeamSearch: "TopKV2", Sampling: "TopKV2"}[type(strategy)]
    found = loops(model, strategy, chosen)
    # A loop over those that are left, in it one over steps, and none in that: a step of the LSTM is its cell.
    assert len(found) == 2 and [sum("While" in node.op for node in inside) for inside in found] == [1, 0]
    ops = {node.op for node in found[0]}
    assert "MatMul" in ops and not {op for op in ops if "String" in op or "Lookup" in op}
    registered = {op: kernels.get_registered_kernels_for_op(op).kernel for op in ops}
    assert [
        op for op, found in registered.items() if not {"GPU", "DEFAULT"} & {kernel.device_type for kernel in found}
    ] == []


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_decode_step_looks_up_what_tokens_have_to_say(tokenizers, cell):
    model = Seq2Seq(*tokenizers, units=16, embedding=8, cell=cell, attention="dot")
    _, steps = loops(model, Greedy(), "ArgMax")
    assert [node.op for node in steps].count("MatMul") == 3  # of the state, of h~ and of the logits; none of the input


def test_the_memory_is_not_repeated_for_the_hypotheses_of_a_beam(model):
    seen = []
    call = model.decoder.call

    def spy(target, encoded, state, **options):
        seen.append((target.shape[0], encoded.memory.shape[0], encoded.extra.keys is encoded.memory))
        return call(target, encoded, state, **options)

    model.decoder.call = spy
    model.decode(model.source_tokenizer.tokenize(["sol", "mar"]), BeamSearch(4), max_length=3)
    assert seen[0] == (8, 2, False)  # and the keys are those that start has projected
    assert all(rows == 4 * sources and not repeated for rows, sources, repeated in seen)


@pytest.mark.slow
def test_a_feature_in_a_second_column_decides_what_is_written(tmp_path):
    keras.utils.set_random_seed(1)
    lemmas = [a + b for a in "abcd" for b in "abcd"]
    sources = [lemma + features for lemma in lemmas for features in ("\tV;UP", "\t")]
    targets = [form for lemma in lemmas for form in (lemma.upper(), lemma)]
    source, target = ColumnsTokenizer([CharTokenizer(), SeparatorTokenizer(";")]), CharTokenizer()
    source.adapt(sources)
    target.adapt(targets)
    model = Seq2Seq(source, target, units=24, attention="dot")
    model.compile(keras.optimizers.Adam(0.02))
    pairs = tf.data.Dataset.from_tensor_slices((sources, targets))
    batches = batch_pairs(pairs, source, target, encoding="ids", shuffle=False, seed=0).cache()
    model.fit(batches, epochs=100, verbose=0, shuffle=False)
    texts, right = ["ab\tV;UP", "ab\t", "dc\tUP;V", "ab\tV;UP\tx", "ab"], [b"AB", b"ab", b"DC", b"AB", b"ab"]
    assert model.translate(texts).numpy().tolist() == right
    assert np.argmax(model.score(["ab\tV;UP"] * 2, ["ab", "AB"])) == 1
    assert model.attention(texts[:1])[0].source == ["a", "b", "V", "UP"]
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").translate(texts).numpy().tolist() == right
    model.export(tmp_path / "saved", beam=BeamSearch(2, n_best=2), probe=texts)  # which compares


def test_ids_that_are_no_targets_are_refused(model):
    ok = np.array([[5, 6, 3], [5, 3, 0]])
    assert model.score(["sol", "mar"], ok).shape == (2,)
    for bad in ([[5, 0, 3], [5, 3, 0]], [[5, 99, 3], [5, 3, 0]], [[-1, 5, 3], [5, 3, 0]]):
        with pytest.raises(OptionError, match="targets: expected"):
            model.score(["sol", "mar"], np.array(bad))
    with pytest.raises(OptionError, match=r"such as found.ids\[:, 0\]"):
        model.score(["sol", "mar"], np.ones([2, 1, 3], int))
