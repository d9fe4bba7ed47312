import pytest
import tensorflow as tf

from seq2seq.compilation import compiled_by_xla, is_compiling, rounded_up, xla_works


def test_where_xla_does_not_work_it_is_said_once_and_done_without():
    assert xla_works()
    with pytest.warns(UserWarning, match="training is slower, because XLA cannot compile here: .*AsString"):
        assert not xla_works(tf.strings.as_string)
    assert not xla_works(tf.strings.as_string)


def test_a_compiled_function_knows_that_it_is_and_another_is_said_and_refused():
    seen = []
    specs = [tf.TensorSpec([2])]
    double = compiled_by_xla("sums", lambda x: seen.append(is_compiling()) or 2 * x, specs)
    assert double(tf.constant([1.0, 2.0])).numpy().tolist() == [2, 4] and seen == [True] and not is_compiling()
    with pytest.warns(UserWarning, match="texts are not compiled, because XLA refuses them: .*AsString"):
        assert compiled_by_xla("texts", tf.strings.as_string, specs) is None


@pytest.mark.parametrize(
    ("size", "least", "expected"),
    [(0, 16, 16), (16, 16, 16), (17, 16, 32), (100, 16, 128), (100, 8192, 8192), (90_000, 8192, 131_072)],
)
def test_sizes_are_rounded_up_to_few(size, least, expected):
    assert rounded_up(tf.constant(size), least) == rounded_up(tf.constant(size), tf.constant(least)) == expected
