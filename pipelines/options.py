"""Checks of options: numbers in a range, one name of several, names of tokenizers and custom classes; error texts."""

import contextlib
import difflib
import importlib
import inspect
import numbers
import operator
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any


class OptionError(ValueError):
    """An invalid option. The message names the argument, its value and what is expected."""


class MissingExtra(ModuleNotFoundError):
    """A package is not installed that only some parts of the library need. The message names the extra with it."""


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Raise `MissingExtra` if a package that is imported in this `with` statement is not installed.

    Args:
        name: the extra in `setup.cfg` that brings the packages.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise MissingExtra(f"this needs {package}: pip install 'keras-seq2seq[{name}]'", name=package) from error


def one_line(error: Exception) -> str:
    """The class and message of an error in one line, without the colours of Keras's messages."""
    return " ".join([f"{type(error).__name__}:", *re.sub("\x1b\\[\\d*m", "", str(error)).split()])


def check_number(
    argument: str,
    value: Any,
    kind: type = int,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    optional: bool = False,
) -> None:
    """Check that an option is a finite number of a kind, in a range.

    Args:
        argument: the option's name in messages.
        value: the number.
        kind: int, for whole numbers only, or float.
        least, most: the ends of the range, included.
        above, below: likewise, but excluded. Without `most` and `below`, whole numbers must be below 2**31.
        optional: whether it may be None.

    Raises:
        OptionError: if it is not.
    """
    if optional and value is None:
        return
    number = isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
    if number and kind is int and most is None and below is None and value >= 2**31:
        below = 2**31  # the end of int32, which sizes are; mentioned only if it is exceeded
    bounds: list[tuple[str, float | None, Callable[[Any, Any], bool]]] = [
        ("at least", least, operator.ge),
        ("above", above, operator.gt),
        ("at most", most, operator.le),
        ("below", below, operator.lt),
    ]
    finite = number and abs(value) <= sys.float_info.max  # `math.isfinite` fails for an int that no float can hold
    if finite and all(end is None or holds(value, end) for _, end, holds in bounds):
        return
    span = " and ".join(f"{name} {end:,}" for name, end, _ in bounds if end is not None)
    expected = ("a whole number" if kind is int else "a number") + f", {span}" * bool(span)
    raise OptionError(f"{argument}={value!r}: expected {expected}{', or None' * optional}")


def choose(argument: str, name: str | None, choices: Collection, other: str = "") -> Any:
    """Check that a name is one of the choices.

    Args:
        argument: the option's name in messages.
        name: the name; None if that is a choice.
        choices: the possible names, or a mapping of them to their values.
        other: what else was possible, for the message.

    Returns:
        The name; for a mapping, its value.

    Raises:
        OptionError: if it is none of them. The message suggests the nearest one.
    """
    if name not in choices:
        expected = f"{', '.join(map(repr, choices))}{other}"
        raise OptionError(f"{argument}={name!r}: expected {expected}{nearest(name, choices)}")
    return choices[name] if isinstance(choices, Mapping) else name


def choose_class(argument: str, name: str, kinds: dict[str, type]) -> type:
    """Find one of several classes by its name, or import a custom one, `module:Class`.

    Raises:
        OptionError: if there is none of this name.
    """
    return load_class(argument, name) if ":" in name else choose(argument, name, kinds, " or module:Class")


def nearest(name: str | None, choices: Iterable) -> str:
    """Return the end of a message about a wrong name, which suggests the nearest choice, if there is one."""
    near = difflib.get_close_matches(str(name), [str(choice) for choice in choices], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def accepted(function: Callable) -> set[str]:
    """List the arguments that a function, or the constructor of a class, takes as options.

    A constructor with `**kwargs` also takes those of its base class, unless that is a class of Keras or TensorFlow.
    """
    names: set[str] = set()
    for each in _constructors(function) if isinstance(function, type) else [function]:
        parameters = inspect.signature(each).parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        names |= {parameter.name for parameter in parameters if parameter.kind not in _VARIABLE}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return names - {"self", "vocabulary_size"}


_VARIABLE = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def _constructors(kind):
    """The `__init__` of a class, then those of its base classes up to the first one of Keras, TensorFlow or Python."""
    yield kind.__init__
    for base in kind.__mro__[1:]:
        if base.__module__.split(".")[0] in ("builtins", "keras", "tensorflow"):
            return
        if "__init__" in vars(base):
            yield base.__init__


def construct(
    argument: str, kind: type, *arguments: Any, options: Mapping[str, Any], saved: bool = True, **always: Any
) -> Any:
    """Make an object of a class with those options that its constructor accepts.

    Args:
        argument: the option that names the class, for messages.
        kind: the class.
        arguments: the positional arguments of its constructor.
        options: options by name; the constructor need not accept all of them.
        saved: whether the object is saved by its `get_config`, which must then return all of them.
        always: further arguments by name, passed even if the constructor does not name them.

    Raises:
        OptionError: if the constructor fails, or the object's `get_config` shows that it does not use an option.
    """
    own = {name: value for name, value in options.items() if name in accepted(kind) - set(always)}
    name = f"{argument}={kind.__name__}"
    try:
        for option in own.keys() & _float_options(kind):  # 4 is 4.0, also in `--set`
            own[option] = float(own[option]) if type(own[option]) is int else own[option]
        made = kind(*arguments, **always, **own)
        found = made.get_config() if own and hasattr(made, "get_config") else {}
    except OptionError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        said = ", ".join(f"{option}={value!r}" for option, value in own.items())
        given = ", ".join([*(type(argument).__name__ for argument in arguments), *always, said or "no options"])
        raise OptionError(f"{name}: cannot be constructed with {given}: {error}") from error
    for option, value in own.items():
        if saved and option not in found:
            raise OptionError(f"{name}: get_config must return all arguments of the constructor, including {option}")
        if option in found and _as_lists(found[option]) != _as_lists(value):
            raise OptionError(f"{name}: does not use {option}={value!r}; its get_config returns {found[option]!r}")
    return made


def _float_options(kind):
    """The names of the options of a class whose defaults are floats."""
    defaults: dict[str, Any] = {}
    for each in _constructors(kind):  # a derived class first
        for name, parameter in inspect.signature(each).parameters.items():
            defaults.setdefault(name, parameter.default)
    return {name for name, default in defaults.items() if isinstance(default, float)}


def _as_lists(value):
    return list(map(_as_lists, value)) if isinstance(value, tuple | list) else value


def load_class(argument: str, name: str) -> type:
    """Import a class by its name, `module:Class`. The module may be in the working directory.

    Raises:
        OptionError: if there is no such module, it cannot be imported, or there is no such class in it.
    """
    module_name, _, class_name = name.partition(":")
    if not class_name or not module_name or module_name.startswith("."):
        raise OptionError(f"{argument}={name!r}: expected a class, module:Class")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except MissingExtra:
        raise
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            what = f"needs {error.name!r}, which is not installed" if error.name else one_line(error)
            raise OptionError(f"{argument}={name!r}: {module_name} {what}") from error
        what = f"no module {module_name!r} in the current directory or among the installed packages"
        if module_name.endswith(".py"):
            what = "expected module:Class, the module without .py, in the current directory or on PYTHONPATH"
        raise OptionError(f"{argument}={name!r}: {what}") from None
    except Exception as error:  # of any class, as it runs the module
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "site-packages" not in frame.filename and frame.filename[0] != "<"]
        where = (own or frames)[-1]
        at = "" if isinstance(error, SyntaxError) else f" ({where.filename}, line {where.lineno})"
        raise OptionError(f"{argument}={name!r}: {module_name} cannot be imported: {one_line(error)}{at}") from error
    if not isinstance(getattr(module, class_name, None), type):
        classes = [found for found, value in vars(module).items() if isinstance(value, type)]
        classes.sort(key=lambda found: getattr(module, found).__module__ != module_name)  # its own before imported ones
        raise OptionError(
            f"{argument}={name!r}: {module_name} has no class {class_name!r}; its classes are {', '.join(classes)}"
        )
    return getattr(module, class_name)


def load_classes(argument: str, names: Iterable[str] | None) -> None:
    """Import several classes as `load_class` does, so that models that use them can be loaded."""
    for name in names or ():
        load_class(argument, name)


def tokenizer_names(side: str, text: str) -> list[str]:
    """The names of the tokenizers in an option: one for each column, with commas between them.

    A name may be a comma itself, as in "char,,": characters, and in the second column features separated by commas.

    Raises:
        OptionError: if it is not such a list; the message names `side`, the option.
    """
    names = re.findall("(,|[^,]+)(?:,|$)", text)
    if ",".join(names) != text or not names:
        raise OptionError(f"{side}={text!r}: expected a name, or a name for each column with commas between them")
    return names


def separates(name: str) -> bool:
    """Whether the name of a tokenizer is the character at which it splits texts."""
    return len(name) == 1 and not name.isalnum()
