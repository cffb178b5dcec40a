"""From a YAML file to a `Scenario`. An error names the file, the line, the field, and what is allowed there.

YAML as people expect it: ``on`` and ``off`` are words and not booleans, a key that is there twice is an error, and
there are no aliases (a file of a few hundred bytes could grow to gigabytes by them).
"""

import re
import types
from enum import EnumMeta
from pathlib import Path
from typing import Annotated, Any, Final, Union, get_args, get_origin

import msgspec
import yaml

from loadtest.lab.scenario import Scenario, objections

SHIPPED: Final = Path(__file__).resolve().parents[1] / "scenarios"
BYTES_MAX: Final = 256 << 10
_STEP: Final = re.compile(r"\.([^.\[]+)|\[([^\]]*)\]")
_AT: Final = re.compile(r"(?P<words>.*?) - at `(?:key` in `)?\$(?P<path>[^`]*)`$", re.DOTALL)
_NAMED: Final = re.compile(r"(?:unknown|required) field `(?P<field>[^`]+)`")


class ScenarioError(ValueError):
    """A scenario file that cannot be used; the message is one line for the one who wrote it."""


class _Loader(yaml.SafeLoader):
    """``true`` and ``false`` are the only booleans."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))


def find(name: str) -> Path:
    """The file that a name on the command line means: a path, or the name of a scenario that comes with the lab."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = SHIPPED / f"{name.removesuffix('.yaml')}.yaml"
    if "/" not in name and shipped.is_file():
        return shipped
    known = ", ".join(sorted(each.stem for each in SHIPPED.glob("*.yaml")))
    raise ScenarioError(f"there is no scenario file {name}; those that come with the lab are {known}")


def read(path: Path) -> Scenario:
    """The scenario of a file; `ScenarioError` where it is none."""
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except OSError as e:
        raise ScenarioError(f"{path} cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ScenarioError(f"{path}: is not UTF-8 text ({e.reason} at byte {e.start})") from e
    if len(raw) > BYTES_MAX:
        raise ScenarioError(f"{path}: has {len(raw)} bytes, and a scenario file may have {BYTES_MAX}")
    return parse(text, str(path))


def parse(text: str, file: str) -> Scenario:
    """The scenario of a text; ``file`` is what errors call it."""
    data, lines = _load(text, file)

    def error(path: str, words: str) -> ScenarioError:
        return ScenarioError(f"{file}:{_line(lines, path)}: {path or 'the file'}: {words}")

    try:
        scenario = msgspec.convert(data, Scenario)
    except msgspec.ValidationError as e:
        path, words = _explain(str(e))
        raise error(path, words) from e
    for path, words in objections(scenario):
        raise error(path, words)
    return scenario


def _load(text: str, file: str) -> tuple[Any, dict[str, int]]:
    """The plain data, and the line of every path in it."""
    lines: dict[str, int] = {}
    try:
        loader = _Loader(text)
        for token in yaml.scan(text, Loader=_Loader):
            if isinstance(token, yaml.AliasToken):
                raise ScenarioError(f"{file}:{token.start_mark.line + 1}: aliases (*name) are not used here")
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ScenarioError(f"{file}:1: a scenario is a mapping: 'kind:', 'name:' and so on, each on its line")
        _mark(node, "", lines, file)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        line = mark.line + 1 if mark is not None else 1
        words = " ".join(filter(None, (e.context, e.problem)))
        raise ScenarioError(f"{file}:{line}: this is not YAML: {words}") from e
    except yaml.YAMLError as e:
        raise ScenarioError(f"{file}:1: this is not YAML: {' '.join(str(e).split())}") from e


def _mark(node: yaml.Node, path: str, lines: dict[str, int], file: str) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line, inner = key.start_mark.line + 1, f"{path}.{key.value}".removeprefix(".")
            if key.tag != "tag:yaml.org,2002:str":
                raise ScenarioError(f"{file}:{line}: {path or 'the file'}: a field's name is a word")
            if inner in lines:
                raise ScenarioError(f"{file}:{line}: {inner}: is there twice, first in line {lines[inner]}")
            lines[inner] = line
            _mark(value, inner, lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _mark(value, f"{path}[{index}]", lines, file)


def _line(lines: dict[str, int], path: str) -> int:
    """The line of ``path``, or of what it is in, where it is not there itself."""
    while path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines[path]


def _explain(message: str) -> tuple[str, str]:
    """The path and the words of an error of msgspec, with what is allowed instead."""
    found = _AT.fullmatch(message)
    words, path = (found["words"], found["path"].lstrip(".")) if found else (message, "")
    wanted = _type_at(path)
    if (named := _NAMED.search(words)) is not None and isinstance(wanted, type) and issubclass(wanted, msgspec.Struct):
        fields = ", ".join(field.encode_name for field in msgspec.structs.fields(wanted))
        what = "there is no such field" if "unknown" in words else "is missing"
        return f"{path}.{named['field']}".removeprefix("."), f"{what}; the fields here are {fields}"
    if isinstance(wanted, EnumMeta):
        words = f"{words}; allowed are {', '.join(str(each.value) for each in wanted)}"  # type: ignore[var-annotated]
    elif (choices := get_args(wanted)) and all(isinstance(each, str) for each in choices):
        words = f"{words}; allowed are {', '.join(choices)}"
    return path.replace("[...]", ""), words


def _type_at(path: str) -> Any:
    """The annotation at a path of msgspec's (``faults[...].action``), without bounds and without None."""
    found: Any = Scenario
    for step in _STEP.finditer(f".{path}" if path else ""):
        if step[1] is not None and isinstance(found, type) and issubclass(found, msgspec.Struct):
            found = next((f.type for f in msgspec.structs.fields(found) if f.encode_name == step[1]), None)
        else:
            found = (get_args(found) or (None,))[-1]
        found = _bare(found)
    return found


def _bare(annotation: Any) -> Any:
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, types.UnionType):
            annotation = next(each for each in get_args(annotation) if each is not type(None))
        else:
            return annotation
