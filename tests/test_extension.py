"""The examples in the page "Writing your own" are modules outside the library, and do all that its own do."""

import dataclasses
import importlib
import json
import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from command_line import in_process, python, seq2seq
from conftest import LINES, QUICK, WORDS, decoded, read_history, small_config
from pages import ROOT, defined_in, shown_as

from pipelines import CharTokenizer, ColumnsTokenizer, OptionError, Tokenizer, batch_pairs, checksums, load_class
from seq2seq import BeamSearch, Config, Decoder, Encoder, Sampling, Seq2Seq
from seq2seq.building import build_model, copy_weights, prepare
from seq2seq.commands.train import _imports_for
from seq2seq.presets import without_excluded
from seq2seq.records import read_record
from seq2seq.runs import load_run
from seq2seq.surveying import survey_corpus, take_vocabularies
from seq2seq.training import train

PAGE = ROOT / "docs" / "guides" / "extending.md"
UPPER = [word.upper() for word in WORDS]

DECODER, ENCODER, TOKENIZER = (
    "ngrams:NGramDecoder",
    "convolution:ConvolutionalEncoder",
    "bigrams:BigramTokenizer",
)
EACH = pytest.mark.parametrize("name", [DECODER, ENCODER, TOKENIZER])

# What is broken in an example, by one change to it, and what the message says of that.
BROKEN_DECODERS = {
    "cannot be loaded": ('@keras.saving.register_keras_serializable("ngrams")', "", "register_keras_serializable"),
    "no start": ("def start(", "def begin(", "has no method `start`"),
    "start returns no pair": ("return encoded, tf.zeros(", "return tf.zeros(", "start"),
    "another shape": ("self.output_layer(x), ids", "self.output_layer(x)[:, 0], ids", "expected (2, 3, 14)"),
    "probabilities": (
        "return self.output_layer(x), ids[:, length:]",
        "return tf.nn.softmax(self.output_layer(x)), ids[:, length:]",
        "returns probabilities; expected logits, without a softmax",
    ),
    "no state": ("return self.output_layer(x), ids[:, length:]", "return self.output_layer(x)", "(logits, state)"),
    "forgets what came before": ("tf.concat([state, target", "tf.concat([0 * state, target", "one token after another"),
    "remembers the wrong tokens": ("ids[:, length:]", "ids[:, : self.n - 1]", "one token after another"),
    "looks ahead": (
        "vectors[:, place : place + length]",
        "tf.pad(vectors, [[0, 0], [0, 1], [0, 0]])[:, place + 1 : place + 1 + length]",
        "one token after another",
    ),
    "sources as hypotheses": ("rows_by_source(x, encoded)", "x", "three hypotheses"),
    "hypotheses of other sources": (
        "rows_by_source(x, encoded), encoded.memory, attention_mask=encoded.mask[:, None]",
        "x, tf.tile(encoded.memory, [(k := tf.shape(x)[0] // tf.shape(encoded.memory)[0]), 1, 1]), "
        "attention_mask=tf.tile(encoded.mask, [k, 1])[:, None]",
        "three hypotheses",
    ),
    "takes one hypothesis for another": (
        "ids[:, length:]",
        "tf.reshape(tf.reverse(tf.reshape(ids, [tf.shape(encoded.memory)[0], -1, tf.shape(ids)[1]]), [1]), "
        "tf.shape(ids))[:, length:]",
        "three hypotheses",
    ),
    "looks at padding": (", attention_mask=encoded.mask[:, None]", "", "padding"),
    "of one size in a graph": (
        "axis=1), tf.shape(target)[1]",
        "axis=1), int(target.shape[1] or tf.shape(target)[1])",
        "fails on a graph for batches of any size",
    ),
    "forgets what it needs": ('"vocabulary_size": vocabulary_size, ', "", "get_config must return all arguments"),
    "forgets its size": ('"units": units, ', "", "get_config must return all arguments"),
}
BROKEN_ENCODERS = {
    "a pair": ("return Encoded(", "return (", "returns tuple, not Encoded"),
    "a mask of floats": ("Encoded(x, mask", "Encoded(x, real[:, :, 0]", "float32 mask"),
    "a memory of its own length": (
        "Encoded(x, mask",
        "Encoded(tf.pad(x, [[0, 0], [0, max(0, 3 - x.shape[1])], [0, 0]]), mask",
        "shapes [(1, 3, 8)]; expected [(1, 2, 8)]",
    ),
    "raises": ("mask = source_mask(source)", "raise ValueError('far too\\nlong')", "far too"),
    "reads padding": ("x *= real", "pass", "padding"),
    "forgets its size": (', "units": units', "", "get_config must return all arguments"),
    "counts padding": ("Encoded(x, mask)", "Encoded(x, mask, [[tf.reduce_mean(x, axis=1)] * 2])", "padding"),
}

BROKEN_TOKENIZERS = {
    "cannot be loaded": ('@keras.saving.register_keras_serializable("bigrams")', "", "register_keras_serializable"),
    "not ragged": ('"\\x1f")[:, 1:]', '"\\x1f").to_tensor()', "must return ragged strings"),
    "raises": ("marked = ", "raise ValueError('far too\\nlong')\n        marked = ", "far too long"),
    "takes no options": (
        "def split(",
        "def __init__(self):\n        pass\n\n    def split(",
        "unexpected keyword argument",
    ),
}


def examples():
    """{module: its text} of the page's first section, and {module: the lines of shell that follow it}."""
    _, section = re.split("^## Encoders, decoders and tokenizers\n", PAGE.read_text(), flags=re.MULTILINE)
    section = re.split("^## ", section, flags=re.MULTILINE)[0]
    found = re.findall(r"```python\n(# (\w+)\.py\n.*?)```\n\n```bash\n(.*?)```", section, re.DOTALL)
    assert len(found) == 3 == section.count("```python")
    return {module: text for text, module, _ in found}, {module: lines for _, module, lines in found}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the three modules and `pairs.tsv`, where Python finds them."""
    folder = tmp_path_factory.mktemp("own")
    for module, text in examples()[0].items():
        (folder / f"{module}.py").write_text(text)
    (folder / "pairs.tsv").write_text("".join(f"{a}{b}\t{b}{a}\n" for a in "abcdefg" for b in "abcdefg"))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for module in examples()[0]:
        sys.modules.pop(module, None)


def options(name):
    """Arguments of `Seq2Seq` that put a class in its place, adapted tokenizers first."""
    kind = load_class("test", TOKENIZER) if name == TOKENIZER else CharTokenizer
    tokenizers = kind(), kind()
    tokenizers[0].adapt(WORDS)
    tokenizers[1].adapt(UPPER)
    if name == DECODER:
        return tokenizers, {**QUICK, "decoder": load_class("test", DECODER)}
    if name == ENCODER:
        return tokenizers, {"encoder": load_class("test", ENCODER), "cell": "gru", "attention": "general"}
    return tokenizers, QUICK


def answers(model):
    """What a model says of the words, as JSON holds it."""
    beam = model.translate(WORDS, BeamSearch(3, n_best=2), details=True)
    return {
        "beam": [decoded(texts) for texts in beam.texts],
        "beam scores": beam.scores.numpy().tolist(),
        "score": model.score(WORDS, UPPER).numpy().tolist(),
    }


@pytest.fixture(scope="module")
def learned(folder):
    """{name: a model that has learned the words, and its answers}."""
    found = {}
    for name, rate in ((DECODER, 1e-2), (ENCODER, 5e-3), (TOKENIZER, 2e-2)):
        keras.utils.set_random_seed(3)
        tokenizers, parts = options(name)
        model = Seq2Seq(*tokenizers, units=48, **parts)
        schedule = keras.optimizers.schedules.CosineDecay(rate, decay_steps=30 * 16)
        model.compile(keras.optimizers.Adam(schedule, global_clipnorm=1.0))
        pairs = tf.data.Dataset.from_tensor_slices((WORDS, UPPER)).repeat(30)
        model.fit(batch_pairs(pairs, *tokenizers, batch_size=12), epochs=16, verbose=0, shuffle=False)
        found[name] = model, answers(model)
    return found


@pytest.mark.slow
@EACH
def test_it_learns_and_decodes_with_every_strategy(learned, name):
    model, found = learned[name]
    greedy, sampled = decoded(model.translate(WORDS)), decoded(model.translate(WORDS, Sampling(3.0), seed=7))
    assert sum(text == right for text, right in zip(greedy, UPPER, strict=True)) >= 11
    assert sampled == decoded(model.translate(WORDS, Sampling(3.0), seed=7)) != greedy

    # What beam search sums up token by token, three hypotheses side by side, is what the whole text scores at once: the
    # best, and of characters the second too. Bigrams can spell a text in several ways, and the score is that of one.
    for rank in range(1 if name == TOKENIZER else 2):
        texts, scores = ([row[rank] for row in found[kind]] for kind in ("beam", "beam scores"))
        np.testing.assert_allclose(model.score(WORDS, texts), scores, atol=1e-4)


LOADED = """
import json, sys, keras
sys.path.append(sys.argv[1])
import bigrams, convolution, ngrams
from test_extension import answers
print(json.dumps([answers(keras.models.load_model(path)) for path in sys.argv[2:]]))
"""


@pytest.mark.slow
def test_it_is_loaded_in_another_process_and_answers_the_same(folder, learned):
    paths = [folder / f"{number}.keras" for number in range(3)]
    for path, (model, _) in zip(paths, learned.values(), strict=True):
        model.save(path)
    (folder / "loaded.py").write_text(LOADED)
    done = python("loaded.py", Path(__file__).parent, *paths, cwd=folder)
    assert done.returncode == 0, done.stderr.decode()
    for again, (_, found) in zip(json.loads(done.stdout), learned.values(), strict=True):
        assert again["beam"] == found["beam"]
        for kind in ("beam scores", "score"):
            np.testing.assert_allclose(again[kind], found[kind], atol=1e-4)


def broken(module, right, wrong):
    """The text of a module with one change, registered under another name, and its classes by their names."""
    text = examples()[0][module]
    assert text.count(right) == 1
    text = text.replace(right, wrong).replace(f'("{module}")', '("broken")')
    scope = {"__name__": "broken"}
    exec(text, scope)
    return text, scope


@pytest.mark.parametrize(
    ("half", "name", "what"),
    [("decoder", DECODER, what) for what in BROKEN_DECODERS] + [("encoder", ENCODER, what) for what in BROKEN_ENCODERS],
)
def test_an_encoder_or_decoder_that_breaks_the_contract_is_refused(half, name, what):
    module, kind = name.split(":")
    right, wrong, message = {"decoder": BROKEN_DECODERS, "encoder": BROKEN_ENCODERS}[half][what]
    _, scope = broken(module, right, wrong)
    tokenizer = CharTokenizer("abcdefghij")
    attention = {"attention": "general"} if half == "encoder" else {}
    with pytest.raises(OptionError, match=f"(?s)^{half}={kind}: .*{re.escape(message)}") as raised:
        Seq2Seq(tokenizer, tokenizer, units=8, **{half: scope[kind]}, **attention)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("what", BROKEN_TOKENIZERS)
def test_a_tokenizer_that_cannot_split_or_be_saved_is_refused(folder, monkeypatch, what):
    right, wrong, message = BROKEN_TOKENIZERS[what]
    text, _ = broken("bigrams", right, wrong)
    module = f"broken_{list(BROKEN_TOKENIZERS).index(what)}"
    (folder / f"{module}.py").write_text(text)
    name = f"{module}:BigramTokenizer"
    config = Config(str(folder / "pairs.tsv"), target_tokenizer=name, units=8, epochs=1)
    with pytest.raises(OptionError, match=f"target_tokenizer=.*{re.escape(message)}") as raised:
        prepare(config)
    assert "\n" not in str(raised.value)


def test_an_error_in_a_custom_class_is_reported_with_its_line(tmp_path, monkeypatch):
    text = """import keras
from seq2seq import Decoder


@keras.saving.register_keras_serializable("faulty")
class Faulty(Decoder):
    def call(self, tokens, encoded, state=None):
        return super().call(tokens, encoded, state[7])
"""
    (tmp_path / "faulty.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    tokenizer = CharTokenizer("abc")
    with pytest.raises(OptionError, match=r"^decoder=Faulty: fails on .*IndexError: .*\(faulty\.py, line 8\)$"):
        Seq2Seq(tokenizer, tokenizer, decoder=importlib.import_module("faulty").Faulty, units=4)


@keras.saving.register_keras_serializable("test_extension")
class Looking(Decoder):
    """A decoder that says that it looks elsewhere than it does."""

    changed = staticmethod(lambda weights: weights)

    def call(self, target, encoded, state, training=False, return_attention=False):
        found = super().call(target, encoded, state, training=training, return_attention=return_attention)
        return *found[:2], *map(self.changed, found[2:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights[:, :, :1], "attention (2, 3, 1) of a target (2, 3); expected [B, T, S]"),
        (lambda weights: tf.ones_like(weights) / 3, "attention to padding, up to 0.33; expected 0"),
        (
            lambda weights: 2 * weights,
            "attention that is no share of the source: expected weights from 0 that sum to 1 at most",
        ),
        (
            lambda weights: -weights,
            "attention that is no share of the source: expected weights from 0 that sum to 1 at most",
        ),
        (lambda weights: weights / tf.cast(tf.shape(weights)[1], tf.float32), "different attention for one token"),
    ],
)
def test_attention_weights_that_a_picture_would_show_wrongly_are_refused(monkeypatch, change, message):
    tokenizer = CharTokenizer("abcdefghij")
    options = {"decoder": Looking, "units": 8, "attention": "dot", **QUICK}
    Seq2Seq(tokenizer, tokenizer, **options)
    monkeypatch.setattr(Looking, "changed", staticmethod(change))
    with pytest.raises(OptionError, match=f"^decoder=Looking: {re.escape(message)}"):
        Seq2Seq(tokenizer, tokenizer, **options)


@keras.saving.register_keras_serializable("test_extension")
class Penalized(Encoder):
    """An encoder that adds a loss."""

    def call(self, source, training=False):
        encoded = super().call(source, training=training)
        self.add_loss(tf.reduce_mean(tf.square(tf.convert_to_tensor(encoded.memory))))
        return encoded


def test_trying_custom_layers_leaves_no_loss_of_a_graph_in_them():
    tokenizer = CharTokenizer("abc")
    model = Seq2Seq(tokenizer, tokenizer, encoder=Penalized, decoder=Looking, units=8, attention="dot", **QUICK)
    assert np.isfinite([float(loss) for loss in model.losses]).all()
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    )


def test_a_decoder_that_forgets_an_argument_that_shapes_no_weight_is_refused():
    @keras.saving.register_keras_serializable("broken")
    class Sharper(Decoder):
        def __init__(self, vocabulary_size, units=256, sharpness=1.0, **options):
            super().__init__(vocabulary_size, units, **options)
            self.sharpness = sharpness

        def call(self, *arguments, **options):
            logits, state = super().call(*arguments, **options)
            return logits * self.sharpness, state

    tokenizer = CharTokenizer("abc")
    Seq2Seq(tokenizer, tokenizer, decoder=Sharper, units=8)
    with pytest.raises(
        OptionError, match=r"^decoder=Sharper: computes different results after from_config\(get_config"
    ):
        Seq2Seq(tokenizer, tokenizer, decoder=Sharper(7, units=8, sharpness=3.0), units=8)
    with pytest.raises(OptionError, match=r"^decoder=Sharper: get_config must return all .* including sharpness"):
        Seq2Seq(tokenizer, tokenizer, decoder=Sharper, units=8, sharpness=3.0)


def test_a_decoder_that_hands_its_options_on_is_given_those_of_the_class_it_is_derived_from():
    @keras.saving.register_keras_serializable("broken")
    class Plain(Decoder):
        def __init__(self, vocabulary_size, **options):
            super().__init__(vocabulary_size, **options)

    tokenizer = CharTokenizer("abc")
    model = Seq2Seq(tokenizer, tokenizer, decoder=Plain, units=8, attention="general")
    assert (model.decoder.options["units"], model.decoder.options["attention"]) == (8, "general")
    with pytest.raises(OptionError, match=r"option='unit'.*did you mean 'units'"):
        Seq2Seq(tokenizer, tokenizer, decoder=Plain, unit=8)


def test_a_decoder_may_make_its_own_attention():
    scope = defined_in(PAGE, "scaled.py")
    tokenizer = CharTokenizer("abc")
    keras.utils.set_random_seed(0)
    model = Seq2Seq(tokenizer, tokenizer, decoder=scope["ScaledDecoder"], units=8, attention="dot", temperature=0.5)
    keras.utils.set_random_seed(0)
    usual = Seq2Seq(tokenizer, tokenizer, units=8, attention="dot")
    ids = tf.constant([[4, 5, 6]])
    assert isinstance(model.decoder.attention, scope["ScaledAttention"])
    assert not np.allclose(model((ids, ids)), usual((ids, ids)))
    assert model.decoder.get_config()["temperature"] == 0.5


@pytest.mark.parametrize("forgotten", ["vocabulary", "normal_form", "lowercase", "size", "separator"])
def test_a_tokenizer_that_forgets_an_argument_is_refused(forgotten):
    @keras.saving.register_keras_serializable("broken")
    class Pieces(Tokenizer):
        def __init__(self, size=2, separator="", **options):
            super().__init__(**options)
            self.options = {"size": size, "separator": separator}

        def split(self, texts):
            pieces = tf.strings.regex_replace(texts, f"(?s).{{1,{self.options['size']}}}", "\x1f\\0")
            return tf.strings.split(pieces, "\x1f")[:, 1:]

        def join(self, tokens):
            return tf.strings.reduce_join(tokens, axis=1, separator=self.options["separator"])

        def get_config(self):
            config = {**super().get_config(), **self.options}
            return {name: value for name, value in config.items() if name != forgotten}

    pieces = Pieces(size=3, separator="|", normal_form="NFKC", lowercase=forgotten == "lowercase")
    pieces.adapt(WORDS)
    with pytest.raises(OptionError, match=r"^target_tokenizer=Pieces: different tokens after from_config\(get_config"):
        Seq2Seq(CharTokenizer("abc"), pieces, units=8)
    with pytest.raises(OptionError, match=r"^source_tokenizer=Pieces: different tokens after from_config\(get_config"):
        Seq2Seq(ColumnsTokenizer([CharTokenizer("abc"), pieces]), CharTokenizer("abc"), units=8)


@pytest.mark.parametrize("method", ["split", "join"])
def test_a_tokenizer_with_an_if_on_tensors_needs_a_function_of_its_own(method):
    class Letters(Tokenizer):
        def split(self, texts):
            return tf.strings.unicode_split(texts, "UTF-8")

    def choosy(self, given):
        if tf.shape(given)[0] > 0:  # AutoGraph makes an operation of this
            return getattr(Letters, method)(self, given)
        return getattr(Letters, method)(self, given[:1])

    plain, wrapped = (
        keras.saving.register_keras_serializable("choosy")(type(name, (Letters,), {method: run}))()
        for name, run in (("Plain", choosy), ("Wrapped", tf.function(choosy)))
    )
    for tokenizer in (plain, wrapped):
        tokenizer.take_vocabulary({letter.encode(): 1 for letter in "".join(WORDS)})
    with pytest.raises(OptionError, match=r"^source_tokenizer=Plain: fails on a text in a graph: .*@tf\.function"):
        Seq2Seq(plain, CharTokenizer("abc"), units=8)
    pairs = tf.data.Dataset.from_tensor_slices((WORDS, WORDS))
    ((source, _),) = batch_pairs(pairs, wrapped, wrapped, encoding="ids")
    assert sorted(decoded(wrapped.detokenize(source))) == sorted(WORDS)
    assert Seq2Seq(wrapped, wrapped, units=8).translate(WORDS).shape == [len(WORDS)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("half", "module", "what"),
    [("decoder", "ngrams", "sources as hypotheses"), ("encoder", "convolution", "a pair")],
)
def test_the_command_line_refuses_it_in_one_line(folder, half, module, what):
    right, wrong, message = (BROKEN_DECODERS | BROKEN_ENCODERS)[what]
    text, scope = broken(module, right, wrong)
    (folder / "broken.py").write_text(text)
    (name,) = (name for name, value in scope.items() if isinstance(value, type) and value.__module__ == "broken")
    arguments = ["train", "pairs.tsv", f"--{half}", f"broken:{name}", "--out", "runs/broken"]
    done = seq2seq(*arguments, cwd=folder)
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"seq2seq: {half}={name}: ") and message in line
    assert not (folder / "runs" / "broken").exists()


PLAIN = """
import keras
import tensorflow as tf
from seq2seq import Seq2Seq, teacher_forcing

@keras.saving.register_keras_serializable("plain")
class Plain(Seq2Seq):
    def train_step(self, data):
        inputs, labels, weights = teacher_forcing(*data)
        with tf.GradientTape() as tape:
            loss = self.compute_loss(inputs, labels, self(inputs, training=True), weights)
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"loss": loss}
"""


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("plain:Plain", {}, "model=Plain: its `train_step` does not call `update_weights`, so a gradient"),
        (
            "guided:GuidedAttention",
            {"teacher_forcing": (1.0, 0.5), "attention": "dot"},
            "call `scheduled_sampling`, so",
        ),
    ],
)
def test_a_step_without_what_training_promises_is_refused(folder, monkeypatch, tmp_path, model, options, message):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for module, text in (("plain", PLAIN), ("guided", shown_as(PAGE, "guided.py"))):
        (folder / f"{module}.py").write_text(text)
    small = {"units": 8, "cell": "gru", "bidirectional": False, "epochs": 1}
    with pytest.raises(OptionError, match=message):
        train(Config("pairs.tsv", model=model, **small | options), tmp_path / "run", say=None)


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """A folder to be in, where Python finds the examples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")
    return tmp_path


def make_run(folder, config):
    """Make a run folder of a configuration, whose model has learned nothing."""
    _, tokenizers = prepare(config)
    take_vocabularies(config, tokenizers, survey_corpus(config, tokenizers, None, None, print), print)
    folder.mkdir()
    record = {"options": dataclasses.asdict(config), "directory": str(folder), "checksums": checksums(config.corpus)}
    (folder / "config.json").write_text(json.dumps(record))
    build_model(config, tokenizers, steps=1).save(folder / "model.keras")


@pytest.fixture(scope="module")
def covered(tmp_path_factory):
    """A run whose decoder is one of the examples, with an option of its own. It has learned nothing."""
    folder = tmp_path_factory.mktemp("covered")
    (folder / "pairs.tsv").write_text(LINES)
    options = {"decoder": "coverage:CoverageDecoder", "attention": None, "own": {"kernel": 5}, "epochs": 1}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(ROOT / "examples")
        config = dataclasses.replace(small_config(folder / "pairs.tsv"), validation_fraction=0, **options)
        make_run(folder / "run", config)
    return folder / "run"


def test_an_option_of_a_custom_class_reaches_it_and_is_repeated(modules, covered):
    assert load_run(covered).decoder.options == {"vocabulary_size": 9, "units": 8, "kernel": 5}
    assert read_record(covered).config.own == {"kernel": 5}


def test_a_warm_start_takes_only_vocabularies_that_have_grown(modules, covered):
    config = dataclasses.replace(read_record(covered).config, warm_start=str(covered))
    old, tokenizers = prepare(config)
    model = build_model(config, tokenizers, steps=1)
    copy_weights(model, old, "run", set())
    for weight, known in zip(model.weights, old.weights, strict=True):
        np.testing.assert_array_equal(weight, known)
    model = build_model(dataclasses.replace(config, own={"kernel": 3}), tokenizers, steps=1)
    with pytest.raises(
        OptionError, match=r"run, the run to start from, has .* of shape \(5, 1, 8\), .* \(3, 1, 8\); only"
    ):
        copy_weights(model, old, "run", set())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"own": {"kernle": 5}, "decoder": "coverage:CoverageDecoder", "attention": None},
            "option='kernle'.*did you mean 'kernel'",
        ),
        ({"own": {"kernel": 5}}, "option='kernel': neither Config nor a class that is named here has this option$"),
        (
            {"own": {"kernel": "five"}, "decoder": "coverage:CoverageDecoder", "attention": None},
            "decoder=CoverageDecoder: ",
        ),
        ({"model": "coverage:CoverageDecoder"}, "model='coverage:CoverageDecoder': .* derived from seq2seq.Seq2Seq"),
        ({"loss": "coverage:CoverageDecoder"}, "loss='coverage:CoverageDecoder': .* derived from Keras's Loss"),
        ({"metrics": "focal:FocalLoss"}, "metrics='focal:FocalLoss': .* derived from Keras's Metric"),
        ({"loss": "focal:FocalLos"}, "loss='focal:FocalLos': focal has no class"),
        ({"own": {"samples": 3, "gamma": "x"}, "model": "minimum_risk:MinimumRisk"}, "option='gamma': neither Config"),
        ({"own": {"unit": 5}}, "option='unit': neither Config .*; did you mean 'units'"),
        ({"metrics": ("focal:Confidence", "focal:Confidence")}, "another metric is already called 'confidence'"),
    ],
)
def test_options_of_custom_classes_that_cannot_work_are_refused(modules, config, options, message):
    with pytest.raises(OptionError, match=message):
        prepare(dataclasses.replace(config, **options))


def test_an_option_that_a_constructor_swallows_unread_is_refused():
    @keras.saving.register_keras_serializable("broken")
    class Fixed(Decoder):
        def __init__(self, vocabulary_size, **options):
            super().__init__(vocabulary_size, **{**options, "units": 4})

    tokenizer = CharTokenizer("abc")
    with pytest.raises(OptionError, match="decoder=Fixed: does not use units=8; its get_config returns 4"):
        Seq2Seq(tokenizer, tokenizer, decoder=Fixed, units=8)


def same_weights(one, other):
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return all(np.allclose(x, y, atol=1e-5) for x, y in pairs)


TRANSLATED = """
import sys
from seq2seq import load_run
model = load_run("run")
print(model.translate(["ab"]).shape, model.compiled, "focal" in sys.modules)
"""


def test_a_custom_loss_and_a_custom_metric_train_and_are_measured_and_translating_needs_neither(
    modules, config, trained
):
    # With gamma 0 it is the usual loss.
    options = {"loss": "focal:FocalLoss", "metrics": "focal:Confidence", "own": {"gamma": 0}}
    model = train(dataclasses.replace(config, **options), modules / "run")
    assert (model.loss.gamma, type(model.loss).__name__) == (0.0, "FocalLoss")
    assert isinstance(model.loss.gamma, float)  # like its default
    last = read_history(modules / "run")[-1]
    assert all(0 < float(last[name]) < 1 for name in ("confidence", "val_confidence"))
    assert same_weights(model, trained.model)
    Path("script.py").write_text(TRANSLATED)
    done = python("script.py", cwd=modules)
    assert done.stdout == b"(1,) False False\n", done.stderr.decode()


def test_a_custom_loss_is_not_recorded_as_smoothed_unless_it_smooths(modules, config):
    assert Config(loss="focal:FocalLoss").label_smoothing == 0 and Config().label_smoothing == 0.1
    smoothed = {"label_smoothing": 0.3, "units": 8}
    assert without_excluded(smoothed, {"loss": "focal:FocalLoss"}) == {"units": 8}
    assert "label_smoothing" not in without_excluded(smoothed | {"loss": "focal:FocalLoss"}, {"loss": None})
    assert without_excluded(smoothed, {"loss": None}) == smoothed
    with pytest.raises(OptionError, match="label_smoothing: FocalLoss has no such option; set it to 0, or leave it"):
        prepare(dataclasses.replace(config, loss="focal:FocalLoss", label_smoothing=0.1))


def test_a_model_is_saved_and_loaded_with_its_custom_loss(modules, tokenizers):
    model = Seq2Seq(*tokenizers, units=8)
    model.compile(
        loss=load_class("loss", "focal:FocalLoss")(gamma=3.0), metrics=[load_class("metrics", "focal:Confidence")()]
    )
    model.build_training()
    model.save(modules / "compiled.keras")
    assert keras.models.load_model(modules / "compiled.keras").loss.gamma == 3


def test_a_focal_loss_learns_less_from_what_is_easy_to_predict(modules):
    loss = load_class("loss", "focal:FocalLoss")()
    nats = loss([[0]], np.log([[[0.75, 0.25]]]))
    assert loss.gamma == 2 and float(nats) == pytest.approx(-(0.25**2) * np.log(0.75))


@pytest.mark.slow
def test_layers_that_are_built_when_they_are_made_are_saved_and_loaded(tokenizers, tmp_path):
    @keras.saving.register_keras_serializable("built")
    class BuiltEncoder(Encoder):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.built = True

    model = Seq2Seq(*tokenizers, encoder=BuiltEncoder, units=4)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.translate(["abc"]).numpy() == model.translate(["abc"]).numpy()


def test_minimum_risk_training_lowers_the_expected_number_of_errors(modules, pairs, tokenizers):
    keras.utils.set_random_seed(0)
    kind = load_class("model", "minimum_risk:MinimumRisk")
    model = kind(*tokenizers, units=16, attention="general", samples=8, risk_weight=5.0)
    model.compile(keras.optimizers.Adam(1e-2))
    batches = batch_pairs(pairs, *tokenizers, batch_size=12, encoding="ids", seed=0)
    source, target = next(iter(batches))
    before = float(model.risk(source, target[:, 1:]))
    model.fit(batches.repeat(30), verbose=0, shuffle=False)
    after = float(model.risk(source, target[:, 1:]))
    assert after < 0.8 * before
    model.save("risk.keras")
    assert keras.models.load_model("risk.keras").options == model.options | {"samples": 8}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "kernel=3", "--set", "kernel=5"], "kernel: given twice, as 3 and as 5"),
        (["--import", ":X"], "import=':X': expected a class, module:Class"),
    ],
)
@pytest.mark.slow
def test_the_command_line_refuses_settings_that_cannot_be(tmp_path, tsv, arguments, message):
    done = seq2seq("train", tsv("a\tb\n"), *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"") and message in done.stderr.decode(), done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_configuration_keeps_the_options_of_custom_classes_that_are_not_given_anew(modules, covered, training_calls):
    record = json.loads((covered / "config.json").read_text())
    record["options"] |= {"loss": "focal:FocalLoss", "own": {"kernel": 5, "gamma": 1.0}}
    Path("config.json").write_text(json.dumps(record))
    imports = ["--import", "coverage:CoverageDecoder", "--import", "focal:FocalLoss"]
    done = in_process("train", "--config", "config.json", "--set", "gamma=2", "--out", "again", *imports)
    assert done.returncode == 0, done.stderr.decode()
    ((config, *_),) = training_calls
    assert (config.decoder, config.loss) == ("coverage:CoverageDecoder", "focal:FocalLoss")
    assert config.own == {"kernel": 5, "gamma": 2}
    assert _imports_for(config) == imports
    assert _imports_for(config, training=False) == ["--import", "coverage:CoverageDecoder"]


def test_a_layer_of_keras_itself_is_no_encoder(tokenizers):
    with pytest.raises(OptionError, match="encoder=LSTM: put it into a layer of your own"):
        Seq2Seq(*tokenizers, encoder=keras.layers.LSTM(4))
