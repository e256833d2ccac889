"""Text in, token ids out: the tokenizer, and the shards that training reads."""
