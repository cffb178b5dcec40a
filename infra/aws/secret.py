"""Secrets of one stack, read by name and field when a container starts; never in a task definition's text."""

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
from pulumi_aws import secretsmanager

from infra.aws.component import Component
from infra.aws.fleet import Tags


@dataclass(frozen=True, slots=True)
class SecretArgs:
    """``label`` is the last part of the secret's name; ``fields`` become one JSON object."""

    tags: Tags
    key_arn: pulumi.Input[str]
    label: str
    fields: Mapping[str, pulumi.Input[str]]


class Secret(Component):
    """One secret under the stack's own key and path."""

    arn: pulumi.Output[str]

    def __init__(self, name: str, args: SecretArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("Secret", name, opts)
        self._fields = frozenset(args.fields)
        secret = secretsmanager.Secret(
            name,
            name=f"{args.tags.path}/{args.label}",
            kms_key_id=args.key_arn,
            recovery_window_in_days=7,
            tags=args.tags.named(name),
            opts=self.inside,
        )
        version = secretsmanager.SecretVersion(
            name,
            secret_id=secret.id,
            secret_string=pulumi.Output.json_dumps(dict(args.fields), sort_keys=True),
            opts=self.inside,
        )
        self.arn = version.secret_arn  # known once there is something to read
        self.register_outputs({"arn": self.arn})

    def field(self, name: str) -> pulumi.Output[str]:
        """What a container definition says to get that field."""
        if name not in self._fields:
            raise KeyError(f"{name} is none of {', '.join(sorted(self._fields))}")
        return pulumi.Output.concat(self.arn, f":{name}::")
