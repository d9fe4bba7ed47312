import importlib
import inspect
import pkgutil

import pytest

import pipelines
import seq2seq
from pipelines import OptionError, check_number, choose, load_class
from pipelines.options import MissingExtra, accepted, construct, extra, one_line


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
    (tmp_path / "broken_module.py").write_text("class class\n")
    (tmp_path / "raising_module.py").write_text("\nThing = Thong\n")
    (tmp_path / "freshly_written.py").write_text("class Thing:\n    pass\n")
    (tmp_path / "with_others.py").write_text("from collections import OrderedDict\n\nclass Thing:\n    pass\n")
    (tmp_path / "calling_numpy.py").write_text("import numpy\n\nnumpy.stack([])\n")
    assert load_class("decoder", "freshly_written:Thing").__name__ == "Thing"
    for name, message in (
        ("nowhere_at_all:Thing", "decoder='nowhere_at_all:Thing': no module 'nowhere_at_all'"),
        ("freshly_written:Think", "has no class 'Think'; its classes are Thing"),
        ("freshly_written", "decoder='freshly_written': expected a class, module:Class"),
        (".freshly_written:Thing", "decoder='.freshly_written:Thing': expected a class, module:Class"),
        ("with_others:Think", "has no class 'Think'; its classes are Thing, OrderedDict$"),
        ("calling_numpy:Thing", r"calling_numpy cannot be imported: ValueError: .*calling_numpy.py, line 3\)$"),
        ("broken_module:Thing", r"cannot be imported: SyntaxError: invalid syntax \(broken_module.py, line 1\)$"),
        ("raising_module:Thing", r"raising_module cannot be imported: NameError: .*raising_module.py, line 2\)$"),
    ):
        with pytest.raises(OptionError, match=message):
            load_class("decoder", name)


def test_a_file_of_the_working_directory_takes_no_installed_modules_place(tmp_path, monkeypatch):
    for folder in ("installed", "here"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "called_alike.py").write_text(f"class Thing:\n    where = {folder!r}\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("sys.path", [str(tmp_path / "installed")])
    assert load_class("decoder", "called_alike:Thing").where == "installed"


def test_a_package_that_a_module_needs_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere", str(tmp_path)])
    (tmp_path / "needs_more.py").write_text("import something_missing\n")
    with pytest.raises(OptionError, match="needs_more needs 'something_missing', which is not installed"):
        load_class("decoder", "needs_more:Thing")
    (tmp_path / "asks.py").write_text("raise ModuleNotFoundError('please get foo')\n")
    with pytest.raises(OptionError, match="asks ModuleNotFoundError: please get foo"):
        load_class("decoder", "asks:Thing")
    (tmp_path / "needs_extra.py").write_text(
        "from pipelines.options import extra\nwith extra('plots'):\n    import something_missing\n"
    )
    with pytest.raises(MissingExtra, match=r"pip install 'keras-seq2seq\[plots\]'"):
        load_class("decoder", "needs_extra:Thing")
    (tmp_path / "outer").mkdir()
    with pytest.raises(OptionError, match=r"no module 'outer\.inner\.most'"):
        load_class("decoder", "outer.inner.most:Thing")


class Sharpened:
    def __init__(self, vocabulary_size, sharpness=1.0, depth=1, **options):
        self.sharpness, self.depth = sharpness, depth


class Open(Sharpened):
    def __init__(self, *given, width=2, **options):
        super().__init__(*given, **options)


class Closed(Sharpened):
    def __init__(self, width):
        super().__init__(9)


def test_a_constructor_that_hands_options_on_accepts_those_of_its_base_class_too():
    assert [accepted(kind) for kind in (Open, Closed)] == [{"sharpness", "depth", "width"}, {"width"}]


def test_a_whole_number_is_a_float_for_an_option_whose_default_is_one():
    made = construct("decoder", Open, 9, options={"sharpness": 4, "depth": 4, "unknown": 4}, saved=False)
    assert repr((made.sharpness, made.depth)) == "(4.0, 4)"


def test_a_constructor_may_make_a_tuple_of_a_list_as_json_has_no_tuples():
    class Sized:
        def __init__(self, sizes):
            self.sizes = tuple(sizes)

        def get_config(self):
            return {"sizes": self.sizes}

    assert construct("decoder", Sized, options={"sizes": [3, 5]}).sizes == (3, 5)
    with pytest.raises(OptionError, match=r"decoder=Sized: cannot be constructed with no options: .*'sizes'"):
        construct("decoder", Sized, options={})


def test_a_package_that_is_not_installed_names_its_extra():
    with (
        pytest.raises(MissingExtra, match=r"^this needs something_missing: pip install 'keras-seq2seq\[sweep\]'$"),
        extra("sweep"),
    ):
        import something_missing.inside  # noqa: F401


def test_an_error_is_said_in_one_line_without_the_colours_of_keras():
    assert one_line(ValueError("\x1b[1mUnknown\x1b[0m layer\n\n  'x'")) == "ValueError: Unknown layer 'x'"


def public(module):
    """(name, function) of all public functions and methods, constructors included, that a module defines."""
    for name, found in vars(module).items():
        if name.startswith("_") or getattr(found, "__module__", None) != module.__name__:
            continue
        methods = vars(found).items() if isinstance(found, type) else [("", found)]
        for method, function in methods:
            function = getattr(function, "fget", None) or getattr(function, "__func__", function)
            if inspect.isroutine(function) and (method == "__init__" or not method.startswith("_")):
                yield f"{module.__name__}.{name}.{method}".rstrip("."), function


MODULES = [
    f"{package.__name__}.{module.name}"
    for package in (pipelines, seq2seq)
    for module in pkgutil.iter_modules(package.__path__)
    if module.name != "cli"  # typer could not do without
]


def test_a_whole_number_of_more_than_31_bits_needs_a_bound_that_allows_it():
    for bound in ({"below": 2**32}, {"most": 2**32}):
        check_number("seed", 2**32 - 1, **bound)
    with pytest.raises(OptionError, match="seed=2147483648: expected a whole number, below 2,147,483,648"):
        check_number("seed", 2**31)


@pytest.mark.parametrize("module", MODULES)
def test_all_that_is_public_has_type_hints(module):
    for name, function in public(importlib.import_module(module)):
        signature = inspect.signature(getattr(function, "func", function))  # of a `cached_property` too
        bare = {p.name for p in signature.parameters.values() if p.annotation is p.empty} - {"self", "cls"}
        assert not bare, f"{name}: {bare}"
        assert signature.return_annotation is not signature.empty, name
