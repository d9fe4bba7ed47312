import bz2
import gzip
import io
import lzma
import os
import re
import subprocess
import tarfile
import threading
import zipfile

import pytest
from conftest import PAIRS, TSV
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines import CorpusError, checksums
from pipelines.lines import as_line, read_lines


def test_text_is_read_plain_gzipped_and_from_a_zip(read, tsv, tmp_path):
    plain, packed = tsv(TSV), tsv(gzip.compress(TSV.encode()), "pairs.tsv.gz")
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.writestr("folder/pairs.tsv", TSV)
    for path in (plain, packed, tmp_path / "one.zip", tmp_path / "one.zip/folder/pairs.tsv"):
        assert read(path) == PAIRS
    with zipfile.ZipFile(tmp_path / "records.zip", "w") as archive:
        archive.writestr("pairs.tfrecord", b"")
    with pytest.raises(CorpusError, match=r"records\.zip/pairs\.tfrecord: TFRecord is read .* not from a zip"):
        read(tmp_path / "records.zip")


def test_bzip2_and_xz_are_read(read, tsv, tmp_path):
    for pack, ending in ((bz2.compress, "bz2"), (lzma.compress, "xz")):
        path = tsv(pack(TSV.encode()), f"pairs.tsv.{ending}")
        assert read(path) == PAIRS
        many = pack("".join(f"{n}\t{n * n}\n" for n in range(10_000)).encode())
        with pytest.raises(CorpusError, match=rf"cut\.tsv\.{ending}: damaged or cut short after [\d,]+ lines"):
            read(tsv(many[:-60], f"cut.tsv.{ending}"))
        (tmp_path / f"cut.tsv.{ending}").unlink()
        with pytest.raises(CorpusError, match=r"\.tfrecord\.\w+: TFRecord is read uncompressed or as \.gz"):
            read(tsv(b"", f"pairs.tfrecord.{ending}"))
        (tmp_path / f"pairs.tfrecord.{ending}").unlink()
    assert read(tmp_path) == PAIRS * 2


@pytest.mark.parametrize("ending", ["bz2", "xz"])
def test_a_file_of_several_streams_is_read_to_its_end_or_refused(read, tsv, ending):
    pack = {"bz2": bz2.compress, "xz": lzma.compress}[ending]
    one, other = (pack(line.encode()) for line in TSV.splitlines(keepends=True)[:2])
    for content in (one + other, one + bytes(4) + other, one + other + bytes(8)):  # zeros, as the format xz allows
        assert read(tsv(content, f"two.tsv.{ending}")) == PAIRS[:2]
    damaged = bytes([other[0] ^ 1]) + other[1:]
    for content in (one + damaged, one + b"garbage", one + other[:4], one + other[:-4], b""):
        with pytest.raises(CorpusError, match=rf"bad\.tsv\.{ending}: damaged or cut short after \d lines"):
            read(tsv(content, f"bad.tsv.{ending}"))


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
        (gzip.compress(TSV.encode()), "compressed with gzip; rename it to end in .gz"),
        (bz2.compress(TSV.encode()), "compressed with bzip2"),
        (lzma.compress(TSV.encode()), "compressed with xz"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "compressed with zstd"),
        (packed("tar"), "an archive"),
        (packed("zip"), "a zip archive or an office document"),
        (TSV.replace("\n", "\r").encode(), "line 1: ends in CR alone"),
    ],
    ids=["utf-16", "utf-16-le", "utf-16-be", "gzip", "bzip2", "xz", "zstd", "tar", "zip", "CR"],  # some hold the time
)
def test_a_file_that_is_not_utf8_text_is_refused_whatever_its_name(read, tsv, content, message):
    for path in (tsv(content), tsv(content, "rows.jsonl"), f"{tsv(content, 'c.en')}+{tsv(TSV, 'c.es')}"):
        with pytest.raises(CorpusError, match=re.escape(message)):
            read(path, on_bad_line="skip")


@pytest.mark.parametrize("first", ["PAR1", "a" * 252 + "gustar", "BZh9 x", "Rar!", "7z"])
def test_text_that_begins_almost_like_another_format_is_text(read, tsv, first):
    assert read(tsv(f"{first}\tx\n")) == [(first, "x")]


def test_a_zip_with_a_password_is_refused(read, tmp_path):
    path = tmp_path / "pairs.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pairs.tsv", TSV)
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # where the flags are: the first bit says it
        data[data.index(mark) + place] |= 1
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=r"pairs\.tsv: .*encrypted"):
        read(path)


def test_pipes_are_read_and_have_no_checksums(read, tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    for read_it in (lambda: read(path), lambda: read(f"{path}+{tmp_path / 'other'}")):
        writers = [threading.Thread(target=path.write_bytes, args=[TSV.encode()])]
        (tmp_path / "other").write_text("1\n2\n3\n")
        writers[0].start()
        assert len(read_it()) == 3
        writers[0].join()
    for corpus in (path, "-", f"{path}+{tmp_path / 'other'}"):
        with pytest.raises(CorpusError, match="training reads a corpus many times, so it must be a file"):
            checksums(corpus)
    with subprocess.Popen(["printf", "a\tb"], stdout=subprocess.PIPE) as process:  # as a shell's <(...)
        assert read(f"/dev/fd/{process.stdout.fileno()}") == [("a", "b")]


def test_standard_input_is_read_once(read, tmp_path, monkeypatch):
    (tmp_path / "in").write_text("a\tb\n")
    with (tmp_path / "in").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert read("-") == [("a", "b")]
        with pytest.raises(CorpusError, match="standard input can be read only once"):
            read("-")


@pytest.mark.parametrize("cut", [10, 60, 300])
def test_a_gzip_that_is_cut_short_says_how_far_it_came(read, tsv, cut):
    data = gzip.compress("".join(f"line {n}\tlínea {n * n}\n" for n in range(900)).encode())
    with pytest.raises(CorpusError, match=r"cut\.tsv\.gz: damaged or cut short after [\d,]+ lines"):
        read(tsv(data[:-cut], "cut.tsv.gz"))
    with pytest.raises(CorpusError, match=r"no\.tsv\.gz: damaged or cut short after 0 lines"):
        read(tsv(b"plain text", "no.tsv.gz"))


def test_only_lf_ends_a_line_with_any_cr_before_it(tsv):
    path = tsv("\ufeffa\r\r\n\n\rb\vc\x85\u2028\0\n d ".encode())
    assert [line.decode() for _, line in read_lines(path)] == ["a", "", "\rb\vc\x85\u2028\0", " d "]
    assert list(read_lines(tsv("a\rb\nc\n"))) == [(1, b"a\rb"), (2, b"c")]
    assert list(read_lines(tsv("a\r"))) == [(1, b"a")]


BREAKS = st.sampled_from("\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029")


@settings(deadline=None, max_examples=200)
@example("a\r\nb")
@given(st.text(st.one_of(BREAKS, st.characters(codec="utf-8"))))
def test_any_text_stands_in_one_column_of_one_line(text):
    line = as_line(text.encode()).decode()
    assert "\t" not in line and len(f"{line}.".splitlines()) == 1

    def breaks(character):
        return character == "\t" or len(f"{character}.".splitlines()) > 1

    assert line == "".join(" " if breaks(character) else character for character in text.replace("\r\n", "\n"))


def test_another_standard_input_is_read_anew(monkeypatch):
    monkeypatch.setattr("pipelines.lines._standard_input", None)
    for line in (b"a", b"b"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(line + b"\n")))
        assert list(read_lines(None)) == [(1, line)]
