"""What a cell on AWS contains, and what that costs a month by a dated list of prices."""
