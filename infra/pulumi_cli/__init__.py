"""The Pulumi CLI: found, or installed into a cache folder; and the environment that programs run in through it."""
