"""Token shards in, weights out, in a process of its own."""
