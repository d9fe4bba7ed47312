import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import QUICK, WORDS, ids_of

from pipelines import CharTokenizer, OptionError, batch_pairs
from pipelines.tokens import END, PADDING, START
from seq2seq import Seq2Seq
from seq2seq.compilation import on_gpu
from seq2seq.metrics import token_losses


def test_a_callback_made_of_functions_sees_each_step_and_loss_and_perplexity_agree(model, batches):
    seen = []
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(logs["loss"]))
    found = model.fit(batches, verbose=0, shuffle=False, callbacks=[callback]).history
    assert len(seen) == 3 and np.all(np.isfinite(seen)) and seen[-1] == found["loss"][0]
    assert found["perplexity"][0] == pytest.approx(np.exp(found["loss"][0]), rel=1e-5)


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


@pytest.mark.parametrize(("embedding", "optimizer"), [(None, "sgd"), (4, "adam")])
def test_ids_train_the_same_model_as_one_hot_rows(pairs, tokenizers, embedding, optimizer):
    losses, models = [], []
    for encoding in ("one_hot", "ids"):
        keras.utils.set_random_seed(1)
        model = Seq2Seq(*tokenizers, units=16, **QUICK, embedding=embedding)
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
    model = Seq2Seq(*tokenizers, units=16, **QUICK, embedding=embedding)
    model.compile(keras.optimizers.SGD(1.0, global_clipnorm=0.01))
    before = [weight.numpy() for weight in model.trainable_weights]
    source, target = (of.tokenize(["lasallana", "sososo"], start_end=True) for of in tokenizers)
    model.fit(tf.data.Dataset.from_tensors((source[:, 1:], target)), shuffle=False, verbose=0)
    steps = [weight.numpy() - old for weight, old in zip(model.trainable_weights, before, strict=True)]
    np.testing.assert_allclose(np.sqrt(sum(np.sum(step**2) for step in steps)), 0.01, rtol=1e-3)


@pytest.mark.slow
def test_a_scaled_loss_that_is_too_large_for_float16_lowers_its_scale_and_is_then_learned_from(tokenizers):
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
    ("wrap", "how"),
    [
        (lambda sgd: sgd, None),
        (lambda sgd: sgd, "as on a GPU"),
        (keras.optimizers.LossScaleOptimizer, None),
        pytest.param(keras.optimizers.LossScaleOptimizer, "as on a GPU", marks=pytest.mark.slow),
    ],
)
def test_an_epoch_that_nothing_was_learned_in_has_no_figures(model, batches, wrap, how, monkeypatch):
    model.compile(wrap(keras.optimizers.SGD(0.1)))
    monkeypatch.setattr("seq2seq.trainer.on_gpu", lambda: how == "as on a GPU")
    kernel = model.decoder.output_layer.kernel
    kernel.assign(kernel * np.nan)
    before = [weight.numpy() for weight in model.trainable_weights]
    found = model.fit(batches, verbose=0, shuffle=False).history
    assert set(found) == {"loss", "accuracy", "perplexity"} and all(np.isnan(figures) for figures in found.values())
    for one, other in zip(before, model.trainable_weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(model.optimizer.iterations) == 0
    assert float(getattr(model.optimizer, "dynamic_scale", 2.0**12)) == 2.0**12  # of 2^15, halved three times


@pytest.mark.parametrize("works", [True, False], ids=["compiled", "not compiled"])
def test_updates_as_on_a_gpu_are_the_same(tokenizers, batches, monkeypatch, works):
    weights, compiled, batches = [], [], batches.cache()
    monkeypatch.setattr("seq2seq.trainer.xla_works", lambda: works)
    for gpu in (False, True):
        monkeypatch.setattr("seq2seq.trainer.on_gpu", lambda gpu=gpu: gpu)
        keras.utils.set_random_seed(1)
        model = Seq2Seq(*tokenizers, units=8, **QUICK, embedding=4)
        model.compile(keras.optimizers.AdamW(0.05, weight_decay=0.1, clipnorm=0.1))
        model.fit(batches, epochs=2, verbose=0, shuffle=False)  # Keras finds the end of each epoch by one step more
        assert model.optimizer.iterations == 2 * 3
        weights.append([*map(np.array, model.weights), *map(np.array, model.optimizer.variables)])
        compiled.append(model._compiled_update.cache_info().currsize)
    assert compiled == [0, works]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_an_optimizer_that_xla_refuses_is_used_uncompiled(model, batches, monkeypatch):
    class ByNumpy(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return tf.numpy_function(lambda: np.float32(0.1), [], tf.float32)

    monkeypatch.setattr("seq2seq.trainer.on_gpu", lambda: True)
    model.compile(keras.optimizers.SGD(ByNumpy()))
    with pytest.warns(UserWarning, match="updates of weights are not compiled, because XLA refuses them: .*PyFunc"):
        model.fit(batches, verbose=0, shuffle=False)
    assert model.optimizer.iterations == 3


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
        model = Seq2Seq(*tokenizers, units=8, **QUICK)
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


def test_a_learning_rate_that_begins_at_zero_is_not_warned_of(model, batches):
    model.compile(keras.optimizers.SGD(keras.optimizers.schedules.PolynomialDecay(0.0, 9, 0.1)))
    model.fit(batches, verbose=0, shuffle=False)


def test_padding_costs_nothing_in_a_test_step(model, batches):
    source, target = next(iter(batches))
    logs = {name: float(value) for name, value in model.test_step((source, target)).items()}
    model.reset_metrics()
    wider = [tf.pad(side, [[0, 0], [0, 6], [0, 0]]) for side in (source, target)]
    again = model.test_step(wider)
    for name, value in logs.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}])
def test_fit_and_evaluate_work_however_keras_runs_the_step(tokenizers, batches, how):
    if on_gpu() and "jit_compile" in how:
        pytest.skip("XLA cannot compile cuDNN's recurrences")
    keras.utils.set_random_seed(0)
    model = Seq2Seq(*tokenizers, units=8, **QUICK, attention="monotonic")  # which has a loop of its own
    model.compile(keras.optimizers.SGD(0.5, clipnorm=1.0), **how)
    batches = batches.take(1).cache().repeat(3)  # of one shape, as XLA compiles each
    before = model.evaluate(batches, verbose=0, return_dict=True)
    model.fit(batches.repeat(4), steps_per_epoch=12, epochs=1, verbose=0, shuffle=False)
    after = model.evaluate(batches, verbose=0, return_dict=True)
    assert set(after) == {"loss", "accuracy", "perplexity"} and after["loss"] < before["loss"]


def test_a_weight_multiplies_what_a_pair_counts_for(tokenizers):
    def learned(how, words, weights=None):
        keras.utils.set_random_seed(1)
        model = Seq2Seq(*tokenizers, units=8, **QUICK, attention="dot")
        model.compile(keras.optimizers.SGD(0.5))
        source, target = ids_of(model, words)
        if how == "labels":
            weights = np.repeat(weights[:, None], target.shape[1] - 1, axis=1)
        measured = model.test_on_batch(source, target, weights, return_dict=True)
        if how == "train_on_batch":
            found = model.train_on_batch(source, target, weights, return_dict=True)
        elif how == "dataset":
            found = model.fit(tf.data.Dataset.from_tensors((source, target, weights)), verbose=0).history
        else:
            found = model.fit(source, target, sample_weight=weights, verbose=0).history
        found = {name: float(np.squeeze(value)) for name, value in found.items()}
        assert found == pytest.approx(measured, rel=1e-4)
        return found, model.get_weights(), model.length_ratios.numpy()

    one, weights, _ = learned("fit", ["sol", "mar", "mar", "mar"])
    for how in ("train_on_batch", "fit", "dataset", "labels"):
        other, again, ratios = learned(how, ["sol", "mar", "gatonube"], np.array([1.0, 3.0, 0.0]))
        assert other == pytest.approx(one, rel=1e-5) and ratios[0] == 3  # lengths are what they are
        for value, same in zip(weights[1:], again[1:], strict=True):
            if value.shape != (3,):
                np.testing.assert_allclose(value, same, atol=1e-6, err_msg=how)


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


def test_batches_and_an_evaluation_after_a_quiet_fit_have_figures_at_each_step(model, batches):
    model.fit(batches, validation_data=batches, verbose=0)
    assert np.isfinite(list(model.train_step(next(iter(batches))).values())).all()
    seen = []
    follow = keras.callbacks.LambdaCallback(on_test_batch_end=lambda _, logs: seen.append(logs["accuracy"]))
    found = model.evaluate(batches, verbose=0, return_dict=True, callbacks=[follow])
    assert np.all(np.isfinite(seen)) and seen[-1] == found["accuracy"]
    functions = []
    for _ in range(2):
        model.fit(batches, validation_data=batches, verbose=0)
        model.evaluate(batches, verbose=0)
        functions.append(model.test_function)
    assert functions[0] is functions[1]  # neither is traced again
    assert np.all(np.isfinite(model.train_on_batch(*ids_of(model))))
    seen.clear()
    model.fit(batches, validation_data=batches, verbose=0, callbacks=[follow])
    assert seen and np.all(np.isfinite(seen))
    seen.clear()
    test = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.extend(model.test_on_batch(*ids_of(model))))
    model.fit(batches, verbose=0, callbacks=[test])
    assert seen and np.all(np.isfinite(seen))


def test_a_step_after_a_quiet_fit_that_has_failed_has_figures(model, batches):
    source, target = ids_of(model)
    with pytest.raises(OptionError):
        model.fit(tf.data.Dataset.from_tensors((source[:, ::-1], target)), verbose=0)
    assert np.isfinite(list(model.train_step(next(iter(batches))).values())).all()


def test_a_callback_with_the_short_name_of_its_method_sees_each_step(model, batches):
    class Follow(keras.callbacks.Callback):
        def on_batch_end(self, batch, logs=None):
            seen.append(logs["loss"])

    seen = []
    model.fit(batches, verbose=0, callbacks=[Follow()])
    assert len(seen) == 3 and np.all(np.isfinite(seen))


def test_a_pydataset_is_shuffled_unless_it_is_asked_not_to(model):
    class Words(keras.utils.PyDataset):
        def __len__(self):
            return 40

        def __getitem__(self, number):
            read.append(number)
            return ids_of(model, ["sol"])

    for options, same in (({}, False), ({"shuffle": False}, True)):
        read = []
        model.fit(Words(), verbose=0, **options)
        epoch = read[-40:]  # Keras reads some before, to see what they are
        assert sorted(epoch) == [*range(40)] and (epoch == sorted(epoch)) == same


def test_a_metric_with_the_name_of_a_default_one_takes_its_place(model, batches):
    model.compile(metrics=[keras.metrics.SparseTopKCategoricalAccuracy(k=100, name="accuracy")])
    found = model.evaluate(batches, verbose=0, return_dict=True)
    assert found["accuracy"] == 1 and sorted(found) == ["accuracy", "loss", "perplexity"]


def test_keras_compiles_no_step_by_itself(model):
    model.compile()
    assert model.get_compile_config()["jit_compile"] is False  # "auto" would compile each shape on a GPU
    model.compile(jit_compile=True)
    model.compile_from_config(model.get_compile_config())
    assert model.jit_compile is True


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
def test_ids_may_be_integers_of_any_size(tokenizers, dtype):
    model = Seq2Seq(*tokenizers, units=8, **QUICK, embedding=4, teacher_forcing=0.5)
    model.compile()
    source, target = (ids.astype(dtype) for ids in ids_of(model))
    assert np.isfinite(model.fit(source, target, verbose=0).history["loss"]).all()
    (ids,), (found,) = model.decode(source[:1]).ids, model.predict(source[:1], verbose=0)
    assert model.target_tokenizer.detokenize(ids) == found
    np.testing.assert_array_equal(model.log_likelihood(source, target), model.log_likelihood(*ids_of(model)))


@pytest.mark.parametrize("side", [0, 1])
def test_a_vocabulary_that_the_model_was_not_made_for_is_refused(tokenizers, side):
    sides = list(tokenizers)
    sides[side] = CharTokenizer()
    model = Seq2Seq(*sides, units=4)
    model.compile()
    batch = [np.full([1, 3], START)] * 2
    with pytest.raises(OptionError, match=r"fit: the (source|target) vocabulary is empty; call `adapt` before"):
        model.fit(*batch, verbose=0)
    sides[side].adapt(["sol"])
    for run in (model.fit, model.evaluate, model.train_on_batch, model.test_on_batch):
        with pytest.raises(OptionError, match=r"the (source|target) vocabulary has changed since the model was made"):
            run(*batch)


def test_fit_and_evaluate_say_what_they_are_to_be_given(model, pairs, batches):
    source, target = ids_of(model)
    for run, message in (
        (lambda: model.fit(pairs), "fit: expected batches of ids .* not texts; batch_pairs"),
        (lambda: model.fit([]), "fit: expected batches of ids"),
        (lambda: model.fit(batches.take(0), verbose=0), "fit: the data holds no batches"),
        (lambda: model.fit(np.array(["sol"]), np.array(["SOL"])), "fit: expected batches of ids .* not texts"),
        (lambda: model.evaluate(pairs.batch(2)), "evaluate: expected batches of ids .* not texts"),
        (lambda: model.predict(["sol"]), "predict: .*`translate` takes texts"),
        (lambda: model.predict(np.array(["sol"])), "predict: .*`translate` takes texts"),
        (lambda: model.fit(source, verbose=0), r"expected \(source, target\)"),
        (lambda: model.fit(tf.RaggedTensor.from_tensor(source), target), r"expected \(source, target\), ids \[B, S\]"),
        (lambda: model.fit((source, target[:, :-1]), target[:, 1:], verbose=0), r"expected \(source, target\)"),
        (lambda: model.fit(source, target, class_weight={1: 2.0}), "class_weight: .* sample_weight"),
        (lambda: model.train_on_batch(source, target, class_weight={1: 2.0}), "class_weight: .* sample_weight"),
        (lambda: model.train_on_batch(source, target[:, 1:]), "train_on_batch: a target does not begin with START"),
        (lambda: model.fit(batches, validation_data=pairs), "validation_data: expected batches of ids .* not texts"),
        (lambda: model(source), r"call: expected \(source, target so far\)"),
        (lambda: model("sol"), "call: .*`translate` takes texts"),
        (lambda: model(["sol"]), "call: .*`translate` takes texts"),
        (lambda: model.export("x", format="openvino"), "format='openvino': expected .*'tf_saved_model'"),
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
    for run in (
        lambda: model.fit(batches, steps_per_epoch=9, verbose=0),
        lambda: model.fit(batches, validation_data=batches, validation_steps=9, verbose=0),
        lambda: model.evaluate(batches, steps=9, verbose=0),
    ):
        with pytest.warns(UserWarning, match="Your input ran out of data"):
            run()


SPARSE = keras.losses.SparseCategoricalCrossentropy


@pytest.mark.parametrize(
    "options",
    [
        {"metrics": ["accuracy", keras.metrics.sparse_categorical_accuracy]},
        {"weighted_metrics": ["accuracy"]},
        {"metrics": [keras.metrics.SparseCategoricalAccuracy("accuracy")], "weighted_metrics": None},
        {"loss": SPARSE(from_logits=True, reduction="mean_with_sample_weight"), "metrics": []},
    ],
    ids=["metrics", "weighted", "object", "loss"],
)
def test_whatever_it_is_compiled_with_padding_is_not_counted(model, tmp_path, options):
    bias = model.decoder.output_layer.bias
    bias.assign(9.0 * tf.one_hot(END, bias.shape[0]))  # so that some tokens are right
    source, target = ids_of(model)
    model.compile("sgd", **options)
    model.save(tmp_path / "x.keras")
    found = []
    for it in (model, keras.models.load_model(tmp_path / "x.keras")):
        for more in (0, 9):
            wide = [np.pad(side, [(0, 0), (0, more)]) for side in (source, target)]
            found.append(it.evaluate(*wide, verbose=0, return_dict=True))
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)
    logits = model((source, target[:, :-1])).numpy()
    accuracy = (logits.argmax(-1) == target[:, 1:])[target[:, 1:] != PADDING].mean()
    assert 0 < accuracy < 1
    figures = [figure for name, figure in found[0].items() if name not in ("loss", "perplexity")]
    assert figures == pytest.approx([accuracy] * max(1, len(options.get("metrics", ()))))


class OwnStep(Seq2Seq):
    def train_step(self, data):
        source, target = data
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(self.log_likelihood(source, target))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables))
        return {"nll": loss}


class Tracking(Seq2Seq):
    """A model with a figure of its own: the number of rows in a batch."""

    def build(self, *_):
        self.rows = keras.metrics.Mean("rows")
        super().build()

    def train_step(self, data):
        self.rows.update_state(tf.shape(data[0])[0])
        return super().train_step(data)


@pytest.mark.parametrize("verbose", [0, 2])
def test_a_figure_of_ones_own_is_a_mean_over_the_epoch_and_unknown_where_it_was_not_measured(
    pairs, tokenizers, verbose
):
    model = Tracking(*tokenizers, units=8, **QUICK)
    model.compile("adam")
    batches = batch_pairs(pairs, *tokenizers, batch_size=4, encoding="ids")
    history = model.fit(batches, validation_data=batches, epochs=2, verbose=verbose).history
    assert history["rows"] == pytest.approx([len(list(pairs)) / len(list(batches))] * 2)
    assert np.isnan(history["val_rows"]).all() and np.isfinite(history["val_accuracy"]).all()


def test_a_model_returns_the_attention_that_it_computes_with(pairs, tokenizers, batches):
    model = Seq2Seq(*tokenizers, units=8, **QUICK, attention="dot")
    source, target = next(iter(batches))
    logits, weights = model((source, target[:, :-1]), return_attention=True)
    np.testing.assert_allclose(logits, model((source, target[:, :-1])), atol=1e-6)
    assert weights.shape == (*logits.shape[:2], source.shape[1])
    np.testing.assert_allclose(tf.reduce_sum(weights, axis=2)[:, 0], 1, atol=1e-5)
    without = Seq2Seq(*tokenizers, units=8, **QUICK)
    with pytest.raises(OptionError, match="return_attention: this Decoder has no attention"):
        without((source, target[:, :-1]), return_attention=True)


@pytest.mark.parametrize("built", [False, True])
def test_a_step_of_ones_own_needs_no_measure_and_its_pairs_are_counted(pairs, tokenizers, built):
    model = OwnStep(*tokenizers, units=8)
    model.compile("adam")
    if built:  # as `train` does
        model.build_training()
    batches = batch_pairs(pairs, *tokenizers, batch_size=4, encoding="ids")
    history = model.fit(batches, validation_data=batches, epochs=2, verbose=0).history
    assert np.isfinite([history["nll"], history["val_loss"]]).all()
    assert model.length_ratios[0] == 2 * len(list(pairs))


def test_a_loss_or_metric_whose_figure_would_be_wrong_is_refused(model):
    class RootMean(keras.losses.Loss):
        def __call__(self, labels, logits, sample_weight):
            losses = sample_weight * token_losses(labels, logits)
            return tf.reduce_sum(losses) / tf.sqrt(tf.reduce_sum(sample_weight))

    for options, message in (
        ({"loss": "sparse_categorical_crossentropy"}, "loss=.*takes probabilities.*from_logits=True"),
        ({"loss": SPARSE(reduction="sum")}, "loss=.*takes probabilities.*from_logits=True"),
        ({"loss": SPARSE(from_logits=True)}, "loss=.*counts padding.*mean_with_sample_weight"),
        ({"loss": SPARSE(from_logits=True, reduction="sum")}, "loss=.*changes with the number of rows, as a sum does"),
        ({"loss": RootMean(name="root")}, "loss=root: changes with the number of rows"),
        ({"loss": "mse"}, "loss='mse': must take ids"),
        ({"loss": keras.losses.CategoricalCrossentropy(from_logits=True)}, "loss=.*must take ids"),
        ({"metrics": [keras.metrics.SparseCategoricalCrossentropy()]}, "metrics=.*takes probabilities"),
        ({"metrics": ["bleu"]}, "metrics: .*bleu"),
        ({"metrics": ["sparse_categorical_crossentropy"]}, "metrics=.*takes probabilities"),
        ({"metrics": [keras.metrics.SparseTopKCategoricalAccuracy(name="loss")]}, "metrics: 'loss' is the name"),
        (
            {"metrics": [keras.metrics.SparseTopKCategoricalAccuracy(k) for k in (3, 5)]},
            "metrics: two are called 'sparse_top_k",
        ),
    ):
        with pytest.raises(OptionError, match=message):
            model.compile(**options)


def test_a_metric_of_several_numbers_is_refused(model, batches):
    class Several(keras.metrics.Metric):
        def update_state(self, labels, logits, sample_weight=None):
            pass

        def result(self):
            return tf.zeros([2])

    model.compile(metrics=[Several(name="several")])
    with pytest.raises(OptionError, match="metrics: the result of 'several' is not a single number"):
        model.fit(batches, verbose=0)


def test_padding_does_not_count_in_a_subclass_of_a_metric_of_keras(model, pairs):
    class Top(keras.metrics.SparseTopKCategoricalAccuracy):
        pass

    model.compile(metrics=[Top(name="top")])
    tokenizers = model.source_tokenizer, model.target_tokenizer
    sizes = [batch_pairs(pairs, *tokenizers, batch_size=size, shuffle=False) for size in (1, 5, 12)]
    one, *others = (model.evaluate(batches, verbose=0, return_dict=True)["top"] for batches in sizes)
    assert others == pytest.approx([one, one], rel=1e-5)


def test_arrays_that_would_teach_something_else_are_refused(model):
    source, target = ids_of(model)
    for x, y, message in (
        (source, target[:, 1:], "a target does not begin with START; `tokenize` adds it with start_end=True"),
        (source[:, ::-1], target, "a source has padding before a token; expected it after the last one"),
        (source, np.roll(target, 1, axis=1), "a target has padding before a token"),
        (source[:, :0], target, "expected one source token or more"),
        (source, target[:, :1], "expected .* START with one target token or more"),
    ):
        for use, place in (
            (lambda x=x, y=y: model.fit(x, y), "fit"),
            (lambda x=x, y=y: model.fit(source, target, validation_data=(x, y)), "validation_data"),
            (lambda x=x, y=y: model.evaluate(x, y), "evaluate"),
        ):
            with pytest.raises(OptionError, match=f"{place}: {message}"):
                use()
    assert model.optimizer.iterations == 0
    one_hot = model.source_tokenizer.one_hot(source), model.target_tokenizer.one_hot(target)
    for x in (source.astype(float), one_hot[0].numpy().astype(int)):
        with pytest.raises(OptionError, match=r"expected ids .*, or one-hot rows .* of floats, not (float64|int64) \("):
            model.fit(x, target)
    for x, y in ((source, target), one_hot):
        assert np.isfinite(model.fit(x, y, verbose=0).history["loss"])


@pytest.mark.parametrize("eagerly", [False, True])
@pytest.mark.parametrize("weights", [(), (np.ones(3, np.float32),)], ids=["plain", "weighted"])
def test_a_batch_that_would_teach_something_else_is_refused(model, weights, eagerly):
    model.compile(run_eagerly=eagerly)
    source, target = (side[:3] for side in ids_of(model))
    for x, y, message in (
        (source, target[:, 1:], "fit: a target does not begin with START"),
        (source[:, ::-1], target, "fit: a source has padding before a token"),
    ):
        data = tf.data.Dataset.from_tensors((x, y, *weights))
        if on_gpu():  # which would have to be waited for
            model.fit(data, verbose=0)
            continue
        before = model.get_weights()
        with pytest.raises(OptionError, match=message):
            model.fit(data, verbose=0)
        for one, other in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    model.fit(tf.data.Dataset.from_tensors((source, target, *weights)), verbose=0)


def test_fit_trains_again_after_a_backup_was_restored(model, batches, tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        model.fit(batches, epochs=4, verbose=0, callbacks=[backup, Interrupt()])
    assert model.fit(batches, epochs=4, verbose=0, callbacks=[backup]).epoch == [2, 3]
    assert model.fit(batches, epochs=2, verbose=0).epoch == [0, 1]


def test_freezing_needs_compile_to_have_an_effect_and_fit_says_so(model, batches):
    model.encoder.trainable, ids = False, ids_of(model)
    for place, train in (("fit", lambda: model.fit(batches)), ("train_on_batch", lambda: model.train_on_batch(*ids))):
        with pytest.raises(OptionError, match=f"{place}: weights were frozen or unfrozen after `compile`, so compile"):
            train()
    model.compile()
    before = [weight.numpy() for weight in model.encoder.weights]
    model.fit(batches, verbose=0)
    assert all((old == new.numpy()).all() for old, new in zip(before, model.encoder.weights, strict=True))


@pytest.mark.parametrize("encoding", ["one_hot", "ids"])
def test_batches_of_other_tokenizers_are_refused(model, pairs, tokenizers, encoding):
    few = CharTokenizer("a"), CharTokenizer("".join(map(chr, range(300, 400))) + "SOLMAR")  # whose ids are large
    batches = [batch_pairs(pairs, *each, batch_size=5, encoding=encoding) for each in (tokenizers, few)]
    message = {"one_hot": "one-hot source rows of 5 tokens, but the source vocabulary has", "ids": "a target has an id"}
    with pytest.raises(OptionError, match=f"fit: {message[encoding]}"):
        model.fit(batches[1], verbose=0)
    assert model.optimizer.iterations == 0
    model.fit(batches[0], validation_data=batches[0], verbose=0)
    if encoding == "one_hot":
        with pytest.raises(OptionError, match=f"validation_data: {message[encoding]}"):
            model.fit(batches[0], validation_data=batches[1])
        with pytest.raises(OptionError, match=f"evaluate: {message[encoding]}"):
            model.evaluate(batches[1])
    source, target = ids_of(model)
    with pytest.raises(OptionError, match="evaluate: a target has an id that its vocabulary lacks"):
        model.evaluate(source, np.where(target == START, START, target + 100))


def test_batches_made_before_a_tokenizer_was_adapted_are_warned_of(pairs):
    tokenizers = CharTokenizer(), CharTokenizer()
    for tokenizer in tokenizers:
        tokenizer.adapt(["sol"])
    batch_pairs(pairs, *tokenizers)
    tokenizers[0].adapt(["los"])  # the same tokens
    with pytest.warns(UserWarning, match="batches made with this tokenizer keep its old ids; call batch_pairs again"):
        tokenizers[0].adapt(["mar"])
    tokenizers[0].adapt(["sol"])


def test_validation_without_batches_is_warned_of(model, batches):
    with pytest.warns(UserWarning, match="fit: validation_data has no batches, so all its figures are NaN"):
        model.fit(batches, validation_data=batches.take(0), verbose=0)


def test_callbacks_know_that_a_lower_perplexity_is_better(model, batches):
    stop = keras.callbacks.EarlyStopping("val_perplexity", patience=3)
    model.compile(metrics=[keras.metrics.SparseTopKCategoricalAccuracy(2, name="top")])
    rates = keras.callbacks.EarlyStopping("val_top")
    model.fit(batches, validation_data=batches, epochs=2, verbose=0, callbacks=[stop, rates])
    assert stop.monitor_op(1, 2) and rates.monitor_op(2, 1)
