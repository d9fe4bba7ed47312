"""A SavedModel of a trained model: strings in, strings out, for programs without this library."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf

from pipelines.options import OptionError, one_line
from pipelines.tokens import END
from seq2seq.compilation import exporting
from seq2seq.contract import check_strategy
from seq2seq.records import RunError
from seq2seq.strategies import BeamSearch, Greedy, Strategy


def export(
    model: keras.Model,
    folder: Path,
    beam: BeamSearch | None = None,
    probe: Sequence[str] = (),
    search: Strategy | None = None,
) -> None:
    """Write a SavedModel with tokenizers inside and two signatures, both of strings `texts` `[N]` for any N.

    `greedy`, which is also served by default, returns `texts` `[N]`; `beam` returns `texts`, `scores` and `ranked_by`
    `[N, n]`, the best first, as in `Translations`. A third one, `search`, uses a strategy of your choice. It returns
    the same as `greedy` if its `n_best` is 1, otherwise the same as `beam`; its random numbers for a text depend on the
    text's place. The model needs TensorFlow. It also needs the operations of TensorFlow Text if a tokenizer normalizes
    text or folds case, or splits text into letters or subwords. TensorFlow Serving has them, and Python gets them by
    `import tensorflow_text`.

    Args:
        model: a `Seq2Seq`.
        folder: the folder to make.
        beam: a `BeamSearch`. Default: width 5, or the number of tokens if that is lower, and all hypotheses.
        probe: texts for which the exported model must give the same translations as the model.
        search: the strategy of the signature `search`; None for none.

    Raises:
        RunError: if the encoder or decoder cannot be exported, or translations differ.
    """
    width = min(5, model.target_tokenizer.vocabulary_size - END)
    # The signatures: a strategy, and whether they give scores too.
    strategies: dict[str, tuple[Strategy, bool]] = {
        "greedy": (Greedy(), False),
        "beam": (beam or BeamSearch(width, n_best=width), True),
    }
    if search:
        strategies["search"] = check_strategy(search), search.n_best > 1
    try:
        with exporting():
            _write(model, folder, strategies)
    except (OSError, MemoryError, OptionError, RunError):
        raise
    except (tf.errors.ResourceExhaustedError, tf.errors.PermissionDeniedError) as error:  # of the disk
        raise OSError(error.message) from None
    except Exception as error:  # TensorFlow raises exceptions of any class
        raise cannot_export(model, error) from error
    if probe:
        exported = tf.saved_model.load(str(folder))
        for name, strategy in strategies.items():
            _compare(model, exported.signatures[name], list(probe), *strategy)


def cannot_export(model: keras.Model, error: Exception, form: str = "a SavedModel") -> RunError:
    """The error that this encoder and decoder cannot be exported in this format."""
    parts = f"{type(model.encoder).__name__} and {type(model.decoder).__name__}"
    return RunError(f"{parts} cannot be exported as {form} ({one_line(error)})")


def check_same(probe: Sequence[str], same: Sequence[bool]) -> None:
    """Raise a `RunError` unless all texts of the probe are translated the same."""
    differ = [text for text, is_same in zip(probe, same, strict=True) if not is_same]
    if differ:
        raise RunError(f"the exported model translates {len(differ)} texts differently, such as {differ[0]!r}")


_PYTHON = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}  # operations that call a function of this process


def _write(model, folder, strategies):
    archive = keras.export.ExportArchive()
    for part in (model, model.source_tokenizer, model.target_tokenizer):
        archive.track(part)
    for name, strategy in strategies.items():
        texts = tf.TensorSpec([None], tf.string, "texts")
        endpoint = tf.function(_endpoint(model, *strategy), input_signature=[texts], autograph=False)
        graph = endpoint.get_concrete_function().graph.as_graph_def()
        nodes = itertools.chain(graph.node, *(function.node_def for function in graph.library.function))
        if _PYTHON.intersection(node.op for node in nodes):
            raise RunError(
                "a tokenizer, layer or strategy calls Python (tf.numpy_function, tf.py_function), which no SavedModel "
                "can contain; write it with TensorFlow's operations"
            )
        archive.add_endpoint(name, endpoint)
    archive.write_out(str(folder), verbose=False)


def _endpoint(model, strategy, details):
    def translate(texts):
        texts = tf.concat([texts, [""]], axis=0)  # not every layer takes a batch of nothing
        seeds = tf.range(tf.size(texts, tf.int64))  # as in `translate`
        found, *known = model.translate_batch(texts, strategy, seeds, details=details)
        if not details:
            return {"texts": found[:-1, 0]}
        scores, ranked_by, *_ = known
        return {"texts": found[:-1], "scores": scores[:-1], "ranked_by": ranked_by[:-1]}

    return translate


def _compare(model, signature, probe, strategy, details):
    """Check that a signature of the exported model translates as the model does."""
    found = signature(texts=tf.constant(probe))
    if details:
        right = model.translate(probe, strategy, details=True)
        pairs = zip(_scores(right.texts, right.scores), _scores(found["texts"], found["scores"]), strict=True)
        same = [_alike(one, other) for one, other in pairs]
    else:
        same = [one == other for one, other in zip(model.translate(probe, strategy), found["texts"], strict=True)]
    check_same(probe, same)


def _scores(texts, scores):
    """The scores of the n best `[N, n]` of each source, by their text."""
    return [dict(zip(*row, strict=True)) for row in zip(texts.numpy(), scores.numpy(), strict=True)]


def _alike(one, other):
    """Whether they are the same, in any order, because the last digit of a score breaks ties."""
    # What fills up the n best of a beam that has found fewer texts has the score -inf.
    return one.keys() == other.keys() and all(math.isclose(one[text], other[text], abs_tol=1e-3) for text in one)
