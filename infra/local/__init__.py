"""A whole fleet on one machine: real servers and the same processes as everywhere else, on loopback."""
