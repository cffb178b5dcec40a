"""Cells on AWS: components of `pulumi_aws`, each with frozen, checked arguments."""
