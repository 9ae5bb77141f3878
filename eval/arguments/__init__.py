"""The options of every command, without what it needs to run: ``--help`` and a wrong option need not wait for that."""
