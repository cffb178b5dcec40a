"""What all our components are: a parent of their resources, and JSON documents from typed statements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pulumi


class Component(pulumi.ComponentResource):
    """A component of type ``cellwall:aws:<kind>``. Children take ``inside``; data that must survive, ``kept``."""

    def __init__(self, kind: str, name: str, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(f"cellwall:aws:{kind}", name, None, opts)
        self.inside = pulumi.ResourceOptions(parent=self)

    def kept(self, keep: bool) -> pulumi.ResourceOptions:
        """Options of data: protected from deletion while ``keep``."""
        return pulumi.ResourceOptions(parent=self, protect=keep)


class Latch(pulumi.ComponentResource):
    """Depends on all of a stack and is protected while ``keep``: then `pulumi destroy` is refused before it deletes.

    The engine skips what a resource that it must not delete depends on, and goes on with the rest: without this, a
    destroy of a stack with protected data would take the services and the network from around it.
    """

    def __init__(self, name: str, whole: Component, keep: bool) -> None:
        super().__init__("cellwall:aws:Latch", name, None, pulumi.ResourceOptions(depends_on=[whole], protect=keep))
        self.register_outputs({})


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of an IAM, key or bucket policy. ``conditions`` maps operator to key to values."""

    actions: Sequence[str]
    resources: Sequence[pulumi.Input[str]] = ("*",)
    effect: Literal["Allow", "Deny"] = "Allow"
    principals: Mapping[str, Sequence[pulumi.Input[str]]] = field(default_factory=dict)
    conditions: Mapping[str, Mapping[str, pulumi.Input[str] | Sequence[pulumi.Input[str]]]] = field(
        default_factory=dict
    )

    def document(self) -> dict[str, Any]:
        """As IAM writes it."""
        told: dict[str, Any] = {"Effect": self.effect, "Action": list(self.actions)}
        if self.principals:
            told["Principal"] = {kind: list(who) for kind, who in self.principals.items()}
        told["Resource"] = list(self.resources)
        if self.conditions:
            told["Condition"] = {operator: dict(keys) for operator, keys in self.conditions.items()}
        return told


def policy(*statements: Statement) -> pulumi.Output[str]:
    """A policy document."""
    return pulumi.Output.json_dumps({"Version": "2012-10-17", "Statement": [each.document() for each in statements]})


def trust(service: str, account: str) -> pulumi.Output[str]:
    """Who may take a role: one service of AWS, on behalf of this account only."""
    told = Statement(["sts:AssumeRole"], (), principals={"Service": [service]}).document()
    del told["Resource"]  # a trust policy has none
    told["Condition"] = {"StringEquals": {"aws:SourceAccount": account}}
    return pulumi.Output.json_dumps({"Version": "2012-10-17", "Statement": [told]})
