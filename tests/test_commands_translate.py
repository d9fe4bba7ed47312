import json
import os
import re
import subprocess
import threading

import numpy as np
import pytest
import tensorflow as tf
from command_line import SEQ2SEQ, command_with_streams, load_runs
from command_line import in_process as seq2seq
from conftest import save_run

from pipelines import CharTokenizer, ColumnsTokenizer, SeparatorTokenizer
from pipelines.tokens import REPLACEMENT
from seq2seq import BeamSearch, Sampling, Seq2Seq, load_run

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(toy_run):
    return toy_run[0]


def test_translate_writes_one_line_for_each_text(folder):
    spoken = subprocess.run([SEQ2SEQ, "translate", folder, "ab", "", "abcñ"], capture_output=True)
    assert (spoken.returncode, spoken.stderr.decode()) == (0, "TEXT 3: 'ñ' is not in the vocabulary\n")
    assert spoken.stdout.count(b"\n") == 3
    piped = seq2seq("translate", folder, stdin="\ufeffab\r\n\nabcñ".encode())  # a byte order mark is no text
    assert piped.stdout == spoken.stdout
    odd, took = piped.stderr.decode().splitlines()
    assert odd == "standard input, line 3: 'ñ' is not in the vocabulary"
    assert re.fullmatch(r"3 translated in .* s, .* per second; loading took .* s", took)
    assert seq2seq("translate", folder, stdin=b"").stdout == b""


@pytest.mark.parametrize("command", ["translate", "score"])
def test_lines_through_a_pipe_are_answered_when_no_more_are_waiting(folder, command, tmp_path):
    (lines, to_command), (from_command, answers) = os.pipe(), os.pipe()
    found = []

    def talk():
        with open(to_command, "wb", buffering=0) as asking, open(from_command, "rb") as answered:
            asking.write(b"\xef\xbb\xbfab\tAB\n")  # a byte order mark is no text
            found.append(answered.readline())
            asking.write(b"ab\tAB\nab")
            found.append(answered.readline())  # the second line has no end yet
            rest = threading.Thread(target=lambda: found.append(answered.read()))
            rest.start()
            asking.write(b"\tAB\n" + b"ab\tAB\n" * 5000)
            asking.close()
            rest.join(60)

    talking = threading.Thread(target=talk)
    talking.start()
    code = command_with_streams([command, str(folder)], lines, answers, tmp_path / "stderr")
    talking.join(60)
    first, second, rest = found
    assert second == first and rest == first * 5001 and code == 0
    assert command == "score" or "5,003 translated" in (tmp_path / "stderr").read_text()


def test_what_is_no_run_folder_is_named(folder, tmp_path):
    (tmp_path / "m.keras").touch()
    for run, message in (
        (folder / "model.keras", f"{folder / 'model.keras'} is a file, but a run is a folder; name {folder}\n"),
        (__file__, f"{__file__} is a file, but a run is a folder; name the run first, then a corpus\n"),
        (
            tmp_path / "m.keras",
            "m.keras is a file, but a run is a folder; keras.models.load_model loads a model without",
        ),
        (tmp_path, "not a run folder"),
        ("no run", "`seq2seq train --out 'no run'` makes one"),
    ):
        done = seq2seq("translate", run, "ab")
        assert (done.returncode, done.stdout) == (2, b"") and done.stderr.count(b"\n") == 1
        assert message in done.stderr.decode()


def test_strategies_and_what_is_known_of_each_hypothesis(folder):
    lines = seq2seq("translate", folder, "ab", "cd", "--beam-width", 4, "--n-best", 3, "--scores").stdout.decode()
    rows = [line.split("\t") for line in lines.splitlines()]
    assert [row[0] for row in rows] == ["1", "1", "1", "2", "2", "2"]
    assert all(float(row[1]) < 0 and row[3] in ("end", "limit", "repetition") and len(row) == 5 for row in rows)
    ranks = [[float(row[2]) for row in rows if row[0] == number and row[3] == "end"] for number in "12"]
    assert all(some == sorted(some, reverse=True) for some in ranks)
    longer = [row for row in rows if len(row[4]) > 1]
    assert longer and all(float(row[2]) > float(row[1]) for row in longer)
    assert len({tuple(row[0::4]) for row in rows}) == 6  # all different
    scored = seq2seq("translate", folder, "ab", "--scores").stdout.decode().rstrip("\n").split("\t")
    again = seq2seq("score", folder, stdin=f"ab\t{scored[3]}\n".encode()).stdout
    assert scored[0] == scored[1]  # greedy search ranks nothing
    assert scored[2] == "end" and float(again) == pytest.approx(float(scored[0]), abs=1e-3)
    assert seq2seq("translate", folder, "ab", "--top-k", 1).stdout.decode() == f"{scored[3]}\n"


def test_several_samples_of_each_text(folder):
    done = seq2seq("translate", folder, "ab", "cd", "--sample", "--n-best", 3, "--seed", 4, "--scores")
    rows = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert [row[0] for row in rows] == ["1", "1", "1", "2", "2", "2"] and all(float(row[1]) < 0 for row in rows)
    again = seq2seq("score", folder, stdin="".join(f"ab\t{row[4]}\n" for row in rows[:3]).encode()).stdout.split()
    ended = [
        (float(row[1]), float(score)) for row, score in zip(rows, again, strict=False) if row[3] == "end" and row[4]
    ]
    assert ended and all(one == pytest.approx(other, abs=1e-3) for one, other in ended)
    alone, other = (seq2seq("translate", folder, "ab", "cd", "--sample", "--seed", seed).stdout for seed in (4, 5))
    assert alone.decode().splitlines() == [rows[0][4], rows[3][4]] and alone != other


def test_samples_and_numbers_of_texts_go_on_from_block_to_block(untrained):
    done = seq2seq("translate", untrained, "--sample", "--n-best", 2, "--max-length", 4, stdin=b"a\n" * 2058)
    numbers, texts = zip(*(line.split("\t") for line in done.stdout.decode().splitlines()), strict=True)
    assert list(map(int, numbers)) == [number for number in range(1, 2059) for _ in range(2)]
    assert texts[:20] != texts[4096:]  # of ten lines, at the beginnings of two blocks
    lines = b"a\tA\n" * 2049 + b"a\tx\n"
    done = seq2seq("translate", untrained, "--prefix", "--max-length", 2, stdin=lines)
    assert done.returncode == 2 and done.stdout.count(b"\n") == 2049
    assert b"standard input, line 2050: the prefix 'x' has tokens" in done.stderr


def objects(done):
    """The lines of JSON that a command has written, strictly read: there is no NaN in JSON."""
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().split("\n")
    assert lines.pop() == ""
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        ([], "greedy"),
        (["--beam-width", 4, "--n-best", 3], BeamSearch(4, n_best=3)),
        (["--temperature", 2], Sampling(2)),
    ],
    ids=str,
)
def test_json_says_of_each_translation_what_python_does(folder, options, strategy):
    texts = ["ab", "", "ec"]
    model = load_runs([folder])
    found = model.translate(texts, strategy, details=True, max_length=5)
    known = objects(seq2seq("translate", folder, *texts, *options, "--max-length", 5, "--attention"))
    for number, of_text in enumerate(known):
        assert (of_text["source"], of_text["source_tokens"]) == (texts[number], list(texts[number]))
        assert len(of_text["translations"]) == found.texts.shape[1]
        for rank, one in enumerate(of_text["translations"]):
            assert one["text"].encode() == found.texts[number, rank]
            assert one["stopped"].encode() == found.stopped[number, rank]
            assert "".join(one["tokens"]).removesuffix("[END]") == one["text"]
            assert one["log_likelihood"] == pytest.approx(float(found.scores[number, rank]), abs=1e-4)
            assert one["ranked_by"] == pytest.approx(float(found.ranked_by[number, rank]), abs=1e-4)
            assert sum(one["log_probabilities"]) == pytest.approx(one["log_likelihood"], abs=1e-4)
            (alignment,) = model.attention([texts[number]], found.ids[number : number + 1, rank])
            np.testing.assert_allclose(one["attention"], alignment.weights, atol=1e-5)
    plain = objects(seq2seq("translate", folder, *options, "--max-length", 5, "--json", stdin=b"ab\n\nec\n"))
    for of_text in known:
        del of_text["source_tokens"]
        for one in of_text["translations"]:
            del one["attention"]
    assert plain == known


def test_json_of_pairs_has_the_score_of_each_token_and_null_for_a_line_without_a_pair(folder):
    first, none, other = objects(seq2seq("score", folder, "--json", stdin="ab\tAñ\nno tab\ncd\tC\n".encode()))
    each = load_runs([folder]).score(["ab", "cd"], ["Añ", "C"], per_token=True)
    assert none is None and (first["source"], first["target"], other["target"]) == ("ab", "Añ", "C")
    assert first["tokens"] == ["A", "[UNK]", "[END]"] and other["tokens"] == ["C", "[END]"]
    for known, nats in zip((first, other), each, strict=True):
        np.testing.assert_allclose(known["log_probabilities"], nats, atol=1e-4)
        assert known["log_likelihood"] == pytest.approx(float(tf.reduce_sum(nats)), abs=1e-4)
        assert known["loss"] == pytest.approx(-float(tf.reduce_mean(nats)), abs=1e-4)


def test_json_of_pairs_counts_only_unknown_tokens_of_the_source_as_copied(tmp_path):
    tokenizers = CharTokenizer("ab"), CharTokenizer(["A", "B", REPLACEMENT])
    save_run(Seq2Seq(*tokenizers, units=4, attention="dot", copy=True), tmp_path)
    copied, other = objects(seq2seq("score", tmp_path, "--json", stdin="aж\tAж\naж\tAé\n".encode()))
    assert copied["tokens"] == ["A", REPLACEMENT, "[END]"] and other["tokens"] == ["A", "[UNK]", "[END]"]
    numbers = seq2seq("score", tmp_path, stdin="aж\tAж\naж\tAé\n".encode()).stdout.split()
    assert [float(number) for number in numbers] == pytest.approx(
        [copied["log_likelihood"], other["log_likelihood"]], abs=1e-3
    )


def test_json_has_null_for_what_is_no_number_and_no_hypotheses_that_a_beam_has_not_found(untrained, tmp_path):
    best = ["--beam-width", 3, "--n-best", 3, "--max-length", 1, "--json"]
    (known,) = objects(seq2seq("translate", untrained, "a", *best))
    assert sorted(one["tokens"] for one in known["translations"]) == [["A"], ["B"], ["[END]"]]
    (known,) = objects(seq2seq("translate", untrained, "a", *best, "--min-length", 1))
    assert sorted(one["text"] for one in known["translations"]) == ["A", "B"]
    model = load_run(untrained)
    model.decoder.output_layer.kernel.assign(model.decoder.output_layer.kernel * np.nan)
    save_run(model, tmp_path)
    (known,) = objects(seq2seq("translate", tmp_path, "a", "--max-length", 2, "--json"))
    (one,) = known["translations"]
    assert one["log_likelihood"] is None and one["log_probabilities"] == [None] * len(one["tokens"])
    assert objects(seq2seq("score", tmp_path, "--json", stdin=b"a\tA\n"))[0]["loss"] is None


def test_translations_begin_with_the_prefixes_in_the_last_column(folder):
    stdin = b"ab\tAB\ncd\t\nab\tEEE\n"
    done = seq2seq("translate", folder, "--prefix", stdin=stdin)
    assert done.returncode == 0, done.stderr
    one, free, other = done.stdout.decode().splitlines()
    assert one.startswith("AB") and other.startswith("EEE")
    assert f"{free}\n" == seq2seq("translate", folder, "cd").stdout.decode()
    assert seq2seq("translate", folder, "--prefix", "ab\tAB", "cd\t", "ab\tEEE").stdout == done.stdout
    beam = ["--prefix", "--scores", "--beam-width", 3, "--n-best", 2]
    rows = [line.split("\t") for line in seq2seq("translate", folder, *beam, stdin=stdin).stdout.decode().splitlines()]
    assert [row[-1][:3] for row in rows[4:]] == ["EEE"] * 2 and rows[0][0] == "1" and rows[0][-1].startswith("AB")


def test_lines_before_a_bad_line_or_a_bad_prefix_are_answered(folder):
    (good,) = seq2seq("translate", folder, "--prefix", "ab\tAB").stdout.splitlines(keepends=True)
    for bad, message in (
        (b"cd\n", "line 2: expected 2 columns: source TAB prefix, found 1"),
        (b"cd\tAx\n", "line 2: the prefix 'Ax' has tokens that are not in the vocabulary: 'x'"),
    ):
        done = seq2seq("translate", folder, "--prefix", stdin=b"ab\tAB\n" + bad + b"ab\txyz\n")
        assert (done.returncode, done.stdout) == (2, good)
        assert done.stderr.decode() == f"seq2seq: standard input, {message}\n"
    done = seq2seq("translate", folder, "--prefix", "ab\t", "cd\tx")
    assert done.returncode == 2 and b"TEXT 2: the prefix 'x' has tokens" in done.stderr
    strict = seq2seq("score", folder, "--on-bad-line", "error", stdin=b"ab\tAB\n\nno tab\n")
    assert strict.returncode == 2 and strict.stdout.endswith(b"\nnan\n")
    assert b"standard input, line 3: expected source TAB target" in strict.stderr


def test_score_reads_a_corpus_or_stdin_and_writes_a_number_for_each_pair(folder):
    toy = folder.parent.parent / "toy.tsv"
    done = seq2seq("score", folder, toy)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 25 and all(float(number) < 0 for number in done.stdout.split())
    assert seq2seq("score", folder, stdin=toy.read_bytes()).stdout == done.stdout


def test_score_writes_a_line_for_each_line_and_says_which_hold_no_pair(folder, tsv):
    one, other = seq2seq("score", folder, stdin=b"ab\tAB\ncd\tCD\n").stdout.decode().split()
    done = seq2seq("score", folder, stdin=b"ab\tAB\r\n\r\nno tab\ncd\tCD\n\n\xff\tx\na\t \nab\tAB")
    lines = [one, "nan", "nan", other, "nan", "nan", "nan", one, ""]
    assert done.returncode == 0 and done.stdout.decode().split("\n") == lines
    assert done.stderr.decode().splitlines() == [
        "5 of 8 pairs left out",
        "  2 no pair",
        "    standard input, line 2: the line is empty",
        "    standard input, line 5: the line is empty",
        "  1 wrong columns",
        "    standard input, line 3: expected source TAB target (and at most one more column), found no tab",
        "  1 invalid UTF-8",
        "    standard input, line 6: the source is not valid UTF-8 (invalid start byte at byte 0)",
        "  1 empty side",
        "    standard input, line 7: the target is empty",
    ]
    named = tsv("id\ten\tes\n1\tab\tAB\n2\tcd\tCD\n", "named.tsv")
    assert seq2seq("score", folder, named, "--columns", "en,es").stdout.decode().split() == ["nan", one, other]
    nothing = seq2seq("score", folder, stdin=b"no tab\n" * 2)
    assert (nothing.returncode, nothing.stdout) == (2, b"nan\nnan\n")
    assert nothing.stderr.endswith(b"found no tab\nseq2seq: standard input: no pairs to score\n")
    odd = seq2seq("score", folder, tsv("ab\tAB\n", "one.tsv"), tsv("жж\tAB\n", "two.tsv"))
    assert odd.stderr.decode() == "line 2: at least half of the tokens are not in the vocabulary\n"  # of both files
    empty = seq2seq("score", folder, stdin=b"")
    assert (empty.returncode, empty.stdout, empty.stderr) == (0, b"", b"")


def test_a_translation_with_tabs_and_line_breaks_is_one_column_of_one_line(tsv, tmp_path):
    breaks = CharTokenizer("\t\n\v\f\r\x85\u2028")  # a model that writes nothing else
    save_run(Seq2Seq(CharTokenizer("abc"), breaks, units=4, attention="dot"), tmp_path)

    def translated(*arguments, stdin):
        done = seq2seq("translate", tmp_path, *arguments, "--min-length", 2, "--max-length", 4, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    for arguments, stdin in ((["a", "b\nc", "c"], None), ([], b"a\nb\rc\nc\n")):
        lines = translated(*arguments, stdin=stdin).splitlines()
        assert len(lines) == 3 and all(re.fullmatch(" {1,4}", line) for line in lines)
    best = translated("--beam-width", 2, "--n-best", 2, "--scores", stdin=b"a\n\nb")
    rows = [line.split("\t") for line in best.splitlines()]
    assert [row[0] for row in rows] == ["1", "1", "2", "2", "3", "3"]
    assert len(set(map(len, rows))) == 1 and all(re.fullmatch(" {1,4}", row[-1]) for row in rows)
    looked = translated("--attention", stdin=b"a\n\nb").removesuffix("\n").split("\n")
    assert [json.loads(line)["source_tokens"] for line in looked] == [["a"], [], ["b"]]
    assert set(json.loads(looked[0])["translations"][0]["tokens"]) <= {*"\t\n\v\f\r\x85\u2028", "[END]"}
    corpus = tsv("".join(json.dumps({"source": c, "target": "x\ny"}) + "\n" for c in "abc"), "pairs.jsonl")
    done = seq2seq("evaluate", tmp_path, corpus, "--write", tmp_path / "out", "--min-length", 2, "--max-length", 4)
    assert len(re.findall(r"    [abc]  ->  +\(x y\)\n", done.stdout.decode())) == 3, done.stderr
    for name, text in (("sources", "[abc]"), ("translations", " {1,4}"), ("references.0", "x y")):
        assert re.fullmatch(f"({text}\n){{3}}", (tmp_path / "out" / f"{name}.txt").read_text())


@pytest.fixture(scope="module")
def inflecting(tmp_path_factory):
    """A run folder with a model, not trained, of two source columns, which were read from columns 1 and 3."""
    folder = tmp_path_factory.mktemp("inflecting")
    source = ColumnsTokenizer([CharTokenizer("abc"), SeparatorTokenizer(";", ["V", "PST"])], ["lemma", "features"])
    save_run(Seq2Seq(source, CharTokenizer("abc"), units=4, attention="dot"), folder, options={"columns": [1, 3, 2]})
    return folder


def test_a_source_of_several_columns_is_tab_separated_text(inflecting, tsv, tmp_path):
    lines = b"ab\tV;PST\nc\t\n"
    found = seq2seq("translate", inflecting, "--max-length", 4, stdin=lines)
    assert found.returncode == 0 and found.stdout.count(b"\n") == 2, found.stderr
    refused = seq2seq("translate", inflecting, "--max-length", 4, stdin=lines + b"ab\n")
    message = b"seq2seq: standard input, line 3: expected 2 columns: lemma TAB features, found 1\n"
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, found.stdout, message)
    empty = seq2seq("translate", inflecting, "--max-length", 4, stdin=lines + b"\t\n\tV\n")
    assert empty.stdout == found.stdout + b"\n" and empty.stderr.endswith(b"line 4: the lemma is empty\n")
    scored = seq2seq("score", inflecting, stdin=b"ab\tV;PST\ta\nab\ta\nc\t\tb\n")
    assert [line == b"nan" for line in scored.stdout.split()] == [False, True, False]
    wanted = "standard input, line 2: expected lemma TAB features TAB target, found 2 columns"
    assert wanted in scored.stderr.decode()
    evaluated = seq2seq(
        "evaluate", inflecting, tsv("ab\tx\tV;PST\nc\ty\t\n"), "--write", tmp_path / "out", "--max-length", 4
    )
    assert evaluated.returncode == 0 and (tmp_path / "out" / "sources.txt").read_bytes() == lines
    assert (tmp_path / "out" / "translations.txt").read_bytes() == found.stdout
    assert (tmp_path / "out" / "references.0.txt").read_text() == "x\ny\n"


def test_evaluate_shows_the_scores_of_each_feature_and_what_is_often_wrong(inflecting, tsv):
    corpus = tsv("ab\tb y\tV;PST\nc\ty\t\nca\t y\tV\n")
    options = ["--max-length", 1, "--by", "3", "--confusions", 2]
    done = seq2seq("evaluate", inflecting, corpus, *options)
    found = json.loads(seq2seq("evaluate", inflecting, corpus, *options, "--json").stdout)
    assert [(part["value"], part["texts"]) for part in found["by_column"]] == [("V", 2), ("", 1), ("PST", 1)]
    tables = done.stdout.decode().split("\n\n")
    (shown,) = (table.splitlines() for table in tables if table.startswith("column 3 "))
    assert [line.split()[:2] for line in shown[1:]] == [["V", "2"], ["(none)", "1"], ["PST", "1"]]
    assert shown[1].split()[3] == f"{found['by_column'][0]['CER']:.1f}"
    at = tables.index("The characters that are most often wrong:")
    names = ("translation", "reference", "times", "texts")
    expected = [[str(pair[name]).replace(" ", "␣") or "(none)" for name in names] for pair in found["confusions"]]
    assert [line.split() for line in tables[at + 1].splitlines()[1:]] == expected and len(expected) == 2
    assert b"most often wrong" not in seq2seq("evaluate", inflecting, corpus, *options[:2], "--confusions", 0).stdout
    refused = seq2seq("evaluate", inflecting, corpus, "--by", "2")
    assert refused.returncode == 2 and b"by='2': expected '1', '3', 'lemma', 'features'" in refused.stderr
    named = tsv("features\tform\tlemma\nV;PST\tb\tab\n", "named.tsv")
    done = seq2seq("evaluate", inflecting, named, "--columns", "lemma,features,form", "--by", "features")
    assert b"\ncolumn features " in done.stdout and done.returncode == 0
    refused = seq2seq("evaluate", inflecting, named, "--columns", "lemma,features,form", "--by", "feature")
    assert b"'lemma', 'features'; did you mean 'features'?" in refused.stderr
    for by in ("2", "lemma"):
        done = seq2seq("evaluate", inflecting, named, "--columns", "lemma,features,form", "--by", by)
        assert f"\ncolumn {by} ".encode() in done.stdout
    done = seq2seq("evaluate", inflecting, "-", "--by", "2", stdin=b"ab\tV;PST\tb\n")
    assert b"\ncolumn 2 " in done.stdout and b"\nPST " in done.stdout


def test_a_feature_that_training_did_not_have_is_said_once(inflecting):
    lines = b"ab\tV;pst\nc\t\nab\tpst;FUT;V\n"
    done = seq2seq("translate", inflecting, "--max-length", 4, stdin=lines)
    said = done.stderr.decode().splitlines()[:-1]
    assert done.returncode == 0 and said == [
        "standard input, line 1: the feature 'pst' is not in the vocabulary",
        "standard input, line 3: the feature 'FUT' is not in the vocabulary",
    ]
    done = seq2seq("translate", inflecting, "--max-length", 4, "--prefix", "ab\tV;X\ta")
    assert done.stderr == b"TEXT 1: the feature 'X' is not in the vocabulary\n"


def test_evaluate_names_the_features_that_training_did_not_have(inflecting, tsv):
    corpus = tsv("ab\tx\tV;pst\ncd\ty\tFUT;pst\nc\tz\tV\n")
    done = seq2seq("evaluate", inflecting, corpus, "--max-length", 4)
    said = done.stderr.decode().splitlines()
    for count, feature in ((2, "pst"), (1, "FUT")):
        assert f"{inflecting}: {count} of 3 sources: the feature '{feature}' is not in the vocabulary" in said
    done = seq2seq("evaluate", inflecting, tsv("ab\tx\tV\n", "known.tsv"), "--max-length", 4)
    assert done.returncode == 0 and b"feature" not in done.stderr


def test_what_is_odd_about_a_text_is_said_once_and_a_blank_line_stays_blank(folder, tsv):
    lines = ["ab", "", "a\tb", " \u3000\u200b", "ab\u65e5\u672c\u8a9e", "\u65e5", "ab" * 600, "c\td", "ab\u0436"]
    done = seq2seq("translate", folder, "--max-length", 4, stdin="\n".join(lines).encode())
    assert done.stderr.decode().splitlines()[:-1] == [
        "standard input, line 3: tabs do not separate columns, because this model has only one source column",
        "standard input, line 5: at least half of the tokens are not in the vocabulary",
        "standard input, line 7: only the first 1,024 tokens are read",
        "standard input, line 9: '\u0436' is not in the vocabulary",
    ]
    found = done.stdout.decode().split("\n")
    assert len(found) == 10 and found[0] and found[4] and not (found[1] or found[3])
    corpus = tsv("".join(f"{line}\tx\n" for line in (lines[0], lines[5], lines[6])))
    scored = seq2seq("score", folder, stdin=b"ab\tx\n\n\xe6\x97\xa5\tx\n").stderr.decode()
    assert "standard input, line 3: at least half of the tokens are not in the vocabulary\n" in scored
    said = seq2seq("evaluate", folder, corpus, "--max-length", 4).stderr.decode().splitlines()
    assert f"{folder}: 1 of 3 sources: at least half of the tokens are not in the vocabulary" in said
    assert f"{folder}: 1 of 3 sources: only the first 1,024 tokens are read" in said
    letters = [f"abab{chr(0x430 + n)}" for n in range(30)]
    many = "\n".join([*letters, "ab" * 600]).encode()
    said = seq2seq("translate", folder, "--max-length", 4, stdin=many).stderr.decode().splitlines()
    more = "more tokens are not in the vocabulary; they are not named"
    assert len(said) == 23 and said[20] == f"standard input, line 21: {more}"
    assert said[21] == "standard input, line 31: only the first 1,024 tokens are read"
    corpus = tsv("".join(f"{text}\tx\n" for text in (*letters, "ab" * 600)), "letters.tsv")
    said = seq2seq("evaluate", folder, corpus, "--max-length", 4).stderr.decode().splitlines()
    assert f"{folder}: {more}" in said and sum("is not in the vocabulary" in line for line in said) == 20
    assert f"{folder}: 1 of 31 sources: only the first 1,024 tokens are read" in said


def test_a_file_that_is_taken_for_a_text_is_named(folder, tsv):
    path = tsv("ab\n", "in.txt")
    done = seq2seq("translate", folder, path, "--max-length", 4)
    said = f"{path} is a file, but is translated as a text; to translate its lines, put < before it"
    assert done.returncode == 0 and said in done.stderr.decode().splitlines()


def test_a_corpus_is_read_as_the_run_s_own_was_if_nothing_else_is_said(inflecting, tsv):
    corpus = tsv("ab\tc\tV;PST\nc\tb\t\n")
    (score, other), (asked, _), (piped, _) = (
        done.stdout.split()
        for done in (
            seq2seq("score", inflecting, corpus),
            seq2seq("score", inflecting, corpus, "--columns", "1,3,2"),
            seq2seq("score", inflecting, stdin=b"ab\tV;PST\tc\nc\t\tb\n"),
        )
    )
    assert score == asked == piped != b"nan" != other
    # With other columns the same file is read otherwise: here the features are the target.
    assert seq2seq("score", inflecting, corpus, "--columns", "1,2,3").stdout.split()[0] not in (score, b"nan")


def test_what_cannot_be_asked_of_translate_exits_2(folder):
    for options, message in (
        (["--beam-width", 4, "--sample"], "--beam-width is for beam search, --sample for sampling"),
        (
            ["--search", "beam", "--beam-width", 4],
            "--search and --beam-width cannot be combined; write --set NAME=VALUE",
        ),
        (["--search", "sampling", "--sample"], "--search and --sample cannot be combined"),
        (["--search", "greedy", "--n-best", 2], "--search and --n-best cannot be combined"),
        (
            ["--search", "beem"],
            "search='beem': expected 'greedy', 'beam', 'sampling' or module:Class; did you mean 'beam'?",
        ),
        (["--search", "beam", "--set", "wdith=3"], "set='wdith': expected 'width', "),
        (["--search", "beam", "--set", "width"], "set='width': expected NAME=VALUE"),
        (["--search", "beam", "--set", "width=x"], "width='x': expected a whole number"),
        (["--search", "nowhere:Class"], "no module 'nowhere'"),
        (["--set", "width=3"], "--set width=3: applies to the strategy that --search names, but --search is not given"),
        (["--prefix"], "TEXT 1: expected 2 columns: source TAB prefix, found 1"),
        (["--beam-width", 2, "--n-best", 3], "n_best=3"),
        (["--beam-width", 99], "width=99: wider than the vocabulary"),
        (["--top-p", 2], "top_p=2.0"),
        (["--min-length", 5, "--max-length", 2], "max_length=2: expected a whole number, at least 5"),
        (["--temperature", "inf"], "temperature=inf: expected a number, above 0"),
        (["--seed", 3], "--seed: applies to sampling; add --sample"),
        (["--sample", "--seed", 10**20], "seed=100000000000000000000: expected a whole number, at least 0 and below"),
        (["--import", "nowhere:Class"], "no module 'nowhere'"),
    ):
        done = seq2seq("translate", folder, "ab", *options)
        assert (done.returncode, done.stdout) == (2, b"") and message in done.stderr.decode(), done.stderr
        assert done.stderr.count(b"\n") == 1


def test_a_model_that_finds_no_translation_says_so_in_json(tmp_path):
    model = Seq2Seq(CharTokenizer("ab"), CharTokenizer("AB"), units=4, attention="dot")
    model.set_weights([weight * np.nan for weight in model.get_weights()])
    save_run(model, tmp_path)
    done = seq2seq("translate", tmp_path, "--json", "--attention", "--beam-width", 3, "ab")
    assert done.returncode == 0 and json.loads(done.stdout) == {"source": "ab", "translations": []}
