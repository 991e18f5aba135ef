"""What runs inside the sandbox: a light interpreter without site packages. Standard library only, few imports.

`main` confines itself, forks `worker` for the program, and stays behind with `remote` for the tests. The two talk by
`codec` over pipes.
"""
