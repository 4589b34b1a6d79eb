"""How fast the package is: against other libraries, against its parts, and against the machine."""
