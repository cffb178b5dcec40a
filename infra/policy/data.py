"""Data: under which key it rests, how it travels, that it stays, and that what reads it is what was built."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from infra.policy.model import UNKNOWN, Fault, Resource, Stack

_KEY: Final = "kms/key:Key"
_BUCKET: Final = "s3/bucket:Bucket"
_CLUSTER: Final = "rds/cluster:Cluster"
_CACHE: Final = "elasticache/replicationGroup:ReplicationGroup"
_PARAMETERS: Final = "rds/clusterParameterGroup:ClusterParameterGroup"
_BY_KEY: Final = "s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration"
_WALL: Final = "s3/bucketPublicAccessBlock:BucketPublicAccessBlock"
_TASK: Final = "ecs/taskDefinition:TaskDefinition"
# The properties that name the KMS key, by type.
ENCRYPTED_BY: Final = {
    "cloudwatch/logGroup:LogGroup": "kmsKeyId",
    _CACHE: "kmsKeyId",
    _CLUSTER: "kmsKeyId",
    "secretsmanager/secret:Secret": "kmsKeyId",
    "sns/topic:Topic": "kmsMasterKeyId",
}
# The same, of what is there only if it is asked for.
_IF_ASKED: Final = (
    ("rds/clusterInstance:ClusterInstance", "performanceInsightsEnabled", "performanceInsightsKmsKeyId"),
    (_CLUSTER, "manageMasterUserPassword", "masterUserSecretKmsKeyId"),
)
DATA: Final = (_KEY, _CLUSTER, "rds/clusterInstance:ClusterInstance", _BUCKET)
BLOCKS: Final = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")
_DIGEST: Final = re.compile(r"@sha256:[0-9a-f]{64}\Z")


def encrypted(stack: Stack) -> Iterator[Fault]:
    """Data rests under a key of the stack itself, and travels in TLS where AWS ends it."""
    for each in stack.resources:
        name = ENCRYPTED_BY.get(each.type)
        if name is not None and not stack.comes_from(each, name, each.props.get(name), _KEY):
            yield each, _other_key(name)
        for kind, asked, name in _IF_ASKED:
            if each.type == kind and each.props.get(asked) and not _own_key(stack, each, name):
                yield each, _other_key(name)
    for each in stack.of("ecr/repository:Repository"):
        if not _all_of(each, "encryptionConfigurations", lambda told, of=each: _image_key(stack, of, told)):
            yield each, _other_key("kmsKey")
    yield from _in_transit(stack)
    yield from _with_companion(stack, _BY_KEY, _by_kms, "has no default encryption with the stack's KMS key")


def buckets_walled(stack: Stack) -> Iterator[Fault]:
    """No bucket has a public side."""
    for each in stack.of(_BUCKET):
        if str(each.props.get("acl") or "private") != "private" or each.asked("grants"):
            yield each, "is open to others by its ACL"
        if each.asked("website"):
            yield each, "is a website"
    yield from _with_companion(stack, _WALL, _walled, "is not walled off from public ACLs and policies")


def kept(stack: Stack) -> Iterator[Fault]:
    """What holds data cannot be deleted by accident, neither through Pulumi nor beside it."""
    for each in stack.resources:
        # A cache that takes snapshots holds what somebody wants to keep.
        holds = each.type in DATA or (each.type == _CACHE and each.asked("snapshotRetentionLimit"))
        if holds and not each.protect:
            yield each, "holds data and is not protected"
        if each.props.get("forceDestroy") or each.props.get("forceDelete"):
            yield each, "would be deleted with all that is in it"
    for each in stack.of(_CLUSTER):
        if each.props.get("deletionProtection") is not True:
            yield each, "has no deletion protection"
        if each.props.get("skipFinalSnapshot", False) is not False:
            yield each, "would be deleted without a last snapshot"


def digests(stack: Stack) -> Iterator[Fault]:
    """What runs is named by what it is, not by a tag that somebody can move."""
    for each in stack.of(_TASK):
        text = each.props.get("containerDefinitions")
        if text is UNKNOWN and not each.asked("containerDefinitions"):
            yield each, "runs nobody knows what"
        for container in json.loads(text) if isinstance(text, str) else ():
            if not _DIGEST.search(container["image"]):
                yield each, f"runs {container['image']}, which is no digest"


def _in_transit(stack: Stack) -> Iterator[Fault]:
    for each in stack.of(_CLUSTER):
        if each.props.get("storageEncrypted") is not True:
            yield each, "does not encrypt its storage"
        parameters = "dbClusterParameterGroupName"
        if not stack.comes_from(each, parameters, each.props.get(parameters), _PARAMETERS):
            yield each, "takes its settings from no parameter group of this stack: TLS may be off"
    for each in stack.of(_PARAMETERS):
        if not _forces_tls(each):
            yield each, "does not set rds.force_ssl: passwords and rows would travel in clear"
    for each in stack.of(_CACHE):
        for setting in ("atRestEncryptionEnabled", "transitEncryptionEnabled"):
            # The SDK takes the first as text too.
            if str(each.props.get(setting)).lower() != "true":
                yield each, f"does not set {setting}"
        if each.props.get("transitEncryptionMode", "required") not in ("required", UNKNOWN):
            yield each, "takes clients without TLS (transitEncryptionMode)"


def _other_key(name: str) -> str:
    return f"has no {name}, or not the stack's own: its data would rest under a key that the stack does not own"


def _own_key(stack: Stack, each: Resource, name: str) -> bool:
    return stack.comes_from(each, name, each.props.get(name), _KEY)


def _image_key(stack: Stack, each: Resource, told: Any) -> bool:
    key = told.get("kmsKey")
    return told.get("encryptionType") == "KMS" and stack.comes_from(each, "encryptionConfigurations", key, _KEY)


def _forces_tls(group: Resource) -> bool:
    parameters = group.props.get("parameters")
    told = parameters if isinstance(parameters, (list, tuple)) else ()
    return any(each.get("name") == "rds.force_ssl" and each.get("value") == "1" for each in told)


def _all_of(each: Resource, name: str, good: Callable[..., bool]) -> bool:
    told = each.props.get(name)
    return isinstance(told, (list, tuple)) and bool(told) and all(good(one) for one in told)


def _by_kms(stack: Stack, companion: Resource) -> bool:
    def good(rule: Any) -> bool:
        told = rule.get("applyServerSideEncryptionByDefault") or {}
        key = told.get("kmsMasterKeyId")
        return told.get("sseAlgorithm") == "aws:kms" and stack.comes_from(companion, "rules", key, _KEY)

    return _all_of(companion, "rules", good)


def _walled(_: Stack, companion: Resource) -> bool:
    return all(companion.props.get(name) is True for name in BLOCKS)


def _with_companion(stack: Stack, kind: str, good: Callable[[Stack, Resource], bool], fault: str) -> Iterator[Fault]:
    """Buckets that no good companion of that type names, and companions that are not good whatever they name."""
    companions = list(stack.of(kind))
    for each in companions:
        if not good(stack, each):
            yield each, f"is of a bucket that {fault}"
    for each in stack.of(_BUCKET):
        if not any(_names(companion, each) for companion in companions):
            yield each, fault


def _names(companion: Resource, bucket: Resource) -> bool:
    told = companion.props.get("bucket")
    if told is UNKNOWN:
        return companion.references.get("bucket", frozenset()) == {(bucket.type, bucket.name)}
    return told in bucket.known_as()
