"""Which tile sizes a call takes: a table's, or those timed on this GPU."""
