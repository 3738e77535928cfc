"""Options as dataclasses: declaration, checks, flags of the commands, suggestions for wrong names."""
