"""Large collections of pictures as streams: a folder, a table or tar archives, whole or one shard of several."""
