import io
import itertools
import json
import math
import re
import shutil
import string
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import in_process as seq2seq
from conftest import WORDS, save_run
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.columns import ColumnsTokenizer
from pipelines.subwords import SubwordTokenizer
from pipelines.tokenizers import (
    ByteTokenizer,
    CharTokenizer,
    LetterTokenizer,
    SeparatorTokenizer,
    WhitespaceTokenizer,
)
from seq2seq import BeamSearch
from seq2seq.commands.loading import oddities, oddities_for_export
from seq2seq.decoding import LONGEST_SOURCE
from seq2seq.onnx_exporting import describe_tokenizer
from seq2seq.onnx_runtime import END, START, Hypothesis, Tokenizer, Translator, log_sum_exp, main

SAMPLE = [
    "Straße und Weg; ½ ﬁx",
    "한글 각 á à",
    "né na\u0131\u0308ve a\u0308",
    "V;PST;3;SG",
    "😀 e\u0301 \u00a0x\u3000y ▁",
]
TOKENIZERS = [
    CharTokenizer(),
    CharTokenizer(normal_form=None),
    CharTokenizer(normal_form="NFKD", lowercase=True),
    LetterTokenizer(),
    LetterTokenizer(normal_form="NFD", lowercase=True),
    ByteTokenizer(),
    ByteTokenizer(normal_form=None),
    WhitespaceTokenizer(lowercase=True),
    SeparatorTokenizer("; "),
    SubwordTokenizer(),
    SubwordTokenizer(normal_form="NFKC", lowercase=True),
    ColumnsTokenizer([CharTokenizer(), SeparatorTokenizer(";"), ByteTokenizer()]),
]
# What Python's and TensorFlow Text's versions of Unicode both know.
_known = st.characters(exclude_categories=["Cs", "Cn", "Co"], max_codepoint=0x1FFFF)
_whitespace = ["", " ", "\t", "\n", "\0", "\u00a0", "\u200b", "\u2028", "\ufeff", "▁", "\u00ad"]
_letters = ["é", "e\u0301", "각", "ᄀ", "ᅡ", "ᆨ", "ẞ", "ﬁ", "½", "İ", "Σς", "a\u0328\u0301", "\u0345", "\ufdfa", "Straße"]
_odd = st.sampled_from([*_whitespace, *_letters, "😀", "👩\u200d👧", "; ", ";;"])
_texts = st.lists(st.one_of(_odd, st.text(_known, max_size=4), st.sampled_from(SAMPLE)), max_size=6).map("".join)
_broken = st.lists(st.one_of(st.binary(max_size=4), _texts.map(str.encode)), max_size=4).map(b"".join)


@pytest.fixture(scope="module")
def both():
    """Each tokenizer, and the same as the runtime reads it from a file."""
    pairs = []
    for tokenizer in TOKENIZERS:
        texts = ["\t".join(SAMPLE[:3])] if isinstance(tokenizer, ColumnsTokenizer) else SAMPLE
        tokenizer.adapt(texts * 3)
        if isinstance(tokenizer, LetterTokenizer | WhitespaceTokenizer):
            tokenizer.add_unknown_token()
        pairs.append((tokenizer, Tokenizer(json.loads(json.dumps(describe_tokenizer("source", tokenizer))))))
    return pairs


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.one_of(_texts.map(str.encode), _broken), min_size=1, max_size=12))
def test_the_runtime_tokenizes_as_the_tokenizers_do(both, texts):
    for tokenizer, runtime in both:
        expected = [row[row > 0].tolist() for row in tokenizer.tokenize(texts).numpy()]
        assert [runtime.encode(text) for text in texts] == expected, (tokenizer, texts)
        unknown = [[token.decode() for token in tokens] for tokens in tokenizer.unknown(texts).to_list()]
        read = [[token for _, token in runtime.look_up(text) if token] for text in texts]
        assert read == unknown, (tokenizer, texts)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(_texts.map(str.encode), min_size=1, max_size=12))
def test_the_same_oddities_of_texts_are_found_for_the_runtime(both, texts):
    texts = [*texts, "й\tA\u00e9".encode() * 900]
    for tokenizer, runtime in both:
        columns = len(tokenizer.of_columns)
        rows = [text for text in texts if columns == 1 or text.count(b"\t") == columns - 1]
        translator = SimpleNamespace(source=runtime, longest_source=LONGEST_SOURCE)
        assert sorted(oddities_for_export(translator, rows)) == sorted(oddities(tokenizer, rows)), (tokenizer, rows)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_runtime_writes_text_as_the_tokenizers_do(both, data):
    for tokenizer, runtime in both:
        if isinstance(tokenizer, ColumnsTokenizer):
            continue  # of sources only
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocabulary_size - 1), min_size=1, max_size=8))
        ids += tokenizer.unknown_ids * data.draw(st.integers(0, 4))
        assert runtime.decode(ids) == tokenizer.detokenize([ids]).numpy()[0].decode(), (tokenizer, ids)
        unknown = ["\u0301", "ж", "word"]
        written = tokenizer.detokenize([ids], [unknown]).numpy()[0].decode()
        assert runtime.decode(ids, unknown) == written, (tokenizer, ids)


def test_a_string_is_read_as_its_utf_8(both):
    for _, runtime in both:
        assert all(runtime.encode(text) == runtime.encode(text.encode()) for text in SAMPLE)
    assert Tokenizer({"kind": "characters"}).encode("a\ud800") == [1, 1, 1, 1]  # half a character: U+FFFD


@pytest.mark.slow
def test_every_search_of_the_runtime_finds_what_the_model_finds(exported_onnx):
    model, folder = exported_onnx
    translator = Translator(folder)
    texts = [*WORDS, "", "solmar" * 4, "xyz", "gato nube"]
    for options in ({}, {"min_length": 4}, {"min_length": 40}, {"max_length": 2}, {"min_length": 3, "max_length": 3}):
        found = [text.decode() for text in model.translate(texts, **options).numpy()]
        for batch_size in (1, 5, 64):
            assert translator.translate(texts, batch_size=batch_size, **options) == found
        for width, n_best, length_penalty in ((1, 1, 0.6), (4, 1, 0.0), (3, 2, 1.0), (4, 4, 0.6)):
            beam = BeamSearch(width, length_penalty, n_best)
            right = model.translate(texts, beam, details=True, **options)
            how = {"beam_width": width, "n_best": n_best, "length_penalty": length_penalty, **options}
            found = translator.search(texts, batch_size=7, **how)
            assert [[one.text for one in each] for each in found] == [
                [text.decode() for text in row] for row in right.texts.numpy()
            ]
            assert [[one.stopped for one in each] for each in found] == [
                [why.decode() for why in row] for row in right.stopped.numpy()
            ]
            for known, part in (("score", right.scores), ("ranked_by", right.ranked_by)):
                figures = np.array([[getattr(one, known) for one in each] for each in found])
                np.testing.assert_allclose(figures, part.numpy(), atol=1e-4)
            for each, row in zip(found, right.ids.numpy(), strict=True):
                assert [one.ids for one in each] == [[number for number in ids if number] for ids in row.tolist()]
    assert translator.translate([]) == []


ALONE = """
import sys
for name in ("seq2seq", "pipelines", "tensorflow", "keras"):
    sys.modules[name] = None  # importing it is an error now
sys.path.insert(0, {folder!r})
from translator import Translator
print(Translator({folder!r}).translate(sys.argv[1:]))
"""


@pytest.mark.slow
def test_the_exported_folder_translates_in_a_program_without_tensorflow_and_this_library(exported_onnx):
    model, folder = exported_onnx
    right = [text.decode() for text in model.translate(WORDS).numpy()]
    command = [sys.executable, "-I", "-c", ALONE.format(folder=str(folder)), *WORDS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{right}\n"), done.stderr
    for arguments, stdin in ((WORDS, ""), ([], "\n".join([*WORDS, ""])), ([], "\r\n".join([*WORDS, ""]))):
        command = [sys.executable, "-I", folder / "translator.py", *arguments]
        done = subprocess.run(command, input=stdin.encode(), capture_output=True)
        assert (done.returncode, done.stdout.decode().splitlines()) == (0, right), done.stderr


@pytest.mark.slow
def test_the_command_translates_with_an_exported_folder_as_with_the_run(exported_onnx, tmp_path):
    model, folder = exported_onnx
    run = tmp_path / "run"
    run.mkdir()
    save_run(model, run)
    (tmp_path / "in.txt").write_text("sol\n\nflor\nxqz\n")
    lines = (tmp_path / "in.txt").read_bytes()
    for options in (
        [],
        ["--n-best", 3],
        ["--n-best", 6],
        ["--scores"],
        ["--beam-width", 4, "--scores"],
        ["--max-length", 2],
    ):
        one, other = (seq2seq("translate", model, *options, stdin=lines, cwd=tmp_path) for model in (run, folder))
        assert one.returncode == other.returncode == 0, other.stderr
        rows, others = ([line.split(b"\t") for line in done.stdout.splitlines()] for done in (one, other))
        text = [[column for column in row if b"." not in column] for row in rows]  # all columns but the figures
        assert text == [[column for column in row if b"." not in column] for row in others] and text
        if "--scores" in options:
            figures, other_figures = (np.array([row[:2] for row in each], float) for each in (rows, others))
            np.testing.assert_allclose(figures, other_figures, atol=1e-3)
        assert one.stderr.splitlines()[:-1] == other.stderr.splitlines()[:-1]  # the last line has seconds
    assert b"line 4: at least half of the tokens are not in the vocabulary" in other.stderr
    done = seq2seq("translate", folder, "sol", "mar", cwd=tmp_path)
    assert done.stdout.decode().split() == [text.decode() for text in model.translate(["sol", "mar"]).numpy()]
    done = seq2seq("translate", folder, "--n-best", 2, "--max-length", 1, stdin=b"s\n" * 2049)  # in two blocks
    assert [line.split(b"\t")[0] for line in done.stdout.splitlines()[-4:]] == [b"2048", b"2048", b"2049", b"2049"]


LOADED = """
import sys
from seq2seq.cli import main
try:
    main()
finally:
    print([name for name in ("keras", "numpy", "onnxruntime", "tensorflow") if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.slow
def test_the_command_imports_no_tensorflow_for_an_exported_folder(exported_onnx, tmp_path):
    model, folder = exported_onnx
    script = tmp_path / "seq2seq"  # the name by which the package knows that it is the command line
    script.write_text(LOADED)
    done = subprocess.run([sys.executable, script, "translate", folder, "sol"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "['numpy', 'onnxruntime']\n")
    assert done.stdout == model.translate("sol").numpy().decode() + "\n"


@pytest.mark.slow
def test_what_an_exported_folder_cannot_do_is_said(exported_onnx, tmp_path):
    _, folder = exported_onnx
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    for options, message in (
        (["run"], b"run is a run folder; the export .* cannot be part of an ensemble"),
        (["--sample"], b"--sample: .* is an export, which supports only greedy search and beam"),
        (["--temperature", "0"], b"--temperature: .* is an export"),
        (["--json"], b"--json: .* is an export"),
        (["--search", "greedy"], b"--search: .* is an export"),
        (["--set", "width=3"], b"--set: .* is an export"),
        (["--seed", 0], b"--seed: .* is an export"),
        (["--prefix"], b"--prefix: .* is an export"),
        (["--attention"], b"--attention: .* is an export"),
        (["--import", "nowhere:Class"], b"--import: .* is an export"),
        (["--n-best", 3, "--beam-width", 2], b"n_best=3: expected 1 or more, and at most the beam's width, 2"),
        (["--min-length", 3, "--max-length", 2], b"max_length=2: expected 3 or more"),
    ):
        done = seq2seq("translate", folder, "sol", *options, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1, done.stderr
        assert re.search(message, done.stderr), done.stderr
    copy = shutil.copytree(folder, tmp_path / "broken")
    graph, vocabulary = ((copy / name).read_bytes() for name in ("decoder.onnx", "vocabulary.json"))
    for name, content in (
        ("decoder.onnx", graph[: len(graph) // 2]),
        ("encoder.onnx", b""),
        ("vocabulary.json", vocabulary[: len(vocabulary) // 2]),
        ("vocabulary.json", b'{"source": 3}'),
    ):
        (copy / name).write_bytes(content)
        done = seq2seq("translate", copy, "sol", cwd=tmp_path)
        assert done.returncode == 2 and f"{copy / name}: ".encode() in done.stderr, done.stderr
        assert done.stderr.count(b"\n") == 1 and not done.stdout
        (copy / name).write_bytes((folder / name).read_bytes())
    (copy / "encoder.onnx").unlink()
    done = seq2seq("translate", copy, "sol", cwd=tmp_path)
    assert done.returncode == 2 and f"{copy / 'encoder.onnx'}: ".encode() in done.stderr, done.stderr


@pytest.mark.slow
def test_options_that_contradict_each_other_are_refused(exported_onnx):
    translator = Translator(exported_onnx[1])
    for texts, options, message in (
        ("sol", {}, r"texts: expected a list of texts; for a single one, \[text\]"),
        (["sol"], {"n_best": 2}, "n_best=2: expected 1 or more, and at most the beam's width, 1"),
        (["sol"], {"n_best": 0}, "n_best=0: expected 1 or more, and at most the beam's width, 1"),
        (["sol"], {"min_length": 3, "max_length": 2}, "max_length=2: expected 3 or more"),
        (["sol"], {"beam_width": 0}, "n_best=1: expected 1 or more, and at most the beam's width, 0"),
        (["sol"], {"max_length": 0}, "max_length=0: expected 1 or more"),
        (["sol"], {"max_length": 100_001}, "max_length=100001: expected 1 or more, and at most 100,000"),
        (["sol"], {"min_length": 3_000_000_000}, "max_length=100000: expected 3000000000 or more"),
        (["sol"], {"beam_width": 10**8}, "beam_width=100000000, length_penalty=0.6: expected 1 to [0-9]+, 0 to 10"),
        (["sol"], {"length_penalty": math.inf}, "beam_width=1, length_penalty=inf: expected 1 to"),
    ):
        with pytest.raises(ValueError, match=message):
            translator.search(texts, **options)


@pytest.mark.slow
def test_unknown_characters_and_invalid_utf_8_are_translated_as_the_model_does(exported_onnx):
    model, folder = exported_onnx
    texts = [b"s\xffl", "mär", "😀", "\ufffd", "so\0l", "\t", "x" * 3000]
    assert Translator(folder).translate(texts) == [text.decode() for text in model.translate(texts).numpy()]


@pytest.mark.slow
def test_a_missing_extra_is_named(exported_onnx, untrained, tmp_path, monkeypatch):
    run = shutil.copytree(untrained, tmp_path / "run")
    (run / "probe.json").write_text("{}")
    export = ["export", run, tmp_path / "new", "--format", "onnx"]
    for name, command in (
        ("onnx", export),
        ("tf2onnx", export),
        ("onnxruntime", export),
        ("onnxruntime", ["translate", exported_onnx[1], "sol"]),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            done = seq2seq(*command, cwd=tmp_path)
        wanted = f"seq2seq: this needs {name}: pip install 'keras-seq2seq[onnx]'\n"
        assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", wanted)
    assert list(tmp_path.iterdir()) == [run]


def test_long_texts_are_translated_a_few_at_a_time(exported_onnx, monkeypatch):
    translator, sizes, begin = Translator(exported_onnx[1]), [], Translator._start

    def start(translator, sources, steps):
        sizes.append(sum(map(len, sources)))
        return begin(translator, sources, steps)

    monkeypatch.setattr(Translator, "_start", start)
    texts = ["sol" * 300] * 100 + ["sol"] * 300
    found = translator.translate(texts, max_length=1, batch_size=400)
    assert len(found) == 400 and found[100:] == ["S"] * 300
    assert sum(sizes) == 90_900 and max(sizes) <= 2**16 and len(sizes) <= 4


class Chain:
    """Both graphs of a model whose next token depends on the last one only, and at the start on the source's first.
    The attention is the source's ids times that of the token."""

    def __init__(self, size, following, attentive):
        self.scores = np.full([size, size], -9, np.float32)
        for before, after in following:
            self.scores[before, after] = 0
        self.inputs, self.attentive, self.taken = ["token", "encoded_source"], attentive, 0

    def __call__(self, tensors):
        if "token" not in tensors:
            self.steps = tensors["steps"]
            return {"encoded_source": tensors["source"]}
        self.taken += 1
        token, source = tensors["token"], tensors["encoded_source"]
        source = np.repeat(source, len(token) // len(source), axis=0)
        found = {"logits": self.scores[np.where(token == START, source[:, 0], token)]}
        return found | ({"attention": source * token[:, None]} if self.attentive else {})


@pytest.fixture
def chain():
    """A function that makes a translator of letters from texts in which each token follows the last; "." is END."""

    def make(*texts, tokens=string.ascii_lowercase, attentive=True):
        translator = Translator.__new__(Translator)
        translator.source = translator.target = Tokenizer({"kind": "characters", "tokens": list(tokens)})
        ids = [[END if token == "." else translator.target.ids[token] for token in text] for text in texts]
        following = [pair for each in ids for pair in itertools.pairwise(each)]
        graph = Chain(len(translator.target.tokens), following, attentive)
        translator.encoder = translator.decoder = graph
        translator.limit, translator.longest_source, translator.steps = 1.0, 9, math.inf
        translator.one_by_one = False
        return translator

    return make


@pytest.mark.parametrize("how", [{}, {"beam_width": 1}], ids=["greedy", "beam"])
def test_an_exported_search_ends_by_itself_at_a_limit_or_when_phrases_of_up_to_eight_tokens_repeat(chain, how):
    translator = chain("b.cc", "aa", "defghijkd", "lmnopqrstl")  # nothing follows END, whatever its scores are
    for options, lengths in (
        ({"max_length": 30}, [1, 17, 24, 30]),
        ({"max_length": 40}, [1, 21, 28, 40]),
        ({"max_length": 30, "min_length": 25}, [25, 25, 25, 30]),
    ):
        found = [one for (one,) in translator.search(["b", "a", "d", "l"], **options, **how)]
        assert [len(one.ids) for one in found] == lengths
        why = "repetition" if "min_length" in options else "end"
        assert [one.stopped for one in found] == [why, "repetition", "repetition", "limit"]
        assert found[0].ids[-1] == (END + 1 if "min_length" in options else END)
        assert found[3].text == ("mnopqrstl" * 5)[: lengths[3]]


@pytest.mark.parametrize("how", [{}, {"beam_width": 1}], ids=["greedy", "beam"])
def test_the_limit_of_an_exported_search_follows_from_what_is_read_of_the_source(chain, how):
    translator = chain("lmnopqrstl")
    translator.limit = 0.7
    texts = ["lll", "l", "l" * 9, "l" * 50]
    lengths = [len(found.ids) for (found,) in translator.search(texts, **how)]
    assert lengths == [21, 18, 29, 29] and translator.encoder.steps == 29
    translator.steps = 20
    assert [len(found.ids) for (found,) in translator.search(texts, **how)] == [20, 18, 20, 20]
    translator = chain("b.")
    assert translator.translate(["b"], **how) == [""] and translator.decoder.taken == 1


def test_the_beam_of_an_export_goes_on_while_a_longer_text_may_be_ranked_higher(chain):
    translator = chain("a.", "abcdefghijk.")
    ((found,),) = translator.search(["a"], beam_width=2)
    assert (found.text, found.stopped, len(found.ids)) == ("bcdefghijk", "end", 11)
    assert found.ranked_by == pytest.approx(found.score / ((5 + 11) / 6) ** 0.6, rel=1e-5)
    translator.decoder.taken = 0
    assert translator.translate(["a"], beam_width=2, length_penalty=0.0) == [""] and translator.decoder.taken == 1
    np.testing.assert_allclose(log_sum_exp(np.float32([[1000, 1000]])), 1000 + math.log(2), rtol=1e-6)


def test_a_beam_of_an_export_that_finds_too_few_different_texts_has_empty_places(chain):
    found = chain(tokens="ab").search(["a"], beam_width=3, n_best=3, min_length=1, max_length=1)
    assert [(one.text, one.stopped, one.ids) for one in found[0]] == [
        ("a", "limit", [4]),
        ("b", "limit", [5]),
        ("", "limit", []),
    ]
    assert all(one.score == one.ranked_by == -math.inf for one in found[0][2:])
    translator = chain(tokens=["a", "b", "ab", "c"])
    for before, after, score in ((7, 6, 0), (7, 4, 0), (7, 5, -1), (6, END, 0), (4, 5, 0), (5, END, 0)):
        translator.decoder.scores[before, after] = score
    found = translator.search(["c"], beam_width=4, n_best=2)
    assert [one.text for one in found[0]] == ["ab", "b"]  # though the second best is another "ab"
    same = [(-1.0, -0.5, 0, [6, END]), (-2.0, -1.0, 0, [4, 5, END]), (-3.0, -2.0, 1, [4])]
    empty = Hypothesis("", -math.inf, -math.inf, "limit", [])
    best, other = Hypothesis("ab", -1.0, -0.5, "end", [6, END]), Hypothesis("a", -3.0, -2.0, "limit", [4])
    assert translator._different([], same, 3) == [best, other, empty]
    assert translator._different([], same, 1) == [best]


def test_an_export_copies_the_unknown_tokens_of_each_source(chain):
    translator = chain("a\ufffd\ufffd", tokens="ab\ufffd")
    for how in ({}, {"beam_width": 1}):
        assert translator.translate(["abжé", "aжb", "a"], max_length=2, **how) == ["жé", "ж", ""]


@pytest.mark.parametrize("padded", [False, True])
def test_the_attention_of_an_export_is_that_of_each_step_for_what_is_read_of_the_source(chain, padded):
    translator = chain("a.")
    translator.one_by_one = padded
    np.testing.assert_array_equal(translator.attention("ab", [4, 5, END]), [[8, 10], [16, 20], [20, 25]])
    assert translator.encoder.steps == 3
    assert translator.attention("ab", []).shape == (0, 2) and translator.encoder.steps == 1
    assert translator.attention("", [END]).shape == (1, 1) and translator.attention("a" * 50, [END]).shape == (1, 9)
    assert chain("a.", attentive=False).attention("ab", [4, END]) is None


def test_the_script_of_an_export_writes_a_line_for_each_argument_or_line(monkeypatch, capsys):
    read = []
    echo = SimpleNamespace(translate=lambda texts: read.extend(texts) or ["x\ny", ""])
    monkeypatch.setattr("seq2seq.onnx_runtime.Translator", lambda folder: echo)
    monkeypatch.setattr("sys.argv", ["translator.py", "a b", ""])
    main()
    monkeypatch.setattr("sys.argv", ["translator.py"])
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b" a \r\n\nb\r")))
    main()
    assert read == ["a b", "", b" a ", b"", b"b"]
    assert capsys.readouterr().out == "x y\n\n" * 2
