"""Where the policy's replies are drawn: in the trainer (`local`), or by vLLM engines (`vllm`).

interface.py   what a sampler does: publish the policy, draw replies in states, act in episodes
local.py       with the trainer's own model, one reading of each trajectory, several at once
vllm.py        with engines that serve a published version, over HTTP
fleet.py       several engines: who gets a prompt, who is out, who comes back
engine.py      one engine's API, and the checks that it serves this policy
version.py     what is published: a name made of the weights, and files on a shared disk
agent.py       the policy as an agent, with replies that engines draw
"""
