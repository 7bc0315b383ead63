"""What the functions of the API return: each has `as_dict()` (the command's JSON), a text and an HTML form."""
