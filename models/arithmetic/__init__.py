"""The embedded pair: two small networks for word problems, their training recipe, problems and figures."""
