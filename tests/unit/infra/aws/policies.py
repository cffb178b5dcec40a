"""Small stacks for the tests of the policy pack, and the fleet's own as the rules see them."""

import json
from typing import Any

from infra.policy.model import Resource, Stack, Trusted
from infra.policy.rules import RULES
from tests.unit.infra.aws.world import FLEET, Recorded

TRUSTED = Trusted(FLEET.router_principal, FLEET.cell_principal, FLEET.account)
TAGS = {"cellwall:part": "cell", "cellwall:cell": "cell-1"}
ROOT = f"arn:aws:iam::{FLEET.account}:root"
KEY_ARN = "arn:aws:kms:eu-central-1:123456789012:key/own"
KEY = Resource("kms/key:Key", "key", {"id": "own", "arn": KEY_ARN, "keyId": "own", "tags": TAGS}, protect=True)
BUCKET = Resource("s3/bucket:Bucket", "blobs", {"id": "b-1", "arn": "arn:aws:s3:::b-1", "tags": TAGS}, protect=True)
FROM_OTHER = frozenset({("ec2/vpc:Vpc", "other")})
FROM_KEY = frozenset({("kms/key:Key", "key")})
# What the mocks' provider makes up for every type, and AWS tells of these alone.
_TOLD = {"id", "arn", "keyId", "masterUserSecrets"}


def bad(
    kind: str, *, protect: bool = True, made_from: dict[str, frozenset[Any]] | None = None, **props: Any
) -> Resource:
    """A resource of cell-1 that is tagged and protected as it should be."""
    return Resource(kind, "bad", {"tags": TAGS, **props}, protect, made_from or {})


def document(**told: Any) -> str:
    """A document of one statement."""
    return json.dumps({"Statement": [{"Effect": "Allow", "Action": ["s3:GetObject"], **told}]})


def stack(*resources: Resource, part: str = "cell", name: str = "cell-1") -> Stack:
    """A stack of that part."""
    return Stack(f"cellwall-{part}", name if part == "cell" else "main", resources, TRUSTED)


def recorded(told: Recorded) -> Stack:
    """A stack of the fleet, with what its resources were given and what AWS would tell of them."""
    made = []
    for asked in (each for each in told.resources if not each.type.startswith("pulumi:")):
        kind = asked.type.removeprefix("aws:")
        told_by_aws = _TOLD | ({"prefixListId"} if kind == "ec2/vpcEndpoint:VpcEndpoint" else set())
        props = {name: value for name, value in asked.outputs.items() if name in told_by_aws or name in asked.inputs}
        made_from = {
            # The engine tells a policy pack nothing of references to other stacks.
            name: frozenset((made.removeprefix("aws:"), by) for made, by in keys if not made.startswith("pulumi:"))
            for name, keys in asked.references.items()
        }
        made.append(Resource(kind, asked.name, props, asked.protect, made_from))
    return Stack(told.project, told.stack, made, TRUSTED)


def faults(rule: str, of: Stack) -> list[str]:
    """What a rule says of a stack."""
    (check,) = (each.check for each in RULES if each.name == rule)
    return [f"{resource.name} {fault}" for resource, fault in check(of)]
