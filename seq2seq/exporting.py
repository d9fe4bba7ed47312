"""A SavedModel of a trained model: strings in, strings out, for programs without this library."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from seq2seq.checkpoints import RunError
from seq2seq.contract import one_line
from seq2seq.decoding import BeamSearch, Greedy

if TYPE_CHECKING:
    from seq2seq.model import Seq2Seq  # which imports this module

_BEAM = BeamSearch(n_best=5)


def export(model: "Seq2Seq", folder: Path | str, beam: BeamSearch = _BEAM, probe: Sequence[str] = ()) -> None:
    """Writes a SavedModel with tokenizers inside and two signatures, both of strings `texts` `[N]` for any N.

    `greedy`, which is also the one served by default, gives `texts` `[N]`; `beam` gives `texts`, `scores` and
    `ranked_by` `[N, n]`, the best first, as in `Translations`. It needs TensorFlow and, unless tokenizers are
    characters or bytes as they are (`normal_form=None`), the operations of TensorFlow Text, which TensorFlow Serving
    has and Python gets by `import tensorflow_text`.

    Args:
        model: a `Seq2Seq`.
        folder: where to write it; there must be nothing yet.
        beam: a `BeamSearch`.
        probe: texts that what was written must translate as the model does.

    Raises:
        RunError: if the folder exists, the encoder or decoder cannot be exported, or translations differ.
    """
    folder = Path(folder)
    if folder.exists():
        raise RunError(f"{folder} is there already; choose another folder")
    aside = folder.with_name(f"aside-{folder.name}")
    compiles, model.compiles_decoding = model.compiles_decoding, False  # what is exported runs on any device
    try:
        archive = keras.export.ExportArchive()
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)  # nobody trains what was exported
        for part in (model, model.source_tokenizer, model.target_tokenizer):
            archive.track(part)
        try:
            for name, strategy in (("greedy", Greedy()), ("beam", beam)):
                texts = tf.TensorSpec([None], tf.string, "texts")
                archive.add_endpoint(name, _endpoint(model, strategy), input_signature=[texts])
            archive.write_out(str(aside), options, verbose=False)
        except Exception as error:  # TensorFlow raises whatever it stumbles over
            parts = f"{type(model.encoder).__name__} and {type(model.decoder).__name__}"
            raise RunError(f"{folder}: {parts} cannot be exported ({one_line(error)})") from error
        if probe:
            _compare(model, tf.saved_model.load(str(aside)), list(probe), beam, folder)
        os.replace(aside, folder)
    finally:
        model.compiles_decoding = compiles
        shutil.rmtree(aside, ignore_errors=True)


def _endpoint(model, strategy):
    n_best = isinstance(strategy, BeamSearch)

    def translate(texts):
        texts = tf.concat([texts, [""]], axis=0)  # not every layer takes a batch of nothing
        found, *known = model.translate_batch(texts, strategy, details=n_best)
        if not n_best:
            return {"texts": found[:-1, 0]}
        scores, ranked_by, *_ = known
        return {"texts": found[:-1], "scores": scores[:-1], "ranked_by": ranked_by[:-1]}

    return translate


def _compare(model, exported, probe, beam, folder):
    """Sees that what was exported translates as the model does."""
    texts = tf.constant(probe)
    right, found = model.translate(texts).numpy(), exported.greedy(texts)["texts"].numpy()
    differ = [text for text, one, other in zip(probe, right, found, strict=True) if one != other]
    right, found = model.translate(texts, beam, details=True), exported.beam(texts)
    right, found = _scores(right.texts, right.scores), _scores(found["texts"], found["scores"])
    differ += [text for text, one, other in zip(probe, right, found, strict=True) if not _alike(one, other)]
    if differ:
        raise RunError(f"{folder}: what was exported translates {len(differ)} texts otherwise, as {differ[0]!r}")


def _scores(texts, scores):
    """Those of the n best `[N, n]` of each source, by their text."""
    return [dict(zip(*row, strict=True)) for row in zip(texts.numpy(), scores.numpy(), strict=True)]


def _alike(one, other):
    """Whether they are the same, in whatever order: the last digit of a score decides between equals."""
    return one.keys() == other.keys() and all(abs(score - other[text]) < 1e-3 for text, score in one.items())
