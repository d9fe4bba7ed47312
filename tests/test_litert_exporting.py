import json
import os
import subprocess
import sys

import numpy as np
import pytest
from command_line import in_process as seq2seq
from conftest import WORDS
from test_onnx_exporting import TRANSFORMER, HashingDecoder, untrained

from pipelines import OptionError
from seq2seq.onnx_runtime import Translator
from seq2seq.records import RunError

# The folder's own program, where neither this library nor TensorFlow can be imported.
ALONE = """
import sys
for name in ("keras", "pipelines", "seq2seq", "tensorflow"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
from translator import Translator
print(*Translator(sys.argv[1]).translate(sys.argv[2:]), sep="\\n")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"cell": "gru", "attention": "monotonic", "copy": True, "embedding": 4}, TRANSFORMER],
    ids=["gru", "transformer"],
)
def test_it_translates_as_the_model_does_one_text_after_another(options, tmp_path):
    model, texts = untrained(**options), [*WORDS, "", "solmarsol", "x?", 3 * "solmar"]
    model.export(tmp_path / "litert", format="litert", probe=texts, source_length=10)
    right = [text.decode() for text in model.translate([text[:10] for text in texts]).numpy()]
    assert Translator(tmp_path / "litert").translate(texts) == right
    assert len(set(right)) > 6
    probe = json.loads((tmp_path / "litert" / "probe.json").read_text())
    assert probe == dict(zip(texts[:-1], right[:-1], strict=True))  # the last one is too long to be the same
    translator, (alignment,) = Translator(tmp_path / "litert"), model.attention(["sol"])
    weights = translator.attention("sol", translator.search(["sol"])[0][0].ids)
    np.testing.assert_allclose(weights, alignment.weights[: len(weights)], atol=1e-5)  # END may follow
    with pytest.raises(ValueError, match="beam_width=2: a LiteRT model supports greedy search only"):
        Translator(tmp_path / "litert").search(texts, beam_width=2)


@pytest.mark.slow
def test_the_command_exports_a_run_that_translates_without_tensorflow(trained, tmp_path):
    out = tmp_path / "litert"
    done = seq2seq("export", trained.folder, out, "--format", "litert", "--source-length", 20)
    assert (done.returncode, done.stdout.decode()) == (0, f"{out}\n"), done.stderr
    files = {"encoder.tflite", "decoder.tflite", "vocabulary.json", "probe.json", "translator.py"}
    assert set(os.listdir(out)) == files
    right = [text.decode() for text in trained.model.translate(["ab", "cd"]).numpy()]
    alone = subprocess.run([sys.executable, "-c", ALONE, out, "ab", "cd"], capture_output=True, text=True)
    assert alone.stdout.splitlines() == right, alone.stderr
    assert seq2seq("translate", out, "ab", "cd").stdout.decode().splitlines() == right
    done = seq2seq("translate", out, "ab", "--beam-width", 3)
    assert done.returncode == 2 and b"beam_width=3: a LiteRT model supports greedy search only" in done.stderr
    done = seq2seq("translate", out, "ab", "--scores")
    assert done.returncode == 2 and b"scores (beam_width=1): a LiteRT model supports greedy search only" in done.stderr
    done = seq2seq("export", trained.folder, tmp_path / "x", "--format", "onnx", "--source-length", 20)
    assert done.returncode == 2 and b"--source-length: applies only to --format litert" in done.stderr


def test_what_has_no_litert_form_says_why_and_leaves_nothing(model, tmp_path, monkeypatch):
    with pytest.raises(RunError, match="HashingDecoder cannot be exported as LiteRT"):
        untrained(decoder=HashingDecoder).export(tmp_path / "litert", format="litert")
    with pytest.raises(OptionError, match="source_length=0: "):
        model.export(tmp_path / "litert", format="litert", source_length=0)
    assert os.listdir(tmp_path) == ["pairs.tsv"]


def test_a_truncated_graph_is_named(trained, tmp_path):
    (tmp_path / "encoder.tflite").write_bytes(b"TFL3" * 5)
    vocabulary = {"source": {"kind": "bytes"}, "target": {"kind": "bytes"}, "limit": 1, "longest_source": 9, "steps": 9}
    (tmp_path / "vocabulary.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ValueError, match=r"encoder\.tflite: LiteRT cannot load it"):
        Translator(tmp_path)
