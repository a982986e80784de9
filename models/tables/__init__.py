"""Tables as a second domain: rows of numbers and categories (`data`, `datasets`), and models of them."""
