"""One module a format, listed in `ckptfmt.migrate.registry`; none loads before its turn."""
