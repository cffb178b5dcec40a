"""One service on Fargate: roles with a boundary, a task by digest, autoscaling, and a deployment that undoes itself."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pulumi
from pulumi_aws import appautoscaling, cloudwatch, ecs, iam

from infra.aws.component import Component, Statement, policy, trust
from infra.aws.fleet import Fleet, Tags

LOG_DAYS: Final = 30
CPU_TARGET: Final = 60.0  # percent
# What Fargate sells: processors to the least and most memory in MiB.
FARGATE: Final = {
    0.25: (512, 2048),
    0.5: (1024, 4096),
    1.0: (2048, 8192),
    2.0: (4096, 16384),
    4.0: (8192, 30720),
    8.0: (16384, 61440),
}
_DIGEST: Final = re.compile(r"\S+@sha256:[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Container:
    """A container. ``secrets`` maps variables to what `Secret.field` gives; ``health`` is a path on ``health_port``."""

    name: str
    image: str
    command: Sequence[str]
    environment: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    secrets: Mapping[str, pulumi.Input[str]] = field(default_factory=dict)
    ports: Sequence[int] = ()
    health: str | None = None
    health_port: int | None = None

    def __post_init__(self) -> None:
        if not _DIGEST.match(self.image):
            raise ValueError(f"{self.name} must run an image by digest, not {self.image!r}")

    def definition(self, logs: dict[str, Any], essential: bool, after: str | None) -> dict[str, Any]:
        """As ECS reads it. It runs without privileges on a root that it cannot write, but for ``/scratch``."""
        told: dict[str, Any] = {
            "name": self.name,
            "image": self.image,
            "command": list(self.command),
            "essential": essential,
            "readonlyRootFilesystem": True,
            "privileged": False,
            "linuxParameters": {"initProcessEnabled": True, "capabilities": {"drop": ["ALL"]}},
            "mountPoints": [{"sourceVolume": "scratch", "containerPath": "/scratch", "readOnly": False}],
            "environment": [{"name": key, "value": self.environment[key]} for key in sorted(self.environment)],
            "secrets": [{"name": key, "valueFrom": self.secrets[key]} for key in sorted(self.secrets)],
            "portMappings": [{"containerPort": port, "hostPort": port, "protocol": "tcp"} for port in self.ports],
            "stopTimeout": 60,
            "logConfiguration": logs,
        }
        if after is not None:
            told["dependsOn"] = [{"containerName": after, "condition": "SUCCESS"}]
        if self.health is not None:
            probe = (
                f"import urllib.request as u; u.urlopen('http://127.0.0.1:{self.health_port}{self.health}', timeout=2)"
            )
            told["healthCheck"] = {
                "command": ["CMD", "python", "-c", probe],
                "interval": 10,
                "timeout": 5,
                "retries": 3,
                "startPeriod": 120,
            }
        return told


@dataclass(frozen=True, slots=True)
class Target:
    """Where a load balancer finds the service."""

    group_arn: pulumi.Input[str]
    port: int


@dataclass(frozen=True, slots=True)
class Home:
    """What the services of one stack share."""

    fleet: Fleet
    tags: Tags
    cluster: ecs.Cluster
    subnets: Sequence[pulumi.Input[str]]
    key_arn: pulumi.Input[str]
    boundary_arn: pulumi.Input[str]


@dataclass(frozen=True, slots=True)
class ServiceArgs:
    """``first`` runs to its end before ``container`` starts, in each task. ``may`` is what the running code may do."""

    home: Home
    group: pulumi.Input[str]  # the security group
    container: Container
    cpus: float
    memory_mib: int
    tasks: tuple[int, int]  # least and most
    first: Container | None = None
    secrets: Sequence[pulumi.Input[str]] = ()  # ARNs of those that the containers name
    targets: Sequence[Target] = ()
    may: Sequence[Statement] = ()

    def __post_init__(self) -> None:
        if self.cpus not in FARGATE:
            raise ValueError(f"cpus {self.cpus}: Fargate has {', '.join(map(str, FARGATE))}")
        low, high = FARGATE[self.cpus]
        if not low <= self.memory_mib <= high:
            raise ValueError(f"memory_mib {self.memory_mib}: with {self.cpus} processors between {low} and {high}")
        if not 1 <= self.tasks[0] <= self.tasks[1]:
            raise ValueError(f"tasks {self.tasks}: must be two rising numbers from 1")


class Service(Component):
    """The service. A deployment that does not become healthy goes back to the version before, by itself."""

    name: pulumi.Output[str]
    log_group: pulumi.Output[str]

    def __init__(self, name: str, args: ServiceArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("Service", name, opts)
        self._name, self._args = name, args
        logs = cloudwatch.LogGroup(
            name,
            name=f"/{args.home.tags.path}/{args.container.name}",
            kms_key_id=args.home.key_arn,
            retention_in_days=LOG_DAYS,
            tags=args.home.tags.named(name),
            opts=self.inside,
        )
        self.log_group = logs.name
        task = self._task(logs)
        service = ecs.Service(
            name,
            cluster=args.home.cluster.arn,
            task_definition=task.arn,
            launch_type="FARGATE",
            desired_count=args.tasks[0],
            network_configuration=ecs.ServiceNetworkConfigurationArgs(
                subnets=list(args.home.subnets), security_groups=[args.group], assign_public_ip=False
            ),
            load_balancers=[
                ecs.ServiceLoadBalancerArgs(
                    target_group_arn=target.group_arn, container_name=args.container.name, container_port=target.port
                )
                for target in args.targets
            ],
            deployment_circuit_breaker=ecs.ServiceDeploymentCircuitBreakerArgs(enable=True, rollback=True),
            deployment_minimum_healthy_percent=100,
            deployment_maximum_percent=200,
            availability_zone_rebalancing="ENABLED",
            enable_execute_command=False,
            health_check_grace_period_seconds=120 if args.targets else None,
            propagate_tags="SERVICE",
            wait_for_steady_state=True,
            tags=args.home.tags.named(name),
            # From here on the autoscaler decides how many run.
            opts=pulumi.ResourceOptions(parent=self, ignore_changes=["desiredCount"]),
        )
        self.name = service.name
        self._scale(service)
        self.register_outputs({"name": self.name})

    def _task(self, logs: cloudwatch.LogGroup) -> ecs.TaskDefinition:
        args = self._args
        configuration = {
            "logDriver": "awslogs",
            "options": {
                "awslogs-group": logs.name,
                "awslogs-region": args.home.fleet.region,
                "awslogs-stream-prefix": args.container.name,
            },
        }
        first = args.first
        containers = [first.definition(configuration, False, None)] if first else []
        containers.append(args.container.definition(configuration, True, first.name if first else None))
        return ecs.TaskDefinition(
            self._name,
            family=self._name,
            requires_compatibilities=["FARGATE"],
            network_mode="awsvpc",
            cpu=str(int(args.cpus * 1024)),
            memory=str(args.memory_mib),
            runtime_platform=ecs.TaskDefinitionRuntimePlatformArgs(
                operating_system_family="LINUX", cpu_architecture="X86_64"
            ),
            execution_role_arn=self._starter(logs).arn,
            task_role_arn=self._role("task", args.may).arn,
            volumes=[ecs.TaskDefinitionVolumeArgs(name="scratch")],
            container_definitions=pulumi.Output.json_dumps(containers),
            tags=args.home.tags.named(self._name),
            opts=self.inside,
        )

    def _starter(self, logs: cloudwatch.LogGroup) -> iam.Role:
        """The role that ECS takes to start a task: its image, its logs, its secrets, and nothing of another stack."""
        args = self._args
        may = [
            Statement(["ecr:GetAuthorizationToken"]),
            Statement(
                ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer", "ecr:BatchCheckLayerAvailability"],
                [f"{args.home.fleet.registry}*"],
            ),
            Statement(["logs:CreateLogStream", "logs:PutLogEvents"], [pulumi.Output.concat(logs.arn, ":*")]),
        ]
        if args.secrets:
            may += [
                Statement(["secretsmanager:GetSecretValue"], args.secrets),
                Statement(["kms:Decrypt"], [args.home.key_arn]),
            ]
        return self._role("start", may)

    def _role(self, label: str, may: Sequence[Statement]) -> iam.Role:
        name = f"{self._name}-{label}"
        role = iam.Role(
            name,
            path=f"/{self._args.home.tags.path}/",
            assume_role_policy=trust("ecs-tasks.amazonaws.com", self._args.home.fleet.account),
            permissions_boundary=self._args.home.boundary_arn,
            tags=self._args.home.tags.named(name),
            opts=self.inside,
        )
        if may:
            iam.RolePolicy(name, role=role.id, policy=policy(*may), opts=self.inside)
        return role

    def _scale(self, service: ecs.Service) -> None:
        least, most = self._args.tasks
        target = appautoscaling.Target(
            self._name,
            service_namespace="ecs",
            scalable_dimension="ecs:service:DesiredCount",
            resource_id=pulumi.Output.concat("service/", self._args.home.cluster.name, "/", service.name),
            min_capacity=least,
            max_capacity=most,
            tags=self._args.home.tags.named(self._name),
            opts=self.inside,
        )
        metric = appautoscaling.PolicyTargetTrackingScalingPolicyConfigurationPredefinedMetricSpecificationArgs(
            predefined_metric_type="ECSServiceAverageCPUUtilization"
        )
        appautoscaling.Policy(
            self._name,
            policy_type="TargetTrackingScaling",
            service_namespace=target.service_namespace,
            scalable_dimension=target.scalable_dimension,
            resource_id=target.resource_id,
            target_tracking_scaling_policy_configuration=appautoscaling.PolicyTargetTrackingScalingPolicyConfigurationArgs(
                target_value=CPU_TARGET,
                predefined_metric_specification=metric,
                scale_out_cooldown=60,
                scale_in_cooldown=300,
            ),
            opts=self.inside,
        )


def cluster(name: str, tags: Tags, inside: pulumi.ResourceOptions) -> ecs.Cluster:
    """Where the services of one stack run."""
    return ecs.Cluster(
        name,
        name=name,
        settings=[ecs.ClusterSettingArgs(name="containerInsights", value="enhanced")],
        tags=tags.named(name),
        opts=inside,
    )
