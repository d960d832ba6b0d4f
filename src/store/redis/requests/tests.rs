//! What the contract of all homes does not ask: several processes, and a Redis that goes and comes.
