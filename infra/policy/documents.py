"""Documents of IAM: who is let in by a bucket, a key, a topic or a role, and what a role may do."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from infra.policy.model import UNKNOWN, Fault, Resource, Stack, listed

_ROLE: Final = "iam/role:Role"
_BOUNDARY: Final = "iam/policy:Policy"
_KEY: Final = "kms/key:Key"
_TOPIC: Final = "sns/topic:Topic"
# What of a resource is a document. The policy of a VPC endpoint is none of these: it takes away and gives nothing.
_PLACES: Final = {
    _KEY: ("policy",),
    _ROLE: ("assumeRolePolicy",),
    _BOUNDARY: ("policy",),
    _TOPIC: ("policy",),
    "ecr/repository:Repository": ("policy",),
    "iam/rolePolicy:RolePolicy": ("policy",),
    "s3/bucket:Bucket": ("policy",),
    "s3/bucketPolicy:BucketPolicy": ("policy",),
    "secretsmanager/secret:Secret": ("policy",),
    "sns/topicPolicy:TopicPolicy": ("policy",),
}
# From what a document of the future may be made: names and ARNs of what the stack itself holds.
_MADE_FROM: Final = (
    "cloudwatch/logGroup:LogGroup",
    _KEY,
    "rds/cluster:Cluster",
    "s3/bucket:Bucket",
    "secretsmanager/secret:Secret",
    "secretsmanager/secretVersion:SecretVersion",
    _TOPIC,
)
# Who is let in must be known before anything is made; what the rest names may come with it.
_KNOWN_AT_ONCE: Final = (_KEY, _ROLE, _BOUNDARY)
_SERVICES: Final = re.compile(r"(ecs-tasks|vpc-flow-logs|cloudwatch|logs\.[a-z0-9-]+)\.amazonaws\.com\Z")
_CELLS: Final = re.compile(r"cells[/-]([^/:\"]*)")
_WILD: Final = re.compile(r"[*?]")
# Actions that AWS knows for no single resource.
_FOR_ALL: Final = frozenset(["ecr:GetAuthorizationToken"])
_BOUNDED_SERVICES: Final = frozenset(["ecr", "kms", "logs", "s3", "secretsmanager"])
_BOUNDARY_DENIES: Final = {
    "StringNotEquals": {"aws:ResourceTag/cellwall:cell": "${aws:PrincipalTag/cellwall:cell}"},
    "Null": {"aws:ResourceTag/cellwall:cell": "false"},
}


@dataclass(frozen=True, slots=True)
class _Document:
    holder: Resource
    place: str
    statements: tuple[Mapping[str, Any], ...]


def known_principals(stack: Stack) -> Iterator[Fault]:
    """Nobody is let in but the fleet's account, by name, and the services of AWS on its behalf."""
    yield from _unreadable(stack)
    for document in _documents(stack):
        for told in document.statements:
            for fault in _principal_faults(stack, document, told):
                yield document.holder, fault


def bounded_roles(stack: Stack) -> Iterator[Fault]:
    """A role has the fleet's boundary, does single things to single resources, and names no cell but its own."""
    for each in stack.of(_ROLE):
        boundary = each.props.get("permissionsBoundary")
        # It is the platform's, of which another stack has no more than the ARN.
        by_name = stack.part != "platform" and f":{stack.trusted.account}:" in str(boundary)
        if not by_name and not stack.comes_from(each, "permissionsBoundary", boundary, _BOUNDARY):
            yield each, "has no permissions boundary, or one that is not the fleet's"
        if each.asked("managedPolicyArns"):
            yield each, "has policies that somebody else wrote (managedPolicyArns)"
        if each.props.get("inlinePolicies") is UNKNOWN and each.asked("inlinePolicies"):
            yield each, "has policies inside that a preview cannot see"
    for document in _documents(stack):
        for told in document.statements:
            for fault in _grant_faults(stack, document, told):
                yield document.holder, fault
        for cell in sorted(set(_CELLS.findall(json.dumps(document.statements)))):
            if cell != stack.cell:
                yield document.holder, f"names the cell {cell or 'of any name'}, not {stack.cell or 'this stack'}"
    for each in stack.of(_BOUNDARY):
        if not any(_walls_off(told) for told in _statements(each.props.get("policy")) or ()):
            yield each, "is a boundary that does not deny what carries another cell's tag"


def _unreadable(stack: Stack) -> Iterator[Fault]:
    for each in stack.resources:
        for place in _PLACES.get(each.type, ()):
            text = each.props.get(place)
            if text is UNKNOWN:
                if each.type in _KNOWN_AT_ONCE:
                    yield each, f"is known only later ({place}): nobody can tell who is let in"
                elif each.asked(place) and not stack.comes_from(each, place, text, *_MADE_FROM):
                    yield each, f"is known only later ({place}), and not made from what the stack holds"
                elif each.type.endswith("Policy") and not each.asked(place):
                    yield each, f"is known only later ({place}), and nobody tells from what"
            elif text and _statements(text) is None:
                yield each, f"has no policy document in {place}"


def _documents(stack: Stack) -> Iterator[_Document]:
    for each in stack.resources:
        for place in _PLACES.get(each.type, ()):
            yield _Document(each, place, _statements(each.props.get(place)) or ())
        if each.type == _ROLE and isinstance(each.props.get("inlinePolicies"), (list, tuple)):
            for inline in each.props["inlinePolicies"]:
                yield _Document(each, "inlinePolicies", _statements(inline.get("policy")) or ())


def _statements(text: Any) -> tuple[Mapping[str, Any], ...] | None:
    """The statements of a document, none of one that is not there yet; None for what is no document."""
    if not isinstance(text, str) or not text:
        return ()
    try:
        told = json.loads(text)
    except ValueError:
        return None
    found = listed(told.get("Statement")) if isinstance(told, Mapping) else []
    return tuple(found) if found and all(isinstance(each, Mapping) for each in found) else None


def _principal_faults(stack: Stack, document: _Document, told: Mapping[str, Any]) -> Iterator[str]:
    if "NotPrincipal" in told:
        yield "lets in everybody but some (NotPrincipal)"
    if told.get("Effect") != "Allow" or "Principal" not in told:
        return
    if document.holder.type == _TOPIC and _own_by_default(told, stack.trusted.account):
        return
    principal = told["Principal"]
    for kind, who in principal.items() if isinstance(principal, Mapping) else [("", principal)]:
        for one in listed(who):
            if (fault := _stranger(stack, document, told, kind, str(one))) is not None:
                yield fault


def _stranger(stack: Stack, document: _Document, told: Mapping[str, Any], kind: str, who: str) -> str | None:
    account = stack.trusted.account
    if kind == "Service":
        if not _SERVICES.match(who):
            return f"lets in {who}, a service of AWS that no stack of ours needs"
        values = [
            text for keys in (told.get("Condition") or {}).values() for each in keys.values() for text in listed(each)
        ]
        if not values or not all(account in str(text) for text in values):
            return f"lets in {who} on behalf of any account"
        return None
    if kind == "AWS" and document.holder.type == _KEY and re.fullmatch(rf"arn:aws[a-z-]*:iam::{account}:root", who):
        return None
    return f"lets in {who}"


def _own_by_default(told: Mapping[str, Any], account: str) -> bool:
    """The document that AWS gives a topic by itself: everybody, but for the owner only."""
    return told.get("Condition") == {"StringEquals": {"AWS:SourceOwner": account}}


def _grant_faults(stack: Stack, document: _Document, told: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with what a document lets its holder do, where the holder is a role."""
    if told.get("Effect") != "Allow" or document.holder.type not in (_ROLE, _BOUNDARY, "iam/rolePolicy:RolePolicy"):
        return
    if "NotAction" in told or "NotResource" in told:
        yield "allows everything but some"
    actions = [str(each) for each in listed(told.get("Action"))]
    if document.holder.type == _BOUNDARY:
        for action in actions:
            if action.split(":")[0] not in _BOUNDED_SERVICES:
                yield f"lets roles have {action}, of a service that none of ours uses"
        return
    if document.place == "assumeRolePolicy":
        if actions != ["sts:AssumeRole"]:
            yield f"can be taken by {', '.join(actions)}"
        return
    for action in actions:
        if _WILD.search(action):
            yield f"allows {action}; a role's actions are told one by one"
    for resource in map(str, listed(told.get("Resource"))):
        if resource == "*" and set(actions) <= _FOR_ALL:
            continue
        if not _of_this_stack(stack, resource):
            yield f"reaches {resource}, which is nothing that this stack holds"


def _of_this_stack(stack: Stack, resource: str) -> bool:
    """Whether the pattern can only mean what the stack holds, or the fleet's images, which all parts pull."""
    for each in stack.resources:
        for arn in (each.props.get("arn"), *_secrets(each)):
            if isinstance(arn, str) and arn.startswith("arn:") and resource in (arn, f"{arn}:*", f"{arn}/*"):
                return True
    images = rf"arn:aws[a-z-]*:ecr:[a-z0-9-]+:{stack.trusted.account}:repository/cellwall/[a-z*-]+"
    return re.fullmatch(images, resource) is not None


def _secrets(each: Resource) -> list[Any]:
    """The passwords that AWS keeps for a cluster."""
    told = each.props.get("masterUserSecrets")
    return [secret.get("secretArn") for secret in told] if isinstance(told, (list, tuple)) else []


def _walls_off(told: Mapping[str, Any]) -> bool:
    return (
        told.get("Effect") == "Deny"
        and listed(told.get("Action")) == ["*"]
        and listed(told.get("Resource")) == ["*"]
        and told.get("Condition") == _BOUNDARY_DENIES
    )
