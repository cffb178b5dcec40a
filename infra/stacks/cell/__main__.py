"""One cell on AWS: see `infra.aws.programs.cell`."""

from infra.aws import programs

programs.cell()
