"""Training on several devices or machines at once, in step: what it takes beside `tf.distribute` itself.

Every replica of the model holds all weights and is given the whole of each batch, of which it learns its own rows; the
gradients are summed before any of them acts. So the weights are those that one device would have come to.
"""

import contextlib
import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.data.ops import multi_device_iterator_ops as device_iterators

from pipelines import OptionError, choose
from pipelines.corpora import WITHOUT_AUTOTUNE
from seq2seq.contract import one_line
from seq2seq.recurrence import is_compiling


class WorkerLostError(RuntimeError):
    """Another worker of a training on several machines has stopped. All have to be started again."""


def open_strategy(name: str) -> tf.distribute.Strategy | None:
    """The strategy of a name. For several machines it must be made before TensorFlow computes anything.

    Args:
        name: "none"; "mirrored", for all GPUs of this machine; or "multiworker", for the machines, with all their
            GPUs, that the environment variable `TF_CONFIG` lists. The one this runs on then waits for all others.

    Raises:
        OptionError: if it is none of these, or `TF_CONFIG` does not say which machines there are.
    """
    if choose("strategy", name, ("none", "mirrored", "multiworker")) == "none":
        return None
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    try:
        found = json.loads(os.environ.get("TF_CONFIG", ""))
        workers, task = found["cluster"]["worker"], found["task"]
        if set(found["cluster"]) != {"worker"} or task["type"] != "worker" or task["index"] not in range(len(workers)):
            raise ValueError("there must be workers, this one of them, and nothing else")
    except (ValueError, LookupError, TypeError) as error:
        raise OptionError(
            "strategy='multiworker': TF_CONFIG must be like "
            '{"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}} '
            f"({one_line(error)})"
        ) from None
    return tf.distribute.MultiWorkerMirroredStrategy()


def several_workers(strategy: tf.distribute.Strategy | None) -> bool:
    """Whether other processes take part."""
    return (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and strategy.cluster_resolver.cluster_spec().num_tasks("worker") > 1
    )


def is_chief(strategy: tf.distribute.Strategy | None) -> bool:
    """Whether this is the process that writes: the first worker, or the only process."""
    return strategy is None or not several_workers(strategy) or strategy.cluster_resolver.task_id == 0


def sums_of_workers(strategy: tf.distribute.Strategy | None, numbers: Sequence[float]) -> list[float]:
    """The sums of numbers that each worker has. All must ask, and wait for each other here."""
    if strategy is None or not several_workers(strategy):
        return list(numbers)

    sums = _adding(strategy)(tf.constant([*numbers, 0.0], tf.float64))
    return strategy.experimental_local_results(sums)[0].numpy().tolist()[:-1]


@functools.cache
def _adding(strategy):
    """A function that adds up tensors of workers, on each of which all devices have the same."""
    devices = strategy.num_replicas_in_sync // strategy.cluster_resolver.cluster_spec().num_tasks("worker")

    def add(numbers):
        replica = tf.distribute.get_replica_context()
        first = tf.cast(replica.replica_id_in_sync_group % devices == 0, numbers.dtype)
        return replica.all_reduce("SUM", numbers * first)

    return tf.function(lambda numbers: strategy.run(add, args=(numbers,)))


def distribute(strategy: tf.distribute.Strategy | None, batches: tf.data.Dataset) -> Any:
    """What `fit` and `evaluate` read under a strategy: each batch whole, once for each replica.

    ```python
    with strategy.scope():
        model = Seq2Seq(source, target, units=256)
        model.compile()
    model.fit(distribute(strategy, batch_pairs(pairs, source, target, seed=0)), epochs=38)
    ```

    Args:
        strategy: one that keeps its replicas in step, or None.
        batches: as `batch_pairs` makes them; with several workers the same on all of them, so with a `seed`.

    Returns:
        A `tf.distribute.DistributedDataset`; without a strategy, the batches as they are.
    """
    if strategy is None:
        return batches
    _tune_no_device()

    def copies(context):
        here = strategy.num_replicas_in_sync // context.num_input_pipelines
        copied = batches.flat_map(lambda *batch: tf.data.Dataset.from_tensors(batch).repeat(here))
        if batches.cardinality() == tf.data.INFINITE_CARDINALITY:  # or workers ask, at every step, if others have more
            copied = copied.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        return copied

    distributed = strategy.distribute_datasets_from_function(copies)
    distributed.has_whole_batches = True
    return distributed


def whole_batches(strategy: tf.distribute.Strategy, data: Any) -> Any:
    """The data that `fit` and `evaluate` hand to Keras, such that every replica is given whole batches.

    Keras divides the batches of a dataset among the replicas, and `own_rows` would divide each part once more.

    Args:
        strategy: the model's strategy.
        data: what `fit` was given. With one replica it is returned as it is.

    Returns:
        The data, distributed if it is a `tf.data.Dataset`.

    Raises:
        OptionError: with several replicas, for data that is already divided or is no dataset; with several workers, for
            a dataset too, since each worker may shuffle it in another order.
    """
    if strategy.num_replicas_in_sync == 1 or data is None or hasattr(data, "has_whole_batches"):
        return data
    if isinstance(data, tf.data.Dataset) and not several_workers(strategy):
        return distribute(strategy, data)
    raise OptionError(
        f"fit, evaluate: {type(data).__name__} for {strategy.num_replicas_in_sync} replicas; give what "
        "seq2seq.distribution.distribute(strategy, batches) returns, with batches that are the same for all"
    )


@functools.cache
def _tune_no_device():
    """Does what `WITHOUT_AUTOTUNE` does for datasets for the iterators that TensorFlow (2.21) makes for each device.

    No option of a dataset comes to these.
    """
    create = device_iterators._create_device_dataset
    device_iterators._create_device_dataset = lambda *args: create(*args).with_options(WITHOUT_AUTOTUNE)


def own_rows(batch: Any) -> Any:
    """The rows, of a batch that all replicas are given, that this one learns: every n-th of each tensor, n replicas.

    All replicas have equally many; where there are not enough rows, some are zeros, which is padding.
    """
    context = tf.distribute.get_replica_context()
    count = context.num_replicas_in_sync
    if count == 1:
        return batch

    def part(tensor):
        missing = [[0, -tf.shape(tensor)[0] % count], *[[0, 0]] * (tensor.shape.rank - 1)]
        return tf.pad(tensor, missing)[context.replica_id_in_sync_group :: count]

    return tf.nest.map_structure(part, batch)


def share(weights: tf.Tensor, own: tf.Tensor) -> tf.Tensor | float:
    """By what to multiply the loss that Keras finds for a replica's rows, so that those of all add up to the batch's.

    Keras finds the mean over the replica's tokens and divides it by the number of replicas, as if all had as many.

    Args:
        weights, own: of the tokens of the batch and of those rows, 0 of padding.
    """
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    return replicas * tf.math.divide_no_nan(tf.reduce_sum(own), tf.reduce_sum(weights)) if replicas > 1 else 1.0


def summed(gradients: list) -> list:
    """The sums of gradients over all replicas, as tensors; None stays None.

    Of a table of which rows were looked up the gradient is a list of rows, in which one may stand many times. Here it
    becomes one of the whole table: only that has the length by which gradients are clipped, and it is less to send.
    """
    gradients = [gradient if gradient is None else tf.convert_to_tensor(gradient) for gradient in gradients]
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return gradients
    sums = iter(context.all_reduce("SUM", [gradient for gradient in gradients if gradient is not None]))
    return [None if gradient is None else next(sums) for gradient in gradients]


def apply_if(
    condition: tf.Tensor, optimizer: keras.optimizers.Optimizer, gradients: list, variables: list[keras.Variable]
) -> None:
    """Takes a step of an optimizer with gradients that are `summed`, if a condition is true, which is the same in all
    replicas.

    A `LossScaleOptimizer` always sees the gradients. If they are not finite, it takes no step and halves its scale.
    """
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if scales:  # it looks at each number, and the numbers can be finite while the norm is not
        gradients = [g if g is None else tf.where(condition, g, np.nan) for g in gradients]

    def apply(gradients):
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    def together(strategy, condition, gradients):
        first = strategy.experimental_local_results(condition)[0]
        # Keras (3.15) clips what each replica has found and sums it then; here it has been summed, so that what is
        # clipped is the gradient of the whole batch. Tests of clipping notice if Keras begins to do otherwise.
        inner = optimizer.inner_optimizer if scales else optimizer
        inner._all_reduce_sum_gradients = list
        try:
            if scales:
                strategy.run(apply, args=(gradients,))
            else:
                changed = [*variables, *optimizer.variables]
                only_if(first, lambda: strategy.run(apply, args=(gradients,)), changed)
        finally:
            del inner._all_reduce_sum_gradients

    # All replicas take the branch together, as an optimizer's update is a meeting of all, which cannot be in a branch.
    tf.distribute.get_replica_context().merge_call(together, args=(condition, gradients))


def only_if(condition: tf.Tensor, run: Callable[[], Any], changed: Iterable[keras.Variable]) -> None:
    """Runs what changes variables if a condition is true.

    A GPU has to be waited for to know which way to go. In what XLA compiles it runs in any case, and the variables get
    their values back if the condition is false.
    """
    if not is_compiling():
        tf.cond(condition, run, lambda: None)
        return
    before = [(variable, tf.convert_to_tensor(variable)) for variable in changed]
    run()
    for variable, value in before:
        variable.assign(tf.where(condition, variable, value))


@contextlib.contextmanager
def lost_workers(strategy: tf.distribute.Strategy | None) -> Iterator[None]:
    """Raises a `WorkerLostError` where TensorFlow says that another process does not answer.

    TensorFlow's own heartbeats tell it, within half a minute.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if not several_workers(strategy):
            raise
        lost = re.search(r"task:(\d+) *\n*The tasks have crashed", error.message)
        which = f"worker {lost[1]}" if lost else "another worker"
        raise WorkerLostError(f"{which} has stopped or cannot be reached; start all of them again to go on") from None
