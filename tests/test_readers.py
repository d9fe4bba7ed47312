import itertools
import subprocess
import sys

import pytest
import tensorflow as tf
from conftest import PAIRS
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import CorpusError, OptionError, Report, read_pairs
from pipelines.formats import find_shards
from pipelines.readers import Reader, open_corpora


@pytest.mark.parametrize(
    "options",
    [{"max_length": 0}, {"max_length": -1}, {"max_ratio": 0.5}, {"max_ratio": float("nan")}, {"columns": (-1, 2)}]
    + [{"weights": (weight,)} for weight in (0.0, -1.0, float("nan"), None)]
    + [{"weights": 2}],
)
def test_impossible_options_are_refused_before_reading(tsv, options):
    with pytest.raises(OptionError, match=f"{next(iter(options))}=.*: expected "):
        open_corpora(tsv("a\tb\n"), **options)


def test_an_option_that_does_not_exist_is_refused_with_the_nearest_one():
    with pytest.raises(OptionError, match=r"^colums: there is no such option; did you mean 'columns'"):
        read_pairs("phrasebook", colums=(1, 2))


def test_the_first_column_of_a_source_may_not_be_empty_and_counts_for_the_length_ratio(read, tsv):
    path = tsv("\tV\tx\na\tV;PST;3;SG\tab\nab\tN\taaaaaa\nabcd\tV;PST;3;SG\tab\n")
    report = Report()
    options = {"columns": (1, 2, 3), "on_bad_line": "skip", "max_ratio": 2, "max_length": 11}
    assert read(path, report, **options) == [("a\tV;PST;3;SG", "ab")]
    assert report.dropped == {"empty side": 1, "length ratio": 1, "too long": 1}
    with pytest.raises(CorpusError, match="line 1: the source 1 is empty"):
        read(path, columns=(1, 2, 3))


def test_the_side_that_is_not_utf8_is_named(read, tsv):
    for line, side in ((b"a\xff\tb", "source"), (b"a\tb\xff", "target")):
        for reverse in (False, True):
            named = {"source": "target", "target": "source"}[side] if reverse else side
            with pytest.raises(CorpusError, match=f"line 1: the {named} is not valid UTF-8"):
                read(tsv(line), reverse=reverse)


@pytest.mark.parametrize("nothing", ["\u00a0", "\u200b", "\ufeff", " \u3000\u2060\u00ad", "\0"])
def test_a_side_of_invisible_characters_is_empty(read, tsv, nothing):
    report = Report()
    path = tsv(f"a\t{nothing}\nb{nothing}\t{nothing}b\nc{nothing}\t.\n{nothing}\tx\n".encode())
    assert [source for source, _ in read(path, report, on_bad_line="skip")] == [f"b{nothing}", f"c{nothing}"]
    assert report.dropped == {"empty side": 2}


def test_a_file_that_vanishes_while_others_are_read_is_named(tsv, tmp_path):
    for name in "abc":
        tsv(f"{name}\t{name}\n", f"{name}.tsv")
    pairs = Reader((find_shards(tmp_path),)).pairs()
    next(pairs)
    (tmp_path / "c.tsv").unlink()
    with pytest.raises(CorpusError, match=r"c\.tsv: No such file"):
        list(pairs)


def test_cleaning_leaves_out_and_reports_by_reason(read, tsv):
    path = tsv(
        b"Go.\tVe.\nno tab\n\tempty\nbad\t\xff\nGo.\tVe.\nmuch too long a source\tshort\na\tnot alike\nHi.\tHola.\n"
        b"\tempty\nshort\tmuch too long a target\n"
    )
    report = Report()
    options = {"on_bad_line": "skip", "max_length": 20, "max_ratio": 5, "drop_duplicates": True}
    assert read(path, report, **options) == PAIRS[:2]
    assert report.pairs == 2
    assert report.dropped == {
        "wrong columns": 1,
        "empty side": 2,  # which are faults, even if read before
        "invalid UTF-8": 1,
        "duplicate": 1,
        "too long": 2,
        "length ratio": 1,
    }
    assert str(report).startswith("8 of 10 pairs left out\n")
    assert f"    {path}, line 7: 1 to 9 characters" in str(report).splitlines()
    assert read(tsv("abcd\tx\nx\tabcd\n", "exact.tsv"), max_length=4, max_ratio=4) == [("abcd", "x"), ("x", "abcd")]
    with pytest.raises(CorpusError, match=r"line 2: .*no tab"):
        read(path, max_length=20)
    with pytest.raises(OptionError, match="on_bad_line='ignore': expected 'error', 'skip'"):
        read(path, on_bad_line="ignore")


def test_a_column_that_is_not_read_is_said_unless_the_columns_were_given(read, tsv):
    report, path = Report(), tsv("be\twas\tV;PST\t\nsee\tsaw\tV;PST\tx\ngo\twent\tV;PST\t\tx\n")
    read(path, report, columns=(1, 3, 2))
    said = f"{path}, line 2: column 4 is not read; choose columns with --columns, the target last"
    assert report.notices(columns_given=False) == [said]
    assert report.notices(columns_given=True) == []
    report = Report()
    read(path, report, columns=("be", "was"))
    assert not report.unread


def lines(corpus, report=None, **options):
    """What a corpus gives for each of its lines, the sources of pairs."""
    found = Reader((find_shards(corpus),), **options).lines(Report() if report is None else report)
    return [pair and pair[0].decode() for pair in found]


def test_each_line_gives_a_pair_or_none(read, tsv, tmp_path):
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
    with pytest.raises(CorpusError, match="they must have the same number"):
        lines(f"{sides[0]}+{tsv('Ve.', 'short')}", **skip)
    with pytest.raises(CorpusError, match="line 1: the target is empty"):  # which is no empty line
        lines(f"{sides[0]}+{tsv(chr(10) * 4, 'untranslated')}")
    with tf.io.TFRecordWriter(str(tmp_path / "rows.tfrecord")) as file:
        for texts in (("Go.", "Ve."), ("", ""), ("Hi.", "Hola.")):
            features = {
                key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))
                for key, text in zip(("source", "target"), texts, strict=True)
            }
            file.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    assert lines(tmp_path / "rows.tfrecord", **skip) == ["Go.", None, "Hi."]
    assert len(lines(tmp_path, **skip)) == 6 + 3  # a folder: what is in its files, in the order of their names


def test_only_the_first_three_offenders_are_named(read, tsv):
    report = Report()
    read(tsv("no tab\n" * 50 + "a\tb\n"), report, on_bad_line="skip")
    assert report.dropped["wrong columns"] == 50 and len(report.first["wrong columns"]) == 3


def test_duplicates_are_found_within_a_window(read, tsv, monkeypatch):
    monkeypatch.setattr("pipelines.readers._DUPLICATE_WINDOW", 10)
    near = [f"{n}\tx" for n in range(9)] + ["0\tx"]
    far = [f"{n}\tx" for n in range(25)] + ["0\tx"]
    assert len(read(tsv("\n".join(near)), drop_duplicates=True)) == 9
    assert len(read(tsv("\n".join(far)), drop_duplicates=True)) == 26
    often = [f"{n}\tx" if n % 8 else "often\tx" for n in range(100)]
    assert [source for source, _ in read(tsv("\n".join(often)), drop_duplicates=True)].count("often") == 1


def test_another_translation_of_a_source_is_no_duplicate(read, tsv):
    pairs = [("Go.", "Ve."), ("Go.", "Vaya."), ("Move.", "Ve.")]
    path = tsv("".join(f"{source}\t{target}\n" for source, target in [*pairs, pairs[1]]))
    assert read(path, drop_duplicates=True) == pairs


@pytest.mark.parametrize(("files", "num_shards"), [(1, 3), (5, 3), (2, 3), (4, 1), (3, 3)])
@pytest.mark.parametrize("shuffle_files", [False, True])
def test_workers_share_a_corpus_without_loss_or_repetition(read, tsv, tmp_path, files, num_shards, shuffle_files):
    for file in range(files):
        tsv("".join(f"{file}.{n % 60}\tx\n" for n in range(100)), f"{file}.tsv")
    options = {"shuffle_files": shuffle_files, "drop_duplicates": True}
    shares = [read(tmp_path, num_shards=num_shards, index=index, **options) for index in range(num_shards)]
    together = list(itertools.chain(*shares))
    assert sorted(together) == sorted(read(tmp_path, drop_duplicates=True))
    assert len(together) == 60 * files and all(shares)
    with pytest.raises(OptionError, match="index=3: expected a whole number, at least 0 and below 3"):
        read(tmp_path, num_shards=3, index=3)


def test_shuffled_files_are_read_in_turns_in_an_order_of_the_seed(read, tsv, tmp_path):
    for file in range(40):
        tsv("".join(f"{file}\t{n}\n" for n in range(600)), f"{file:02}.tsv")
    first = read(tmp_path, seed=1, shuffle_files=True)
    assert first == read(tmp_path, seed=1, shuffle_files=True) != read(tmp_path, seed=2, shuffle_files=True)
    assert sorted(first) == sorted(read(tmp_path))
    assert len({source for source, _ in first[:4096]}) == 16


def test_weights_mix_corpora_evenly_until_each_has_been_read(read, tsv):
    large, small = tsv("large\tx\n" * 300, "large.tsv"), tsv("".join(f"small\t{n}\n" for n in range(40)), "small.tsv")
    report = Report()
    mixed = read([large, small], report, weights=(3, 1))
    assert sum(source == "small" for source, _ in mixed) == pytest.approx(len(mixed) / 4, abs=1)
    assert sum(source == "small" for source, _ in mixed[:40]) == 10
    assert [source for source, _ in mixed].count("large") == 300
    assert {target for source, target in mixed if source == "small"} == {str(n) for n in range(40)}
    assert report.pairs == 340, "each is counted once"
    for number in range(9):
        tsv(f"{number}\tx\n", f"many{number}.tsv")
    corpora, options = [str(large.parent / "many*"), small], {"weights": (1, 1), "shuffle_files": True}
    first, again, other = (read(corpora, seed=seed, **options) for seed in (1, 1, 2))
    assert first == again != other
    for weights, message in (
        ((1,), r"weights=\(1,\): expected one number for each corpus \(2\)"),
        ((1, 0), "weights=0: expected a number, above 0"),
    ):
        with pytest.raises(OptionError, match=message):
            read([large, small], weights=weights)
    with pytest.raises(CorpusError, match="corpus 2 has no pairs to draw from"):
        read([large, tsv("", "none.tsv")], weights=(1, 1))


@settings(deadline=None, max_examples=100)
@given(st.binary())
def test_no_bytes_crash_it_and_none_are_lost_uncounted(read, tmp_path_factory, data):
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


def test_memory_does_not_grow_with_the_corpus():
    script = r"""if True:
        import re, sys
        from pathlib import Path
        from pipelines import readers
        from pipelines.formats import Shard

        readers._DUPLICATE_WINDOW = 1 << 12

        def rows(*_):
            for n in range(int(sys.argv[1])):
                yield n, b"source %d" % n, b"target %d" % n, ""

        reader = readers.Reader(([Shard("made", rows)],), drop_duplicates=True, max_length=100, max_ratio=9)
        assert sum(1 for _ in reader.pairs()) == int(sys.argv[1])
        # Not getrusage, whose maximum a process inherits from the one that started it.
        print(*re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()))
    """
    small, large = (
        int(subprocess.run([sys.executable, "-c", script, str(n)], capture_output=True, check=True).stdout)
        for n in (40_000, 400_000)
    )
    assert large < 1.1 * small
