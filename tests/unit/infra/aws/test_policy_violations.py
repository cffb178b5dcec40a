"""Each rule of the policy pack stops what it is there to stop, in each of the ways there are to break it."""

import json
from typing import Any

import pytest

from infra.policy.model import UNKNOWN, Resource, Stack
from infra.policy.rules import RULES
from tests.unit.infra.aws.policies import (
    BUCKET,
    FROM_KEY,
    FROM_OTHER,
    KEY,
    KEY_ARN,
    ROOT,
    TAGS,
    TRUSTED,
    bad,
    document,
    faults,
    stack,
)
from tests.unit.infra.aws.world import FLEET

INGRESS = "vpc/securityGroupIngressRule:SecurityGroupIngressRule"
EGRESS = "vpc/securityGroupEgressRule:SecurityGroupEgressRule"
GROUP = "ec2/securityGroup:SecurityGroup"
ROUTE = "ec2/route:Route"
TABLE = "ec2/routeTable:RouteTable"
ENDPOINT = "ec2/vpcEndpoint:VpcEndpoint"
SERVICE = "ec2/vpcEndpointService:VpcEndpointService"
BALANCER = "lb/loadBalancer:LoadBalancer"
CLUSTER = "rds/cluster:Cluster"
CACHE = "elasticache/replicationGroup:ReplicationGroup"
PARAMETERS = "rds/clusterParameterGroup:ClusterParameterGroup"
ROLE = "iam/role:Role"
ROLE_POLICY = "iam/rolePolicy:RolePolicy"
ENCRYPTION = "s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration"
WALL = "s3/bucketPublicAccessBlock:BucketPublicAccessBlock"
TASK = "ecs/taskDefinition:TaskDefinition"
REPOSITORY = "ecr/repository:Repository"

GATEWAY = Resource("ec2/internetGateway:InternetGateway", "igw", {"id": "igw-1"})
TO_CONTROL = Resource(ENDPOINT, "cp", {"serviceName": "com.amazonaws.vpce.r.vpce-svc-1"})
S3 = Resource(ENDPOINT, "s3", {"serviceName": "com.amazonaws.eu-central-1.s3", "prefixListId": "pl-1"})
OUT = {"destinationCidrBlock": "0.0.0.0/0", "gatewayId": "igw-1"}
HTTPS = {"ipProtocol": "tcp", "fromPort": 443.0, "toPort": 443.0, "securityGroupId": "sg-1"}
FOR_ALL = {**HTTPS, "cidrIpv4": "0.0.0.0/0"}
OUTER = Resource(BALANCER, "outer", {"internal": False, "loadBalancerType": "network", "securityGroups": ["sg-1"]})
TLS = {"name": "rds.force_ssl", "value": "1"}
FORCED = Resource(PARAMETERS, "forced", {"id": "pg-1", "parameters": [TLS]})
DATABASE = {
    "kmsKeyId": KEY_ARN,
    "storageEncrypted": True,
    "deletionProtection": True,
    "dbClusterParameterGroupName": "pg-1",
}
VALKEY = {"kmsKeyId": KEY_ARN, "atRestEncryptionEnabled": True, "transitEncryptionEnabled": True}
BY_KMS = {"sseAlgorithm": "aws:kms", "kmsMasterKeyId": KEY_ARN}
WALLED = dict.fromkeys(("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets"), True)
BOUNDED = {"permissionsBoundary": f"arn:aws:iam::{FLEET.account}:policy/cellwall/boundary"}
LOGS = "logs.eu-central-1.amazonaws.com"
OWN_ACCOUNT = {"StringEquals": {"aws:SourceAccount": FLEET.account}}
TASKS = document(Action=["sts:AssumeRole"], Principal={"Service": ["ecs-tasks.amazonaws.com"]}, Condition=OWN_ACCOUNT)
FOREIGN = "arn:aws:iam::999999999999:root"


def sse(**told: Any) -> list[dict[str, Any]]:
    return [{"applyServerSideEncryptionByDefault": told}]


def may(**told: Any) -> Resource:
    return bad(ROLE_POLICY, policy=document(**{"Resource": ["arn:aws:s3:::b-1/*"], **told}))


def role(**props: Any) -> Resource:
    return bad(ROLE, **{**BOUNDED, "assumeRolePolicy": TASKS, **props})


def boundary(action: str = "s3:*", **more: Any) -> Resource:
    statements = [{"Effect": "Allow", "Action": [action], "Resource": ["*"]}]
    deny = {"Effect": "Deny", "Action": ["*"], "Resource": ["*"], "Condition": DENIES, **more}
    return bad("iam/policy:Policy", policy=json.dumps({"Statement": [*statements, deny]}))


DENIES = {
    "StringNotEquals": {"aws:ResourceTag/cellwall:cell": "${aws:PrincipalTag/cellwall:cell}"},
    "Null": {"aws:ResourceTag/cellwall:cell": "false"},
}
BREAKS: dict[str, list[tuple[str, Stack]]] = {
    "one-cell-per-stack": [
        ("has cell-2 in its tag cellwall:cell", stack(bad("ec2/vpc:Vpc", tags={**TAGS, "cellwall:cell": "cell-2"}))),
        ("has router in its tag cellwall:part", stack(bad("ec2/vpc:Vpc", tags={**TAGS, "cellwall:part": "router"}))),
        ("has nothing in its tag cellwall:part", stack(bad("ec2/vpc:Vpc", tags=None))),
        ("has nothing in its tag cellwall:cell", stack(bad("ec2/vpc:Vpc", tags=UNKNOWN))),
        ("has cell-1 in its tag cellwall:cell, in a stack of no cell", stack(bad("ec2/vpc:Vpc"), part="router")),
        ("is no part of the fleet", Stack("mine", "cell-1", [bad("ec2/vpc:Vpc")], TRUSTED)),
    ],
    "guarded-endpoints": [
        ("lets in *", stack(bad(SERVICE, allowedPrincipals=["*"]))),
        ("lets in nobody", stack(bad(SERVICE))),
        ("lets in UNKNOWN", stack(bad(SERVICE, allowedPrincipals=UNKNOWN))),
        ("lets in UNKNOWN", stack(bad(SERVICE, allowedPrincipals=[UNKNOWN]))),
        (FOREIGN, stack(bad(SERVICE, allowedPrincipals=[FLEET.router_principal, FOREIGN]))),
        ("its only principal is", stack(bad(SERVICE, allowedPrincipals=[FLEET.cell_principal]))),
        (
            "its only principal is",
            stack(bad(SERVICE, allowedPrincipals=[FLEET.router_principal]), part="control-plane"),
        ),
        (
            "hands traffic to a gateway balancer",
            stack(bad(SERVICE, allowedPrincipals=[FLEET.router_principal], gatewayLoadBalancerArns=["x"])),
        ),
    ],
    "no-bridges": [
        ("is a route, and no cell has one", stack(GATEWAY, bad(ROUTE, **OUT))),
        ("is a route, and no cell has one", stack(GATEWAY, bad(TABLE, routes=[{"gatewayId": "igw-1"}]))),
        *(
            (f"not ours ({name})", stack(GATEWAY, bad(ROUTE, **OUT, **{name: "x"}), part="platform"))
            for name in (
                "carrierGatewayId",
                "coreNetworkArn",
                "egressOnlyGatewayId",
                "localGatewayId",
                "natGatewayId",
                "networkInterfaceId",
                "odbNetworkArn",
                "transitGatewayId",
                "vpcEndpointId",
                "vpcPeeringConnectionId",
                "destinationIpv6CidrBlock",
                "destinationPrefixListId",
            )
        ),
        (
            "not ours (transitGatewayId)",
            stack(GATEWAY, bad(TABLE, routes=[{"cidrBlock": "10.1.0.0/16", "transitGatewayId": "t"}]), part="platform"),
        ),
        (
            "not ours (ipv6CidrBlock)",
            stack(GATEWAY, bad(TABLE, routes=[{"ipv6CidrBlock": "::/0", "gatewayId": "igw-1"}]), part="platform"),
        ),
        (
            "is a route to 10.64.0.0/16",
            stack(GATEWAY, bad(ROUTE, **{**OUT, "destinationCidrBlock": "10.64.0.0/16"}), part="platform"),
        ),
        (
            "is a route to 128.0.0.0/1",
            stack(GATEWAY, bad(TABLE, routes=[{"cidrBlock": "128.0.0.0/1", "gatewayId": "igw-1"}]), part="platform"),
        ),
        ("is not the platform's internet gateway", stack(bad(ROUTE, **OUT), part="platform")),
        ("is not the platform's", stack(GATEWAY, bad(ROUTE, **{**OUT, "gatewayId": UNKNOWN}), part="platform")),
        (
            "leads where a preview cannot see",
            stack(bad(ROUTE, **OUT, natGatewayId=UNKNOWN, made_from={"natGatewayId": FROM_OTHER}), part="platform"),
        ),
        (
            "routes that a preview cannot see",
            stack(bad(TABLE, routes=UNKNOWN, made_from={"routes": FROM_OTHER})),
        ),
        ("private network's gateway", stack(bad(TABLE, propagatingVgws=["vgw-1"]))),
        ("reaches another network", stack(bad(ENDPOINT, serviceNetworkArn="x", serviceName="com.amazonaws.r.s3"))),
        ("reaches another network", stack(bad(ENDPOINT, resourceConfigurationArn="x"))),
        ("is no service of AWS", stack(bad(ENDPOINT, serviceName=UNKNOWN))),
        ("is no service of AWS", stack(TO_CONTROL, bad(ENDPOINT, serviceName="com.amazonaws.vpce.r.vpce-svc-2"))),
        ("is no service of AWS", stack(TO_CONTROL, bad(ENDPOINT, serviceName="another"))),
        ("is no service of AWS", stack(TO_CONTROL, part="platform")),
        ("is no service of AWS", stack(TO_CONTROL, part="control-plane")),
    ],
    "nothing-public": [
        *(
            (f"would have a public address ({name})", stack(bad("ec2/subnet:Subnet", **{name: True})))
            for name in (
                "assignGeneratedIpv6CidrBlock",
                "assignIpv6AddressOnCreation",
                "assignPublicIp",
                "associatePublicIpAddress",
                "customerOwnedIpv4Pool",
                "ipv6CidrBlock",
                "ipv6Native",
                "mapCustomerOwnedIpOnLaunch",
                "mapPublicIpOnLaunch",
                "publiclyAccessible",
            )
        ),
        (
            "would have a public address (mapPublicIpOnLaunch)",
            stack(bad("ec2/subnet:Subnet", mapPublicIpOnLaunch=UNKNOWN, made_from={"mapPublicIpOnLaunch": FROM_OTHER})),
        ),
        (
            "(networkConfiguration.assignPublicIp)",
            stack(bad("ecs/service:Service", networkConfiguration={"assignPublicIp": True})),
        ),
        (
            "(networkConfiguration.assignPublicIp)",
            stack(bad("ecs/service:Service", networkConfiguration=[{"assignPublicIp": UNKNOWN}])),
        ),
        ("would have a public address (dualstack)", stack(bad(BALANCER, internal=True, ipAddressType="dualstack"))),
        ("faces the internet; only the router's", stack(bad(BALANCER, internal=False))),
        ("faces the internet; only the router's", stack(bad(BALANCER, internal=UNKNOWN))),
        ("faces the internet; only one", stack(OUTER, bad(BALANCER, loadBalancerType="network"), part="router")),
        ("faces the internet; only one", stack(bad(BALANCER, loadBalancerType="application"), part="router")),
        ("speaks HTTP", stack(bad("lb/listener:Listener", protocol="HTTP"))),
        ("speaks UDP", stack(bad("lb/listener:Listener", protocol="UDP"))),
        ("is open for 0.0.0.0/0", stack(OUTER, bad(INGRESS, **FOR_ALL))),
        (
            "is open for 0.0.0.0/0",
            stack(OUTER, bad(INGRESS, **{**FOR_ALL, "fromPort": 80, "toPort": 80}), part="router"),
        ),
        ("is open for 0.0.0.0/0", stack(OUTER, bad(EGRESS, **FOR_ALL), part="router")),
        ("is open for 0.0.0.0/0", stack(OUTER, bad(INGRESS, **{**FOR_ALL, "securityGroupId": "x"}), part="router")),
        ("is open for 0.0.0.0/0", stack(bad(INGRESS, **FOR_ALL), part="router")),
        (
            "is open for 0.0.0.0/0",
            stack(
                Resource(BALANCER, "in", {"internal": True, "securityGroups": ["sg-1"]}),
                bad(INGRESS, **FOR_ALL),
                part="router",
            ),
        ),
        (
            "is open for 0.0.0.0/0",
            stack(
                Resource("ecs/service:Service", "s", {"networkConfiguration": {"securityGroups": ["sg-1"]}}),
                bad(INGRESS, **FOR_ALL),
                part="router",
            ),
        ),
        (
            "is open for 0.0.0.0/0",
            stack(
                OUTER,
                Resource("ecs/service:Service", "s", {"networkConfiguration": {"securityGroups": ["sg-1"]}}),
                bad(INGRESS, **FOR_ALL),
                part="router",
            ),
        ),
        ("is open for 0.0.0.0/1", stack(OUTER, bad(INGRESS, **{**FOR_ALL, "cidrIpv4": "0.0.0.0/1"}), part="router")),
        ("is open for 10.0.0.0/8", stack(bad(INGRESS, **HTTPS, cidrIpv4="10.0.0.0/8"))),
        ("is open for 8.8.0.0/16", stack(bad(EGRESS, **HTTPS, cidrIpv4="8.8.0.0/16"))),
        ("is open for UNKNOWN", stack(bad(INGRESS, **HTTPS, cidrIpv4=UNKNOWN, made_from={"cidrIpv4": FROM_OTHER}))),
        ("opens a way for IPv6", stack(bad(INGRESS, **HTTPS, cidrIpv6="::/0"))),
        ("opens a way for the prefix list pl-1", stack(bad(INGRESS, **HTTPS, prefixListId="pl-1"))),
        ("opens a way for the prefix list pl-1", stack(bad(EGRESS, **HTTPS, prefixListId="pl-1"))),
        ("opens a way for the prefix list pl-1", stack(S3, bad(INGRESS, **HTTPS, prefixListId="pl-1"))),
        (
            "opens a way for the prefix list pl-1",
            stack(S3, bad(EGRESS, **{**HTTPS, "fromPort": 22, "toPort": 22}, prefixListId="pl-1")),
        ),
        (
            "opens a way for the prefix list UNKNOWN",
            stack(bad(EGRESS, **HTTPS, prefixListId=UNKNOWN, made_from={"prefixListId": FROM_OTHER}), part="router"),
        ),
        (
            "opens tcp 0 to 65535",
            stack(bad(INGRESS, **{**HTTPS, "fromPort": 0, "toPort": 65535}, cidrIpv4="10.0.0.0/16")),
        ),
        (
            "opens tcp 443 to 444",
            stack(
                OUTER,
                bad(
                    INGRESS,
                    **{**FOR_ALL, "fromPort": 443, "toPort": 444},
                ),
                part="router",
            ),
        ),
        ("opens -1 443", stack(bad(INGRESS, **{**HTTPS, "ipProtocol": "-1"}, referencedSecurityGroupId="sg-2"))),
        ("opens tcp None", stack(bad(INGRESS, ipProtocol="tcp", referencedSecurityGroupId="sg-2"))),
        ("does not say for whom", stack(bad(INGRESS, **HTTPS))),
        (
            "has a rule inside (ingress)",
            stack(bad(GROUP, ingress=[{"cidrBlocks": ["10.0.0.0/16"], "protocol": "tcp", "fromPort": 1, "toPort": 1}])),
        ),
        ("has a rule inside (ingress)", stack(bad(GROUP, ingress=[{"self": True, "protocol": "-1"}]))),
        ("has a rule inside (egress)", stack(bad(GROUP, egress=[{"cidrBlocks": ["0.0.0.0/0"], "protocol": "-1"}]))),
        (
            "has a rule inside (egress)",
            stack(bad("ec2/defaultSecurityGroup:DefaultSecurityGroup", egress=[{"ipv6CidrBlocks": ["::/0"]}])),
        ),
        ("that a preview cannot see", stack(bad(GROUP, ingress=UNKNOWN, made_from={"ingress": FROM_OTHER}))),
        ("is not walled off", stack(BUCKET)),
        ("is not walled off", stack(BUCKET, Resource(WALL, "blobs", {**WALLED, "bucket": "another"}))),
        ("is not walled off", stack(BUCKET, Resource(WALL, "blobs", {**WALLED, "bucket": UNKNOWN}))),
        *(
            ("of a bucket that is not walled off", stack(BUCKET, bad(WALL, **{**WALLED, "bucket": "b-1", name: off})))
            for name in WALLED
            for off in (False, UNKNOWN)
        ),
        ("open to others by its ACL", stack(bad("s3/bucket:Bucket", acl="authenticated-read"))),
        ("open to others by its ACL", stack(bad("s3/bucket:Bucket", grants=[{}]))),
        ("is a website", stack(bad("s3/bucket:Bucket", website={"indexDocument": "x"}))),
    ],
    "encrypted": [
        *(
            (f"has no {name}, or not the stack's own", stack(KEY, bad(kind, **{name: value}, made_from=made_from)))
            for kind, name in [
                ("cloudwatch/logGroup:LogGroup", "kmsKeyId"),
                ("secretsmanager/secret:Secret", "kmsKeyId"),
                ("sns/topic:Topic", "kmsMasterKeyId"),
                (CLUSTER, "kmsKeyId"),
                (CACHE, "kmsKeyId"),
            ]
            for value, made_from in [
                (None, None),
                ("alias/aws/rds", None),
                ("arn:aws:kms:eu-central-1:999999999999:key/other", None),
                (UNKNOWN, None),
                (UNKNOWN, {name: FROM_OTHER}),
                (UNKNOWN, {name: FROM_OTHER | FROM_KEY}),
            ]
        ),
        (
            "has no performanceInsightsKmsKeyId",
            stack(KEY, bad("rds/clusterInstance:ClusterInstance", performanceInsightsEnabled=True)),
        ),
        (
            "has no masterUserSecretKmsKeyId",
            stack(KEY, FORCED, bad(CLUSTER, **DATABASE, manageMasterUserPassword=True)),
        ),
        ("does not encrypt its storage", stack(KEY, FORCED, bad(CLUSTER, **{**DATABASE, "storageEncrypted": None}))),
        ("no parameter group of this stack", stack(KEY, bad(CLUSTER, **DATABASE))),
        ("does not set rds.force_ssl", stack(bad(PARAMETERS, parameters=[{**TLS, "value": "0"}]))),
        ("does not set rds.force_ssl", stack(bad(PARAMETERS, parameters=[{**TLS, "name": "ssl"}]))),
        ("does not set rds.force_ssl", stack(bad(PARAMETERS, parameters=UNKNOWN))),
        (
            "does not set transitEncryptionEnabled",
            stack(KEY, bad(CACHE, **{**VALKEY, "transitEncryptionEnabled": False})),
        ),
        (
            "does not set atRestEncryptionEnabled",
            stack(KEY, bad(CACHE, **{**VALKEY, "atRestEncryptionEnabled": None})),
        ),
        ("takes clients without TLS", stack(KEY, bad(CACHE, **VALKEY, transitEncryptionMode="preferred"))),
        ("has no kmsKey", stack(KEY, bad(REPOSITORY))),
        ("has no kmsKey", stack(KEY, bad(REPOSITORY, encryptionConfigurations=[{"encryptionType": "KMS"}]))),
        (
            "has no kmsKey",
            stack(KEY, bad(REPOSITORY, encryptionConfigurations=[{"encryptionType": "AES256", "kmsKey": KEY_ARN}])),
        ),
        ("has no default encryption", stack(KEY, BUCKET)),
        ("has no default encryption", stack(KEY, BUCKET, bad(ENCRYPTION, bucket="another", rules=sse(**BY_KMS)))),
        (
            "of a bucket that has no default encryption",
            stack(KEY, BUCKET, bad(ENCRYPTION, bucket="b-1", rules=sse(**{**BY_KMS, "sseAlgorithm": "AES256"}))),
        ),
        (
            "of a bucket that has no default encryption",
            stack(KEY, BUCKET, bad(ENCRYPTION, bucket="b-1", rules=sse(sseAlgorithm="aws:kms"))),
        ),
        ("of a bucket that has no default", stack(KEY, BUCKET, bad(ENCRYPTION, bucket="b-1", rules=[]))),
        ("of a bucket that has no default", stack(KEY, BUCKET, bad(ENCRYPTION, bucket="b-1", rules=UNKNOWN))),
    ],
    "known-principals": [
        *(
            (says, stack(KEY, bad(kind, **{place: document(**told)})))
            for kind, place in [
                ("s3/bucketPolicy:BucketPolicy", "policy"),
                ("s3/bucket:Bucket", "policy"),
                ("kms/key:Key", "policy"),
                ("secretsmanager/secret:Secret", "policy"),
                ("sns/topicPolicy:TopicPolicy", "policy"),
                ("sns/topic:Topic", "policy"),
                (REPOSITORY, "policy"),
                (ROLE, "assumeRolePolicy"),
            ]
            for says, told in [
                ("lets in *", {"Principal": "*"}),
                ("lets in *", {"Principal": {"AWS": ["*"]}}),
                ("lets in everybody but some", {"NotPrincipal": {"AWS": [ROOT]}}),
                (f"lets in {FOREIGN}", {"Principal": {"AWS": [ROOT, FOREIGN]}}),
                ("lets in 999999999999", {"Principal": {"AWS": "999999999999"}}),
                ("lets in cognito", {"Principal": {"Federated": "cognito-identity.amazonaws.com"}}),
                ("lets in ec2.amazonaws.com", {"Principal": {"Service": "ec2.amazonaws.com"}}),
                (f"lets in {LOGS} on behalf of any account", {"Principal": {"Service": LOGS}}),
                (
                    f"lets in {LOGS} on behalf of any account",
                    {"Principal": {"Service": LOGS}, "Condition": {"ArnLike": {"x": [FLEET.account, "*"]}}},
                ),
            ]
        ),
        (
            "lets in ec2.amazonaws.com",
            stack(role(assumeRolePolicy=document(Principal={"Service": "ec2.amazonaws.com"}, Condition=OWN_ACCOUNT))),
        ),
        (f"lets in {ROOT}", stack(bad("s3/bucketPolicy:BucketPolicy", policy=document(Principal={"AWS": ROOT})))),
        (
            "lets in *",
            stack(
                bad(
                    "sns/topic:Topic",
                    policy=document(
                        Principal={"AWS": "*"}, Condition={"StringEquals": {"AWS:SourceOwner": "999999999999"}}
                    ),
                )
            ),
        ),
        *(
            ("nobody can tell who is let in", stack(bad(kind, **{place: UNKNOWN}, made_from={place: FROM_KEY})))
            for kind, place in [("kms/key:Key", "policy"), (ROLE, "assumeRolePolicy"), ("iam/policy:Policy", "policy")]
        ),
        (
            "not made from what the stack holds",
            stack(bad(ROLE_POLICY, policy=UNKNOWN, made_from={"policy": FROM_KEY | FROM_OTHER})),
        ),
        ("nobody tells from what", stack(bad(ROLE_POLICY, policy=UNKNOWN))),
        ("has no policy document", stack(bad("s3/bucketPolicy:BucketPolicy", policy="no JSON"))),
        ("has no policy document", stack(bad("s3/bucketPolicy:BucketPolicy", policy="{}"))),
        ("has no policy document", stack(bad("s3/bucketPolicy:BucketPolicy", policy='{"Statement": ["x"]}'))),
    ],
    "data-kept": [
        *(
            ("is not protected", stack(bad(kind, protect=False)))
            for kind in ["kms/key:Key", CLUSTER, "rds/clusterInstance:ClusterInstance", "s3/bucket:Bucket"]
        ),
        ("is not protected", stack(bad(CACHE, protect=False, snapshotRetentionLimit=7))),
        ("has no deletion protection", stack(bad(CLUSTER, **{**DATABASE, "deletionProtection": False}))),
        ("has no deletion protection", stack(bad(CLUSTER, **{**DATABASE, "deletionProtection": UNKNOWN}))),
        ("without a last snapshot", stack(bad(CLUSTER, **DATABASE, skipFinalSnapshot=True))),
        ("with all that is in it", stack(bad("s3/bucket:Bucket", forceDestroy=True))),
        ("with all that is in it", stack(bad(REPOSITORY, forceDelete=True))),
    ],
    "bounded-roles": [
        ("has no permissions boundary", stack(bad(ROLE, assumeRolePolicy=TASKS))),
        ("has no permissions boundary", stack(bad(ROLE, permissionsBoundary="arn:aws:iam::aws:policy/Admin"))),
        ("has no permissions boundary", stack(bad(ROLE, permissionsBoundary=UNKNOWN))),
        ("has no permissions boundary", stack(role(), part="platform")),
        ("managedPolicyArns", stack(role(managedPolicyArns=["arn:aws:iam::aws:policy/AdministratorAccess"]))),
        (
            "inside that a preview cannot see",
            stack(bad(ROLE, inlinePolicies=UNKNOWN, made_from={"inlinePolicies": FROM_KEY})),
        ),
        ("reaches *", stack(role(inlinePolicies=[{"policy": document(Resource="*")}]))),
        ("can be taken by sts:*", stack(role(assumeRolePolicy=document(Action="sts:*")))),
        *(
            (f"allows {action}; a role's actions", stack(BUCKET, may(Action=action)))
            for action in ["*", "s3:*", "s3:Get*", "kms:?ecrypt"]
        ),
        ("allows everything but some", stack(BUCKET, may(NotAction=["s3:*"]))),
        ("allows everything but some", stack(BUCKET, may(NotResource=["x"]))),
        *(
            (f"reaches {arn}, which is nothing that this stack holds", stack(BUCKET, may(Resource=arn)))
            for arn in [
                "*",
                "arn:aws:s3:::*",
                "arn:aws:s3:::b-1*",
                "arn:aws:s3:::b-?",
                "arn:aws:s3:::cell-2-blobs",
                "arn:aws:s3:::b-10/*",
                "arn:aws:secretsmanager:eu-central-1:123456789012:secret:cell-2-*",
                "arn:aws:ecr:eu-central-1:999999999999:repository/cellwall/*",
                "arn:aws:ecr:eu-central-1:123456789012:repository/*",
            ]
        ),
        ("reaches *", stack(BUCKET, may(Action=["ecr:GetAuthorizationToken", "s3:GetObject"], Resource=["*"]))),
        *(
            (f"names the cell {cell}, not cell-1", stack(BUCKET, may(Resource=f"arn:x:cellwall/cells{then}")))
            for cell, then in [
                ("cell-2", "/cell-2/api"),
                ("*", "/*"),
                ("cell-?", "/cell-?/api"),
                ("cell-1*", "/cell-1*"),
                ("cell-10", "-cell-10"),
            ]
        ),
        ("names the cell cell-1, not this stack", stack(may(Resource="arn:x:cells/cell-1/api"), part="router")),
        ("names the cell cell-2", stack(bad("kms/key:Key", policy=document(Condition={"x": {"y": "cells/cell-2/*"}})))),
        ("does not deny", stack(boundary(Condition={}), part="platform")),
        ("does not deny", stack(boundary(Effect="Allow"), part="platform")),
        ("does not deny", stack(boundary(Action=["s3:*"]), part="platform")),
        ("does not deny", stack(boundary(Resource=["x"]), part="platform")),
        ("lets roles have *", stack(boundary("*"), part="platform")),
        ("lets roles have iam:PassRole", stack(boundary("iam:PassRole"), part="platform")),
    ],
    "images-by-digest": [
        ("which is no digest", stack(bad(TASK, containerDefinitions='[{"image": "cell:latest"}]'))),
        ("which is no digest", stack(bad(TASK, containerDefinitions='[{"image": "cell@sha256:abc"}]'))),
        ("runs nobody knows what", stack(bad(TASK, containerDefinitions=UNKNOWN))),
    ],
    "known-types": [
        (says, stack(bad(kind)))
        for kind, says in [
            ("ec2/vpcPeeringConnection:VpcPeeringConnection", "joins networks"),
            ("ec2/peeringConnectionOptions:PeeringConnectionOptions", "joins networks"),
            ("ec2transitgateway/transitGateway:TransitGateway", "joins networks"),
            ("networkmanager/coreNetwork:CoreNetwork", "joins networks"),
            ("vpclattice/serviceNetwork:ServiceNetwork", "joins networks"),
            ("directconnect/gateway:Gateway", "joins networks"),
            ("ec2/vpnConnection:VpnConnection", "joins networks"),
            ("ec2/vpnGateway:VpnGateway", "joins networks"),
            ("ec2clientvpn/endpoint:Endpoint", "joins networks"),
            ("ram/resourceShare:ResourceShare", "shares what a stack owns"),
            ("ec2/vpcEndpointServiceAllowedPrinciple:VpcEndpointServiceAllowedPrinciple", "on the side"),
            ("ec2/natGateway:NatGateway", "opens a way to the internet"),
            ("ec2/internetGateway:InternetGateway", "opens a way to the internet"),
            ("ec2/egressOnlyInternetGateway:EgressOnlyInternetGateway", "opens a way to the internet"),
            ("ec2/eip:Eip", "is a public address"),
            ("ec2/securityGroupRule:SecurityGroupRule", "is the old name"),
            ("ec2/defaultRouteTable:DefaultRouteTable", "takes over what AWS made"),
            ("ec2/instance:Instance", "services run on Fargate"),
            ("cloudformation/stack:Stack", "makes resources that Pulumi does not see"),
            ("cloudcontrol/resource:Resource", "makes resources that Pulumi does not see"),
            ("servicecatalog/provisionedProduct:ProvisionedProduct", "makes resources that Pulumi does not see"),
            ("lambda/function:Function", "runs code outside"),
            ("apigateway/restApi:RestApi", "is another way in"),
            ("apigatewayv2/api:Api", "is another way in"),
            ("cloudfront/distribution:Distribution", "is another way in"),
            ("iam/user:User", "is a person's"),
            ("iam/accessKey:AccessKey", "is a person's"),
            ("iam/groupPolicy:GroupPolicy", "is a person's"),
            ("iam/rolePolicyAttachment:RolePolicyAttachment", "gives a role what"),
            ("iam/policyAttachment:PolicyAttachment", "gives a role what"),
            ("rds/instance:Instance", "is a database without"),
            ("alb/loadBalancer:LoadBalancer", "is the old name"),
            ("elasticloadbalancingv2/loadBalancer:LoadBalancer", "is the old name"),
            ("applicationloadbalancing/loadBalancer:LoadBalancer", "is the old name"),
            ("pulumi:providers:kubernetes", "is another provider"),
            ("aws-native:s3:Bucket", "is of another provider"),
            ("kms/grant:Grant", "is none of what our components make"),
            ("ec2/route:Route", "is none of what our components make"),
            ("pulumi-python:dynamic:Resource", "is none of what our components make"),
        ]
    ]
    + [
        ("no router contains it", stack(bad("ec2/vpc:Vpc"), part="router")),
        ("may work in another account", stack(Resource("pulumi:providers:aws", "other", {}))),
    ],
}
CASES = [
    pytest.param(rule, told, says, id=f"{rule}: {number}: {says}")
    for rule, cases in BREAKS.items()
    for number, (says, told) in enumerate(cases)
]


@pytest.mark.parametrize(("rule", "told", "says"), CASES)
def test_a_violation_is_stopped(rule: str, told: Stack, says: str) -> None:
    found = faults(rule, told)
    assert any(says in fault for fault in found), found


def test_no_rule_is_without_a_violation() -> None:
    assert set(BREAKS) == {rule.name for rule in RULES}


ALLOWED = [
    ("no-bridges", stack(GATEWAY, bad(ROUTE, **OUT, networkInterfaceId=UNKNOWN), part="platform")),
    ("no-bridges", stack(bad(TABLE, routes=UNKNOWN))),
    ("no-bridges", stack(TO_CONTROL, bad(ENDPOINT, serviceName="com.amazonaws.eu-central-1.s3"))),
    ("no-bridges", stack(TO_CONTROL, bad(ENDPOINT, serviceName="com.amazonaws.vpce.r.vpce-svc-2"), part="router")),
    ("nothing-public", stack(bad(EGRESS, **HTTPS, prefixListId="pl-1"), part="router")),
    ("nothing-public", stack(S3, bad(EGRESS, **HTTPS, prefixListId="pl-1"))),
    ("nothing-public", stack(bad("ec2/vpc:Vpc", ipv6CidrBlock=UNKNOWN))),
    ("nothing-public", stack(OUTER, bad(INGRESS, **FOR_ALL), part="router")),
    (
        "nothing-public",
        stack(
            bad(INGRESS, **HTTPS, cidrIpv4="10.0.0.0/16"),
            Resource(
                GROUP,
                "g",
                {"ingress": [{"cidrBlocks": ["10.0.0.0/16"], "protocol": "tcp", "fromPort": 443, "toPort": 443}]},
            ),
        ),
    ),
    ("encrypted", stack(KEY, bad("cloudwatch/logGroup:LogGroup", kmsKeyId=UNKNOWN, made_from={"kmsKeyId": FROM_KEY}))),
    ("known-principals", stack(KEY, bad(ROLE_POLICY, policy=UNKNOWN, made_from={"policy": FROM_KEY}))),
    (
        "known-principals",
        stack(
            bad(
                "sns/topic:Topic",
                policy=document(Principal={"AWS": "*"}, Condition={"StringEquals": {"AWS:SourceOwner": FLEET.account}}),
            )
        ),
    ),
    ("bounded-roles", stack(BUCKET, role(managedPolicyArns=UNKNOWN), may())),
    (
        "images-by-digest",
        stack(bad(TASK, containerDefinitions=UNKNOWN, made_from={"containerDefinitions": FROM_OTHER})),
    ),
]


@pytest.mark.parametrize(("rule", "told"), ALLOWED)
def test_what_may_stand_there_passes(rule: str, told: Stack) -> None:
    assert faults(rule, told) == []
