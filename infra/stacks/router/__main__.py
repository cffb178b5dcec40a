"""The router on AWS: see `infra.aws.programs.router`."""

from infra.aws import programs

programs.router()
