import os
import subprocess
import sys

from seq2seq.startup import without_stderr


def test_what_a_process_writes_to_stderr_is_discarded_for_a_while_only(capfd):
    with without_stderr():
        os.system("echo discarded >&2")
        os.write(2, b"discarded")
    os.write(2, b"shown")
    assert capfd.readouterr().err == "shown"


def test_garbage_is_collected_again_after_the_start_but_not_sought_in_what_was_imported():
    script = (
        "import gc, seq2seq.startup; seq2seq.startup.start_tensorflow(); print(gc.isenabled(), gc.get_freeze_count())"
    )
    enabled, frozen = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True).stdout.split()
    assert enabled == "True" and int(frozen) > 100_000
