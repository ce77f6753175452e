"""The stage table: what each stage needs, depends on, takes and makes; and the keys of its results."""
