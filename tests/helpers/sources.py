"""What sources read."""

import ast


def attributes_read(paths) -> set[str]:
    """Names read as attributes; `values["x"]` counts too: some options are needed before they are built."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                found.add(node.slice.value)
    return found
