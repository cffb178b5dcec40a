"""Orders: what was bought, for how much, under a number that counts from 1 in each tenant."""
