"""Stamping out cells: on this machine and, by Pulumi, in the cloud."""
