import pytest

from pipelines import OptionError, choose, load_class


def test_a_name_stands_for_itself_or_for_what_the_mapping_says():
    assert choose("cell", "gru", ("lstm", "gru")) == "gru"
    assert choose("cell", "gru", {"gru": 3}) == 3
    assert choose("attention", None, (None, "dot")) is None


def test_an_unknown_name_is_refused_and_the_nearest_suggested():
    with pytest.raises(OptionError, match="cell='lstn': expected 'lstm', 'gru'; did you mean 'lstm'"):
        choose("cell", "lstn", ("lstm", "gru"))
    with pytest.raises(OptionError, match=r"expected 'lstm', 'gru'$"):
        choose("cell", "xyz", ("lstm", "gru"))


def test_a_class_is_loaded_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    (tmp_path / "freshly_written.py").write_text("class Thing:\n    pass\n")
    assert load_class("decoder", "freshly_written:Thing").__name__ == "Thing"
    for name, message in (
        ("nowhere_at_all:Thing", "decoder='nowhere_at_all:Thing': there is no module 'nowhere_at_all'"),
        ("freshly_written:Think", "has no class 'Think', but Thing"),
        ("freshly_written", "has no class ''"),
    ):
        with pytest.raises(OptionError, match=message):
            load_class("decoder", name)


def test_a_module_that_fails_to_import_says_so_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere", str(tmp_path)])
    (tmp_path / "needs_more.py").write_text("import something_missing\n")
    with pytest.raises(ModuleNotFoundError, match="something_missing"):
        load_class("decoder", "needs_more:Thing")
