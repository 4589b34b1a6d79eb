"""How fast the package is, against others and the machine; and which adaptation helps.

Beside the package, which never imports it, and not in its wheel; README.md lists the commands.
"""
