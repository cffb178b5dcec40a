"""What router and control plane are told of the platform they stand on, by reference to its stack."""

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi


@dataclass(frozen=True, slots=True)
class Edge:
    """The platform's network and shared things. ``public``, ``services`` and ``data`` are subnets, one a zone."""

    vpc_id: pulumi.Input[str]
    public: Sequence[pulumi.Input[str]]
    services: Sequence[pulumi.Input[str]]
    data: Sequence[pulumi.Input[str]]
    endpoints_group: pulumi.Input[str]
    s3_prefix_list: pulumi.Input[str]
    boundary_arn: pulumi.Input[str]
    alarms_topic_arn: pulumi.Input[str]
    zone_id: pulumi.Input[str]
    cells_zone_id: pulumi.Input[str]
