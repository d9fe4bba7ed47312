"""The modules in `examples/` do what their first lines say: these commands are run, with shorter training."""

import ast
import collections
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from command_line import python, seq2seq
from test_decoding import search, texts, wandering

from pipelines import load_class
from seq2seq import Greedy, Sampling
from seq2seq.records import SHIPPED, read_record

# The shares that each example must print, in percent: at least and at most.
LEARNED: dict[str, dict[str, tuple[float, float]]] = {
    "classroom": {"reversing": (90, 100), "adding": (70, 100)},
    "letters_to_phones": {"words that were held out have a wrong phone": (0, 10)},
    "my_transformer": {"held-out numbers right": (60, 100)},
    "streaming": {"held-out days right": (95, 100)},
    "word_forms": {"forms of real nouns right": (80, 100)},
}
# What the programs are changed to, to be quick.
SHORTER = {
    "classroom": {"epochs=10": "epochs=6", "epochs=15": "epochs=5"},
    "my_transformer": {"epochs=15": "epochs=6"},
    "streaming": {"steps=240": "steps=150"},
    "word_forms": {'"updates": 800': '"updates": 400'},
}
# Options that make the commands train faster.
SMALLER = dict.fromkeys(
    ("bayes_risk", "coverage", "diverse", "features", "focal", "minimum_risk"), ("--cell", "gru", "--no-bidirectional")
)
SMALLER["sinusoidal"] = ("--layers", "1")
for name in ("coverage", "sinusoidal"):  # whose layers must have the precision that is asked for
    SMALLER[name] += ("--precision", "bfloat16")
EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
EXAMPLES = [path for path in EXAMPLES if path.stem != "tutorial"]  # a notebook: see test_notebook.py


def commands(path):
    """The command lines in a module's docstring, as lists of words."""
    lines = [line.strip() for line in ast.get_docstring(ast.parse(path.read_text())).splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(("seq2seq ", "python "))]


@pytest.fixture(scope="module")
def kept():
    """{the arguments of `train`: its run folder}, for examples that begin by training the same model."""
    return {}


def train(arguments, path, kept, folder):
    """Train as an example's command says, or copy the run of an earlier example with the same command."""
    if "--from" not in arguments:  # which keeps the architecture
        arguments = [*arguments, *SMALLER.get(path.stem, ())]
    run = folder / arguments[arguments.index("--out") + 1]
    if before := kept.get(tuple(arguments)):
        shutil.copytree(before, run)
        return subprocess.CompletedProcess(arguments, 0, f"{run}\n".encode(), b"")
    kept[tuple(arguments)] = run
    return seq2seq(*arguments, cwd=folder)


TRAINED_ALIKE = pytest.mark.xdist_group("bayes_risk-diverse")  # one process trains for both


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=TRAINED_ALIKE if path.stem in ("bayes_risk", "diverse") else ()) for path in EXAMPLES],
    ids=lambda path: path.stem,
)
def test_the_commands_of_an_example_do_what_it_says(path, kept, tmp_path):
    text = path.read_text()
    for written, shorter in SHORTER.get(path.stem, {}).items():
        assert text.count(written) == 1
        text = text.replace(written, shorter)
    (tmp_path / path.name).write_text(text)
    (tmp_path / "verbs.tsv").write_text(
        "lemma\tfeatures\tform\n" + 20 * "walk\tTense=Past|Person=1\twalked\ngo\t_\tgo\n"
    )
    (tmp_path / "pairs.tsv").write_text("".join(f"{a}{b}\t{b}{a}\n" for a in "abcdefg" for b in "abcdefg"))
    shipped = sorted(file.name for file in SHIPPED["phrasebook"].iterdir())
    assert commands(path)
    for program, *arguments in commands(path):
        if program == "python" and path.stem == "serving":  # on a machine without this library
            for name in ("pipelines", "seq2seq"):
                (tmp_path / f"{name}.py").write_text("raise ImportError")
            done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True)
        elif program == "python":
            done = python(*arguments, cwd=tmp_path)
        elif arguments[0] == "train":
            done = train(arguments, path, kept, tmp_path)
        else:
            done = seq2seq(*arguments, cwd=tmp_path)
        assert done.returncode == 0, (arguments, done.stderr.decode())
    assert done.stdout
    assert sorted(file.name for file in SHIPPED["phrasebook"].iterdir()) == shipped  # also after its export
    for said, (least, most) in LEARNED.get(path.stem, {}).items():
        (figure,) = re.findall(rf"{said}: ([\d.]+)%|([\d.]+)% of \d+ {said}", done.stdout.decode())
        assert least <= float("".join(figure)) <= most
    if path.stem == "coverage":
        assert read_record(tmp_path / "runs" / "coverage").options["own"] == {"kernel": 5}
    if path.stem == "from_scratch":
        texts_or_number = r"->  (.*)   \(the library: (.*)\)|= (\S+), by the library (\S+)"
        same = [tuple(filter(None, found)) for found in re.findall(texts_or_number, done.stdout.decode())]
        assert len(same) == 4 and all(ours == by_library for ours, by_library in same)


def test_the_readme_of_the_examples_lists_them_all():
    folder = EXAMPLES[0].parent
    listed = re.findall(r"\]\((\w+\.\w+)\)", (folder / "README.md").read_text())
    assert set(listed) == {path.name for path in folder.iterdir() if path.suffix in (".py", ".ipynb")}


@pytest.fixture
def example(monkeypatch):
    """A function that imports a class of an example."""
    monkeypatch.syspath_prepend(EXAMPLES[0].parent)
    return lambda name: load_class("example", name)


def test_the_groups_of_a_diverse_beam_differ_and_the_first_is_greedy(example):
    diverse = example("diverse:DiverseBeam")
    step, state = wandering(20, sources=30)
    found, alike = (texts(search(diverse(3, price), step, state, [12] * 30)) for price in (9.0, 0.0))
    greedy = texts(search(Greedy(), step, state, [12] * 30))
    assert [source[:1] for source in found] == greedy
    assert alike == [source * 3 for source in greedy]
    # So high a penalty that no two groups choose the same token at the same step.
    for source in found:
        assert all(len(set(tokens)) == 3 for tokens in zip(*source, strict=False))


def test_a_group_pays_for_what_each_group_before_it_has_chosen(example):
    logits = np.log([[0.1] * 4 + [0.4, 0.12, 0.08]])  # of which the reserved ones, but END, are not emitted
    step = lambda tokens, state: (tf.repeat(tf.constant(logits, tf.float32), len(tokens), axis=0), state)  # noqa: E731
    for penalty, expected in ((1.0, [4, 4, 5]), (1.3, [4, 5, 4]), (0.6, [4, 4, 4])):
        found = search(example("diverse:DiverseBeam")(3, penalty), step, (), [1])
        assert found.ids[0, :, 0].numpy().tolist() == expected


def test_the_sample_of_least_bayes_risk_is_the_one_most_like_all(example):
    step, state = wandering(21, sources=40)
    strategy = example("bayes_risk:BayesRisk")(samples=6, temperature=1.5)
    found, samples = (search(kind, step, state, [9] * 40) for kind in (strategy, Sampling(1.5, n_best=6)))

    def f1(one, other):
        common = (collections.Counter(one) & collections.Counter(other)).total()
        return 2 * common / (len(one) + len(other))

    chosen = []
    for (best,), drawn in zip(texts(found), texts(samples), strict=True):
        utilities = [np.mean([f1(one, other) for other in drawn]) for one in drawn]
        assert utilities[drawn.index(best)] == pytest.approx(max(utilities))
        chosen.append(drawn.index(best))
    assert len(set(chosen)) > 3


@pytest.mark.slow
def test_the_exported_search_gives_what_translate_gives(example, model, tmp_path):
    words, strategy = ["sol", "mar", "", "gatonube"], example("bayes_risk:BayesRisk")(samples=4)
    model.export(tmp_path / "exported", search=strategy)
    exported = tf.saved_model.load(tmp_path / "exported").signatures["search"](texts=tf.constant(words))
    assert set(exported) == {"texts"} and exported["texts"].shape == (4,)
    np.testing.assert_array_equal(exported["texts"], model.translate(words, strategy))


@pytest.mark.parametrize(("word", "phones"), [("méxico", "m e x i k o"), ("taxi", "t a k s i"), ("queso", "k e s o")])
def test_letters_have_the_phones_of_their_places(word, phones, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES[0].parent)
    assert importlib.import_module("letters_to_phones").phones(word) == phones
