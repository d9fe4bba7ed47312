import os

from seq2seq.processes import in_processes


def test_processes_share_the_cores_and_one_that_dies_is_told_from_one_that_raises():
    tasks = {"cores": ("0",), "raises": ("1 / 0",), "dies": ("os._exit(3)",)}
    found = in_processes(_evaluate, tasks, jobs=2)
    assert len(found["cores"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert isinstance(found["raises"], ZeroDivisionError)
    assert str(found["dies"]) == "its process ended with exit code 3"


def _evaluate(text):
    eval(text)
    return os.sched_getaffinity(0)
