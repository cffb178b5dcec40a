"""What the fleet stands on: network of router and control plane, zones, image repositories, the boundary of roles."""

import json
from dataclasses import dataclass
from typing import Final

import pulumi
from pulumi_aws import ecr, iam, route53, sns

from infra.aws.component import Component, Statement, policy
from infra.aws.fleet import Fleet
from infra.aws.keys import Key, KeyArgs
from infra.aws.network import Network, NetworkArgs

IMAGES: Final = ("router", "cell", "control-plane")
UNTAGGED_DAYS: Final = 14


@dataclass(frozen=True, slots=True)
class PlatformArgs:
    fleet: Fleet
    keep: bool = True


class Platform(Component):
    """Shared by all stacks; it knows none of them."""

    def __init__(self, args: PlatformArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("Platform", "platform", opts)
        self._fleet = fleet = args.fleet
        self._tags = tags = fleet.tags("platform")
        key = Key("platform", KeyArgs(fleet, tags, keep=args.keep), self.inside)
        self.key_arn = key.arn
        self.boundary_arn = self._boundary()
        self.network = Network(
            "platform",
            NetworkArgs(fleet, tags, fleet.platform_cidr, key.arn, self.boundary_arn, public=True),
            self.inside,
        )
        self.zone_id = route53.Zone(
            "platform", name=fleet.base_domain, tags=tags.named("platform"), opts=self.kept(args.keep)
        ).zone_id
        self.cells_zone_id = route53.Zone(
            "platform-cells",
            name=fleet.cells_domain,
            vpcs=[route53.ZoneVpcArgs(vpc_id=self.network.vpc_id)],
            tags=tags.named("platform-cells"),
            opts=self.inside,
        ).zone_id
        self.topic_arn = self._topic(key.arn)
        for image in IMAGES:
            self._repository(image, key.arn)
        self.register_outputs({"boundary_arn": self.boundary_arn, "vpc_id": self.network.vpc_id})

    def _boundary(self) -> pulumi.Output[str]:
        """The most that any role of ours can be given: what services need, and never another cell's resources."""
        return iam.Policy(
            "boundary",
            path="/cellwall/",
            description="The most that a role of a cell, the router or the control plane can do",
            policy=policy(
                Statement(
                    [
                        "ecr:*",
                        "kms:Decrypt",
                        "kms:GenerateDataKey*",
                        "logs:*",
                        "s3:*",
                        "secretsmanager:GetSecretValue",
                    ]
                ),
                Statement(
                    ["*"],
                    effect="Deny",
                    conditions={
                        "StringNotEquals": {"aws:ResourceTag/cellwall:cell": "${aws:PrincipalTag/cellwall:cell}"},
                        "Null": {"aws:ResourceTag/cellwall:cell": "false"},
                    },
                ),
            ),
            tags=self._tags.named("boundary"),
            opts=self.inside,
        ).arn

    def _topic(self, key_arn: pulumi.Output[str]) -> pulumi.Output[str]:
        topic = sns.Topic("alarms", kms_master_key_id=key_arn, tags=self._tags.named("alarms"), opts=self.inside)
        sns.TopicPolicy(
            "alarms",
            arn=topic.arn,
            policy=policy(
                Statement(
                    ["sns:Publish"],
                    [topic.arn],
                    principals={"Service": ["cloudwatch.amazonaws.com"]},
                    conditions={"StringEquals": {"aws:SourceAccount": self._fleet.account}},
                )
            ),
            opts=self.inside,
        )
        return topic.arn

    def _repository(self, image: str, key_arn: pulumi.Output[str]) -> None:
        """Images that nobody can overwrite. What lost its tag goes after two weeks; releases have tags."""
        repository = ecr.Repository(
            image,
            name=f"cellwall/{image}",
            image_tag_mutability="IMMUTABLE",
            image_scanning_configuration=ecr.RepositoryImageScanningConfigurationArgs(scan_on_push=True),
            encryption_configurations=[
                ecr.RepositoryEncryptionConfigurationArgs(encryption_type="KMS", kms_key=key_arn)
            ],
            tags=self._tags.named(image),
            opts=self.inside,
        )
        expiry = {
            "rulePriority": 1,
            "selection": {
                "tagStatus": "untagged",
                "countType": "sinceImagePushed",
                "countUnit": "days",
                "countNumber": UNTAGGED_DAYS,
            },
            "action": {"type": "expire"},
        }
        ecr.LifecyclePolicy(image, repository=repository.name, policy=json.dumps({"rules": [expiry]}), opts=self.inside)
