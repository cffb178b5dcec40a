#!/usr/bin/env python3
"""The policy pack: ``pulumi preview --policy-pack infra/policy/pack.py``.

Who may make endpoints comes from the environment, because the walls must not believe what the stack itself says:
``CELLWALL_POLICY_ROUTER`` and ``CELLWALL_POLICY_CELLS`` are the two ARNs.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pulumi_policy import EnforcementLevel, PolicyPack, Secret, StackValidationArgs, StackValidationPolicy
from pulumi_policy.proxy import UnknownValueError

from infra.policy.rules import RULES, UNKNOWN, Principals, Resource, Rule

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


def resources(args: StackValidationArgs) -> list[Resource]:
    """The stack's resources of AWS."""
    return [
        Resource(each.resource_type.removeprefix("aws:"), each.name, known(each.props), bool(each.opts.protect))
        for each in args.resources
        if each.resource_type.startswith("aws:")
    ]


def policy(rule: Rule, principals: Principals) -> StackValidationPolicy:
    """A rule as Pulumi takes it: one report for each resource at fault."""

    def validate(args: StackValidationArgs, report: Report) -> None:
        urns = {(each.resource_type.removeprefix("aws:"), each.name): each.urn for each in args.resources}
        for resource, fault in rule.check(resources(args), principals):
            report(f"{resource.name} ({resource.type}) {fault}", urns.get((resource.type, resource.name)))

    return StackValidationPolicy(rule.name, rule.says, validate, EnforcementLevel.MANDATORY)


def main() -> None:
    """Hand the rules to the engine that started this program."""
    try:
        principals = Principals(os.environ["CELLWALL_POLICY_ROUTER"], os.environ["CELLWALL_POLICY_CELLS"])
    except KeyError as e:
        sys.exit(f"the policy pack needs {e.args[0]}: the ARN that may make endpoints")
    PolicyPack("cellwall", [policy(rule, principals) for rule in RULES], EnforcementLevel.MANDATORY)


if __name__ == "__main__":
    main()
