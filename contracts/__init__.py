"""The shared kernel: ids, routes, envelope, transfer wire types, problems, names. No I/O; imports nothing of ours."""
