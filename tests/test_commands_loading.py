import json
from pathlib import Path

import pytest
from command_line import in_process as seq2seq

from pipelines import OptionError
from seq2seq.commands.loading import reading_as_trained, split_runs


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Three folders of runs and one of a corpus."""
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "corpus").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("folders")
def test_runs_are_told_from_what_follows_them():
    found, rest = split_runs("translate", ["any", "two", "corpus", "x" * 5000], "TEXT")
    assert (list(map(str, found)), rest) == (["any", "two"], ["corpus", "x" * 5000])
    for arguments, message in (
        (["one", "corpus"], "compare: corpus is not a run folder"),
        (["one", "tow", "three"], "compare: tow is not a run folder"),
        (["one", "two", "corpus", "three"], "compare: three is a run folder, but comes after the corpus corpus"),
    ):
        with pytest.raises(OptionError) as error:
            split_runs("compare", arguments, "CORPUS", least=2)
        assert str(error.value) == f"{message}; expected RUN RUN [RUN]... [CORPUS]..."


def test_a_text_in_the_place_of_a_run_is_bad_input(tmp_path):
    for command in (["translate"], ["evaluate"], ["plot"], ["train", "--out"]):
        done = seq2seq(*command, "a long text " * 400, cwd=tmp_path)
        assert done.returncode == 2 and b"too long" in done.stderr.replace(b"\n", b" "), (command, done.stderr)


@pytest.mark.usefixtures("folders")
def test_compare_says_what_it_expected():
    expected = "; expected RUN RUN [RUN]... [CORPUS]...\n"
    missing = "compare: thre: No such file or folder; the built-in corpora are phrasebook, spa-eng"
    for arguments, message in ((["one"], "compare: only one argument, one"), (["one", "two", "thre"], missing)):
        done = seq2seq("compare", *arguments)
        assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", f"seq2seq: {message}{expected}")


@pytest.mark.usefixtures("folders")
def test_standard_input_is_not_read_by_a_runs_columns_and_this_is_said(capfd):
    Path("one", "config.json").write_text(json.dumps({"options": {"columns": [1, 3, 2], "reverse": True}}))
    assert reading_as_trained(Path("one"), ["test.tsv"], {})["columns"] == [1, 3, 2]
    assert reading_as_trained(Path("one"), ["-"], {"columns": (1, 2, 3)}) == {"columns": (1, 2, 3)}
    assert capfd.readouterr().err == ""
    for name in ("a.txt", "b.txt", "c.txt"):
        Path(name).write_text("x\n")
    reading_as_trained(Path("one"), ["a.txt+b.txt+c.txt"], {})
    said = "parallel files are chosen by the --columns of one, 1,3,2; give --columns for another order\n"
    assert capfd.readouterr().err == said
    Path("two", "config.json").write_text('{"options": {}}')
    for corpus in ("-", "a.txt+b.txt"):
        assert reading_as_trained(Path("two"), [corpus], {}) == {}
    assert capfd.readouterr().err == ""
    assert reading_as_trained(Path("one"), ["-"], {"reverse": True}) == {"reverse": True}
    assert capfd.readouterr().err.endswith("then the target, without --columns of one\n")
    assert reading_as_trained(Path("one"), ["-"], {}) == {}
    said = "standard input is read as all source columns, then the target, without --columns and --reverse of one"
    assert said in capfd.readouterr().err
