import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipelines import CorpusError, OptionError, open_corpora
from pipelines.options import tokenizer_names
from seq2seq.config import Config, check_option, own_classes


def test_train_and_load_run_come_from_the_package():
    import seq2seq
    from seq2seq import load_run, train

    assert (load_run, train) == (seq2seq.runs.load_run, seq2seq.training.train)


def test_a_configuration_is_equal_to_what_json_makes_of_it(tmp_path):
    options = {
        "corpus": [tmp_path / "a", "b"],
        "columns": [1, np.int64(3)],
        "weights": [1, 2.5],
        "teacher_forcing": [1, 0.5],
        "learning_rate": np.float32(0.5),
        "warm_start": tmp_path / "run",
    }
    config = Config(**options)
    again = Config(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config and hash(again) == hash(config)
    assert config.corpus == (str(tmp_path / "a"), "b") and config.columns == (1, 3) and config.weights == (1, 2.5)
    assert Config(corpus=["a"]) == Config(corpus="a")
    assert Config(teacher_forcing=0.5) == Config(teacher_forcing=(0.5,))
    assert json.dumps(dataclasses.asdict(Config(dropout=0))) == json.dumps(dataclasses.asdict(Config(dropout=0.0)))
    assert Config(teacher_forcing=np.array([1.0, 0.5])).teacher_forcing == (1.0, 0.5)


def test_choices_are_checked_and_the_nearest_is_suggested():
    with pytest.raises(OptionError, match="encoding='onehot': expected 'one_hot', 'ids'; did you mean 'one_hot'"):
        Config(encoding="onehot")
    with pytest.raises(OptionError, match="teacher_forcing"):
        Config(teacher_forcing=(1.5,))


def test_every_number_has_a_range_and_is_refused_just_outside_it_from_python_and_the_command_line():
    inside = Config(validation_fraction=0.05)
    numeric = {"int", "float", "int | None", "float | None", "tuple[float, ...]", "tuple[float, ...] | None"}
    seen = set()
    for field in dataclasses.fields(Config):
        kind = field.type.__name__ if isinstance(field.type, type) and field.type in (int, float) else str(field.type)
        if kind not in numeric:
            continue
        seen.add(kind)
        range, step = field.metadata["range"], 1 if "int" in kind else 1e-9
        assert range, f"{field.name} has no range"
        outside = {"least": -step, "above": 0, "most": step, "below": 0}
        values = [end + outside[name] for name, end in range.items()] + [float("nan"), float("inf"), "3", True]
        for value in values + ([1.5] if "int" in kind else []):
            with pytest.raises(OptionError, match=f"^{field.name}=.*: expected a (whole )?number, "):
                dataclasses.replace(inside, **{field.name: (value,) if "tuple" in kind else value})
            with pytest.raises(OptionError, match=f"^{field.name}="):
                check_option(field.name, value)
        ends = [end for name, end in range.items() if name in ("least", "most")]
        for value in ends:
            check_option(field.name, (value,) if "tuple" in kind else value)
    assert seen == numeric


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "layers=0: expected a whole number, at least 1"),
        ({"learning_rate": -1.0}, r"learning_rate=-1.0: expected a number, at least 0"),
        ({"label_smoothing": 5}, "label_smoothing=5: expected a number, at least 0 and below 1"),
        ({"copy": "no"}, "copy='no': expected True or False"),
        ({"deterministic": 1}, "deterministic=1: expected True or False, or None"),
        ({"optimizer": 3}, "optimizer=3: expected text"),
        (
            {"corpus": [("a", "b")] * 9},
            r"^corpus=\(\('a', 'b'\), .{,80}, \.\.\.\): expected text; train reads only files",
        ),
        ({"corpus": [("a", "b")]}, r"^corpus=\(\('a', 'b'\),\): expected text; train reads only files"),
        ({"validation": ""}, "validation='': expected text, or None$"),
        ({"encoder": ""}, "encoder='': expected text, or None"),
        ({"corpus": ()}, r"corpus=\(\): expected one or more"),
        ({"units": 2**31}, "units=2147483648: expected a whole number, at least 1 and below 2,147,483,648"),
        *(
            ({"columns": columns}, f"columns={re.escape(str(columns))}: expected two names or more, or numbers counted")
            for columns in (5, (), (1,), (1, "b"), (0, 1), (1.0, 2.0), "12")
        ),
        ({"weights": (1, 0)}, "weights=0: expected a number, above 0, or None"),
        ({"weights": ","}, "weights=',': expected numbers with commas between them, or None"),
        ({"teacher_forcing": (1, 1, 1)}, "expected one number or two"),
        ({"model": "Seq2Seq"}, "model='Seq2Seq': expected a class, module:Class"),
        ({"encoder": Path}, "encoder: expected the name of a class, such as 'pathlib:Path'"),
        ({"metrics": ("x:Y", Path)}, "metrics: expected the name of a class, such as 'pathlib:Path'"),
        ({"monitor": int}, "monitor=<class 'int'>: expected text"),
    ],
)
def test_an_option_of_another_kind_or_size_is_refused(options, message):
    with pytest.raises((OptionError, CorpusError), match=message):
        Config(**options)


def test_options_that_exclude_each_other_are_refused():
    with pytest.raises(OptionError, match="epochs=3 and updates=100 cannot be combined"):
        Config(epochs=3, updates=100)
    with pytest.raises(OptionError, match="updates=0: expected a whole number, at least 1, or None"):
        Config(updates=0)
    for options in ({"validation_fraction": 0.1}, {"split": "last"}):
        with pytest.raises(OptionError, match=f"{next(iter(options))}=.*: cannot be combined with validation"):
            Config(validation="dev.tsv", **options)
    assert (Config().validation_fraction, Config(validation=["dev.tsv"]).validation_fraction) == (0.05, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"monitor": "val_bleuu"}, "monitor='val_bleuu'.*did you mean 'val_bleu'"),
        ({"patience": 3}, "patience=3: needs a monitor"),
        ({"monitor": "val_loss", "validation_fraction": 0}, "monitor='val_loss': there is no held-out set"),
        ({"schedule": "plateau"}, "schedule='plateau': needs a monitor"),
        ({"schedule": "inverse_sqrt"}, "schedule='inverse_sqrt' and warmup=0 cannot be combined; give a warmup"),
        ({"schedule": "cosin"}, "schedule='cosin'.*did you mean 'cosine'"),
    ],
)
def test_a_schedule_or_patience_without_what_it_needs_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Config(**options)


def test_own_classes_are_those_written_with_a_colon():
    config = Config(target_tokenizer="mine:Tokens", decoder="mine:Decoder", source_tokenizer="mine:Tokens")
    assert own_classes(config).keys() == {"mine:Tokens", "mine:Decoder"}
    assert own_classes(config)["mine:Decoder"] == "decoder" and own_classes(Config()) == {}
    config = Config(source_tokenizer="mine:Tokens,:,char", target_tokenizer=":")
    assert own_classes(config) == {"mine:Tokens": "source_tokenizer"}


def test_a_tokenizer_is_named_for_each_column_and_a_comma_may_be_one():
    names = {"char": ["char"], "char,;": ["char", ";"], "char,,": ["char", ","], ",,|": [",", "|"], ",": [","]}
    assert {text: tokenizer_names("side", text) for text in names} == names
    for text in ("char,", ",;", "char,,;", ",char,,"):
        with pytest.raises(OptionError, match=r"source_tokenizer=.*: expected a name, or a name for each column"):
            Config(source_tokenizer=text)


def test_a_path_is_a_file_even_if_it_is_called_like_a_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("phrasebook").write_text("a\tb\n")
    config = Config(Path("phrasebook"), validation=[Path("-"), Path("dev.tsv")])
    assert (config.corpus, config.validation) == ("./phrasebook", ("./-", "dev.tsv"))
    assert list(open_corpora(config.corpus).pairs()) == [(b"a", b"b")]
