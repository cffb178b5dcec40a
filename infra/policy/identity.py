"""Whose a stack is, and that all in it is of that part and that cell.

Part and cell are those of the stack, as the engine names it. Tags are compared with them, never believed.
"""

import re
from collections.abc import Iterator
from typing import Final

from infra.policy.allowed import PARTS, TAGGED, refused
from infra.policy.model import Fault, Stack

_CELL_TAG: Final = "cellwall:cell"
_PART_TAG: Final = "cellwall:part"
_PROVIDER: Final = "pulumi:providers:"
_DEFAULT: Final = re.compile(r"default(_[0-9_]+)?\Z")


def own_project(stack: Stack) -> Iterator[Fault]:
    """A stack that is no part of the fleet has no rules that would let it through."""
    if stack.project not in {f"cellwall-{part}" for part in PARTS}:
        for each in stack.resources[:1]:
            yield each, f"is in the project {stack.project}, which is no part of the fleet"


def one_cell(stack: Stack) -> Iterator[Fault]:
    """Everything that can carry tags carries those of its stack."""
    yield from own_project(stack)
    for each in stack.resources:
        if each.type in TAGGED:
            for tag, wanted in ((_PART_TAG, stack.part), (_CELL_TAG, stack.cell)):
                if (own := each.tags.get(tag)) != wanted:
                    yield each, f"has {own or 'nothing'} in its tag {tag}, in a stack of {wanted or 'no cell'}"


def known_types(stack: Stack) -> Iterator[Fault]:
    """A stack contains what the components of its part make, and nothing else."""
    for each in stack.resources:
        if (why := refused(each.type, stack.part)) is not None:
            yield each, why
        if each.type.startswith(_PROVIDER) and not _DEFAULT.match(each.name):
            yield each, "is a provider beside the stack's own, which may work in another account"
