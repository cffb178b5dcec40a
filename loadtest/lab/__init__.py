"""The load lab: declarative scenarios, a driver of several processes, and one result file for each run."""
