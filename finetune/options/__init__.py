"""Options as dataclasses: declared and checked, made into flags of the commands, wrong names suggested."""
