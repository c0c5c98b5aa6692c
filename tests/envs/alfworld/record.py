"""Compares both engines on all real games, and keeps checksums of what TextWorld said.

    python -m tests.envs.alfworld.record GAMES OUT.jsonl [PART PARTS]   # goes on where it was
    python -m tests.envs.alfworld.record collect OUT.jsonl…             # writes digests.json

GAMES is a folder `json_2.1.1`; the reference has to be installed (`make textworld`).
"""

import json
import sys
from pathlib import Path

from stepagent.envs.alfworld import engine, reference
from tests.envs.alfworld import walks
from tests.envs.alfworld.memo import memoised

DIGESTS = Path(__file__).with_name("digests.json")


def main(arguments):
    if arguments[0] == "collect":
        return collect(arguments[1:])
    games, out = Path(arguments[0]), Path(arguments[1])
    part, parts = map(int, arguments[2:4] or ("0", "1"))
    done = (
        {json.loads(line)["game"] for line in out.read_text().splitlines()}
        if out.exists()
        else set()
    )
    with memoised(), out.open("a") as lines:
        for path in sorted(games.glob("*/*/*/game.tw-pddl"))[part::parts]:
            name = path.parent.name
            if name not in done:
                lines.write(json.dumps({"game": name, **compared(path)}) + "\n")
                lines.flush()
    return None


def compared(path):
    data = walks.read(path)
    game, upstream = engine.load(data), reference.load(data)
    steps, digests = 0, []
    try:
        for seed in walks.SEEDS:
            count, digest = walks.compare(game, upstream, walks.random_commands(game, seed))
            steps += count
            digests.append(digest)
        for commands in walks.of_experts(game):
            steps += walks.compare(game, upstream, commands)[0]
    except AssertionError as error:
        return {"error": str(error)}
    return {"steps": steps, "digest": walks.combined(digests)}


def collect(files):
    rows = [json.loads(line) for name in files for line in Path(name).read_text().splitlines()]
    digests = {row["game"]: row["digest"] for row in rows if "digest" in row}
    text = json.dumps(dict(sorted(digests.items())), indent=0)
    DIGESTS.write_text(text + "\n")
    wrong = [row["game"] for row in rows if "error" in row]
    print(f"{len(digests)} games, {sum(r.get('steps', 0) for r in rows)} steps; differing: {wrong}")


if __name__ == "__main__":
    main(sys.argv[1:])
