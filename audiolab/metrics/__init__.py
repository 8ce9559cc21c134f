"""The field's metrics on plain arrays."""
