"""Reports: heavy questions about a merchant's orders, asked at once or as a job whose result is a file."""
