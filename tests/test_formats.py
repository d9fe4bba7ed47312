import gzip
import itertools
import json
import unicodedata

import pytest
import tensorflow as tf
from conftest import PAIRS, TSV
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import CorpusError, OptionError, Report, open_corpora
from pipelines.formats import find_shards


def test_columns_are_chosen_by_number_or_by_name(read, tsv):
    path = tsv("id\tspanish\tenglish\tby\n1\tVe.\tGo.\tme\n")
    assert read(path, columns=("english", "spanish")) == [("Go.", "Ve.")]
    assert read(path, columns=(3, 2)) == [("english", "spanish"), ("Go.", "Ve.")]
    assert read(path, columns=("english", "spanish"), reverse=True) == [("Ve.", "Go.")]
    with pytest.raises(
        CorpusError, match=r"line 1: no column is called 'french'; the columns are 'id', 'spanish', 'english', 'by'"
    ):
        read(path, columns=("english", "french"))
    with pytest.raises(CorpusError, match=r"line 1: several columns are called 'text'; the columns are 'id', 'text'"):
        read(tsv("id\ttext\ttext\n", "twice.tsv"), columns=("id", "text"))
    with pytest.raises(CorpusError, match="line 1: no column is called 'id'; the columns are ''"):
        read(tsv("", "empty.tsv"), columns=("id", "text"))
    with pytest.raises(CorpusError, match=r"line 1: expected columns 1, 5, found 4 columns"):
        read(path, columns=(1, 5))
    for columns in [(0, 1), (1,), (1, "x"), (True, 2), ("x", "")]:
        with pytest.raises(OptionError, match="expected two names or more, or numbers"):
            read(path, columns=columns)


INFLECTED = [("go\tV;PST", "went"), ("ox\tN;PL", "oxen"), ("an\t", "an")]


def test_json_files_are_read_by_name_but_not_from_a_folder(read, tsv, tmp_path):
    path = tsv('{"source": "a", "target": "b"}\n', "pairs.json")
    assert read(path) == [("a", "b")]
    with pytest.raises(CorpusError, match="no file in this folder ends in"):
        read(tmp_path)


def test_all_columns_but_the_last_are_the_source(read, tsv, tmp_path):
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
    assert read(together) == read(together, columns=names) == INFLECTED
    reordered = "+".join(str(tmp_path / f"{name}.txt") for name in ("lemma", "form", "features"))
    assert read([reordered, path], columns=(1, 3, 2)) == 2 * INFLECTED
    assert read(together, columns=(3, 1)) == [(form, lemma) for lemma, _, form in rows]
    with tf.io.TFRecordWriter(str(tmp_path / "rows.tfrecord")) as file:
        for row in rows:
            file.write(example(**dict(zip(names, row, strict=True))))
    assert read(tmp_path / "rows.tfrecord", columns=names) == INFLECTED
    joined = tsv("".join(f"{source}\t{target}\n" for source, target in INFLECTED), "joined.tsv")
    assert read(joined, source_columns=("lemma", "features")) == INFLECTED
    assert read(tsv("a\tb\tc\td\n", "four.tsv"), source_columns=("x", "y", "z")) == [("a\tb\tc", "d")]
    pairs = tf.data.Dataset.from_tensor_slices(tuple(map(list, zip(*INFLECTED, strict=True))))
    assert read(pairs, source_columns=("lemma", "features")) == INFLECTED


def test_a_source_of_other_columns_is_refused_by_its_line(read, tsv, tmp_path):
    names = ("lemma", "features")
    path = tsv("go\tV\twent\ngo\twent\n")
    with pytest.raises(CorpusError, match="line 2: expected lemma TAB features TAB target, found 2 columns"):
        read(path, source_columns=names)
    with pytest.raises(OptionError, match=r"columns=\(1, 2\): expected 3, for lemma TAB features TAB target"):
        read(path, source_columns=names, columns=(1, 2))
    with pytest.raises(OptionError, match=r"columns=\(1, 2, 3\): expected 2, for source TAB target"):
        read(path, source_columns=("source",), columns=(1, 2, 3))
    with pytest.raises(CorpusError, match=r"line 2: expected columns .*, found 2 columns"):
        read(path, columns=(1, 2, 3))
    with pytest.raises(OptionError, match="reverse=True: a source of 2 columns cannot be the target"):
        read(path, columns=(1, 2, 3), reverse=True)
    rows = tsv('{"lemma": "go\\tx", "features": "V", "form": "went"}', "rows.jsonl")
    with pytest.raises(CorpusError, match=r"pairs\.csv, line 1: .*found no tab \(CSV is not supported"):
        list(open_corpora(str(tsv("a,b\n", "pairs.csv"))).pairs())
    with pytest.raises(CorpusError, match="line 1: expected 2 columns: lemma TAB features, found 3"):
        read(rows, columns=(*names, "form"))
    a, b, c = (tsv(text, name) for name, text in (("a", "1\n2\n"), ("b", "1\n2\n3\n"), ("c", "1\n2\n")))
    with pytest.raises(CorpusError, match=r"a has 2 lines and .*b 3; they must have the same number"):
        read(f"{a}+{b}+{c}")
    with pytest.raises(CorpusError, match=r"2 parallel files; columns=\(1, 3\) needs more"):
        read(f"{a}+{c}", columns=(1, 3))
    for other, message in ((f"{a}+{c}", "2 parallel files, expected 3"), (path, "2 columns, expected 3")):
        with pytest.raises(CorpusError, match=message):
            read([f"{a}+{b}+{c}", other])


def test_json_lines_are_read_by_their_keys(read, tsv):
    lines = [json.dumps({"source": s, "target": t, "es": t}, ensure_ascii=False) for s, t in PAIRS]
    path = tsv("\n".join(lines), "pairs.jsonl")
    assert read(path) == read(tsv("\n\n".join(lines), "pairs.ndjson")) == PAIRS  # an empty line is no fault
    assert read(path, columns=("source", "es")) == PAIRS
    assert read(tsv('{"source": "two\\tcolumns", "target": "two\\nlines"}', "tab.jsonl")) == [
        ("two\tcolumns", "two\nlines")
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"source": "a"', r"line 2: not JSON \(.*\)"),
        ('"text"', "line 2: no text under the key 'source'"),
        ("[1, 2]", "line 2: not JSON Lines .an array; write one object on each line"),
        ('{"source": "a", "target": 3}', "line 2: no text under the key 'target'"),
        ('{"source": "a", "target": "\\ud800"}', "line 2: the target is not valid UTF-8"),
    ],
)
def test_bad_json_is_named_by_its_line(read, tsv, line, message):
    with pytest.raises(CorpusError, match=message):
        read(tsv('{"source": "a", "target": "b"}\n' + line, "bad.jsonl"))


def test_dotted_keys_reach_into_json_objects(read, tsv):
    rows = [{"translation": {"en": source, "es": target}, "id": 1} for source, target in PAIRS]
    path = tsv("\n".join(map(json.dumps, rows)), "pairs.jsonl")
    assert read(path, columns=("translation.en", "translation.es")) == PAIRS
    with pytest.raises(
        CorpusError, match=r"no text under the key 'source'; there is text under translation\.en, translation\.es"
    ):
        read(path)
    with pytest.raises(CorpusError, match=r"the key '1'; there is text under .*; --columns names the keys to read"):
        read(path, columns=(1, 3, 2))
    deep = {"a": {"b": {"c": "x"}, "b.d": "y"}, "a.b": {"c": "z"}, "a.e": "e"}
    path = tsv(json.dumps(deep), "deep.jsonl")
    assert read(path, columns=("a.b.d", "a.e")) == [("y", "e")]
    for key in ("a.b.x", "a.e.f", "a.", ".a"):
        with pytest.raises(CorpusError, match=f"line 1: no text under the key '{key}'"):
            read(path, columns=("a.e", key))


def test_an_array_of_json_is_refused_with_a_command_that_converts_it(read, tsv):
    with pytest.raises(CorpusError, match=r"line 1: not JSON Lines .an array; write one object on each line: jq"):
        read(tsv('[\n{"source": "a", "target": "b"}]\n', "array.json"))


def test_json_nested_too_deep_is_a_bad_line(read, tsv):
    for deep in ("[", '{"a":'):
        path = tsv(deep * 100_000 + '\n{"source": "a", "target": "b"}', "deep.jsonl")
        assert read(path, on_bad_line="skip") == [("a", "b")]
        with pytest.raises(CorpusError, match="line 1: not JSON"):
            read(path)
    (path.parent / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(CorpusError, match=r"manifest\.json: cannot be read"):
        read(path.parent)


def test_numbers_choose_parallel_files_and_lists_are_always_pairs(read, tsv):
    source, target = (tsv("".join(f"{pair[side]}\n" for pair in PAIRS), f"c.{side}") for side in (0, 1))
    for columns in ((1, 2), ("en", "es")):
        assert read(f"{source}+{target}", columns=columns) == PAIRS
        with pytest.raises(OptionError, match=r"columns=.*: a list of pairs has no columns"):
            read([PAIRS], columns=columns)
    for corpus in (f"{source}+{target}", [PAIRS]):
        assert read(corpus, reverse=True) == [pair[::-1] for pair in PAIRS]
    assert read(f"{target}+{source}", columns=(2, 1)) == PAIRS
    record = tsv('{"source": "a", "target": "b"}\n', "one.jsonl")
    with pytest.raises(CorpusError, match=r"one.jsonl: parallel files must be text"):
        read(f"{record}+{record}")


def test_parallel_files_are_read_side_by_side(read, tsv):
    source = tsv("Go.\r\n\nHi.\n", "c.en")
    target = tsv("Ve.\n\nHola.", "c.es")
    assert read(f"{source}+{target}") == PAIRS[:2]
    assert read(f"{source.parent}/c*.en+{source.parent}/c*.es") == PAIRS[:2]
    longer = tsv("1\n\n3\n4\n5\n", "d.es")
    with pytest.raises(CorpusError, match=r"c\.en has 3 lines and .*d\.es 5; they must have the same number"):
        read(f"{source}+{longer}")
    with pytest.raises(CorpusError, match=r"d\.es has 5 lines and .*c\.en 3"):
        read(f"{longer}+{source}")
    other = tsv("1\n2\n3\n", "e.es")
    with pytest.raises(CorpusError, match="line 2: the source is empty"):
        read(f"{source}+{other}")
    other.unlink()
    with pytest.raises(CorpusError, match="1 and 2 files; expected the same number of each"):
        read(f"{source}+{source.parent}/*.es")


def example(**texts):
    features = {key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[t.encode()])) for key, t in texts.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def test_tfrecord_is_read_by_its_features(read, tmp_path):
    for name, options in (("a.tfrecord", None), ("b.tfrecord.gz", "GZIP")):
        with tf.io.TFRecordWriter(str(tmp_path / name), options) as file:
            for source, target in PAIRS:
                file.write(example(source=source, target=target, es=target))
        assert read(tmp_path / name) == read(tmp_path / name, columns=("source", "es")) == PAIRS
    expected = "expected one text under each of the keys 'source', 'nothing'"
    with pytest.raises(CorpusError, match=rf"a\.tfrecord, record 1: {expected} \(on_bad_line="):
        read(tmp_path / "a.tfrecord", columns=("source", "nothing"))


@pytest.mark.parametrize(("name", "options"), [("cut.tfrecord", None), ("cut.tfrecord.gz", "GZIP")])
def test_a_tfrecord_that_is_cut_anywhere_is_not_read_as_a_whole_one(read, tmp_path, name, options):
    path = tmp_path / name
    with tf.io.TFRecordWriter(str(path), options) as file:
        for source, target in PAIRS:
            file.write(example(source=source, target=target))
    data, sizes = path.read_bytes(), [len(example(source=source, target=target)) + 16 for source, target in PAIRS]
    assert read(path) == PAIRS
    for end in range(1, len(data), 3):
        path.write_bytes(data[:end])
        if not options and end in itertools.accumulate(sizes):
            continue  # a whole file of fewer records
        after = sum(size <= end for size in itertools.accumulate(sizes))
        wanted = f"after record {after}$" if after and not options else "damaged"
        with pytest.raises(CorpusError, match=rf"cut\.tfrecord[.gz]*: .*{wanted}"):
            read(path)
    path.write_bytes(b"Go.\tVe.\n" * 9)
    with pytest.raises(CorpusError, match="damaged"):
        read(path)


def test_an_error_of_tensorflow_is_reported_in_its_words_without_its_internals(read, tmp_path, monkeypatch):
    def denied(*_, **__):
        raise tf.errors.PermissionDeniedError(None, None, "{{function_node x/device:CPU:0}} a; denied [Op:Next]")

    (tmp_path / "a.tfrecord").touch()
    monkeypatch.setattr(tf.data.TFRecordDataset, "batch", denied)
    with pytest.raises(CorpusError, match=r"a\.tfrecord: a; denied$"):
        read(tmp_path / "a.tfrecord")


def test_records_that_lack_a_text_are_named_and_can_be_skipped(read, tmp_path):
    path, report = tmp_path / "a.tfrecord", Report()
    with tf.io.TFRecordWriter(str(path)) as file:
        whole = [example(source=source, target=target) for source, target in ("ab", "cd")]
        two = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"a", b"b"]))
        features = tf.train.Features(feature={"source": two, "target": two})
        twice = tf.train.Example(features=features).SerializeToString()
        for record in (whole[0], example(source="a"), b"\0", twice, whole[1]):
            file.write(record)
    with pytest.raises(CorpusError, match=r"a\.tfrecord, record 2: expected one text .* keys 'source', 'target'"):
        read(path)
    assert read(path, report, on_bad_line="skip") == [("a", "b"), ("c", "d")]
    assert [message.partition(":")[0] for message in report.first["wrong columns"]] == [
        f"{path}, record {number}" for number in (2, 3, 4)
    ]


@pytest.mark.parametrize("ending", [".tsv.zst", ".tar.gz", ".tar", ".tgz", ".7z", ".rar", ".TAR.XZ"])
def test_archives_that_are_not_read_are_refused_with_the_command_that_unpacks_them(tsv, ending):
    path = tsv(TSV, f"pairs{ending}")
    for corpus in (path, f"{path}+{path}", *([path.parent] if ending == ".tsv.zst" else [])):
        with pytest.raises(
            CorpusError, match=r"pairs\..*: cannot be read in this format; unpack it first: (zstd|tar|7z|unrar) "
        ):
            find_shards(corpus)


def test_pairs_in_memory_are_read_and_other_types_are_refused(read, tsv):
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
        with pytest.raises(CorpusError, match=rf"{type(corpus).__name__} cannot be read; expected a path.*list\(zip\("):
            open_corpora(corpus)
    with pytest.raises(CorpusError, match="corpus: an empty list"):
        open_corpora([])
    for data in (["a"], (["a"], ["b"], ["c"]), ([1], [2]), ([["a"]], [["b"]]), {"source": ["a"], "target": ["b"]}):
        with pytest.raises(OptionError, match=r"a dataset of .*; expected \(source, target\) scalar strings"):
            find_shards(tf.data.Dataset.from_tensor_slices(data))


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r"), min_size=1).filter(
    lambda text: any(unicodedata.category(c)[0] not in "ZC" for c in text) and not text.startswith("\ufeff")
)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(TEXT, TEXT)), st.sampled_from(["tsv", "tsv.gz", "jsonl", "parallel"]))
def test_any_text_is_read_as_it_was_written(read, tmp_path_factory, pairs, form):
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
