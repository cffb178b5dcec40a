"""The load lab: open-loop driver, books, scenarios, benchmarks."""
