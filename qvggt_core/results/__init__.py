"""Results of a reconstruction: what is kept, its schema, and the files of a result directory."""
