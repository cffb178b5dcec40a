"""The peer of the noisy-neighbour runs: a plain shared stack, as most products begin. No cells, no walls."""
