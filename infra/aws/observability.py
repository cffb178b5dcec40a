"""The golden signals of one stack: an alarm for each that has a limit, and one page that shows them all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pulumi
from pulumi_aws import cloudwatch

from infra.aws.component import Component
from infra.aws.fleet import Tags

Golden = Literal["latency", "traffic", "errors", "saturation"]
PERIOD_S = 60


@dataclass(frozen=True, slots=True)
class Signal:
    """A metric of AWS; with ``limit`` an alarm goes off after ``minutes`` on the wrong side of it."""

    label: str
    golden: Golden
    namespace: str
    metric: str
    statistic: str
    dimensions: Mapping[str, pulumi.Input[str]]
    limit: float | None = None
    minutes: int = 3
    below: bool = False  # too little is what is wrong
    silence: Literal["missing", "breaching", "notBreaching"] = "notBreaching"
    tells: str = field(default="")  # what it means for tenants, in the alarm

    def __post_init__(self) -> None:
        if self.limit is not None and not self.tells:
            raise ValueError(f"{self.label} has a limit and does not say what it tells")


@dataclass(frozen=True, slots=True)
class ObservabilityArgs:
    tags: Tags
    region: str
    topic_arn: pulumi.Input[str]
    signals: Sequence[Signal]


class Observability(Component):
    """Alarms that call somebody, and a dashboard of four rows: latency, traffic, errors, saturation."""

    def __init__(self, name: str, args: ObservabilityArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("Observability", name, opts)
        for signal in args.signals:
            if signal.limit is not None:
                self._alarm(f"{name}-{signal.label}", args, signal)
        cloudwatch.Dashboard(name, dashboard_name=name, dashboard_body=_page(args), opts=self.inside)
        self.register_outputs({})

    def _alarm(self, name: str, args: ObservabilityArgs, signal: Signal) -> None:
        extended = signal.statistic.startswith("p")
        cloudwatch.MetricAlarm(
            name,
            name=name,
            alarm_description=signal.tells,
            namespace=signal.namespace,
            metric_name=signal.metric,
            statistic=None if extended else signal.statistic,
            extended_statistic=signal.statistic if extended else None,
            dimensions=dict(signal.dimensions),
            comparison_operator="LessThanThreshold" if signal.below else "GreaterThanThreshold",
            threshold=signal.limit,
            period=PERIOD_S,
            evaluation_periods=signal.minutes,
            datapoints_to_alarm=signal.minutes,
            treat_missing_data=signal.silence,
            alarm_actions=[args.topic_arn],
            ok_actions=[args.topic_arn],
            tags=args.tags.named(name),
            opts=self.inside,
        )


def _page(args: ObservabilityArgs) -> pulumi.Output[str]:
    rows: tuple[Golden, ...] = ("latency", "traffic", "errors", "saturation")
    widgets = []
    for row, golden in enumerate(rows):
        metrics = []
        for signal in args.signals:
            if signal.golden == golden:
                flat: list[pulumi.Input[str]] = [signal.namespace, signal.metric]
                for key in sorted(signal.dimensions):
                    flat += [key, signal.dimensions[key]]
                metrics.append([*flat, {"label": signal.label, "stat": signal.statistic}])
        widgets.append(
            {
                "type": "metric",
                "x": 0,
                "y": row * 6,
                "width": 24,
                "height": 6,
                "properties": {
                    "title": golden,
                    "region": args.region,
                    "period": PERIOD_S,
                    "view": "timeSeries",
                    "metrics": metrics,
                },
            }
        )
    return pulumi.Output.json_dumps({"widgets": widgets})
