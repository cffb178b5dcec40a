"""The web application firewall before the routers: AWS's rules for known attacks, and a rate for each address."""

from dataclasses import dataclass
from typing import Final

import pulumi
from pulumi_aws import cloudwatch, wafv2

from infra.aws.component import Component
from infra.aws.fleet import Tags

# Rule groups of AWS, and in each the rules that would refuse honest requests of an API: counted, not blocked.
MANAGED: Final[dict[str, tuple[str, ...]]] = {
    "AWSManagedRulesAmazonIpReputationList": (),
    "AWSManagedRulesKnownBadInputsRuleSet": (),
    "AWSManagedRulesCommonRuleSet": ("SizeRestrictions_BODY", "NoUserAgent_HEADER"),
}
LOG_DAYS: Final = 30


@dataclass(frozen=True, slots=True)
class ShieldArgs:
    """``address_requests`` is what one client address may send in five minutes."""

    tags: Tags
    balancer_arn: pulumi.Input[str]
    key_arn: pulumi.Input[str]
    address_requests: int = 300_000

    def __post_init__(self) -> None:
        if not 10 <= self.address_requests <= 2_000_000_000:
            raise ValueError(f"address_requests {self.address_requests}: must be between 10 and 2000000000")


class Shield(Component):
    """The rules, on one application load balancer; what they refused is logged without credentials."""

    def __init__(self, name: str, args: ShieldArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("Shield", name, opts)
        acl = wafv2.WebAcl(
            name,
            scope="REGIONAL",
            default_action=wafv2.WebAclDefaultActionArgs(allow=wafv2.WebAclDefaultActionAllowArgs()),
            rules=[_rate(args.address_requests), *(_managed(n, group) for n, group in enumerate(MANAGED, 1))],
            visibility_config=wafv2.WebAclVisibilityConfigArgs(
                cloudwatch_metrics_enabled=True, metric_name=name, sampled_requests_enabled=True
            ),
            tags=args.tags.named(name),
            opts=self.inside,
        )
        wafv2.WebAclAssociation(name, resource_arn=args.balancer_arn, web_acl_arn=acl.arn, opts=self.inside)
        logs = cloudwatch.LogGroup(
            f"{name}-shield",
            name=f"aws-waf-logs-{args.tags.path.replace('/', '-')}",  # the prefix that AWS asks for
            kms_key_id=args.key_arn,
            retention_in_days=LOG_DAYS,
            tags=args.tags.named(f"{name}-shield"),
            opts=self.inside,
        )
        redacted = wafv2.WebAclLoggingConfigurationRedactedFieldArgs(
            single_header=wafv2.WebAclLoggingConfigurationRedactedFieldSingleHeaderArgs(name="authorization")
        )
        wafv2.WebAclLoggingConfiguration(
            name,
            resource_arn=acl.arn,
            log_destination_configs=[logs.arn],
            redacted_fields=[redacted],
            opts=self.inside,
        )
        self.register_outputs({})


def _rate(limit: int) -> wafv2.WebAclRuleArgs:
    return wafv2.WebAclRuleArgs(
        name="address-rate",
        priority=0,
        action=wafv2.WebAclRuleActionArgs(block=wafv2.WebAclRuleActionBlockArgs()),
        statement=wafv2.WebAclRuleStatementArgs(
            rate_based_statement=wafv2.WebAclRuleStatementRateBasedStatementArgs(
                aggregate_key_type="IP", limit=limit, evaluation_window_sec=300
            )
        ),
        visibility_config=_visible("address-rate"),
    )


def _managed(priority: int, group: str) -> wafv2.WebAclRuleArgs:
    statement = wafv2.WebAclRuleStatementManagedRuleGroupStatementArgs(
        vendor_name="AWS", name=group, rule_action_overrides=[_counted(rule) for rule in MANAGED[group]]
    )
    return wafv2.WebAclRuleArgs(
        name=group,
        priority=priority,
        override_action=wafv2.WebAclRuleOverrideActionArgs(
            none=wafv2.WebAclRuleOverrideActionNoneArgs()  # type: ignore[no-untyped-call]  # the SDK left it out
        ),
        statement=wafv2.WebAclRuleStatementArgs(managed_rule_group_statement=statement),
        visibility_config=_visible(group),
    )


def _counted(rule: str) -> wafv2.WebAclRuleStatementManagedRuleGroupStatementRuleActionOverrideArgs:
    return wafv2.WebAclRuleStatementManagedRuleGroupStatementRuleActionOverrideArgs(
        name=rule,
        action_to_use=wafv2.WebAclRuleStatementManagedRuleGroupStatementRuleActionOverrideActionToUseArgs(
            count=wafv2.WebAclRuleStatementManagedRuleGroupStatementRuleActionOverrideActionToUseCountArgs()
        ),
    )


def _visible(name: str) -> wafv2.WebAclRuleVisibilityConfigArgs:
    return wafv2.WebAclRuleVisibilityConfigArgs(
        cloudwatch_metrics_enabled=True, metric_name=name, sampled_requests_enabled=True
    )
