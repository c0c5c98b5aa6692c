"""Environments over HTTP: `stepagent serve --env ID`. See `docs/servers.md`.

`sessions` holds the environments, each in a thread of its own; `app` has the routes; `guard` checks
every request first (token, size, log lines, counters); `openenv` speaks OpenEnv's
protocol over the same sessions; `metrics` counts. The client is `envs.remote`.
"""
