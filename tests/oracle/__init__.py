"""An independent computation of every mart, in polars straight from the file; written from the definitions, not from the SQL."""
