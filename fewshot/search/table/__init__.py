"""An index in a Lance table: beyond memory, filtered by metadata, with versions."""
