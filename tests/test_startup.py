import os
import subprocess
import sys

import pytest

import pipelines
import seq2seq
from seq2seq.startup import without_stderr


def test_what_a_process_writes_to_stderr_is_discarded_for_a_while_only(capfd):
    with without_stderr():
        os.system("echo discarded >&2")
        os.write(2, b"discarded")
    os.write(2, b"shown")
    assert capfd.readouterr().err == "shown"


@pytest.mark.parametrize("package", [pipelines, seq2seq])
def test_all_public_names_can_be_completed_and_imported(package):
    assert {*package.__all__} <= {*dir(package)} and len(package.__all__) > 20
    for name in package.__all__:
        assert getattr(package, name).__module__.startswith((f"{package.__name__}.", "typing"))
    with pytest.raises(AttributeError, match="colums"):
        package.colums  # noqa: B018


def test_help_and_import_of_all_names_need_no_extra():
    script = (
        "import sys; sys.modules['sacrebleu'] = None; import seq2seq; from seq2seq import *; from pipelines import *; "
        "help(seq2seq); help('pipelines'); print(train, 'evaluate' in dir(seq2seq))"
    )
    shown = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert "class BeamSearch" in shown and "split_by_hash(" in shown and shown.endswith(" False\n")


def test_garbage_is_collected_again_after_the_start_but_not_sought_in_what_was_imported():
    script = (
        "import gc, seq2seq.startup; seq2seq.startup.start_tensorflow(); print(gc.isenabled(), gc.get_freeze_count())"
    )
    enabled, frozen = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True).stdout.split()
    assert enabled == "True" and int(frozen) > 100_000
