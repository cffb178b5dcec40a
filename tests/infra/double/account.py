"""An AWS account as a folder: one file a resource, shared by all stacks that run against it."""

import itertools
import json
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.infra.double import rules

REGION, ACCOUNT = "eu-central-1", "123456789012"
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

    def hold_at(self, name: str | None) -> None:
        """Making the resource of this logical name takes until this is called with None."""
        self._held.unlink(missing_ok=True)
        self._hold.unlink(missing_ok=True)
        if name is not None:
            self._hold.write_text(name)

    @property
    def holds(self) -> bool:
        """Whether somebody waits there."""
        return self._held.exists()

    def create(self, urn: str, kind: str, inputs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        if self._trap.exists() and self._trap.read_text() == urn.rpartition("::")[2]:
            raise RefusedError(f"{self._trap.read_text()}: the double was told to fail here")
        while self._hold.exists() and self._hold.read_text() == urn.rpartition("::")[2]:
            self._held.touch()
            time.sleep(0.02)
        self._check(kind, inputs)
        ident = f"dbl-{secrets.token_hex(6)}"
        outputs = {**computed(kind, ident), **inputs}
        self._file(ident).write_text(json.dumps({"urn": urn, "kind": kind, "outputs": outputs}))
        return ident, outputs

    def read(self, ident: str) -> dict[str, Any] | None:
        found = self._find(ident)
        return None if found is None else found["outputs"]

    def update(self, ident: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        told = json.loads(self._file(ident).read_text())
        self._check(told["kind"], inputs, ident)
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

    def change(self, urn_end: str, **outputs: Any) -> None:
        """Somebody changes properties of the resource whose URN ends so, by hand and past any program."""
        file = self._file(self.ident(urn_end))
        told = json.loads(file.read_text())
        told["outputs"] |= outputs
        file.write_text(json.dumps(told))

    def ident(self, urn_end: str) -> str:
        """The id of the one resource whose URN ends so."""
        (found,) = (ident for ident, urn in self.idents().items() if urn.endswith(urn_end))
        return found

    def idents(self) -> dict[str, str]:
        """Each id with the URN that it was made for."""
        return {file.stem: json.loads(file.read_text())["urn"] for file in self._folder.glob("*.json")}

    def _file(self, ident: str) -> Path:
        return self._folder / f"{ident}.json"

    @property
    def _hold(self) -> Path:
        return self._folder / "holds-at"

    @property
    def _held(self) -> Path:
        return self._folder / "holds"

    @property
    def _trap(self) -> Path:
        return self._folder / "fails-at"

    def _check(self, kind: str, inputs: Mapping[str, Any], own: str = "") -> None:
        """What is referred to exists, addresses fit, names are free. ``own`` is the id of what is updated."""
        others = [json.loads(file.read_text()) for file in self._folder.glob("*.json") if file.stem != own]
        faults = itertools.chain(
            rules.references(kind, inputs, self._find),
            rules.networks(kind, inputs, self._find, others),
            rules.taken(kind, inputs, others),
        )
        for fault in faults:
            raise RefusedError(fault)

    def _find(self, ident: str) -> dict[str, Any] | None:
        file = self._file(ident)
        found: dict[str, Any] | None = json.loads(file.read_text()) if file.exists() else None
        return found


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
