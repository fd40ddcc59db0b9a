"""The Delta tables of the lake, as the graph sees them. The stream writes them; a sensor reports their growth."""
