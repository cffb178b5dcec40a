"""What the rules look at: a stack as Pulumi is about to make it, and what they say of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final


class _Unknown:
    """A value of the future."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = _Unknown()
_IDENTITIES: Final = ("id", "arn", "keyId", "bucket", "prefixListId")

Key = tuple[str, str]  # type and name


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource with its properties as Pulumi names them; ``type`` without ``aws:``.

    ``references`` tells for each property which resources of the stack its value was made from. The engine keeps it,
    so it is there also where the value is not. What another stack told is not among them: it is a value like any other.
    """

    type: str
    name: str
    props: Mapping[str, Any]
    protect: bool = False
    references: Mapping[str, frozenset[Key]] = field(default_factory=dict)

    @property
    def tags(self) -> Mapping[str, Any]:
        """Its tags, none where they are of the future."""
        tags = self.props.get("tags")
        return tags if isinstance(tags, Mapping) else {}

    def asked(self, name: str) -> bool:
        """Whether the program gives that property something. What the provider fills in later has no references."""
        value = self.props.get(name)
        return bool(self.references.get(name)) if value is UNKNOWN else bool(value)

    def known_as(self) -> set[str]:
        """The values by which other resources name this one."""
        return {value for name in _IDENTITIES if isinstance(value := self.props.get(name), str) and value}


@dataclass(frozen=True, slots=True)
class Trusted:
    """Whom the walls let through: who deploys the router and the cells, and the fleet's account."""

    router: str
    cells: str
    account: str


@dataclass(frozen=True, slots=True)
class Stack:
    """``project`` and ``name`` are the engine's: nothing that a program writes on its resources can change them."""

    project: str
    name: str
    resources: Sequence[Resource]
    trusted: Trusted

    @property
    def part(self) -> str:
        """The part of the fleet, such as ``cell``."""
        return self.project.removeprefix("cellwall-")

    @property
    def cell(self) -> str | None:
        """The cell that this stack is; a stack of another part has none."""
        return self.name if self.part == "cell" else None

    def of(self, *types: str) -> Iterator[Resource]:
        """Its resources of these types."""
        return (each for each in self.resources if each.type in types)

    def comes_from(self, each: Resource, prop: str, value: Any, *types: str) -> bool:
        """Whether ``value``, in that property, is a resource of these types of this stack.

        A value that is there must be the name of such a resource; one of the future must be made from them alone.
        """
        if value is UNKNOWN:
            made_from = each.references.get(prop, frozenset())
            return bool(made_from) and all(kind in types for kind, _ in made_from)
        return value in {name for other in self.of(*types) for name in other.known_as()}


Fault = tuple[Resource, str]


@dataclass(frozen=True, slots=True)
class Rule:
    """``check`` sees a whole stack and gives each resource that breaks the rule, with what is wrong."""

    name: str
    says: str
    check: Callable[[Stack], Iterator[Fault]]


def listed(value: Any) -> list[Any]:
    """A property that may be one value, several or none, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
