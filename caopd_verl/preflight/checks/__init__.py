"""The checks, one file a subject. Each takes a `Context`; an error of it says what to do."""
