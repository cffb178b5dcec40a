"""What is said of input that does not decode: where it is, by the caller's own name for it, and what would be valid."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

_PLACE: Final = re.compile(r"[^.\[\]]+|\[[^\]]*\]")


def said(error: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """One line about one of Litestar's errors of a request. ``parameters`` are the handler's, by their Python names.

    Where the value is none of a few, all of these are named. Pure.
    """
    key, message = str(error.get("key", "")), str(error.get("message", ""))
    in_body = error.get("source") == "body"
    parameter = parameters.get("data" if in_body else key)
    if parameter is None:
        return f"{key}: {message}" if key else message
    valid = choices(parameter.annotation, key if in_body else "")
    named = key if in_body else getattr(parameter.kwarg_definition, "name", None) or key
    return f"{named}: {message}" + (f"; there are: {', '.join(valid)}" if valid else "")


def choices(annotation: Any, path: str) -> tuple[str, ...]:
    """The values that an enum or a literal at ``path`` inside of a type may have; none where it is something else."""
    try:
        found = msgspec.inspect.type_info(annotation)
    except TypeError:  # a type that is decoded by a hook
        return ()
    places = [found]
    for step in _PLACE.findall(path):
        places = [inner for place in places for inner in _inside(place, step)]
    return tuple(value for place in places for leaf in _members(place) for value in _values(leaf))


def _members(place: Any) -> Iterable[Any]:
    return place.types if isinstance(place, msgspec.inspect.UnionType) else (place,)


def _inside(place: Any, step: str) -> list[Any]:
    """The types of a field of an object, or of the items of a collection."""
    found: list[Any] = []
    for member in _members(place):
        if isinstance(member, msgspec.inspect.Metadata):
            found += _inside(member.type, step)
        elif isinstance(member, msgspec.inspect.StructType):
            found += [field.type for field in member.fields if field.encode_name == step]
        elif isinstance(member, msgspec.inspect.DictType):
            found.append(member.value_type)
        elif isinstance(member, msgspec.inspect.CollectionType) and step.startswith("["):
            found.append(member.item_type)
    return found


def _values(leaf: Any) -> list[str]:
    if isinstance(leaf, msgspec.inspect.EnumType):
        return [str(each.value) for each in leaf.cls]
    return [str(each) for each in leaf.values] if isinstance(leaf, msgspec.inspect.LiteralType) else []
