"""An AWS account as a folder: one file a resource, shared by all stacks that run against it."""

import ipaddress
import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REGION, ACCOUNT = "eu-central-1", "123456789012"
IDENT = re.compile(r"\bdbl-[0-9a-f]{12}\b")
TAGGED = "tags"
# What cannot be changed in place, where our stacks could ask for it.
IMMUTABLE = {
    "ec2/vpc:Vpc": {"cidrBlock"},
    "ec2/subnet:Subnet": {"cidrBlock", "availabilityZone", "vpcId"},
    "elasticache/replicationGroup:ReplicationGroup": {"kmsKeyId", "subnetGroupName", "atRestEncryptionEnabled", "port"},
    "rds/cluster:Cluster": {"kmsKeyId", "dbSubnetGroupName", "storageEncrypted"},
    "ecs/taskDefinition:TaskDefinition": {"containerDefinitions", "cpu", "memory", "family"},
    "ec2/vpcEndpoint:VpcEndpoint": {"serviceName", "vpcId"},
}


class RefusedError(Exception):
    """What AWS would not do, in words."""


class Account:
    """Creates, reads, updates and deletes; refuses what does not fit what is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fail_at(self, name: str | None) -> None:
        """Making the resource of this logical name fails from now on, as AWS does at times; with None nothing does."""
        self._trap.unlink(missing_ok=True)
        if name is not None:
            self._trap.write_text(name)

    def create(self, urn: str, kind: str, inputs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        if self._trap.exists() and self._trap.read_text() == urn.rpartition("::")[2]:
            raise RefusedError(f"{self._trap.read_text()}: the double was told to fail here")
        self._check(kind, inputs)
        ident = f"dbl-{secrets.token_hex(6)}"
        outputs = {**computed(kind, ident), **inputs}
        self._file(ident).write_text(json.dumps({"urn": urn, "kind": kind, "outputs": outputs}))
        return ident, outputs

    def read(self, ident: str) -> dict[str, Any] | None:
        if not self._file(ident).exists():
            return None
        outputs: dict[str, Any] = json.loads(self._file(ident).read_text())["outputs"]
        return outputs

    def update(self, ident: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        told = json.loads(self._file(ident).read_text())
        self._check(told["kind"], inputs)
        told["outputs"] = {**computed(told["kind"], ident), **inputs}
        self._file(ident).write_text(json.dumps(told))
        outputs: dict[str, Any] = told["outputs"]
        return outputs

    def delete(self, ident: str) -> None:
        told = json.loads(self._file(ident).read_text())
        if told["outputs"].get("deletionProtection") is True:
            raise RefusedError(f"{told['urn']} has deletion protection")
        for file in self._folder.glob("*.json"):
            if file.stem != ident and ident in file.read_text():
                raise RefusedError(f"{told['urn']} is in use by {json.loads(file.read_text())['urn']}")
        self._file(ident).unlink()

    def idents(self) -> dict[str, str]:
        """Each id with the URN that it was made for."""
        return {file.stem: json.loads(file.read_text())["urn"] for file in self._folder.glob("*.json")}

    def _file(self, ident: str) -> Path:
        return self._folder / f"{ident}.json"

    @property
    def _trap(self) -> Path:
        return self._folder / "fails-at"

    def _check(self, kind: str, inputs: Mapping[str, Any]) -> None:
        """Everything that is referred to exists, and addresses fit where they are put."""
        for ident in sorted(set(IDENT.findall(json.dumps(dict(inputs))))):
            if not self._file(ident).exists():
                raise RefusedError(f"{kind} refers to {ident}, which does not exist")
        if kind == "ec2/subnet:Subnet":
            network = self.read(str(inputs["vpcId"])) or {}
            block = ipaddress.ip_network(inputs["cidrBlock"])
            if not block.subnet_of(ipaddress.ip_network(network["cidrBlock"])):  # type: ignore[arg-type]
                raise RefusedError(f"{block} is not within {network['cidrBlock']}")


def computed(kind: str, ident: str) -> dict[str, Any]:
    """What AWS adds. Every text holds the id, so that what refers to it is known to."""
    service = kind.partition("/")[0]
    return {
        "arn": f"arn:aws:{service}:{REGION}:{ACCOUNT}:{ident}",
        "secretArn": f"arn:aws:{service}:{REGION}:{ACCOUNT}:{ident}",
        "certificateArn": f"arn:aws:{service}:{REGION}:{ACCOUNT}:{ident}",
        "arnSuffix": f"net/{ident}",
        "dnsName": f"{ident}.elb.test",
        "dnsEntries": [{"dnsName": f"{ident}.vpce.test", "hostedZoneId": "Z1"}],
        "serviceName": f"com.amazonaws.vpce.{ident}",
        "endpoint": f"{ident}.rds.test",
        "primaryEndpointAddress": f"{ident}.cache.test",
        "masterUserSecrets": [{"secretArn": f"arn:aws:secretsmanager:{ident}", "kmsKeyId": "k", "secretStatus": "on"}],
        "clusterIdentifier": ident,
        "prefixListId": ident,
        "zoneId": ident,
        "keyId": ident,
        "bucket": ident,
        "fqdn": ident,
        "name": ident,
        "domainValidationOptions": [
            {"resourceRecordName": "_x.test", "resourceRecordType": "CNAME", "resourceRecordValue": "y.test"}
        ],
    }
