"""Make the run `phrasebook`, which comes with the library, again: `seq2seq/phrasebook/`.

python tests/benchmarks/shipped.py made             train it into the folder `made`
python tests/benchmarks/shipped.py made --compare   the same, and say whether its weights are those of the library's

Same options as `seq2seq train phrasebook --units 192 --updates 4000`; its `config.json` holds no paths of a machine.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from seq2seq import Config, load_run
from seq2seq.records import SHIPPED
from seq2seq.startup import start_tensorflow
from seq2seq.training import train

OPTIONS = {"units": 192, "updates": 4000}
COMMAND = "seq2seq train phrasebook --units 192 --updates 4000"
FILES = ("model.keras", "history.csv", "survey.json", "probe.json")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--compare", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        model = train(Config("phrasebook", **OPTIONS), run, command=COMMAND)
        for name in FILES:
            shutil.copy(run / name, arguments.out)
        record = json.loads((run / "config.json").read_text())
    # No paths of this machine: the corpus is found by its name, and known by its checksum.
    record["directory"] = "."
    record["checksums"] = {Path(path).name: checksum for path, checksum in record["checksums"].items()}
    (arguments.out / "config.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    if arguments.compare:
        pairs = zip(model.get_weights(), load_run(SHIPPED["phrasebook"]).get_weights(), strict=True)
        same = all(np.array_equal(one, other) for one, other in pairs)
        print("The weights are the same, bit for bit." if same else "The weights are not the same.")


if __name__ == "__main__":
    start_tensorflow()
    main()
