"""The stage table and the pipeline; opening a finished run again."""
