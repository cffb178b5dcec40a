"""Benchmarks that compare, in the same run and on the same machine; ratios travel, microseconds do not."""
