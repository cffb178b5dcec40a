#!/usr/bin/env python3
"""The policy pack: ``pulumi preview --policy-pack infra/policy/pack.py``.

Whom the walls let through comes from the environment, because they must not believe what the stack itself says:
``CELLWALL_POLICY_ROUTER`` and ``CELLWALL_POLICY_CELLS`` are the ARNs that may make endpoints,
``CELLWALL_POLICY_ACCOUNT`` is the account of the fleet. Which part and cell a stack is
stands in the URNs that the engine gives its resources.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pulumi_policy import (
    EnforcementLevel,
    PolicyPack,
    PolicyResource,
    Secret,
    StackValidationArgs,
    StackValidationPolicy,
)
from pulumi_policy.proxy import UnknownValueError

from infra.policy.model import UNKNOWN, Key, Resource, Rule, Stack, Trusted
from infra.policy.rules import RULES

Report = Callable[[str, str | None], None]


def known(value: Any) -> Any:
    """A property as plain values, with `UNKNOWN` for what exists only later."""
    if isinstance(value, Secret):
        return known(value.value)
    if isinstance(value, Mapping):
        return {str(key): _entry(value, key) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_entry(value, index) for index in range(len(value))]
    return value


def _entry(container: Any, key: Any) -> Any:
    try:
        return known(container[key])
    except UnknownValueError:
        return UNKNOWN


def stack(args: StackValidationArgs, trusted: Trusted) -> Stack:
    """The stack with all its resources, whichever provider makes them."""
    if not args.resources:
        return Stack("", "", (), trusted)
    name, project, *_ = args.resources[0].urn.removeprefix("urn:pulumi:").split("::")
    return Stack(project, name, [resource(each) for each in args.resources], trusted)


def resource(each: PolicyResource) -> Resource:
    """One resource as the rules see it."""
    references = {
        name: frozenset(_key(other) for other in others) for name, others in each.property_dependencies.items()
    }
    return Resource(*_key(each), known(each.props), bool(each.opts.protect), references)


def policy(rule: Rule, trusted: Trusted) -> StackValidationPolicy:
    """A rule as Pulumi takes it: one report for each resource at fault."""

    def validate(args: StackValidationArgs, report: Report) -> None:
        urns = {_key(each): each.urn for each in args.resources}
        for at, fault in rule.check(stack(args, trusted)):
            report(f"{at.name} ({at.type}) {fault}", urns.get((at.type, at.name)))

    return StackValidationPolicy(rule.name, rule.says, validate, EnforcementLevel.MANDATORY)


def main() -> None:
    """Hand the rules to the engine that started this program."""
    try:
        trusted = Trusted(*(os.environ[f"CELLWALL_POLICY_{name}"] for name in ("ROUTER", "CELLS", "ACCOUNT")))
    except KeyError as e:
        sys.exit(f"the policy pack needs {e.args[0]}, which says whom the walls let through; see docs/aws.md")
    PolicyPack("cellwall", [policy(rule, trusted) for rule in RULES], EnforcementLevel.MANDATORY)


def _key(each: PolicyResource) -> Key:
    return each.resource_type.removeprefix("aws:"), each.name


if __name__ == "__main__":
    main()
