"""The walls between cells as rules for every stack on AWS: `rules` decides, `pack.py` hands it to Pulumi."""
