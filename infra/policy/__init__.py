"""The walls between cells as rules for every stack on AWS: `rules` are pure, `pack.py` hands them to Pulumi."""
