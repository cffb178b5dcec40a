"""What the stacks of each part are made of. Whatever stands in no list here is refused, by name and with the reason.

A test compares the lists with what the components make: a new kind of resource is a decision, not an accident.
"""

from typing import Final

PARTS: Final = ("platform", "control-plane", "router", "cell")

# Which parts make a type of `pulumi_aws`.
TYPES: Final = {
    "acm/certificate:Certificate": ("router",),
    "acm/certificateValidation:CertificateValidation": ("router",),
    "appautoscaling/policy:Policy": ("control-plane", "router", "cell"),
    "appautoscaling/target:Target": ("control-plane", "router", "cell"),
    "cloudwatch/dashboard:Dashboard": ("control-plane", "router", "cell"),
    "cloudwatch/logGroup:LogGroup": PARTS,
    "cloudwatch/metricAlarm:MetricAlarm": ("control-plane", "router", "cell"),
    "ec2/defaultSecurityGroup:DefaultSecurityGroup": ("platform", "cell"),
    "ec2/flowLog:FlowLog": ("platform", "cell"),
    "ec2/internetGateway:InternetGateway": ("platform",),
    "ec2/route:Route": ("platform",),
    "ec2/routeTable:RouteTable": ("platform", "cell"),
    "ec2/routeTableAssociation:RouteTableAssociation": ("platform", "cell"),
    "ec2/securityGroup:SecurityGroup": PARTS,
    "ec2/subnet:Subnet": ("platform", "cell"),
    "ec2/vpc:Vpc": ("platform", "cell"),
    "ec2/vpcEndpoint:VpcEndpoint": ("platform", "router", "cell"),
    "ec2/vpcEndpointService:VpcEndpointService": ("control-plane", "cell"),
    "ecr/lifecyclePolicy:LifecyclePolicy": ("platform",),
    "ecr/repository:Repository": ("platform",),
    "ecs/cluster:Cluster": ("control-plane", "router", "cell"),
    "ecs/service:Service": ("control-plane", "router", "cell"),
    "ecs/taskDefinition:TaskDefinition": ("control-plane", "router", "cell"),
    "elasticache/parameterGroup:ParameterGroup": ("cell",),
    "elasticache/replicationGroup:ReplicationGroup": ("cell",),
    "elasticache/subnetGroup:SubnetGroup": ("cell",),
    "elasticache/user:User": ("cell",),
    "elasticache/userGroup:UserGroup": ("cell",),
    "iam/policy:Policy": ("platform",),
    "iam/role:Role": PARTS,
    "iam/rolePolicy:RolePolicy": PARTS,
    "kms/alias:Alias": PARTS,
    "kms/key:Key": PARTS,
    "lb/listener:Listener": ("control-plane", "router", "cell"),
    "lb/loadBalancer:LoadBalancer": ("control-plane", "router", "cell"),
    "lb/targetGroup:TargetGroup": ("control-plane", "router", "cell"),
    "lb/targetGroupAttachment:TargetGroupAttachment": ("router",),
    "rds/cluster:Cluster": ("control-plane", "cell"),
    "rds/clusterInstance:ClusterInstance": ("control-plane", "cell"),
    "rds/clusterParameterGroup:ClusterParameterGroup": ("control-plane", "cell"),
    "rds/parameterGroup:ParameterGroup": ("control-plane", "cell"),
    "rds/subnetGroup:SubnetGroup": ("control-plane", "cell"),
    "route53/healthCheck:HealthCheck": ("router",),
    "route53/record:Record": ("router",),
    "route53/zone:Zone": ("platform",),
    "s3/bucket:Bucket": ("cell",),
    "s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration": ("cell",),
    "s3/bucketOwnershipControls:BucketOwnershipControls": ("cell",),
    "s3/bucketPolicy:BucketPolicy": ("cell",),
    "s3/bucketPublicAccessBlock:BucketPublicAccessBlock": ("cell",),
    "s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": ("cell",),
    "s3/bucketVersioning:BucketVersioning": ("cell",),
    "secretsmanager/secret:Secret": ("control-plane", "router", "cell"),
    "secretsmanager/secretVersion:SecretVersion": ("control-plane", "router", "cell"),
    "sns/topic:Topic": ("platform", "router"),
    "sns/topicPolicy:TopicPolicy": ("platform", "router"),
    "vpc/securityGroupEgressRule:SecurityGroupEgressRule": ("control-plane", "router", "cell"),
    "vpc/securityGroupIngressRule:SecurityGroupIngressRule": PARTS,
    "wafv2/webAcl:WebAcl": ("router",),
    "wafv2/webAclAssociation:WebAclAssociation": ("router",),
    "wafv2/webAclLoggingConfiguration:WebAclLoggingConfiguration": ("router",),
}
# The types of these that take no tags.
UNTAGGED: Final = frozenset(
    [
        "acm/certificateValidation:CertificateValidation",
        "appautoscaling/policy:Policy",
        "cloudwatch/dashboard:Dashboard",
        "ec2/route:Route",
        "ec2/routeTableAssociation:RouteTableAssociation",
        "ecr/lifecyclePolicy:LifecyclePolicy",
        "iam/rolePolicy:RolePolicy",
        "kms/alias:Alias",
        "lb/targetGroupAttachment:TargetGroupAttachment",
        "route53/record:Record",
        "s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration",
        "s3/bucketOwnershipControls:BucketOwnershipControls",
        "s3/bucketPolicy:BucketPolicy",
        "s3/bucketPublicAccessBlock:BucketPublicAccessBlock",
        "s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration",
        "s3/bucketVersioning:BucketVersioning",
        "secretsmanager/secretVersion:SecretVersion",
        "sns/topicPolicy:TopicPolicy",
        "wafv2/webAclAssociation:WebAclAssociation",
        "wafv2/webAclLoggingConfiguration:WebAclLoggingConfiguration",
    ]
)
TAGGED: Final = frozenset(TYPES) - UNTAGGED
# What is no resource of AWS: the engine's own, and our components, which make nothing beside their children.
ENGINE: Final = frozenset(
    ["pulumi:pulumi:Stack", "pulumi:pulumi:StackReference", "pulumi:providers:aws", "pulumi:providers:pulumi"]
)
COMPONENTS: Final = "cellwall:aws:"
_JOINS: Final = "joins networks; cells are reached by their endpoint service and by nothing else"
_UNSEEN: Final = "makes resources that Pulumi does not see"
_PERSON: Final = "is a person's or a long-lived key; what runs has roles"
_OLD: Final = "is the old name of a resource, which the other rules do not read"
_OPENS: Final = "opens a way to the internet"
_WAY_IN: Final = "is another way in; requests come through the router"
_FOREIGN_POLICY: Final = "gives a role what AWS or somebody else wrote"
# Why not, by how the type begins; the first that fits.
REASONS: Final = {
    "ec2/vpcPeering": _JOINS,
    "ec2/peeringConnection": _JOINS,
    "ec2transitgateway/": _JOINS,
    "networkmanager/": _JOINS,
    "vpclattice/": _JOINS,
    "directconnect/": _JOINS,
    "ec2/vpn": _JOINS,
    "ec2clientvpn/": _JOINS,
    "ram/": "shares what a stack owns with other accounts",
    "ec2/vpcEndpointServiceAllowedPrinciple": "adds a principal on the side; the service itself names its only one",
    "ec2/natGateway": _OPENS,
    "ec2/internetGateway": _OPENS,
    "ec2/egressOnlyInternetGateway": _OPENS,
    "ec2/eip": "is a public address",
    "ec2/securityGroupRule": _OLD,
    "ec2/default": "takes over what AWS made by default, which our networks leave empty",
    "ec2/instance": "is a server; services run on Fargate",
    "cloudformation/": _UNSEEN,
    "cloudcontrol/": _UNSEEN,
    "servicecatalog/": _UNSEEN,
    "lambda/": "runs code outside the cells' services",
    "apigateway": _WAY_IN,
    "cloudfront/": _WAY_IN,
    "iam/user": _PERSON,
    "iam/accessKey": _PERSON,
    "iam/group": _PERSON,
    "iam/rolePolicyAttachment": _FOREIGN_POLICY,
    "iam/policyAttachment": _FOREIGN_POLICY,
    "rds/instance": "is a database without what our clusters have: TLS, encryption, protection",
    "alb/": _OLD,
    "elasticloadbalancing": _OLD,
    "applicationloadbalancing/": _OLD,
    "pulumi:providers:": "is another provider; ours is that of AWS, as the stack's configuration sets it",
    "aws-native:": "is of another provider, whose resources the other rules do not read",
}


def refused(kind: str, part: str) -> str | None:
    """Why a stack of that part may not contain that type; None where it may."""
    if kind in ENGINE or kind.startswith(COMPONENTS) or part in TYPES.get(kind, ()):
        return None
    why = next((why for begin, why in REASONS.items() if kind.startswith(begin)), "is none of what our components make")
    return f"{why}; no {part} contains it"
