"""From a config section to the object it describes: `_target_` names the class, the other keys are its arguments."""

from __future__ import annotations

import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from audiolab.errors import InputError

_SIMPLE = (int, float, str, bool, type(None))


def locate(target: str, where: str = "_target_") -> Any:
    """Import the class or function with the dotted name `target`."""
    module_name, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{where}={target} cannot be imported ({error}): give the full dotted name of a class"
        ) from error


def check(section: Any, where: str, given: tuple[str, ...] = ()) -> None:
    """Check a section, and every section inside it, against the signatures of the classes they name.

    `given` are the arguments that the caller will pass itself. Raises InputError with the option, the nearest valid
    name and the class.
    """
    if isinstance(section, list):
        for number, item in enumerate(section):
            check(item, f"{where}.{number}")
    if not isinstance(section, Mapping):
        return
    for key, value in section.items():
        check(value, f"{where}.{key}")
    if "_target_" in section:
        options = {key: value for key, value in section.items() if key != "_target_"}
        check_signature(locate(section["_target_"], f"{where}._target_"), options, where, given)


def check_signature(callable_: Any, options: Mapping[str, Any], where: str, given: tuple[str, ...] = ()) -> None:
    """Check that `options` (and the arguments `given` by the caller) fit the signature of `callable_`."""
    parameters = inspect.signature(callable_).parameters
    name = getattr(callable_, "__name__", str(callable_))
    named = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in options.items():
        if key in given:
            raise InputError(f"{where}.{key} is set by audiolab itself: leave it out")
        if key not in named and not open_ended:
            close = difflib.get_close_matches(key, named, n=1)
            others = f"its options are {', '.join(named)}; ~{where}.{key} takes out what a recipe set"
            hint = f"did you mean {where}.{close[0]}?" if close else others
            raise InputError(f"{where}.{key} is not an option of {name}: {hint}")
        if key in parameters:
            _check_value(value, _annotation(callable_, key), f"{where}.{key}", name)
    required = [n for n in named if parameters[n].default is inspect.Parameter.empty]
    missing = [n for n in required if n not in options and n not in given]
    if missing:
        raise InputError(f"{where}.{missing[0]} is missing: {name} needs it, give {where}.{missing[0]}=...")


def require(section: Any, kind: type, where: str) -> None:
    """Raise InputError unless every `_target_` of a section, and inside it, is a class of this kind.

    A run folder may come from elsewhere, and building a section calls whatever it names.

    >>> require({"_target_": "os.system", "command": "true"}, dict, "model")
    Traceback (most recent call last):
    audiolab.errors.InputError: model._target_=os.system is no dict: it is not called
    """
    items = section.items() if isinstance(section, Mapping) else enumerate(section) if isinstance(section, list) else ()
    for key, value in items:
        require(value, kind, f"{where}.{key}")
    if isinstance(section, Mapping) and "_target_" in section:
        target = locate(section["_target_"], f"{where}._target_")
        if not (inspect.isclass(target) and issubclass(target, kind)):
            raise InputError(f"{where}._target_={section['_target_']} is no {kind.__name__}: it is not called")


def build(section: Any, **more: Any) -> Any:
    """Build what a section describes, inner sections first; `more` are further arguments of the outermost class."""
    if isinstance(section, list):
        return [build(item) for item in section]
    if not isinstance(section, Mapping):
        return section
    options = {key: build(value) for key, value in section.items() if key != "_target_"}
    if "_target_" not in section:
        return options
    return locate(section["_target_"])(**options, **more)


def _annotation(callable_: Any, key: str) -> Any:
    function = callable_.__init__ if inspect.isclass(callable_) else callable_
    try:
        return typing.get_type_hints(function).get(key, Any)
    except (NameError, TypeError):  # annotations that exist for type checkers only
        return Any


def _check_value(value: Any, annotation: Any, where: str, name: str) -> None:
    """Raise InputError unless a value fits; in a section of names and values it is the value that is named."""
    if typing.get_origin(annotation) in (dict, Mapping) and isinstance(value, Mapping):
        for key, item in value.items():
            _check_value(item, typing.get_args(annotation)[1], f"{where}.{key}", name)
    elif not _fits(value, annotation):
        raise InputError(f"{where}={value!r} does not fit {name}: expected {_words(annotation)}")


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a plain YAML value can stand for the annotated type; anything beyond plain types is let through."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is typing.Literal:
        return value in parts
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(_fits(item, parts[1]) for item in value.values())
    if origin in (list, Sequence):
        return isinstance(value, list | tuple) and all(_fits(item, parts[0]) for item in value)
    if origin is tuple:
        return isinstance(value, list | tuple) and (
            all(_fits(item, parts[0]) for item in value)
            if parts[-1] is Ellipsis
            else len(value) == len(parts) and all(map(_fits, value, parts))
        )
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in _SIMPLE:
        return isinstance(value, annotation)
    if annotation is None:
        return value is None
    return True


def _words(annotation: Any) -> str:
    """Say in words what fits an annotation."""
    parts = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return ", ".join(map(str, parts))
    if origin in (list, Sequence, tuple):
        return f"a list [...], each {_words(parts[0])}"
    if origin in (dict, Mapping):
        return "a section {name: ...}" + ("" if parts[1] is Any else f", each {_words(parts[1])}")
    if origin in (typing.Union, types.UnionType):
        return ", ".join(dict.fromkeys(_words(part) for part in parts))
    if annotation in (None, type(None)):
        return "null"
    return {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}.get(
        getattr(annotation, "__name__", ""), str(annotation)
    )
