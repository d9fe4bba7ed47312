import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines import batch_pairs
from seq2seq import Seq2Seq, teacher_forcing


@pytest.fixture(scope="module")
def upper_case(tmp_path_factory):
    """A model that has learned to write words in upper case, and the words."""
    from conftest import WORDS

    from pipelines import CharTokenizer

    keras.utils.set_random_seed(3)
    pairs = tf.data.Dataset.from_tensor_slices((WORDS, [word.upper() for word in WORDS]))
    source, target = CharTokenizer(), CharTokenizer()
    source.adapt(WORDS)
    target.adapt([word.upper() for word in WORDS])
    model = Seq2Seq(source, target, units=48)
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
def test_a_translation_depends_on_neither_its_batch_nor_its_place(upper_case):
    model, words = upper_case
    texts = [*words, "", "中🙂", "sol", "a" * 40, "gato\0"]
    together = decoded(model.translate(texts))
    assert together == [decoded(model.translate([text]))[0] for text in texts]
    assert together == decoded(model.translate(texts, batch_size=3))
    assert together[::-1] == decoded(model.translate(texts[::-1]))


@pytest.mark.slow
def test_padding_a_batch_differently_gives_the_same_translations(upper_case):
    model, words = upper_case
    ids = model.source_tokenizer.tokenize(words)
    texts = model.target_tokenizer.detokenize(model.decode(ids, 20))
    wider = model.target_tokenizer.detokenize(model.decode(tf.pad(ids, [[0, 0], [0, 13]]), 20))
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


def test_translate_is_traced_once_for_all_shapes(model):
    for texts in (["a"], ["b" * n for n in range(7)], [""], []):
        model.translate(texts, max_length=4, batch_size=3)
    assert model._translate_batch.experimental_get_tracing_count() == 1


def test_teacher_forcing_gives_the_right_tokens_so_far_and_asks_for_the_next(tokenizers):
    source, target = tokenizers
    ids = target.tokenize(["SOL", "MA"], start_end=True)
    one_hot = source.one_hot(source.tokenize(["sol", "ma"])), target.one_hot(ids)
    (_, inputs), labels, weights = teacher_forcing(*one_hot, target.vocabulary_size)
    np.testing.assert_array_equal(tf.argmax(inputs, -1), ids[:, :-1])
    np.testing.assert_array_equal(tf.argmax(labels, -1), ids[:, 1:])
    np.testing.assert_array_equal(weights, [[1, 1, 1, 1], [1, 1, 1, 0]])


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


def test_ids_train_the_same_model_as_one_hot_rows(pairs, tokenizers):
    losses, models = [], []
    for encoding in ("one_hot", "ids"):
        keras.utils.set_random_seed(1)
        model = Seq2Seq(*tokenizers, units=16)
        model.compile(optimizer="sgd")
        batches = batch_pairs(pairs, *tokenizers, batch_size=5, encoding=encoding, seed=1)
        losses.append(model.fit(batches, epochs=3, shuffle=False, verbose=0).history["loss"])
        models.append(model)
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


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
    keras.utils.set_random_seed(0)
    model = Seq2Seq(*tokenizers, units=8)
    model.compile(keras.optimizers.SGD(0.5, clipnorm=1.0), **how)
    before = model.evaluate(batches, verbose=0, return_dict=True)
    model.fit(batches.repeat(4), steps_per_epoch=12, epochs=1, verbose=0, shuffle=False)
    after = model.evaluate(batches, verbose=0, return_dict=True)
    assert set(after) == {"loss", "accuracy", "perplexity"} and after["loss"] < before["loss"]


@pytest.mark.slow
def test_mixed_precision_trains_saves_and_translates(tokenizers, batches, tmp_path):
    model = Seq2Seq(*tokenizers, units=8, dtype="mixed_bfloat16")
    model.compile()
    model.fit(batches, verbose=0, shuffle=False)
    source, target = next(iter(batches))
    assert model.encoder(source).memory.dtype == tf.bfloat16
    assert model((source, target[:, :-1])).dtype == tf.float32
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    assert again.dtype_policy.name == "mixed_bfloat16"
    assert decoded(again.translate(["sol"], max_length=5)) == decoded(model.translate(["sol"], max_length=5))


def test_own_loss_and_metrics_are_taken(model):
    model.compile("sgd", loss=keras.losses.CategoricalCrossentropy(from_logits=True), weighted_metrics=[])
    assert type(model.optimizer).__name__ == "SGD"


def test_the_decode_loop_is_one_loop_of_operations_with_gpu_kernels(model):
    # Private: nothing public lists the kernels of an operation. setup.cfg bounds TensorFlow to this series.
    from tensorflow.python.framework import kernels

    graph = model._translate_batch.get_concrete_function().graph.as_graph_def()
    functions = {function.signature.name: function for function in graph.library.function}

    def operations(nodes):
        for node in nodes:
            called = [attr.func.name for attr in node.attr.values() if attr.func.name in functions]
            yield node, called
            for name in called:
                yield from operations(functions[name].node_def)

    greedy = [node for node, called in operations(graph.node) if any("greedy" in name for name in called)]
    assert len(greedy) == 1
    loops = [
        (node, called)
        for node, called in operations(functions[greedy[0].attr["f"].func.name].node_def)
        if node.op in ("While", "StatelessWhile")
    ]
    assert len(loops) == 1  # and no loop inside it: one step of the LSTM is its cell
    inside = {node.op for name in loops[0][1] for node, _ in operations(functions[name].node_def)}
    assert {"MatMul", "ArgMax"} <= inside and not {op for op in inside if "String" in op or "Lookup" in op}
    registered = {op: kernels.get_registered_kernels_for_op(op).kernel for op in inside}
    assert [
        op for op, found in registered.items() if not {"GPU", "DEFAULT"} & {kernel.device_type for kernel in found}
    ] == []
