"""A bucket that only its own stack reads, over TLS, encrypted, with every version kept for a while."""

from dataclasses import dataclass
from typing import Final

import pulumi
from pulumi_aws import s3

from infra.aws.component import Component, Statement, policy
from infra.aws.fleet import Tags

OLD_VERSION_DAYS: Final = 30
UPLOAD_DAYS: Final = 2


@dataclass(frozen=True, slots=True)
class BlobsArgs:
    tags: Tags
    key_arn: pulumi.Input[str]
    keep: bool = True


class Blobs(Component):
    """A private, versioned bucket. Its name is generated: bucket names are shared with the whole world."""

    name: pulumi.Output[str]
    arn: pulumi.Output[str]

    def __init__(self, name: str, args: BlobsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("Blobs", name, opts)
        bucket = s3.Bucket(name, force_destroy=False, tags=args.tags.named(name), opts=self.kept(args.keep))
        self.name, self.arn = bucket.bucket, bucket.arn
        wall = s3.BucketPublicAccessBlock(
            name,
            bucket=bucket.id,
            block_public_acls=True,
            block_public_policy=True,
            ignore_public_acls=True,
            restrict_public_buckets=True,
            opts=self.inside,
        )
        s3.BucketOwnershipControls(
            name,
            bucket=bucket.id,
            rule=s3.BucketOwnershipControlsRuleArgs(object_ownership="BucketOwnerEnforced"),
            opts=self.inside,
        )
        self._rest(name, bucket, args.key_arn)
        s3.BucketPolicy(
            name,
            bucket=bucket.id,
            policy=policy(
                Statement(
                    ["s3:*"],
                    [bucket.arn, pulumi.Output.concat(bucket.arn, "/*")],
                    "Deny",
                    principals={"AWS": ["*"]},
                    conditions={"Bool": {"aws:SecureTransport": "false"}},
                )
            ),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[wall]),
        )
        self.register_outputs({"name": self.name, "arn": self.arn})

    def _rest(self, name: str, bucket: s3.Bucket, key_arn: pulumi.Input[str]) -> None:
        """How objects rest, and for how long."""
        by_default = s3.BucketServerSideEncryptionConfigurationRuleApplyServerSideEncryptionByDefaultArgs(
            sse_algorithm="aws:kms", kms_master_key_id=key_arn
        )
        s3.BucketServerSideEncryptionConfiguration(
            name,
            bucket=bucket.id,
            rules=[
                s3.BucketServerSideEncryptionConfigurationRuleArgs(
                    apply_server_side_encryption_by_default=by_default, bucket_key_enabled=True
                )
            ],
            opts=self.inside,
        )
        versions = s3.BucketVersioning(
            name,
            bucket=bucket.id,
            versioning_configuration=s3.BucketVersioningVersioningConfigurationArgs(status="Enabled"),
            opts=self.inside,
        )
        s3.BucketLifecycleConfiguration(
            name,
            bucket=bucket.id,
            rules=[
                s3.BucketLifecycleConfigurationRuleArgs(
                    id="tidy",
                    status="Enabled",
                    filter=s3.BucketLifecycleConfigurationRuleFilterArgs(prefix=""),
                    noncurrent_version_expiration=s3.BucketLifecycleConfigurationRuleNoncurrentVersionExpirationArgs(
                        noncurrent_days=OLD_VERSION_DAYS
                    ),
                    abort_incomplete_multipart_upload=s3.BucketLifecycleConfigurationRuleAbortIncompleteMultipartUploadArgs(
                        days_after_initiation=UPLOAD_DAYS
                    ),
                )
            ],
            opts=pulumi.ResourceOptions(parent=self, depends_on=[versions]),
        )
