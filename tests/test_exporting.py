import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from command_line import in_process, seq2seq
from conftest import QUICK

from pipelines import CharTokenizer, OptionError, Tokenizer, read_pairs
from seq2seq import BeamSearch, Config, Seq2Seq, TransformerDecoder, TransformerEncoder
from seq2seq.exporting import _alike
from seq2seq.records import RunError
from seq2seq.runs import export_runs, load_run, probe
from seq2seq.training import train

PRESETS = {
    "characters": {**QUICK, "normal_form": None},
    "subwords": {
        **QUICK,
        "embedding": 8,
        "precision": "bfloat16",
        **dict.fromkeys(("source_tokenizer", "target_tokenizer"), "subword"),
    },
}


@pytest.fixture(scope="module", params=PRESETS)
def exported(request, tmp_path_factory):
    """A run on the phrasebook and its SavedModel, made by the command line."""
    folder = tmp_path_factory.mktemp("exported")
    options = {"units": 16, "epochs": 2, "limit": 640, "batch_size": 64, "average": 2, **PRESETS[request.param]}
    train(Config("phrasebook", **options), folder / "run")
    done = seq2seq("export", folder / "run", folder / "saved", "--beam-width", 3)
    assert (done.returncode, done.stdout.decode()) == (0, f"{folder / 'saved'}\n"), done.stderr
    assert 30 < len(probe(folder / "run")) <= 50
    return request.param, folder


ALONE = """
import json, sys
sys.modules["seq2seq"] = sys.modules["pipelines"] = None  # importing one of them is an error now
import tensorflow as tf
if {text}:
    import tensorflow_text
texts, model = json.load(sys.stdin), tf.saved_model.load({folder!r})
found = model.signatures["greedy"](texts=tf.constant(texts))
default = model.signatures["serving_default"](texts=tf.constant(texts[:3]))
beam = model.signatures["beam"](texts=tf.constant(texts))
none = model.signatures["beam"](texts=tf.constant([], tf.string))
assert default["texts"].numpy().tolist() == found["texts"].numpy()[:3].tolist()
assert none["texts"].shape == none["scores"].shape == none["ranked_by"].shape == (0, 3)
assert (beam["ranked_by"].numpy() >= beam["scores"].numpy()).all()
written = lambda array: [[text.decode() for text in row] for row in array.numpy().tolist()]
print(json.dumps([written(found["texts"][:, None]), written(beam["texts"]), beam["scores"].numpy().tolist()]))
"""


def test_what_is_exported_where_there_is_a_gpu_runs_without_one(upper_case, tmp_path, monkeypatch):
    model, words = upper_case
    monkeypatch.setattr("seq2seq.recurrence.on_gpu", lambda: True)
    model.export(tmp_path / "saved")
    monkeypatch.undo()
    found = tf.saved_model.load(str(tmp_path / "saved")).signatures["greedy"](texts=tf.constant(words))["texts"]
    assert [text.decode() for text in found.numpy()] == [word.upper() for word in words]


@pytest.mark.slow
def test_in_a_program_without_this_library_it_translates_the_same(exported):
    name, folder = exported
    texts = [source.decode() for source, _ in read_pairs("phrasebook").take(200).as_numpy_iterator()]
    script = ALONE.format(text=name != "characters", folder=str(folder / "saved"))
    command = [sys.executable, "-I", "-c", script]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0 and "gradient" not in done.stderr, done.stderr
    greedy, beam, scores = json.loads(done.stdout)
    model = load_run(folder / "run")
    right = model.translate(texts, BeamSearch(3, n_best=3), details=True)
    assert [text for (text,) in greedy] == [text.decode() for text in model.translate(texts).numpy()]
    for texts, known, *expected in zip(beam, scores, right.texts.numpy(), right.scores.numpy(), strict=True):
        expected = {text.decode(): score for text, score in zip(*expected, strict=True)}
        assert dict(zip(texts, known, strict=True)) == pytest.approx(expected, abs=1e-3)  # equals in any order


@pytest.mark.slow
def test_the_tool_that_comes_with_tensorflow_runs_it(exported):
    name, folder = exported
    if name != "characters":
        pytest.skip("saved_model_cli knows no operations of TensorFlow Text")
    tool = Path(sys.executable).with_name("saved_model_cli")
    command = [tool, "run", "--dir", folder / "saved", "--tag_set", "serve", "--signature_def", "greedy"]
    done = subprocess.run([*command, "--input_exprs", "texts=['Good morning.']"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(load_run(folder / "run").translate(["Good morning."]).numpy()) in done.stdout


def test_on_a_gpu_the_exported_model_is_compared_at_full_precision(model, tmp_path, monkeypatch, rounds):
    found = []
    monkeypatch.setattr("seq2seq.exporting._write", lambda model, folder, strategies: None)
    monkeypatch.setattr(tf.saved_model, "load", lambda folder: found.append(rounds()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.export(tmp_path / "saved", probe=["sol"])
    assert found == [False] and rounds()


def test_what_is_there_is_not_overwritten(model, tmp_path):
    with pytest.raises(RunError, match="already exists"):
        model.export(tmp_path)


def test_it_is_exported_as_every_model_of_keras_is_with_a_beam_no_wider_than_a_small_vocabulary(tmp_path, capsys):
    model, texts = Seq2Seq(CharTokenizer("abc"), CharTokenizer("xy"), units=4), tf.constant(["ab", "c"])
    model.export(tmp_path / "saved", format="tf_saved_model", verbose=True)
    assert capsys.readouterr().out == f"Saved to {tmp_path / 'saved'}\n"
    exported = tf.saved_model.load(str(tmp_path / "saved"))
    assert exported.greedy(texts)["texts"].numpy().tolist() == model.translate(texts).numpy().tolist()
    assert exported.signatures["beam"](texts=texts)["texts"].shape == (2, 3)  # END is a token too
    with pytest.raises(OptionError, match="width=7"):
        model.export(tmp_path / "wide", beam=BeamSearch(7))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {**QUICK, "attention": "monotonic", "copy": True},
        {"encoder": TransformerEncoder, "decoder": TransformerDecoder, "layers": 1, "heads": 2},
    ],
    ids=["monotonic", "transformer"],
)
def test_every_attention_is_exported(tokenizers, tmp_path, options):
    model = Seq2Seq(*tokenizers, units=8, **options)
    model.length_ratios.assign([1.0, 1.0, 1.0])  # so that translations are not very long
    model.export(tmp_path / "saved", probe=["sol", "", "niño" * 20])  # which compares


def test_what_fills_up_the_n_best_of_a_beam_is_no_difference():
    found = {"ab": -1.25, "": -math.inf}
    assert _alike(found, {"": -math.inf, "ab": -1.2504})
    assert not _alike(found, {"ab": -1.26, "": -math.inf}) and not _alike(found, {"ab": -1.25, "": -9.0})


def test_nothing_stays_of_what_cannot_be_exported(model, tmp_path):
    def call(source, training=False):
        raise NotImplementedError("not in a graph")

    model.encoder.call = call
    with pytest.raises(
        RunError, match=r"saved: Encoder and Decoder cannot be exported as a SavedModel \(.*not in a graph"
    ):
        model.export(tmp_path / "saved")
    with pytest.raises(OptionError, match="input_signature: an exported model always takes strings"):
        model.export(tmp_path / "saved", input_signature=[tf.TensorSpec([3], tf.string)])
    with pytest.raises(OptionError, match="option='probes': expected 'probe'; did you mean 'probe'"):
        model.export(tmp_path / "saved", format="onnx", probes=["a"])
    assert os.listdir(tmp_path) == ["pairs.tsv"]


@keras.saving.register_keras_serializable("tests")
class PythonTokenizer(Tokenizer):
    """A tokenizer of two characters a token, in Python."""

    def split(self, texts):
        def pieces(texts):
            rows = [re.findall("..?", text.decode()) for text in texts]
            return np.array([piece.encode() for row in rows for piece in row], object), np.array([*map(len, rows)])

        tokens, lengths = tf.numpy_function(pieces, [texts], (tf.string, tf.int64))
        for found in (tokens, lengths):
            found.set_shape([None])
        return tf.RaggedTensor.from_row_lengths(tokens, lengths)


def test_what_calls_python_is_used_but_not_exported(tokenizers, tmp_path):
    python = PythonTokenizer()
    python.adapt(["sol", "mar"])
    model = Seq2Seq(python, tokenizers[1], units=4)
    assert model.translate(["sol", "mar"], max_length=3).shape == (2,)
    with pytest.raises(RunError, match=r"calls Python \(tf\.numpy_function, tf\.py_function\), which no SavedModel"):
        model.export(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_translation_that_differs_is_an_error(model, tmp_path, monkeypatch):
    signatures = {"greedy": lambda texts: {"texts": tf.constant(["x", "y"])}}
    monkeypatch.setattr("seq2seq.exporting._write", lambda model, folder, strategies: folder.mkdir())
    monkeypatch.setattr(tf.saved_model, "load", lambda folder: SimpleNamespace(signatures=signatures))
    with pytest.raises(RunError, match="translates 2 texts differently, such as 'sol'"):
        model.export(tmp_path / "saved", probe=["sol", "mar"])
    assert os.listdir(tmp_path) == ["pairs.tsv"]


@pytest.mark.slow
def test_a_saved_model_that_is_not_the_trained_one_is_not_exported(copied, tmp_path, monkeypatch):
    folder, _ = copied
    again = in_process("export", folder, folder.parent)
    assert again.returncode == 2 and b"already exists" in again.stderr
    translations = json.loads((folder / "probe.json").read_text())
    (folder / "probe.json").write_text(json.dumps(translations | dict.fromkeys(list(translations)[:2], "another")))
    done = in_process("export", folder, tmp_path / "saved")
    assert done.returncode == 2 and b"the saved model is not the trained one" in done.stderr
    assert b"\n" not in done.stderr.strip() and not (tmp_path / "saved").exists()
    # Another device may round differently, which changes few translations.
    (folder / "probe.json").write_text(json.dumps(translations | dict.fromkeys(list(translations)[:1], "another")))
    exported = []
    monkeypatch.setattr(Seq2Seq, "export", lambda model, out, *_, **__: exported.append(out))
    export_runs([folder], "saved")
    assert exported == ["saved"] and 5 <= len(translations) < 10
