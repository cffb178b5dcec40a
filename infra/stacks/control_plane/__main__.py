"""The control plane on AWS: see `infra.aws.programs.control_plane`."""

from infra.aws import programs

programs.control_plane()
