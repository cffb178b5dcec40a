"""A stack of a cell that breaks the rule that ``CELLWALL_VIOLATES`` names; with ``none``, it breaks none.

Each violation imports its own services: together they take seconds to load.
"""

import json
import os

import pulumi
from pulumi_aws import kms

from infra.aws.fleet import Tags

TAGS = Tags("test", "cell", "cell-1")
ACCOUNT = {
    "Effect": "Allow",
    "Action": "kms:*",
    "Principal": {"AWS": "arn:aws:iam::123456789012:root"},
    "Resource": "*",
}
POLICY = json.dumps({"Statement": [ACCOUNT]})
KEPT = pulumi.ResourceOptions(protect=True)
KEY = kms.Key("own", policy=POLICY, tags=TAGS.named("own"), opts=KEPT)


def none() -> None:
    pass


def one_cell_per_stack() -> None:
    from pulumi_aws import ec2

    ec2.Vpc("bad", cidr_block="10.64.0.0/16", tags=Tags("test", "cell", "cell-2").named("bad"))


def known_types() -> None:
    from pulumi_aws import ec2

    ec2.VpcPeeringConnection("bad", vpc_id="vpc-1", peer_vpc_id="vpc-2", tags=TAGS.named("bad"))


def no_bridges() -> None:
    from pulumi_aws import ec2

    route = ec2.RouteTableRouteArgs(cidr_block="10.64.0.0/16", transit_gateway_id="tgw-1")
    ec2.RouteTable("bad", vpc_id="vpc-1", routes=[route], tags=TAGS.named("bad"))


def guarded_endpoints() -> None:
    from pulumi_aws import ec2

    ec2.VpcEndpointService(
        "bad",
        acceptance_required=False,
        allowed_principals=["arn:aws:iam::999999999999:root"],
        network_load_balancer_arns=["arn"],
        tags=TAGS.named("bad"),
    )


def encrypted() -> None:
    from pulumi_aws import cloudwatch

    # Made from a key of the future that is no key of this stack's: the engine knows what a value is made from.
    other = cloudwatch.LogGroup("own", kms_key_id=KEY.arn, tags=TAGS.named("own"))
    cloudwatch.LogGroup("bad", kms_key_id=other.arn, tags=TAGS.named("bad"))


def nothing_public() -> None:
    from pulumi_aws import vpc

    vpc.SecurityGroupIngressRule(
        "bad",
        security_group_id="sg-1",
        ip_protocol="tcp",
        from_port=5432,
        to_port=5432,
        cidr_ipv4="0.0.0.0/0",
        tags=TAGS.named("bad"),
    )


def data_kept() -> None:
    kms.Key("bad", policy=POLICY, tags=TAGS.named("bad"))


def known_principals() -> None:
    from pulumi_aws import s3

    everybody = {"Effect": "Allow", "Action": "s3:GetObject", "Principal": "*", "Resource": "*"}
    s3.BucketPolicy("bad", bucket="own", policy=json.dumps({"Statement": [everybody]}))


def bounded_roles() -> None:
    from pulumi_aws import iam

    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    iam.RolePolicy("bad", role="own", policy=json.dumps({"Statement": [everything]}))


def images_by_digest() -> None:
    from pulumi_aws import ecs

    ecs.TaskDefinition(
        "bad",
        family="bad",
        container_definitions=json.dumps([{"name": "api", "image": "cellwall/cell:latest"}]),
        tags=TAGS.named("bad"),
    )


violations = (
    none,
    one_cell_per_stack,
    known_types,
    no_bridges,
    guarded_endpoints,
    encrypted,
    nothing_public,
    known_principals,
    data_kept,
    bounded_roles,
    images_by_digest,
)
{each.__name__.replace("_", "-"): each for each in violations}[os.environ["CELLWALL_VIOLATES"]]()
