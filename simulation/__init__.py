"""The simulator: the real domain and storage code against a real Postgres, everything around it driven by a seed.

Belongs here: worlds, faults, the scheduler that crashes and interleaves, the model that says what must have happened.
Does not belong here: any rule of the product; nothing of `payments_pipeline` imports this package.

Read `model` first: it says what each party must have been paid and has open. `docs/operating/simulating.md` says how to
run it and what a failure prints.
"""
