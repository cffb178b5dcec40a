"""The roles of API keys, weakest last; ``router`` may only follow the route log. What each may call is in `auth`."""

ROLES = ("admin", "operator", "viewer", "router")
