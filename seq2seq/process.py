"""The training process: its seed, its signals, and the time, memory and device that it uses."""

import contextlib
import os
import platform
import re
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import config as determinism  # no public function turns it off again

from seq2seq.compilation import is_deterministic, on_gpu
from seq2seq.config import Config


def be_reproducible(config: Config) -> None:
    """Set the seed, and whether operations are deterministic, for the whole process."""
    keras.utils.set_random_seed(config.seed)
    if not on_gpu() if config.deterministic is None else config.deterministic:
        determinism.enable_op_determinism()
    else:
        determinism.disable_op_determinism()


@contextlib.contextmanager
def restored_determinism() -> Iterator[None]:
    """A context after which operations are deterministic, or not, as before."""
    enabled = is_deterministic()
    try:
        yield
    finally:
        determinism.enable_op_determinism() if enabled else determinism.disable_op_determinism()


@contextlib.contextmanager
def deferred_signal() -> Iterator[list[int]]:
    """Yield a list to which the first SIGINT or SIGTERM only adds its number. The second one takes effect."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number, frame):
        received.append(number)
        signal.signal(number, old[number])

    # None is a handler that was not installed from Python.
    old = {number: signal.signal(number, note) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def stop_for(received: list[int]) -> NoReturn:
    """Raise KeyboardInterrupt if the first of the received signals was SIGINT, else SystemExit with the code 143."""
    raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(143)


def clocks() -> np.ndarray:
    """The wall time and the processor time of all threads of this process: seconds `[2]` since some moment."""
    return np.array([time.monotonic(), time.process_time()])


def peak_memory() -> int:
    """The peak memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def device_name() -> str:
    """The name of the GPU or, without one, of the processor and its number of cores."""
    if gpus := tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    processor = platform.machine()
    with contextlib.suppress(OSError):
        if name := re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()):
            processor = name[1]
    cores = len(os.sched_getaffinity(0))
    return f"{processor}, {cores} core{'s' * (cores > 1)}"
