import os

from seq2seq.startup import without_stderr


def test_what_a_process_writes_to_stderr_is_discarded_for_a_while_only(capfd):
    with without_stderr():
        os.system("echo discarded >&2")
        os.write(2, b"discarded")
    os.write(2, b"shown")
    assert capfd.readouterr().err == "shown"
