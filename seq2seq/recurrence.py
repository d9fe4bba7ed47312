"""LSTM and GRU: `Recurrent`, a layer whose weights are those of Keras's, and the loop that runs it on a CPU.

Shapes: B rows, T steps, E size of an input, D units, G gates (4 D of an LSTM, 3 D of a GRU).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from pipelines import choose
from seq2seq.compilation import is_exporting, on_gpu

State = list[tf.Tensor]  # [h, c] of an LSTM, [h] of a GRU, [B, D] each


class Rows(NamedTuple):
    """Vectors `[B, T, E]` that are rows of a matrix, not yet looked up.

    A recurrent layer begins by multiplying its input vectors by its weights. A row times the weights is a row of the
    product of matrix and weights. If there are fewer tokens than B x T positions, as with characters, it is less work
    to compute that product and look the rows up in it. `TokenVectors.rows` decides whether it is; `Recurrent.multiply`
    makes the product, which `Decoder.start` keeps for all steps.
    """

    ids: tf.Tensor  # [B, T]
    matrix: tf.Tensor | None = None  # [V, E]; None for one-hot rows
    product: tf.Tensor | None = None  # [V, G], if it is known


class Recurrent(keras.layers.Layer):
    """A recurrent layer, in one direction or two.

    On a GPU, one call of cuDNN runs all steps. On a CPU and in exports, `recur` computes the same, one step after
    another. A single step needs neither.

    Args:
        cell: "lstm" (Hochreiter & Schmidhuber 1997) or "gru" (Cho et al. 2014, arxiv.org/abs/1406.1078).
        size: size of the input vectors, E.
        units: size of the output, D.
        bidirectional: whether half of the units read backwards (Schuster & Paliwal 1997).

    Call arguments:
        x: `[B, T, E]` or `Rows`.
        lengths: int32 `[B]`, at least 1: the number of steps of each row. With one direction, the default is T for all.
        state: the state to start from, of one direction; by default zeros.

    Returns:
        The output `[B, T, D]`, which has no meaning after a row's length, and the state after its last step. Those of
        two directions are concatenated.
    """

    def __init__(self, cell: str, size: int, units: int, bidirectional: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cell, count = CELLS[choose("cell", cell, list(CELLS))], 2 if bidirectional else 1
        options = {"return_sequences": True, "return_state": True, "dtype": self.dtype_policy}
        self.directions = [self.cell.layer(units // count, **options) for _ in range(count)]
        for direction in self.directions:
            direction.build((None, None, size))
        self.built = True

    def call(
        self, x: tf.Tensor | Rows, lengths: tf.Tensor | None = None, state: State | None = None
    ) -> tuple[tf.Tensor, State]:
        if _steps(x) != 1 and on_gpu() and not is_exporting():
            return self._run_fused(x, lengths, state)
        output, last = self._run(self.directions[0], x, lengths, state)
        for backwards in self.directions[1:]:
            read, first = self._run(backwards, _reverse(x, lengths), lengths, state)
            output = tf.concat([output, _reverse(read, lengths)], axis=2)
            last = [tf.concat(parts, axis=1) for parts in zip(last, first, strict=True)]
        return output, last

    def multiply(self, matrix: tf.Tensor | None) -> tf.Tensor:
        """The product `[V, G]` for `Rows` of a matrix `[V, E]`, to be computed once for many calls."""
        cell = self.directions[0].cell
        kernel, bias = (tf.cast(part, self.compute_dtype) for part in (cell.kernel, cell.bias))
        return _product(matrix, kernel, bias[0] if self.cell is GRU else bias)

    def _run_fused(self, x, lengths, state):
        """All steps, in both directions, by one call of cuDNN.

        Keras's layers make a call for each direction. Before each they wait for the device, to see that the mask is
        padded on the right.
        """
        cells = [direction.cell for direction in self.directions]
        if isinstance(x, Rows):
            one_hot = tf.one_hot(x.ids, cells[0].kernel.shape[0], dtype=self.compute_dtype)
            x = one_hot if x.matrix is None else tf.gather(x.matrix, x.ids)
        rows, steps = tf.unstack(tf.shape(x)[:2])
        kernels: list[tf.Tensor] = []
        biases: list[tf.Tensor] = []
        for cell in cells:
            kernels += [tf.convert_to_tensor(cell.kernel), tf.convert_to_tensor(cell.recurrent_kernel)]
            bias = tf.convert_to_tensor(cell.bias)
            biases += tf.unstack(bias) if self.cell is GRU else [tf.zeros_like(bias), bias]
        parts = [*(tf.transpose(self.cell.as_cudnn(kernel)) for kernel in kernels), *map(self.cell.as_cudnn, biases)]
        if state is None:
            state = [tf.zeros([rows, len(cells), cells[0].units], x.dtype)] * self.cell.states
        else:
            state = [tf.reshape(tf.stack([part] * len(cells)), [rows, len(cells), cells[0].units]) for part in state]
        output, *last, _, _ = tf.raw_ops.CudnnRNNV3(
            input=x,
            input_h=state[0],
            input_c=state[-1] if self.cell is LSTM else tf.zeros([], x.dtype),
            params=tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0),
            sequence_lengths=tf.fill([rows], steps) if lengths is None else lengths,
            rnn_mode=self.cell.__name__.lower(),
            direction="bidirectional" if len(cells) > 1 else "unidirectional",
            time_major=False,
        )
        # The first axis of a state is the direction, regardless of its static shape.
        last = [tf.reshape(part, [len(cells), rows, cells[0].units]) for part in last[: self.cell.states]]
        return output, [tf.concat(tf.unstack(part), axis=1) for part in last]

    def _run(self, direction, x, lengths, state):
        cell = direction.cell
        kernel, recurrent_kernel, bias = map(tf.convert_to_tensor, (cell.kernel, cell.recurrent_kernel, cell.bias))
        biases: list[tf.Tensor] = []  # of the recurrent product: a GRU has one there too, as cuDNN has
        if self.cell is GRU:
            bias, *biases = tf.unstack(bias)
        input_gates = _times(_transpose(x), kernel, bias)
        if state is None:
            state = [tf.zeros_like(input_gates[0, :, : direction.units])] * self.cell.states
        if _steps(x) == 1:  # one step needs no loop around it
            state, _ = self.cell.step(input_gates[0], _hidden_gates(state, recurrent_kernel, biases), state)
            return state[0][:, None], state
        states = recur(self.cell, input_gates, recurrent_kernel, biases, state)
        if lengths is None:
            last = [part[-1] for part in states]
        else:
            positions = tf.stack([lengths - 1, tf.range(tf.shape(lengths)[0])], axis=1)
            last = [tf.gather_nd(part, positions) for part in states]
        return _transpose(states[0]), last


class LSTM:
    """One step of an LSTM, whose state is [h, c], and its gradient.

    The gates i, f, candidate and o are functions of `input_gates` + `hidden_gates`, `[B, G]` each: the products of the
    input and of h with the kernels.
    """

    layer = keras.layers.LSTM
    states = 2
    saved_tensors = 5  # that `step` returns for `backward`
    gradients = 1  # that of `input_gates` and of `hidden_gates` is the same, as they are summed

    @staticmethod
    def as_cudnn(gates: tf.Tensor) -> tf.Tensor:
        """The parts of the gates, `[..., G]`, in cuDNN's order."""
        return gates

    @staticmethod
    def step(input_gates: tf.Tensor, hidden_gates: tf.Tensor, state: State) -> tuple[State, list[tf.Tensor]]:
        """Return the new state, and the tensors that `backward` needs, `[B, D]` each."""
        i, f, candidate, o = tf.split(input_gates + hidden_gates, 4, axis=1)
        i, f, candidate, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(candidate), tf.sigmoid(o)
        c = f * state[1] + i * candidate
        tanh_c = tf.tanh(c)
        return [o * tanh_c, c], [i, f, candidate, o, tanh_c]

    @staticmethod
    def backward(saved: list[tf.Tensor], state: State, d_state: State) -> tuple[tf.Tensor, tf.Tensor, State]:
        """Gradients of `input_gates`, of `hidden_gates`, and of the state before except through `hidden_gates`."""
        i, f, candidate, o, tanh_c = saved
        dh, dc = d_state
        dc += d_tanh(tanh_c, dh * o)
        d_i, d_f = d_sigmoid(i, dc * candidate), d_sigmoid(f, dc * state[1])
        d_candidate, d_o = d_tanh(candidate, dc * i), d_sigmoid(o, dh * tanh_c)
        d_gates = tf.concat([d_i, d_f, d_candidate, d_o], axis=1)
        return d_gates, d_gates, [tf.zeros_like(dh), dc * f]


class GRU:
    """One step of a GRU, whose state is [h], and its gradient; see `LSTM`. Its gates are z, r and candidate.

    It resets h after the product, as cuDNN and Keras do.
    """

    layer = keras.layers.GRU
    states = 1
    saved_tensors = 4
    gradients = 2

    @staticmethod
    def as_cudnn(gates: tf.Tensor) -> tf.Tensor:
        z, r, candidate = tf.split(gates, 3, axis=-1)
        return tf.concat([r, z, candidate], axis=-1)

    @staticmethod
    def step(input_gates: tf.Tensor, hidden_gates: tf.Tensor, state: State) -> tuple[State, list[tf.Tensor]]:
        input_z, input_r, input_candidate = tf.split(input_gates, 3, axis=1)
        z, r, hidden_candidate = tf.split(hidden_gates, 3, axis=1)
        z, r = tf.sigmoid(input_z + z), tf.sigmoid(input_r + r)
        candidate = tf.tanh(input_candidate + r * hidden_candidate)
        return [z * state[0] + (1 - z) * candidate], [z, r, candidate, hidden_candidate]

    @staticmethod
    def backward(saved: list[tf.Tensor], state: State, d_state: State) -> tuple[tf.Tensor, tf.Tensor, State]:
        z, r, candidate, hidden_candidate = saved
        (dh,) = d_state
        d_z = d_sigmoid(z, dh * (state[0] - candidate))
        d_candidate = d_tanh(candidate, dh * (1 - z))
        d_r = d_sigmoid(r, d_candidate * hidden_candidate)
        d_input_gates, d_hidden_gates = (tf.concat([d_z, d_r, d], axis=1) for d in (d_candidate, d_candidate * r))
        return d_input_gates, d_hidden_gates, [dh * z]


def d_sigmoid(y: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
    """The gradient of x for y = sigmoid(x): dy y (1 - y), in one operation."""
    return tf.raw_ops.SigmoidGrad(y=y, dy=dy)


def d_tanh(y: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
    """The gradient of x for y = tanh(x): dy (1 - y y), in one operation."""
    return tf.raw_ops.TanhGrad(y=y, dy=dy)


CELLS: dict[str, type[LSTM] | type[GRU]] = {"lstm": LSTM, "gru": GRU}


def recur(
    cell: type[LSTM] | type[GRU], input_gates: tf.Tensor, kernel: tf.Tensor, biases: Sequence[tf.Tensor], first: State
) -> State:
    """Run the steps one after another.

    TensorFlow's own backward loop would add a product to the kernel's gradient in every step. This one computes only
    the gradients of the gates. The kernel's gradient, the sum over t of h(t - 1)^T d_hidden_gates(t), is then one large
    product.

    Args:
        cell: `LSTM` or `GRU`.
        input_gates: `[T, B, G]`, of each step.
        kernel, biases: `[D, G]`, and `[G]` or none: `hidden_gates` is h times the kernel plus the bias.
        first: the state before the first step.

    Returns:
        The states after each step, `[T, B, D]` each. The first is the output, h.
    """
    length, (units, gates) = tf.shape(input_gates)[0], kernel.shape

    def arrays(count, size, length):
        options = {"element_shape": [input_gates.shape[1], size], "clear_after_read": False}
        return [tf.TensorArray(input_gates.dtype, length, **options) for _ in range(count)]

    def write(arrays, t, values):
        return [array.write(t, value) for array, value in zip(arrays, values, strict=True)]

    if is_exporting():  # without a gradient; in ONNX, what a loop writes in its t-th step has the place t
        length = input_gates.shape[0] or length  # in LiteRT, all sizes are known

        def step(t, state, states):
            state, _ = cell.step(input_gates[t], _hidden_gates(state, kernel, biases), state)
            return t + 1, state, write(states, t, state)

        variables = (0, list(first), arrays(len(first), units, length))
        *_, states = tf.while_loop(lambda t, *_: t < length, step, variables)
        return [array.stack() for array in states]

    @tf.custom_gradient
    def run(input_gates, kernel, *rest):
        biases, state = rest[: -len(first)], rest[-len(first) :]

        def forward(t, state, states, saved):
            state, save = cell.step(input_gates[t], _hidden_gates(state, kernel, biases), state)
            return t + 1, state, write(states, t + 1, state), write(saved, t, save)

        states = write(arrays(len(first), units, length + 1), 0, state)
        variables = (0, list(state), states, arrays(cell.saved_tensors, units, length))
        *_, states, saved = tf.while_loop(lambda t, *_: t < length, forward, variables)
        all_states = [array.stack() for array in states]

        def gradient(*upstream):
            transposed = tf.transpose(kernel)  # faster than `transpose_b` in each product

            def backward(t, d_state, d_gates):
                d_state = [part + later[t] for part, later in zip(d_state, upstream, strict=True)]
                saved_t, state = ([array.read(t) for array in each] for each in (saved, states))
                d_input_gates, d_hidden_gates, d_state = cell.backward(saved_t, state, d_state)
                d_state[0] += tf.matmul(d_hidden_gates, transposed)
                return t - 1, d_state, write(d_gates, t, [d_input_gates, d_hidden_gates][: cell.gradients])

            d_gates = arrays(cell.gradients, gates, length)
            variables = (length - 1, [tf.zeros_like(part) for part in state], d_gates)
            _, d_state, d_gates = tf.while_loop(lambda t, *_: t >= 0, backward, variables)
            d_gates = [array.stack() for array in d_gates]
            h, d_hidden_gates = tf.reshape(all_states[0][:-1], [-1, units]), tf.reshape(d_gates[-1], [-1, gates])
            d_biases = [tf.reduce_sum(d_hidden_gates, axis=0) for _ in biases]
            return d_gates[0], tf.matmul(h, d_hidden_gates, transpose_a=True), *d_biases, *d_state

        return [states[1:] for states in all_states], gradient

    return run(input_gates, kernel, *biases, *first)


def _hidden_gates(state, kernel, biases):
    """h times the recurrent kernel `[D, G]`, plus the bias that a GRU has there, and an LSTM does not."""
    product = tf.matmul(state[0], kernel)
    return product + biases[0] if biases else product


def _steps(x):
    """T of `[B, T, E]` or `Rows`, if it is known when the graph is made."""
    return (x.ids if isinstance(x, Rows) else x).shape[1]


def _times(x, matrix, bias):
    """`[T, B, E]` times `[E, G]`, plus `[G]`."""
    if not isinstance(x, Rows):
        return tf.tensordot(x, matrix, 1) + bias
    return tf.gather(_product(x.matrix, matrix, bias) if x.product is None else x.product, x.ids)


def _product(rows, matrix, bias):
    """`[V, E]`, None for one-hot rows, times `[E, G]`, plus `[G]`."""
    return (matrix if rows is None else tf.matmul(rows, matrix)) + bias


def _transpose(x):
    """`[T, B, ...]` from `[B, T, ...]`, and the other way round."""
    if isinstance(x, Rows):
        return x._replace(ids=tf.transpose(x.ids))
    return tf.transpose(x, [1, 0, 2])


def _reverse(x, lengths):
    """Reverse the steps of each row `[B, T, ...]`, but not its padding."""
    if isinstance(x, Rows):
        return x._replace(ids=tf.reverse_sequence(x.ids, lengths, seq_axis=1))
    return tf.reverse_sequence(x, lengths, seq_axis=1)
