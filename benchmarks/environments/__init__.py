"""Environments of other packages as task families, a file each, and every command on them."""
