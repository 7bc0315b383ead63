"""The results of the public functions: each has `as_dict()` (the command's JSON), a text and an HTML form."""
