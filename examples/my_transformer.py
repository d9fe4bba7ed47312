"""A Transformer of your own: one block for all layers, on both sides (Dehghani et al. 2019, arxiv.org/abs/1807.03819).

python my_transformer.py

The task is to write numbers as the Romans did. The command line takes the two classes as well: `--encoder
my_transformer:SharedEncoder --decoder my_transformer:SharedDecoder --heads 2`.
"""

import keras

from pipelines import CharTokenizer, batch_pairs, read_pairs
from seq2seq import Seq2Seq, TransformerDecoder, TransformerEncoder


class Shared:
    """What both sides change: they make one block and go through it as often as they have layers."""

    def __init__(self, vocabulary_size, layers=2, **kwargs):
        super().__init__(vocabulary_size, layers=1, **kwargs)
        self.options["layers"] = layers  # `get_config` returns them, and so the model can be saved and loaded
        self.blocks = self.blocks * layers


@keras.saving.register_keras_serializable("my_transformer")
class SharedEncoder(Shared, TransformerEncoder):
    """A `TransformerEncoder` with the same weights in each layer."""


@keras.saving.register_keras_serializable("my_transformer")
class SharedDecoder(Shared, TransformerDecoder):
    """A `TransformerDecoder` with the same weights in each layer."""


ROMAN = {1000: "M", 900: "CM", 500: "D", 400: "CD", 100: "C", 90: "XC", 50: "L", 40: "XL", 10: "X", 9: "IX"}
ROMAN |= {5: "V", 4: "IV", 1: "I"}


def roman(number):
    """`1987` becomes `MCMLXXXVII`."""
    value = max((value for value in ROMAN if value <= number), default=0)
    return ROMAN[value] + roman(number - value) if value else ""


def main(epochs=15):
    keras.utils.set_random_seed(0)
    pairs = [(f"{number}", roman(number)) for number in range(1, 4000)]
    held_out, training = pairs[::7], [pair for n, pair in enumerate(pairs) if n % 7]
    source, target = CharTokenizer("0123456789"), CharTokenizer("CDILMVX")
    model = Seq2Seq(source, target, encoder=SharedEncoder, decoder=SharedDecoder, units=32, heads=2, layers=2)
    steps, warmup = epochs * 54, 3 * epochs
    schedule = keras.optimizers.schedules.CosineDecay(0.0, steps - warmup, warmup_target=0.005, warmup_steps=warmup)
    model.compile(keras.optimizers.Adam(schedule))
    model.fit(batch_pairs(read_pairs(training), source, target, batch_size=64), epochs=epochs, verbose=2)

    found = model.translate([digits for digits, _ in held_out], as_text=True)
    for (digits, right), text in list(zip(held_out, found, strict=True))[100::150]:
        print(f"    {digits}  ->  {text}   ({right})")
    right = sum(text == answer for text, (_, answer) in zip(found, held_out, strict=True))
    print(f"{model.count_params():,} weights; {right / len(held_out):.1%} of {len(held_out)} held-out numbers right")


if __name__ == "__main__":
    main()
