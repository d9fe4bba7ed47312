import json
import os

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from command_line import in_process as seq2seq
from conftest import WORDS

from pipelines import CharTokenizer, OptionError
from pipelines.columns import ColumnsTokenizer
from pipelines.tokenizers import LetterTokenizer, SeparatorTokenizer
from seq2seq import BeamSearch, Decoder, Seq2Seq, TransformerDecoder, TransformerEncoder, ensemble
from seq2seq.onnx_runtime import Translator
from seq2seq.records import RunError

UPPER = [word.upper() for word in WORDS]
TRANSFORMER = {"encoder": TransformerEncoder, "decoder": TransformerDecoder, "layers": 1, "heads": 2, "copy": True}
GRU = {"cell": "gru", "bidirectional": True, "layers": 2, "attention": "additive", "input_feeding": True}
MODELS = {
    "without attention": {"embedding": 4, "tied": True},
    "gru, input feeding": {"embedding": 4, **GRU},
    "monotonic, copying": {"attention": "monotonic", "copy": True, "embedding": 4},
    "transformer, copying": TRANSFORMER,
}


def untrained(seed=3, source=None, target=None, **options):
    """A model with large random weights, so that sources and tokens have clearly different scores."""
    keras.utils.set_random_seed(seed)
    source, target = source or CharTokenizer(), target or LetterTokenizer()
    for tokenizer, texts in ((source, WORDS), (target, WORDS)):
        tokenizer.adapt(texts)
    if options.get("copy"):
        target.add_unknown_token()
    model = Seq2Seq(source, target, units=8, **options)
    for weight in model.trainable_variables:
        if len(weight.shape) > 1:
            weight.assign(3 * np.random.default_rng(seed).normal(size=weight.shape) / weight.shape[0] ** 0.5)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model_translates_the_same(name, tmp_path):
    options, texts = dict(MODELS[name]), [*WORDS, "", "solmarsol", "x?"]
    if "transformer" in name:
        options["source"] = ColumnsTokenizer([CharTokenizer(), SeparatorTokenizer(";")], ["word", "features"])
        texts = [f"{text}\tsol;mar" for text in texts] + ["mar\t", "mar\tsol;x"]
    model = untrained(**options)
    model.export(tmp_path / "onnx", format="onnx", probe=texts)
    translator = Translator(tmp_path / "onnx")
    found = [text.decode() for text in model.translate(texts).numpy()]
    assert translator.translate(texts) == found
    if "transformer" in name:
        assert translator.translate(["mar", "mar\tsol;x\tmore"]) == found[-2:]
    unknown = "x" in "".join(found)
    assert unknown == ("copying" in name), found
    beam = model.translate(texts, BeamSearch(), details=True)
    for hypotheses, (text,), (score,) in zip(
        translator.search(texts, beam_width=5), beam.texts.numpy(), beam.scores.numpy(), strict=True
    ):
        assert hypotheses[0].text == text.decode() and hypotheses[0].score == pytest.approx(score, rel=1e-3)
    assert len(set(beam.scores.numpy().round(2).flat)) > 6  # what a mix-up of sources would show in
    for graph in ("encoder.onnx", "decoder.onnx"):
        onnx.checker.check_model(tmp_path / "onnx" / graph, full_check=True)
    assert json.loads((tmp_path / "onnx" / "probe.json").read_text()) == dict(zip(texts, found, strict=True))


@pytest.mark.slow
def test_an_ensemble_is_exported_as_one_model(tmp_path):
    models = [untrained(seed, attention="hard") for seed in (1, 2)]
    together = ensemble(models)
    together.export(tmp_path / "onnx", format="onnx", probe=WORDS)
    found = Translator(tmp_path / "onnx").translate(WORDS)
    assert found == [text.decode() for text in together.translate(WORDS).numpy()]
    assert found != [text.decode() for text in models[0].translate(WORDS).numpy()]


@pytest.mark.slow
def test_the_command_exports_a_run_as_onnx(trained, tmp_path):
    done = seq2seq("export", trained.folder, tmp_path / "onnx", "--format", "onnx")
    assert (done.returncode, done.stdout.decode()) == (0, f"{tmp_path / 'onnx'}\n"), done.stderr
    files = {"encoder.onnx", "decoder.onnx", "vocabulary.json", "probe.json", "translator.py"}
    assert set(os.listdir(tmp_path / "onnx")) == files and not done.stderr
    right = [text.decode() for text in trained.model.translate(["ab", "cd"]).numpy()]
    assert Translator(tmp_path / "onnx").translate(["ab", "cd"]) == right
    again = seq2seq("export", trained.folder, tmp_path / "onnx", "--format", "onnx")
    assert again.returncode == 2 and b"onnx already exists" in again.stderr
    for options, message in (
        (["--format", "onnx", "--beam-width", 3], b"--beam-width: applies only to --format savedmodel"),
        (["--format", "onnx", "--onnxruntime-web", "x.tgz"], b"--onnxruntime-web: applies only to --format web"),
        (["--format", "tflite"], b"format='tflite': expected 'savedmodel', 'onnx', 'litert', 'web'"),
    ):
        done = seq2seq("export", trained.folder, tmp_path / "other", *options)
        assert done.returncode == 2 and message in done.stderr and not (tmp_path / "other").exists()


@keras.saving.register_keras_serializable("test")
class HalvesTokenizer(CharTokenizer):
    """A custom tokenizer, which no runtime knows."""


@keras.saving.register_keras_serializable("test")
class HashingDecoder(Decoder):
    """A decoder with an operation that ONNX does not have."""

    def call(self, target, encoded, state, training=False, return_attention=False):
        logits, state = super().call(target, encoded, state, training)
        return logits + tf.cast(tf.strings.to_hash_bucket_fast(tf.strings.as_string(logits), 3), tf.float32), state


@keras.saving.register_keras_serializable("test")
class PairsDecoder(Decoder):
    """A decoder that prepares something of all sources together."""

    def start(self, encoded):
        encoded, state = super().start(encoded)
        flat = tf.reshape(encoded.memory, [-1, 8])
        return encoded._replace(extra=encoded.extra._replace(projected_memory=flat)), state


def test_what_has_no_onnx_form_says_why_and_leaves_nothing(model, tmp_path):
    cases = (
        (untrained(source=HalvesTokenizer()), "source_tokenizer=HalvesTokenizer: cannot be used outside TensorFlow"),
        (untrained(dtype="mixed_bfloat16"), "a model of mixed_bfloat16 cannot be exported to ONNX"),
        (untrained(target=ColumnsTokenizer([CharTokenizer()])), "targets of several columns"),
        (
            untrained(decoder=HashingDecoder),
            "Encoder and HashingDecoder cannot be exported as ONNX .*(HashBucket|AsString)",
        ),
        (untrained(decoder=PairsDecoder), r"a tensor \(None, 8\) .* is neither constant nor has one row"),
    )
    for bad, message in cases:
        with pytest.raises(RunError, match=message):
            bad.export(tmp_path / "onnx", format="onnx")
    with pytest.raises(RunError, match="already exists"):
        model.export(tmp_path, format="onnx")
    with pytest.raises(OptionError, match="format='tflite': expected 'tf_saved_model', 'onnx', 'litert', 'web'"):
        model.export(tmp_path / "onnx", format="tflite")
    assert os.listdir(tmp_path) == ["pairs.tsv"]


@pytest.mark.parametrize("format", ["tf_saved_model", "onnx"])
def test_a_full_disk_is_no_fault_of_the_model(model, full_disk, format):
    (full_disk / "filler").write_bytes(bytes(1_020_000))
    with pytest.raises((OSError, RunError)) as error:
        model.export(full_disk / "exported", format=format)
    assert "space left" in str(error.value)
    assert isinstance(error.value, OSError) or format == "tf_saved_model"  # TensorFlow's own errors are others


def test_of_a_translation_that_differs_nothing_is_left(model, tmp_path, monkeypatch):
    greedy = Translator.translate
    monkeypatch.setattr(Translator, "translate", lambda *given: ["something else", *greedy(*given)[1:]])
    with pytest.raises(RunError, match="the exported model translates 1 texts differently, such as 'sol'"):
        model.export(tmp_path / "onnx", format="onnx", probe=["sol", "mar"])
    assert os.listdir(tmp_path) == ["pairs.tsv"]
