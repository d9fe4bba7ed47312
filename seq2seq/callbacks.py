"""The Keras callbacks for training: average weights, score translations, watch for divergence, save the run."""

import collections
import contextlib
import csv
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipelines import OptionError
from pipelines.lines import as_line
from seq2seq.checkpoints import whole_file, write_json
from seq2seq.compilation import on_gpu
from seq2seq.distribution import WorkerLostError, is_chief, several_workers, sums_of_workers
from seq2seq.epochs import training_batches
from seq2seq.layers import token_ids
from seq2seq.process import clocks, device_name, peak_memory, stop_for
from seq2seq.progress import TrainingRun
from seq2seq.runs import kept_epochs


class DivergedError(RuntimeError):
    """A batch had no finite gradient, or the weights are not finite. The message names the step and a file with the
    batch."""


class AverageWeights(keras.callbacks.Callback):
    """A callback that replaces the weights by their average over the last `count` epochs, while an epoch is measured
    and saved."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.latest: collections.deque[list[np.ndarray]] = collections.deque(maxlen=count)
        self.swapped = False

    def arrays(self) -> list[np.ndarray]:
        """The weights after those epochs, in one list, for a checkpoint."""
        return list(itertools.chain(*self.latest))

    def restore(self, arrays: Any) -> None:
        """Restore the weights from such a list."""
        count = len(self.model.trainable_variables) if arrays else 1
        self.latest.extend(arrays[start : start + count] for start in range(0, len(arrays), count))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.swapped:
            self._assign(self.latest[-1])
            self.swapped = False

    def on_test_begin(self, logs: Any = None) -> None:
        self._swap_in()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._swap_in()  # Keras does not call `on_test_begin` in an epoch that is not measured

    def _swap_in(self):
        if not self.swapped:
            self.latest.append([weight.numpy() for weight in self.model.trainable_variables])
            self._assign([np.mean(weights, axis=0) for weights in zip(*self.latest, strict=True)])
            self.swapped = True

    def _assign(self, weights):
        for variable, weight in zip(self.model.trainable_variables, weights, strict=True):
            variable.assign(weight)


class ScoreTranslations(keras.callbacks.Callback):
    """A callback that adds the scores of translations of held-out sources to the metrics of each measured epoch."""

    def __init__(self, held_out: Any, run: TrainingRun) -> None:
        super().__init__()
        self.sources, self.references, self.run = list(held_out), list(held_out.values()), run

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        from seq2seq.scores import corpus_scores

        if not self.run.measures(epoch + 1):
            return
        scores = corpus_scores(self.model.translate(self.sources, as_text=True), self.references)
        # All workers use the scores of the first one, so that all make the same decisions.
        chief = is_chief(self.run.strategy)
        decided = sums_of_workers(self.run.strategy, [score if chief else 0.0 for score in scores.values()])
        for name, score in zip(scores, decided, strict=True):
            logs[f"val_{name.lower().replace(' ', '_')}"] = score


class SayEpochs(keras.callbacks.Callback):
    """A callback that says the figures of each epoch and, if it was measured, translations of held-out sources."""

    def __init__(self, held_out: Any, run: TrainingRun, say: Any) -> None:
        super().__init__()
        self.examples = [(source, targets[0]) for source, targets in itertools.islice(held_out.items(), 3)]
        self.run, self.say = run, say

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.started = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        line = f"Epoch {epoch + 1}/{self.run.epochs}  {_figures(logs)}"
        if "val_loss" in logs:
            line += f"  |  held out: {_figures(logs, 'val_')}"
        self.say(f"{line}  |  {time.monotonic() - self.started:.1f} s")
        if "val_loss" not in logs:
            return  # this epoch was not measured
        translations = self.model.translate([source for source, _ in self.examples], as_text=True)
        for (source, target), translation in zip(self.examples, translations, strict=True):
            line = "    {}  ->  {}   ({})".format(*map(_beginning, (source, translation, target)))
            self.say(as_line(line.encode()).decode())  # even if texts contain line breaks


def _beginning(text):
    text = text if text.strip() else text.replace(" ", "␣")
    return text if len(text) <= 200 else f"{text[:200]}..."


def _figures(logs, side=""):
    forms = {
        "loss": "loss {:.3f}",
        "accuracy": "accuracy {:.1%}",
        "chrf": "chrF {:.1f}",
        "exact_match": "exact match {:.1f}%",
    }
    return "  ".join(form.format(logs[side + name]) for name, form in forms.items() if side + name in logs)


class WatchSteps(keras.callbacks.Callback):
    """A callback that counts the steps and pairs of a run, and finds batches without a finite gradient.

    A step is noted when the next one begins, and the last step of an epoch when the epoch ends. The notes are tensors
    on the device, which `look` reads from time to time.
    """

    def __init__(self, run: TrainingRun, say: Any) -> None:
        super().__init__()
        self.run, self.say = run, say
        self.looked = time.monotonic()
        self.pending: list[list[tf.Tensor]] = []  # the results of the steps since the last look
        self.norm: float | None = None  # of the last gradient that was finite
        self.skipped = 0  # steps of the epoch that a `LossScaleOptimizer` has not taken
        self.running = False  # whether a step has begun that has not been noted

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Note the previous step. Before an `on_train_batch_end`, Keras (3.15) converts metrics to numbers, and so
        would wait for the device in each step."""
        if batch:
            self._note_step()
        else:
            self.counted = int(self.model.length_ratios.numpy()[0])  # the pairs that the model has been trained on
        self.running = True

    def on_test_begin(self, logs: Any = None) -> None:
        self._end_steps()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._end_steps()  # Keras does not call `on_test_begin` in an epoch that is not measured
        if self.skipped:
            steps = f"{self.skipped:,} of {self.run.steps:,} steps"
            self.say(f"epoch {epoch + 1}: {steps} skipped, because their gradients were not finite")
            self.skipped = 0

    def _end_steps(self):
        """Note the last step of an epoch, which may be an early one if a callback has stopped training."""
        if self.running:
            self._note_step()
            self.running = False
        self.look()

    def _note_step(self):
        """Keep the results of a step without waiting for them, and check them from time to time."""
        self._check_train_step()
        model = self.model
        kept = [model.gradient_norm, model.length_ratios]
        if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
            kept.append(model.optimizer.dynamic_scale)
        self.pending.append([tf.convert_to_tensor(variable) for variable in kept])
        # Several workers wait for each other in each step anyway, and must find divergence together.
        if several_workers(self.run.strategy) or time.monotonic() >= self.looked + _seconds_between_looks():
            self.look()

    def _check_train_step(self):
        """Refuse a `train_step` of the user's own that does without what the options or the error messages promise."""
        model, lost = self.model, {"update_weights": "a gradient that is not finite would not be noticed"}
        if model.teacher_forcing != 1.0:
            lost["scheduled_sampling"] = "the option teacher_forcing would have no effect"
        for name in sorted(lost.keys() - model.called):
            raise OptionError(f"model={type(model).__name__}: its `train_step` does not call `{name}`, so {lost[name]}")

    def look(self) -> None:
        """Check the results of the steps since the last check.

        Raises:
            DivergedError: if a gradient is not finite, unless such batches are to be skipped.
        """
        for norm, ratios, *scale in self.pending:
            if math.isfinite(norm):
                self.norm = float(norm)
            elif not scale or scale[0] < 1:
                self._diverged(float(norm))
            else:  # a scaled loss was too large for float16; the optimizer has lowered its scale for the next batch
                self.skipped += 1
            self.run.seen += int(ratios[0]) - self.counted
            self.counted = int(ratios[0])
            self.run.step += 1
        self.pending.clear()
        self.looked = time.monotonic()

    def _diverged(self, norm):
        """Write a batch without a finite gradient to a file; the model has not been trained on it."""
        run = self.run
        path = run.folder / "diverged.tsv"
        if is_chief(run.strategy):
            tokenizers = self.model.source_tokenizer, self.model.target_tokenizer
            texts = [
                [as_line(text, len(tokenizer.column_names)) for text in tokenizer.detokenize(token_ids(side)).numpy()]
                for tokenizer, side in zip(tokenizers, self._next_batch(), strict=True)
            ]
            with whole_file(path) as aside:
                aside.write_bytes(b"".join(b"%b\t%b\n" % pair for pair in zip(*texts, strict=True)))
        before = "" if self.norm is None else f"; the last finite one was {self.norm:.3g}"
        said = f"epoch {len(run.history) + 1}, step {run.step + 1:,}: the gradient norm is {norm}{before}"
        said += f". The batch is in {path}"
        broken = not all(tf.reduce_all(tf.math.is_finite(weight)) for weight in self.model.trainable_variables)
        if run.config.on_divergence == "stop" or broken:
            kept = f"the model of epoch {run.kept()}" if run.history else "no model, because this was the first epoch"
            hint = "A smaller --learning-rate or --clip-norm may help"
            why = "; weights are not finite either, so nothing more can be learned" if broken else ""
            raise DivergedError(f"{said}{why}. The run folder holds {kept}. {hint}")
        self.say(f"{said}; it was skipped")

    def _next_batch(self):
        """The first batch that has not been counted."""
        return next(iter(training_batches(self.run, self.run.seen)))

    def out_of_memory(self) -> str:
        """The message for a batch that does not fit into memory."""
        self.look()
        run, config = self.run, self.run.config
        if config.batch_tokens:
            less = f"--batch-tokens ({config.batch_tokens})"
        else:
            less = f"--batch-size ({config.batch_size}), or set --batch-tokens, so that fewer long texts are in a batch"
        less = f"Lower {less}, or leave out long texts with --max-length ({config.max_length})"
        where = f"epoch {len(run.history) + 1}"
        if run.step and not self.running:
            return f"{where}: out of memory while the held-out set was measured. {less}"
        (rows, source), (_, target) = (side.shape[:2] for side in self._next_batch())
        return (
            f"{where}, step {run.step + 1:,}: out of memory for a batch of {rows} pairs of up to {source} source and "
            f"{target - 1} target tokens. {less}"
        )


class SaveRun(keras.callbacks.Callback):
    """A callback that writes the run folder after measured epochs, and checkpoints to resume from then and in between.

    In the list of callbacks, `average` and `watch` must come first. The translations of `probe`, a few texts, are saved
    to check later that a loaded or exported model is the same.
    """

    def __init__(self, run: TrainingRun, average: Any, watch: Any, probe: Any, say: Any) -> None:
        super().__init__()
        self.run, self.average, self.watch, self.probe, self.say = run, average, watch, probe, say
        self.chief = is_chief(run.strategy)  # the only process that writes
        self.signal: list[int] = []  # the number of a received signal
        self.saved = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.run.state is not None:  # and not earlier, as Keras resets metrics before an epoch
            variables = self._variables()
            for variable, value in zip(variables, self.run.state):  # noqa: B905 (averages follow)
                variable.assign(value)
            self.average.restore(self.run.state[len(variables) :])
            self.run.state = None
        self._halve_on_plateau()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        due = self.chief and time.monotonic() >= self.saved + 60 * self.run.config.checkpoint_minutes
        stop, due = map(bool, sums_of_workers(self.run.strategy, [len(self.signal) > 0, due]))
        if stop or due:
            self._checkpoint()
        if stop:
            self._wait()
            if not self.signal:
                raise WorkerLostError("another worker was told to stop; start all workers again to resume")
            stop_for(self.signal)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        run = self.run
        exact = tf.convert_to_tensor(self.model.optimizer.learning_rate)
        rate = float(str(np.float32(exact)))  # 0.1 and not 0.10000000149
        run.history.append({"epoch": epoch + 1, **logs, "learning_rate": rate})
        run.step = 0
        if run.measures(epoch + 1):
            self.write()

    def _halve_on_plateau(self):
        """Halve the learning rate if two measured epochs have passed since the best one and since the last change."""
        run = self.run
        if run.config.schedule == "plateau" and run.history and run.measures(len(run.history)):
            neighbours = itertools.pairwise(run.history)
            changes = [row["epoch"] for row, after in neighbours if row["learning_rate"] != after["learning_rate"]]
            if run.measured_after(max([run.kept(), *changes])) >= 2:
                self.model.optimizer.learning_rate = run.history[-1]["learning_rate"] / 2

    def write(self) -> None:
        """Write the run folder after the last epoch of the history."""
        if self.chief:
            self._write_models(self.run.kept() == len(self.run.history))
            self._write_history()
            self.saved = -math.inf  # so that the next step begins with a checkpoint of the same history

    def on_train_end(self, logs: Any = None) -> None:
        self._wait()

    def _write_models(self, best):
        """Write the model of the epoch, if it is the best so far, and those of the last epochs."""
        folder, epoch, count = self.run.folder, len(self.run.history), self.run.config.keep_epochs
        paths = [folder / "model.keras"] if best else []
        if count:
            paths.append(folder / f"epochs/epoch-{epoch:04}.keras")
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            with whole_file(path) as aside, _uncompiled(self.model):
                self.model.save(aside)
        kept = kept_epochs(folder)  # later ones are from before resuming
        wanted = [number for number in kept if number <= epoch][-count:] if count else []
        for number in kept.keys() - set(wanted):
            kept[number].unlink()
        with contextlib.suppress(OSError):
            (folder / "epochs").rmdir()  # if it is empty
        if best:
            translations = self.model.translate(self.probe, as_text=True)
            write_json(folder / "probe.json", dict(zip(self.probe, translations, strict=True)))

    def _write_history(self):
        """Write `history.csv`."""
        run = self.run
        with whole_file(run.folder / "history.csv") as path, path.open("w", newline="") as file:
            # Not only the first row's names: a package for metrics may have been installed since then.
            writer = csv.DictWriter(file, dict.fromkeys(itertools.chain(*run.history)))
            writer.writeheader()
            writer.writerows(run.history)

    def _variables(self):
        """All variables that training changes."""
        return [*self.model.variables, *self.model.optimizer.variables, *self.model.metrics_variables]

    def _checkpoint(self):
        self.watch.look()
        self._wait()
        run = self.run
        arrays = [np.array(tf.convert_to_tensor(variable)) for variable in self._variables()]
        done = len(run.history) * run.steps + run.step
        facts = {"history": list(run.history), "step": run.step, "seen": run.seen}
        facts |= {"clocks": (clocks() + run.clocks).tolist(), "peak": max(run.peak, peak_memory())}
        if self.chief:
            run.checkpoints.save(done, arrays + self.average.arrays(), facts)
        self.saved = time.monotonic()

    def _wait(self):
        """Wait until the last checkpoint is written, and report if that failed."""
        if error := self.run.checkpoints.wait():
            self.say(f"A checkpoint could not be saved ({error}); those saved before are still there")


def resources(run: TrainingRun) -> dict[str, Any]:
    """The resources that training has used so far, including those before it was resumed."""
    seconds, processor_seconds = (clocks() + run.clocks).round(1).tolist()
    taken = {
        "parameters": run.model.count_params(),
        "updates": int(run.model.optimizer.iterations.numpy()),
        "epochs": len(run.history),
        "pairs": run.seen,
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "peak_memory_mb": max(run.peak, peak_memory()),
    }
    if gpus := tf.config.list_logical_devices("GPU"):
        peaks = [tf.config.experimental.get_memory_info(gpu.name.removeprefix("/device:"))["peak"] for gpu in gpus]
        taken["peak_gpu_memory_mb"] = max(peaks) // 2**20
    replicas = run.model.distribute_strategy.num_replicas_in_sync
    return taken | {"device": f"{replicas} x " * (replicas > 1) + device_name()}


class EndFit(keras.callbacks.Callback):
    """A callback that ends `fit` when training has ended, and after the rest of an epoch that was begun before
    resuming, because the epochs that follow have more steps. It must be the last of the callbacks.

    If another callback ends training in an epoch that is not to be measured, `measure` measures and saves it.
    """

    def __init__(self, run: TrainingRun, measure: Callable[[], None]) -> None:
        super().__init__()
        self.run, self.measure = run, measure
        self.asked = False  # whether another callback has stopped training

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.asked = self.model.stop_training and not self.run.stopped()
        if self.asked and not self.run.measures(epoch + 1):
            self.measure()
        self.model.stop_training = self.asked or self.run.stopped() or self.params["steps"] < self.run.steps


@contextlib.contextmanager
def _uncompiled(model):
    """A context in which a model has no optimizer, so that it is saved without one. The optimizer is twice as large as
    the model. Checkpoints have it for resuming; for further training it would be useless, because its learning rate
    schedule has ended."""
    optimizer, model.optimizer, model.compiled = model.optimizer, None, False
    try:
        yield
    finally:
        model.optimizer, model.compiled = optimizer, True


def _seconds_between_looks():
    """How often to check the results of steps: always on a CPU, but rarely on a GPU, where each check has to wait."""
    return 1.0 if on_gpu() else 0.0
