import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import tensorflow as tf

from pipelines import (
    CharTokenizer,
    CorpusError,
    Report,
    SubwordTokenizer,
    WhitespaceTokenizer,
    corpus_errors,
    count_pairs,
    group_by_source,
    read_pairs,
    sources_in,
    split_by_hash,
    split_last,
    survey,
)


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


def test_a_missing_file_and_an_empty_folder_are_refused_at_once(tmp_path):
    with pytest.raises(CorpusError, match=r"none\.tsv: No such file"):
        read_pairs(tmp_path / "none.tsv")
    with pytest.raises(CorpusError, match="no file in this folder"):
        read_pairs(tmp_path)


def test_the_hash_split_keeps_translations_of_one_source_together_and_loses_nothing(tsv):
    lines = [(f"source {n % 700}", f"target {n}") for n in range(2100)]
    pairs = read_pairs(tsv("".join(f"{source}\t{target}\n" for source, target in lines)))
    training, validation = (strings(side) for side in split_by_hash(pairs, 0.2, CharTokenizer()))
    assert sorted(training + validation) == sorted(lines)
    assert not {source for source, _ in training} & {source for source, _ in validation}
    assert 0.15 < len(validation) / len(lines) < 0.25


def test_the_hash_split_never_changes(tsv):
    pairs = read_pairs(tsv("".join(f"{letter}\tx\n" for letter in "abcdefghijklmnopqrstuvwxyz")))
    assert "".join(source for source, _ in strings(split_by_hash(pairs, 0.2, CharTokenizer())[1])) == "bcknrs"


def nfd(text):
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    ("change", "tokenizer"),
    [
        (str.lower, CharTokenizer(lowercase=True)),
        (nfd, CharTokenizer()),
        (lambda text: text.replace(" ", "\u3000 ") + " ", SubwordTokenizer()),
        (lambda text: text.replace(" ", "\u2009"), WhitespaceTokenizer(normal_form="NFKC")),
    ],
    ids=["case", "NFD", "spaces", "thin spaces"],
)
def test_the_hash_split_keeps_together_what_the_model_cannot_tell_apart(tsv, change, tokenizer):
    spanish = [target for _, target in strings(read_pairs("phrasebook", 1000))]
    both = tsv("".join(f"{source}\tx\n{change(source)}\tx\n" for source in spanish))
    training, validation = (
        {
            " ".join(text.decode().split())
            for text in tokenizer.normalize([source for source, _ in strings(side)]).numpy()
        }
        for side in split_by_hash(read_pairs(both), 0.2, tokenizer)
    )
    assert 150 < len(validation) < 250 and not training & validation


def test_the_hash_split_does_not_depend_on_how_text_is_cut_into_tokens(tsv):
    pairs = read_pairs(tsv("".join(f"a{' ' * (n % 4)}b▁{n}\tx\n" for n in range(300))))
    kinds = (CharTokenizer, SubwordTokenizer, WhitespaceTokenizer)
    first, *others = (strings(split_by_hash(pairs, 0.2, kind())[1]) for kind in kinds)
    assert first and others == [first, first]


def test_pairs_are_found_whose_source_is_trained_on(tsv):
    pairs = read_pairs(tsv("Go.\tVe.\nStop.\tPara.\ngo.\tVaya.\n", "held-out.tsv"))
    training = read_pairs(tsv("x\ty\n" * 5000 + "Go. \tVete.\n" * 2))
    assert sources_in(pairs, training, CharTokenizer()).tolist() == [True, False, False]
    assert sources_in(pairs, training, CharTokenizer(lowercase=True)).tolist() == [True, False, True]
    assert sources_in(pairs.take(0), training, CharTokenizer()).tolist() == []
    assert sources_in(pairs, training.take(0), CharTokenizer()).tolist() == [False] * 3


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


def test_several_corpora_and_datasets_are_read_one_after_the_other(tsv):
    dataset = tf.data.Dataset.from_tensor_slices((["x", "xxxxxx"], ["y", "y"]))
    path = tsv("Go.\tVe.\n")
    assert strings(read_pairs([path, dataset])) == [("Go.", "Ve."), ("x", "y"), ("xxxxxx", "y")]
    report = Report()
    assert strings(read_pairs(dataset, max_length=5, report=report)) == [("x", "y")]
    assert report.first == {"too long": ["dataset, pair 2: 6 characters"]}
    with pytest.raises(CorpusError, match="exclude each other"):
        read_pairs(path, limit=1, num_shards=2)


def test_shuffled_files_come_in_a_new_order_each_epoch_and_the_same_for_a_seed(tsv, tmp_path):
    for file in range(9):
        tsv(f"{file}\tx\n", f"{file}.tsv")

    def epochs(seed):
        pairs = read_pairs(tmp_path, shuffle_files=True, seed=seed)
        return [strings(pairs), strings(pairs)] if seed is None else strings(pairs.repeat(2))

    assert epochs(1) == epochs(1) != epochs(2)
    assert epochs(1)[:9] != epochs(1)[9:]
    assert sorted(epochs(1)[:9]) == sorted(strings(read_pairs(tmp_path)))

    def one(epoch):
        return strings(read_pairs(tmp_path, shuffle_files=True, seed=1, epoch=epoch))

    assert one(4) == one(tf.constant(4)) != one(5)
    assert sorted(one(4)) == sorted(one(5)) == sorted(epochs(1)[:9])


def test_a_report_is_of_the_last_whole_pass(tsv):
    report = Report()
    pairs = read_pairs(tsv("a\tb\nno tab\n"), report=report, on_bad_line="skip")
    strings(pairs)
    strings(pairs)
    assert (report.pairs, report.dropped) == (1, {"wrong columns": 1})


def test_a_pass_up_to_the_limit_is_whole(tsv):
    report = Report()
    path = tsv("a\tb\nno tab\nc\td\ne\tf\nno tab\n")
    assert strings(read_pairs(path, 2, report=report, on_bad_line="skip")) == [("a", "b"), ("c", "d")]
    assert (report.pairs, report.dropped) == (2, {"wrong columns": 1})
    assert strings(read_pairs(path, 0)) == []
    with pytest.raises(CorpusError, match="limit=-1: expected 0 or more"):
        read_pairs(path, -1)


def test_a_survey_counts_pairs_tokens_and_lengths(tsv):
    seen = []
    found = survey(read_pairs(tsv("aab\tx\na\txyxyx\n")), CharTokenizer(), CharTokenizer(), seen.append)
    assert (found.pairs, found.longer, seen) == (2, 3 + 5, [2])
    assert found.tokens == ({b"a": 3, b"b": 1}, {b"x": 4, b"y": 2})
    assert found.lengths == ({3: 1, 1: 1}, {1: 1, 5: 1})
    assert [found.length(0, quantile) for quantile in (0, 0.5, 0.51, 1)] == [1, 1, 3, 3]
    assert found.as_dict()["target"] == {"tokens": {"x": 4, "y": 2}, "lengths": {1: 1, 5: 1}}


def test_memory_does_not_grow_with_the_corpus(tsv):
    script = r"""if True:
        import re, sys
        from pathlib import Path
        from pipelines.formats import Shard
        from pipelines.readers import Reader

        def rows(*_):
            for n in range(int(sys.argv[1])):
                yield n, b"source %d" % n, b"target %d" % n, ""

        reader = Reader(([Shard("made", rows)],), drop_duplicates=True, max_length=100, max_ratio=9)
        assert sum(1 for _ in reader.pairs()) == int(sys.argv[1])
        # Not getrusage, whose maximum a process inherits from the one that started it.
        print(*re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()))
    """
    small, large = (
        int(subprocess.run([sys.executable, "-c", script, str(n)], capture_output=True, check=True).stdout)
        for n in (400_000, 2_000_000)
    )
    assert large < 1.1 * small


def test_pairs_are_grouped_by_source_in_their_order(tsv):
    pairs = read_pairs(tsv("go\tve\nñu\tx\ngo\tvaya\ngo\tve\n"))
    assert group_by_source(pairs) == {"go": ["ve", "vaya", "ve"], "ñu": ["x"]}
    assert group_by_source(pairs.take(0)) == {}


def test_a_source_in_two_unicode_forms_is_one_source(tsv):
    pairs = read_pairs(tsv(f"{nfd('ñu')}\tx\nñu\ty\nÑu\tz\n"))
    assert group_by_source(pairs) == {nfd("ñu"): ["x", "y"], "Ñu": ["z"]}
