"""cellctl: the operators' command line. It speaks the control plane's HTTP API and nothing else."""
