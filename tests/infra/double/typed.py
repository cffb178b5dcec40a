"""Inputs checked against the types of the `pulumi_aws` SDK: what a program misspells, AWS would never see."""

import collections.abc
import enum
import importlib
import inspect
import ipaddress
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pulumi import _types
from pulumi.runtime.rpc import UNKNOWN

_PLAIN = {str: (str,), int: (int, float), float: (int, float), bool: (bool,)}


@cache
def arguments(token: str) -> type:
    """The class of arguments of ``aws:rds/cluster:Cluster``."""
    path, _, name = token.removeprefix("aws:").partition(":")
    module = importlib.import_module(f"pulumi_aws.{path.partition('/')[0]}")
    # Where a nested type of the service has that name, the SDK calls the resource's own InitArgs.
    found: type = getattr(module, f"{name}InitArgs", None) or getattr(module, f"{name}Args")
    return found


def faults(token: str, inputs: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the inputs of a resource, each with its path."""
    yield from _object(arguments(token), inputs, "")
    for name, value in inputs.items():
        if name.startswith("cidr") and isinstance(value, str) and value != UNKNOWN:
            try:
                ipaddress.ip_network(value)
            except ValueError as e:
                yield f"{name}: {e}"


@cache
def _shape(cls: type) -> tuple[dict[str, Any], frozenset[str]]:
    """The types of the properties by Pulumi's names, and which are required."""
    names = _types.input_type_py_to_pulumi_names(cls)
    required = {
        names.get(name, name)
        for name, told in inspect.signature(cls.__init__).parameters.items()  # type: ignore[misc]
        if told.default is inspect.Parameter.empty and name not in {"self", "__self__"}
    }
    return _types.input_type_types(cls), frozenset(required)


def _object(cls: type, value: Mapping[str, Any], path: str) -> Iterator[str]:
    known, required = _shape(cls)
    for name in sorted(required - set(value)):
        yield f"{path}{name}: missing"
    for name, inner in value.items():
        if name.startswith("__"):
            continue
        if name not in known:
            yield f"{path}{name}: no property of {cls.__name__}"
        else:
            yield from _value(known[name], inner, f"{path}{name}")


def _value(kind: Any, value: Any, path: str) -> Iterator[str]:
    if value is None or value == UNKNOWN or kind is Any:
        return
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(kind) if _counts(option)]
        tried = [list(_value(option, value, path)) for option in options]
        if tried and all(tried):
            yield from min(tried, key=len)
    elif origin in (list, collections.abc.Sequence):
        if not isinstance(value, list):
            yield f"{path}: {value!r} is no list"
        else:
            for index, inner in enumerate(value):
                yield from _value(typing.get_args(kind)[0], inner, f"{path}[{index}]")
    elif origin in (dict, collections.abc.Mapping):
        if not isinstance(value, Mapping):
            yield f"{path}: {value!r} is no map"
        else:
            for key, inner in value.items():
                yield from _value(typing.get_args(kind)[1], inner, f"{path}.{key}")
    elif isinstance(kind, type):
        yield from _class(kind, value, path)


def _class(kind: type, value: Any, path: str) -> Iterator[str]:
    if _types.is_input_type(kind):
        if isinstance(value, Mapping):
            yield from _object(kind, value, f"{path}.")
        else:
            yield f"{path}: {value!r} is no {kind.__name__}"
    elif issubclass(kind, enum.Enum):
        if value not in {member.value for member in kind}:
            yield f"{path}: {value!r} is none of {', '.join(str(member.value) for member in kind)}"
    elif kind in _PLAIN and not isinstance(value, _PLAIN[kind]):
        yield f"{path}: {value!r} is no {kind.__name__}"


def _counts(option: Any) -> bool:
    """Whether a choice says anything of a value on the wire; promises and typed dictionaries do not."""
    name = getattr(typing.get_origin(option) or option, "__name__", "")
    return name not in {"Output", "Awaitable", "NoneType"} and not name.endswith("ArgsDict")
