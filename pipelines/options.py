"""What an option may be: a number in a range, one name of several, or a class of your own written `module:Class`."""

import difflib
import importlib
import inspect
import math
import numbers
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any


class OptionError(ValueError):
    """An option that cannot be. The message names the argument, what was given and what would do."""


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
    """Checks that an option is a finite number of a kind, in a range.

    Args:
        argument: what the number was given for, as the message shall call it.
        value: the number.
        kind: int, for whole numbers only, or float.
        least, most: the ends of the range, both allowed.
        above, below: likewise, but not allowed themselves. Without `most` and `below` whole numbers end below 2**31.
        optional: whether it may be None.

    Raises:
        OptionError: if it is not.
    """
    if optional and value is None:
        return
    number = isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
    if number and kind is int and most is None and below is None and value >= 2**31:
        below = 2**31  # the end of int32, which sizes are; mentioned only if it is exceeded
    if (
        number
        and math.isfinite(value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    ):
        return
    ends = {"at least": least, "above": above, "at most": most, "below": below}
    span = " and ".join(f"{name} {end:,}" for name, end in ends.items() if end is not None)
    expected = ", ".join(part for part in ("a whole number" if kind is int else "a number", span) if part)
    raise OptionError(f"{argument}={value!r}: expected {expected}{', or None' * optional}")


def choose(argument: str, name: str | None, choices: Collection) -> Any:
    """Checks that a name is one of those there are, and says which one is nearest if it is not.

    Args:
        argument: what the name was given for, as the message shall call it.
        name: the name; it may be None where that is one of the choices.
        choices: the names there are, or a mapping of them to what they stand for.

    Returns:
        The name; of a mapping, what it stands for.

    Raises:
        OptionError: if it is none of them.
    """
    if name not in choices:
        raise OptionError(f"{argument}={name!r}: expected {', '.join(map(repr, choices))}{nearest(name, choices)}")
    return choices[name] if isinstance(choices, dict) else name


def nearest(name: str | None, choices: Iterable) -> str:
    """The end of a message about a wrong name: which of the right ones is nearest, or nothing."""
    near = difflib.get_close_matches(str(name), [str(choice) for choice in choices], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def accepted(function: Callable) -> set[str]:
    """The names of the arguments that a function, or the constructor of a class, takes as options; those too that a
    constructor hands on as `**kwargs` to the class it is derived from, unless that is one of Keras or TensorFlow."""
    found: dict[str, inspect.Parameter] = {}
    for each in inspect.getmro(function) if isinstance(function, type) else [function]:
        if each is not function and each.__module__.split(".")[0] in ("builtins", "keras", "tensorflow"):
            break
        if each is function or "__init__" in vars(each):
            taken = inspect.signature(each.__init__ if isinstance(each, type) else each).parameters  # type: ignore[misc]
            found = {**taken, **found}
            if all(parameter.kind != parameter.VAR_KEYWORD for parameter in taken.values()):
                break
    return {name for name, parameter in found.items() if parameter.kind not in _ANY} - {"self", "vocabulary_size"}


def construct(
    argument: str, kind: type, *arguments: Any, options: Mapping[str, Any], saved: bool = True, **always: Any
) -> Any:
    """Makes an object of a class with those of some options that its constructor names.

    Args:
        argument: what the class was given for, as messages shall call it.
        kind: the class.
        arguments: what its constructor is given first.
        options: by their names, more than it may know.
        saved: whether the object is saved by its `get_config`, which must then return all of them.
        always: what it is given by name, whether it names it or not.

    Raises:
        OptionError: if it cannot be made so, or its `get_config` says that it has not read an option.
    """
    taken = {name: value for name, value in options.items() if name in accepted(kind) - set(always)}
    name = f"{argument}={kind.__name__}"
    try:
        made = kind(*arguments, **always, **taken)
        found = made.get_config() if taken and hasattr(made, "get_config") else {}
    except OptionError:
        raise
    except (TypeError, ValueError) as error:
        said = ", ".join(f"{option}={value!r}" for option, value in taken.items())
        given = f"{len(arguments)} arguments and " * bool(arguments) + ", ".join([*always, said or "no options"])
        raise OptionError(f"{name}: cannot be made with {given}: {error}") from error
    for option, value in taken.items():
        if saved and option not in found:
            raise OptionError(f"{name}: get_config must return all arguments of the constructor, also {option}")
        if option in found and _plain(found[option]) != _plain(value):
            raise OptionError(f"{name}: has not read {option}={value!r}; its get_config says {found[option]!r}")
    return made


def _plain(value):
    return list(map(_plain, value)) if isinstance(value, tuple | list) else value


_ANY = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def load_class(argument: str, name: str) -> type:
    """Imports a class by its name, `module:Class`; the module may lie in the working directory.

    Raises:
        OptionError: if there is no such module, or no such class in it.
    """
    module_name, _, class_name = name.partition(":")
    if not class_name or not module_name or module_name.startswith("."):
        raise OptionError(f"{argument}={name!r}: expected a class, module:Class")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0] and error.name != module_name:
            raise
        raise OptionError(f"{argument}={name!r}: there is no module {module_name!r} here or installed") from None
    except (SyntaxError, ImportError) as error:
        raise OptionError(f"{argument}={name!r}: {module_name} cannot be imported: {error}") from error
    if not isinstance(getattr(module, class_name, None), type):
        classes = [found for found, value in vars(module).items() if isinstance(value, type)]
        raise OptionError(f"{argument}={name!r}: {module_name} has no class {class_name!r}, but {', '.join(classes)}")
    return getattr(module, class_name)
