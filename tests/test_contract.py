"""What a strategy of your own must be; of encoders, decoders and tokenizers see test_extension.py."""

import dataclasses
import functools
import re

import pytest
import tensorflow as tf

from pipelines import OptionError
from pipelines.tokens import END, UNKNOWN
from seq2seq import BeamSearch, Greedy, Hypotheses, Sampling, Strategy, extend_each, mask_logits
from seq2seq.contract import check_strategy, make_strategy


@dataclasses.dataclass(frozen=True)
class Own(Strategy):
    """A strategy that finds what greedy search finds, or what a function makes of that; or another search."""

    change: object = None
    instead: object = None
    n_best: int = 1

    def search(self, step_for, state, constraints, loop=None):
        if self.instead:
            return self.instead(step_for, state, constraints, loop)
        found = Greedy().search(step_for, state, constraints, loop)
        return self.change(found) if self.change else found


def unfinished(step_for, state, constraints, loop):
    """Take one step and nothing else."""
    step_for(tf.range(3))(tf.fill([3], 4), state)


def of_one_row(step_for, state, constraints, loop):
    """Take a step of fewer rows than there are sources."""
    step_for(tf.range(3))(tf.fill([1], 4), state[:1])


def of_columns(step_for, state, constraints, loop):
    """Take a step with an axis too many."""
    step_for(tf.range(3))(tf.fill([3, 1], 4), state)


def unrepeated(step_for, state, constraints, loop):
    """Take a step for two hypotheses of each source, with a state of one."""
    step_for(tf.range(3))(tf.fill([6], 4), state)


def deaf(step_for, state, constraints, loop):
    """Ignore prefixes."""
    return Greedy().search(step_for, state, constraints._replace(prefixes=None), loop)


def endless(step_for, state, constraints, loop):
    """Go on after the limit."""
    return Greedy().search(step_for, state, constraints._replace(limits=constraints.limits + 9, min_length=9), loop)


def too_sure(step_for, state, constraints, loop):
    """Return higher scores than the log-likelihoods, as of a softmax over fewer tokens."""
    found = BeamSearch(2).search(step_for, state, constraints, loop)
    return found._replace(scores=found.scores + 0.1)


def in_python(step_for, state, constraints, loop):
    """Ask a tensor for its value in the middle."""
    float(tf.reduce_sum(constraints.limits).numpy())
    return Greedy().search(step_for, state, constraints, loop)


def beginning_with(token):
    """A function that replaces the first token of the source without a prefix."""
    return lambda found: found._replace(ids=tf.tensor_scatter_nd_update(found.ids, [[2, 0, 0]], [token]))


def of_any_number(found):
    """Hypotheses whose number nobody knows before they are found."""
    copies = tf.reduce_max(found.stopped) * 0 + 2
    return found._replace(**{name: tf.repeat(getattr(found, name), copies, axis=1) for name in ("ids", "stopped")})


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Own(lambda found: tuple(found)), "`search` returns tuple, not Hypotheses"),
        (Own(lambda found: None), "`search` returns NoneType, not Hypotheses"),
        (Own(lambda found: found._replace(ids=found.ids[:, 0])), r"ids (3, 6); expected (3, N, T)"),
        (Own(n_best=2), "ids (3, 1, 6); expected (3, N, T), N known in advance and at least n_best=2"),
        (Own(of_any_number), "; expected (3, N, T), N known in advance"),
        (Own(lambda found: found._replace(ids=tf.cast(found.ids, tf.int64))), "ids int64 (3, 1, 6); expected int32"),
        (Own(lambda found: found._replace(stopped=found.stopped[:, 0])), "stopped int32 (3,); expected int32 (3, 1)"),
        (Own(lambda found: found._replace(scores=tf.zeros([3, 1]))), "ranked_by None; expected float32 (3, 1)"),
        (
            Own(lambda found: Hypotheses(found.ids, *[tf.zeros([3, 2])] * 2, found.stopped)),
            "scores float32 (3, 2); expected float32 (3, 1)",
        ),
        (Own(lambda found: found._replace(ids=found.ids * 0 + END)), "do not begin with [5, 6], the prefix"),
        (Own(lambda found: found._replace(stopped=1 - found.stopped)), "for ids [5, 6, "),
        (Own(lambda found: found._replace(stopped=tf.where(found.stopped == 0, 0, 3))), "stopped 3 for ids ["),
        (Own(beginning_with(END)), "; expected at most 6 tokens, none below END=3, which ends them"),
        (Own(beginning_with(UNKNOWN)), "; expected at most 6 tokens, none below END=3, which ends them"),
        (Own(instead=too_sure), "whose log-likelihood is "),
        (Own(instead=deaf), "do not begin with [5, 6], the prefix; see `mask_logits`"),
        (Own(instead=endless), "expected at most 3 tokens, none below END=3"),
        (Own(instead=unfinished), "`search` returns NoneType, not Hypotheses"),
        (
            Own(instead=of_one_row),
            "calls a step with ids (1,) and a state (1,); expected [R] for both, R a multiple of 3",
        ),
        (Own(instead=of_columns), "calls a step with ids (3, 1) and a state (3,); expected [R] for both"),
        (
            Own(instead=unrepeated),
            "calls a step with ids (6,) and a state (3,); expected [R] for both, R a multiple of 3",
        ),
        (Own(instead=in_python), "fails on a search for three sources: AttributeError"),
        (Strategy(), "NotImplementedError: Strategy must define search"),
        ("beam", "strategy='beam': expected one of greedy, beam, sampling, or a `Strategy`"),
        (Own(change=[]), "fails on hash(strategy): put @dataclasses.dataclass(frozen=True) above its class"),
    ],
)
def test_a_strategy_that_breaks_the_contract_is_refused(strategy, message):
    with pytest.raises(OptionError, match=re.escape(message)) as raised:
        check_strategy(strategy)
    kind = type(strategy).__name__
    assert str(raised.value).startswith(f"strategy={kind}: ") or kind == "str"
    assert "\n" not in str(raised.value)


class Banning(BeamSearch):  # its constructor has a setting that the inherited == does not know
    def __init__(self, token):
        super().__init__()
        object.__setattr__(self, "token", token)


@dataclasses.dataclass(frozen=True)
class Secret(Greedy):
    token: int = dataclasses.field(default=4, compare=False)


@dataclasses.dataclass(frozen=True)
class Hidden(Banning):
    def __init__(self, token):
        super().__init__(token)


class Narrow(BeamSearch):  # its constructor adds no setting
    def __init__(self):
        super().__init__(width=2)


def test_a_strategy_is_tried_in_a_graph_too():
    assert tf.function(lambda: check_strategy(Narrow()).width)() == 2


@pytest.mark.parametrize("strategy", [Banning(4), Hidden(4), Secret()])
def test_a_strategy_that_equals_one_with_other_settings_is_refused(strategy):
    with pytest.raises(OptionError, match=f"strategy={type(strategy).__name__}: == does not compare all"):
        check_strategy(strategy)


@dataclasses.dataclass(frozen=True)
class Remembering(Greedy):
    @functools.cached_property
    def table(self):
        return {"made": "once"}


def test_what_a_strategy_keeps_for_itself_is_no_setting():
    strategy = Remembering()
    assert strategy.table and check_strategy(strategy) is strategy


def test_a_strategy_is_tried_once_and_one_of_the_library_never():
    calls = []

    def search(*arguments):
        calls.append(1)
        return Greedy().search(*arguments)

    strategy = Own(instead=search)
    assert [check_strategy(strategy) for _ in range(3)] == [strategy] * 3
    assert len(calls) == 2  # eagerly and in a graph
    for known in (Greedy(), BeamSearch(50, n_best=9), Sampling(n_best=3)):
        assert check_strategy(known) is known


def test_a_model_refuses_what_it_is_told(model):
    with pytest.raises(OptionError, match="strategy=Own: `search` returns NoneType"):
        model.translate(["sol"], Own(lambda found: None))
    with pytest.raises(OptionError, match="strategy=3: expected one of"):
        model.translate(["sol"], 3)


def test_mask_logits_keeps_what_may_come():
    def search(step_for, state, constraints, loop):
        def choose(logits, t, sources):
            again = mask_logits(tf.pad(logits, [[0, 0], [END, 0]]), t, constraints.min_length)
            tf.debugging.assert_equal(again, logits)
            return tf.argmax(again, axis=1, output_type=tf.int32)

        return extend_each(step_for, state, constraints, choose, loop=loop)

    check_strategy(Own(instead=search))


def test_a_strategy_may_decode_more_hypotheses_than_are_wanted():
    def search(step_for, state, constraints, loop):
        found = Sampling(n_best=4).search(step_for, state, constraints, loop)
        return Hypotheses(found.ids[:, :1], None, None, found.stopped[:, :1])

    check_strategy(Own(instead=search))


def test_a_strategy_is_made_of_its_name_and_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert make_strategy("beam", {"width": 3}) == BeamSearch(3)
    assert make_strategy("sampling", {"top_p": 0.5, "n_best": 2}) == Sampling(top_p=0.5, n_best=2)
    for name, settings, message in (
        ("beem", {}, "search='beem': expected 'greedy', 'beam', 'sampling' or module:Class; did you mean 'beam'?"),
        ("beam", {"wdith": 3}, "set='wdith': expected .*; did you mean 'width'?"),
        ("beam", {"width": "x"}, "width='x': expected a whole number"),
        ("nowhere:Class", {}, "search='nowhere:Class': no module 'nowhere'"),
        ("pathlib:Path", {}, "search='pathlib:Path': Path is not derived from seq2seq.Strategy"),
        (
            "test_contract:Needs",
            {},
            "search=Needs: cannot be constructed with no options: .*missing 1 required .*'this'",
        ),
    ):
        with pytest.raises(OptionError, match=message.replace("?", r"\?")):
            make_strategy(name, settings)


class Needs(Strategy):
    def __init__(self, this):
        pass
