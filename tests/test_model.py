import random
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import QUICK, WORDS, decoded, ids_of

from pipelines import CharTokenizer, ColumnsTokenizer, OptionError, SeparatorTokenizer, batch_pairs
from pipelines.tokens import END, PADDING, START
from seq2seq import (
    BeamSearch,
    Decoder,
    Encoded,
    Encoder,
    Greedy,
    Sampling,
    Seq2Seq,
    TransformerDecoder,
    TransformerEncoder,
    ensemble,
    teacher_forcing,
)
from seq2seq.layers import token_ids


@pytest.mark.slow
def test_it_learns_and_translates(upper_case):
    model, words = upper_case
    assert decoded(model.translate(words)) == [word.upper() for word in words]


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
            known[compiles, "short"] = model.translate(texts[3:8], strategy, min_length=2, max_length=3)
        for one, other in zip(known[False], known[True], strict=True):
            if one.dtype == tf.string:
                np.testing.assert_array_equal(one, other)
            else:
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(known[False, "short"], known[True, "short"])
        assert model._search_with(strategy).experimental_get_tracing_count() == 1  # also for another `min_length`
    finally:
        model.compiles_decoding = False


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


def test_lengths_seen_in_training_are_kept_and_limit_each_translation(tokenizers, tmp_path):
    model = Seq2Seq(*tokenizers, units=8, **QUICK)
    model.compile()
    source, target = tokenizers[0].tokenize(["sol", "flor"]), tokenizers[1].tokenize(["SOLSOL", "FLOR"], start_end=True)
    assert model.limits(source).numpy().tolist() == [16 + 8 * 3, 16 + 8 * 4]  # generous, as nothing was counted
    blank = [[0, 1], [0, 0]]  # a row that fills the batch up
    model.train_on_batch(tf.pad(source, blank), tf.pad(target, blank))
    ratios = [7 / 3, 5 / 4]
    np.testing.assert_allclose(model.length_ratios, [2, sum(ratios), sum(r * r for r in ratios)])
    ratio = np.mean(ratios) + 4 * np.std(ratios)
    limits = model.limits(model.source_tokenizer.tokenize(["", "sol", "s" * 50])).numpy().tolist()
    assert limits == [16, 16 + np.ceil(6 * ratio), 16 + np.ceil(100 * ratio)]
    model.save(tmp_path / "x.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "x.keras").length_ratios, model.length_ratios)


def test_the_longest_ratio_of_equal_ratios_is_that_ratio_however_sums_are_rounded(model):
    for ratio, count in ((0.3, 7), (0.7, 10), (1.3, 10), (2.0, 5)):
        model.length_ratios.assign([sum([each] * count) for each in (1.0, ratio, ratio**2)])
        np.testing.assert_allclose(model.longest_ratio(), ratio, rtol=1e-6)


def test_a_translation_may_be_told_to_be_longer_than_its_own_limit(model, monkeypatch):
    monkeypatch.setattr("seq2seq.decoding.LEAST_REPETITION", 1000)  # an untrained model may repeat itself
    model.decoder.output_layer.bias.assign(-100 * tf.one_hot(END, model.decoder.output_layer.bias.shape[0]))
    source = model.source_tokenizer.tokenize(["sol"])
    longer = int(model.limits(source)[0]) + 5
    assert model.decode(source, max_length=longer).ids.shape == (1, 1, longer)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_each_half_leaves_numbers_out_in_training_only(tokenizers, half):
    rates = {"encoder": 0.0, "decoder": 0.0, half: 0.5}
    encoder = Encoder(tokenizers[0].vocabulary_size, 8, "gru", dropout=rates["encoder"])
    decoder = Decoder(tokenizers[1].vocabulary_size, 8, "gru", attention="dot", dropout=rates["decoder"])
    model = Seq2Seq(*tokenizers, encoder=encoder, decoder=decoder)
    model.compile(keras.optimizers.SGD(0.0))
    ids = ids_of(model)
    for compute, kinds in (
        (lambda training: model.log_likelihood(*ids, training=training), (False, False, True)),
        (lambda step: step(ids)["loss"], (model.test_step, model.test_step, model.train_step)),
    ):
        whole, same, dropped = map(compute, kinds)
        np.testing.assert_array_equal(whole, same)
        assert np.abs(whole - dropped).max() > 1e-5


def test_a_vocabulary_that_has_changed_since_the_model_was_made_is_refused(model, tmp_path):
    ids, tokenizer = ids_of(model), model.target_tokenizer
    other = Seq2Seq(model.source_tokenizer, tokenizer, units=4, **QUICK)
    counts = {token.encode(): 100 - number for number, token in enumerate(tokenizer.tokens)}
    tokenizer.take_vocabulary(dict.fromkeys(counts, 1))  # as many tokens, in another order
    for use in (
        lambda: model.fit(*ids),
        lambda: model.train_on_batch(*ids),
        lambda: model.evaluate(*ids),
        lambda: model.predict(ids[0]),
        lambda: model.translate(["sol"]),
        lambda: model.score(["sol"], ["SOL"]),
        lambda: model.attention(["sol"], ["SOL"]),
        lambda: model.encode(["sol"]),
        lambda: model.save(tmp_path / "x.keras"),
        lambda: model.export(tmp_path / "x"),
        lambda: ensemble([model, other]),
    ):
        with pytest.raises(OptionError, match="the target vocabulary has changed since the model was made"):
            use()
    with pytest.raises(OptionError, match=r"models\[0\]: the target vocabulary has changed"):
        ensemble([model, other])
    assert not list(tmp_path.glob("x*"))
    tokenizer.take_vocabulary(counts)
    model.save(tmp_path / "x.keras")
    model.source_tokenizer.adapt(["a"])
    with pytest.raises(OptionError, match="the source vocabulary has changed"):
        model.translate(["a"])


@pytest.mark.slow
def test_a_copying_model_writes_what_it_has_only_ever_read_elsewhere(tmp_path):
    """Letters that no pair of training holds are copied into the target, known (xyz) or not (the others)."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(3, 7))) for _ in range(200)]
    pairs = tf.data.Dataset.from_tensor_slices((words, [word + "!" for word in words]))
    tokenizers = CharTokenizer("abcdefghijxyz"), CharTokenizer([*"zyx!jihgfedcba", "\ufffd"])
    keras.utils.set_random_seed(0)
    options = {"units": 32, "embedding": 16, "bidirectional": True, "attention": "general"}
    model = Seq2Seq(*tokenizers, **options, copy=True, dropout=0.3)
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    model.fit(
        batch_pairs(pairs, *tokenizers, batch_size=20, seed=1).repeat(),
        epochs=1,
        steps_per_epoch=400,
        verbose=0,
        shuffle=False,
    )
    letters = [*"xyz", *"éжx", "ж漢"] * 4
    unseen = {f"{word[:2]}{letter}{word[2:]}": letter for word, letter in zip(words, letters, strict=False)}
    texts = decoded(model.translate(list(unseen)))
    assert sum(letter in text for letter, text in zip(unseen.values(), texts, strict=True)) >= len(unseen) - 1
    best = model.translate(list(unseen), BeamSearch(3, n_best=2), details=True)
    found = decoded(best.texts[:, 0])
    assert sum(map(str.__eq__, found, texts)) >= len(texts) - 2 and "\ufffd" not in "".join(texts + found)
    np.testing.assert_allclose(model.score(list(unseen), found), best.scores[:, 0], atol=1e-3)
    likely, *others = model.score(["gжb"] * 4, ["gжb!", "géb!", "gжбb!", "gb!"])
    assert likely > max(others) + 5  # another unknown letter is not the same, although no vocabulary has either
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert decoded(loaded.translate(list(unseen))) == texts


def test_label_smoothing_spreads_labels_but_never_padding(tokenizers, batches):
    model = Seq2Seq(*tokenizers, units=8, **QUICK, label_smoothing=0.1)
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


def test_what_no_model_can_be_made_with_is_refused(tokenizers):
    for options, message in (
        ({"label_smoothing": 1.5}, "label_smoothing=1.5: expected a number, at least 0 and below 1"),
        ({"teacher_forcing": 7}, "teacher_forcing=7: expected a number, at least 0 and at most 1"),
        ({"layers": 0}, "layers=0: expected a whole number, at least 1"),
        ({"encoder": Encoder(5, units=8)}, "encoder=Encoder: made for 5 tokens, but the vocabulary has"),
        ({"encoder": "transformer"}, "encoder='transformer': expected a layer or a class, such as TransformerEncoder"),
    ):
        with pytest.raises(OptionError, match=message):
            Seq2Seq(*tokenizers, **{"units": 8, **options})
    with pytest.raises(OptionError, match="source_tokenizer='char': expected a tokenizer, such as CharTokenizer"):
        Seq2Seq("char", "char")
    keras.config.set_floatx("float16")
    try:
        with pytest.raises(OptionError, match=r"floatx is 'float16': .*use dtype='mixed_float16'"):
            Seq2Seq(*tokenizers, units=8)
    finally:
        keras.config.set_floatx("float32")


@pytest.mark.parametrize("options", [{"units": 4}, {"cell": "gru"}, {"layers": 2}], ids=str)
def test_a_decoder_needs_an_encoder_with_the_same_state(options):
    with pytest.raises(OptionError, match=r"the encoder's state has the sizes .*, and this decoder needs \[\[8, 8\]\]"):
        Decoder(9, 8).start(Encoder(9, **{"units": 8, **options})(tf.constant([[4]])))


def test_a_decoder_that_starts_from_the_mean_of_a_memory_needs_its_size():
    memory = Encoded(tf.zeros([2, 3, 16]), tf.ones([2, 3], tf.bool))
    with pytest.raises(OptionError, match=r"units=8: .* mean of the memory, which has the size 16; project the memory"):
        Decoder(9, 8).start(memory)


def test_a_decoder_starts_from_the_mean_of_a_memory_without_a_state():
    memory, mask = tf.reshape(tf.range(24.0), [1, 3, 8]), tf.constant([[True, True, False]])
    _, state = Decoder(9, 8, layers=2).start(Encoded(memory, mask))
    for part in tf.nest.flatten(state):
        np.testing.assert_array_equal(part, [np.arange(4.0, 12.0)])


def test_few_rows_stay_few_when_decoding_is_compiled_on_a_cpu(tokenizers, monkeypatch):
    model = Seq2Seq(*tokenizers, units=8)
    model.compiles_decoding, seen = True, []
    call = model.encoder.call
    monkeypatch.setattr(model.encoder, "call", lambda source, **options: seen.append(source.shape) or call(source))
    for count, min_length in ((1, 0), (1, 2), (3, 2)):
        source = tokenizers[0].tokenize(["sol"] * count)
        assert model.decode(source, min_length=min_length, max_length=4).ids.shape[2] <= 4
    assert seen[0] == (1, 16) and len(seen) == 2  # the encoder is in it, and `min_length` makes no difference


def test_decode_takes_the_name_of_a_strategy(model, tokenizers):
    source = tokenizers[0].tokenize(["sol"])
    np.testing.assert_array_equal(model.decode(source, "beam").ids, model.decode(source, BeamSearch()).ids)
    with pytest.raises(OptionError, match="did you mean 'beam'"):
        model.decode(source, "beem")


@keras.saving.register_keras_serializable("tests")
class IdEncoder(Encoder):
    def call(self, source, training=False):
        assert source.dtype == tf.int32 and source.shape.rank == 2
        return super().call(source, training=training)


@keras.saving.register_keras_serializable("tests")
class IdDecoder(Decoder):
    def call(self, target, *args, **kwargs):
        assert target.dtype == tf.int32 and target.shape.rank == 2
        return super().call(target, *args, **kwargs)


@pytest.mark.parametrize("encoding", ["one_hot", "ids"])
def test_layers_get_ids_whatever_the_batches_hold(tokenizers, pairs, encoding):
    model = Seq2Seq(*tokenizers, encoder=IdEncoder, decoder=IdDecoder, units=8, teacher_forcing=0.5)
    model.compile()
    batches = batch_pairs(pairs, *tokenizers, 5, encoding=encoding)
    model.fit(batches, validation_data=batches, verbose=0)
    assert model.predict(batches).dtype == object
    (source, target), *_ = batches.take(1)
    assert model((source, target[:, :-1])).shape[0] == model.decode(source).ids.shape[0] == len(source)


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
        mixed = model.scheduled_sampling(source, inputs)
        ids = tf.argmax(mixed, -1).numpy() if mixed.shape.rank == 3 else mixed.numpy()
        right = target[:, :-1].numpy()
        np.testing.assert_array_equal(ids[:, 0], right[:, 0])  # START stays,
        np.testing.assert_array_equal(ids[right == PADDING], 0)  # and padding
        changed = (ids != right)[:, 1:][right[:, 1:] != PADDING].mean()
        assert (ids[:, 1:][ids[:, 1:] != right[:, 1:]] >= END).all()  # a guess is what decoding may write
        by_chance = 1 / (tokenizers[1].vocabulary_size - END)  # a guess may be right
        assert changed == pytest.approx(share * (1 - by_chance), abs=0.05)


def test_teacher_forcing_may_follow_a_schedule(tokenizers, batches, tmp_path):
    schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 10, 0.25)
    model = Seq2Seq(*tokenizers, units=8, **QUICK, teacher_forcing=schedule, label_smoothing=0.1)
    model.compile()
    model.fit(batches, verbose=0, shuffle=False)
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    assert again.teacher_forcing.get_config() == schedule.get_config() and again.label_smoothing == 0.1


def test_a_schedule_of_teacher_forcing_counts_the_steps_of_the_optimizer(tokenizers):
    schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 10, 0.0)
    model = Seq2Seq(*tokenizers, units=8, **QUICK, teacher_forcing=schedule)
    model.compile()
    source, target = map(tf.constant, ids_of(model))
    assert (model.scheduled_sampling(source, target) == target).numpy().all()
    model.optimizer.iterations.assign(10)
    assert (model.scheduled_sampling(source, target) != target).numpy().any()


@keras.saving.register_keras_serializable("tests")
class Scaled(Seq2Seq):
    """A model with a weight of its own."""

    def build(self, *_):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        super().build()


def test_a_model_that_was_compiled_and_not_trained_is_loaded_with_its_optimizer(model, tmp_path):
    model.compile("adam")
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")  # Keras would warn that it skips the variables
    assert len(again.optimizer.variables) == len(model.optimizer.variables) > len(model.trainable_variables)


def test_a_weight_that_a_derived_model_makes_is_saved_with_it(tokenizers, tmp_path):
    model = Scaled(*tokenizers, units=8, **QUICK)
    model.scale.assign(3.0)
    model.save(tmp_path / "x.keras")
    assert float(keras.models.load_model(tmp_path / "x.keras").scale) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"cell": "gru", "layers": 2, "bidirectional": True, "attention": "additive", "embedding": 12, "tied": True},
        {"attention": "dot", "input_feeding": True, "dropout": 0.1},
        {"attention": "monotonic", "copy": True, "dropout": 0.1},
    ],
    ids=str,
)
def test_every_kind_of_model_learns_saves_and_translates(tokenizers, tmp_path, options):
    keras.utils.set_random_seed(0)
    pairs = tf.data.Dataset.from_tensor_slices((WORDS, [word.upper() for word in WORDS]))
    model = Seq2Seq(*tokenizers, units=48, **options)
    model.compile(keras.optimizers.Adam(0.01, global_clipnorm=1.0))
    batches = batch_pairs(pairs.repeat(60), *tokenizers, batch_size=12, encoding="ids", seed=0)
    model.fit(batches, epochs=12, verbose=0, shuffle=False)
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    assert decoded(again.translate(WORDS, "beam")) == [word.upper() for word in WORDS]


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


@keras.saving.register_keras_serializable("tests")
class HalfDecoder(Decoder):
    """A decoder whose logits are of the precision that it computes in."""

    def call(self, *arguments, **options):
        logits, *more = super().call(*arguments, **options)
        return tf.cast(logits, self.compute_dtype), *more


@pytest.mark.slow
def test_mixed_precision_trains_saves_and_translates(tokenizers, batches, tmp_path):
    source, target = map(token_ids, next(iter(batches)))
    models = [
        Seq2Seq(*tokenizers, units=8, **QUICK, attention="dot", decoder=HalfDecoder, dtype=dtype)
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
    found, right = (it.translate(["sol"], "beam", max_length=5, details=True) for it in (again, model))
    assert decoded(found.texts[:, 0]) == decoded(right.texts[:, 0]) and np.isfinite(found.scores.numpy()).all()


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
        {**QUICK, "attention": "monotonic", "copy": True, "embedding": 4},
        {
            "encoder": TransformerEncoder,
            "decoder": TransformerDecoder,
            "layers": 1,
            "heads": 2,
            "tied": True,
            "copy": True,
        },
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
        assert np.isfinite(model.fit(source, target, sample_weight=np.ones(3), verbose=0).history["loss"]).all()
        model.save(tmp_path / "x.keras")
        again = keras.models.load_model(tmp_path / "x.keras")
        np.testing.assert_allclose(again((source, target)), model((source, target)), rtol=1e-12)
        assert np.isfinite(again.translate(["sol"], "beam", max_length=3, details=True).scores).all()
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy(policy)


def test_weights_of_sixteen_bits_are_refused(tokenizers):
    for dtype in ("float16", "bfloat16"):
        with pytest.raises(OptionError, match=f"dtype='{dtype}': .*use 'mixed_{dtype}'"):
            Seq2Seq(*tokenizers, units=8, dtype=dtype)


def operations(graph):
    """All nodes of a graph, those inside its functions too, each with the nodes inside it."""
    functions = {function.signature.name: function for function in graph.library.function}

    def inside(node):
        called = [attr.func.name for attr in node.attr.values() if attr.func.name in functions]
        return [inner for name in called for one in functions[name].node_def for inner in (one, *inside(one))]

    return [(node, inside(node)) for top in graph.node for node in (top, *inside(top))]


def loops(model, strategy, chosen):
    """What is inside the loops that decode, the outer one first: those with the operation by which they choose."""
    graph = model._translate_with(strategy, False, True, 1, False, False).get_concrete_function().graph.as_graph_def()
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
    model.compiles_decoding = False  # or there are more rows, of padding
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
    texts, right = ["ab\tV;UP", "ab\t", "dc\tUP;V"], [b"AB", b"ab", b"DC"]
    assert model.translate(texts).numpy().tolist() == right
    assert np.argmax(model.score(["ab\tV;UP"] * 2, ["ab", "AB"])) == 1
    assert model.attention(texts[:1])[0].source == ["a", "b", "V", "UP"]
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").translate(texts).numpy().tolist() == right
    model.export(tmp_path / "saved", beam=BeamSearch(2, n_best=2), probe=texts)  # which compares
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    # There, missing columns are empty, and surplus ones are not read.
    assert saved.greedy(["ab", "ab\tV;UP\tx"])["texts"].numpy().tolist() == [b"ab", b"AB"]


def test_samples_of_equal_sources_differ(model):
    source = model.source_tokenizer.tokenize(["sol"] * 8)
    found = model.decode(source, Sampling(2.0), max_length=5)
    assert len({tuple(row) for row in found.ids[:, 0].numpy().tolist()}) > 1


def test_options_are_refused_if_both_layers_are_made(tokenizers):
    encoder, decoder = (
        kind(tokenizer.vocabulary_size, units=4) for kind, tokenizer in zip((Encoder, Decoder), tokenizers, strict=True)
    )
    with pytest.raises(OptionError, match="option='units': encoder and decoder are made already; give it to their"):
        Seq2Seq(*tokenizers, encoder=encoder, decoder=decoder, units=4)


@pytest.mark.parametrize("parts", [(Encoder, Decoder), (TransformerEncoder, TransformerDecoder)], ids=["lstm", "mha"])
def test_a_decoder_asks_for_what_start_prepares(tokenizers, parts):
    model = Seq2Seq(*tokenizers, units=8, encoder=parts[0], decoder=parts[1])
    encoded = model.encode(["sol"])
    with pytest.raises(OptionError, match=r"encoded: not prepared; call `encoded, state = decoder\.start"):
        model.decoder(tf.constant([[START]]), encoded, encoded.state or ())
