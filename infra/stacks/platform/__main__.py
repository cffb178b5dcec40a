"""What the fleet stands on on AWS: see `infra.aws.programs.platform`."""

from infra.aws import programs

programs.platform()
