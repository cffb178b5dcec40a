"""One KMS key for all data at rest of one stack."""

from dataclasses import dataclass

import pulumi
from pulumi_aws import kms

from infra.aws.component import Component, Statement, policy
from infra.aws.fleet import Fleet, Tags


@dataclass(frozen=True, slots=True)
class KeyArgs:
    fleet: Fleet
    tags: Tags
    region: str | None = None  # another than the fleet's
    label: str = ""  # tells a second key of one stack apart
    keep: bool = True  # protect it: without the key, all data of the stack is lost


class Key(Component):
    """A key that turns yearly. The account's IAM decides who uses it, and CloudWatch may for this stack's logs only."""

    arn: pulumi.Output[str]

    def __init__(self, name: str, args: KeyArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("Key", name, opts)
        account, region = args.fleet.account, args.region or args.fleet.region
        path = args.tags.path
        group = f"arn:aws:logs:{region}:{account}:log-group:"
        logs = [f"{group}/{path}/*", f"{group}aws-waf-logs-{path.replace('/', '-')}"]
        key = kms.Key(
            name,
            region=args.region,
            description=f"Data at rest of {name}",
            enable_key_rotation=True,
            deletion_window_in_days=30,
            policy=policy(
                Statement(["kms:*"], principals={"AWS": [f"arn:aws:iam::{account}:root"]}),
                Statement(
                    ["kms:Encrypt*", "kms:Decrypt*", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:Describe*"],
                    principals={"Service": [f"logs.{region}.amazonaws.com"]},
                    conditions={"ArnLike": {"kms:EncryptionContext:aws:logs:arn": logs}},
                ),
                Statement(
                    ["kms:Decrypt", "kms:GenerateDataKey*"],
                    principals={"Service": ["cloudwatch.amazonaws.com"]},
                    conditions={"StringEquals": {"aws:SourceAccount": account}},
                ),
            ),
            tags=args.tags.named(name),
            opts=self.kept(args.keep),
        )
        alias = "/".join(filter(None, ("alias", path, args.label)))
        kms.Alias(name, name=alias, target_key_id=key.key_id, region=args.region, opts=self.inside)
        self.arn = key.arn
        self.register_outputs({"arn": self.arn})
