"""The rules, as pure functions over what Pulumi is about to make. Each fault is a sentence for who wrote the change.

They are lists of what may be: of types, sources, principals, actions and names. A value that is known only once
something exists (`UNKNOWN`) passes where the engine tells that it is made from what may stand there, such as the ARN of
the stack's own key. What a document of a role says is then read by the next preview, or by `pulumi up` itself.
"""

from collections.abc import Callable, Iterator
from typing import Final

from infra.policy import data, documents, identity, network
from infra.policy.allowed import TAGGED
from infra.policy.model import Fault, Rule, Stack

__all__ = ["RULES", "TAGGED"]

Check = Callable[[Stack], Iterator[Fault]]


def _both(*checks: Check) -> Check:
    def check(stack: Stack) -> Iterator[Fault]:
        for each in checks:
            yield from each(stack)

    return check


RULES: Final = (
    Rule("one-cell-per-stack", "All in a stack is of its part and of its cell.", identity.one_cell),
    Rule("known-types", "A stack holds what the components of its part make.", identity.known_types),
    Rule("no-bridges", "No route and no endpoint leads to another network.", network.no_bridges),
    Rule(
        "guarded-endpoints", "An endpoint service has one principal: a cell's is the router.", network.guarded_endpoints
    ),
    Rule("encrypted", "Data is encrypted at rest with a key of the stack, and in transit.", data.encrypted),
    Rule(
        "nothing-public",
        "Nothing is public but one balancer of the router, on 443.",
        _both(network.nothing_public, network.narrow_rules, data.buckets_walled),
    ),
    Rule("known-principals", "Nobody is let in but the fleet's account and its services.", documents.known_principals),
    Rule("data-kept", "What holds data is protected from deletion.", data.kept),
    Rule("bounded-roles", "Roles have the boundary and reach what their stack holds.", documents.bounded_roles),
    Rule("images-by-digest", "Containers run images by digest.", data.digests),
)
