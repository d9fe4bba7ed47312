"""The command line, for tests: each command a process of its own, forked from one that has imported TensorFlow."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SEQ2SEQ = str(Path(sys.executable).with_name("seq2seq"))

# The import takes longer than most of what is tested.
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["tensorflow", "tensorflow_text", "keras", "sacrebleu", "matplotlib.pyplot", "typer"])


def seq2seq(*arguments, stdin=None, cwd=None):
    """Runs a command as `subprocess.run` does, and returns what that returns."""
    arguments = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdin", "stdout", "stderr")]
        files[0].write_bytes(stdin or b"")
        process = server.Process(target=_command, args=(arguments, files, cwd))
        process.start()
        process.join()
        stdout, stderr = (path.read_bytes() for path in files[1:])
    return subprocess.CompletedProcess(arguments, process.exitcode, stdout, stderr)


def _command(arguments, files, cwd):
    for number, path in enumerate(files):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = os.fdopen(0)  # which multiprocessing has closed
    sys.argv = ["seq2seq", *arguments]
    os.chdir(cwd or ".")
    from seq2seq.cli import main

    main()
