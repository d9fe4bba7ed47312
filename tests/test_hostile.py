"""Texts, model files and corpora from anywhere: each ends in success or in the documented error."""

import json
import math
import os
import random
import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from command_line import in_process as seq2seq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import ByteTokenizer, CharTokenizer, WhitespaceTokenizer
from seq2seq import BeamSearch, Greedy, Sampling, Seq2Seq
from seq2seq.config import Config
from seq2seq.records import RunError
from seq2seq.runs import draw_run, load_run
from seq2seq.training import train
from seq2seq.translation import LONGEST_SOURCE

SMALL = {"units": 4, "cell": "gru", "bidirectional": False, "attention": "dot"}


@pytest.fixture(scope="module")
def wild_run(tmp_path_factory):
    """A run on a few real words."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "pairs.tsv").write_text(
        "".join(f"{word}\t{word[::-1]}\n" for word in ["sol", "año", "שלום", "🙂👍🏽"] * 9)
    )
    config = Config(str(folder / "pairs.tsv"), **SMALL, epochs=1, validation_fraction=0)
    train(config, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module", params=[CharTokenizer, ByteTokenizer, WhitespaceTokenizer])
def any_model(request):
    words = ["ab", "b c", "ñ", "e\N{COMBINING ACUTE ACCENT}"]
    tokenizers = request.param(), request.param()
    for tokenizer in tokenizers:
        tokenizer.adapt(words)
    return Seq2Seq(*tokenizers, **SMALL)


WILD = ["", "\0", "a\0b", "\udc80", "\ud800x", "שלום", "e" + "\u0301" * 50, "\u202e", " \t\u2028", "x" * 3000]
WILD.append("\N{ZERO WIDTH JOINER}".join("👩👩👧👦"))
texts = st.lists(st.one_of(st.sampled_from(WILD), st.text()).map(lambda text: text.encode(errors="surrogatepass")))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.one_of(texts, st.lists(st.binary(max_size=40))))
def test_every_text_has_a_translation_that_its_neighbours_do_not_change(any_model, texts):
    found = any_model.translate(texts, max_length=5).numpy()
    assert found.shape == (len(texts),)
    for strategy in (BeamSearch(2), Sampling()):
        assert any_model.translate(texts, strategy, max_length=3).shape == [len(texts)]
    for text, translation in list(zip(texts, found, strict=True))[:2]:
        assert any_model.translate(text, max_length=5).numpy() == translation


def test_of_a_long_text_so_much_is_read_and_its_batch_is_small(any_model):
    long = ["a b " * LONGEST_SOURCE, "a b " * 50_000]
    found = any_model.translate([*long, "a"], max_length=5)
    assert found[0] == found[1] and found[2] == any_model.translate("a", max_length=5)
    assert any_model.translate(["a" * 5000] * 300, max_length=2).shape == [300]
    scored = any_model.translate(long[:1], max_length=5, details=True)
    np.testing.assert_allclose(any_model.score(long[:1], scored.ids[:, 0]), scored.scores[:, 0], rtol=1e-4)


@pytest.mark.slow
def test_a_stream_keeps_one_line_for_each_in_their_order(wild_run):
    lines = [b"sol", b"x" * 100_000, b"", b"\0", b"\xff\xfe", *(b"%d" % n for n in range(20_000)), b"sol"]
    done = seq2seq("translate", wild_run, "--max-length", 4, stdin=b"\n".join(lines))
    found = done.stdout.split(b"\n")
    assert done.returncode == 0 and len(found) == len(lines) + 1
    assert found[0] == found[len(lines) - 1]


@pytest.mark.slow
def test_score_keeps_one_line_for_each_of_any_bytes(wild_run):
    draw = random.Random(0)
    pieces = [b"sol", b"los", b"\t", b"\t", b"\r", b"\0", b"\xff", b"\xc2\x85", "\u2028".encode(), b"\v", b" "]
    lines = []
    for _ in range(5000):
        lines += [b"sol\tlos", b"".join(draw.choices(pieces, k=draw.randrange(6)))]
    done = seq2seq("score", wild_run, stdin=b"\n".join(lines))
    found = done.stdout.split(b"\n")
    assert done.returncode == 0 and len(found) == len(lines) + 1 and found.pop() == b""
    assert len(set(found[::2])) == 1 and not math.isnan(float(found[0]))
    scored = [not math.isnan(float(number)) for number in found]
    assert (
        0 < sum(scored[1::2]) < 5000
        and f"{len(lines) - sum(scored):,} of 10,000 pairs left out" in done.stderr.decode()
    )


def test_a_model_file_with_any_bit_changed_is_refused_or_the_same(wild_run, tmp_path):
    whole = (wild_run / "model.keras").read_bytes()
    right = load_run(wild_run).translate("sol", max_length=5)
    places = random.Random(0)
    refused = 0
    (tmp_path / "config.json").write_text('{"options": {}}')
    for _ in range(60):
        content = bytearray(whole)
        content[places.randrange(len(content))] ^= 1 << places.randrange(8)
        (tmp_path / "model.keras").write_bytes(content)
        try:
            assert load_run(tmp_path).translate("sol", max_length=5) == right  # as in a date that nobody reads
        except RunError as error:
            refused += 1
            assert str(error).startswith(f"{tmp_path / 'model.keras'}: ") and "\n" not in str(error)
    assert refused > 40


@pytest.mark.parametrize("length", [0, 30, 5000, -1])
def test_a_model_file_cut_short_is_refused(wild_run, tmp_path, length):
    (tmp_path / "model.keras").write_bytes((wild_run / "model.keras").read_bytes()[:length])
    (tmp_path / "config.json").write_text('{"options": {}}')
    with pytest.raises(RunError, match=r"model.keras: damaged"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("keras.layers", "Lambda"),
        ("keras.layers", "TFSMLayer"),
        ("keras.layers", "StringLookup"),
        ("keras", "layers.Lambda"),
        ("keras", "function"),
        ("keras.losses", "function"),
        ("keras.utils", "get_file"),
        ("os", "system"),
        ("seq2seq.layers", "NoSuchThing"),
    ],
)
def test_a_model_of_other_classes_is_refused_before_anything_is_made(wild_run, tmp_path, module, kind):
    with zipfile.ZipFile(wild_run / "model.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    marker = tmp_path / "marker"
    config["config"]["encoder"] = {
        "module": module,
        "class_name": kind,
        "config": {"name": f"touch {marker}", "vocabulary": str(wild_run / "config.json"), "filepath": str(wild_run)},
        "registered_name": None if kind != "function" else "pipelines>CharTokenizer",  # Keras uses it for classes only
    }
    parts["config.json"] = json.dumps(config).encode()
    (tmp_path / "config.json").write_text('{"options": {}}')
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(RunError, match=f"uses {module}.{kind}, which is neither part of this library nor imported"):
        load_run(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("loss", "unwanted:Loss"),
        ("loss", "subprocess:Popen"),
        ("metrics", ["unwanted:Metric"]),
        ("decoder", "keras.layers:TFSMLayer"),
        ("source_tokenizer", "unwanted:Tokenizer"),
    ],
)
def test_no_class_that_a_run_names_is_imported(wild_run, tmp_path, monkeypatch, option, named):
    marker = tmp_path / "marker"
    (tmp_path / "unwanted.py").write_text(f"open({str(marker)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    run = shutil.copytree(wild_run, tmp_path / "run")
    record = json.loads((run / "config.json").read_text())
    record["options"] |= {option: named, "own": {"args": ["touch", str(marker)], "filepath": str(wild_run)}}
    (run / "config.json").write_text(json.dumps(record))
    ways = [["--from", run], ["--config", run]]
    (run / "unfinished").mkdir()
    (run / "unfinished" / "begun.keras").write_bytes((run / "model.keras").read_bytes())
    for way in (*ways, ["--resume"]):
        if way == ["--resume"]:
            del record["training"]
            (run / "config.json").write_text(json.dumps(record))
        corpus, out = record["options"]["corpus"], run if way == ["--resume"] else tmp_path / "out"
        done = seq2seq("train", *([] if way == ["--resume"] else [corpus]), *way, "--out", out)
        name = named if isinstance(named, str) else named[0]
        assert done.returncode == 2 and f"uses {name} as {option}, which is not part".encode() in done.stderr
    assert not marker.exists()


def test_pictures_do_not_follow_links(wild_run, tmp_path):
    run = shutil.copytree(wild_run, tmp_path / "run")
    (tmp_path / "precious").write_text("of the user")
    (run / "curves.png").unlink(missing_ok=True)
    (run / "curves.png").symlink_to(tmp_path / "precious")
    assert draw_run(run, load_run(run)) == [run / "curves.png"]
    assert (tmp_path / "precious").read_text() == "of the user" and not (run / "curves.png").is_symlink()


def _resident():
    """Megabytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
def test_thousands_of_calls_of_any_shape_trace_once_and_take_no_more_memory(wild_run):
    model, shapes = load_run(wild_run), random.Random(0)

    def call(times):
        for _ in range(times):
            model.translate(
                ["".join(shapes.choices("sola", k=shapes.randrange(20)))] * shapes.randint(0, 4), max_length=2
            )

    call(500)
    before = _resident()
    call(2500)
    assert _resident() - before < 10
    assert model._translate_with(Greedy(), False, True, 1, False, False).experimental_get_tracing_count() == 1


@pytest.mark.slow
def test_a_training_of_many_epochs_takes_no_more_memory(wild_run, tmp_path):
    resident = []
    say = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: resident.append(_resident()))
    config = Config(str(wild_run.parent / "pairs.tsv"), **SMALL, epochs=24, batch_size=4, checkpoint_minutes=0.0)
    train(config, tmp_path / "run", callbacks=[say])
    assert resident[-1] - resident[8] < 10
