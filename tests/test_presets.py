import dataclasses

import pytest
from command_line import in_process

from pipelines import CorpusError, OptionError
from seq2seq.building import configure, prepare
from seq2seq.commands.options import PRESET_HELP
from seq2seq.config import Config
from seq2seq.presets import (
    PRESETS,
    SUBWORD_PAIRS,
    SUBWORD_WORDS,
    choose_preset,
    parse_setting,
    usual_options,
    warm_options,
    without_excluded,
)
from seq2seq.training import train


def test_an_architecture_that_is_given_overrules_the_presets_and_decides_on_what_is_usual():
    assert (
        usual_options("inflection", {})["units"] == usual_options("default", {"architecture": "transformer"})["units"]
    )
    recurrent = {"architecture": "recurrent"}
    options = usual_options("inflection", recurrent) | recurrent
    assert "units" not in options and Config(**options).cell == "lstm" and Config(**options).architecture == "recurrent"
    assert "epochs" not in usual_options("tutorial", {"updates": 3})
    length = {"usual_updates": 3200, "usual_epochs": (8, 400)}
    assert usual_options("inflection", {}).items() >= length.items()
    both = usual_options("subword", {"architecture": "transformer"})
    assert both["units"] == usual_options("default", {"architecture": "transformer"})["units"] and both["tied"]
    with pytest.raises(OptionError, match=r"architecture='transfomer'.*did you mean 'transformer'"):
        usual_options("default", {"architecture": "transfomer"})


def test_a_configuration_of_a_preset_is_that_of_the_command_line(tmp_path, training_calls):
    path = tmp_path / "words.tsv"
    path.write_text("a\tb\n")
    for preset in PRESETS:
        for architecture in ("recurrent", "transformer"):
            given = {"units": 8, "architecture": architecture}
            options = [part for name, value in given.items() for part in (f"--{name}", value)]
            options += ["--columns", "1,2"] * (preset == "inflection")
            in_process("train", path, "--preset", preset, *options, "--out", tmp_path / "run")
            given |= {"columns": (1, 2)} if preset == "inflection" else {}
            config = configure(preset, corpus=path, **given)
            assert training_calls.pop()[0] == config
            if preset != "inflection":  # which reads two columns of the source
                prepare(config)
    in_process("train", path, "--preset", "inflection", "--columns", "1,2", "--out", tmp_path / "run")
    assert training_calls.pop()[0] == configure("inflection", corpus=path, columns=(1, 2))
    assert configure("grapheme-to-phoneme").attention == "monotonic"
    assert configure("grapheme-to-phoneme", architecture="transformer").attention is Config.attention


def test_an_option_that_has_no_effect_is_refused(tsv, tmp_path):
    for options, name in (
        ({"heads": 8}, "heads: neither Encoder nor Decoder"),
        ({"architecture": "transformer", "attention": "additive"}, "attention: neither TransformerEncoder nor"),
    ):
        with pytest.raises(OptionError, match=f"{name}.* has this option"):
            train(Config(str(tsv("a\tb\n")), **options), tmp_path / "run")


def test_the_tutorial_preset_is_the_tutorial():
    config = Config(corpus="spa-eng", **PRESETS["tutorial"])
    assert (config.units, config.batch_size, config.epochs, config.limit) == (256, 70, 40, 10_000)
    assert (config.optimizer, config.split, config.validation_fraction) == ("rmsprop", "last", 0.2)
    assert (config.attention, config.embedding, config.bidirectional, config.layers) == (None, None, False, 1)
    assert (config.source_tokenizer, config.target_tokenizer) == ("char", "char")
    assert (config.cell, config.dropout, config.label_smoothing) == ("lstm", 0.0, 0.0)


@pytest.mark.parametrize(
    ("line", "count", "preset"),
    [
        ("I saw {0}.\tVi a {0}.\n", SUBWORD_PAIRS - 1, "default"),
        ("{0}\tS AO\n", SUBWORD_PAIRS, "default"),
        ("saw {0}\tvi a {0}\n", SUBWORD_PAIRS, "default"),
        ("I saw {0}.\tVi a {0}.\n", SUBWORD_PAIRS, "subword"),
        ("S AO {1}\tsaw\n", SUBWORD_PAIRS, "default"),
        ("我在那里看见他了{0}。\tVi a {0}.\n", SUBWORD_PAIRS, "default"),
    ],
)
def test_many_sentences_are_cut_into_subwords_and_all_else_into_characters(tsv, line, count, preset):
    text = "".join(line.format(number, number % (SUBWORD_WORDS - 3)) for number in range(count))
    assert choose_preset(Config(str(tsv(text)))) == preset


def test_python_can_choose_the_preset_as_the_command_line_does(tsv):
    sentences = str(tsv("".join(f"I saw {number}.\tVi a {number}.\n" for number in range(SUBWORD_PAIRS))))
    assert configure(corpus=sentences, units=8) == configure("subword", corpus=sentences, units=8)
    assert configure(corpus=sentences, source_tokenizer="char").dropout == Config.dropout
    assert configure(corpus="phrasebook", seed=3) == Config("phrasebook", seed=3)
    with pytest.raises(CorpusError, match="No such file"):
        configure(corpus="nowhere.tsv")


def test_the_phrasebook_needs_no_extra():
    assert choose_preset(Config("phrasebook")) == choose_preset(Config(("phrasebook",))) == "default"


def test_a_preset_is_chosen_by_what_is_read(tsv):
    path = tsv("".join(f"x\tI saw {number}.\tLo vi ahí.\n" for number in range(SUBWORD_PAIRS)))
    assert choose_preset(Config(str(path), columns=(2, 3))) == "subword"
    assert choose_preset(Config(str(path), columns=(1, 3))) == "default"
    assert choose_preset(Config(str(path), columns=(2, 3), limit=SUBWORD_PAIRS - 1)) == "default"
    assert choose_preset(Config(str(path), columns=(2, 3), target_tokenizer="whitespace")) == "default"
    assert choose_preset(Config(str(path), columns=(2, 3), source_tokenizer="whitespace")) == "default"
    assert choose_preset(Config(str(path), columns=(2, 1, 3))) == "default"
    assert choose_preset(Config("-")) == "default"  # and nothing of standard input is read
    for given in ("source_tokenizer", "target_tokenizer"):
        assert choose_preset(Config(str(path), columns=(2, 3)), {given: "char"}) == "default"


def test_an_option_that_is_given_replaces_those_that_it_excludes():
    assert without_excluded({"split": "last", "validation_fraction": 0.2}, {"validation": ("dev.tsv",)}) == {}
    assert without_excluded({"epochs": 40, "units": 8}, {"updates": 100}) == {"units": 8}
    assert without_excluded({"epochs": 40}, {"updates": None}) == {"epochs": 40}
    length = {"epochs": 40, "updates": 100, "units": 8}
    for given in ({"usual_updates": 100}, {"usual_epochs": (1, 9)}):
        assert without_excluded(length, given) == {"units": 8}
    assert without_excluded({"validation": ("dev.tsv",)}, {"validation_fraction": 0.1}) == {}
    assert without_excluded({"batch_tokens": 4000}, {"batch_size": 8}) == {}
    assert without_excluded({"columns": (1, 2), "reverse": True}, {"columns": (2, 1)}) == {"columns": (1, 2)}
    apart = {"validation": ("dev.tsv",), "validation_fraction": 0.0}
    assert without_excluded(apart, {"split": "last"}) == {}
    assert without_excluded(apart, {"units": 8}) == apart
    assert without_excluded({"validation_fraction": 0.0}, {"split": "last"}) == {"validation_fraction": 0.0}


def test_a_warm_start_keeps_to_the_columns_and_the_direction_but_not_to_the_corpus():
    options = dataclasses.asdict(Config("pairs.tsv", columns=(1, 3), reverse=True, units=8, limit=9, epochs=3))
    kept = warm_options(options)
    assert (kept["columns"], kept["reverse"], kept["units"]) == ((1, 3), True, 8)
    assert not {"corpus", "limit", "epochs", "steps_per_epoch"} & kept.keys()
    assert not {"updates", "usual_updates", "usual_epochs"} & kept.keys()


def test_the_help_of_the_command_line_tells_the_presets_as_they_are():
    assert all(name in PRESET_HELP for name in PRESETS)
    assert f"{SUBWORD_PAIRS} pairs of sentences" in PRESET_HELP


def test_a_setting_is_read_as_on_the_command_line_or_as_json():
    texts = {
        "units=16": 16,
        "--clip-norm=none": None,
        "columns=1, 3": (1, 3),
        "attention=null": None,
        "attention=None": None,
        "deterministic=null": None,
        "tied=true": True,
        "tied=False": False,
        "kernel=null": None,
        "kernel=None": None,
        "kernel=[3, 5]": (3, 5),
        "kernel=NaN": "NaN",
        "kernel=same": "same",
        " attention = dot": "dot",
    }
    assert [parse_setting(text, of_config=True)[1] for text in texts] == list(texts.values())
    for text in ("clip-norm=1", "--clip-norm=1", " clip_norm = 1"):
        assert parse_setting(text, of_config=True) == ("clip_norm", 1.0)
    assert parse_setting("weights=0.5", of_config=True) == ("weights", (0.5,))
    assert parse_setting("weights=0.5", of_config=False) == ("weights", 0.5)  # of a strategy
    for text, message in (
        ("units", "set='units': expected NAME=VALUE"),
        ("my units=3", "set='my units=3': expected NAME=VALUE"),
        ("units=many", "units='many': expected a whole number, at least 1"),
        ("units=0", "units=0: expected a whole number, at least 1"),
    ):
        with pytest.raises(OptionError, match=message):
            parse_setting(text, of_config=True)
