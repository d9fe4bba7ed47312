import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import re
import subprocess
import tarfile
import threading
import unicodedata
import zipfile
from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import CorpusError, Report, as_seen_from, checksums, damaged_shards, open_corpora
from pipelines.formats import find_shards
from pipelines.lines import as_line, read_lines
from pipelines.readers import Reader

PAIRS = [("Go.", "Ve."), ("Hi.", "Hola."), ("Run!", "¡Corre!")]
TSV = "".join(f"{source}\t{target}\n" for source, target in PAIRS)


def read(corpus, report=None, seed=0, **options):
    """The pairs of one corpus, or of a list of them."""
    corpora = corpus if isinstance(corpus, list) else [corpus]
    reader = Reader(tuple(map(find_shards, corpora)), **options)
    return [(source.decode(), target.decode()) for source, target in reader.pairs(seed, report)]


def test_text_is_read_plain_gzipped_and_from_a_zip(tsv, tmp_path):
    plain, packed = tsv(TSV), tsv(gzip.compress(TSV.encode()), "pairs.tsv.gz")
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.writestr("folder/pairs.tsv", TSV)
    for path in (plain, packed, tmp_path / "one.zip", tmp_path / "one.zip/folder/pairs.tsv"):
        assert read(path) == PAIRS


def test_a_zip_of_several_files_asks_which(tmp_path):
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.tsv", TSV)
        archive.writestr("b.tsv", "x\ty\n")
    with pytest.raises(CorpusError, match=r"two\.zip: which of its files\? .*two\.zip/a\.tsv, .*two\.zip/b\.tsv"):
        read(tmp_path / "two.zip")
    assert read(tmp_path / "two.zip/b.tsv") == [("x", "y")]
    with pytest.raises(CorpusError, match="which of its files"):
        read(tmp_path / "two.zip/c.tsv")


def test_columns_are_chosen_by_number_or_by_name(tsv):
    path = tsv("id\tspanish\tenglish\tby\n1\tVe.\tGo.\tme\n")
    assert read(path, columns=("english", "spanish")) == [("Go.", "Ve.")]
    assert read(path, columns=(3, 2)) == [("english", "spanish"), ("Go.", "Ve.")]
    assert read(path, columns=("english", "spanish"), reverse=True) == [("Ve.", "Go.")]
    with pytest.raises(
        CorpusError, match=r"line 1: no column is called 'french', but 'id', 'spanish', 'english', 'by'"
    ):
        read(path, columns=("english", "french"))
    with pytest.raises(CorpusError, match=r"line 1: expected columns \(1, 5\), found 4 columns"):
        read(path, columns=(1, 5))
    for columns in [(0, 1), (1,), (1, "x")]:
        with pytest.raises(CorpusError, match="expected two names or more, or numbers"):
            read(path, columns=columns)


INFLECTED = [("go\tV;PST", "went"), ("ox\tN;PL", "oxen"), ("an\t", "an")]


@pytest.mark.parametrize(
    "options",
    [{"max_length": 0}, {"max_length": -1}, {"max_ratio": 0.5}, {"max_ratio": float("nan")}, {"columns": (-1, 2)}]
    + [{"weights": (weight,)} for weight in (0.0, -1.0, float("nan"))],
)
def test_what_no_reader_can_do_is_refused_before_it_reads(tsv, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.*: expected "):
        read(tsv("a\tb\n"), **options)


def test_json_lines_may_be_called_json_but_are_not_looked_for_in_a_folder(tsv, tmp_path):
    path = tsv('{"source": "a", "target": "b"}\n', "pairs.json")
    assert read(path) == [("a", "b")]
    with pytest.raises(CorpusError, match="no file in this folder ends in"):
        read(tmp_path)


def test_an_empty_name_is_not_the_current_folder(tsv, tmp_path, monkeypatch):
    tsv("a\tb\n")
    monkeypatch.chdir(tmp_path)
    for corpus in ("", "pairs.tsv+"):
        with pytest.raises(CorpusError, match=f"corpus='{re.escape(corpus)}': an empty name"):
            read(corpus)
    assert read(".") == [("a", "b")]


def test_all_columns_but_the_last_are_the_source(tsv, tmp_path):
    rows = [[*source.split("\t"), target] for source, target in INFLECTED]
    names = ("lemma", "features", "form")
    text = "".join(f"{lemma}\t{form}\t{features}\n" for lemma, features, form in rows)
    path = tsv(text)
    assert read(path, columns=(1, 3, 2)) == INFLECTED
    assert read(tsv(f"lemma\tform\tfeatures\n{text}", "named.tsv"), columns=names) == INFLECTED
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    assert read(tsv("\n".join(lines), "rows.jsonl"), columns=names) == INFLECTED
    for number, name in enumerate(names):
        tsv("".join(f"{row[number]}\n" for row in rows), f"{name}.txt")
    together = "+".join(str(tmp_path / f"{name}.txt") for name in names)
    assert read(together) == read([together, path], columns=(1, 3, 2))[:3] == INFLECTED
    with tf.io.TFRecordWriter(str(tmp_path / "rows.tfrecord")) as file:
        for row in rows:
            features = {
                key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))
                for key, text in zip(names, row, strict=True)
            }
            file.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    assert read(tmp_path / "rows.tfrecord", columns=names) == INFLECTED
    joined = tsv("".join(f"{source}\t{target}\n" for source, target in INFLECTED), "joined.tsv")
    assert read(joined, source_columns=("lemma", "features")) == INFLECTED
    pairs = tf.data.Dataset.from_tensor_slices(tuple(map(list, zip(*INFLECTED, strict=True))))
    assert read(pairs, source_columns=("lemma", "features")) == INFLECTED


def test_of_a_source_with_several_columns_the_first_may_not_be_empty_and_is_what_ratios_are_of(tsv):
    path = tsv("\tV\tx\na\tV;PST;3;SG\tab\nab\tN\taaaaaa\nabcd\tV;PST;3;SG\tab\n")
    report = Report()
    options = {"columns": (1, 2, 3), "on_bad_line": "skip", "max_ratio": 2, "max_length": 13}
    assert read(path, report, **options) == [("a\tV;PST;3;SG", "ab")]
    assert report.dropped == {"empty side": 1, "length ratio": 1, "too long": 1}
    with pytest.raises(CorpusError, match="line 1: the source 1 is empty"):
        read(path, columns=(1, 2, 3))


def test_a_source_of_other_columns_is_refused_by_its_line(tsv, tmp_path):
    names = ("lemma", "features")
    path = tsv("go\tV\twent\ngo\twent\n")
    with pytest.raises(CorpusError, match="line 2: expected lemma TAB features TAB target, found 2 columns"):
        read(path, source_columns=names)
    with pytest.raises(CorpusError, match=r"columns=\(1, 2\): expected 3, for lemma TAB features TAB target"):
        read(path, source_columns=names, columns=(1, 2))
    with pytest.raises(CorpusError, match=r"columns=\(1, 2, 3\): expected 2, for source TAB target"):
        read(path, source_columns=("source",), columns=(1, 2, 3))
    with pytest.raises(CorpusError, match=r"line 2: expected columns .*, found 2 columns"):
        read(path, columns=(1, 2, 3))
    with pytest.raises(CorpusError, match="reverse=True: a source of 2 columns cannot be the target"):
        read(path, columns=(1, 2, 3), reverse=True)
    rows = tsv('{"lemma": "go\\tx", "features": "V", "form": "went"}', "rows.jsonl")
    with pytest.raises(CorpusError, match="line 1: expected 2 columns: lemma TAB features, found 3"):
        read(rows, columns=(*names, "form"))
    a, b, c = (tsv(text, name) for name, text in (("a", "1\n2\n"), ("b", "1\n2\n3\n"), ("c", "1\n2\n")))
    with pytest.raises(CorpusError, match=r"a has 2 lines and .*b 3; they must have equally many"):
        read(f"{a}+{b}+{c}")
    for other, message in ((f"{a}+{c}", "2 parallel files, expected 3"), (path, "2 columns, expected 3")):
        with pytest.raises(CorpusError, match=message):
            read([f"{a}+{b}+{c}", other])


def test_json_lines_are_read_by_their_keys(tsv):
    lines = [json.dumps({"source": s, "target": t, "es": t}, ensure_ascii=False) for s, t in PAIRS]
    path = tsv("\n".join(lines), "pairs.jsonl")
    assert read(path) == PAIRS
    assert read(path, columns=("source", "es")) == PAIRS
    assert read(tsv('{"source": "two\\tcolumns", "target": "two\\nlines"}', "tab.jsonl")) == [
        ("two\tcolumns", "two\nlines")
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"source": "a"', r"line 2: not JSON \(.*\)"),
        ("[1, 2]", "line 2: no text under the key 'source'"),
        ('{"source": "a", "target": 3}', "line 2: no text under the key 'target'"),
        ('{"source": "a", "target": "\\ud800"}', "line 2: the target is not valid UTF-8"),
    ],
)
def test_bad_json_is_named_by_its_line(tsv, line, message):
    with pytest.raises(CorpusError, match=message):
        read(tsv('{"source": "a", "target": "b"}\n' + line, "bad.jsonl"))


def test_dotted_keys_reach_into_json_objects(tsv):
    rows = [{"translation": {"en": source, "es": target}, "id": 1} for source, target in PAIRS]
    path = tsv("\n".join(map(json.dumps, rows)), "pairs.jsonl")
    assert read(path, columns=("translation.en", "translation.es")) == PAIRS
    with pytest.raises(
        CorpusError, match=r"no text under the key 'source', but under translation\.en, translation\.es"
    ):
        read(path)
    deep = {"a": {"b": {"c": "x"}, "b.d": "y"}, "a.b": {"c": "z"}, "a.e": "e"}
    path = tsv(json.dumps(deep), "deep.jsonl")
    assert read(path, columns=("a.b.d", "a.e")) == [("y", "e")]
    for key in ("a.b.x", "a.e.f", "a.", ".a"):
        with pytest.raises(CorpusError, match=f"line 1: no text under the key '{key}'"):
            read(path, columns=("a.e", key))


def test_json_nested_too_deep_is_a_bad_line(tsv):
    path = tsv("[" * 100_000 + '\n{"source": "a", "target": "b"}', "deep.jsonl")
    assert read(path, on_bad_line="skip") == [("a", "b")]
    with pytest.raises(CorpusError, match="line 1: not JSON"):
        read(path)
    (path.parent / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(CorpusError, match=r"manifest\.json: cannot be read"):
        read(path.parent)


def test_a_manifest_of_other_programs_is_none_of_ours(tsv, tmp_path):
    tsv(TSV)
    for content in ("[]", "{}", '{"shards": ["x"]}'):
        tsv(content, "manifest.json")
        assert read(tmp_path) == PAIRS and damaged_shards(tmp_path) == []


def test_parallel_files_are_read_side_by_side(tsv):
    source = tsv("Go.\r\n\nHi.\n", "c.en")
    target = tsv("Ve.\n\nHola.", "c.es")
    assert read(f"{source}+{target}") == PAIRS[:2]
    assert read(f"{source.parent}/c*.en+{source.parent}/c*.es") == PAIRS[:2]
    longer = tsv("1\n\n3\n4\n5\n", "d.es")
    with pytest.raises(CorpusError, match=r"c\.en has 3 lines and .*d\.es 5; they must have equally many"):
        read(f"{source}+{longer}")
    with pytest.raises(CorpusError, match=r"d\.es has 5 lines and .*c\.en 3"):
        read(f"{longer}+{source}")
    with pytest.raises(CorpusError, match="1 and 2 files; expected equally many"):
        read(f"{source}+{source.parent}/*.es")


def test_tfrecord_is_read_by_its_features(tmp_path):
    def example(**texts):
        features = {
            key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[t.encode()])) for key, t in texts.items()
        }
        return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()

    for name, options in (("a.tfrecord", None), ("b.tfrecord.gz", "GZIP")):
        with tf.io.TFRecordWriter(str(tmp_path / name), options) as file:
            for source, target in PAIRS:
                file.write(example(source=source, target=target, es=target))
        assert read(tmp_path / name) == read(tmp_path / name, columns=("source", "es")) == PAIRS
    data = (tmp_path / "a.tfrecord").read_bytes()
    (tmp_path / "cut.tfrecord").write_bytes(data[:-5])
    with pytest.raises(CorpusError, match=r"cut\.tfrecord: damaged after record"):
        read(tmp_path / "cut.tfrecord")
    with pytest.raises(CorpusError, match=r"a\.tfrecord: damaged after record 0 .*nothing"):
        read(tmp_path / "a.tfrecord", columns=("source", "nothing"))


def test_a_folder_and_a_glob_are_their_files_in_order(tsv, tmp_path):
    for name, text in (("b.tsv", "b\tB"), ("a.txt", "a\tA"), ("notes.md", "no tabs"), (".hidden.tsv", "no tabs")):
        tsv(text, name)
    tsv(gzip.compress(b"c\tC"), "c.tsv.gz")
    assert read(tmp_path) == [("a", "A"), ("b", "B"), ("c", "C")]
    assert read(tmp_path / "[bc]*") == [("b", "B"), ("c", "C")]
    with pytest.raises(CorpusError, match="No such file or folder"):
        read(tmp_path / "*.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="no file in this folder ends in"):
        read(tmp_path / "empty")


def test_two_stars_of_a_glob_are_any_number_of_folders(tmp_path):
    for name in ("a.tsv", "b/c.tsv", "b/d/e.tsv"):
        path = tmp_path / "deep" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\tx\n")
    assert [source for source, _ in read(tmp_path / "deep/**/*.tsv")] == ["a.tsv", "b/c.tsv", "b/d/e.tsv"]


def test_a_plus_in_a_name_that_is_there_is_no_sign_of_parallel_files(tsv, tmp_path, monkeypatch):
    (tmp_path / "a+b").mkdir()
    for name, text in (
        ("a+b/c+d.tsv", TSV),
        ("a+b/x.en", "Go.\nHi.\n"),
        ("a+b/x.es", "Ve.\nHola.\n"),
        ("e.en", "1\n2\n"),
    ):
        tsv(text, name)
    with zipfile.ZipFile(tmp_path / "a+b.zip", "w") as archive:
        archive.writestr("in+side/c.tsv", TSV)
        archive.writestr("x.en", "Go.\nHi.\n")
    monkeypatch.chdir(tmp_path)
    for name in ("a+b/c+d.tsv", "a+b/*.tsv", "a+b.zip/in+side/c.tsv"):
        assert read(name) == read(as_seen_from(tmp_path, name)) == PAIRS
    sides = "a+b/x.en+a+b/x.es"
    assert read(sides) == read(as_seen_from(tmp_path, sides)) == read("a+b.zip/x.en+a+b/x.es") == PAIRS[:2]
    assert read("a+b/x.en+e.en+a+b/x.es") == [("Go.\t1", "Ve."), ("Hi.\t2", "Hola.")]
    with pytest.raises(CorpusError, match=r"no\.es: No such file or folder \(of a\+b/x\.en\+no\.es\)"):
        read("a+b/x.en+no.es")


def test_endings_are_known_in_capital_letters(tsv, tmp_path):
    rows = "".join(json.dumps({"source": source, "target": target}) + "\n" for source, target in PAIRS)
    paths = [tsv(TSV, "A.TSV"), tsv(gzip.compress(TSV.encode()), "B.TSV.GZ"), tsv(rows, "C.JSONL")]
    assert read(tmp_path) == PAIRS * 3 and all(read(path) == PAIRS for path in paths)
    with zipfile.ZipFile(tmp_path / "D.ZIP", "w") as archive:
        archive.writestr("__MACOSX/._pairs.tsv", "not text")
        archive.writestr("pairs.tsv", TSV)
    assert read(tmp_path / "D.ZIP") == read(tmp_path / "*.ZIP") == PAIRS


def test_pipes_are_read_but_not_by_what_reads_many_times(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for read_it in (lambda: read(path), lambda: read(f"{path}+{tmp_path / 'other'}")):
        writers = [threading.Thread(target=path.write_bytes, args=[TSV.encode()])]
        (tmp_path / "other").write_text("1\n2\n3\n")
        writers[0].start()
        assert len(read_it()) == 3
        writers[0].join()
    for corpus in (path, "-", f"{path}+{tmp_path / 'other'}"):
        with pytest.raises(CorpusError, match="can be read only once"):
            checksums(corpus)
    with subprocess.Popen(["printf", "a\tb"], stdout=subprocess.PIPE) as process:  # as a shell's <(...)
        assert read(f"/dev/fd/{process.stdout.fileno()}") == [("a", "b")]


def test_a_path_is_a_file_and_no_name(tsv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tsv("a\tb\n", "phrasebook"), tsv("c\td\n", "-")
    assert read("./phrasebook") == read(Path("phrasebook")) == [("a", "b")]
    assert read("./-") == read(Path("-")) == [("c", "d")]
    assert len(read("phrasebook")) == 3500


def test_bzip2_and_xz_are_read(tsv, tmp_path):
    for pack, ending in ((bz2.compress, "bz2"), (lzma.compress, "xz")):
        path = tsv(pack(TSV.encode()), f"pairs.tsv.{ending}")
        assert read(path) == PAIRS
        many = pack("".join(f"{n}\t{n * n}\n" for n in range(100_000)).encode())
        with pytest.raises(CorpusError, match=rf"cut\.tsv\.{ending}: damaged or cut short after [\d,]+ lines"):
            read(tsv(many[:-60], f"cut.tsv.{ending}"))
        (tmp_path / f"cut.tsv.{ending}").unlink()
        with pytest.raises(CorpusError, match=r"\.tfrecord\.\w+: TFRecord is read plain or with \.gz"):
            read(tsv(b"", f"pairs.tfrecord.{ending}"))
        (tmp_path / f"pairs.tfrecord.{ending}").unlink()
    assert read(tmp_path) == PAIRS * 2


@pytest.mark.parametrize("ending", [".tsv.zst", ".tar.gz", ".tar", ".tgz", ".7z", ".rar", ".TAR.XZ"])
def test_what_is_packed_otherwise_is_refused_at_once(tsv, ending):
    path = tsv(TSV, f"pairs{ending}")
    for corpus in (path, f"{path}+{path}", *([path.parent] if ending == ".tsv.zst" else [])):
        with pytest.raises(
            CorpusError, match=r"pairs\..*: is not read as it is; unpack it first: (zstd|tar|7z|unrar) "
        ):
            find_shards(corpus)


def packed(kind):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") if kind == "zip" else tarfile.open(fileobj=file, mode="w") as archive:
        archive.writestr("a.tsv", TSV) if kind == "zip" else archive.addfile(tarfile.TarInfo("a.tsv"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TSV.encode("utf-16"), "UTF-16; save it as UTF-8"),
        (TSV.encode("utf-16-le"), "UTF-16; save it as UTF-8"),
        (TSV.encode("utf-16-be"), "UTF-16; save it as UTF-8"),
        (gzip.compress(TSV.encode()), "compressed by gzip; let its name end in .gz"),
        (bz2.compress(TSV.encode()), "compressed by bzip2"),
        (lzma.compress(TSV.encode()), "compressed by xz"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "compressed by zstd"),
        (packed("tar"), "an archive"),
        (packed("zip"), "a zip archive or an office document"),
        (TSV.replace("\n", "\r").encode(), "line 1: ends in CR alone"),
    ],
    ids=["utf-16", "utf-16-le", "utf-16-be", "gzip", "bzip2", "xz", "zstd", "tar", "zip", "CR"],  # some hold the time
)
def test_what_is_no_utf8_text_is_named_whatever_its_name(tsv, content, message):
    for path in (tsv(content), tsv(content, "rows.jsonl"), f"{tsv(content, 'c.en')}+{tsv(TSV, 'c.es')}"):
        with pytest.raises(CorpusError, match=re.escape(message)):
            read(path, on_bad_line="skip")


def test_cr_before_crlf_is_none_of_the_text(tsv):
    assert read(tsv(TSV.replace("\n", "\r\r\n"))) == PAIRS


def test_a_zip_with_a_password_is_refused(tmp_path):
    path = tmp_path / "pairs.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pairs.tsv", TSV)
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # where the flags are: the first bit says it
        data[data.index(mark) + place] |= 1
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=r"pairs\.tsv: .*encrypted"):
        read(path)


def test_pairs_in_memory_are_read_and_what_is_none_is_refused_by_name(tsv):
    assert read([PAIRS]) == read([[list(pair) for pair in PAIRS]]) == PAIRS
    assert open_corpora(PAIRS).sources == ("source",) and len(list(open_corpora(PAIRS).pairs())) == 3
    assert len(list(open_corpora([PAIRS, tsv(TSV)]).pairs())) == 6
    wrong = [PAIRS[0], ("a", None), ("a", "b", "c"), "ab", (b"x", "\udc80")]
    report = Report()
    assert read([wrong], report, on_bad_line="skip") == PAIRS[:1]
    assert report.dropped == {"wrong columns": 3, "invalid UTF-8": 1}
    with pytest.raises(CorpusError, match=r"list, pair 2: expected two texts, found \('a', None\)"):
        read([wrong])
    for corpus in ((pair for pair in PAIRS), {"a": "b"}, {"a"}, zip("a", "b", strict=True), b"pairs.tsv", 3, None):
        with pytest.raises(CorpusError, match=rf"{type(corpus).__name__} is not read; expected a path.*list\(zip\("):
            open_corpora(corpus)
    with pytest.raises(CorpusError, match="corpus: an empty list"):
        open_corpora([])
    for data in (["a"], (["a"], ["b"], ["c"]), ([1], [2]), ([["a"]], [["b"]]), {"source": ["a"], "target": ["b"]}):
        with pytest.raises(CorpusError, match=r"a dataset of .*; expected one of \(source, target\) scalar strings"):
            find_shards(tf.data.Dataset.from_tensor_slices(data))


def test_the_side_that_is_no_utf8_is_named(tsv):
    for line, side in ((b"a\xff\tb", "source"), (b"a\tb\xff", "target")):
        for reverse in (False, True):
            named = {"source": "target", "target": "source"}[side] if reverse else side
            with pytest.raises(CorpusError, match=f"line 1: the {named} is not valid UTF-8"):
                read(tsv(line), reverse=reverse)


@pytest.mark.parametrize("nothing", ["\u00a0", "\u200b", "\ufeff", " \u3000\u2060\u00ad", "\0"])
def test_a_side_in_which_nothing_can_be_seen_is_empty(tsv, nothing):
    report = Report()
    path = tsv(f"a\t{nothing}\nb{nothing}\t{nothing}b\nc{nothing}\t.\n{nothing}\tx\n".encode())
    assert [source for source, _ in read(path, report, on_bad_line="skip")] == [f"b{nothing}", f"c{nothing}"]
    assert report.dropped == {"empty side": 2}


@pytest.mark.parametrize("cut", [10, 60, 300])
def test_a_gzip_that_is_cut_short_says_how_far_it_came(tsv, cut):
    data = gzip.compress("".join(f"line {n}\tlínea {n * n}\n" for n in range(900)).encode())
    with pytest.raises(CorpusError, match=r"cut\.tsv\.gz: damaged or cut short after [\d,]+ lines"):
        read(tsv(data[:-cut], "cut.tsv.gz"))
    with pytest.raises(CorpusError, match=r"no\.tsv\.gz: damaged or cut short after 0 lines"):
        read(tsv(b"plain text", "no.tsv.gz"))


def test_a_file_that_vanishes_while_others_are_read_is_named(tsv, tmp_path):
    for name in "abc":
        tsv(f"{name}\t{name}\n", f"{name}.tsv")
    pairs = Reader((find_shards(tmp_path),)).pairs()
    next(pairs)
    (tmp_path / "c.tsv").unlink()
    with pytest.raises(CorpusError, match=r"c\.tsv: No such file"):
        list(pairs)


def test_cleaning_leaves_out_and_reports_by_reason(tsv):
    path = tsv(
        b"Go.\tVe.\nno tab\n\tempty\nbad\t\xff\nGo.\tVe.\nmuch too long a source\tshort\na\tnot alike\nHi.\tHola.\n"
    )
    report = Report()
    options = {"on_bad_line": "skip", "max_length": 20, "max_ratio": 5, "drop_duplicates": True}
    assert read(path, report, **options) == PAIRS[:2]
    assert report.pairs == 2
    assert report.dropped == {
        "wrong columns": 1,
        "empty side": 1,
        "invalid UTF-8": 1,
        "duplicate": 1,
        "too long": 1,
        "length ratio": 1,
    }
    assert str(report).startswith("6 of 8 pairs left out\n")
    assert f"    {path}, line 7: 1 to 9 characters" in str(report).splitlines()
    with pytest.raises(CorpusError, match=r"line 2: .*no tab"):
        read(path, max_length=20)
    with pytest.raises(CorpusError, match="expected 'error' or 'skip'"):
        read(path, on_bad_line="ignore")


def lines(corpus, report=None, **options):
    """What a corpus gives for each of its lines, the sources of pairs."""
    found = Reader((find_shards(corpus),), **options).lines(Report() if report is None else report)
    return [pair and pair[0].decode() for pair in found]


def test_each_line_gives_a_pair_or_none(tsv, tmp_path):
    report, skip = Report(), {"on_bad_line": "skip"}
    path = tsv(b"\xef\xbb\xbfGo.\tVe.\r\n\r\nno tab\n  \n\xff\tx\na\rb\xc2\x85\0c\tx\n\tx\nx\t \nHi.\tHola.")
    assert lines(path, report, **skip) == ["Go.", None, None, None, None, "a\rb\x85\0c", None, None, "Hi."]
    assert report.pairs == 3
    assert report.dropped == {"no pair": 1, "wrong columns": 2, "invalid UTF-8": 1, "empty side": 2}
    assert report.first["no pair"] == [f"{path}, line 2: the line is empty"]
    assert read(path, **skip) == [("Go.", "Ve."), ("a\rb\x85\0c", "x"), ("Hi.", "Hola.")]
    with pytest.raises(CorpusError, match=r"line 3: .*no tab"):
        lines(path)
    assert lines(tsv("a\tb\n\n\nc\td\n\n", "empty.tsv")) == ["a", None, None, "c", None]
    assert lines(tsv("", "nothing.tsv")) == [] and lines(tsv("\n", "one.tsv")) == [None]
    named = tsv("id\ten\tes\n1\tGo.\tVe.\n\n2\tHi.\n", "named.tsv")
    assert lines(named, report, columns=("en", "es"), **skip) == [None, "Go.", None, None]
    assert report.first["no pair"][1] == f"{named}, line 1: the names of the columns"
    assert lines(named, columns=(2, 3), reverse=True, **skip) == ["es", "Ve.", None, None]


def test_each_line_or_record_of_other_formats_gives_a_pair_or_none(tsv, tmp_path):
    skip = {"on_bad_line": "skip"}
    rows = [
        '{"source": "a\\nb", "target": "x"}',
        "",
        "{",
        "3",
        '{"source": "\\ud800", "target": "x"}',
        '{"source": "c"}',
    ]
    assert lines(tsv("\n".join(rows), "rows.jsonl"), **skip) == ["a\nb", None, None, None, None, None]
    sides = tsv("Go.\n\n\nHi.\n", "c.en"), tsv("Ve.\n\nx\n\n", "c.es")
    assert lines("+".join(map(str, sides)), **skip) == ["Go.", None, None, None]
    with pytest.raises(CorpusError, match="they must have equally many"):
        lines(f"{sides[0]}+{tsv('Ve.', 'short')}", **skip)
    with tf.io.TFRecordWriter(str(tmp_path / "rows.tfrecord")) as file:
        for texts in (("Go.", "Ve."), ("", ""), ("Hi.", "Hola.")):
            features = {
                key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))
                for key, text in zip(("source", "target"), texts, strict=True)
            }
            file.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    assert lines(tmp_path / "rows.tfrecord", **skip) == ["Go.", None, "Hi."]
    assert len(lines(tmp_path, **skip)) == 6 + 3  # a folder: what is in its files, in the order of their names


BREAKS = st.sampled_from("\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029")


@settings(deadline=None, max_examples=200)
@given(st.text(st.one_of(BREAKS, st.characters(codec="utf-8"))))
def test_any_text_stands_in_one_column_of_one_line(text):
    line = as_line(text.encode()).decode()
    assert "\t" not in line and len(f"{line}.".splitlines()) == 1

    def breaks(character):
        return character == "\t" or len(f"{character}.".splitlines()) > 1

    assert line == "".join(" " if breaks(character) else character for character in text.replace("\r\n", "\n"))


def test_only_lf_ends_a_line_with_any_cr_before_it(tsv):
    path = tsv("\ufeffa\r\r\n\n\rb\vc\x85\u2028\0\n d ".encode())
    assert [line.decode() for _, line in read_lines(path)] == ["a", "", "\rb\vc\x85\u2028\0", " d "]


def test_only_the_first_three_offenders_are_named(tsv):
    report = Report()
    read(tsv("no tab\n" * 50 + "a\tb\n"), report, on_bad_line="skip")
    assert report.dropped["wrong columns"] == 50 and len(report.first["wrong columns"]) == 3


def test_duplicates_are_found_within_a_window(tsv, monkeypatch):
    monkeypatch.setattr("pipelines.readers._DUPLICATE_WINDOW", 10)
    near = [f"{n}\tx" for n in range(9)] + ["0\tx"]
    far = [f"{n}\tx" for n in range(25)] + ["0\tx"]
    assert len(read(tsv("\n".join(near)), drop_duplicates=True)) == 9
    assert len(read(tsv("\n".join(far)), drop_duplicates=True)) == 26


@pytest.mark.parametrize(("files", "num_shards"), [(1, 3), (5, 3), (2, 3), (4, 1), (3, 3)])
@pytest.mark.parametrize("shuffle_files", [False, True])
def test_workers_share_a_corpus_without_loss_or_repetition(tsv, tmp_path, files, num_shards, shuffle_files):
    for file in range(files):
        tsv("".join(f"{file}.{n % 60}\tx\n" for n in range(100)), f"{file}.tsv")
    options = {"shuffle_files": shuffle_files, "drop_duplicates": True}
    shares = [read(tmp_path, num_shards=num_shards, index=index, **options) for index in range(num_shards)]
    together = list(itertools.chain(*shares))
    assert sorted(together) == sorted(read(tmp_path, drop_duplicates=True))
    assert len(together) == 60 * files and all(shares)
    with pytest.raises(CorpusError, match="index=3: expected 0 to 2"):
        read(tmp_path, num_shards=3, index=3)


def test_shuffled_files_are_read_in_turns_in_an_order_of_the_seed(tsv, tmp_path):
    for file in range(40):
        tsv("".join(f"{file}\t{n}\n" for n in range(600)), f"{file:02}.tsv")
    first = read(tmp_path, seed=1, shuffle_files=True)
    assert first == read(tmp_path, seed=1, shuffle_files=True) != read(tmp_path, seed=2, shuffle_files=True)
    assert sorted(first) == sorted(read(tmp_path))
    assert len({source for source, _ in first[:4096]}) == 16


def test_weights_mix_corpora_evenly_until_each_has_been_read(tsv):
    large, small = tsv("large\tx\n" * 300, "large.tsv"), tsv("".join(f"small\t{n}\n" for n in range(40)), "small.tsv")
    report = Report()
    mixed = read([large, small], report, weights=(3, 1))
    assert sum(source == "small" for source, _ in mixed) == pytest.approx(len(mixed) / 4, abs=1)
    assert sum(source == "small" for source, _ in mixed[:40]) == 10
    assert [source for source, _ in mixed].count("large") == 300
    assert {target for source, target in mixed if source == "small"} == {str(n) for n in range(40)}
    assert report.pairs == 340, "each is counted once"
    for weights in ((1,), (1, 0)):
        with pytest.raises(CorpusError, match="expected 2 positive numbers"):
            read([large, small], weights=weights)
    with pytest.raises(CorpusError, match="corpus 2 of the weighted ones has no pairs"):
        read([large, tsv("", "none.tsv")], weights=(1, 1))


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r"), min_size=1).filter(
    lambda text: any(unicodedata.category(c)[0] not in "ZC" for c in text) and not text.startswith("\ufeff")
)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(TEXT, TEXT)), st.sampled_from(["tsv", "tsv.gz", "jsonl", "parallel"]))
def test_any_text_is_read_as_it_was_written(tmp_path_factory, pairs, form):
    folder = tmp_path_factory.mktemp("any")
    if form == "jsonl":
        path = folder / "pairs.jsonl"
        path.write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in pairs))
    elif form == "parallel":
        for side, name in enumerate(("a.x", "a.y")):
            (folder / name).write_bytes("".join(pair[side] + "\n" for pair in pairs).encode())
        path = f"{folder}/a.x+{folder}/a.y"
    else:
        data = "".join(f"{source}\t{target}\n" for source, target in pairs).encode()
        path = folder / f"pairs.{form}"
        path.write_bytes(gzip.compress(data) if form == "tsv.gz" else data)
    assert read(path) == pairs


@settings(deadline=None, max_examples=100)
@given(st.binary())
def test_no_bytes_crash_it_and_none_are_lost_uncounted(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "pairs.tsv"
    path.write_bytes(data)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or (b"\n" not in data and b"\r" in data.rstrip(b"\r")):
        with pytest.raises(CorpusError, match=r"UTF-16|CR alone"):
            read(path, on_bad_line="skip")
        return
    report = Report()
    kept = read(path, report, on_bad_line="skip", max_length=5, drop_duplicates=True)
    lines = [line.rstrip(b"\r") for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    assert len(kept) == report.pairs
    assert report.pairs + report.dropped.total() == sum(1 for line in lines if line)
