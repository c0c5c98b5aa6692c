"""Environments over HTTP: `python -m envs.serve --env ID`. See `docs/servers.md`.

`sessions` keeps the environments, each in a thread of its own; `app` is what clients can ask for;
`guard` stands before it (token, size of requests, log lines, counters); `openenv` speaks OpenEnv's
protocol over the same sessions; `metrics` counts. The client is `envs.remote`.
"""
