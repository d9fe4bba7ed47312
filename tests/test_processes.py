import os

from seq2seq.processes import in_processes


class TwoPartError(Exception):
    """Its pickle cannot be read: it is made of one argument, and the class needs two."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


def test_processes_share_the_cores_and_one_that_dies_is_told_from_one_that_raises():
    tasks = {
        "unreadable": ("raise_two_parts()",),
        "cores": ("0",),
        "raises": ("1 / 0",),
        "dies": ("os._exit(3)",),
    }
    found = in_processes(_evaluate, tasks, jobs=2)
    assert len(found["cores"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert isinstance(found["raises"], ZeroDivisionError)
    assert str(found["dies"]) == "its process ended with exit code 3"
    assert str(found["unreadable"]).startswith("its process failed, and its error cannot be read here: ")


def raise_two_parts():
    raise TwoPartError("what", "why")


def _evaluate(text):
    eval(text)
    return os.sched_getaffinity(0)
