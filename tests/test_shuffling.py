import json

import pytest
import tensorflow as tf

from pipelines import CorpusError, OptionError, Report, damaged_shards, open_corpora, shuffle_corpus, shuffling

LINES = [f"source {n}\ttarget {n % 7}" for n in range(2000)]


def strings(folder, **options):
    return [f"{source.decode()}\t{target.decode()}" for source, target in open_corpora(folder, **options).pairs()]


@pytest.mark.parametrize("format", ["gzip", "tfrecord"])
def test_shards_hold_every_pair_once_in_random_order(tsv, tmp_path, format):
    report = Report()
    folder = tmp_path / "shuffled"
    manifest = shuffle_corpus(tsv("\n".join(LINES)), folder, shards=3, format=format, report=report)
    read = strings(folder)
    assert sorted(read) == sorted(LINES) and read != LINES
    # The first shard holds as many of the first half as any third of a shuffled corpus would.
    assert 270 < len(set(read[:666]) & set(LINES[:1000])) < 396
    assert manifest == json.loads((folder / "manifest.json").read_text())
    assert manifest["pairs"] == report.pairs == 2000
    assert [shard["pairs"] for shard in manifest["shards"].values()] == [666, 667, 667]
    assert manifest["lengths"]["target"] == {"8": 2000}
    assert sorted(path.name for path in folder.iterdir()) == sorted([*manifest["shards"], "manifest.json"])


def test_a_bucket_is_shuffled_too(tsv, tmp_path, monkeypatch):
    monkeypatch.setattr(shuffling, "_BUCKETS", 1)
    shuffle_corpus(tsv("\n".join(LINES[:50])), tmp_path / "s", shards=1)
    assert sorted(read := strings(tmp_path / "s")) == sorted(LINES[:50]) and read != LINES[:50]


def test_a_bucket_gives_back_every_pair_in_its_order_however_often_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffling, "_BUFFER", 1)
    bucket, rows = shuffling._Bucket(tmp_path / "bucket"), [[b"a", b"b"], [b"c", b"d"], [b"e", b"f"]]
    for row in rows:
        bucket.add(row)
    assert bucket.buffer == [] and bucket.empty() == rows


def test_lengths_are_counted_in_characters_and_listed_in_rising_order(tsv, tmp_path):
    lengths = shuffle_corpus(tsv("año\tñandú\né\tñandú\n"), tmp_path / "s", shards=1)["lengths"]
    assert list(lengths["source"].items()) == [("1", 1), ("3", 1)] and lengths["target"] == {"5": 2}


def test_the_same_seed_gives_the_same_files(tsv, tmp_path):
    path = tsv("\n".join(LINES))
    made = [shuffle_corpus(path, tmp_path / str(n), shards=2, seed=seed)["shards"] for n, seed in enumerate([5, 5, 6])]
    assert made[0] == made[1] != made[2]


def test_it_cleans_while_it_reads(tsv, tmp_path):
    shuffle_corpus(tsv("\n".join([*LINES, "no tab", *LINES])), tmp_path / "s", on_bad_line="skip", drop_duplicates=True)
    assert sorted(strings(tmp_path / "s")) == sorted(LINES)


def test_a_missing_or_changed_shard_is_noticed(tsv, tmp_path):
    folder = tmp_path / "s"
    shuffle_corpus(tsv("\n".join(LINES)), folder, shards=2)
    assert damaged_shards(folder) == [] == damaged_shards(tmp_path)
    shard = folder / "shard-00001-of-00002.tsv.gz"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert damaged_shards(folder) == [shard.name]
    shard.unlink()
    with pytest.raises(CorpusError, match=r"shard-00001-of-00002\.tsv\.gz: missing, though .*manifest\.json lists it"):
        open_corpora(folder)


def test_nothing_is_overwritten_and_nothing_half_made_is_left(tsv, tmp_path):
    path = tsv("a\tb\nno tab\n")
    with pytest.raises(CorpusError, match="already exists"):
        shuffle_corpus(path, tmp_path)
    with pytest.raises(CorpusError, match="line 2"):
        shuffle_corpus(path, tmp_path / "s")
    with pytest.raises(CorpusError, match=r"^\S+empty\.tsv \S+empty\.tsv: no pairs to shuffle"):
        shuffle_corpus([tsv("", "empty.tsv")] * 2, tmp_path / "s")
    with pytest.raises(OptionError, match="shards=0: expected a whole number, at least 1"):
        shuffle_corpus(path, tmp_path / "s", shards=0)
    with pytest.raises(OptionError, match="seed=-1: expected a whole number, at least 0"):
        shuffle_corpus(path, tmp_path / "s", seed=-1)
    with pytest.raises(OptionError, match="expected 'gzip', 'tfrecord'"):
        shuffle_corpus(path, tmp_path / "s", format="zip")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty.tsv", "pairs.tsv"]


def test_two_that_make_the_same_folder_do_not_disturb_each_other(tsv, tmp_path):
    path, folder, inside = tsv("\n".join(LINES * 3)), tmp_path / "s", []

    def start_another(count):
        if not inside:
            inside.append(shuffle_corpus(path, tmp_path / "s", shards=2, seed=1))

    with pytest.raises(OSError, match="not empty"):
        shuffle_corpus(path, folder, shards=2, progress=start_another)
    assert sorted(strings(folder)) == sorted(LINES * 3) and damaged_shards(folder) == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pairs.tsv", "s"]


def test_texts_that_tab_separation_cannot_hold_are_refused_and_kept_as_tfrecord(tsv, tmp_path):
    path = tsv('{"source": "one\\ttwo", "target": "\\ufeffx"}', "tab.jsonl")
    later = tsv("not read", "later.jsonl")  # the text is refused when it is read
    with pytest.raises(CorpusError, match=r"tab\.jsonl, line 1: the source has a tab .* as tfrecord .*on_bad_line="):
        shuffle_corpus([path, later], tmp_path / "s")
    shuffle_corpus(path, tmp_path / "s", shards=1, format="tfrecord")
    assert strings(tmp_path / "s") == ["one\ttwo\t\ufeffx"]
    pairs = [("a", "b"), ("a\nb", "c"), ("a", "b\tc"), ("a", "b\r"), ("d", "e")]
    report = Report()
    shuffle_corpus(pairs, tmp_path / "lines", shards=1, on_bad_line="skip", report=report)
    assert sorted(strings(tmp_path / "lines")) == ["a\tb", "d\te"] and report.dropped == {"tab or line break": 3}
    shuffle_corpus([*pairs[:1], ("a\n" * 9, "b")], tmp_path / "short", shards=1, max_length=9)  # which leaves it out
    assert strings(tmp_path / "short") == ["a\tb"]
    columns = [("a\tV", "b"), ("a\tV\n", "b")]
    with pytest.raises(CorpusError, match="list, pair 2: the source has a tab or a line break"):
        shuffle_corpus(columns, tmp_path / "columns", shards=1, source_columns=("lemma", "features"))


def test_a_first_text_that_begins_with_a_byte_order_mark_keeps_it(tsv, tmp_path):
    shuffle_corpus(tsv('{"source": "\\ufeffa", "target": "b"}\n' * 2, "bom.jsonl"), tmp_path / "s", shards=1)
    assert strings(tmp_path / "s") == ["\ufeffa\tb"] * 2


def test_a_full_disk_is_an_error_of_the_operating_system_whatever_writes(tsv, tmp_path, monkeypatch):
    def full(path):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.io, "TFRecordWriter", full)
    with pytest.raises(OSError, match=r"^No space left on device$"):
        shuffle_corpus(tsv("a\tb\n"), tmp_path / "s", format="tfrecord")


@pytest.mark.parametrize("format", ["gzip", "tfrecord"])
def test_columns_of_a_source_stay_columns(tsv, tmp_path, format):
    path = tsv("".join(f"l{n}\tform{n}\tV;{n % 3}\n" for n in range(30)))
    shuffle_corpus(path, tmp_path / "out", 2, format, columns=(1, 3, 2))
    found, right = (
        sorted(strings(corpus, columns=columns))
        for corpus, columns in ((tmp_path / "out", (1, 2, 3)), (path, (1, 3, 2)))
    )
    assert found == right and len(found) == 30


def test_a_manifest_without_checksums_is_refused_by_name(tsv, tmp_path):
    shuffle_corpus(tsv("a\tb\nc\td\n"), tmp_path / "shards", shards=1)
    path = tmp_path / "shards" / "manifest.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"shards": dict.fromkeys(found["shards"], 5)}))
    with pytest.raises(CorpusError, match=r"manifest\.json: damaged: shard-.* has no sha256"):
        damaged_shards(tmp_path / "shards")


def test_tabs_between_columns_are_no_characters(tmp_path):
    pairs = [("ab\tV;PST", "c"), ("a\tV", "c")]
    lengths = shuffle_corpus(pairs, tmp_path / "s", shards=1, source_columns=("lemma", "features"))["lengths"]
    assert lengths["source"] == {"2": 1, "7": 1}
