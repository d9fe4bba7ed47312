"""A finished run folder: its model, its training and held-out sets, its pictures, averages and exports."""

import dataclasses
import importlib
import importlib.util
import json
import random
import shlex
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines import CorpusError, OptionError, Tokenizer, check_number, group_by_source, sources_in
from pipelines.files import needs_download, whole_folder
from pipelines.options import one_line
from seq2seq.checkpoints import whole_file, write_json
from seq2seq.config import Config, own_classes
from seq2seq.ensembles import ensemble
from seq2seq.epochs import training_pairs, validation_pairs
from seq2seq.metrics import make_loss, make_metrics
from seq2seq.model import Seq2Seq
from seq2seq.optimizers import make_optimizer
from seq2seq.progress import best_epoch
from seq2seq.records import Record, RunError, check_finished, find_run, finished, read_history, read_record


def load_run(folder: Path | str) -> Seq2Seq:
    """Load the `Seq2Seq` of a run folder. Import the custom classes that it uses first.

    `load_run("phrasebook")` loads the small English-Spanish model that comes with the library, unless there is a folder
    of that name. All functions and commands that read a run accept the name `phrasebook`.

    The model is compiled with a new optimizer of the run's kind and its `learning_rate`. The learning-rate schedule has
    ended and is left out. `teacher_forcing` has the last value of its schedule. `fit` trains the model further. Set
    another rate with `model.optimizer.learning_rate = rate`, or another optimizer with `compile`. If it was trained
    with a custom loss or metric that has not been imported, it is not compiled. The model file holds no optimizer:
    `keras.models.load_model` returns a model that must be compiled before `fit`.

    Raises:
        RunError: if the folder does not exist or is not a run, its model file is damaged, or such a class is missing.
        OptionError: if its `config.json` is missing or damaged.
    """
    folder = find_run(folder)
    if folder.is_file():
        of_run = (folder.parent / "config.json").is_file()
        hint = f"name {folder.parent}" if of_run else "name the run first, then a corpus"
        if folder.suffix == ".keras" and not of_run:
            hint = "keras.models.load_model loads a model without its run"
        raise RunError(f"{folder} is a file, but a run is a folder; {hint}")
    if not folder.is_dir():
        makes = f"`seq2seq train --out {shlex.quote(str(folder))}` makes one"
        raise RunError(f"{folder}: no such run folder; {makes}, and the run `phrasebook` comes with the library")
    if not (folder / "model.keras").is_file():
        why = ""
        if finished(folder) is False:
            why = "; its training has not finished an epoch"
        elif (folder / "vocabulary.json").is_file():
            why = "; it is an export, which only `seq2seq translate` can read"
        elif (folder / "saved_model.pb").is_file():
            why = "; it is a SavedModel, which tf.saved_model.load reads"
        raise RunError(f"{folder}: not a run folder, it holds no model.keras{why}")
    config = dataclasses.replace(read_record(folder).config, schedule="constant", warmup=0)
    model = load_model(folder, "model.keras")
    if all(_imported(name, option) for name, option in own_classes(config).items()):
        compile_model(model, config, steps=1)
    model.teacher_forcing = config.teacher_forcing[-1]
    return model


def load_runs(folders: Sequence[Path | str]) -> Seq2Seq:
    """Load the model of one run folder, or the ensemble of several. Errors are those of `load_run` and `ensemble`."""
    return ensemble([load_run(folder) for folder in folders], folders)


def load_model(folder: Path, name: str) -> Seq2Seq:
    """Load a model file of a run. The file may be untrusted: no code runs that the user has not imported.

    Raises:
        RunError: if the file is damaged, is not a `Seq2Seq`, or names a class that has not been imported.
    """
    path = folder / name
    own = own_classes(read_record(folder).config, training=False)
    check_imported(folder, own)
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise RunError(f"{path}: damaged: the checksum of {damaged} is wrong")
            config = json.loads(archive.read("config.json"))
        model_class = keras.saving.get_registered_object(config["registered_name"])
        if not (model_class and issubclass(model_class, Seq2Seq)):
            raise RunError(f"{path}: a {config['class_name']}, not a Seq2Seq")
        for module, kind, name in _saved_classes(config):
            # Keras loads only its own classes and registered ones, but it has more than models here need.
            if not (keras.saving.get_registered_object(name) or _is_harmless(module, kind, layers=bool(own))):
                raise RunError(f"{path}: uses {module}.{kind}, which is neither part of this library nor imported")
        return keras.models.load_model(path)
    except RunError:
        raise
    except Exception as error:  # Keras raises whatever the zip, JSON or HDF5 reader does
        raise RunError(f"{path}: damaged, or not a model of this version of the library ({one_line(error)})") from error


def check_imported(folder: Path | str, classes: Mapping[str, str]) -> None:
    """Check that code may run which a run names: the run may be untrusted, and would import any module.

    Args:
        folder: the run.
        classes: those to check, as `own_classes` returns them.

    Raises:
        RunError: if one has not been imported, or is no class for its option.
    """
    for name, option in classes.items():
        if not _imported(name, option):
            hint = f"import it first (--import {name})"
            raise RunError(f"{folder}: uses {name} as {option}, which is not part of this library; {hint}")


def _imported(name, option):
    """Whether a class, `module:Class`, has been imported and is one for this option, so that its code may run.

    Only the kind tells the user's classes from those of modules that are always imported, such as `subprocess:Popen`.
    """
    module, _, kind = name.partition(":")
    found = getattr(sys.modules.get(module), kind, None)
    if not (isinstance(found, type) and issubclass(found, _KINDS[option])):
        return False
    return not found.__module__.startswith("keras.") or _is_harmless(module, kind, layers=True)


_KINDS = {
    "source_tokenizer": Tokenizer,
    "target_tokenizer": Tokenizer,
    "encoder": keras.Layer,
    "decoder": keras.Layer,
    "model": Seq2Seq,
    "loss": keras.losses.Loss,
    "metrics": keras.metrics.Metric,
}


def compile_model(model: Seq2Seq, config: Config, steps: int) -> None:
    """Compile a model with a configuration's optimizer for this many steps, its loss and its metrics."""
    model.compile(make_optimizer(config, steps), make_loss(config), metrics=make_metrics(config))


# Of the Keras classes in saved models: those that only hold numbers and schedules, and neither read files nor run code.
_KERAS_MODULES = {f"keras.{name}" for name in ("initializers", "losses", "metrics", "optimizers")}
_KERAS_MODULES |= {"keras.dtype_policies", "keras.optimizers.schedules"}
# These call functions, run other formats' models or read files.
_HARMFUL_LAYERS = {"Lambda", "TFSMLayer", "IntegerLookup", "StringLookup", "TextVectorization"}
_HARMFUL_LAYERS |= {"FlaxLayer", "JaxLayer", "TorchModuleWrapper"}


def _is_harmless(module, kind, layers):
    """Whether a class of Keras, or with `layers` a layer, may be loaded from an untrusted file.

    It must be a class of that module: Keras also follows a path such as "layers.Lambda", and for "function" it takes
    any function of its own, of which some write files.
    """
    if module == "keras.layers":
        allowed = layers and kind not in _HARMFUL_LAYERS
    else:
        allowed = module in _KERAS_MODULES or (module, kind) == ("keras", "DTypePolicy")
    return allowed and isinstance(getattr(importlib.import_module(module), str(kind), None), type)


def _saved_classes(config):
    """The (module, class, registered name) of all objects in a saved configuration; for a function, Keras looks for
    the name in "config" among those registered."""
    if not isinstance(config, dict | list):
        return []
    parts = list(config.values()) if isinstance(config, dict) else config
    found = [found for part in parts for found in _saved_classes(part)]
    if isinstance(config, dict) and "class_name" in config:
        name = config.get("config" if config["class_name"] == "function" else "registered_name")
        found.append((config.get("module"), config["class_name"], name if isinstance(name, str) else None))
    return found


def held_out_pairs(folder: Path | str, model: Seq2Seq) -> tf.data.Dataset:
    """The pairs that a run has held out: a `tf.data.Dataset` of (source, target) strings.

    Args:
        folder: the run folder.
        model: the model in it.

    Raises:
        RunError: if there are none.
        OptionError: if the folder has no `config.json`.
        CorpusError: if the corpus cannot be found, or has changed, so that any of it may have been trained on.
    """
    record = read_record(folder)
    config = record.config
    if not config.validation and not config.validation_fraction:
        raise RunError(f"{folder}: nothing was held out; name a corpus")
    name = "validation" if config.validation else "corpus"
    try:
        found: dict[str, Any] = {name: record.find_corpus(name)}
    except CorpusError as error:
        raise CorpusError(f"{folder}: its held-out set cannot be read again: {error}") from None
    return validation_pairs(dataclasses.replace(config, **found), model.source_tokenizer)


def trained_on(record: Record, pairs: tf.data.Dataset, source_tokenizer: Tokenizer) -> np.ndarray:
    """Find the pairs whose source a run, or a run that it started from, was trained on, with any target.

    Args:
        record: of the run.
        pairs: a `tf.data.Dataset` of N (source, target) scalar strings.
        source_tokenizer: the run's.

    Returns:
        bool `[N]`.

    Raises:
        CorpusError: if its corpus cannot be found, has changed, or would have to be downloaded.
    """
    for each in record.lineage():
        if needs_download(each.config.corpus):
            raise CorpusError("spa-eng is not on this machine; `seq2seq inspect spa-eng` downloads it")
    configs = [dataclasses.replace(each.config, corpus=each.find_corpus()) for each in record.lineage()]
    training_sets = [training_pairs(config, source_tokenizer) for config in configs]
    return np.any([sources_in(pairs, training_set, source_tokenizer) for training_set in training_sets], axis=0)


def sample(pairs: tf.data.Dataset, target_tokenizer: Tokenizer) -> dict[str, list[str]]:
    """Random sources of the first 20,000 pairs, at most 500, with all their references: {source: references}.

    The same pairs always give the same sources, so runs with different seeds are measured on the same ones. References
    are in the form in which the model writes, or `lowercase` would make all of them wrong, and epochs incomparable.
    """
    references = group_by_source(pairs.take(20_000))
    if not references:
        return {}
    sources = random.Random(0).sample(list(references), min(500, len(references)))
    written = iter(target_tokenizer.written_form([text for source in sources for text in references[source]]).numpy())
    texts = {source: [next(written).decode() for _ in references[source]] for source in sources}
    return {source: list(dict.fromkeys(those)) for source, those in texts.items()}


def can_measure() -> bool:
    """Whether the packages that `seq2seq.evaluation` needs are installed."""
    return all(map(importlib.util.find_spec, ("rapidfuzz", "sacrebleu")))


def draw_run(
    folder: Path | str,
    model: Seq2Seq,
    say: Callable[[str], None] = warnings.warn,
    out: Path | str | None = None,
) -> list[Path]:
    """Draw the pictures of a run: `curves.png`; of held-out pairs `error-rates.png`, `attention-1.png`, ...

    The curves are of the history; error rates by length and attention are of a `sample` of the held-out pairs. The
    former need the extra `evaluation`, the latter a model with attention.

    Args:
        folder: the run folder.
        model: the model in it.
        say: a function to call with the reason, as text, if the held-out pairs cannot be read again, so that only the
            curves are drawn; and with the characters that no installed font has.
        out: the folder to draw into, which is made if there is none. Default: the run folder.

    Returns:
        The files, a list of paths.

    Raises:
        OptionError: if the folder has no `config.json`.
        RunError: if its `history.csv` is missing or damaged.
    """
    from seq2seq.pictures import draw_attention, draw_curves, draw_error_rates, without_font

    folder = find_run(folder)
    record, history = read_record(folder), read_history(folder)
    config = record.config
    out = Path(out or folder)
    out.mkdir(parents=True, exist_ok=True)
    drawn = []

    def write(name, draw, *figures, **options):
        drawn.append(out / name)
        with whole_file(drawn[-1]) as path:  # it does not follow links, which an untrusted run may contain
            draw(*figures, path=path, **options)

    marked = config.monitor and "averaged" not in record.content
    write("curves.png", draw_curves, history, best=best_epoch(history, config.monitor) if marked else None)
    held_out: dict[str, list[str]] = {}
    if config.validation or config.validation_fraction:
        try:
            held_out = sample(held_out_pairs(folder, model), model.target_tokenizer)
        except CorpusError as error:
            say(f"{error}; only the curves are drawn")
    if not held_out:
        return drawn
    texts = model.translate(list(held_out), as_text=True)
    if can_measure():
        from seq2seq.scores import scores_by_length

        found = scores_by_length(list(held_out), texts, list(held_out.values()))
        write("error-rates.png", draw_error_rates, found)
    if model.has_attention:
        alignments = model.attention(list(held_out)[:4], texts[:4])
        for number, alignment in enumerate(alignments, start=1):
            write(f"attention-{number}.png", draw_attention, alignment)
        if boxes := sorted({character for alignment in alignments for character in without_font(alignment)}):
            some = " ".join(boxes[:5])
            say(f"no installed font has {some}, so attention pictures show boxes; Noto Sans has most scripts")
    return drawn


def kept_epochs(folder: Path | str) -> dict[int, Path]:
    """The models of single epochs in a run folder, {number: file}, the earliest first."""
    paths = [path for path in Path(folder).glob("epochs/epoch-*.keras") if path.stem[6:].isdecimal()]
    return dict(sorted((int(path.stem[6:]), path) for path in paths))


def average(folder: Path | str, out: Path | str, last: int | None = None) -> Seq2Seq:
    """Make a new run whose weights are the mean of those after the last kept epochs of a run.

    Vaswani et al. 2017 (arxiv.org/abs/1706.03762, section 6.1) do this with the last 5 checkpoints. The run must have
    been trained with `Config.keep_epochs`. The new one counts as trained on the same corpus, with the same held-out
    pairs.

    Args:
        folder: the run folder.
        out: the run folder to make, in whose `config.json` "averaged" names the run and its epochs.
        last: how many epochs to average. Default: all that are kept.

    Returns:
        The `Seq2Seq` in it.

    Raises:
        OptionError: if fewer epochs are kept, or there is no such run.
        RunError: if its training has not ended, or `out` is not empty.
    """
    folder, out = find_run(folder), Path(out)
    check_number("last", last, least=1, optional=True)
    record = read_record(folder).content
    check_finished(folder)
    kept = kept_epochs(folder)
    if len(kept) < (last or 1):
        raise OptionError(
            f"{f'last={last}: ' if last else ''}{folder} has kept the models of {len(kept)} epochs; train with "
            f"--keep-epochs {last or 5}"
        )
    epochs = list(kept)[-(last or len(kept)) :]
    with whole_folder(out, RunError) as aside:
        aside.mkdir()
        totals: list[Any] = []
        for epoch in epochs:
            model = load_model(folder, f"epochs/{kept[epoch].name}")
            weights = [np.array(weight, np.float64) for weight in model.trainable_variables]
            totals = [total + weight for total, weight in zip(totals, weights, strict=True)] if totals else weights
        # Variables that are not trained keep the values of the last epoch.
        for weight, total in zip(model.trainable_variables, totals, strict=True):
            weight.assign(total / len(epochs))
        for name in ("history.csv", "survey.json"):
            shutil.copy(folder / name, aside)
        sources = list(probe(folder))
        write_json(aside / "probe.json", dict(zip(sources, model.translate(sources, as_text=True), strict=True)))
        write_json(aside / "config.json", record | {"averaged": {"run": str(folder.resolve()), "epochs": epochs}})
        model.save(aside / "model.keras")
    return load_run(out)


def export_runs(folders: Sequence[Path | str], out: Path | str, format: str = "tf_saved_model", **options: Any) -> None:
    """Export the model of a run, or the ensemble of several, as `Seq2Seq.export` does.

    It checks that each model translates as it did after training: at least four texts of five, because another device
    rounds differently. The exported model must translate all texts as the original.

    Raises:
        RunError: if one of them does not, its training has not ended, or there is no such run.
        OptionError: as `ensemble`.
    """
    models, kept = [], {}
    for folder in folders:
        check_finished(folder)
        model, kept = load_run(folder), probe(folder)
        now = dict(zip(kept, model.translate(list(kept), as_text=True), strict=True))
        changed = [source for source in kept if now[source] != kept[source]]
        if 5 * len(changed) > len(kept):
            change = f"{changed[0]!r} was {kept[changed[0]]!r} after training, and is now {now[changed[0]]!r}"
            raise RunError(f"{folder}: the saved model is not the trained one; the translation of {change}")
        models.append(model)
    ensemble(models, folders).export(out, format, probe=list(kept), **options)


def probe(folder: Path | str) -> dict[str, str]:
    """A few sources of a run, held out if possible, and how its model translated them after training.

    Raises:
        RunError: if the folder does not hold them.
    """
    path = find_run(folder) / "probe.json"
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: no translations to compare with ({one_line(error)})") from None
