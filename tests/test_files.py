import functools
import gzip
import json
import os
import re
import zipfile
from pathlib import Path

import keras
import pytest
from conftest import PAIRS, TSV

from pipelines import CorpusError, as_seen_from, checksums, damaged_shards
from pipelines.files import parallel_names, whole_folder


def test_a_zip_of_several_files_asks_which(read, tmp_path):
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.tsv", TSV)
        archive.writestr("b.tsv", "x\ty\n")
    with pytest.raises(CorpusError, match=r"two\.zip: choose one of its files: .*two\.zip/a\.tsv, .*two\.zip/b\.tsv"):
        read(tmp_path / "two.zip")
    assert read(tmp_path / "two.zip/b.tsv") == [("x", "y")]
    one, other = (checksums(tmp_path / f"two.zip/{name}.tsv") for name in "ab")
    assert list(one) == [str(tmp_path / "two.zip/a.tsv")] and set(one.values()).isdisjoint(other.values())
    with pytest.raises(CorpusError, match="choose one of its files"):
        read(tmp_path / "two.zip/c.tsv")
    outside = tmp_path / "outside.tsv"
    outside.write_text("not\tthis\n")
    for name in (f"{outside}", "./x/a.tsv"):  # names that are written to zips, and that no path has
        with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
            archive.writestr(name, "a\tb\n")
        assert read(tmp_path / "odd.zip") == [("a", "b")]
        assert read(tmp_path / "odd.zip" / name.lstrip("./")) == [("a", "b")]


def test_an_empty_name_is_refused(read, tsv, tmp_path, monkeypatch):
    tsv("a\tb\n")
    monkeypatch.chdir(tmp_path)
    for corpus in ("", "pairs.tsv+"):
        with pytest.raises(CorpusError, match=f"corpus='{re.escape(corpus)}': a file name is empty; write . for"):
            read(corpus)
    assert read(".") == [("a", "b")]


def test_manifests_of_other_programs_are_ignored(read, tsv, tmp_path):
    tsv(TSV)
    for content in ("[]", "{}", '{"shards": ["x"]}'):
        tsv(content, "manifest.json")
        assert read(tmp_path) == PAIRS and damaged_shards(tmp_path) == []


def test_a_folder_and_a_glob_are_their_files_in_order(read, tsv, tmp_path):
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


def test_two_stars_in_a_glob_match_any_number_of_folders(read, tmp_path):
    for name in ("a.tsv", "b/c.tsv", "b/d/e.tsv"):
        path = tmp_path / "deep" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\tx\n")
    assert [source for source, _ in read(tmp_path / "deep/**/*.tsv")] == ["a.tsv", "b/c.tsv", "b/d/e.tsv"]


def test_a_plus_in_the_name_of_a_file_does_not_separate_parallel_files(read, tsv, tmp_path, monkeypatch):
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


def test_endings_may_be_in_capital_letters(read, tsv, tmp_path):
    rows = "".join(json.dumps({"source": source, "target": target}) + "\n" for source, target in PAIRS)
    paths = [tsv(TSV, "A.TSV"), tsv(gzip.compress(TSV.encode()), "B.TSV.GZ"), tsv(rows, "C.JSONL")]
    assert read(tmp_path) == PAIRS * 3 and all(read(path) == PAIRS for path in paths)
    with zipfile.ZipFile(tmp_path / "D.ZIP", "w") as archive:
        archive.writestr("__MACOSX/._pairs.tsv", "not text")
        archive.writestr("pairs.tsv", TSV)
    assert read(tmp_path / "D.ZIP") == read(tmp_path / "*.ZIP") == PAIRS


def test_a_path_is_never_the_name_of_a_corpus(read, tsv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tsv("a\tb\n", "phrasebook"), tsv("c\td\n", "-")
    assert read("./phrasebook") == read(Path("phrasebook")) == [("a", "b")]
    assert read("./-") == read(Path("-")) == [("c", "d")]
    assert len(read("phrasebook")) == 3500


def test_a_missing_file_and_an_empty_folder_are_refused_at_once(read, tmp_path):
    with pytest.raises(CorpusError, match=r"none\.tsv: No such file"):
        read(tmp_path / "none.tsv")
    with pytest.raises(CorpusError, match="no file in this folder"):
        read(tmp_path)


def test_the_phrasebook_is_clean_and_has_no_source_twice(read):
    pairs = read("phrasebook")
    assert len(pairs) >= 3000
    assert len({source.casefold() for source, _ in pairs}) == len(pairs)
    for source, target in pairs:
        assert re.fullmatch(r"[A-Z][A-Za-z ,.'?!]*[.?!]", source), source
        assert re.fullmatch(r"[¿¡A-ZÁÉÍÓÚÑ][¿¡A-Za-zÁÉÍÓÚáéíóúüñ ,.?!]*[.?!]", target), target
        assert source[-1] == target[-1], source
        assert ("?" in target, "!" in target) == ("¿" in target, "¡" in target), target
        assert "  " not in source + target and len(source) <= 50 and len(target) <= 60


def test_a_download_that_fails_says_what_to_do(read, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(keras.utils, "get_file", functools.partial(keras.utils.get_file, cache_dir=str(tmp_path)))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(
        CorpusError, match=r"spa-eng: URL fetch failure.*; you can also download .* and put it into"
    ) as raised:
        read("spa-eng")
    assert str(tmp_path / "datasets") in str(raised.value)
    assert capfd.readouterr().out == ""


def test_an_address_and_a_file_that_cannot_be_read_are_named(read):
    with pytest.raises(CorpusError, match=r"^http://nowhere/pairs.tsv: is an address; download the file first"):
        read("http://nowhere/pairs.tsv")
    with pytest.raises(CorpusError, match=r"^/proc/self/mem: Input/output error"):
        checksums("/proc/self/mem")


def test_a_folder_within_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(CorpusError, match=f"^{tmp_path}/file/new cannot be made: .*: (File exists|Not a directory)"),
        whole_folder(tmp_path / "file" / "new", CorpusError),
    ):
        pytest.fail("nothing can be written there")


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    folder, empty = tmp_path / "new", tmp_path / "empty"
    with pytest.raises(ZeroDivisionError), whole_folder(folder, CorpusError) as aside:
        aside.mkdir()
        raise ZeroDivisionError
    assert not os.listdir(tmp_path)
    with pytest.raises(OSError, match="not empty"), whole_folder(folder, CorpusError) as late:
        late.mkdir()
        with whole_folder(folder, CorpusError) as aside:  # of another process
            aside.mkdir()
            (aside / "text").write_text("whole")
    assert os.listdir(tmp_path) == ["new"] and os.listdir(folder) == ["text"]
    empty.mkdir()
    with whole_folder(empty, CorpusError) as aside:
        aside.mkdir()
    monkeypatch.chdir(empty)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "other")
    for path, message in (
        (tmp_path / "linked", "linked is a symbolic link, which cannot be replaced; choose another folder"),
        (folder, "new already exists; choose another folder"),
        (folder / "text", "text already exists"),
        (tmp_path / "link", "link already exists"),
        (empty, "empty is the current directory, which cannot be replaced"),
    ):
        with pytest.raises(CorpusError, match=message), whole_folder(path, CorpusError):
            pass
    assert os.listdir(folder) == ["text"]


def test_a_plus_belongs_to_the_longest_name_that_exists(tmp_path):
    for name in ("x+y", "x+y+z"):
        (tmp_path / name).touch()
    for text, names in (("x+y+z", ["x+y+z"]), ("x+y+w", ["x+y", "w"]), ("v+x+y", ["v", "x+y"])):
        assert parallel_names(text, tmp_path) == names
