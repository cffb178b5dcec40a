"""The sandbox gateway: a process outside of the fleet that takes pretended money and webhooks, with faults on order."""
