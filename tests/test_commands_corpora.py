import json

from command_line import in_process as seq2seq


def test_inspect_tells_what_a_corpus_holds(tsv, tmp_path):
    path = tsv("Go.\tVe.\nno tab\nWhat is it?\t¿Qué es?\n")
    done = seq2seq("inspect", path, "--histogram", tmp_path / "lengths.png")
    assert done.returncode == 0
    shown = done.stdout.decode()
    assert [line.split()[-2:] for line in shown.splitlines() if "longest" in line] == [["11", "8"]]
    assert "pairs                           2" in shown and "source tokens" in shown and "␣ 2" in shown
    assert f"{path}, line 2: expected source TAB target" in done.stderr.decode()
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads(seq2seq("inspect", path, "--json").stdout)
    assert data["pairs"] == 2 and data["target"]["tokens"]["¿"] == 1 and data["dropped"] == {"wrong columns": 1}
    piped = seq2seq("inspect", "-", "--json", stdin=path.read_bytes())
    assert json.loads(piped.stdout) == data


def test_a_third_column_that_is_not_read_is_said_once_unless_it_is_empty(tsv, monkeypatch):
    path = tsv("see\tsaw\t\ngo\twent\tV;PST\nbe\twas\tV;PST\n")
    said = f"{path}, line 2: column 3 is not read; choose columns with --columns, the target last\n"
    done = seq2seq("inspect", path, "--json")
    assert done.stderr.decode() == said and json.loads(done.stdout)["pairs"] == 3
    assert seq2seq("inspect", path, "--columns", "1,2").stderr == b""
    five = tsv("see\tsaw\tV;PST\t\tx\n", "five.tsv")  # with a preset that names three columns

    def stop(*_):
        raise SystemExit

    monkeypatch.setattr("seq2seq.training.build_model", stop)
    done = seq2seq("train", five, "--preset", "inflection", cwd=path.parent)
    assert (
        f"{five}, line 1: column 5 is not read; choose columns with --columns, the target last\n".encode()
        in done.stderr
    )


def test_a_run_folder_is_no_corpus_but_a_built_in_corpus_wins_over_a_run_of_its_name(tmp_path):
    for name in ("run", "phrasebook"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    named = seq2seq("train", "phrasebook", "--source-tokenizer", "none-such", "--out", "named", cwd=tmp_path)
    assert named.returncode == 2 and b"none-such" in named.stderr and b"run folder" not in named.stderr
    refused = seq2seq("train", "run", "--out", "other", cwd=tmp_path)
    assert refused.returncode == 2 and b"run is a run folder, not a corpus; --from " in refused.stderr


def test_inspect_tells_the_tokens_of_each_source_column(tsv):
    done = seq2seq("inspect", tsv("lemma\tform\tfeatures\nsee\tsaw\tV\n"), "--columns", "lemma,features,form")
    assert done.returncode == 0, done.stderr
    assert "lemma tokens, the most frequent first:\ne 2  s 1\n\nfeatures tokens" in done.stdout.decode()


def test_a_shuffled_corpus_can_be_read_until_a_shard_is_damaged(tsv, tmp_path):
    for number, side in enumerate("ab"):
        tsv("".join(f"{'xyz'[n % 3]}{n % 50}{number}\n" for n in range(400)), f"corpus.{side}")
    corpus = f"{tmp_path}/corpus.a+{tmp_path}/corpus.b"
    done = seq2seq("shuffle", corpus, "shuffled", "--shards", 3, "--drop-duplicates", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"shuffled\n") and b"250 of 400 pairs left out" in done.stderr
    assert json.loads(seq2seq("inspect", "shuffled", "--json", cwd=tmp_path).stdout)["pairs"] == 150
    shard = next((tmp_path / "shuffled").glob("*.gz"))
    shard.write_bytes(shard.read_bytes()[:-9])
    for command in (["inspect", "shuffled"], ["train", "shuffled", "--out", "runs/other"]):
        done = seq2seq(*command, cwd=tmp_path)
        assert done.returncode == 2 and shard.name in done.stderr.decode(), done.stderr
    assert not (tmp_path / "runs/other").exists()


def test_shuffle_says_what_it_skips_and_that_nothing_is_left(tsv):
    none = seq2seq("shuffle", tsv("no tab\n", "none.tsv"), "out", "--on-bad-line", "skip")
    assert none.returncode == 2 and none.stderr.startswith(b"1 of 1 pairs left out\n"), none.stderr
