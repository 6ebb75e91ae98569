"""Many requests on one model: the scheduler, what is running, and the cache of prefixes."""
