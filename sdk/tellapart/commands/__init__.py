"""What the verbs of `tellapart.cli` do, one module a verb; each is imported when its verb is asked for.

Every module offers `run(args) -> int`: it takes what argparse read, prints results on stdout, and returns
the exit status. Errors that a user can meet leave as `TellapartError`; `cli.main` turns them into a line.
"""
