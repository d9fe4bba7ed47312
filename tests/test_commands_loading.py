import pytest
from command_line import in_process as seq2seq

from pipelines import OptionError
from seq2seq.commands.loading import split_runs


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


@pytest.mark.usefixtures("folders")
def test_compare_says_what_it_expected():
    expected = "; expected RUN RUN [RUN]... [CORPUS]...\n"
    missing = "compare: thre: No such file or folder; the built-in corpora are phrasebook, spa-eng"
    for arguments, message in ((["one"], "compare: only one argument, one"), (["one", "two", "thre"], missing)):
        done = seq2seq("compare", *arguments)
        assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", f"seq2seq: {message}{expected}")
