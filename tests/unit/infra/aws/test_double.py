"""The double of AWS refuses what AWS would: a stack that it takes has said something."""

from pathlib import Path
from typing import Any

import pytest
from pulumi.runtime.proto import provider_pb2

from tests.infra.double.account import Account, RefusedError
from tests.infra.double.provider import Double, struct

VPC, SUBNET, GROUP = "ec2/vpc:Vpc", "ec2/subnet:Subnet", "ec2/securityGroup:SecurityGroup"
ALIAS, CLUSTER, BALANCER = "kms/alias:Alias", "rds/cluster:Cluster", "lb/loadBalancer:LoadBalancer"
BUCKET = "s3/bucket:Bucket"
TAGS = {"Name": "a", "cellwall:environment": "test", "cellwall:part": "cell"}


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return Account(tmp_path)


def urn(kind: str, name: str) -> str:
    return f"urn:pulumi:s::p::aws:{kind}::{name}"


def made(account: Account, kind: str, name: str = "a", /, **inputs: Any) -> str:
    ident, _ = account.create(urn(kind, name), kind, inputs)
    return ident


@pytest.fixture
def network(account: Account) -> str:
    return made(account, VPC, cidrBlock="10.0.0.0/16")


def failures(kind: str, name: str = "a", /, **inputs: Any) -> list[str]:
    """What the engine is told at a preview."""
    request = provider_pb2.CheckRequest(urn=urn(kind, name), news=struct(inputs))
    return [failure.reason for failure in Double(Account(Path("nowhere"))).Check(request, None).failures]


def test_a_resource_without_its_tags_is_refused() -> None:
    assert failures(VPC, cidrBlock="10.0.0.0/16", tags=TAGS) == []
    assert failures(VPC, cidrBlock="10.0.0.0/16") == [f"a: tags: {tag} is missing" for tag in TAGS]
    without = {key: value for key, value in TAGS.items() if key != "cellwall:part"}
    assert failures(VPC, cidrBlock="10.0.0.0/16", tags=without) == ["a: tags: cellwall:part is missing"]


def test_what_is_no_network_is_refused() -> None:
    assert failures(VPC, cidrBlock="10.0.0.0/33", tags=TAGS)[0].startswith("a: cidrBlock: ")
    assert failures(VPC, cidrBlock="10.0.0.1/16", tags=TAGS)[0].startswith("a: cidrBlock: ")


@pytest.mark.parametrize("kind", [BALANCER, "lb/targetGroup:TargetGroup"])
def test_a_load_balancer_s_name_has_32_characters_with_what_is_generated(kind: str) -> None:
    assert failures(kind, "a" * 24, tags=TAGS) == []
    assert len(failures(kind, "a" * 25, tags=TAGS)) == 1
    assert failures(kind, "a" * 25, name="b" * 32, tags=TAGS) == []
    for name in ("b" * 33, "-b", "b-", "b_c", "internal-b"):
        assert len(failures(kind, name=name, tags=TAGS)) == 1, name


@pytest.mark.parametrize("name", ["ab", "a" * 64, "Cell", "cell_1", "-cell", "cell-", "a..b", "10.0.0.1", "xn--cell"])
def test_a_bucket_that_nobody_can_have_is_refused(name: str) -> None:
    assert failures(BUCKET, bucket=name, tags=TAGS) == [
        f"a: bucket: {name} is not 3 to 63 lower-case letters, digits, hyphens and dots, and no address"
    ]
    assert failures(BUCKET, bucket="cell-1.blobs", tags=TAGS) == []


def test_an_alias_is_an_alias() -> None:
    assert failures(ALIAS, name="alias/cellwall/a", targetKeyId="k") == []
    assert len(failures(ALIAS, name="cellwall/a", targetKeyId="k")) == 1
    assert len(failures(ALIAS, name="alias/aws/a", targetKeyId="k")) == 1


@pytest.mark.parametrize("block", ["10.0.16.0/20", "10.0.16.0/24", "10.0.0.0/19"])
def test_two_subnets_of_one_network_do_not_overlap(account: Account, network: str, block: str) -> None:
    made(account, SUBNET, vpcId=network, cidrBlock="10.0.16.0/20")
    with pytest.raises(RefusedError, match=rf"{block} overlaps 10\.0\.16\.0/20"):
        made(account, SUBNET, "b", vpcId=network, cidrBlock=block)
    made(account, SUBNET, "b", vpcId=network, cidrBlock="10.0.32.0/20")
    other = made(account, VPC, "other", cidrBlock="10.0.0.0/16")
    made(account, SUBNET, "c", vpcId=other, cidrBlock=block)


def test_a_subnet_lies_inside_of_its_network_and_may_be_updated_where_it_is(account: Account, network: str) -> None:
    with pytest.raises(RefusedError, match=r"10\.1\.0\.0/20 is not within 10\.0\.0\.0/16"):
        made(account, SUBNET, vpcId=network, cidrBlock="10.1.0.0/20")
    subnet = made(account, SUBNET, vpcId=network, cidrBlock="10.0.16.0/20")
    account.update(subnet, {"vpcId": network, "cidrBlock": "10.0.16.0/20", "tags": TAGS})


def test_a_name_is_given_once(account: Account) -> None:
    key = made(account, "kms/key:Key")
    first = made(account, ALIAS, name="alias/a", targetKeyId=key)
    with pytest.raises(RefusedError, match="name: alias/a is taken"):
        made(account, ALIAS, "b", name="alias/a", targetKeyId=key)
    made(account, ALIAS, "b", name="alias/a", targetKeyId=key, region="us-east-1")
    account.update(first, {"name": "alias/a", "targetKeyId": key})
    account.delete(first)
    made(account, ALIAS, "b", name="alias/a", targetKeyId=key)


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        (SUBNET, {"vpcId": "vpc-nothere", "cidrBlock": "10.0.0.0/20"}),
        (GROUP, {"vpcId": "dbl-000000000000"}),
        ("ecs/service:Service", {"networkConfiguration": {"subnets": ["subnet-nothere"]}}),
        (BALANCER, {"securityGroups": ["sg-nothere"]}),
        (CLUSTER, {"kmsKeyId": "arn:aws:kms:eu-central-1:123456789012:key/nothere"}),
        ("iam/role:Role", {"permissionsBoundary": "arn:aws:iam::123456789012:policy/nothere"}),
    ],
)
def test_what_nobody_made_cannot_be_referred_to(account: Account, kind: str, inputs: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match=r"nobody made|does not exist"):
        made(account, kind, **inputs)
    assert account.idents() == {}


def test_a_reference_is_to_what_belongs_there(account: Account, network: str) -> None:
    with pytest.raises(RefusedError, match="is a ec2/vpc:Vpc"):
        made(account, BALANCER, subnets=[network])
    subnet = made(account, SUBNET, vpcId=network, cidrBlock="10.0.0.0/20")
    balancer = made(account, BALANCER, subnets=[subnet])
    with pytest.raises(RefusedError, match="nobody made"):
        account.update(balancer, {"subnets": [subnet, "subnet-nothere"]})


def test_what_is_in_use_stays(account: Account, network: str) -> None:
    subnet = made(account, SUBNET, "inner", vpcId=network, cidrBlock="10.0.0.0/20")
    with pytest.raises(RefusedError, match=r"is in use by .*::inner"):
        account.delete(network)
    account.delete(subnet)
    account.delete(network)
    assert account.idents() == {}


def test_deletion_protection_is_lifted_by_an_update_alone(account: Account) -> None:
    cluster = made(account, CLUSTER, deletionProtection=True)
    with pytest.raises(RefusedError, match="has deletion protection"):
        account.delete(cluster)
    account.update(cluster, {"deletionProtection": False})
    account.delete(cluster)
    assert account.read(cluster) is None


def test_a_change_by_hand_is_what_a_refresh_reads(account: Account, network: str) -> None:
    account.change("::a", enableDnsSupport=False)
    assert (account.read(network) or {})["enableDnsSupport"] is False


def test_a_failure_hits_the_resource_that_it_was_set_for(account: Account) -> None:
    account.fail_at("b")
    made(account, VPC, "a", cidrBlock="10.0.0.0/16")
    with pytest.raises(RefusedError, match="told to fail"):
        made(account, VPC, "b", cidrBlock="10.0.0.0/16")
    account.fail_at(None)
    made(account, VPC, "b", cidrBlock="10.0.0.0/16")
