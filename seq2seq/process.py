"""The process that trains: its seed, its signals, and what it has taken."""

import contextlib
import os
import platform
import re
import resource
import signal
import threading
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import config as determinism


def be_reproducible(config):
    """Sets the seed, and whether operations must give the same bits each time: in the whole process."""
    keras.utils.set_random_seed(config.seed)
    by_default = not config.compile and not tf.config.list_logical_devices("GPU")
    if by_default if config.deterministic is None else config.deterministic:
        determinism.enable_op_determinism()
    else:
        determinism.disable_op_determinism()


@contextlib.contextmanager
def restored_determinism():
    """Leaves a process as it was, whatever `be_reproducible` has set in between."""
    enabled = determinism.is_op_determinism_enabled()
    try:
        yield
    finally:
        determinism.enable_op_determinism() if enabled else determinism.disable_op_determinism()


@contextlib.contextmanager
def first_signal():
    """Holds back the first SIGINT or SIGTERM. Gives a list that then holds its number; the second one acts."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number, frame):
        received.append(number)
        signal.signal(number, old[number])

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def clocks():
    """Seconds of wall time and of processor time, of all threads of this process, from some moment on."""
    return np.array([time.monotonic(), time.process_time()])


def peak_memory(run):
    """The most memory, in MB, that a process of this training has had."""
    return max(run.peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def device_name():
    """The name of the GPU or, without one, of the processor and how many of its cores there are."""
    if gpus := tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    processor = platform.machine()
    with contextlib.suppress(OSError):
        if name := re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()):
            processor = name[1]
    return f"{processor}, {len(os.sched_getaffinity(0))} cores"
