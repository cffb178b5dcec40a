"""The walls of the networks: who can reach what. A rule here is a list of what may be; the rest is a fault."""

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from infra.policy.model import UNKNOWN, Fault, Resource, Stack, listed

ANYWHERE: Final = "0.0.0.0/0"
CLIENTS_PORT: Final = 443
_INGRESS: Final = "vpc/securityGroupIngressRule:SecurityGroupIngressRule"
_EGRESS: Final = "vpc/securityGroupEgressRule:SecurityGroupEgressRule"
_GROUP: Final = "ec2/securityGroup:SecurityGroup"
_DEFAULT_GROUP: Final = "ec2/defaultSecurityGroup:DefaultSecurityGroup"
_ENDPOINT: Final = "ec2/vpcEndpoint:VpcEndpoint"
_SERVICE: Final = "ec2/vpcEndpointService:VpcEndpointService"
_BALANCER: Final = "lb/loadBalancer:LoadBalancer"
_GATEWAY: Final = "ec2/internetGateway:InternetGateway"
# Where a route can lead beside the gateway of the platform, in both of the forms in which it is written.
_ELSEWHERE: Final = (
    "carrierGatewayId",
    "coreNetworkArn",
    "egressOnlyGatewayId",
    "localGatewayId",
    "natGatewayId",
    "networkInterfaceId",
    "odbNetworkArn",
    "transitGatewayId",
    "vpcEndpointId",
    "vpcPeeringConnectionId",
)
_OTHER_DESTINATIONS: Final = ("destinationIpv6CidrBlock", "destinationPrefixListId", "ipv6CidrBlock")
_NETWORKS_BY_ENDPOINT: Final = ("resourceConfigurationArn", "serviceNetworkArn")
# Settings that give an address of the internet, wherever in a resource they stand.
_PUBLIC: Final = (
    "assignGeneratedIpv6CidrBlock",
    "assignIpv6AddressOnCreation",
    "assignPublicIp",
    "associatePublicIpAddress",
    "customerOwnedIpv4Pool",
    "ipv6CidrBlock",
    "ipv6Native",
    "mapCustomerOwnedIpOnLaunch",
    "mapPublicIpOnLaunch",
    "publiclyAccessible",
)
_LISTENS: Final = ("TCP", "TLS", "HTTPS")
_ATTACHED: Final = ("securityGroups", "securityGroupIds", "vpcSecurityGroupIds", "networkConfiguration")
_PRIVATE: Final = tuple(ipaddress.IPv4Network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
_LARGEST_NETWORK: Final = 16  # bits, of ours and of what a rule may let in


def no_bridges(stack: Stack) -> Iterator[Fault]:
    """Networks meet through endpoint services only; the one route out is the platform's, to its own gateway."""
    for each in stack.of("ec2/route:Route"):
        for fault in _route_faults(stack, each, each.props, ("gatewayId", "destinationCidrBlock")):
            yield each, fault
        for name in (*_ELSEWHERE, *_OTHER_DESTINATIONS):
            if each.props.get(name) is UNKNOWN and each.asked(name):
                yield each, f"leads where a preview cannot see ({name})"
    for each in stack.of("ec2/routeTable:RouteTable"):
        if each.asked("propagatingVgws"):
            yield each, "takes routes from a private network's gateway"
        if each.props.get("routes") is UNKNOWN and each.asked("routes"):
            yield each, "has routes that a preview cannot see"
        for route in _mappings(each.props.get("routes")):
            for fault in _route_faults(stack, each, route, ("gatewayId", "cidrBlock")):
                yield each, fault
    for each in stack.of(_ENDPOINT):
        for name in _NETWORKS_BY_ENDPOINT:
            if each.asked(name):
                yield each, f"reaches another network ({name})"
        if not _own_service(stack, each):
            yield (
                each,
                f"reaches {each.props.get('serviceName')}, which is no service of AWS, nor the control plane's or the "
                "payment gateway's",
            )


def guarded_endpoints(stack: Stack) -> Iterator[Fault]:
    """The router alone may make endpoints to a cell, the cells' deployer alone to the control plane."""
    wanted = stack.trusted.router if stack.part == "cell" else stack.trusted.cells
    for each in stack.of(_SERVICE):
        allowed = each.props.get("allowedPrincipals")
        if allowed is UNKNOWN or listed(allowed) != [wanted]:
            said = ", ".join(map(str, listed(allowed))) or "nobody"
            yield each, f"lets in {said}; its only principal is {wanted}"
        if each.asked("gatewayLoadBalancerArns"):
            yield each, "hands traffic to a gateway balancer"


def nothing_public(stack: Stack) -> Iterator[Fault]:
    """Nothing has an address of the internet but the router's outer balancer, and it is open on one port."""
    for each in stack.resources:
        for name in _public_settings(each):
            yield each, f"would have a public address ({name})"
        if str(each.props.get("ipAddressType", "ipv4")) not in ("ipv4", repr(UNKNOWN)):
            yield each, f"would have a public address ({each.props['ipAddressType']})"
    public = [each for each in stack.of(_BALANCER) if each.props.get("internal") is not True]
    for each in public:
        if stack.part != "router":
            yield each, "faces the internet; only the router's outer balancer does"
        elif len(public) > 1 or each.props.get("loadBalancerType") != "network":
            yield each, "faces the internet; only one balancer does, which is the router's network balancer"
    for each in stack.of("lb/listener:Listener"):
        if each.props.get("protocol") not in _LISTENS:
            yield each, f"speaks {each.props.get('protocol')}: what is not TCP, TLS or HTTPS is open or in clear"


def narrow_rules(stack: Stack) -> Iterator[Fault]:
    """Security groups let in one port each, from another group or from a network of ours; all only the router's 443."""
    made = {opening for each in stack.of(_INGRESS, _EGRESS) for opening in _openings(each, each.props)}
    for each in stack.of(_INGRESS, _EGRESS):
        openings = _openings(each, each.props)
        if not openings:
            yield each, "does not say for whom it is"
        for opening in openings:
            if (fault := _opening_fault(stack, each, opening)) is not None:
                yield each, fault
    for each in stack.of(_GROUP, _DEFAULT_GROUP):
        for name in ("ingress", "egress"):
            if each.props.get(name) is UNKNOWN and each.asked(name):
                yield each, f"has rules inside ({name}) that a preview cannot see"
            for rule in _mappings(each.props.get(name)):
                # AWS tells of a group all its rules, so those that stand beside it come back here.
                if not _openings(each, rule, name) or not _openings(each, rule, name) <= made:
                    yield each, f"has a rule inside ({name}); rules stand beside their group, one resource each"


@dataclass(frozen=True, slots=True)
class _Opening:
    ingress: bool
    protocol: Any
    first: Any
    last: Any
    kind: str
    source: Any


def _openings(each: Resource, rule: Mapping[str, Any], side: str = "") -> set[_Opening]:
    """A rule as one opening for each it lets through, in either of the forms in which AWS writes it."""
    ingress = each.type == _INGRESS or side == "ingress"
    protocol = rule.get("ipProtocol", rule.get("protocol"))
    kinds = {
        "v4": ("cidrIpv4", "cidrBlocks"),
        "v6": ("cidrIpv6", "ipv6CidrBlocks"),
        "list": ("prefixListId", "prefixListIds"),
        "group": ("referencedSecurityGroupId", "securityGroups"),
    }
    return {
        _Opening(ingress, protocol, rule.get("fromPort"), rule.get("toPort"), kind, source)
        for kind, names in kinds.items()
        for name in names
        for source in listed(rule.get(name))
        if source is not UNKNOWN or side or each.asked(name)
    }


def _opening_fault(stack: Stack, each: Resource, opening: _Opening) -> str | None:
    if opening.protocol != "tcp" or opening.first != opening.last or not isinstance(opening.first, (int, float)):
        return f"opens {opening.protocol} {opening.first} to {opening.last}; a rule opens one port of TCP"
    if opening.kind == "v6":
        return "opens a way for IPv6, which our networks do not have"
    if opening.kind == "list":
        # Router and control plane use the platform's endpoints, of which this stack has no more than a name.
        guests = stack.part in ("router", "control-plane") and isinstance(opening.source, str)
        known = guests or stack.comes_from(each, "prefixListId", opening.source, _ENDPOINT)
        if opening.ingress or opening.first != CLIENTS_PORT or not known:
            return f"opens a way for the prefix list {opening.source}, which is not that of an endpoint of ours"
    if opening.kind == "v4" and not _private(opening.source) and not _for_clients(stack, each, opening):
        return f"is open for {opening.source}; only the router's outer balancer is open for all, on 443"
    return None


def _private(cidr: Any) -> bool:
    try:
        network = ipaddress.IPv4Network(cidr)
    except ValueError:
        return False
    return network.prefixlen >= _LARGEST_NETWORK and any(network.subnet_of(each) for each in _PRIVATE)


def _for_clients(stack: Stack, each: Resource, opening: _Opening) -> bool:
    """Whether this is the one rule that is open for all: of the group that the outer balancer has, and nothing else."""
    if stack.part != "router" or not opening.ingress or (opening.source, opening.first) != (ANYWHERE, CLIENTS_PORT):
        return False
    holders = [other for other in stack.resources for name in _ATTACHED if _attaches(other, name, each)]
    return len(holders) == 1 and holders[0].type == _BALANCER and holders[0].props.get("internal") is False


def _attaches(other: Resource, name: str, rule: Resource) -> bool:
    group, told = rule.props.get("securityGroupId"), other.props.get(name)
    if isinstance(group, str) and group in _texts(told):
        return True
    return bool(rule.references.get("securityGroupId", frozenset()) & other.references.get(name, frozenset()))


def _route_faults(stack: Stack, each: Resource, route: Mapping[str, Any], names: tuple[str, str]) -> Iterator[str]:
    gateway, destination = names
    for name in (*_ELSEWHERE, *_OTHER_DESTINATIONS):
        if route.get(name) and route[name] is not UNKNOWN:
            yield f"leads to another network or to addresses that are not ours ({name})"
    if stack.part != "platform":
        yield f"is a route, and no {stack.part} has one: what it reaches, it reaches by endpoints"
    elif route.get(destination) != ANYWHERE:
        yield f"is a route to {route.get(destination)}; the only one is to the internet"
    prop = gateway if each.type == "ec2/route:Route" else "routes"
    if not stack.comes_from(each, prop, route.get(gateway), _GATEWAY):
        yield f"leads to {route.get(gateway)}, which is not the platform's internet gateway"


def _own_service(stack: Stack, each: Resource) -> bool:
    """Whether an endpoint is to AWS, or to the two services that a cell may use, or to the cells that a router uses.

    A cell's are the control plane's and that of the payment gateway, which alone brings a name of its own. The names of
    the services come from elsewhere and tell nothing; who may use them, the other side decides.
    """
    name = each.props.get("serviceName")
    if not isinstance(name, str):
        return False
    if _of_aws(name):
        return True
    others = [one for one in stack.of(_ENDPOINT) if not _of_aws(str(one.props.get("serviceName")))]
    named = [one for one in others if one.props.get("privateDnsEnabled") is True]
    return stack.part == "router" or (stack.part == "cell" and len(named) <= 1 and len(others) - len(named) <= 1)


def _of_aws(name: str) -> bool:
    return name.startswith("com.amazonaws.") and not name.startswith("com.amazonaws.vpce.")


def _public_settings(each: Resource) -> Iterator[str]:
    for name, value in each.props.items():
        if name in _PUBLIC and each.asked(name):
            yield name
        for inner in _mappings(value):
            # Of what is inside a property nobody tells who wrote it, so what is not there yet counts as asked for.
            yield from (f"{name}.{found}" for found in _PUBLIC if inner.get(found))


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping in a property, at any depth."""
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from _mappings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _mappings(inner)


def _texts(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value}
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return {text for inner in inside for text in _texts(inner)}
