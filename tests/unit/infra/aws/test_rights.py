"""What each role, key and bucket lets whom do, statement by statement."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.infra.aws.world import FLEET, Recorded, World, ident

CELLS = ["cellwall-cell/cell-1", "cellwall-cell/cell-2"]
PLATFORM, PLANE, ROUTER = "cellwall-platform/main", "cellwall-control-plane/main", "cellwall-router/main"
each_cell = pytest.mark.parametrize("stack", CELLS)
each_stack = pytest.mark.parametrize("stack", [PLATFORM, PLANE, ROUTER, *CELLS])
START_IMAGE = ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability"]


def arn(recorded: Recorded, kind: str, name: str) -> str:
    service = kind.partition("/")[0]
    return f"arn:aws:x:{FLEET.region}:{FLEET.account}:{service}/{ident(recorded.stack, f'aws:{kind}', name)}"


def allow(actions: Sequence[str], *resources: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": list(actions), "Resource": list(resources)}


def statements(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(text)["Statement"]
    return found


def roles(recorded: Recorded) -> dict[str, list[dict[str, Any]]]:
    """What each role of a stack may do. Nothing else gives rights: no attachment, no policy inside of the role."""
    names = {ident(recorded.stack, role.type, role.name): role for role in recorded.of("iam/role:Role")}
    for role in names.values():
        assert not {"inlinePolicies", "managedPolicyArns"} & role.inputs.keys(), role.name
    assert not [a.name for a in recorded.resources if "olicyAttachment" in a.type]
    found: dict[str, list[dict[str, Any]]] = {role.name: [] for role in names.values()}
    for policy in recorded.of("iam/rolePolicy:RolePolicy"):
        found[names[policy.inputs["role"]].name] += statements(policy.inputs["policy"])
    return found


def starts(recorded: Recorded, service: str, *secrets: str) -> list[dict[str, Any]]:
    """What ECS may do to start a task: its image, its log, its secrets."""
    (key,) = (k.name for k in recorded.of("kms/key:Key") if "region" not in k.inputs)
    return [
        allow(["ecr:GetAuthorizationToken"], "*"),  # AWS knows no narrower resource for it
        allow(START_IMAGE, f"arn:aws:ecr:{FLEET.region}:{FLEET.account}:repository/cellwall/*"),
        allow(
            ["logs:CreateLogStream", "logs:PutLogEvents"],
            f"{arn(recorded, 'cloudwatch/logGroup:LogGroup', service)}:*",
        ),
        allow(["secretsmanager:GetSecretValue"], *secrets),
        allow(["kms:Decrypt"], arn(recorded, "kms/key:Key", key)),
    ]


def flows(recorded: Recorded, name: str) -> list[dict[str, Any]]:
    group = arn(recorded, "cloudwatch/logGroup:LogGroup", name)
    return [allow(["logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"], group, f"{group}:*")]


def secret(recorded: Recorded, name: str) -> str:
    """A version of a secret has the secret's ARN; here it is made up of the version."""
    return arn(recorded, "secretsmanager/secretVersion:SecretVersion", name)


@each_cell
def test_a_role_of_a_cell_may_do_what_its_service_needs_and_nothing_else(world: World, stack: str) -> None:
    recorded = world.stacks[stack]
    name = recorded.stack
    bucket = arn(recorded, "s3/bucket:Bucket", f"{name}-blobs")
    serves = [
        allow(["s3:ListBucket"], bucket),
        allow(["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], f"{bucket}/*"),
        allow(["kms:Decrypt", "kms:GenerateDataKey"], arn(recorded, "kms/key:Key", name)),
    ]
    shared, own = secret(recorded, f"{name}-shared"), secret(recorded, f"{name}-api")
    # AWS makes the master's secret with the cluster.
    masters = [f"{arn(recorded, 'rds/cluster:Cluster', f'{name}-shard-{n}')}:secret" for n in (1, 2)]
    assert roles(recorded) == {
        f"{name}-api-task": serves,
        f"{name}-worker-task": serves,
        f"{name}-api-start": starts(recorded, f"{name}-api", shared, own, *masters),
        f"{name}-worker-start": starts(recorded, f"{name}-worker", shared),
        f"{name}-flow": flows(recorded, f"{name}-flow"),
    }


def test_a_role_of_router_or_control_plane_may_start_tasks_and_nothing_else(world: World) -> None:
    router, plane, platform = (world.stacks[name] for name in (ROUTER, PLANE, PLATFORM))
    assert roles(router) == {
        "router-serve-task": [],
        "router-serve-start": starts(router, "router-serve", secret(router, "router-secret")),
    }
    shared, own = secret(plane, "control-plane-shared"), secret(plane, "control-plane-serve")
    assert roles(plane) == {
        "control-plane-serve-task": [],
        "control-plane-mover-task": [],
        "control-plane-serve-start": starts(plane, "control-plane-serve", shared, own),
        "control-plane-mover-start": starts(plane, "control-plane-mover", shared),
    }
    assert roles(platform) == {"platform-flow": flows(platform, "platform-flow")}


@each_stack
def test_a_role_is_taken_by_one_service_of_this_account_alone(world: World, stack: str) -> None:
    for role in world.stacks[stack].of("iam/role:Role"):
        service = "vpc-flow-logs" if role.name.endswith("-flow") else "ecs-tasks"
        assert statements(role.inputs["assumeRolePolicy"]) == [
            {
                "Effect": "Allow",
                "Action": ["sts:AssumeRole"],
                "Principal": {"Service": [f"{service}.amazonaws.com"]},
                "Condition": {"StringEquals": {"aws:SourceAccount": FLEET.account}},
            }
        ]


def test_the_boundary_is_what_services_need_and_never_another_cell_s(world: World) -> None:
    (boundary,) = world.stacks[PLATFORM].of("iam/policy:Policy")
    rights = ["ecr:*", "kms:Decrypt", "kms:GenerateDataKey*", "logs:*", "s3:*", "secretsmanager:GetSecretValue"]
    assert statements(boundary.inputs["policy"]) == [
        allow(rights, "*"),
        {
            "Effect": "Deny",
            "Action": ["*"],
            "Resource": ["*"],
            "Condition": {
                "StringNotEquals": {"aws:ResourceTag/cellwall:cell": "${aws:PrincipalTag/cellwall:cell}"},
                "Null": {"aws:ResourceTag/cellwall:cell": "false"},  # where the resource has that tag at all
            },
        },
    ]


@each_stack
def test_every_key_turns_yearly_and_takes_a_month_to_delete(world: World, stack: str) -> None:
    for key in world.stacks[stack].of("kms/key:Key"):
        assert key.inputs["enableKeyRotation"] is True, key.name
        assert key.inputs["deletionWindowInDays"] == 30, key.name
        assert key.protect, key.name


@each_cell
def test_a_key_serves_the_account_and_the_logs_of_its_own_stack(world: World, stack: str) -> None:
    recorded = world.stacks[stack]
    (key,) = recorded.of("kms/key:Key")
    owner, logs, alarms = statements(key.inputs["policy"])
    assert owner["Principal"] == {"AWS": [f"arn:aws:iam::{FLEET.account}:root"]}
    assert logs["Principal"] == {"Service": [f"logs.{FLEET.region}.amazonaws.com"]}
    group = f"arn:aws:logs:{FLEET.region}:{FLEET.account}:log-group:"
    assert logs["Condition"]["ArnLike"]["kms:EncryptionContext:aws:logs:arn"] == [
        f"{group}/cellwall/cells/{recorded.stack}/*",
        f"{group}aws-waf-logs-cellwall-cells-{recorded.stack}",
    ]
    assert alarms["Condition"] == {"StringEquals": {"aws:SourceAccount": FLEET.account}}


@each_cell
def test_the_bucket_speaks_tls_only(world: World, stack: str) -> None:
    recorded = world.stacks[stack]
    (policy,) = recorded.of("s3/bucketPolicy:BucketPolicy")
    bucket = arn(recorded, "s3/bucket:Bucket", f"{recorded.stack}-blobs")
    assert statements(policy.inputs["policy"]) == [
        {
            "Effect": "Deny",
            "Action": ["s3:*"],
            "Principal": {"AWS": ["*"]},
            "Resource": [bucket, f"{bucket}/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
    ]


@each_cell
def test_the_bucket_is_private_encrypted_and_keeps_old_versions_for_a_while(world: World, stack: str) -> None:
    recorded = world.stacks[stack]
    (bucket,) = recorded.of("s3/bucket:Bucket")
    assert (bucket.protect, bucket.inputs["forceDestroy"]) == (True, False)
    (versions,) = recorded.of("s3/bucketVersioning:BucketVersioning")
    assert versions.inputs["versioningConfiguration"] == {"status": "Enabled"}
    (wall,) = recorded.of("s3/bucketPublicAccessBlock:BucketPublicAccessBlock")
    closed = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")
    assert all(wall.inputs[name] is True for name in closed)
    (owners,) = recorded.of("s3/bucketOwnershipControls:BucketOwnershipControls")
    assert owners.inputs["rule"] == {"objectOwnership": "BucketOwnerEnforced"}
    (resting,) = recorded.of("s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration")
    (rule,) = resting.inputs["rules"]
    assert rule["applyServerSideEncryptionByDefault"] == {
        "sseAlgorithm": "aws:kms",
        "kmsMasterKeyId": arn(recorded, "kms/key:Key", recorded.stack),
    }
    (tidy,) = recorded.of("s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration")
    (told,) = tidy.inputs["rules"]
    assert told["noncurrentVersionExpiration"] == {"noncurrentDays": 30}
    ids = {each.inputs["bucket"] for each in (versions, wall, owners, resting, tidy)}
    assert ids == {ident(recorded.stack, bucket.type, bucket.name)}
