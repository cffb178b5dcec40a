"""Many stacks at once: ``cellctl fleet``. Each is driven by Pulumi's Automation API in a process of its own."""
