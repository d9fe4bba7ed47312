import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import CorpusError, corpus_errors, count_pairs, read_pairs, split_by_hash, split_last


def strings(pairs):
    return [(source.decode(), target.decode()) for source, target in pairs.as_numpy_iterator()]


def test_reads_two_or_three_columns_with_bom_crlf_and_blank_lines(tsv):
    path = tsv(b"\xef\xbb\xbfGo.\tVe.\r\nHi.\tHola.\tCC-BY 2.0 (France)\r\n\r\nRun!\t\xc2\xa1Corre!")
    assert strings(read_pairs(path)) == [("Go.", "Ve."), ("Hi.", "Hola."), ("Run!", "¡Corre!")]
    assert strings(read_pairs(path, limit=1)) == [("Go.", "Ve.")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"no tab here", "line 3: expected source TAB target .*, found no tab"),
        (b"a\tb\tc\td", "line 3: .*found 4 columns"),
        (b"\tempty", "line 3: the source is empty"),
        (b"empty\t ", "line 3: the target is empty"),
        (b"a\t\xff\xfe", r"line 3: the target is not valid UTF-8 \(invalid start byte at byte 0\)"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(tsv, line, message):
    path = tsv(b"Go.\tVe.\nHi.\tHola.\n" + line + b"\nafter\tthat\n")
    with pytest.raises(CorpusError, match=re.escape(str(path)) + ", " + message), corpus_errors():
        strings(read_pairs(path))


def test_a_missing_file_and_a_folder_are_refused_at_once(tmp_path):
    with pytest.raises(CorpusError, match=r"none\.tsv: No such file"):
        read_pairs(tmp_path / "none.tsv")
    with pytest.raises(CorpusError, match="Is a directory"):
        read_pairs(tmp_path)


def test_the_hash_split_keeps_translations_of_one_source_together_and_loses_nothing(tsv):
    lines = [(f"source {n % 700}", f"target {n}") for n in range(2100)]
    pairs = read_pairs(tsv("".join(f"{source}\t{target}\n" for source, target in lines)))
    training, validation = (strings(side) for side in split_by_hash(pairs, 0.2))
    assert sorted(training + validation) == sorted(lines)
    assert not {source for source, _ in training} & {source for source, _ in validation}
    assert 0.15 < len(validation) / len(lines) < 0.25


def test_the_hash_split_never_changes(tsv):
    pairs = read_pairs(tsv("".join(f"{letter}\tx\n" for letter in "abcdefghijklmnopqrstuvwxyz")))
    assert "".join(source for source, _ in strings(split_by_hash(pairs, 0.2)[1])) == "bcknrs"


def test_the_last_split_holds_out_the_end(tsv):
    training, validation = split_last(read_pairs(tsv("".join(f"{n}\tx\n" for n in range(10)))), 0.2)
    assert count_pairs(training) == 8
    assert strings(validation) == [("8", "x"), ("9", "x")]


def test_the_phrasebook_is_what_it_says():
    pairs = strings(read_pairs("phrasebook"))
    assert len(pairs) >= 3000
    assert len({source.casefold() for source, _ in pairs}) == len(pairs)
    for source, target in pairs:
        assert re.fullmatch(r"[A-Z][A-Za-z ,.'?!]*[.?!]", source), source
        assert re.fullmatch(r"[¿¡A-ZÁÉÍÓÚÑ][¿¡A-Za-zÁÉÍÓÚáéíóúüñ ,.?!]*[.?!]", target), target
        assert source[-1] == target[-1], source
        assert ("?" in target, "!" in target) == ("¿" in target, "¡" in target), target
        assert "  " not in source + target and len(source) <= 50 and len(target) <= 60


def test_spa_eng_is_read_whole(spa_eng):
    pairs = read_pairs(spa_eng)
    assert count_pairs(pairs) == 118_964
    assert strings(pairs.take(1)) == [("Go.", "Ve.")]


def test_a_download_that_fails_says_what_to_do(tmp_path):
    # A real process with an empty cache, and a proxy that nobody listens on.
    script = "from pipelines import read_pairs; read_pairs('spa-eng')"
    environment = {**os.environ, "KERAS_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert "CorpusError: spa-eng: URL fetch failure" in done.stderr and "can also be put into" in done.stderr
    assert str(tmp_path / "datasets") in done.stderr and done.stdout == ""


def test_a_path_beside_a_named_corpus_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("phrasebook").write_text("Go.\tVe.\n")
    assert count_pairs(read_pairs("./phrasebook")) == 1
