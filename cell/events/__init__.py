"""Events: told of in the transaction of the change, delivered until every consumer has them. A platform part.

========================  ==========================================================================================
Guarantee                 How
========================  ==========================================================================================
An event exists exactly   `outbox.emit` writes the outbox row in the transaction of the change.
when its change does
It reaches every          The relay puts it on a Redis Stream; a row that is not in every consumer's inbox is put there
consumer at least once    again. Redis may lose everything: it is a conveyor, the outbox is the truth.
Its effect happens once   The consumer's effect and its inbox row commit together, in one session of the tenant.
per consumer
Nothing is retried for    After `retry.ATTEMPTS_MAX` failures the inbox row is dead: logged, counted, kept until an
ever                      operator redrives it (``python -m cell redrive``).
It survives a move        Outbox and inbox are rows of the tenant; the new cell's sweeper relays what is unfinished.
Order                     None is promised: a retried event may come after a later one.
========================  ==========================================================================================

A finished event is pruned after `outbox.RETENTION`, together with its inbox rows.
"""
